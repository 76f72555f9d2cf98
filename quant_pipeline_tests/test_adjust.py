"""Rules of the forward index: returns are right, and what is stored keeps its bits."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.market.adjust import Bars, Merged, merge_delivery

TOLERANCE = 1e-4
DATA = Path(__file__).parents[2] / "shared" / "data"
VALUES = ("open", "high", "low", "close", "volume", "index")
NOTHING = Bars(np.empty(0, np.int64), *(np.empty(0) for _ in VALUES))


# --- an independent model of a market and of a vendor


@dataclass(frozen=True)
class Market:
    """What really happened to one share: raw prices, and each session's dividend and split."""

    bars: Bars  # as traded; `index` is the value of one share with everything reinvested
    dividend: npt.NDArray[np.float64]  # paid on that session, as a share of the close before
    split: npt.NDArray[np.float64]  # new shares for an old one from that session on

    def deliver(self, days: list[int], *, known: int | None = None, adjusted: bool = True) -> Bars:
        """What a vendor delivers of some days, his history restated by all that is known then.

        OHLC are divided by later splits and volume multiplied, adj_close also contains later
        dividends. Without adj_close there are no dividends to miss.
        """
        at = np.array(sorted(days))
        last = int(at[-1]) if known is None else known
        splits = np.cumprod(self.split)
        later = (splits[last] / splits)[at]
        prices = [getattr(self.bars, n)[at] / later for n in ("open", "high", "low", "close")]
        index = self.bars.index[at] / self.bars.index[last] * self.bars.close[last]
        if not adjusted:
            index = np.full(len(at), np.nan)
        return Bars(at.astype(np.int64), *prices, self.bars.volume[at] * later, index)


def make_market(n: int, seed: int, dividends: dict[int, float], splits: dict[int, float]) -> Market:
    rng = np.random.default_rng(seed)
    dividend, split = np.zeros(n), np.ones(n)
    for day, share in dividends.items():
        dividend[day % n] = share
    for day, factor in splits.items():
        split[day % n] = factor
    returns = np.exp(0.03 * rng.standard_normal(n))
    dividend[0], split[0], returns[0] = 0.0, 1.0, 1.0
    close = 40.0 * np.cumprod((returns - dividend) / split)
    index = np.cumprod(returns)
    open_, up, down = (np.exp(0.02 * rng.standard_normal(n)) for _ in range(3))
    open_ = close * open_
    high = np.maximum(open_, close) * np.maximum(up, 1 / up)
    low = np.minimum(open_, close) * np.minimum(down, 1 / down)
    volume = np.round(1e4 * np.exp(rng.standard_normal(n)))
    bars = Bars(np.arange(n, dtype=np.int64), open_, high, low, close, volume, index)
    return Market(bars, dividend, split)


@st.composite
def markets(draw: st.DrawFn, *, dividends: bool = True) -> Market:
    n = draw(st.integers(2, 14))
    shares = st.floats(0.002, 0.2) if dividends else st.just(0.0)
    return make_market(
        n,
        draw(st.integers(0, 2**16)),
        draw(st.dictionaries(st.integers(0, n), shares, max_size=3)),
        draw(st.dictionaries(st.integers(0, n), st.sampled_from([2.0, 3.0, 0.1, 1.5]), max_size=2)),
    )


def store(stored: Bars, merged: Merged) -> Bars:
    """The newest version of every bar: by date, what was merged last wins."""
    is_kept = ~np.isin(stored.ts, merged.bars.ts)
    order = np.argsort(np.append(stored.ts[is_kept], merged.bars.ts))
    pairs = [(getattr(stored, f.name), getattr(merged.bars, f.name)) for f in fields(Bars)]
    return Bars(*(np.append(old[is_kept], new)[order] for old, new in pairs))


def ingest(*deliveries: Bars, stored: Bars = NOTHING) -> Bars:
    for one in deliveries:
        merged = merge_delivery(stored, one, TOLERANCE)
        assert merged.n_new + merged.n_restated + merged.n_unchanged == len(one.ts)
        stored = store(stored, merged)
    for name in VALUES:
        assert np.isfinite(getattr(stored, name)).all(), name
    assert (stored.index > 0).all()
    return stored


def select(bars: Bars, keep: npt.NDArray[np.bool_]) -> Bars:
    return Bars(*(getattr(bars, f.name)[keep] for f in fields(Bars)))


def assert_same_bits(one: Bars, other: Bars) -> None:
    for f in fields(Bars):
        assert getattr(one, f.name).tobytes() == getattr(other, f.name).tobytes(), f.name


def assert_same_returns(stored: Bars, truth: npt.NDArray[np.float64]) -> None:
    """The index is the truth times one constant."""
    scale = stored.index / truth[stored.ts]
    np.testing.assert_allclose(scale / scale[0], 1.0, rtol=1e-9)


def assert_untouched(stored: Bars, merged: Merged) -> None:
    assert not np.isin(merged.bars.ts, stored.ts).any()
    assert merged.n_restated == merged.n_relinked == 0


def some_days(market: Market, *including: int) -> st.SearchStrategy[list[int]]:
    days = st.sets(st.integers(0, len(market.bars.ts) - 1), min_size=0 if including else 1)
    return days.map(lambda found: sorted(found | set(including)))


# --- consistent vendors: returns right, stored bits kept


@given(markets(), st.booleans())
def test_one_delivery_starts_at_its_close_and_has_the_markets_returns(
    market: Market, adjusted: bool
) -> None:
    every = list(range(len(market.bars.ts)))
    delivery = market.deliver(every, adjusted=adjusted)
    stored = ingest(delivery)
    assert stored.index[0] == delivery.close[0]
    truth = market.bars.index if adjusted else market.bars.close * np.cumprod(market.split)
    assert_same_returns(stored, truth)
    for name in ("open", "high", "low", "close", "volume"):
        assert getattr(stored, name).tobytes() == getattr(delivery, name).tobytes()


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_deliveries_that_share_a_session_give_the_markets_returns_and_keep_stored_bits(
    data: st.DataObject,
) -> None:
    """Any days in any order: forward, backward, into gaps; each re-based by all that is known."""
    market = data.draw(markets())
    last = len(market.bars.ts) - 1
    stored = ingest(market.deliver(data.draw(some_days(market))))
    for _ in range(data.draw(st.integers(1, 4))):
        shared = data.draw(st.sampled_from(stored.ts.tolist()))
        days = data.draw(some_days(market, shared))
        known = data.draw(st.integers(days[-1], last))
        delivery = market.deliver(days, known=known)
        merged = merge_delivery(stored, delivery, TOLERANCE)
        assert_untouched(stored, merged)
        assert merged.n_new == len(np.setdiff1d(delivery.ts, stored.ts))
        assert merged.n_unchanged == len(np.intersect1d(delivery.ts, stored.ts))
        stored = ingest(delivery, stored=stored)
        assert_same_returns(stored, market.bars.index)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_without_a_shared_session_closes_count(data: st.DataObject) -> None:
    """No dividends, no splits: then closes are enough, in any order."""
    market = data.draw(markets(dividends=False))
    market = replace(market, split=np.ones(len(market.split)))
    market = replace(market, bars=replace(market.bars, index=market.bars.close))
    stored = NOTHING
    left = list(range(len(market.bars.ts)))
    while left:
        days = data.draw(st.lists(st.sampled_from(left), min_size=1, unique=True))
        left = [d for d in left if d not in days]
        merged = merge_delivery(
            stored, market.deliver(days, adjusted=data.draw(st.booleans())), 1e-4
        )
        assert_untouched(stored, merged)
        stored = store(stored, merged)
        assert_same_returns(stored, market.bars.close)


@given(markets(), st.integers(0, 3))
def test_session_by_session_with_overlap_has_the_bits_of_one_delivery(
    market: Market, n_overlap: int
) -> None:
    n = len(market.bars.ts)
    whole = ingest(market.deliver(list(range(n)), known=n - 1))
    overlap = max(n_overlap, 1)
    pieces = [list(range(max(d - overlap, 0), d + 1)) for d in range(n)]
    in_pieces = ingest(*(market.deliver(days, known=n - 1) for days in pieces))
    assert_same_bits(in_pieces, whole)


@given(markets(), st.booleans(), st.data())
def test_delivering_again_changes_nothing(
    market: Market, adjusted: bool, data: st.DataObject
) -> None:
    delivery = market.deliver(data.draw(some_days(market)), adjusted=adjusted)
    stored = ingest(delivery)
    again = select(delivery, np.array([data.draw(st.booleans()) for _ in delivery.ts]))
    for one in (delivery, again):
        merged = merge_delivery(stored, one, TOLERANCE)
        assert len(merged.bars.ts) == merged.n_rebased == merged.n_new == merged.n_restated == 0
        assert merged.n_unchanged == len(one.ts)


@given(markets(), st.floats(0.3, 3.0), st.floats(0.3, 3.0))
def test_a_rescaled_past_is_counted_and_changes_nothing(
    market: Market, dividend: float, split: float
) -> None:
    delivery = market.deliver(list(range(len(market.bars.ts))))
    stored = ingest(delivery)
    prices = {n: getattr(delivery, n) / split for n in ("open", "high", "low", "close")}
    rescaled = replace(
        delivery,
        **prices,
        volume=np.round(delivery.volume * split),
        index=delivery.index * dividend,
    )
    merged = merge_delivery(stored, rescaled, TOLERANCE)
    assert len(merged.bars.ts) == 0
    assert merged.n_unchanged == len(delivery.ts)
    assert merged.n_rebased == (len(delivery.ts) if abs(1 / split - 1) > TOLERANCE else 0)


# --- corrections


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_a_correction_restates_its_bar_and_no_other(data: st.DataObject) -> None:
    """One stored bar was wrong; the correct history arrives: later rows keep their bits."""
    market = data.draw(markets())
    n = len(market.bars.ts)
    known = n - 1
    right = market.deliver(list(range(n)), known=known)
    bad = data.draw(st.integers(0, n - 1))
    factor = data.draw(st.sampled_from([0.5, 0.9, 0.999, 1.002, 1.1, 3.0]))
    values = {}
    for name in ("close", "index"):
        values[name] = getattr(right, name).copy()
        values[name][bad] *= factor
    wrong = replace(right, **values)
    stored = ingest(wrong)
    first = data.draw(st.integers(0, max(bad - 1, 0)))
    last = data.draw(st.integers(bad, n - 1))
    merged = merge_delivery(
        stored, right_part := market.deliver(list(range(first, last + 1)), known=known), 1e-4
    )
    after = ingest(right_part, stored=stored)
    if last > first:  # a lone bar could as well be one that was re-based
        assert_same_returns(after, market.bars.index)
    assert bad in merged.bars.ts
    if bad > 0:
        assert_same_bits(select(after, after.ts < bad), select(stored, stored.ts < bad))
    if last > bad:
        assert_same_bits(select(after, after.ts > bad), select(stored, stored.ts > bad))
        assert (merged.n_restated, merged.n_relinked) == (1, 0)
    assert after.close[bad] == right.close[bad]


def test_yesterdays_close_corrected_today_corrects_both_returns() -> None:
    """Daily operation: the provisional close of day 2 is corrected together with day 3."""
    given = np.arange(4, dtype=np.int64)
    close = np.array([10.0, 10.0, 10.5, 10.71])
    nan = np.full(4, np.nan)
    right = Bars(
        given, np.full(4, 10.0), np.full(4, 11.0), np.full(4, 9.0), close, np.full(4, 1e3), nan
    )
    early = np.array([10.0, 10.0, 10.0, 10.71])
    first = select(replace(right, close=early), given < 3)
    for correction in ([2], [2, 3]):
        after = ingest(first, select(right, np.isin(given, correction)))
        np.testing.assert_allclose(after.index, close[: len(after.ts)])
        after = ingest(select(right, given == 3), stored=after)
        np.testing.assert_allclose(after.index, close)


@given(markets(), st.data())
def test_a_late_dividend_is_a_restatement_that_later_returns_survive(
    market: Market, data: st.DataObject
) -> None:
    """Stored without a dividend; then the vendor knows it: only that session's return changes."""
    n = len(market.bars.ts)
    day = data.draw(st.integers(1, n - 1))
    right = market.deliver(list(range(n)))
    wrong = replace(right, index=np.where(right.ts < day, right.index * 1.03, right.index))
    stored = ingest(wrong)
    merged = merge_delivery(stored, right, TOLERANCE)
    assert merged.n_restated == 1
    assert merged.n_relinked == n - day - 1
    after = ingest(right, stored=stored)
    assert_same_returns(after, market.bars.index)
    assert_same_bits(select(after, after.ts < day), select(stored, stored.ts < day))


@given(markets(), st.data())
def test_omitted_bars_stay_and_follow_a_restated_level(market: Market, data: st.DataObject) -> None:
    n = len(market.bars.ts)
    day = data.draw(st.integers(1, n - 1))
    right = market.deliver(list(range(n)))
    stored = ingest(replace(right, index=np.where(right.ts < day, right.index * 1.03, right.index)))
    after = ingest(market.deliver([day - 1, day], known=n - 1), stored=stored)
    assert after.ts.tolist() == stored.ts.tolist()
    assert_same_returns(after, market.bars.index)
    later = after.ts > day
    for name in ("open", "high", "low", "close", "volume"):
        assert getattr(after, name)[later].tobytes() == getattr(stored, name)[later].tobytes()


@pytest.mark.parametrize("name", ["open", "high", "low", "volume"])
def test_a_correction_of_shape_takes_the_row_and_leaves_the_index(name: str) -> None:
    market = make_market(8, 1, {}, {})
    right = market.deliver(list(range(8)))
    values = getattr(right, name).copy()
    values[4] *= 0.97
    stored = ingest(replace(right, **{name: values}))
    for days in ([4], [3, 4, 5], [4, 5], list(range(8))):
        merged = merge_delivery(stored, market.deliver(days, known=7), TOLERANCE)
        assert merged.bars.ts.tolist() == [4]
        assert (merged.n_restated, merged.n_unchanged) == (1, len(days) - 1)
        assert getattr(merged.bars, name)[0] == getattr(right, name)[4]
        assert merged.bars.index[0] == stored.index[4]


@given(markets(), st.floats(-0.9, 0.9), st.floats(0.05, 0.95), st.sampled_from(VALUES))
def test_within_the_tolerance_the_stored_row_stays_and_beyond_it_does_not(
    market: Market, inside: float, at: float, name: str
) -> None:
    n = len(market.bars.ts)
    right = market.deliver(list(range(n)))
    stored = ingest(right)
    day = max(int(at * n), 1)

    def shifted(by: float) -> Bars:
        values = getattr(right, name).copy()
        values[day] *= 1 + by
        return replace(right, **{name: values})

    assert len(merge_delivery(stored, shifted(inside * TOLERANCE), TOLERANCE).bars.ts) == 0
    shares = 2 / right.volume[day] if name == "volume" else 0.0  # one share is none
    far = merge_delivery(stored, shifted(0.01 + shares), TOLERANCE)
    assert far.n_restated == 1
    assert far.bars.ts.tolist() == [day]


# --- any delivery at all


@st.composite
def anything(draw: st.DrawFn) -> Bars:
    """Bars of any days, of coarse prices that often agree and often contradict each other."""
    days = sorted(draw(st.sets(st.integers(0, 9), max_size=8)))
    price = st.sampled_from([1.0, 1.05, 2.0, 10.0])
    rows = [[draw(price) for _ in range(4)] for _ in days]
    o, h, low, c = np.array(rows).reshape(len(days), 4).T
    volume = np.array([draw(st.sampled_from([0.0, 1.0, 1e6])) for _ in days], float)
    adjusted = np.array([draw(st.sampled_from([np.nan, 1.0, 2.0])) for _ in days], float)
    return Bars(np.array(days, np.int64), o, h, low, c, volume, adjusted)


@settings(max_examples=120, deadline=None)
@given(st.lists(anything(), max_size=4))
def test_whatever_comes_counts_add_up_and_coming_again_changes_nothing(
    deliveries: list[Bars],
) -> None:
    stored = NOTHING
    for delivery in deliveries:
        before = {f.name: getattr(delivery, f.name).tobytes() for f in fields(Bars)}
        merged = merge_delivery(stored, delivery, TOLERANCE)
        assert {f.name: getattr(delivery, f.name).tobytes() for f in fields(Bars)} == before
        n_written = merged.n_new + merged.n_restated + merged.n_relinked
        assert n_written == len(merged.bars.ts)
        after = ingest(delivery, stored=stored)
        assert np.array_equal(after.ts, np.union1d(stored.ts, delivery.ts))
        omitted = ~np.isin(stored.ts, delivery.ts)
        kept = select(after, np.isin(after.ts, stored.ts[omitted]))
        for name in ("open", "high", "low", "close", "volume"):
            assert getattr(kept, name).tobytes() == getattr(stored, name)[omitted].tobytes()
        again = merge_delivery(after, delivery, TOLERANCE)
        assert len(again.bars.ts) == 0
        stored = after


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_only_the_bar_before_and_those_from_the_delivery_on_are_needed(
    data: st.DataObject,
) -> None:
    """Ingest reads no more of what is stored than that."""
    market = data.draw(markets())
    n = len(market.bars.ts)
    stored = ingest(market.deliver(data.draw(some_days(market))))
    delivery = market.deliver(data.draw(some_days(market)), known=n - 1)
    needed = stored.ts >= delivery.ts[0]
    before = np.flatnonzero(~needed)
    needed[before[-1:]] = True
    part = merge_delivery(select(stored, needed), delivery, TOLERANCE)
    whole = merge_delivery(stored, delivery, TOLERANCE)
    assert_same_bits(part.bars, whole.bars)


# --- real prices


def test_a_dividend_on_real_prices_rounded_as_delivered_changes_nothing() -> None:
    path = DATA / "us_large_yahoo_2002_2022.parquet"
    if not path.exists():
        pytest.skip(f"{path} is missing: this was NOT tested on real prices")
    names = ["AAPL", "KO", "NVDA", "CVX"]
    rows = pq.read_table(path, filters=[("symbol", "in", names)]).to_pandas()
    assert set(rows["symbol"]) == set(names)
    for _, one in rows.sort_values("ts").groupby("symbol"):
        day = pd.to_datetime(one["ts"]).to_numpy("datetime64[D]").astype(np.int64)
        columns = [
            one[c].to_numpy() for c in ("open", "high", "low", "close", "volume", "adj_close")
        ]
        delivery = Bars(day, *columns)
        stored = ingest(delivery)
        dividend = replace(delivery, index=np.round(delivery.index * 0.995, 6))
        merged = merge_delivery(stored, dividend, TOLERANCE)
        assert len(merged.bars.ts) == 0
        assert merged.n_unchanged == len(day)
        split = {
            n: np.round(getattr(delivery, n) / 1.5, 6)
            for n in ("open", "high", "low", "close", "index")
        }
        rebased = replace(delivery, **split, volume=np.round(delivery.volume * 1.5))
        merged = merge_delivery(stored, rebased, TOLERANCE)
        assert len(merged.bars.ts) == 0
        assert merged.n_rebased == len(day)
        early = select(delivery, np.arange(len(day)) < len(day) - 50)
        later = merge_delivery(ingest(early), dividend, TOLERANCE)
        assert later.bars.ts.tolist() == day[-50:].tolist()
        np.testing.assert_allclose(later.bars.index, stored.index[-50:], rtol=1e-5)
