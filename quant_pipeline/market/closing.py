"""When a window is complete: the rule, from sessions and their bars alone."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np

from quant_pipeline.market.grid import Grid
from quant_pipeline.settings import SealSettings

USUAL_SESSIONS = 20


@dataclass(frozen=True)
class Session:
    """A stored session and its number of bars."""

    ts: date
    n_bars: int


@dataclass(frozen=True)
class Closing:
    """Whether a window can be sealed now, from the sessions that are stored, and why."""

    key: str
    is_sealable: bool
    why: str
    last: Session | None
    usual_bars: float | None
    n_later: int


def judge_closing(grid: Grid, key: str, sessions: Sequence[Session], spec: SealSettings) -> Closing:
    """Tell whether a window is complete: sealed, or what it waits for.

    It is, once a later session is stored and its own last session has at least `coverage` of
    its usual bars (the median of the 20 sessions before it), or once `max_wait_sessions` later
    sessions are stored. A window without a session has nothing to wait for but a later one.
    """
    start, end = grid.window(key)
    first = bisect_left(sessions, start, key=lambda s: s.ts)
    after = bisect_left(sessions, end, key=lambda s: s.ts)
    n_later = len(sessions) - after
    if not n_later:
        newest = f"; the newest one is {sessions[-1].ts}" if sessions else ""
        why = f"open until a session after {grid.asof(key)} is stored{newest}"
        return Closing(key, False, why, None, None, 0)
    if first == after:
        return Closing(key, True, "no session in it", None, None, n_later)
    last, usual = judge_coverage(sessions[:after])
    have = f"{last.ts} has {last.n_bars} of {usual:g} usual bars"
    if last.n_bars >= spec.coverage * usual:
        return Closing(key, True, have, last, usual, n_later)
    if n_later >= spec.max_wait_sessions:
        why = f"{have}; waited {n_later} sessions"
        return Closing(key, True, why, last, usual, n_later)
    why = f"waiting for late bars: {have}; sealed after {spec.max_wait_sessions} later sessions"
    return Closing(key, False, f"{why}, {n_later} so far", last, usual, n_later)


def judge_coverage(sessions: Sequence[Session]) -> tuple[Session, float]:
    """The last session, and the bars that it should have: the median of the 20 before it."""
    last, before = sessions[-1], sessions[-1 - USUAL_SESSIONS : -1]
    return last, float(np.median([s.n_bars for s in before])) if before else float(last.n_bars)
