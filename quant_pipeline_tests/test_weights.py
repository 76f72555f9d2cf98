"""Weights of training rows: known answers, a slow oracle, and nothing that row order decides."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.ml.weights import normalized, recency, uniqueness

pytestmark = pytest.mark.filterwarnings("error")

SEEDS = st.integers(0, 2**32 - 1)


def labels(seed: int, n: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Code, first and last session of labels of a few symbols, some far apart, some equal."""
    rng = np.random.default_rng(seed)
    code = rng.choice([-3, 0, 4, 10**12], size=n)
    first = rng.integers(-5, 12, size=n) + 100 * rng.integers(0, 2, size=n)
    found = code, first, first + rng.choice([0, 1, 4, 4, 4, 30], size=n)
    for values in found:
        values.flags.writeable = False
    return found


def uniqueness_by_hand(code, first, last) -> list[float]:
    rows = range(len(code))
    found = []
    for i in rows:
        shares = [
            1 / sum(code[j] == code[i] and first[j] <= session <= last[j] for j in rows)
            for session in range(first[i], last[i] + 1)
        ]
        found.append(sum(shares) / len(shares))
    return found


def test_uniqueness_of_lopez_de_prados_three_labels():
    found = uniqueness(np.zeros(3, int), np.array([0, 2, 4]), np.array([2, 3, 5]))
    np.testing.assert_allclose(found, [5 / 6, 3 / 4, 1], rtol=1e-15)


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.integers(1, 30))
def test_uniqueness_is_that_of_a_loop_over_labels_and_sessions(seed, n):
    rows = labels(seed, n)
    found = uniqueness(*rows)
    np.testing.assert_allclose(found, uniqueness_by_hand(*rows), rtol=1e-12)
    assert found.dtype == np.float64
    assert ((found > 0) & (found <= 1 + 1e-12)).all()


@settings(deadline=None)
@given(SEEDS)
def test_row_order_and_other_symbols_change_no_bit_of_a_weight(seed):
    code, first, last = labels(seed)
    found = uniqueness(code, first, last)
    order = np.random.default_rng(seed).permutation(len(code))
    np.testing.assert_array_equal(uniqueness(code[order], first[order], last[order]), found[order])
    for symbol in np.unique(code):
        mine = code == symbol
        np.testing.assert_array_equal(uniqueness(code[mine], first[mine], last[mine]), found[mine])


@given(SEEDS, st.integers(1, 9))
def test_labels_that_never_overlap_are_unique_and_copies_share(seed, n_copies):
    first = 5 * np.random.default_rng(seed).permutation(20)
    assert (uniqueness(np.zeros(20, int), first, first + 4) == 1).all()
    copies = np.repeat(first, n_copies)
    found = uniqueness(np.zeros(len(copies), int), copies, copies + 4)
    np.testing.assert_allclose(found, 1 / n_copies, rtol=1e-12)


def test_five_million_labels_take_seconds():
    n_symbols, n_sessions, span = 2000, 2500, 6
    first = np.repeat(np.arange(n_sessions), n_symbols)
    code = np.tile(np.arange(n_symbols), n_sessions)
    began = time.perf_counter()
    found = uniqueness(code, first, first + span - 1)
    assert time.perf_counter() - began < 20
    inner = (first >= span) & (first < n_sessions - span)
    np.testing.assert_allclose(found[inner], 1 / span, rtol=1e-10)


def test_a_label_that_ends_before_it_begins_is_refused():
    with pytest.raises(ValueError, match=r"1 labels .* first row 1: 5\.\.4"):
        uniqueness(np.zeros(2, int), np.array([0, 5]), np.array([2, 4]))


@given(st.lists(st.integers(0, 5000), min_size=1), st.integers(1, 500))
def test_recency_halves_with_every_half_life_before_the_newest_row(number, half_life):
    number = np.array(number)
    found = recency(number, half_life)
    for i, session in enumerate(number):
        assert found[i] == pytest.approx(0.5 ** ((max(number) - session) / half_life))
    assert found[number.argmax()] == 1
    np.testing.assert_allclose(recency(number + half_life, half_life), found)
    older = recency(np.append(number, number.max() + half_life), half_life)
    np.testing.assert_allclose(older[:-1], found / 2, atol=1e-300)  # under it digits go


@pytest.mark.parametrize("half_life", [0, -1, float("nan")])
def test_a_half_life_that_is_not_positive_is_refused(half_life):
    with pytest.raises(ValueError, match=f"half_life is {half_life}"):
        recency(np.arange(3), half_life)


@given(st.lists(st.floats(0, 1e300), min_size=1).filter(lambda weights: max(weights) > 1e-280))
def test_normalized_weights_have_a_mean_of_one_and_keep_their_proportions(weights):
    weights = np.array(weights)
    before = weights.copy()
    found = normalized(weights)
    assert found.mean() == pytest.approx(1)
    np.testing.assert_allclose(found * (weights / weights.max()).mean(), weights / weights.max())
    np.testing.assert_array_equal(weights, before)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [np.nan, 1.0], [np.inf]])
def test_weights_without_a_mean_are_refused(weights):
    with pytest.raises(ValueError, match=f"of {len(weights)} weights"):
        normalized(np.array(weights))


def test_no_rows_have_no_weights():
    none = np.empty(0, dtype=np.int64)
    for found in (uniqueness(none, none, none), recency(none, 3), normalized(none)):
        assert found.shape == (0,)
        assert found.dtype == np.float64
