"""Checks of prices_daily: gaps, repeats, moves, coverage, and how late the newest bar is."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from quant_pipeline.chain.checks.result import Checked, some
from quant_pipeline.chain.panel import Panel, read_panel
from quant_pipeline.chain.seal import read_counts
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.market.calendars import closed_sessions
from quant_pipeline.market.closing import Session

Bools = npt.NDArray[np.bool_]

USUAL_SESSIONS = 20  # before a session, whose median of bars is what is usual
FEWEST_BEFORE = 5
SPREAD = ("open", "high", "low", "close")


@dataclass(frozen=True)
class _Stored:
    """Sessions in time order with their bars, and the bars of the partitions to check."""

    counts: list[Session]
    panel: Panel
    is_stale: Bools
    move: npt.NDArray[np.float64]


def check_prices(ws: Workspace, keys: Sequence[str]) -> list[Checked]:
    """Check the bars of consecutive partitions, read once with the 20 sessions before them."""
    first, before = ws.grid.window(keys[0])[0], ws.grid.window(keys[-1])[1]
    with ws.series.reading("checks") as con:
        counts = read_counts(con)
        panel = read_panel(con, first, before, 0, ws.settings.jumps)
    stored = _Stored(counts, panel, *_compare_with_bar_before(panel))
    found = []
    for key in keys:
        found += [
            _missing_sessions(ws, key, counts),
            *_bars(ws, key, stored),
            _coverage(ws, key, counts),
            _lateness(ws, key, counts),
        ]
    return found


def _compare_with_bar_before(panel: Panel) -> tuple[Bools, npt.NDArray[np.float64]]:
    """Which bars repeat their symbol's bar before, and each one's log move since then."""
    n = len(panel.symbol)
    is_stale, move = np.zeros(n, np.bool_), np.zeros(n)
    if n < 2:
        return is_stale, move
    follows = panel.symbol[1:] == panel.symbol[:-1]
    same = panel.traded_value[1:] == panel.traded_value[:-1]
    for name in SPREAD:
        same &= panel.columns[name][1:] == panel.columns[name][:-1]
    close = panel.columns["close"]
    is_stale[1:] = follows & same
    move[1:] = np.where(follows, np.log(close[1:] / close[:-1]), 0.0)
    return is_stale, move


def _missing_sessions(ws: Workspace, key: str, counts: Sequence[Session]) -> Checked:
    """With a calendar its dates without a bar, else the longest gap between two sessions.

    A gap belongs to each partition that it touches. What is still to come is not missing.
    """
    name, s = "no_session_is_missing", ws.settings
    start, end = ws.grid.window(key)
    traded = [c.ts for c in counts if c.n_bars]
    if s.sessions.calendar:
        newest = traded[-1] if traded else start
        empty = [c.ts for c in counts if not c.n_bars and start <= c.ts < min(end, newest)]
        passed = len(empty) <= s.checks.max_missing_sessions
        words = "" if passed else (
            f"{len(empty)} sessions of {s.sessions.calendar} have no bar: {some(empty)}. Ingest "
            "them, or set another sessions.calendar in a new home."
        )  # fmt: skip
        return Checked(name, key, passed, "ERROR", words, {"missing_sessions": len(empty)})
    at = max(bisect_left(traded, start) - 1, 0)
    until = bisect_left(traded, end) + 1
    gaps = [(b - a, a, b) for a, b in pairwise(traded[at:until])]
    longest, after, again = max(gaps, default=(timedelta(0), start, start))
    passed = longest.days <= s.checks.max_gap_days
    words = "" if passed else (
        f"No session between {after} and {again}, {longest.days} days apart "
        f"(checks.max_gap_days = {s.checks.max_gap_days}). Ingest what is missing."
    )  # fmt: skip
    n_sessions = bisect_left(traded, end) - bisect_left(traded, start)
    numbers = {"longest_gap_days": longest.days, "sessions": n_sessions}
    return Checked(name, key, passed, "WARN", words, numbers)


def _bars(ws: Workspace, key: str, stored: _Stored) -> list[Checked]:
    panel, s = stored.panel, ws.settings.checks
    window = np.array(ws.grid.window(key), "datetime64[D]")
    codes = np.searchsorted(panel.sessions, window)
    inside = (panel.session >= codes[0]) & (panel.session < codes[1])
    n = int(inside.sum())
    n_stale = int((inside & stored.is_stale).sum())
    share = n_stale / n if n else 0.0
    passed = share <= s.max_stale_share
    words = "" if passed else (
        f"{n_stale} of {n} bars repeat the bar before: "
        f"{some(_names(panel, inside & stored.is_stale))}. Ask the source, or reject them there."
    )  # fmt: skip
    numbers = {"stale_share": share, "stale_bars": n_stale, "bars": n}
    return [
        Checked("bars_are_not_stale", key, passed, "WARN", words, numbers),
        _moves(ws, key, stored, inside),
    ]


def _moves(ws: Workspace, key: str, stored: _Stored, inside: Bools) -> Checked:
    s, panel = ws.settings.checks, stored.panel
    is_jump = inside & panel.is_jump
    is_wild = inside & ~panel.is_jump & (np.abs(stored.move) > s.max_move)
    n_jumps, n_wild = int(is_jump.sum()), int(is_wild.sum())
    words = []
    if n_jumps > s.max_jumps:
        words.append(
            f"{n_jumps} of the moves look like splits that the source did not adjust: "
            f"{some(_names(panel, is_jump))}. Features and labels that span them are left out; "
            "deliver adjusted prices (adj_close) to have them."
        )
    if n_wild:
        words.append(
            f"{n_wild} of the bars moved by more than checks.max_move = {s.max_move} (log): "
            f"{some(_names(panel, is_wild))}. They count as returns: compare them with another "
            "source, and deliver the right ones."
        )
    largest = float(np.abs(stored.move[inside]).max(initial=0.0))
    numbers = {"flagged_jumps": n_jumps, "wild_moves": n_wild, "largest_log_move": largest}
    return Checked(
        "moves_are_plausible", key, not words, "ERROR" if n_wild else "WARN", " ".join(words),
        numbers,
    )  # fmt: skip


def _names(panel: Panel, chosen: Bools) -> list[str]:
    rows = np.flatnonzero(chosen)
    return [f"{panel.symbols[panel.symbol[i]]} {panel.ts[i]}" for i in rows]


def _coverage(ws: Workspace, key: str, counts: Sequence[Session]) -> Checked:
    """Each session's bars against the median of the 20 sessions before it."""
    least = ws.settings.checks.min_coverage
    start, end = ws.grid.window(key)
    days = [c.ts for c in counts]
    thin, lowest = [], 1.0
    for i in range(bisect_left(days, start), bisect_left(days, end)):
        past = [c.n_bars for c in counts[max(i - USUAL_SESSIONS, 0) : i]]
        usual = float(np.median(past)) if len(past) >= FEWEST_BEFORE else 0.0
        share = counts[i].n_bars / usual if usual else 1.0
        lowest = min(lowest, share)
        if share < least:
            thin.append(f"{counts[i].ts} ({counts[i].n_bars} of {usual:.0f})")
    words = "" if not thin else (
        f"{len(thin)} sessions have under {least:.0%} of their usual bars: {some(thin)}. Ingest "
        "what is missing."
    )  # fmt: skip
    numbers = {"lowest_coverage": lowest, "thin_sessions": len(thin)}
    return Checked("sessions_are_covered", key, not thin, "WARN", words, numbers)


def _lateness(ws: Workspace, key: str, counts: Sequence[Session]) -> Checked:
    """Sessions of the partition that are over, as of now, and lie after the newest bar of all.

    Regular sessions of sessions.calendar, else weekdays.
    """
    s = ws.settings
    start, end = ws.grid.window(key)
    newest = max((c.ts for c in counts if c.n_bars), default=start - timedelta(days=1))
    late = _over(s.sessions.calendar, max(start, newest + timedelta(days=1)), end, ws.today())
    passed = late <= s.checks.max_late_sessions
    what = f"sessions of {s.sessions.calendar}" if s.sessions.calendar else "weekdays"
    words = "" if passed else (
        f"The newest bar is of {newest}; {late} {what} of {key} have gone by since "
        f"(checks.max_late_sessions = {s.checks.max_late_sessions}). Ingest newer prices."
    )  # fmt: skip
    numbers: dict[str, int | str] = {"late_sessions": late, "newest_session": newest.isoformat()}
    return Checked("prices_are_recent", key, passed, "WARN", words, numbers)


def _over(calendar: str, first: date, before: date, today: date) -> int:
    """Sessions in ``[first, before)`` that are over by a day."""
    until = min(before, today)
    if until <= first:
        return 0
    if calendar:
        return len(closed_sessions(calendar, first, until))
    return int(np.busday_count(first, until))
