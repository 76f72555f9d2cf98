"""Rules of closing: a window is complete once a later session is there and its own last one is."""

import statistics
from collections.abc import Callable
from datetime import date, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_pipeline.market.closing import Closing, Session, judge_closing, judge_coverage
from quant_pipeline.market.grid import Cadence, Grid
from quant_pipeline.settings import SealSettings

FIRST = date(2015, 6, 1)
DAY = timedelta(days=1)
PERIOD: dict[Cadence, Callable[[date], date]] = {
    "daily": lambda day: day,
    "weekly": lambda day: day - day.weekday() * DAY,
    "monthly": lambda day: day.replace(day=1),
}
cadences = st.sampled_from(list(PERIOD))
specs = st.builds(
    SealSettings,
    coverage=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    max_wait_sessions=st.integers(1, 6),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Session]:
    """Sessions over about three months, some weeks or a whole month of which have none."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9]))
    days = set(np.flatnonzero(rng.random(96) < share).tolist())
    if draw(st.booleans()):
        days -= set(range(30, 61))
    n_bars = rng.choice([0, 1, 4, 5, 8, 9, 10, 10, 10, 11, 20], 96).tolist()
    return [Session(FIRST + d * DAY, n_bars[d]) for d in sorted(days)]


def some_key(grid: Grid, data: st.DataObject) -> str:
    return grid.key(FIRST + data.draw(st.integers(0, 100)) * DAY)


def oracle(
    cadence: Cadence, start: date, sessions: list[Session], spec: SealSettings
) -> tuple[bool, Session | None, float | None, int]:
    """Whether a window is complete, its last session, its usual bars, later sessions."""
    period = PERIOD[cadence]
    mine = [s for s in sessions if period(s.ts) == start]
    n_later = sum(period(s.ts) > start for s in sessions)
    if n_later == 0 or not mine:
        return n_later > 0, None, None, n_later
    last = max(mine, key=lambda s: s.ts)
    before = [s.n_bars for s in sessions if s.ts < last.ts][-20:]
    usual = float(statistics.median(before)) if before else float(last.n_bars)
    is_covered = last.n_bars >= spec.coverage * usual
    return is_covered or n_later >= spec.max_wait_sessions, last, usual, n_later


@given(histories(), cadences, specs, st.data())
def test_closings_are_those_of_the_slow_oracle(
    sessions: list[Session], cadence: Cadence, spec: SealSettings, data: st.DataObject
) -> None:
    grid = Grid(cadence, FIRST)
    key = some_key(grid, data)
    found = judge_closing(grid, key, sessions, spec)
    is_sealable, last, usual, n_later = oracle(cadence, grid.window(key)[0], sessions, spec)
    assert found.key == key
    assert (found.is_sealable, found.n_later) == (is_sealable, n_later)
    assert (found.last, found.usual_bars) == (last, usual)


@given(histories(), cadences, specs, st.data())
def test_a_complete_window_stays_complete_and_its_reason_gains_at_most_a_longer_wait(
    sessions: list[Session], cadence: Cadence, spec: SealSettings, data: st.DataObject
) -> None:
    """Sessions after a window count, but neither their dates nor their bars matter."""
    grid = Grid(cadence, FIRST)
    key = some_key(grid, data)
    end = grid.window(key)[1]
    seen = [judge_closing(grid, key, sessions[:n], spec) for n in range(len(sessions) + 1)]
    later = [one for one in seen if one.n_later]
    for one, other in pairwise(later):
        assert (one.last, one.usual_bars) == (other.last, other.usual_bars)
        assert other.is_sealable >= one.is_sealable
        if one.is_sealable and other.is_sealable:
            assert one.why == other.why.replace(
                f"waited {other.n_later} ", f"waited {one.n_later} "
            )
    n_later = sum(s.ts >= end for s in sessions)
    moved = [s for s in sessions if s.ts < end]
    moved += [Session(end + 500 * DAY + i * DAY, 10_000) for i in range(n_later)]
    if n_later:
        assert judge_closing(grid, key, moved, spec) == seen[-1]


@given(histories(), cadences, specs, st.data())
def test_a_window_waits_a_bounded_time_and_not_at_all_without_coverage(
    sessions: list[Session], cadence: Cadence, spec: SealSettings, data: st.DataObject
) -> None:
    grid = Grid(cadence, FIRST)
    found = judge_closing(grid, some_key(grid, data), sessions, spec)
    if found.n_later >= spec.max_wait_sessions:
        assert found.is_sealable
    if not found.n_later:
        assert not found.is_sealable
    if spec.coverage == 0.0:
        assert found.is_sealable == (found.n_later > 0)


@given(histories(), cadences, specs, st.data())
def test_a_message_names_its_dates_and_numbers(
    sessions: list[Session], cadence: Cadence, spec: SealSettings, data: st.DataObject
) -> None:
    grid = Grid(cadence, FIRST)
    key = some_key(grid, data)
    found = judge_closing(grid, key, sessions, spec)
    if not found.n_later:
        newest = f"; the newest one is {sessions[-1].ts}" if sessions else ""
        assert found.why == f"open until a session after {grid.asof(key)} is stored{newest}"
    elif found.last is None:
        assert found.why == "no session in it"
    else:
        have = f"{found.last.ts} has {found.last.n_bars} of {found.usual_bars:g} usual bars"
        assert have in found.why
        assert ("waiting for late bars" in found.why) == (not found.is_sealable)
        if not found.is_sealable:
            assert f"sealed after {spec.max_wait_sessions} later sessions" in found.why
            assert found.why.endswith(f", {found.n_later} so far")
        elif found.why != have:
            assert found.why == f"{have}; waited {found.n_later} sessions"


# --- coverage


@given(histories().filter(bool))
def test_usual_bars_are_the_median_of_the_twenty_sessions_before(sessions: list[Session]) -> None:
    last, usual = judge_coverage(sessions)
    before = [s.n_bars for s in sessions][:-1][-20:]
    assert last is sessions[-1]
    assert usual == (statistics.median(before) if before else last.n_bars)
    older = [Session(s.ts, s.n_bars + 1000) for s in sessions[:-21]]
    assert judge_coverage([*older, *sessions[-21:]]) == (last, usual)


# --- examples


def days(first: date, *n_bars: int) -> list[Session]:
    """Sessions on consecutive weekdays."""
    found, day = [], first
    for n in n_bars:
        while day.weekday() > 4:
            day += DAY
        found.append(Session(day, n))
        day += DAY
    return found


MONDAY = date(2015, 6, 1)


def test_a_week_is_open_until_a_session_after_its_sunday() -> None:
    grid, spec = Grid("weekly", FIRST), SealSettings()
    for n in range(6):
        found = judge_closing(grid, "2015-06-01", days(MONDAY, *[10] * n), spec)
        newest = f"; the newest one is 2015-06-0{n}" if n else ""
        why = f"open until a session after 2015-06-07 is stored{newest}"
        assert found == Closing("2015-06-01", False, why, None, None, 0)
    found = judge_closing(grid, "2015-06-01", days(MONDAY, *[10] * 6), spec)
    friday, why = Session(date(2015, 6, 5), 10), "2015-06-05 has 10 of 10 usual bars"
    assert found == Closing("2015-06-01", True, why, friday, 10.0, 1)


@pytest.mark.parametrize(
    ("n_bars", "n_later", "is_sealable", "why"),
    [
        (8, 1, True, "2015-06-05 has 8 of 10 usual bars"),
        (7, 1, False, "waiting for late bars: 2015-06-05 has 7 of 10 usual bars; "
                      "sealed after 3 later sessions, 1 so far"),
        (7, 2, False, "waiting for late bars: 2015-06-05 has 7 of 10 usual bars; "
                      "sealed after 3 later sessions, 2 so far"),
        (7, 3, True, "2015-06-05 has 7 of 10 usual bars; waited 3 sessions"),
        (7, 9, True, "2015-06-05 has 7 of 10 usual bars; waited 9 sessions"),
        (0, 2, False, "waiting for late bars: 2015-06-05 has 0 of 10 usual bars; "
                      "sealed after 3 later sessions, 2 so far"),
    ],
)  # fmt: skip
def test_a_week_waits_for_the_bars_of_its_last_session(
    n_bars: int, n_later: int, is_sealable: bool, why: str
) -> None:
    sessions = days(MONDAY, 10, 10, 10, 10, n_bars, *[3] * n_later)
    found = judge_closing(Grid("weekly", FIRST), "2015-06-01", sessions, SealSettings())
    assert (found.is_sealable, found.why, found.n_later) == (is_sealable, why, n_later)


def test_a_daily_window_is_judged_by_its_one_session_and_a_weekend_by_none() -> None:
    grid, spec = Grid("daily", FIRST), SealSettings()
    sessions = days(MONDAY, 10, 10, 10, 10, 5, 10)
    found = {
        key: judge_closing(grid, key, sessions, spec)
        for key in grid.keys("2015-06-01", "2015-06-08")
    }
    assert [key for key, one in found.items() if not one.is_sealable] == [
        "2015-06-05",
        "2015-06-08",
    ]
    assert found["2015-06-01"].usual_bars == 10.0
    for key in ("2015-06-06", "2015-06-07"):
        assert found[key] == Closing(key, True, "no session in it", None, None, 1)
