"""Deflated Sharpe ratio and probability of overfitting: known answers, slow oracles, rules."""

import math
import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quant_pipeline.ml.significance import (
    deflated_sharpe,
    expected_max_sharpe,
    probabilistic_sharpe,
    probability_of_overfitting,
    sharpe_moments,
)

pytestmark = pytest.mark.filterwarnings("error")

SEEDS = st.integers(0, 2**32 - 1)
MEASURES = ("pbo", "loss_share", "mean_degradation", "mean_logit")


def noise(seed: int, n_sessions: int = 160, n_trials: int = 10) -> np.ndarray:
    return 0.01 * np.random.default_rng(seed).standard_normal((n_sessions, n_trials))


def overfitting_by_hand(series: np.ndarray, n_blocks: int) -> dict[str, float]:
    """Slice by slice, with scipy's ranks; blocks as equal as possible."""
    series = np.array([row for row in series if np.isfinite(row).all()])
    edges = [len(series) * i // n_blocks for i in range(n_blocks + 1)]
    logits, losses, degradations = [], [], []
    for chosen in combinations(range(n_blocks), n_blocks // 2):
        halves = [
            np.concatenate([series[edges[b] : edges[b + 1]] for b in range(n_blocks)
                            if (b in chosen) == is_inside])
            for is_inside in (True, False)
        ]  # fmt: skip
        inside, outside = (half.mean(axis=0) / half.std(axis=0, ddof=1) for half in halves)
        best = int(np.argmax(inside))
        share = stats.rankdata(outside)[best] / (series.shape[1] + 1)
        logits.append(math.log(share / (1 - share)))
        losses.append(outside[best] < 0)
        degradations.append(inside[best] - outside[best])
    return {
        "pbo": np.mean([logit <= 0 for logit in logits]),
        "loss_share": np.mean(losses),
        "mean_degradation": np.mean(degradations),
        "mean_logit": np.mean(logits),
        "n_splits": len(logits),
    }


def test_the_deflated_sharpe_ratio_of_bailey_and_lopez_de_prado():
    sharpe, variance = 2.5 / math.sqrt(250), 0.5 / 250
    assert expected_max_sharpe(100, variance) == pytest.approx(0.1132, abs=5e-5)
    for n_trials, skew, kurtosis, expected in ((100, -3, 10, 0.9004), (46, -3, 10, 0.9505),
                                               (88, 0, 3, 0.9505)):  # fmt: skip
        benchmark = expected_max_sharpe(n_trials, variance)
        found = probabilistic_sharpe(sharpe, 1250, benchmark, skew, kurtosis)
        assert found == pytest.approx(expected, abs=5e-5)


@given(SEEDS, st.integers(3, 300), st.integers(1, 500), st.floats(0, 0.1))
def test_a_series_is_deflated_by_its_own_moments(seed, n, n_trials, variance):
    rng = np.random.default_rng(seed)
    series = rng.standard_t(4, size=n) + 0.1
    sharpe = series.mean() / series.std(ddof=1)
    skew, kurtosis = stats.skew(series), stats.kurtosis(series, fisher=False)
    assert sharpe_moments(series) == pytest.approx((sharpe, n, skew, kurtosis))
    benchmark = expected_max_sharpe(n_trials, variance)
    spread = math.sqrt((1 - skew * sharpe + (kurtosis - 1) / 4 * sharpe**2) / (n - 1))
    expected = stats.norm.cdf((sharpe - benchmark) / spread)
    with_holes = np.insert(series, [0, n // 2], [np.nan, np.inf])
    assert deflated_sharpe(series, n_trials, variance) == pytest.approx(expected)
    assert deflated_sharpe(with_holes, n_trials, variance) == pytest.approx(expected)


@pytest.mark.parametrize("series", [[], [0.1], [0.1, 0.2], [0.1] * 50, [np.nan] * 9 + [1, 2]])
def test_short_and_constant_series_have_no_sharpe_ratio(series):
    found = sharpe_moments(np.array(series, dtype=float))
    assert found.n == np.isfinite(series).sum()
    assert np.isnan([found.sharpe, found.skew, found.kurtosis]).all()
    assert math.isnan(deflated_sharpe(np.array(series), 10, 0.01))


def test_what_is_not_known_gives_no_probability():
    assert math.isnan(probabilistic_sharpe(0.1, 1))
    assert math.isnan(probabilistic_sharpe(math.nan, 100))
    assert math.isnan(probabilistic_sharpe(1.0, 100, skew=5.0))
    assert math.isnan(deflated_sharpe(np.arange(9.0), 5, math.nan))
    for n_trials, variance in ((0, 0.1), (5, -0.1)):
        with pytest.raises(ValueError, match=f"{n_trials} trials with a variance of {variance}"):
            expected_max_sharpe(n_trials, variance)


def test_more_trials_and_more_variance_deflate_more_and_more_sessions_less():
    best = [expected_max_sharpe(n, 0.01) for n in (1, 2, 5, 50, 5000)]
    assert best[0] == 0
    assert best == sorted(set(best))
    assert expected_max_sharpe(50, 0.04) == pytest.approx(2 * best[3])
    found = [probabilistic_sharpe(0.1, n, 0.05) for n in (10, 100, 1000)]
    assert found == sorted(found)
    assert probabilistic_sharpe(0.1, 100, 0.1) == pytest.approx(0.5)


def test_the_best_of_trials_without_skill_is_what_is_expected_of_it():
    best = np.random.default_rng(0).normal(0, 0.2, size=(4000, 30)).max(axis=1)
    assert best.mean() == pytest.approx(expected_max_sharpe(30, 0.04), rel=0.02)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.sampled_from([2, 4, 6]), st.integers(12, 60), st.integers(2, 6))
def test_overfitting_is_that_of_a_loop_that_slices_every_split(seed, n_blocks, n, n_trials):
    series = noise(seed, n, n_trials)
    holes = np.insert(series, [0, n // 2], np.nan, axis=0)
    holes.flags.writeable = False
    found = probability_of_overfitting(holes, n_blocks)
    for name, value in overfitting_by_hand(series, n_blocks).items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    assert found["n_splits"] == math.comb(n_blocks, n_blocks // 2)
    assert (found["n_blocks"], found["n_trials"]) == (n_blocks, n_trials)
    assert (found["n_sessions"], found["n_dropped"]) == (n, 2)


def test_the_best_of_pure_noise_is_below_the_median_about_every_second_time():
    found = [probability_of_overfitting(noise(seed), 8) for seed in range(60)]
    mean = np.mean([one["pbo"] for one in found])
    assert 0.4 < mean < 0.6
    assert np.mean([one["mean_degradation"] for one in found]) > 0


def test_one_trial_that_is_truly_better_is_hardly_ever_overfitted():
    series = noise(1, 800, 20)
    series[:, 7] += 0.003
    found = probability_of_overfitting(series)
    assert found["pbo"] < 0.02
    assert found["loss_share"] < 0.02
    assert found["mean_logit"] > 2


def test_trials_whose_gains_in_one_half_are_their_losses_in_the_other_are_overfitted():
    series = noise(2, 800, 20)
    series -= series.mean(axis=0)
    found = probability_of_overfitting(series)
    assert found["pbo"] > 0.95
    assert found["loss_share"] == 1
    assert found["mean_degradation"] > 0.1


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_order_and_scale_of_trials_change_nothing(seed):
    series = noise(seed, 80, 6)
    rng = np.random.default_rng(seed)
    found = probability_of_overfitting(series, 6)
    moved = series[:, rng.permutation(6)] * rng.uniform(0.01, 100, size=6)
    other = probability_of_overfitting(moved, 6)
    for name in MEASURES:
        assert other[name] == pytest.approx(found[name], abs=1e-9)


def test_equal_trials_share_the_middle_rank():
    series = np.repeat(noise(3, 80, 1), 5, axis=1)
    found = probability_of_overfitting(series, 8)
    assert found["mean_logit"] == 0
    assert found["pbo"] == 1


def test_trials_without_variation_are_never_the_best_nor_ranked():
    series = noise(4, 80, 6)
    expected = probability_of_overfitting(series, 8)
    constant = np.column_stack([np.full(80, 0.3), series, np.zeros(80)])
    found = probability_of_overfitting(constant, 8)
    for name in MEASURES:
        assert found[name] == pytest.approx(expected[name])
    half = np.column_stack([np.r_[np.full(40, 0.1), 0.1 + series[:40, 0]], series[:, :2] - 9])
    found = probability_of_overfitting(half, 2)
    assert found["n_splits"] == 1
    for alone in (constant[:, [0, 2]], np.full((80, 3), 0.1)):
        found = probability_of_overfitting(alone, 8)
        assert math.isnan(found["pbo"])
        assert found["n_splits"] == 0


@pytest.mark.parametrize("shape", [(0, 5), (31, 5), (80, 0), (80, 1)])
def test_too_few_sessions_or_trials_have_no_probability(shape):
    found = probability_of_overfitting(np.ones(shape) * np.arange(shape[1]), 16)
    assert all(math.isnan(found[name]) for name in MEASURES)
    assert (found["n_splits"], found["n_sessions"], found["n_trials"]) == (0, *shape)


@pytest.mark.parametrize("n_blocks", [0, 3, -2])
def test_blocks_that_cannot_be_halved_are_refused(n_blocks):
    with pytest.raises(ValueError, match=f"n_blocks is {n_blocks}"):
        probability_of_overfitting(noise(0), n_blocks)
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        probability_of_overfitting(np.zeros(5))


def test_a_hundred_trials_of_two_thousand_sessions_take_a_second_or_two():
    series = noise(0, 2000, 100)
    began = time.perf_counter()
    assert probability_of_overfitting(series)["n_splits"] == 12_870
    assert time.perf_counter() - began < 10
