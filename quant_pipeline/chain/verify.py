"""Any model and any score rebuilt from the registry and the prices of its day, byte by byte."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.chain.knowledge import models_that_knew_less
from quant_pipeline.chain.learn import code_version, environment
from quant_pipeline.chain.model_content import read_boosters
from quant_pipeline.chain.proofs.future import scored_with
from quant_pipeline.chain.rebuild import (
    compute_data,
    compute_features,
    learn,
    present_at,
    present_of,
)
from quant_pipeline.chain.scratch import Present, scratch_home, settings_of
from quant_pipeline.chain.stale import read_stored
from quant_pipeline.chain.workspace import Workspace, newest_batch_id
from quant_pipeline.errors import NoData
from quant_pipeline.ml.score import score_rows
from quant_pipeline.settings import Settings, Task
from quant_pipeline.stores.meta import Model
from quant_pipeline.stores.series import identifiers, query

Tell = Callable[[str, int, int], None]
Outcome = Literal["identical", "explained", "alarm"]


@dataclass(frozen=True)
class Verified:
    """What became of one model or of the scores of one session and batch.

    `reasons` tell what is not as it was then, if the bytes differ; an "alarm" has none. `agreement`
    compares the scores of then and now, `today` what today's history would give.
    """

    kind: Literal["model", "scores"]
    name: str
    outcome: Outcome
    words: str
    reasons: tuple[str, ...] = ()
    agreement: dict[str, Any] = field(default_factory=dict)
    today: dict[str, Any] = field(default_factory=dict)


def verify_model(ws: Workspace, model: Model) -> Verified:
    """Train a model again, from its recorded settings and prices as of its batch.

    Nothing that is stored but prices is used. Where prices within its reach were restated since,
    it is trained a second time on today's, to tell what that would give.
    """
    name = f"model {model.model_id[:12]} of {model.task_id} as of {model.asof}"
    settings = settings_of(ws, model)
    again, agreement = _retrained(ws, model, settings, model.price_batch_id)
    today = _today(ws, model, settings)
    if again == model.model_id:
        words = f"{model.file_bytes:,} bytes came out again as they were"
        return Verified("model", name, "identical", words, (), agreement, today)
    reasons = why_other(ws, model, settings)
    words = f"{again[:12] or 'no model'} came out instead of {model.model_id[:12]}"
    outcome: Outcome = "explained" if reasons else "alarm"
    return Verified("model", name, outcome, words, reasons, agreement, today)


def why_other(ws: Workspace, model: Model, settings: Settings) -> tuple[str, ...]:
    """What is not as it was when a model was trained: code, environment, features."""
    reasons = []
    if model.code_version != code_version():
        reasons.append(f"code {model.code_version} then, {code_version()} now")
    now = environment()
    for part, then in model.environment.items():
        if now.get(part) != then:
            reasons.append(f"{part} {then} then, {now.get(part)} now")
    then_ws = replace(ws, settings=settings)
    if then_ws.feature_set_id != model.feature_set_id:
        reasons.append("features or own modules mean something else now")
    return tuple(reasons)


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
        if found.model_id == model.model_id or not ws.files.is_intact(model.model_id):
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


def agreement_of(then: np.ndarray, now: np.ndarray) -> dict[str, Any]:
    """How two scores of the same rows agree: correlation and the largest difference."""
    if len(then) < 2:
        return {"scores": len(then)}
    same = bool(np.array_equal(then, now))
    correlation = 1.0 if same else float(np.corrcoef(then, now)[0, 1])
    largest = float(np.max(np.abs(then - now)))
    return {"scores": len(then), "correlation": correlation, "largest_difference": largest}


def _today(ws: Workspace, model: Model, settings: Settings) -> dict[str, Any]:
    """What the same settings give on today's history, if that was restated within reach."""
    known = {m["model_id"]: m for m in models_that_knew_less(ws, read_stored(ws))}
    if model.model_id not in known:
        return {}
    why = known[model.model_id]
    found, agreement = _retrained(ws, model, settings, newest_batch_id(ws))
    restated = f"prices of {why['changed_ts']} changed in batch {why['batch_id']}"
    return {"model_id": found, "because": restated, **agreement}


def verify_scores(
    ws: Workspace, model: Model, session: date, symbol: str | None = None
) -> list[Verified]:
    """Score a session again with a model, from prices as of the batch of its stored scores.

    One result for each batch that its scores were made from. Raises NoData if there are none.
    """
    stored = _stored(ws, model, session, symbol)
    settings = scored_with(ws, model, session)
    found = []
    for batch_id in sorted(set(stored["price_batch_id"].to_pylist())):
        mine = stored.filter(pc.equal(stored["price_batch_id"], batch_id))
        found.append(_verify_batch(ws, model, settings, session, batch_id, mine))
    return found


def _stored(ws: Workspace, model: Model, session: date, symbol: str | None) -> pa.Table:
    stored = ws.series.query(
        "SELECT symbol, score, price_batch_id FROM predictions WHERE ts = ? AND task_id = ? "
        "AND model_id = ? AND symbol = coalesce(?, symbol) ORDER BY symbol",
        [session, model.task_id, model.model_id, symbol],
    )
    if not len(stored):
        whose = f"{symbol} has" if symbol else f"Model {model.model_id[:12]} has"
        raise NoData(f"{whose} no score of {model.task_id} on {session}. See `quant predictions`.")
    return stored


def _verify_batch(
    ws: Workspace,
    model: Model,
    settings: Settings | None,
    session: date,
    batch_id: int,
    stored: pa.Table,
) -> Verified:
    name = f"{len(stored)} scores of {model.task_id} on {session} by {model.model_id[:12]}"
    if len(stored) == 1:
        name = (
            f"{stored['symbol'][0].as_py()} on {session}, {model.task_id} by {model.model_id[:12]}"
        )
    if settings is None:
        reasons: tuple[str, ...] = (
            "features and universe were set otherwise then, and are not recorded",
        )
        return Verified("scores", name, "explained", "not computed again", reasons)
    then = _aligned(stored, scored_again(ws, model, settings, session, batch_id))
    newest = newest_batch_id(ws)
    today: dict[str, Any] = {}
    if newest != batch_id:
        now = _aligned(stored, scored_again(ws, model, settings, session, newest))
        if not np.array_equal(now, then, equal_nan=True):
            today = agreement_of(stored["score"].to_numpy(), now)
            if len(stored) == 1:
                today = {"score": float(now[0])}
    score = stored["score"].to_numpy()
    if np.array_equal(then, score):
        words = "came out again bit for bit"
        return Verified("scores", name, "identical", words, (), {}, today)
    reasons = why_other(ws, model, settings)
    outcome: Outcome = "explained" if reasons else "alarm"
    n = int(np.count_nonzero(then != score))
    words = f"{n} of {len(score)} scores came out otherwise"
    return Verified("scores", name, outcome, words, reasons, agreement_of(score, then), today)


def scored_again(
    ws: Workspace, model: Model, settings: Settings, session: date, batch_id: int
) -> pa.Table:
    """Scores of a session (symbol, score) with a recorded model, features anew from prices."""
    present: Present = present_at(ws, settings, session, batch_id)
    names = tuple(model.features)
    with scratch_home(ws, settings, present) as (made, _):
        compute_features(made, [made.grid.key(session)])
        with made.series.reading("verifying") as con:
            rows = query(
                con,
                f"SELECT symbol, {identifiers(names)} FROM features_daily "
                "WHERE in_universe AND ts = ? ORDER BY symbol",
                [session],
            )
    x = np.column_stack([rows[name].to_numpy() for name in names]).astype(np.float32)
    score = score_rows(read_boosters(ws, model), x, names, names)
    return pa.table({"symbol": rows["symbol"], "score": pa.array(score)})


def _aligned(stored: pa.Table, found: pa.Table) -> np.ndarray:
    """Scores found for the stored symbols, NaN where there is none."""
    by_symbol = dict(zip(found["symbol"].to_pylist(), found["score"].to_pylist(), strict=True))
    return np.array([by_symbol.get(s, np.nan) for s in stored["symbol"].to_pylist()], np.float64)


def models_that_scored(
    ws: Workspace, task: Task, session: date, symbol: str | None = None
) -> list[Model]:
    """The models behind the stored scores of a session; raises NoData if there is none."""
    rows = ws.series.query(
        "SELECT DISTINCT model_id FROM predictions WHERE task_id = ? AND ts = ? "
        "AND symbol = coalesce(?, symbol) ORDER BY model_id",
        [task.task_id, session, symbol],
    )
    if not len(rows):
        raise NoData(
            f"{symbol or 'Nothing'} has no score of {task.task_id} on {session}. See `quant "
            f"predictions --task {task.task_id}`."
        )
    return [ws.meta.model(model_id) for model_id in rows["model_id"].to_pylist()]


def verify_since(ws: Workspace, since: date, tell: Tell, most: int | None = None) -> list[Verified]:
    """Every model that served since a date, and every session's scores; at most so many of each.

    Live scores first, newest first; a limit takes the newest of them.
    """
    rows = ws.series.query(
        "SELECT DISTINCT ts, model_id, origin = 'live' AS is_live FROM predictions WHERE ts >= ? "
        "ORDER BY is_live DESC, ts DESC, model_id",
        [since],
    ).to_pylist()
    sessions = list(dict.fromkeys((row["model_id"], row["ts"]) for row in rows))[:most]
    ids = list(dict.fromkeys(model_id for model_id, _ in sessions))[:most]
    models = {model_id: ws.meta.model(model_id) for model_id, _ in sessions}
    found = []
    total = len(ids) + len(sessions)
    for i, model_id in enumerate(ids):
        tell(f"training {model_id[:12]} again", i, total)
        found.append(verify_model(ws, models[model_id]))
    for i, (model_id, session) in enumerate(sessions, len(ids)):
        tell(f"scoring {session} again", i, total)
        found += verify_scores(ws, models[model_id], session)
    return found
