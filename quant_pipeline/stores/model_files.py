"""Model files: joblib dicts of plain types, named by the sha256 of their bytes."""

import io
import json
import os
import pickle
import re
import stat
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import joblib

from quant_pipeline.errors import ModelFileError
from quant_pipeline.stores.durable import write_durably

MODEL_ID = re.compile(r"[0-9a-f]{64}")
MAX_BYTES = 1 << 30
"""Of a model file; one of 3,000 rounds of 255 leaves has some 60 MB."""


@dataclass(frozen=True)
class ModelFiles:
    """A folder of `{model_id}.joblib` files, written once, never changed, their owner's alone."""

    folder: Path

    def path(self, model_id: str) -> Path:
        """Where the file of an id is; ModelFileError for what is no id, as a path might be."""
        if not MODEL_ID.fullmatch(model_id):
            raise ModelFileError(
                f"{model_id[:80]!r} is no model id: those are 64 hexadecimal digits."
            )
        return self.folder / f"{model_id}.joblib"

    def write(self, content: dict[str, Any]) -> tuple[str, int]:
        """Store a dict of plain types; gives its model_id and its size in bytes.

        The same content gives the same bytes, hence the same id; it must hold no clock, path,
        host or run id. Written to a temporary name, synced, renamed, and the folder synced.
        """
        raw = to_bytes(content)
        model_id = sha256(raw).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.path(model_id)
        if not self.is_intact(model_id):
            write_durably(target, raw, mode=0o600)
        return model_id, len(raw)

    def is_intact(self, model_id: str) -> bool:
        """Whether a file is there whose bytes are those of its id."""
        try:
            return sha256(read_once(self.path(model_id))).hexdigest() == model_id
        except (FileNotFoundError, ModelFileError):
            return False

    def read(self, model_id: str) -> dict[str, Any]:
        """The content of a model file, parsed only if its bytes are those of its id."""
        path = self.path(model_id)
        try:
            raw = read_once(path)
        except FileNotFoundError:
            raise ModelFileError(
                f"models/{path.name} is missing, but the registry has it. Restore it, or train "
                "that as-of again with `quant train --asof D`: the same data gives the same file."
            ) from None
        found = sha256(raw).hexdigest()
        if found != model_id:
            raise ModelFileError(
                f"models/{path.name} has sha256 {found[:12]}…, but the registry says "
                f"{model_id[:12]}…: it was changed after training, so it was not opened. Delete "
                "it and train that as-of again with `quant train --asof D`."
            )
        return from_bytes(raw)


def read_once(path: Path) -> bytes:
    """The bytes of a model file, opened once and through no link; ModelFileError if it is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:  # a link is ELOOP
        raise ModelFileError(
            f"models/{path.name} is a link or cannot be read ({error.strerror}), so it was not "
            "opened. Put the file itself there."
        ) from None
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_BYTES:
        os.close(handle)
        raise ModelFileError(
            f"models/{path.name} is no file or has over {MAX_BYTES >> 20} MiB, so it was not "
            "read. Delete it and train that as-of again with `quant train --asof D`."
        )
    with os.fdopen(handle, "rb") as file:
        return file.read(MAX_BYTES + 1)


def to_bytes(content: dict[str, Any]) -> bytes:
    """Canonical joblib bytes: equal dicts give equal bytes, however they were built."""
    canonical = json.loads(json.dumps(content, sort_keys=True, allow_nan=False))
    buffer = io.BytesIO()
    joblib.dump(canonical, buffer, protocol=4)
    return buffer.getvalue()


def from_bytes(raw: bytes) -> dict[str, Any]:
    """Open joblib bytes of plain types; anything that names a global is refused."""
    try:
        content = _PlainUnpickler(io.BytesIO(raw)).load()
    except ModelFileError:
        raise
    except Exception as error:  # pickle raises nearly any
        raise ModelFileError(f"A model file is no pickle of plain types: {error!r}.") from None
    if not isinstance(content, dict):
        raise ModelFileError(f"A model file holds a {type(content).__name__} instead of a dict.")
    return content


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise ModelFileError(f"A model file asks for {module}.{name}; plain types need no global.")
