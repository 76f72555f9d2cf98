"""Deciding which dates are sessions, from what is stored and what is delivered."""

from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from quant_pipeline.chain.panel import days
from quant_pipeline.chain.seal import frozen_range
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.market.calendars import listed_sessions
from quant_pipeline.market.sessions import find_sessions
from quant_pipeline.stores.series import Connection, insert, query

Days = npt.NDArray[np.datetime64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Decision:
    """Every known date in time order, whether it is a session, and what is new about it.

    `missed` are delivered dates that would be sessions, had their window not been sealed.
    """

    ts: Days
    n_bars: npt.NDArray[np.int64]
    is_session: Bools
    why: npt.NDArray[np.object_]
    is_flipped: Bools
    is_changed: Bools
    missed: Days

    def holds(self, ts: Days) -> Bools:
        """Which of some dates, all of them known, are sessions."""
        found: Bools = self.is_session[np.searchsorted(self.ts, ts)]
        return found


def decide_sessions(con: Connection, ws: Workspace, deliveries: list[pa.Table]) -> Decision:
    """Decide from stored bars and those of deliveries (symbol, ts), which may repeat them.

    Dates before the first delivered one, and before the first that a calendar lists and no
    delivery ever had, keep their answer, and so do those that a seal froze; a date that was never
    seen before inside the sealed stretch is none.
    """
    stored = query(con, "SELECT ts, n_bars, is_session, why FROM sessions ORDER BY ts")
    before = days(stored["ts"])
    given = np.unique(np.concatenate([days(d["ts"]) for d in deliveries]))
    ts = np.union1d(before, given)
    listed = _listed(ws, ts)
    if listed is not None:
        ts = np.union1d(ts, listed)
    at = np.searchsorted(ts, before)
    known = _known(con, ws, ts, at, stored, given)
    is_open = np.flatnonzero(known < 0)
    first = min(int(is_open[0]) if len(is_open) else len(ts), int(np.searchsorted(ts, given[0])))
    start = max(first - ws.settings.sessions.active_dates, 0)
    day, symbol = _bars(con, ts, start, deliveries)
    spec = ws.settings.sessions
    is_listed = None if listed is None else np.isin(ts, listed)
    is_session = known == 1
    is_session[start:] = find_sessions(
        day, symbol, min_share=spec.min_share, active_dates=spec.active_dates,
        known=known[start:], listed=None if is_listed is None else is_listed[start:],
    )  # fmt: skip
    is_shut = np.isin(ts, given) & (known == 0)
    missed = ts[is_shut & _would_be(day, symbol, ws, known, is_shut, is_listed, start)]
    n_bars = np.zeros(len(ts), np.int64)
    n_bars[at] = stored["n_bars"].to_numpy()
    n_bars[start:] = np.bincount(day, minlength=len(ts) - start)
    was_session = np.zeros(len(ts), np.bool_)
    was_session[at] = stored["is_session"].to_numpy()
    old_bars = np.full(len(ts), -1, np.int64)
    old_bars[at] = stored["n_bars"].to_numpy()
    why = np.full(len(ts), "share", object)
    if is_listed is not None:
        why = np.where(is_listed, "calendar", why).astype(object)
    why[at] = stored["why"].to_numpy(zero_copy_only=False)
    is_flipped = is_session != was_session
    return Decision(
        ts, n_bars, is_session, why, is_flipped, is_flipped | (n_bars != old_bars), missed
    )


def _would_be(
    day: Ints,
    symbol: Ints,
    ws: Workspace,
    known: npt.NDArray[np.int8],
    is_shut: Bools,
    is_listed: Bools | None,
    start: int,
) -> Bools:
    """Which dates were sessions, if those in `is_shut` were still to be decided."""
    found = np.zeros(len(known), np.bool_)
    if is_shut.any():
        spec = ws.settings.sessions
        found[start:] = find_sessions(
            day, symbol, min_share=spec.min_share, active_dates=spec.active_dates,
            known=np.where(is_shut, -1, known).astype(np.int8)[start:],
            listed=None if is_listed is None else is_listed[start:],
        )  # fmt: skip
    return found


def store_sessions(con: Connection, decision: Decision, batch_id: int) -> None:
    """Append new answers and counts as versions."""
    new = decision.is_changed
    insert(con, "session_versions", pa.table({
        "ts": pa.array(decision.ts[new], pa.date32()),
        "batch_id": pa.array(np.full(int(new.sum()), batch_id)),
        "n_bars": pa.array(decision.n_bars[new]),
        "is_session": pa.array(decision.is_session[new]),
        "why": pa.array(decision.why[new], pa.string()),
    }))  # fmt: skip


def _listed(ws: Workspace, ts: Days) -> Days | None:
    """Sessions of the configured calendar from the first known date to the last."""
    name = ws.settings.sessions.calendar
    if not name or not len(ts):
        return None
    return listed_sessions(name, ts[0].item(), ts[-1].item())


def _known(
    con: Connection,
    ws: Workspace,
    ts: Days,
    at: npt.NDArray[np.int64],
    stored: pa.Table,
    given: Days,
) -> npt.NDArray[np.int8]:
    """Answers that stay: 1 a session, 0 none, and -1 for those to be decided."""
    answer = np.zeros(len(ts), np.int8)
    answer[at] = stored["is_session"].to_numpy().astype(np.int8)
    is_fresh = np.ones(len(ts), np.bool_)
    is_fresh[at] = False
    is_frozen = np.zeros(len(ts), np.bool_)
    frozen = frozen_range(con)
    if frozen is not None:
        is_frozen = (ts >= np.datetime64(frozen[0])) & (ts <= np.datetime64(frozen[1]))
    is_open = ~is_frozen & (is_fresh | (ts >= given[0]))
    if is_open.any():
        is_open |= ~is_frozen & (np.arange(len(ts)) >= np.argmax(is_open))
    known: npt.NDArray[np.int8] = np.where(is_open, -1, answer).astype(np.int8)
    return known


def _bars(
    con: Connection, ts: Days, start: int, deliveries: list[pa.Table]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct (date, symbol) pairs from date number `start` on, as codes."""
    first: date = ts[start].item()
    stored = query(con, "SELECT symbol, ts FROM bars WHERE ts >= ?", [first])
    tables = [t.select(["symbol", "ts"]) for t in (stored, *deliveries)]
    both = pa.concat_tables(tables)
    day = np.searchsorted(ts, days(both["ts"])) - start
    symbol = pd.factorize(both["symbol"].to_numpy(zero_copy_only=False))[0].astype(np.int64)
    n_days = len(ts) - start
    pair = pd.unique((symbol * n_days + day)[day >= 0])
    return pair % n_days, pair // n_days
