"""Any model and any score rebuilt from the registry and the prices of its day, byte by byte."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np

from quant_pipeline.chain.knowledge import models_that_knew_less
from quant_pipeline.chain.making import why_bad, why_impossible, why_other, why_unscored
from quant_pipeline.chain.model_content import read_boosters
from quant_pipeline.chain.rebuild import compute_data, learn, present_of
from quant_pipeline.chain.scratch import scratch_home, settings_of
from quant_pipeline.chain.stale import read_stored
from quant_pipeline.chain.verified import Outcome, Tell, Verified, agreement_of
from quant_pipeline.chain.verify_scores import verify_scores
from quant_pipeline.chain.workspace import Workspace, newest_batch_id
from quant_pipeline.errors import NoData
from quant_pipeline.ml.score import score_rows
from quant_pipeline.settings import Settings, Task
from quant_pipeline.stores.meta import Model
from quant_pipeline.stores.series import identifiers, query


def verify_model(ws: Workspace, model: Model) -> Verified:
    """Train a model again, from its recorded settings and prices as of its batch.

    Nothing that is stored but prices is used. Where prices within its reach were restated since,
    it is trained a second time on today's, to tell what that would give.
    """
    name = f"model {model.model_id[:12]} of {model.task_id} as of {model.asof}"
    if why := why_impossible(ws, model):
        return Verified("model", name, "explained", "not trained again", (why,))
    settings = settings_of(ws, model)
    again, agreement = _retrained(ws, model, settings, model.price_batch_id)
    today = _today(ws, model, settings)
    if bad := why_bad(ws, model):
        words = "its file is not as it was registered"
        return Verified("model", name, "alarm", words, (bad,), agreement, today)
    if again == model.model_id:
        words = f"{model.file_bytes:,} bytes came out again as they were"
        return Verified("model", name, "identical", words, (), agreement, today)
    reasons = why_other(ws, model)
    words = f"{again[:12] or 'no model'} came out instead of {model.model_id[:12]}"
    outcome: Outcome = "explained" if reasons else "alarm"
    return Verified("model", name, outcome, words, reasons, agreement, today)


def _retrained(
    ws: Workspace, model: Model, settings: Settings, batch_id: int
) -> tuple[str, dict[str, Any]]:
    """The id that comes out, and how its scores agree with those of the recorded file."""
    key = model.partition_key
    present = present_of(ws, settings, key, batch_id)
    with scratch_home(ws, settings, present) as (made, _):
        compute_data(made, key)
        found = learn(made, key).models[model.task_id]
        if not isinstance(found, Model):
            return "", {"refused": str(found)}
        if found.model_id == model.model_id or why_bad(ws, model) or why_unscored(ws, model):
            return found.model_id, {}
        names = tuple(model.features)
        x = _newest_features(made, names, present.cut)
        pair = [
            score_rows(read_boosters(one, row), x, names, names)
            for one, row in ((ws, model), (made, found))
        ]
        return found.model_id, agreement_of(*pair)


def _newest_features(made: Workspace, names: Sequence[str], cut: date) -> np.ndarray:
    with made.series.reading("verifying") as con:
        rows = query(
            con,
            f"SELECT {identifiers(names)} FROM features_daily WHERE in_universe AND ts = "
            "(SELECT max(ts) FROM features_daily WHERE ts <= ?) ORDER BY symbol",
            [cut],
        )
    return np.column_stack([rows[name].to_numpy() for name in names]).astype(np.float32)


def _today(ws: Workspace, model: Model, settings: Settings) -> dict[str, Any]:
    """What the same settings give on today's history, if that was restated within reach."""
    known = {m["model_id"]: m for m in models_that_knew_less(ws, read_stored(ws))}
    if model.model_id not in known:
        return {}
    why = known[model.model_id]
    found, agreement = _retrained(ws, model, settings, newest_batch_id(ws))
    restated = f"prices of {why['changed_ts']} changed in batch {why['batch_id']}"
    return {"model_id": found, "because": restated, **agreement}


def models_that_scored(
    ws: Workspace, tasks: Sequence[Task], session: date, symbol: str | None = None
) -> list[Model]:
    """The models behind the stored scores of a session; raises NoData if there is none."""
    task_ids = [task.task_id for task in tasks]
    rows = ws.series.query(
        "SELECT DISTINCT task_id, model_id FROM predictions WHERE list_contains(?, task_id) "
        "AND ts = ? AND symbol = coalesce(?, symbol) ORDER BY list_position(?, task_id), model_id",
        [task_ids, session, symbol, task_ids],
    )
    if not len(rows):
        whose = f"{symbol} has" if symbol else "There is"
        of = f" of {' or '.join(task_ids)}"
        raise NoData(f"{whose} no score{of} on {session}. See `quant predictions --ts {session}`.")
    return [ws.meta.model(model_id) for model_id in rows["model_id"].to_pylist()]


def verify_since(ws: Workspace, since: date, tell: Tell) -> list[Verified]:
    """Every model as of a date or later, and every session's scores and their models.

    Those that served live come first. Raises NoData if there is nothing.
    """
    rows = ws.series.query(
        "SELECT DISTINCT ts, model_id, origin = 'live' AS is_live FROM predictions WHERE ts >= ? "
        "ORDER BY is_live DESC, ts DESC, model_id",
        [since],
    ).to_pylist()
    by_model: dict[str, list[date]] = {}
    for row in rows:
        by_model.setdefault(row["model_id"], []).append(row["ts"])
    for trained in reversed(ws.meta.trained()):  # those that never served, too
        if trained.asof >= since:
            by_model.setdefault(trained.model_id, [])
    if not by_model:
        raise NoData(f"No model is as of {since} or later, and no score is stored since then.")
    found = []
    for i, (model_id, sessions) in enumerate(by_model.items()):
        tell(f"training {model_id[:12]} again", 2 * i, 2 * len(by_model))
        model = ws.meta.model(model_id)
        found.append(verify_model(ws, model))
        if sessions:
            tell(f"scoring {len(sessions)} sessions again", 2 * i + 1, 2 * len(by_model))
            found += verify_scores(ws, model, sessions)
    return found
