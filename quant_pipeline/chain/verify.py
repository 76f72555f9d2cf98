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
from quant_pipeline.chain.model_content import read_boosters, require_same_lightgbm
from quant_pipeline.chain.proofs.future import scored_with
from quant_pipeline.chain.rebuild import (
    compute_data,
    compute_features,
    learn,
    present_at,
    present_of,
)
from quant_pipeline.chain.scratch import scratch_home, settings_of
from quant_pipeline.chain.stale import read_stored
from quant_pipeline.chain.workspace import Workspace, newest_batch_id
from quant_pipeline.errors import GateError, NoData, QuantError
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
    session: date | None = None


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
    if again == model.model_id:
        words = f"{model.file_bytes:,} bytes came out again as they were"
        return Verified("model", name, "identical", words, (), agreement, today)
    reasons = why_other(ws, model)
    words = f"{again[:12] or 'no model'} came out instead of {model.model_id[:12]}"
    outcome: Outcome = "explained" if reasons else "alarm"
    return Verified("model", name, outcome, words, reasons, agreement, today)


def why_impossible(ws: Workspace, model: Model) -> str:
    """Why a model cannot be trained again here, or nothing."""
    if model.status == "imported":
        return "it was imported, and learned from the prices of another home"
    try:
        _ = replace(ws, settings=settings_of(ws, model)).feature_set_id
    except QuantError as error:
        return f"its features are gone: {str(error).rstrip('.')}"
    return ""


def why_unscored(ws: Workspace, model: Model) -> str:
    """Why a model cannot score any more, or nothing."""
    if model.status == "pruned":
        return "its file was pruned"
    try:
        require_same_lightgbm(model)
    except GateError as error:
        return str(error).split(". ")[0]
    return ""


def why_other(ws: Workspace, model: Model) -> tuple[str, ...]:
    """What is not as it was when a model was trained: code, environment, features."""
    reasons = []
    if model.code_version != code_version():
        reasons.append(f"code {model.code_version} then, {code_version()} now")
    now = environment()
    for part, then in model.environment.items():
        if now.get(part) != then:
            reasons.append(f"{part} {then} then, {now.get(part)} now")
    if replace(ws, settings=settings_of(ws, model)).feature_set_id != model.feature_set_id:
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
    ws: Workspace, model: Model, sessions: Sequence[date], symbol: str | None = None
) -> list[Verified]:
    """Score sessions again with a model, from prices as of the batch of their stored scores.

    One result for each session and batch that its scores were made from. What sessions of one
    partition share is computed once. Raises NoData if there are no scores.
    """
    stored = _stored(ws, model, sessions, symbol)
    groups = stored.group_by(["key", "price_batch_id"]).aggregate([]).to_pylist()
    found = []
    for group in groups:
        mine = stored.filter(
            pc.and_(*(pc.equal(stored[name], value) for name, value in group.items()))
        )
        found += _verify_batch(ws, model, group["price_batch_id"], mine)
    return sorted(found, key=lambda v: v.session or date.min)


def _stored(ws: Workspace, model: Model, sessions: Sequence[date], symbol: str | None) -> pa.Table:
    """Stored scores: symbol, ts, score, price_batch_id and `key`, their partition."""
    stored = ws.series.query(
        "SELECT symbol, ts, score, price_batch_id FROM predictions WHERE list_contains(?, ts) "
        "AND task_id = ? AND model_id = ? AND symbol = coalesce(?, symbol) ORDER BY ts, symbol",
        [list(sessions), model.task_id, model.model_id, symbol],
    )
    if not len(stored):
        whose = symbol or f"Model {model.model_id[:12]}"
        raise NoData(
            f"{whose} has no score of {model.task_id} on {sessions[0]}. See `quant predictions`."
        )
    keys = [ws.grid.key(day) for day in stored["ts"].to_pylist()]
    return stored.append_column("key", pa.array(keys, pa.string()))


def _verify_batch(ws: Workspace, model: Model, batch_id: int, stored: pa.Table) -> list[Verified]:
    """Scores of one partition that were made from one batch of prices."""
    sessions = sorted(set(stored["ts"].to_pylist()))
    settings = scored_with(ws, model, sessions[0])
    then = now = None
    why = "other [features] or [universe] then, not recorded" if settings is None else ""
    why = why_unscored(ws, model) or why
    if settings is not None and not why:
        then = scored_again(ws, model, settings, sessions, batch_id)
        newest = newest_batch_id(ws)
        if newest != batch_id:
            now = scored_again(ws, model, settings, sessions, newest)
    found = []
    for session in sessions:
        mine = stored.filter(pc.equal(stored["ts"], pa.scalar(session, pa.date32())))
        found.append(_compare(ws, model, session, mine, then, now, why))
    return found


Scores = dict[tuple[date, str], float]


def _compare(
    ws: Workspace,
    model: Model,
    session: date,
    stored: pa.Table,
    then: Scores | None,
    now: Scores | None,
    why: str,
) -> Verified:
    symbols, score = stored["symbol"].to_pylist(), stored["score"].to_numpy()
    whose = symbols[0] if len(symbols) == 1 else f"{len(symbols)} scores"
    name = f"{whose} of {model.task_id} on {session} by {model.model_id[:12]}"
    if then is None:
        words = "not computed again"
        return Verified("scores", name, "explained", words, (why,), session=session)
    again = np.array([then.get((session, s), np.nan) for s in symbols])
    today: dict[str, Any] = {}
    if now is not None:
        newest = np.array([now.get((session, s), np.nan) for s in symbols])
        if not np.array_equal(newest, again, equal_nan=True):
            today = agreement_of(score, newest)
            if len(symbols) == 1:
                today = {"score": float(newest[0])}
    if np.array_equal(again.view(np.int64), score.view(np.int64)):
        words = "came out again bit for bit"
        return Verified("scores", name, "identical", words, (), {}, today, session)
    reasons = why_other(ws, model)
    outcome: Outcome = "explained" if reasons else "alarm"
    words = f"{int(np.count_nonzero(again != score))} of {len(score)} scores came out otherwise"
    agreement = agreement_of(score, again)
    return Verified("scores", name, outcome, words, reasons, agreement, today, session)


def scored_again(
    ws: Workspace, model: Model, settings: Settings, sessions: Sequence[date], batch_id: int
) -> Scores:
    """Scores of sessions of a partition with a recorded model, features anew from prices."""
    present = present_at(ws, settings, sessions[-1], batch_id)
    names = tuple(model.features)
    with scratch_home(ws, settings, present) as (made, _):
        compute_features(made, [made.grid.key(sessions[-1])])
        rows = made.series.query(
            f"SELECT symbol, ts, {identifiers(names)} FROM features_daily "
            "WHERE in_universe AND list_contains(?, ts) ORDER BY ts, symbol",
            [list(sessions)],
        )
    x = np.column_stack([rows[name].to_numpy() for name in names]).astype(np.float32)
    score = score_rows(read_boosters(ws, model), x, names, names)
    keys = zip(rows["ts"].to_pylist(), rows["symbol"].to_pylist(), strict=True)
    return dict(zip(keys, score.tolist(), strict=True))


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


def verify_since(ws: Workspace, since: date, tell: Tell) -> list[Verified]:
    """Every model that served since a date, and the scores of every session; live scores first."""
    rows = ws.series.query(
        "SELECT DISTINCT ts, model_id, origin = 'live' AS is_live FROM predictions WHERE ts >= ? "
        "ORDER BY is_live DESC, ts DESC, model_id",
        [since],
    ).to_pylist()
    by_model: dict[str, list[date]] = {}
    for row in rows:
        by_model.setdefault(row["model_id"], []).append(row["ts"])
    found = []
    for i, (model_id, sessions) in enumerate(by_model.items()):
        tell(f"training {model_id[:12]} again", 2 * i, 2 * len(by_model))
        model = ws.meta.model(model_id)
        found.append(verify_model(ws, model))
        tell(f"scoring {len(sessions)} sessions again", 2 * i + 1, 2 * len(by_model))
        found += verify_scores(ws, model, sessions)
    return found
