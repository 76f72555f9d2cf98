"""Stored scores made again, from prices as of the batch that they were made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.chain.making import Making, is_as_recorded, makings_of, why_bad, why_unscored
from quant_pipeline.chain.model_content import read_boosters
from quant_pipeline.chain.rebuild import compute_features, present_at
from quant_pipeline.chain.scratch import scratch_home
from quant_pipeline.chain.verified import Outcome, Verified, agreement_of
from quant_pipeline.chain.workspace import Workspace, newest_batch_id
from quant_pipeline.errors import NoData
from quant_pipeline.ml.score import score_rows
from quant_pipeline.settings import Settings
from quant_pipeline.stores.meta import Model
from quant_pipeline.stores.series import identifiers

Scores = dict[tuple[date, str], float]
TOGETHER = ("key", "price_batch_id", "generated_at")
UNRECORDED = "its features were made with other [features] or [universe], not recorded any more"


def verify_scores(
    ws: Workspace, model: Model, sessions: Sequence[date], symbol: str | None = None
) -> list[Verified]:
    """Score sessions again with a model, from prices as of the batch of their stored scores.

    One result for each session and time at which its scores were made. What those of one partition
    share is computed once. Raises NoData if there are no scores.
    """
    stored = _stored(ws, model, sessions, symbol)
    found = []
    for group in stored.group_by(list(TOGETHER)).aggregate([]).to_pylist():
        same = [pc.equal(stored[n], pa.scalar(v, stored[n].type)) for n, v in group.items()]
        found += _verify_together(ws, model, stored.filter(pc.and_(pc.and_(*same[:2]), same[2])))
    return sorted(found, key=lambda v: v.session or date.min)


def _stored(ws: Workspace, model: Model, sessions: Sequence[date], symbol: str | None) -> pa.Table:
    """Stored scores: symbol, ts, score, price_batch_id, generated_at and `key`, their partition."""
    stored = ws.series.query(
        "SELECT symbol, ts, score, price_batch_id, generated_at FROM predictions "
        "WHERE list_contains(?, ts) AND task_id = ? AND model_id = ? "
        "AND symbol = coalesce(?, symbol) ORDER BY ts, symbol",
        [list(sessions), model.task_id, model.model_id, symbol],
    )
    if not len(stored):
        whose = f"{symbol} by model" if symbol else "model"
        raise NoData(
            f"No score of {whose} {model.model_id[:12]} of {model.task_id} on {sessions[0]} is "
            "stored. See `quant predictions`."
        )
    keys = [ws.grid.key(day) for day in stored["ts"].to_pylist()]
    return stored.append_column("key", pa.array(keys, pa.string()))


@dataclass(frozen=True)
class _Again:
    """What came out: as of then, as of the newest batch if that is another, and how."""

    then: Scores | None
    now: Scores | None
    making: Making
    why_not: str = ""
    is_recorded: bool = True
    is_bad: bool = False  # the model's file


def _verify_together(ws: Workspace, model: Model, stored: pa.Table) -> list[Verified]:
    """Scores of one partition that were made at the same time from one batch of prices."""
    again = _score_again(ws, model, stored)
    found = []
    for session in sorted(set(stored["ts"].to_pylist())):
        mine = stored.filter(pc.equal(stored["ts"], pa.scalar(session, pa.date32())))
        found.append(_compare(model, session, mine, again))
    return found


def _score_again(ws: Workspace, model: Model, stored: pa.Table) -> _Again:
    sessions = sorted(set(stored["ts"].to_pylist()))
    batch_id, made_at = stored["price_batch_id"][0].as_py(), stored["generated_at"][0].as_py()
    makings = makings_of(ws, model, sessions[0], batch_id, made_at)
    is_recorded = is_as_recorded(ws, model, sessions[0])
    if why := why_bad(ws, model):
        return _Again(None, None, makings[0], why, is_recorded, is_bad=True)
    if why := why_unscored(ws, model):
        return _Again(None, None, makings[0], why, is_recorded)
    then, making = None, makings[0]
    for one in makings:
        if one.settings is None:
            continue
        scores = scored_again(ws, model, one.settings, sessions, batch_id)
        is_same = _is_same(stored, scores)
        if one is makings[0] or is_same:
            then, making = scores, one
        if is_same:
            break
    if then is None or making.settings is None:
        return _Again(None, None, making, UNRECORDED, is_recorded)
    newest, now = newest_batch_id(ws), None
    if newest != batch_id:
        now = scored_again(ws, model, making.settings, sessions, newest)
    return _Again(then, now, making, "", is_recorded)


def _is_same(stored: pa.Table, scores: Scores) -> bool:
    keys = zip(stored["ts"].to_pylist(), stored["symbol"].to_pylist(), strict=True)
    again = np.array([scores.get(key, np.nan) for key in keys])
    return _are_same_bits(again, stored["score"].to_numpy())


def _are_same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.array_equal(a.view(np.int64), b.view(np.int64)))


def _compare(model: Model, session: date, stored: pa.Table, again: _Again) -> Verified:
    symbols, score = stored["symbol"].to_pylist(), stored["score"].to_numpy()
    whose = symbols[0] if len(symbols) == 1 else f"{len(symbols)} scores"
    name = f"{whose} of {model.task_id} on {session} by {model.model_id[:12]}"
    outcome: Outcome = "explained"
    if again.then is None:
        words = "not computed again"
        reasons: tuple[str, ...] = (again.why_not,)
        if not again.is_recorded:
            reasons = (again.why_not, *CHANGED)
        outcome = "alarm" if again.is_bad or not again.is_recorded else "explained"
        return Verified("scores", name, outcome, words, reasons, session=session)
    then = _values(again.then, session, symbols)
    today: dict[str, Any] = {}
    if again.now is not None:
        now = _values(again.now, session, symbols)
        if not np.array_equal(now, then, equal_nan=True):
            today = agreement_of(score, now)
    if _are_same_bits(then, score):
        words = "came out again bit for bit"
        return Verified("scores", name, "identical", words, (), {}, today, session)
    reasons = again.making.reasons if again.is_recorded else CHANGED
    if not again.is_recorded or not reasons:
        outcome = "alarm"
    words = f"{int(np.count_nonzero(then != score))} of {len(score)} scores came out otherwise"
    agreement = agreement_of(score, then)
    return Verified("scores", name, outcome, words, reasons, agreement, today, session)


CHANGED = ("stored rows that are not those that the registry recorded: see `quant reconcile`",)


def _values(scores: Scores, session: date, symbols: Sequence[str]) -> np.ndarray:
    return np.array([scores.get((session, s), np.nan) for s in symbols])


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
