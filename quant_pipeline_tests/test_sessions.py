"""Rules of sessions: decided from the past alone, and no lone bar makes one."""

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.market.calendars import listed_sessions
from quant_pipeline.market.sessions import find_sessions

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Days = npt.NDArray[np.datetime64]
Decisions = npt.NDArray[np.int8]

DATA = Path(__file__).parents[2] / "shared" / "data"


def find(
    has_bar: Bools,
    min_share: float = 0.5,
    active_dates: int = 20,
    known: Decisions | None = None,
    listed: Bools | None = None,
) -> Bools:
    """Sessions of a table of dates x symbols."""
    day, symbol = np.nonzero(has_bar)
    return find_sessions(
        day.astype(np.int64),
        symbol.astype(np.int64),
        min_share=min_share,
        active_dates=active_dates,
        known=known,
        listed=listed,
    )


def expected(
    has_bar: Bools,
    min_share: float,
    active_dates: int,
    known: Decisions | None = None,
    listed: Bools | None = None,
) -> Bools:
    """The rule, date by date and symbol by symbol."""
    answers: list[bool] = []
    for today in range(len(has_bar)):
        dates_before = range(max(today - active_dates, 0), today)
        active = {
            symbol
            for symbol in range(has_bar.shape[1])
            if any(answers[d] and has_bar[d, symbol] for d in dates_before)
        }
        n_there = sum(bool(has_bar[today, symbol]) for symbol in active)
        if active:
            by_share = n_there > 0 and n_there >= min_share * len(active)
        else:
            by_share = bool(has_bar[today].any())
        if known is not None and known[today] != -1:
            answers.append(known[today] == 1)
        elif listed is None:
            answers.append(by_share)
        else:
            answers.append(bool(listed[today]) or (by_share and bool(active)))
    return np.array(answers, bool)


@st.composite
def panels(draw: st.DrawFn) -> Bools:
    """Dates x symbols; most dates have a bar, the last one has."""
    n_days, n_symbols = draw(st.integers(1, 30)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    has_bar = rng.random((n_days, n_symbols)) < draw(st.sampled_from([0.2, 0.5, 0.9]))
    has_bar[rng.random(n_days) < 0.1] = False
    has_bar[-1, rng.integers(n_symbols)] = True
    return has_bar


def some_decisions(has_bar: Bools, data: st.DataObject) -> Decisions | None:
    """Any mix of 1, 0 and -1, or None."""
    if not data.draw(st.booleans(), "has known"):
        return None
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    return rng.choice(np.array([-1, 0, 1], np.int8), len(has_bar), p=[0.6, 0.2, 0.2])


def some_calendar(has_bar: Bools, data: st.DataObject) -> Bools | None:
    """Any dates, or None."""
    if not data.draw(st.booleans(), "has calendar"):
        return None
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    return rng.random(len(has_bar)) < data.draw(st.sampled_from([0.0, 0.3, 0.9]))


shares, windows = st.sampled_from([0.1, 0.5, 2 / 3, 1.0]), st.integers(1, 8)


@given(panels(), shares, windows, st.data())
def test_sessions_are_those_of_the_slow_oracle(
    has_bar: Bools, share: float, window: int, data: st.DataObject
) -> None:
    known, listed = some_decisions(has_bar, data), some_calendar(has_bar, data)
    found = find(has_bar, share, window, known, listed)
    assert np.array_equal(found, expected(has_bar, share, window, known, listed))


@given(panels(), shares, windows, st.data())
def test_later_bars_change_no_earlier_answer(
    has_bar: Bools, share: float, window: int, data: st.DataObject
) -> None:
    known, listed = some_decisions(has_bar, data), some_calendar(has_bar, data)
    whole = find(has_bar, share, window, known, listed)
    n = data.draw(st.integers(1, len(has_bar)))
    n -= 0 if has_bar[n - 1].any() or known is not None or listed is not None else 1
    past = find(
        has_bar[:n],
        share,
        window,
        None if known is None else known[:n],
        None if listed is None else listed[:n],
    )
    assert np.array_equal(past, whole[: len(past)])
    assert not has_bar[len(past) : n].any()


@given(panels(), shares, st.integers(0, 2**16), st.data())
def test_the_order_of_bars_and_the_names_of_symbols_do_not_matter(
    has_bar: Bools, share: float, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    day, symbol = np.nonzero(has_bar)
    known, listed = some_decisions(has_bar, data), some_calendar(has_bar, data)
    order = rng.permutation(len(day))
    names = rng.permutation(has_bar.shape[1])
    shuffled = find_sessions(
        day[order].astype(np.int64),
        names[symbol[order]].astype(np.int64),
        min_share=share,
        active_dates=20,
        known=known,
        listed=listed,
    )
    assert np.array_equal(shuffled, find(has_bar, share, 20, known, listed))


# --- decisions that stand


@given(panels(), shares, windows, st.data())
def test_known_decisions_are_kept(
    has_bar: Bools, share: float, window: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    known = rng.integers(-1, 2, len(has_bar)).astype(np.int8)
    before = known.copy()
    found = find(has_bar, share, window, known, some_calendar(has_bar, data))
    assert np.array_equal(found[known >= 0], known[known >= 0] == 1)
    assert np.array_equal(known, before)


@given(panels(), shares, windows, st.data())
def test_deciding_in_steps_equals_deciding_at_once(
    has_bar: Bools, share: float, window: int, data: st.DataObject
) -> None:
    """Also from the `active_dates` dates before the first open one alone: what the chain reads."""
    listed = some_calendar(has_bar, data)
    whole = find(has_bar, share, window, listed=listed)
    n = data.draw(st.integers(0, len(has_bar)))
    known = np.full(len(has_bar), -1, np.int8)
    known[:n] = whole[:n]
    assert np.array_equal(find(has_bar, share, window, known, listed), whole)
    start = max(n - window, 0)
    rest = None if listed is None else listed[start:]
    assert np.array_equal(find(has_bar[start:], share, window, known[start:], rest), whole[start:])


def test_a_date_that_is_known_to_be_none_makes_no_symbol_active() -> None:
    has_bar = np.zeros((4, 10), bool)
    has_bar[0, :2] = has_bar[1] = has_bar[2, :2] = True
    known = np.array([-1, 0, -1, -1], np.int8)
    assert find(has_bar, known=known).tolist() == [True, False, True, False]
    assert find(has_bar, known=np.full(4, -1, np.int8)).tolist() == [True, True, False, False]


# --- calendars


@given(panels(), shares, windows, st.data())
def test_listed_dates_are_sessions_with_or_without_bars(
    has_bar: Bools, share: float, window: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    listed = rng.random(len(has_bar)) < 0.5
    found = find(has_bar, share, window, listed=listed)
    assert found[listed].all()
    assert not found[~listed & ~has_bar.any(axis=1)].any()


def test_a_special_session_needs_active_symbols() -> None:
    has_bar = np.ones((4, 5), bool)
    listed = np.array([False, False, True, False])
    assert find(has_bar, listed=listed).tolist() == [False, False, True, True]
    forgotten = np.ones((8, 5), bool)
    forgotten[1:7] = False
    listed = np.arange(8) == 0
    assert find(forgotten, active_dates=6, listed=listed).tolist() == [True] + [False] * 7
    assert find(forgotten, active_dates=7, listed=listed)[-1]


def test_a_special_session_needs_its_share_of_bars_and_a_listed_one_does_not() -> None:
    """Half days and sessions of few trades are listed; a Saturday has to be a market's."""
    dates = pd.date_range("2020-01-01", "2020-03-31")
    listed = dates.day_of_week.to_numpy() < 5
    has_bar = np.repeat(listed[:, None], 10, axis=1)
    half_day, lone_bars, budget = (int(dates.get_loc(d)) for d in ("2020-02-14", "2020-02-15",
                                                                  "2020-02-22"))  # fmt: skip
    has_bar[half_day, 1:] = False
    has_bar[lone_bars, :4] = True
    has_bar[budget, :5] = True
    wanted = listed.copy()
    wanted[budget] = True
    assert np.array_equal(find(has_bar, listed=listed), wanted)
    wanted[half_day] = False
    assert np.array_equal(find(has_bar), wanted)


# --- markets


@given(st.integers(3, 40), st.integers(1, 30))
def test_a_lone_bar_on_a_holiday_makes_no_session(n_symbols: int, holiday: int) -> None:
    has_bar = np.ones((40, n_symbols), bool)
    has_bar[holiday, 1:] = False
    assert np.flatnonzero(~find(has_bar)).tolist() == [holiday]


@given(st.integers(1, 8), st.integers(1, 30))
def test_bars_on_a_date_that_is_no_session_keep_no_symbol_active(window: int, n: int) -> None:
    """Else a few symbols that trade on holidays would soon be the market."""
    has_bar = np.zeros((n + window + 1, 9), bool)
    has_bar[0] = has_bar[-1] = True
    has_bar[1:-1, :4] = True
    found = find(has_bar, active_dates=window)
    assert found.tolist() == [True, *(d >= window for d in range(n + window))]


def test_a_few_symbols_that_go_on_alone_have_sessions_again_once_the_others_are_forgotten() -> None:
    has_bar = np.ones((100, 40), bool)
    has_bar[50:, 3:] = False
    is_session = find(has_bar, active_dates=20)
    assert is_session[:50].all()
    assert not is_session[50:69].any()
    assert is_session[70:].all()


def test_the_first_date_is_a_session_and_none_gives_none() -> None:
    assert find(np.ones((1, 1), bool)).tolist() == [True]
    assert find(np.zeros((0, 3), bool)).tolist() == []
    assert find(np.zeros((3, 2), bool), known=np.full(3, -1, np.int8)).tolist() == [False] * 3
    assert find(np.zeros((2, 2), bool), listed=np.array([True, False])).tolist() == [True, False]


def test_every_date_of_a_market_that_never_closes_is_a_session() -> None:
    rng = np.random.default_rng(0)
    has_bar = rng.random((400, 20)) < 0.98
    assert find(has_bar).all()
    assert find(has_bar, listed=np.ones(400, bool)).all()


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_an_illiquid_market_keeps_its_sessions(seed: int) -> None:
    """A third of the symbols trade on most days, the rest now and then; half have to be there."""
    rng = np.random.default_rng(seed)
    often = np.r_[np.full(30, 0.97), np.full(30, 0.4)]
    assert find(rng.random((250, 60)) < often).mean() > 0.99


def test_weekends_of_a_few_round_the_clock_symbols_shift_no_window() -> None:
    dates = pd.date_range("2020-01-01", "2020-12-31")
    has_bar = np.zeros((len(dates), 20), bool)
    has_bar[:, :3] = True
    has_bar[dates.day_of_week < 5] = True
    assert np.array_equal(find(has_bar), dates.day_of_week.to_numpy() < 5)


def test_new_listings_and_delistings_move_the_bar_to_clear() -> None:
    has_bar = np.zeros((120, 40), bool)
    has_bar[:40, :4] = True
    has_bar[40:, :40] = True  # many list at once
    has_bar[80:, :18] = False  # and nearly half stop
    assert find(has_bar).all()


# --- real markets


@cache
def read_bars(name: str) -> tuple[Days, Days, Ints]:
    """Dates of a panel, each bar's date, and its symbol as a code."""
    file = DATA / f"{name}.parquet"
    if not file.exists():
        pytest.skip(f"{file} is missing: sessions were NOT tested on real prices")
    table = pq.read_table(file, columns=["symbol", "ts"])
    ts = table["ts"].to_numpy().astype("datetime64[D]")
    symbol = table["symbol"].combine_chunks().dictionary_encode().indices.to_numpy()
    return np.unique(ts), ts, symbol.astype(np.int64)


def sessions_of(name: str, calendar: str = "") -> tuple[Days, Days]:
    """Dates of a panel that are sessions, and sessions on which it has no bar."""
    dates, ts, symbol = read_bars(name)
    everything, listed = dates, None
    if calendar:
        official = listed_sessions(calendar, dates[0].item(), dates[-1].item())
        everything = np.union1d(dates, official)
        listed = np.isin(everything, official)
    is_session = find_sessions(
        np.searchsorted(everything, ts),
        symbol,
        min_share=0.5,
        active_dates=20,
        listed=listed,
    )
    found = everything[is_session]
    has_bar = np.isin(found, dates)
    return found[has_bar], found[~has_bar]


def weekend(days: Days) -> Days:
    return days[~np.is_busday(days)]


def test_india_has_its_special_sessions_with_and_without_a_calendar() -> None:
    """Saturdays of budgets and tests, and evenings of Diwali: no calendar lists all of them."""
    dates, _, _ = read_bars("in_nifty50_2000_2021")
    found, without_bar = sessions_of("in_nifty50_2000_2021")
    by_calendar, closed = sessions_of("in_nifty50_2000_2021", "XBOM")
    assert np.array_equal(found, dates)
    assert np.array_equal(by_calendar, found)
    assert len(weekend(found)) == 24
    assert not len(without_bar)
    assert closed.astype(str).tolist() == ["2013-11-15"]
    official = listed_sessions("XBOM", dates[0].item(), dates[-1].item())
    assert len(np.setdiff1d(dates, official)) == 31


@pytest.mark.parametrize("calendar", ["", "24/7"])
def test_crypto_has_sessions_on_every_day_of_the_week(calendar: str) -> None:
    dates, _, _ = read_bars("crypto_binance_2017_2026")
    found, without_bar = sessions_of("crypto_binance_2017_2026", calendar)
    assert np.array_equal(found, dates)
    assert np.array_equal(found, np.arange(dates[0], dates[-1] + 1))
    assert not len(without_bar)
    assert len(weekend(found)) == 876


def test_manila_loses_only_a_date_on_which_most_symbols_are_missing() -> None:
    dates, ts, symbol = read_bars("ph_pse_2010_2021")
    found, _ = sessions_of("ph_pse_2010_2021")
    assert np.setdiff1d(dates, found).astype(str).tolist() == ["2021-12-15"]
    active = np.unique(symbol[(ts >= dates[-21]) & (ts < dates[-1])])
    assert (ts == dates[-1]).sum() == 113 < 0.5 * len(active)
    assert not len(weekend(found))


@pytest.mark.parametrize("calendar", ["", "XNYS"])
def test_new_york_loses_only_a_lone_bar_on_good_friday(calendar: str) -> None:
    dates, ts, _ = read_bars("us_wiki100_1990_2018")
    found, without_bar = sessions_of("us_wiki100_1990_2018", calendar)
    good_friday = np.datetime64("2017-04-14")
    assert (ts == good_friday).sum() == 1
    assert np.setdiff1d(dates, found).tolist() == [good_friday.item()]
    assert without_bar.astype(str).tolist() == (["2017-11-08"] if calendar else [])
    official = listed_sessions("XNYS", dates[0].item(), dates[-1].item())
    assert np.array_equal(np.union1d(found, np.datetime64("2017-11-08")), official)
