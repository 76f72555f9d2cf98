"""Rules of the made-up market: the planted signal is there, and the same seed says the same."""

import numpy as np
import pandas as pd
import pytest

from quant_pipeline.market.synthetic import make_market
from quant_pipeline.market.validate import validate_rows


def returns(market: pd.DataFrame) -> pd.DataFrame:
    wide = market.pivot(index="ts", columns="symbol", values="adj_close")
    return np.log(wide).diff()


def signal_found(market: pd.DataFrame, lag: int) -> float:
    """Slope of the return on that of `lag` sessions before, over all symbols."""
    now = returns(market)
    before = now.shift(lag)
    both = now.notna() & before.notna()
    x, y = before.to_numpy()[both.to_numpy()], now.to_numpy()[both.to_numpy()]
    return float(np.cov(x, y)[0, 1] / np.var(x))


@pytest.mark.parametrize("signal", [0.0, 0.15, 0.4])
def test_the_planted_signal_is_found_at_its_lag_and_nowhere_else(signal: float) -> None:
    market = make_market(60, 700, signal=signal, seed=3)
    expected = -signal / (1 + signal**2)
    assert signal_found(market, 2) == pytest.approx(expected, abs=0.02)
    for lag in (1, 3, 4, 5):
        assert signal_found(market, lag) == pytest.approx(0.0, abs=0.02)


def test_the_same_seed_gives_the_same_market_and_another_one_another() -> None:
    pd.testing.assert_frame_equal(make_market(5, 200), make_market(5, 200))
    assert not make_market(5, 200).equals(make_market(5, 200, seed=1))


def test_a_longer_or_wider_market_begins_like_a_smaller_one() -> None:
    small, long = make_market(8, 300), make_market(8, 500)
    begun = long[long["ts"] <= small["ts"].max()].reset_index(drop=True)
    pd.testing.assert_frame_equal(begun, small)
    wide = make_market(12, 300)
    pd.testing.assert_frame_equal(wide[wide["symbol"] <= "S007"].reset_index(drop=True), small)


def test_every_row_is_a_valid_price() -> None:
    market = make_market(20, 600)
    days = market["ts"].dt.date
    found = validate_rows(market, today=days.max(), first_date=days.min())
    assert found.n_valid == len(market)


def test_symbols_list_late_stop_early_miss_bars_and_split_once() -> None:
    market = make_market(20, 700)
    sessions = np.sort(market["ts"].unique())
    assert len(sessions) == 700
    at = market.assign(at=np.searchsorted(sessions, market["ts"])).groupby("symbol")["at"]
    assert at.min()[at.min() > 5].index.tolist() == ["S003", "S013"]
    assert at.max()[at.max() < 690].index.tolist() == ["S007", "S017"]
    life = (at.max() - at.min() + 1).sum()
    assert 1 - len(market) / life == pytest.approx(0.01, abs=0.004)
    for _, one in market.groupby("symbol"):
        ratio = (one["close"] / one["adj_close"]).round(9)
        assert set(ratio) == {1.0, 2.0}
        assert ratio.is_monotonic_decreasing
