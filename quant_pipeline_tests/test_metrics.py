"""Metrics: known answers, independent oracles, and NaN wherever a number would be a lie."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quant_pipeline.ml.metrics import (
    calibration_bins,
    classification_metrics,
    evaluate,
    information_coefficient,
    newey_west_se,
    paired_difference,
    permute_across_symbols,
    regression_metrics,
    session_outcomes,
    top_minus_bottom,
)
from quant_pipeline.settings import MetricSettings, Task

pytestmark = pytest.mark.filterwarnings("error")

DAY = np.datetime64("2024-01-02")
UP = Task(task_id="up_5d", kind="classification", horizon=5)
RETURN = Task(task_id="ret_5d", kind="regression", horizon=5, normalize="rank")
RANK = Task(task_id="rank_5d", kind="ranking", horizon=5)
SEEDS = st.integers(0, 2**32 - 1)


def one_day(*values: float) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(DAY, len(values)), np.array(values, dtype=np.float64)


def history(seed: int, n_sessions: int = 12, n_names: int = 30, ties: bool = True):
    """Rows of a few sessions of unequal length, some with missing values, in random order."""
    rng = np.random.default_rng(seed)
    session = np.repeat(np.arange(n_sessions), rng.integers(1, n_names, size=n_sessions))
    score, outcome = rng.standard_normal((2, len(session)))
    if ties:
        score = np.round(score, 1)
    outcome[rng.random(len(session)) < 0.05] = np.nan
    order = rng.permutation(len(session))
    return (DAY + session * 2)[order], score[order], outcome[order]


@pytest.mark.parametrize(
    ("score", "outcome", "rank", "expected"),
    [
        ([1, 2, 3, 4], [4, 3, 2, 1], False, -1.0),
        ([1, 2, 2, 3], [1, 3, 2, 4], True, 0.948683),
        ([1, 2, 3, 4], [1, 2, 3, 10], False, 0.885438),
    ],
)
def test_information_coefficient_has_the_known_answers(score, outcome, rank, expected):
    ts, score = one_day(*score)
    sessions, ic = information_coefficient(ts, score, np.array(outcome), rank, min_names=2)
    assert sessions.tolist() == [DAY.item()]
    assert ic == pytest.approx([expected], abs=1e-6)


@pytest.mark.parametrize("rank", [False, True])
@settings(deadline=None)
@given(seed=SEEDS, ties=st.booleans())
def test_information_coefficient_agrees_with_scipy_on_every_session(rank, seed, ties):
    ts, score, outcome = history(seed, ties=ties)
    sessions, ic = information_coefficient(ts, score, outcome, rank, min_names=5)
    correlation = stats.spearmanr if rank else stats.pearsonr
    assert sessions.tolist() == np.unique(ts).tolist()
    for day, value in zip(sessions, ic, strict=True):
        rows = (ts == day) & np.isfinite(outcome)
        if rows.sum() < 5:
            assert math.isnan(value)
        elif np.ptp(score[rows]) > 0 and np.ptp(outcome[rows]) > 0:
            assert value == pytest.approx(correlation(score[rows], outcome[rows])[0], abs=1e-9)


@pytest.mark.parametrize("rank", [False, True])
@pytest.mark.parametrize("scale", [1e-200, 1e-9, 1.0, 1e9, 1e200])
def test_information_coefficient_does_not_depend_on_scale(rank, scale):
    ts, score, outcome = history(seed=3)
    _, plain = information_coefficient(ts, score, outcome, rank, min_names=2)
    _, scaled = information_coefficient(ts, score * scale, outcome * scale, rank, min_names=2)
    np.testing.assert_allclose(scaled, plain, atol=1e-9)


@pytest.mark.parametrize("rank", [False, True])
@pytest.mark.parametrize(
    ("score", "outcome", "min_names"),
    [
        ([0.1, 0.1, 0.1], [1.0, 2.0, 3.0], 2),
        ([0.1, 0.2, 0.3], [0.7, 0.7, 0.7], 2),
        ([0.1], [1.0], 0),
        ([0.1, 0.2], [1.0, math.nan], 2),
        ([math.nan, math.nan], [1.0, 2.0], 2),
        (list(range(19)), list(range(19)), 20),
    ],
)
def test_a_session_without_variation_or_with_few_names_is_nan(rank, score, outcome, min_names):
    ts, score = one_day(*score)
    outcome = np.array(outcome, dtype=np.float64)
    assert np.isnan(information_coefficient(ts, score, outcome, rank, min_names)[1]).all()
    if np.nanmin(np.append(outcome, 9.0)) != 0.7:
        assert np.isnan(top_minus_bottom(ts, score, outcome, min_names=min_names)[1]).all()


@settings(deadline=None)
@given(seed=SEEDS, quantile=st.sampled_from([0.1, 0.2, 0.5]))
def test_top_minus_bottom_agrees_with_sorting_each_session(seed, quantile):
    ts, score, outcome = history(seed, ties=False)
    sessions, spread = top_minus_bottom(ts, score, outcome, quantile, min_names=4)
    for day, value in zip(sessions, spread, strict=True):
        rows = pd.DataFrame({"x": score, "y": outcome})[ts == day].dropna().sort_values("x")
        if len(rows) < 4:
            assert math.isnan(value)
            continue
        n = max(1, int(len(rows) * quantile + 1e-9))
        assert value == pytest.approx(rows.y.tail(n).mean() - rows.y.head(n).mean(), abs=1e-12)


@settings(deadline=None)
@given(seed=SEEDS)
def test_top_minus_bottom_and_ic_do_not_depend_on_row_order(seed):
    ts, score, outcome = history(seed)
    order = np.random.default_rng(seed).permutation(len(ts))
    moved = (ts[order], score[order], outcome[order])
    np.testing.assert_array_equal(
        top_minus_bottom(ts, score, outcome, min_names=2)[1],
        top_minus_bottom(*moved, min_names=2)[1],
    )
    for rank in (False, True):
        np.testing.assert_allclose(
            information_coefficient(ts, score, outcome, rank, min_names=2)[1],
            information_coefficient(*moved, rank, min_names=2)[1],
            atol=1e-12,
        )


def test_tied_names_count_with_their_mean_outcome():
    ts, score = one_day(0.1, 0.5, 0.5, 0.5, 0.9)
    outcome = np.array([-1.0, 3.0, 0.0, 0.0, 2.0])
    _, spread = top_minus_bottom(ts, score, outcome, quantile=0.4, min_names=2)
    assert spread == pytest.approx([(2.0 + 1.0) / 2 - (-1.0 + 1.0) / 2])


@pytest.mark.parametrize("quantile", [0.0, 0.51, -0.2])
def test_a_quantile_that_cannot_be_cut_is_refused(quantile):
    with pytest.raises(ValueError, match="quantile"):
        top_minus_bottom(*one_day(1, 2), np.array([1.0, 2.0]), quantile)


def test_classification_metrics_have_the_known_answers():
    auc = classification_metrics(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    brier = classification_metrics(np.array([0, 1, 1, 0]), np.array([0.1, 0.9, 0.8, 0.3]))
    loss = classification_metrics(np.array([1, 0, 0, 1]), np.array([0.9, 0.1, 0.2, 0.65]))
    assert auc["auc"] == pytest.approx(0.75)
    assert auc["average_precision"] == pytest.approx(0.8333, abs=1e-4)
    assert brier["brier"] == pytest.approx(0.0375)
    assert loss["log_loss"] == pytest.approx(0.216162, abs=1e-6)
    assert loss["accuracy"] == loss["precision"] == loss["recall"] == 1.0


@settings(deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=30))
def test_always_saying_the_base_rate_scores_exactly_the_base_metrics(labels):
    label = np.array(labels, dtype=np.float64)
    metrics = classification_metrics(label, np.full(len(label), label.mean()))
    assert metrics["base_rate"] == pytest.approx(label.mean())
    assert metrics["accuracy_base"] == pytest.approx(max(label.mean(), 1 - label.mean()))
    assert metrics["log_loss"] == pytest.approx(metrics["log_loss_base"], abs=1e-9)
    assert metrics["brier"] == pytest.approx(metrics["brier_base"], abs=1e-12)
    assert math.isnan(metrics["auc"]) or metrics["auc"] == 0.5


def test_undefined_classification_metrics_are_nan_never_zero():
    ones = classification_metrics(np.ones(3), np.full(3, 0.2))
    assert math.isnan(ones["auc"])
    assert math.isnan(ones["average_precision"])
    assert math.isnan(classification_metrics(np.zeros(3), np.full(3, 0.9))["average_precision"])
    assert math.isnan(ones["precision"])
    assert math.isnan(classification_metrics(np.zeros(3), np.full(3, 0.9))["recall"])
    assert all(math.isnan(v) for v in classification_metrics(np.empty(0), np.empty(0)).values())


@settings(deadline=None)
@given(seed=SEEDS)
def test_metrics_of_order_do_not_change_when_the_score_is_transformed(seed):
    rng = np.random.default_rng(seed)
    label, score = rng.integers(0, 2, 50), np.round(rng.random(50), 1)
    plain, moved = (classification_metrics(label, x) for x in (score, np.exp(9 * score)))
    for name in ("auc", "average_precision"):
        assert plain[name] == pytest.approx(moved[name], nan_ok=True)


def test_a_score_that_is_no_probability_has_an_auc_and_no_loss():
    metrics = classification_metrics(np.array([0, 0, 1, 1]), np.array([-3.0, 4.0, 3.5, 8.0]))
    defined = {name for name, value in metrics.items() if not math.isnan(value)}
    assert defined == {
        "auc",
        "average_precision",
        "base_rate",
        "accuracy_base",
        "log_loss_base",
        "brier_base",
    }
    assert metrics["auc"] == 0.75


def test_regression_metrics_measure_against_the_mean():
    target = np.array([1.0, 2.0, 3.0, 6.0])
    mean = regression_metrics(target, np.full(4, 3.0))
    assert mean == {"mse": 3.5, "mse_base": 3.5, "r2": 0.0}
    assert regression_metrics(target, target)["r2"] == 1.0
    assert math.isnan(regression_metrics(np.ones(3), np.zeros(3))["r2"])
    assert all(math.isnan(v) for v in regression_metrics(np.empty(0), np.empty(0)).values())


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.7, 0.95, 1.0])), st.integers(1, 10), SEEDS)
def test_calibration_bins_hold_every_row_once_with_its_own_share(scores, n_bins, seed):
    score = np.array(scores)
    label = np.random.default_rng(seed).integers(0, 2, len(score)).astype(float)
    bins = calibration_bins(label, score, n_bins)
    assert sum(b["n"] for b in bins) == len(score)
    assert [b["low"] for b in bins] == sorted({b["low"] for b in bins})
    for b in bins:
        rows = (score >= b["low"]) & ((score < b["high"]) | (b["high"] == 1) & (score == 1))
        assert b["high"] - b["low"] == pytest.approx(1 / n_bins)
        assert rows.sum() == b["n"] > 0
        assert b["mean_score"] == pytest.approx(score[rows].mean())
        assert b["share_of_ones"] == pytest.approx(label[rows].mean())


def test_what_is_no_probability_has_no_calibration():
    with pytest.raises(ValueError, match=r"scores reach from 0\.2 to 1\.5"):
        calibration_bins(np.array([1.0, 0.0, 1.0]), np.array([0.2, 1.5, np.nan]))


SERIES = st.dictionaries(st.integers(0, 20), st.sampled_from([-1.0, 0.0, 0.5, 2.0, math.nan]))


@settings(deadline=None)
@given(SERIES, SERIES, st.integers(0, 4), st.randoms(use_true_random=False))
def test_paired_difference_agrees_with_pandas_on_the_common_sessions(a, b, lag, random):
    series = [list(a.items()), list(b.items())]
    for pairs in series:
        random.shuffle(pairs)
    sides = [(DAY + np.array([d for d, _ in p], int), np.array([v for _, v in p])) for p in series]
    found = paired_difference(*sides[0], *sides[1], lag)
    both = (pd.Series(a, dtype=float) - pd.Series(b, dtype=float)).dropna().sort_index()
    assert found["n"] == len(both)
    assert found["mean"] == pytest.approx(both.mean(), nan_ok=True)
    assert found["se"] == pytest.approx(newey_west_se(both.to_numpy(), lag), nan_ok=True)
    mirrored = paired_difference(*sides[1], *sides[0], lag)
    assert mirrored["t"] == pytest.approx(-found["t"], nan_ok=True)
    if found["se"] > 0:
        assert found["t"] == pytest.approx(found["mean"] / found["se"])
    else:
        assert math.isnan(found["t"])


def test_a_pair_with_a_session_twice_is_refused():
    twice = np.array([DAY, DAY])
    with pytest.raises(ValueError, match="2 values, but 1 sessions"):
        paired_difference(twice, np.zeros(2), twice, np.zeros(2), 1)


@settings(deadline=None)
@given(seed=SEEDS)
def test_session_outcomes_agree_with_a_loop_over_sessions(seed):
    ts, score, fwd_return = history(seed, ties=False)
    label = np.where(np.isnan(fwd_return), np.nan, fwd_return > 0)
    up = session_outcomes(ts, score, label, fwd_return, "classification", min_names=3)
    level = session_outcomes(ts, score, fwd_return, fwd_return, "regression", min_names=3)
    order = session_outcomes(ts, score, fwd_return, fwd_return, "ranking", min_names=3)
    assert all(np.array_equal(order[name], level[name], equal_nan=True) for name in level)
    for position, day in enumerate(up["ts"]):
        rows = pd.DataFrame({"x": score, "y": fwd_return})[ts == day]
        known = rows.dropna()
        assert up["n"][position] == level["n"][position] == len(rows)
        is_up = known.y > 0
        np.testing.assert_allclose(up["hit_rate"][position], ((known.x > 0.5) == is_up).mean())
        np.testing.assert_allclose(up["base_rate"][position], is_up.mean())
        side = (known - known.median()).apply(np.sign)
        side = side[(side != 0).all(axis=1)]
        np.testing.assert_allclose(level["hit_rate"][position], (side.x == side.y).mean())
    assert np.isnan(level["base_rate"]).all()
    for columns in (up, level):
        assert {len(column) for column in columns.values()} == {len(np.unique(ts))}


def test_session_outcomes_agree_with_the_metrics_over_a_history():
    ts, score, fwd_return = history(7, n_names=60)
    outcomes = session_outcomes(ts, score, fwd_return > 0, fwd_return, "classification")
    up = (fwd_return > 0).astype(float)
    symbol = np.arange(len(ts)).astype(object)
    metrics = evaluate(UP, ts, symbol, score, up, up, fwd_return, MetricSettings())
    assert np.nanmean(outcomes["ic"]) == pytest.approx(metrics["ic"])
    assert np.nanmean(outcomes["rank_ic"]) == pytest.approx(metrics["rank_ic"])
    assert np.nanmean(outcomes["top_minus_bottom"]) == pytest.approx(metrics["top_minus_bottom"])


@settings(deadline=None)
@given(
    st.sets(st.tuples(st.integers(0, 5), st.sampled_from("ABCDEF")), min_size=1),
    SEEDS,
    st.randoms(use_true_random=False),
)
def test_one_permutation_of_symbols_holds_for_the_whole_history(keys, seed, random):
    rows = sorted(keys)
    random.shuffle(rows)
    ts = DAY + np.array([day for day, _ in rows])
    symbol = np.array([name for _, name in rows], dtype=object)
    values = np.arange(len(rows), dtype=np.float64)
    permuted = permute_across_symbols(symbol, ts, values, seed)
    partner: dict[str, str] = {}
    for row, value in enumerate(permuted):
        if np.isnan(value):
            continue
        source = int(value)
        assert ts[source] == ts[row]
        assert partner.setdefault(symbol[row], symbol[source]) == symbol[source]
        assert symbol[source] != symbol[row] or len(set(symbol)) == 1
    assert len(set(partner.values())) == len(partner)
    np.testing.assert_array_equal(permuted, permute_across_symbols(symbol, ts, values, seed))


def test_permuting_a_full_panel_loses_nothing_and_destroys_the_signal():
    names = np.tile(np.array([f"S{i:02d}" for i in range(40)], dtype=object), 50)
    ts = np.repeat(DAY + np.arange(50), 40)
    values = np.random.default_rng(2).standard_normal(2000)
    permuted = permute_across_symbols(names, ts, values, seed=4)
    for day in np.unique(ts):
        assert sorted(permuted[ts == day]) == sorted(values[ts == day])
    assert abs(np.mean(information_coefficient(ts, values, permuted)[1])) < 0.05
    assert (permuted != permute_across_symbols(names, ts, values, seed=5)).any()


def test_a_symbol_missing_on_a_session_leaves_nan():
    names = np.array(["A", "B", "A"], dtype=object)
    ts = DAY + np.array([0, 0, 1])
    permuted = permute_across_symbols(names, ts, np.array([1.0, 2.0, 3.0]), seed=0)
    np.testing.assert_array_equal(permuted, [2.0, 1.0, np.nan])


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_metrics_leave_their_inputs_unchanged(seed):
    ts, score, outcome = history(seed)
    symbol = np.array([f"S{i}" for i in range(len(ts))], dtype=object)
    label = (outcome > 0).astype(float)
    for values in (ts, score, outcome, symbol, label):
        values.flags.writeable = False
    for task in (UP, RETURN, RANK):
        evaluate(task, ts, symbol, score, label, label, outcome, MetricSettings())
        session_outcomes(ts, score, label, outcome, task.kind)
    permute_across_symbols(symbol, ts, outcome, seed)
