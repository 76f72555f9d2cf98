"""Rules of the universe: who counts on a session was known at its close."""

from typing import Any

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.market.universe import find_members
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
