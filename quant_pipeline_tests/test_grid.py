"""Rules of the grid: windows tile time, and every way to name a window agrees."""

from datetime import date, timedelta
from itertools import pairwise

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_pipeline.errors import NoData
from quant_pipeline.market.grid import Cadence, Grid

PERIODS: dict[Cadence, str] = {"monthly": "M", "weekly": "W-SUN", "daily": "D"}
grids = st.builds(
    Grid, st.sampled_from(list(PERIODS)), st.dates(date(1960, 1, 1), date(2030, 1, 1))
)
ages = st.integers(0, 3000)


@given(grids, ages)
def test_each_day_lies_in_the_window_that_a_calendar_says(grid: Grid, age: int) -> None:
    day = grid.first + timedelta(days=age)
    period = pd.Period(pd.Timestamp(day), PERIODS[grid.cadence])
    start, end = grid.window(grid.key(day))
    assert (start, end) == (period.start_time.date(), (period + 1).start_time.date())
    assert grid.asof(grid.key(day)) == period.end_time.date()


@given(grids, ages, st.integers(1, 40))
def test_windows_tile_time_without_gaps(grid: Grid, age: int, n: int) -> None:
    first = grid.key(grid.first + timedelta(days=age))
    keys = grid.keys(first, grid.shift(first, n))
    assert len(keys) == len(set(keys)) == n + 1
    for one, next_one in pairwise(keys):
        assert grid.window(one)[1] == grid.window(next_one)[0]
        assert grid.asof(one) + timedelta(days=1) == grid.window(next_one)[0]
        assert grid.shift(one, 1) == next_one
        assert grid.shift(next_one, -1) == one
        assert one < next_one, "keys sort in time order as text"


@given(grids, ages, st.integers(-30, 30), st.integers(-30, 30))
def test_shifts_add_up(grid: Grid, age: int, a: int, b: int) -> None:
    key = grid.key(grid.first + timedelta(days=age))
    assert grid.shift(grid.shift(key, a), b) == grid.shift(key, a + b)
    assert grid.shift(key, 0) == key


@given(grids, ages)
def test_a_key_names_its_first_and_last_day_and_no_day_outside(grid: Grid, age: int) -> None:
    key = grid.key(grid.first + timedelta(days=age))
    start, end = grid.window(key)
    assert grid.key(start) == grid.key(grid.asof(key)) == key
    assert grid.key(end) != key
    if start > grid.start:
        assert grid.key(start - timedelta(days=1)) != key


@given(grids, ages)
def test_the_newest_asof_is_the_last_one_that_has_passed(grid: Grid, age: int) -> None:
    day = grid.first + timedelta(days=age)
    key = grid.newest_asof_on(day)
    assert grid.asof(key) <= day < grid.asof(grid.shift(key, 1))


@given(grids)
def test_the_first_window_holds_the_first_day(grid: Grid) -> None:
    assert grid.start <= grid.first < grid.window(grid.key(grid.first))[1]
    assert grid.key(grid.start) == grid.key(grid.first)
    with pytest.raises(NoData, match=r"is before the grid, which starts on .* grid\.start"):
        grid.key(grid.start - timedelta(days=1))


@given(grids, ages)
def test_no_key_lies_between_a_later_and_an_earlier_one(grid: Grid, age: int) -> None:
    key = grid.key(grid.first + timedelta(days=age))
    assert grid.keys(key, key) == [key]
    assert grid.keys(grid.shift(key, 1), key) == []


@pytest.mark.parametrize(
    ("cadence", "key", "why"),
    [
        ("monthly", "2017-13", "no monthly partition; one looks like 2017-07"),
        ("monthly", "2017-07-01", "one looks like 2017-07"),
        ("monthly", "201707", "one looks like 2017-07"),
        ("monthly", "", "one looks like 2017-07"),
        ("weekly", "2017-07", "one looks like 2017-07-03"),
        ("weekly", "2017-07-04", r"no weekly partition; that day lies in 2017-07-03\."),
        ("weekly", "20170703", "no weekly partition; that day lies in 2017-07-03"),
        ("weekly", "2017-W27-1", "no weekly partition; that day lies in 2017-07-03"),
        ("daily", "20170704", "no daily partition; that day lies in 2017-07-04"),
        ("daily", "yesterday", "one looks like 2017-07-03"),
    ],
)
def test_only_the_canonical_spelling_is_a_key(cadence: Cadence, key: str, why: str) -> None:
    grid = Grid(cadence, date(2010, 1, 4))
    for use in (grid.window, grid.asof, lambda k: grid.shift(k, 1), lambda k: grid.keys(k, k)):
        with pytest.raises(NoData, match=why):
            use(key)
