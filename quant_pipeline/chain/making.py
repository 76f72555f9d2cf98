"""How models and scores were made, as far as it is recorded, and what is not as it was then."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime

from quant_pipeline.chain.model_content import read_boosters
from quant_pipeline.chain.provenance import changes_since, changes_since_made
from quant_pipeline.chain.scratch import settings_of
from quant_pipeline.chain.slices import stored_digest
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import GateError, ModelFileError, QuantError
from quant_pipeline.settings import Settings
from quant_pipeline.stores.meta import Batch, Model

# --- Models


def why_impossible(ws: Workspace, model: Model) -> str:
    """Why a model cannot be trained again here, or nothing."""
    if model.status == "imported":
        return "it was imported, and learned from the prices of another home"
    try:
        settings = settings_of(ws, model)
    except QuantError as error:
        return str(error).rstrip(".")
    try:
        _ = replace(ws, settings=settings).feature_set_id
    except QuantError as error:
        return f"its features are gone: {str(error).rstrip('.')}"
    return ""


def why_unscored(ws: Workspace, model: Model) -> str:
    """Why a model cannot score any more, or nothing; raises ModelFileError if its file is bad."""
    if model.status == "pruned":
        return "its file was pruned"
    try:
        read_boosters(ws, model)
    except GateError as error:  # of another LightGBM
        return str(error).split(". ")[0]
    return ""


def why_bad(ws: Workspace, model: Model) -> str:
    """Why the file of a model cannot be used, though nobody pruned it; or nothing."""
    try:
        why_unscored(ws, model)
    except ModelFileError as error:
        return str(error).rstrip(".")
    return ""


def why_other(ws: Workspace, model: Model) -> tuple[str, ...]:
    """What is not as it was when a model was trained: code, environment, features."""
    reasons = changes_since(model.code_version, model.environment)
    if replace(ws, settings=settings_of(ws, model)).feature_set_id != model.feature_set_id:
        reasons.append("features or own modules mean something else now")
    return tuple(reasons)


# --- Scores


@dataclass(frozen=True)
class Making:
    """How scores of one partition and batch may have been made.

    `settings` are those of their features, None if these are not recorded any more; `reasons` tell
    what of code and environment is another now.
    """

    settings: Settings | None
    reasons: tuple[str, ...]


def makings_of(
    ws: Workspace, model: Model, day: date, batch_id: int, made_at: datetime
) -> list[Making]:
    """How scores of a session may have been made; the likeliest first, at least one.

    A partition's features may have been written several times from one batch of prices, with
    different settings: the newest before the scores is the likeliest. Where the machine's clock
    was set back meanwhile, it is another one.
    """
    key = ws.grid.key(day)
    written = [b for b in ws.meta.history("features_daily", key) if b.price_batch_id == batch_id]
    before = [b for b in written if b.written_at <= made_at] or written[:1]
    rest = [b for b in written if b not in before]
    scored = [b for b in ws.meta.history("predictions", key) if b.task_id == model.task_id]
    stored = [b for b in scored if b.written_at >= made_at] or scored[-1:]
    found: dict[str, Making] = {}
    for batch in [*reversed(before), *rest]:
        if batch.spec_id not in found:
            settings = settings_with(ws, model, batch.spec_id)
            found[batch.spec_id] = Making(settings, _reasons([batch, *stored[:1]]))
    return list(found.values()) or [Making(None, _reasons(stored[:1]))]


def _reasons(batches: Sequence[Batch]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(r for b in batches for r in changes_since_made(b.made_with)))


def scored_with(ws: Workspace, model: Model, day: date) -> Settings | None:
    """The settings behind a session's newest stored scores of a model, None if they are lost."""
    rows = ws.series.query(
        "SELECT price_batch_id, generated_at FROM predictions WHERE model_id = ? AND ts = ? "
        "ORDER BY generated_at DESC LIMIT 1",
        [model.model_id, day],
    ).to_pylist()
    return makings_of(ws, model, day, *rows[0].values())[0].settings if rows else None


def settings_with(ws: Workspace, model: Model, feature_set_id: str) -> Settings | None:
    """Settings whose features and universe have an id: those of today, or those of a model."""
    others = [m for m in (model, ws.meta.model_with_features(feature_set_id)) if m is not None]
    for one in (None, *others):
        try:
            settings = ws.settings if one is None else settings_of(ws, one)
            is_it = replace(ws, settings=settings).feature_set_id == feature_set_id
        except QuantError:  # of a setting, feature or module that is gone
            continue
        if is_it:
            return settings
    return None


def is_as_recorded(ws: Workspace, model: Model, day: date) -> bool:
    """Whether the stored scores of a session's partition are those that the registry recorded."""
    key = ws.grid.key(day)
    newest = [b for b in ws.meta.batches("predictions", (key, key)) if b.task_id == model.task_id]
    if not newest:  # pending: `quant reconcile` settles it
        return True
    with ws.series.reading("verifying") as con:
        return stored_digest(ws, con, newest[-1]) == (newest[-1].n_rows, newest[-1].digest)
