"""Overlapping tranches: rules of money, small answers by hand, a slow oracle of held weights."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quant_pipeline.ml.metrics import newey_west_se
from quant_pipeline.ml.portfolio import Portfolio, top_k_portfolio

pytestmark = pytest.mark.filterwarnings("error")

DAY = np.datetime64("2024-01-02")
SEEDS = st.integers(0, 2**32 - 1)
COLUMNS = ("gross", "net", "turnover", "traded", "n_names", "n_unpriced", "tied", "capital")


def panel(seed: int, n_sessions: int = 14, n_names: int = 8, digits: int = 9):
    """ts, symbol, score, fwd_return of a panel with holes and missing values, shuffled."""
    rng = np.random.default_rng(seed)
    n = n_sessions * n_names
    rows = rng.permutation(np.flatnonzero(rng.random(n) < 0.85))
    score = np.round(rng.standard_normal(n), digits)
    score[rng.random(n) < 0.05] = np.nan
    fwd_return = 0.05 * rng.standard_normal(n)
    fwd_return[rng.random(n) < 0.05] = np.nan
    symbol = np.array([f"S{i % n_names}" for i in range(n)], dtype=object)
    columns = (DAY + 2 * (np.arange(n) // n_names), symbol, score, fwd_return)
    found = tuple(column[rows] for column in columns)
    for values in found:
        values.flags.writeable = False
    return found


def grid(scores: list[list[float]], returns: list[list[float]]):
    """Columns from one list a session, one number a symbol."""
    score, fwd_return = np.array(scores, dtype=float), np.array(returns, dtype=float)
    n_sessions, n_names = score.shape
    names = np.array([chr(65 + i) for i in range(n_names)], dtype=object)
    ts = np.repeat(DAY + np.arange(n_sessions), n_names)
    return ts, np.tile(names, n_sessions), score.ravel(), fwd_return.ravel()


def held_by_hand(columns, k: int, horizon: int, cost_bps: float, min_names: int) -> pd.DataFrame:
    """Tranche by tranche with a dictionary of weights; capital offset by offset."""
    ts, symbol, score, fwd_return = columns
    rows = pd.DataFrame({"ts": ts, "symbol": symbol, "score": score, "ret": fwd_return})
    purses = [{"weights": {}, "capital": 1.0} for _ in range(horizon)]
    found = []
    for i, day in enumerate(sorted(rows.ts.unique())):
        purse = purses[i % horizon]
        today = rows[(rows.ts == day) & rows.score.notna()].sort_values("score", ascending=False)
        best = today.head(k) if len(today) >= min_names else today.head(0)
        weights = dict.fromkeys(best.symbol, 1 / len(best)) if len(best) else {}
        names = set(weights) | set(purse["weights"])
        moves = [weights.get(n, 0.0) - purse["weights"].get(n, 0.0) for n in names]
        traded = sum(abs(move) for move in moves) if weights else math.nan
        bought = sum(max(move, 0.0) for move in moves)
        gross = best.ret.mean()
        net = gross - cost_bps / 1e4 * traded
        purse["capital"] *= 1 + (0.0 if math.isnan(net) else net)
        found.append(
            {
                "gross": gross,
                "net": net,
                "turnover": bought if weights and purse["weights"] else math.nan,
                "traded": traded,
                "n_names": len(best) or math.nan,
                "n_unpriced": best.ret.isna().sum() if len(best) else math.nan,
                "tied": 0.0 if len(best) else math.nan,
                "capital": np.mean([p["capital"] for p in purses]),
            }
        )
        purse["weights"] = weights
    return pd.DataFrame(found)


@settings(deadline=None)
@given(
    seed=SEEDS,
    k=st.integers(1, 9),
    horizon=st.integers(1, 5),
    cost_bps=st.sampled_from([0.0, 10.0, 250.0]),
    min_names=st.sampled_from([1, 5, 7]),
)
def test_tranches_agree_with_weights_held_in_a_loop(seed, k, horizon, cost_bps, min_names):
    columns = panel(seed)
    found = top_k_portfolio(*columns, k, horizon, cost_bps, min_names)
    expected = held_by_hand(columns, k, horizon, cost_bps, min_names)
    assert found.ts.tolist() == np.unique(columns[0]).tolist()
    for name in COLUMNS:
        np.testing.assert_allclose(getattr(found, name), expected[name], atol=1e-12, err_msg=name)


@settings(deadline=None)
@given(seed=SEEDS, horizon=st.integers(1, 4), n_sessions=st.integers(1, 40))
def test_the_summary_agrees_with_pandas(seed, horizon, n_sessions):
    found = top_k_portfolio(*panel(seed, n_sessions), 3, horizon, 20, 4)
    net, summary = pd.Series(found.net), found.summary
    offsets = [net[i::horizon].dropna() for i in range(horizon)]
    ratios = [part.mean() / part.std() for part in offsets if len(part) > 1]
    sharpe = np.mean(ratios) * math.sqrt(252 / horizon) if ratios else math.nan
    curve = pd.concat([pd.Series([1.0]), pd.Series(found.capital)])
    fall = (1 - curve / curve.cummax()).max() if net.notna().any() else math.nan
    expected = {
        "n_sessions": len(net),
        "n_tranches": net.notna().sum(),
        "is_short": int(net.notna().sum() < 10 * horizon),
        "gross": pd.Series(found.gross).mean(),
        "gross_se": newey_west_se(found.gross, 2 * horizon),
        "net": net.mean(),
        "net_se": newey_west_se(found.net, 2 * horizon),
        "net_sharpe": sharpe,
        "turnover": pd.Series(found.turnover).mean(),
        "n_names": pd.Series(found.n_names).mean(),
        "worst_drawdown": fall,
    }
    assert summary == pytest.approx(expected, nan_ok=True)
    assert {type(value) for value in summary.values()} <= {int, float}


@settings(deadline=None)
@given(seed=SEEDS, digits=st.sampled_from([0, 1, 9]))
def test_row_order_does_not_matter_even_with_ties(seed, digits):
    columns = panel(seed, digits=digits)
    order = np.random.default_rng(seed).permutation(len(columns[0]))
    one = top_k_portfolio(*columns, 3, 2, 10, 4)
    other = top_k_portfolio(*(column[order] for column in columns), 3, 2, 10, 4)
    for name in COLUMNS:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-12)


@settings(deadline=None)
@given(seed=SEEDS)
def test_increasing_transforms_and_without_ties_names_do_not_matter(seed):
    ts, symbol, score, fwd_return = panel(seed)
    one = top_k_portfolio(ts, symbol, score, fwd_return, 3, 2, 10, 4)
    renamed = np.array([f"{name[::-1]}.X" for name in symbol], dtype=object)
    other = top_k_portfolio(ts, renamed, np.exp(score) - 9, fwd_return, 3, 2, 10, 4)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@settings(deadline=None)
@given(seed=SEEDS, scale=st.sampled_from([-0.5, 0.1, 2.0]))
def test_gross_and_net_scale_with_returns_and_costs(seed, scale):
    ts, symbol, score, fwd_return = panel(seed)
    one = top_k_portfolio(ts, symbol, score, fwd_return, 3, 2, 10, 4)
    other = top_k_portfolio(ts, symbol, score, scale * fwd_return, 3, 2, 10 * abs(scale), 4)
    np.testing.assert_allclose(other.gross, scale * one.gross, atol=1e-15)
    np.testing.assert_allclose(other.gross - other.net, abs(scale) * (one.gross - one.net))


@settings(deadline=None)
@given(seed=SEEDS, cost_bps=st.sampled_from([0.0, 1.0, 50.0]))
def test_costs_only_take_and_take_in_proportion(seed, cost_bps):
    free, plain, dear = (
        top_k_portfolio(*panel(seed), 3, 2, cost, 4) for cost in (0, cost_bps, 2 * cost_bps)
    )
    np.testing.assert_array_equal(free.net, free.gross)
    np.testing.assert_array_equal(dear.gross, plain.gross)
    np.testing.assert_allclose(free.net - dear.net, 2 * (free.net - plain.net), atol=1e-12)
    assert (free.net - plain.net)[np.isfinite(free.net)].min() >= 0


def test_names_that_stay_cost_nothing_and_first_tranches_buy_everything():
    scores = [[3, 2, 1, 0]] * 6
    found = top_k_portfolio(*grid(scores, [[0.01, 0.03, 0.5, 0.5]] * 6), 2, 2, 100, 4)
    np.testing.assert_allclose(found.gross, [0.02] * 6)
    np.testing.assert_allclose(found.net, [0.01, 0.01, 0.02, 0.02, 0.02, 0.02])
    np.testing.assert_array_equal(found.turnover, [np.nan, np.nan, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.traded, [1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(found.capital[:3], [1.005, 1.01, (1.01 * 1.02 + 1.01) / 2])


def test_a_replaced_name_is_sold_and_another_one_bought():
    scores = [[3, 2, 1, 0], [3, 1, 2, 0], [0, 1, 2, 3]]
    found = top_k_portfolio(*grid(scores, [[0.0] * 4] * 3), 2, 1, 100, 4)
    np.testing.assert_allclose(found.turnover, [np.nan, 0.5, 0.5])
    np.testing.assert_allclose(found.net, [-0.01, -0.01, -0.01])


def test_a_shorter_list_buys_only_what_its_larger_weights_need():
    scores = [[3, 2, 1], [3, 2, math.nan]]
    found = top_k_portfolio(*grid(scores, [[0.0] * 3] * 2), 3, 1, 100, 2)
    np.testing.assert_array_equal(found.n_names, [3, 2])
    np.testing.assert_allclose(found.turnover, [np.nan, 1 / 3])
    np.testing.assert_allclose(found.traded, [1, 2 / 3])


def test_a_session_with_few_names_forms_no_tranche_and_the_next_buys_everything():
    scores = [[3, 2, 1], [3, math.nan, math.nan], [3, 2, 1], [3, 2, 1]]
    found = top_k_portfolio(*grid(scores, [[0.1] * 3] * 4), 2, 1, 0, 3)
    np.testing.assert_array_equal(found.n_names, [2, np.nan, 2, 2])
    np.testing.assert_array_equal(found.traded, [1, np.nan, 1, 0])
    np.testing.assert_array_equal(found.turnover, [np.nan, np.nan, np.nan, 0])
    np.testing.assert_allclose(found.capital, [1.1, 1.1, 1.21, 1.331])


def test_names_are_chosen_without_knowing_who_will_have_a_return():
    found = top_k_portfolio(*grid([[3, 2, 1]], [[math.nan, 0.2, 0.7]]), 2, 1, 0, 2)
    assert found.gross == pytest.approx([0.2])
    assert (found.n_names.tolist(), found.n_unpriced.tolist()) == ([2.0], [1.0])


def test_the_worst_drawdown_counts_from_the_capital_put_in():
    down_up_down = [[-0.5], [1.0], [-0.2], [0.1]]
    found = top_k_portfolio(*grid([[1]] * 4, down_up_down), 1, 1, 0, 1)
    np.testing.assert_allclose(found.capital, [0.5, 1.0, 0.8, 0.88])
    assert found.summary["worst_drawdown"] == pytest.approx(0.5)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS)
def test_the_sharpe_ratio_of_one_session_tranches_is_the_plain_one(seed):
    found = top_k_portfolio(*panel(seed, 30), 3, 1, 10, 4)
    net = found.net[np.isfinite(found.net)]
    expected = math.sqrt(252) * net.mean() / stats.tstd(net)
    assert found.summary["net_sharpe"] == pytest.approx(expected)


def test_equal_scores_say_how_much_went_by_hash():
    found = top_k_portfolio(*grid([[5, 1, 1, 1]], [[0.0] * 4]), 2, 1, 0, 2)
    assert found.tied.tolist() == [0.5]


def test_a_history_without_scores_is_nan_and_one_without_rows_is_empty():
    found = top_k_portfolio(*grid([[math.nan] * 3] * 2, [[0.1] * 3] * 2), 2, 1, 10)
    for name in set(COLUMNS) - {"capital"}:
        assert np.isnan(getattr(found, name)).all()
    undefined = {name for name, value in found.summary.items() if math.isnan(value)}
    assert undefined == set(found.summary) - {"n_sessions", "n_tranches", "is_short"}
    none = top_k_portfolio(*(column[:0] for column in panel(1)), 2, 3, 10)
    assert all(len(getattr(none, name)) == 0 for name in COLUMNS)


def test_a_portfolio_cannot_be_changed_and_impossible_ones_are_refused():
    columns = panel(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        top_k_portfolio(*columns, 2, 1, 0, 2).gross = np.zeros(1)  # type: ignore[misc]
    for k, horizon, cost_bps in ((0, 1, 0.0), (1, 0, 0.0), (1, 1, -1.0)):
        with pytest.raises(ValueError, match=r"k is 0|horizon is (0|1 and cost_bps -1)"):
            top_k_portfolio(*columns, k, horizon, cost_bps)
    assert {field.name for field in dataclasses.fields(Portfolio)} == {"ts", "summary", *COLUMNS}
