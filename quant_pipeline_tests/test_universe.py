"""Rules of the universe: who counts on a session was known at its close."""

from typing import Any

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.market.universe import find_covered, find_members
from quant_pipeline.settings import UniverseSettings

specs = st.builds(
    UniverseSettings,
    min_sessions=st.integers(1, 12),
    value_sessions=st.integers(1, 8),
    min_median_value=st.sampled_from([0.0, 1.0, 2.0, 2.5, 5.0]),
)


@st.composite
def bars(draw: st.DrawFn) -> pd.DataFrame:
    """Bars of some symbols on some of 20 sessions, sorted by symbol, session."""
    n_symbols = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    has_bar = rng.random((n_symbols, 20)) < draw(st.sampled_from([0.3, 0.8, 1.0]))
    has_bar[np.arange(n_symbols), rng.integers(0, 20, n_symbols)] = True
    symbol, session = np.nonzero(has_bar)
    value = rng.integers(0, 8, len(symbol)).astype(float)
    return pd.DataFrame({"symbol": symbol, "session": session, "value": value})


def members(frame: pd.DataFrame, spec: UniverseSettings, first: Any = None) -> Any:
    if first is None:
        first = frame.groupby("symbol")["session"].min().to_numpy()
    columns = [frame[c].to_numpy() for c in ("symbol", "session", "value")]
    return find_members(*columns, first, spec)


@settings(deadline=None)
@given(bars(), specs)
def test_members_are_those_of_the_slow_oracle(frame: pd.DataFrame, spec: UniverseSettings) -> None:
    found = members(frame, spec)
    for row, is_member in zip(frame.itertuples(), found, strict=True):
        mine = frame[frame["symbol"] == row.symbol].set_index("session")["value"]
        age = row.session - mine.index.min() + 1
        window = range(row.session - spec.value_sessions + 1, row.session + 1)
        median = np.median([mine.get(s, 0.0) for s in window])
        assert is_member == (age >= spec.min_sessions and median >= spec.min_median_value)


@settings(deadline=None)
@given(bars(), specs, st.integers(0, 19))
def test_later_bars_change_no_earlier_answer(
    frame: pd.DataFrame, spec: UniverseSettings, last: int
) -> None:
    past = frame["session"] <= last
    first = frame.groupby("symbol")["session"].min().to_numpy()
    assert np.array_equal(members(frame[past], spec, first), members(frame, spec)[past])


@settings(deadline=None)
@given(bars(), specs, st.integers(0, 19))
def test_the_sessions_of_the_median_and_the_first_bar_are_enough(
    frame: pd.DataFrame, spec: UniverseSettings, first_wanted: int
) -> None:
    """What the chain reads for one partition gives the answers of the whole history."""
    first = frame.groupby("symbol")["session"].min().to_numpy()
    read = frame["session"] >= first_wanted - spec.value_sessions
    wanted = frame["session"] >= first_wanted
    part = members(frame[read], spec, first)
    assert np.array_equal(part[wanted[read]], members(frame, spec)[wanted])


# --- memberships

Interval = tuple[int, np.datetime64, np.datetime64 | None]
DAY_0 = np.datetime64("2020-01-01")


@st.composite
def intervals(draw: st.DrawFn) -> list[Interval]:
    """Membership of symbols, also of some without a bar; they may overlap, or hold no day."""
    found: list[Interval] = []
    for _ in range(draw(st.integers(0, 6))):
        first, n_days = draw(st.integers(-3, 22)), draw(st.none() | st.integers(-2, 12))
        last = None if n_days is None else DAY_0 + first + n_days
        found.append((draw(st.integers(0, 6)), DAY_0 + first, last))
    return found


def covered(frame: pd.DataFrame, spans: list[Interval]) -> Any:
    ts = DAY_0 + frame["session"].to_numpy().astype("timedelta64[D]")
    return find_covered(frame["symbol"].to_numpy(), ts, spans)


@given(bars(), intervals())
def test_covered_bars_are_those_of_the_slow_oracle(
    frame: pd.DataFrame, spans: list[Interval]
) -> None:
    found = covered(frame, spans)
    assert found.dtype == np.bool_
    assert len(found) == len(frame)
    for row, is_covered in zip(frame.itertuples(), found, strict=True):
        ts = DAY_0 + int(row.session)
        mine = [(first, last) for symbol, first, last in spans if symbol == row.symbol]
        assert is_covered == any(a <= ts and (b is None or ts <= b) for a, b in mine)


@given(bars(), intervals(), st.integers(0, 19))
def test_whether_an_interval_holds_a_session_is_known_on_it(
    frame: pd.DataFrame, spans: list[Interval], last: int
) -> None:
    """That a membership ends later, or another one begins, changes no answer up to a session."""
    today = DAY_0 + last
    seen = [
        (symbol, first, None if end is None or end >= today else end)
        for symbol, first, end in spans
        if first <= today
    ]
    past = frame["session"] <= last
    assert np.array_equal(covered(frame[past], seen), covered(frame, spans)[past])


def test_both_days_of_an_interval_are_in_it_and_without_one_nothing_is() -> None:
    ts = DAY_0 + np.arange(5)
    symbol = np.zeros(5, np.int64)
    assert find_covered(symbol, ts, [(0, ts[1], ts[3])]).tolist() == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert find_covered(symbol, ts, [(0, ts[2], ts[2])]).sum() == 1
    assert find_covered(symbol, ts, [(0, ts[2], None)]).sum() == 3
    assert not find_covered(symbol, ts, []).any()
    assert not find_covered(symbol, ts, [(1, ts[0], None)]).any()
    assert not len(find_covered(symbol[:0], ts[:0], [(0, ts[0], None)]))
