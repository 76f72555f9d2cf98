"""The market that knows the truth: what is computed from its deliveries is held against it."""

from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest

from quant_pipeline.market.canaries import RESTATED_BY, Canaries, make_canaries, planted_ic
from quant_pipeline.market.validate import validate_rows


@pytest.fixture(scope="module")
def truth() -> Canaries:
    return make_canaries()


def log_index(delivery: pd.DataFrame, column: str = "adj_close") -> pd.DataFrame:
    return np.log(delivery.pivot(index="ts", columns="symbol", values=column))


def test_the_same_seed_gives_the_same_market_and_another_one_another(truth):
    again, other = make_canaries(), make_canaries(seed=1)
    pd.testing.assert_frame_equal(truth.second, again.second)
    assert not truth.first.equals(other.first)


@pytest.mark.parametrize("delivery", ["first", "second"])
def test_every_delivered_row_is_a_valid_price(truth, delivery):
    rows = getattr(truth, delivery)
    days = rows["ts"].dt.date
    found = validate_rows(rows, today=days.max(), first_date=days.min())
    assert found.n_valid == len(rows)


def test_adj_close_gives_the_true_returns_with_splits_and_dividends(truth):
    found = log_index(truth.first).reindex(columns=truth.symbols)
    n = len(found)
    true = pd.DataFrame(np.cumsum(truth.returns, axis=0)[:n], found.index, truth.symbols)
    shifts = (found - true).to_numpy()
    for j in range(len(truth.symbols)):
        mine = shifts[np.isfinite(shifts[:, j]), j]
        np.testing.assert_allclose(mine, mine[0], atol=1e-9)
    assert {e.kind for e in truth.events} == {"split", "dividend", "listing", "delisting"}


def test_the_second_delivery_rescales_the_past_and_corrects_what_it_says(truth):
    a, b = (d.set_index(["symbol", "ts"]) for d in (truth.first, truth.second))
    gone = a.index.difference(b.index)
    assert sorted((s, t.date()) for s, t in gone) == sorted(truth.omitted)
    both = a.index.intersection(b.index)
    ratio = b.loc[both, "close"] / a.loc[both, "close"]
    wrong = ratio[ratio != 1.0]
    assert sorted((s, t.date()) for s, t in wrong.index) == sorted(truth.restated)
    np.testing.assert_allclose(wrong, RESTATED_BY)
    adjusted = (b.loc[both, "adj_close"] / a.loc[both, "adj_close"])[ratio == 1.0]
    by_symbol = adjusted.groupby("symbol")
    assert (by_symbol.max() - by_symbol.min()).max() < 1e-12
    assert (by_symbol.mean() < 0.99).sum() > 10


def test_symbols_list_and_end_when_the_truth_says_so(truth):
    span = truth.second.groupby("symbol")["ts"].agg(["min", "max"])
    for event in truth.events:
        if event.kind == "listing":
            assert span.loc[event.symbol, "min"].date() == event.ts
        if event.kind == "delisting":
            assert span.loc[event.symbol, "max"].date() == event.ts
    holes = ~truth.has_bar
    assert 0.005 < holes[100:200].mean() < 0.08


@pytest.mark.parametrize(("horizon", "entry_lag"), [(1, 1), (5, 1), (5, 0), (3, 2)])
@pytest.mark.parametrize("signal", [0.0, 0.3, 0.6])
def test_the_signal_has_the_correlation_that_is_said(signal, horizon, entry_lag):
    big = make_canaries(300, 500, signal=signal, seed=7)
    index = np.cumsum(big.returns, axis=0)
    end = entry_lag + horizon
    future = index[end:] - index[entry_lag : len(index) - horizon]
    found = np.corrcoef(-big.shocks[: len(future)].ravel(), future.ravel())[0, 1]
    assert found == pytest.approx(planted_ic(signal, horizon, entry_lag), abs=0.01)
    assert big.ic(horizon, entry_lag) == planted_ic(signal, horizon, entry_lag)


def test_members_come_and_leave_half_way(truth):
    half = truth.sessions[len(truth.sessions) // 2].item()
    assert isinstance(half, date)
    members = truth.members.set_index("symbol")
    assert (members["first"].dt.date == half).sum() == len(truth.symbols) // 5
    left = members["last"].dropna().dt.date
    assert set(left) == {half - timedelta(days=1)}
