"""What a model's file holds, read once the registry vouches for its bytes and says the same."""

from typing import Any

from quant_pipeline.chain.provenance import installed
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import GateError, ModelFileError
from quant_pipeline.stores.meta import Model

ROW_NAMES = ("features", "feature_type", "feature_set_id", "rounds", "data_fingerprint")


def read_boosters(ws: Workspace, model: Model) -> list[str]:
    """A model's boosters as text, one a seed, for LightGBM to parse.

    Raises GateError if another version of LightGBM, beyond its last number, trained it: that one
    may read its text or score otherwise.
    Raises ModelFileError if the file is missing or changed, or says something else than the row
    of the registry: a row may be altered as well as a file.
    """
    require_same_lightgbm(model)
    return check_content(ws.files.read(model.model_id), model)


def require_same_lightgbm(model: Model) -> None:
    """Refuse a model of another LightGBM than the one that is installed."""
    now, then = installed("lightgbm"), model.environment.get("lightgbm", "?")
    if now.split(".")[:2] != then.split(".")[:2]:
        raise GateError(
            f"Model {model.model_id[:12]} was trained with LightGBM {then}, and {now} is "
            f"installed, which may score otherwise. Install lightgbm=={then}, or train that as-of "
            f"anew with `quant train --asof {model.asof} --task {model.task_id}` and serve the new "
            "model with `quant models promote`."
        )


def check_content(content: dict[str, Any], model: Model) -> list[str]:
    """The boosters of a file whose content is that of a model's row."""
    boosters, task = content.get("boosters"), content.get("task")
    said = {name: content.get(name) for name in ROW_NAMES} | {
        "asof": content.get("asof"),
        "task_id": task.get("task_id") if isinstance(task, dict) else None,
    }
    recorded = {name: getattr(model, name) for name in ROW_NAMES} | {
        "asof": model.asof.isoformat(),
        "task_id": model.task_id,
    }
    other = [name for name in said if said[name] != recorded[name]]
    is_text = isinstance(boosters, list) and all(isinstance(text, str) for text in boosters)
    if other or not is_text or not boosters:
        what = ", ".join(other) or "boosters"
        raise ModelFileError(
            f"The model file of {model.model_id[:12]} and its row in the registry do not say the "
            f"same ({what}): one of them was changed by hand, so it was not used. Restore both "
            "from a backup."
        )
    found: list[str] = boosters
    return found
