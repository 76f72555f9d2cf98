"""Another future: nothing of the past in it, nothing of it in the past."""

from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.chain.proofs.result import first_difference
from quant_pipeline.market.rewriting import (
    make_up_bars,
    make_up_sessions,
    restate_bars,
    rewrite_examples,
    rewrite_memberships,
)

CUT = date(2020, 3, 31)


def newest_bars(names: list[str]) -> pa.Table:
    n = len(names)
    prices = {c: np.linspace(1.0, 9.0, n) for c in ("open", "high", "low", "close", "adj_index")}
    ended = [CUT - timedelta(days=n - i) if i < n // 2 else CUT for i in range(n)]
    return pa.table(
        {
            "symbol": pa.array(names, pa.string()), "ts": pa.array(ended, pa.date32()), **prices,
            "volume": np.full(n, 1e4),
        }
    )  # fmt: skip


@given(seed=st.integers(0, 10_000), n=st.integers(1, 30))
@settings(deadline=None, max_examples=30)
def test_made_up_bars_are_later_plausible_and_of_new_symbols_too(seed, n):
    rng = np.random.default_rng(seed)
    sessions = make_up_sessions(CUT, 60, rng)
    assert min(sessions["ts"].to_pylist()) == CUT + timedelta(days=1)
    names = [f"S{i}" for i in range(n)]
    bars = make_up_bars(newest_bars(names), sessions["ts"].combine_chunks(), rng).to_pandas()
    assert (bars["ts"] > CUT).all()
    assert set(bars["symbol"]) - set(names)
    gone = [f"S{i}" for i in range(n // 2)]  # the longest first
    assert not set(bars["symbol"]) & set(gone[::2])
    assert (bars["low"] <= bars[["open", "close"]].min(axis=1) * (1 + 1e-12)).all()
    assert (bars["high"] >= bars[["open", "close"]].max(axis=1) * (1 - 1e-12)).all()
    assert (bars[["open", "low", "close", "adj_index", "volume"]] > 0).all().all()
    assert not bars.duplicated(["symbol", "ts"]).any()


def test_new_symbols_never_have_a_name_that_is_taken():
    rng = np.random.default_rng(0)
    names = ["ZZNEW0", "ZZNEW1", "ZZNEWZ"]
    dates = make_up_sessions(CUT, 60, rng)["ts"].combine_chunks()
    found = set(make_up_bars(newest_bars(names), dates, rng)["symbol"].to_pylist())
    assert {name for name in found if name.startswith("ZZNEWZZ")}


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_members_up_to_the_cut_stay_and_what_comes_later_does_not(data):
    day = st.integers(-300, 300).map(lambda n: CUT + timedelta(days=n))
    rows = data.draw(st.lists(st.tuples(st.sampled_from("ABCDE"), day, st.none() | day)))
    rows = [(s, a, b if b is None else max(a, b)) for s, a, b in rows]
    schema = pa.schema([("symbol", pa.string()), ("first", pa.date32()), ("last", pa.date32())])
    names = ("symbol", "first", "last")
    given_ = pa.Table.from_pylist([dict(zip(names, r, strict=True)) for r in rows], schema)
    found = rewrite_memberships(given_, CUT, np.random.default_rng(1)).to_pylist()

    def by_cut(members):
        """Who was in on each day up to the cut."""
        return sorted(
            (m["symbol"], m["first"], min(m["last"] or CUT, CUT))
            for m in members if m["first"] <= CUT
        )  # fmt: skip

    assert by_cut(found) == by_cut(given_.to_pylist())
    assert all(m["last"] is None or m["last"] <= CUT or m["last"] > CUT for m in found)
    assert any(m["first"] > CUT for m in found)


def test_restated_bars_are_known_ones_with_other_values():
    bars = newest_bars([f"S{i}" for i in range(50)])
    found = restate_bars(bars, 0.5, np.random.default_rng(0))
    assert 10 < len(found) < 40
    joined = found.join(bars, "symbol", right_suffix="_was").to_pandas()
    assert (joined["close"] > 1.4 * joined["close_was"]).all()


@pytest.mark.parametrize("n_classes", [2, 200])
def test_only_later_rows_change_and_all_of_them_do(n_classes):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3)).astype(np.float32)
    values = rng.integers(0, n_classes, (200, 1)).astype(np.float64)
    is_later = np.arange(200) >= 150
    is_known_later = np.arange(200) >= 140
    other, made_up = rewrite_examples(x, values, is_later, is_known_later, rng)
    np.testing.assert_array_equal(other[:150], x[:150])
    np.testing.assert_array_equal(made_up[:140], values[:140])
    assert (other[150:] != x[150:]).all()
    assert made_up[140:].mean() > 1.2 * values[140:].mean()
    assert set(np.unique(made_up)) == {0.0, 1.0} or n_classes > 2


# --- The first difference


@given(
    values=st.lists(st.floats(-5, 5) | st.just(float("nan")), min_size=1, max_size=20),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_the_first_cell_that_differs_is_named(values, data):
    days = [CUT + timedelta(days=i) for i in range(len(values))]
    a = pa.table({"symbol": ["A"] * len(values), "ts": days, "x": pa.array(values, pa.float64())})
    assert first_difference("s", "t", a, a) is None
    where = data.draw(st.integers(0, len(values) - 1))
    other = list(values)
    for i in range(where, len(values)):
        other[i] = 100.0 + i
    b = a.set_column(2, "x", pa.array(other, pa.float64()))
    found = first_difference("s", "t", a, b)
    assert found is not None
    assert (found.symbol, found.ts, found.column, found.found) == (
        "A",
        days[where],
        "x",
        100.0 + where,
    )


def test_a_row_that_is_missing_or_extra_is_named_before_what_comes_later():
    a = pa.table({"symbol": ["A", "B"], "ts": [CUT, CUT], "x": [1.0, 2.0]})
    less = first_difference("s", "t", a, a.slice(0, 1))
    assert less is not None
    assert (less.symbol, less.expected, less.found) == ("B", "a row", "no row")
    more = first_difference("s", "t", a.slice(1, 1), a)
    assert more is not None
    assert (more.symbol, more.expected, more.found) == ("A", "no row", "a row")
    assert str(more) == "s, t (A, 2020-03-31): no row became a row"


def test_minus_zero_is_another_value():
    a, b = (pa.table({"symbol": ["A"], "ts": [CUT], "x": [v]}) for v in (0.0, -0.0))
    assert first_difference("s", "t", a, b) is not None
