"""Rules of sessions: decided from the past alone, and no lone bar makes one."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.market.sessions import find_sessions

Bools = npt.NDArray[np.bool_]


def find(has_bar: Bools, min_share: float = 0.5, active_dates: int = 20) -> Bools:
    """Sessions of a table of dates x symbols, each date having a bar."""
    day, symbol = np.nonzero(has_bar)
    return find_sessions(
        day.astype(np.int64),
        symbol.astype(np.int64),
        min_share=min_share,
        active_dates=active_dates,
    )


def expected(has_bar: Bools, min_share: float, active_dates: int) -> Bools:
    answers = []
    for d in range(len(has_bar)):
        recent = has_bar[max(d - active_dates, 0) : d]
        answers.append(has_bar[d].sum() >= min_share * recent.any(axis=0).sum())
    return np.array(answers, bool)


@st.composite
def panels(draw: st.DrawFn) -> Bools:
    n_days, n_symbols = draw(st.integers(1, 30)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    has_bar = rng.random((n_days, n_symbols)) < draw(st.sampled_from([0.2, 0.5, 0.9]))
    has_bar[np.arange(n_days), rng.integers(0, n_symbols, n_days)] = True
    return has_bar


shares, windows = st.sampled_from([0.1, 0.5, 2 / 3, 1.0]), st.integers(1, 8)


@given(panels(), shares, windows)
def test_sessions_are_those_of_the_slow_oracle(has_bar: Bools, share: float, window: int) -> None:
    assert np.array_equal(find(has_bar, share, window), expected(has_bar, share, window))


@given(panels(), shares, windows, st.data())
def test_later_bars_change_no_earlier_answer(
    has_bar: Bools, share: float, window: int, data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, len(has_bar)))
    assert np.array_equal(find(has_bar[:n], share, window), find(has_bar, share, window)[:n])


@given(panels(), shares, st.integers(0, 2**16))
def test_the_order_of_bars_and_the_names_of_symbols_do_not_matter(
    has_bar: Bools, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    day, symbol = np.nonzero(has_bar)
    order = rng.permutation(len(day))
    names = rng.permutation(has_bar.shape[1])
    shuffled = find_sessions(
        day[order].astype(np.int64),
        names[symbol[order]].astype(np.int64),
        min_share=share,
        active_dates=20,
    )
    assert np.array_equal(shuffled, find(has_bar, share))


@given(st.integers(3, 40), st.integers(1, 30))
def test_a_lone_bar_on_a_holiday_makes_no_session(n_symbols: int, holiday: int) -> None:
    has_bar = np.ones((40, n_symbols), bool)
    has_bar[holiday, 1:] = False
    assert np.flatnonzero(~find(has_bar)).tolist() == [holiday]


def test_a_few_symbols_that_go_on_alone_have_sessions_again_once_the_others_are_forgotten() -> None:
    has_bar = np.ones((100, 40), bool)
    has_bar[50:, 3:] = False
    is_session = find(has_bar, active_dates=20)
    assert is_session[:50].all()
    assert not is_session[50:70].any()
    assert is_session[70:].all()


def test_the_first_date_is_a_session_and_none_gives_none() -> None:
    assert find(np.ones((1, 1), bool)).tolist() == [True]
    assert find(np.zeros((0, 3), bool)).tolist() == []


def test_every_date_of_a_market_that_never_closes_is_a_session() -> None:
    rng = np.random.default_rng(0)
    assert find(rng.random((400, 20)) < 0.98).all()


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
