"""Model files: joblib dicts of plain types, named by the sha256 of their bytes."""

import io
import json
import os
import pickle
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import joblib

from quant_pipeline.errors import ModelFileError


@dataclass(frozen=True)
class ModelFiles:
    """A folder of `{model_id}.joblib` files, written once and never changed."""

    folder: Path

    def path(self, model_id: str) -> Path:
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
        if not target.exists() or sha256(target.read_bytes()).hexdigest() != model_id:
            write_durably(target, raw)
        return model_id, len(raw)

    def read(self, model_id: str) -> dict[str, Any]:
        """The content of a model file, parsed only if its bytes are those of its id."""
        path = self.path(model_id)
        if not path.exists():
            raise ModelFileError(
                f"models/{path.name} is missing, but the registry has it. Restore it, or train "
                "that as-of again with `quant train --asof D`: the same data gives the same file."
            )
        raw = path.read_bytes()
        found = sha256(raw).hexdigest()
        if found != model_id:
            raise ModelFileError(
                f"models/{path.name} has sha256 {found[:12]}…, but the registry says "
                f"{model_id[:12]}…: it was changed after training, so it was not opened. Delete "
                "it and train that as-of again with `quant train --asof D`."
            )
        return from_bytes(raw)


def to_bytes(content: dict[str, Any]) -> bytes:
    """Canonical joblib bytes: equal dicts give equal bytes, however they were built."""
    canonical = json.loads(json.dumps(content, sort_keys=True, allow_nan=False))
    buffer = io.BytesIO()
    joblib.dump(canonical, buffer, protocol=4)
    return buffer.getvalue()


def from_bytes(raw: bytes) -> dict[str, Any]:
    """Open joblib bytes of plain types; anything that names a global is refused."""
    content = _PlainUnpickler(io.BytesIO(raw)).load()
    if not isinstance(content, dict):
        raise ModelFileError(f"A model file holds a {type(content).__name__} instead of a dict.")
    return content


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise ModelFileError(f"A model file asks for {module}.{name}; plain types need no global.")


def write_durably(target: Path, raw: bytes) -> None:
    """Put bytes at a path so that a crash leaves the old file or the new one."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync(target.parent)


def sync(path: Path) -> None:
    """Make what was written to a file durable, or renames in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
