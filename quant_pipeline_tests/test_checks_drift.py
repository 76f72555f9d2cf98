"""The population stability index: known answers, an independent oracle, rules."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import rel_entr

from quant_pipeline.ml.drift import merge_bins, population_stability, stability_index

counts = arrays(np.float64, 6, elements=st.integers(0, 500).map(float)).filter(
    lambda c: c.sum() > 0
)


def test_the_index_of_three_bins_is_what_pencil_and_paper_give():
    """0.5, 0.3, 0.2 against 0.4, 0.3, 0.3: -0.1 ln 0.8 + 0 + 0.1 ln 1.5."""
    found = stability_index(np.array([50.0, 30.0, 20.0]), np.array([40.0, 30.0, 30.0]))
    assert found == pytest.approx(0.1 * np.log(1.25) + 0.1 * np.log(1.5), rel=1e-12)
    assert found == pytest.approx(0.062861, abs=1e-6)


@given(counts, counts)
def test_the_index_is_jeffreys_divergence(a, b):
    p, q = (np.where(c == 0, 0.5, c) / np.where(c == 0, 0.5, c).sum() for c in (a, b))
    oracle = rel_entr(p, q).sum() + rel_entr(q, p).sum()
    assert stability_index(a, b) == pytest.approx(oracle, rel=1e-9, abs=1e-12)
    assert stability_index(a, b) >= -1e-12
    assert stability_index(a, b) == pytest.approx(stability_index(b, a))
    assert stability_index(a, a) == 0


def test_a_sample_without_rows_has_no_index():
    assert np.isnan(stability_index(np.zeros(4), np.ones(4)))
    assert np.isnan(population_stability(np.array([]), np.arange(5.0)))


@settings(deadline=None)
@given(arrays(np.float64, 64, elements=st.integers(0, 90).map(float)), st.integers(2, 12))
def test_merged_bins_lose_no_row_and_are_about_even(fine, n_bins):
    merged = merge_bins(fine, fine, n_bins)
    assert merged.sum() == fine.sum()
    share = fine.sum() / n_bins
    assert merged.max(initial=0) <= share + 2 * fine.max(initial=0)


def test_a_fine_grid_tells_what_exact_quantiles_tell():
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=20_000), rng.normal(0.4, 1.2, size=6_000)
    edges = np.quantile(a, np.arange(1, 64) / 64)
    fine = [np.bincount(np.searchsorted(edges, v), minlength=64).astype(float) for v in (a, b)]
    coarse = stability_index(merge_bins(fine[0], fine[0]), merge_bins(fine[1], fine[0]))
    assert coarse == pytest.approx(population_stability(a, b), abs=0.02)


def test_samples_of_one_distribution_keep_to_the_chi_square():
    """(1/n + 1/m) times a chi-square of 9 degrees: its mean is 9, 99.9 % lie under 27.9."""
    rng = np.random.default_rng(11)
    n, m = 2_000, 500
    found = [
        population_stability(rng.normal(size=n), rng.normal(size=m)) / (1 / n + 1 / m)
        for _ in range(300)
    ]
    assert np.mean(found) == pytest.approx(9, abs=1)
    assert np.max(found) < 40


def test_ties_and_missing_values_change_nothing():
    values = np.array([0.0] * 70 + [1.0] * 20 + [2.0] * 10)
    with_gaps = np.concatenate([values, [np.nan] * 7])
    assert population_stability(values, with_gaps) == 0
    assert population_stability(values, values + 3) > 1
