"""Models between homes: a file and its row of the registry, written out and taken in."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from quant_pipeline.chain.model_content import check_content, require_same_lightgbm
from quant_pipeline.chain.vet import vet
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import ModelFileError, SourceError
from quant_pipeline.stores.durable import write_durably
from quant_pipeline.stores.meta import Model
from quant_pipeline.stores.model_files import from_bytes, read_once

MAX_ROW_BYTES = 64 << 20
FIELDS: Any = {name: (field.annotation, ...) for name, field in Model.model_fields.items()}
# A table's class does not check what it is made from.
ROW: type[BaseModel] = create_model("Row", __config__=ConfigDict(extra="forbid"), **FIELDS)


def export_model(ws: Workspace, model: Model, folder: Path) -> Path:
    """Write a model's file, and its row as JSON beside it, into a folder; gives the file."""
    ws.files.read(model.model_id)  # what is damaged is not passed on
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{model.model_id}.joblib"
    row = json.dumps(model.model_dump(mode="json"), indent=1, sort_keys=True)
    write_durably(target.with_suffix(".json"), row.encode())
    write_durably(target, read_once(ws.files.path(model.model_id)), mode=0o600)
    return target


def import_model(ws: Workspace, path: Path) -> Model:
    """Take in a model of another home: as status `imported`, it can be looked at and score aside.

    It never serves, as nobody here can prove what it has seen. Its bytes are parsed in a process of
    their own first. Raises ModelFileError or SourceError, and then nothing is registered.
    """
    row = _read_row(path.with_suffix(".json"))
    try:
        raw = read_once(path)
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist.") from None
    found = sha256(raw).hexdigest()
    if row.model_id != found:
        raise ModelFileError(
            f"{path.name} has sha256 {found[:12]}…, but its row says {row.model_id[:12]}…: one of "
            "them was changed, so neither was taken. Export the model again."
        )
    ws.settings.task(row.task_id)
    require_same_lightgbm(row)
    vet(raw, path.name)
    check_content(from_bytes(raw), row)
    known = {model.model_id for model in ws.meta.trained()}
    if row.model_id in known:
        return ws.meta.model(row.model_id)
    write_durably(ws.files.path(row.model_id), raw, mode=0o600)
    row.status = "imported"
    return ws.meta.add_model(row)


def _read_row(path: Path) -> Model:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_ROW_BYTES + 1)
        if len(text) > MAX_ROW_BYTES:
            raise SourceError(f"{path} has over {MAX_ROW_BYTES >> 20} MiB, which is no row.")
        return Model(**ROW.model_validate_json(text).model_dump())
    except FileNotFoundError:
        raise SourceError(
            f"{path} does not exist: `quant models export ID FOLDER` writes it beside the file."
        ) from None
    except (ValidationError, RecursionError) as error:
        said = str(error).splitlines()[:3]
        raise SourceError(f"{path.name} is no row of a model: {' '.join(said)[:300]}.") from None
