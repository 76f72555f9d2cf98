"""Groups of rows and series per session: independent oracles, whatever the order of rows."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quant_pipeline.ml.sessions import (
    average_ranks,
    earlier_rows,
    every_hth_mean,
    index_sessions,
    index_symbols,
    mean_of_defined,
    mean_over_std,
    newey_west_se,
    session_correlations,
    session_means,
    session_medians,
    session_quantiles,
    session_sums,
)

pytestmark = pytest.mark.filterwarnings("error")

DAY = np.datetime64("2024-01-02")
SMALL = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])
ROWS = st.lists(st.tuples(st.integers(0, 3), SMALL), max_size=40)
SERIES = st.lists(st.sampled_from([math.nan, -1.0, 0.0, 0.25, 2.0]), max_size=30)


def columns(rows) -> tuple[np.ndarray, np.ndarray]:
    session = np.array([row[0] for row in rows], dtype=np.int64)
    return session, np.array([row[1] for row in rows], dtype=np.float64)


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=30), st.booleans())
def test_sessions_are_indexed_alike_in_order_or_out_of_it(days, is_sorted):
    ts = DAY + np.array(sorted(days) if is_sorted else days, dtype=np.int64)
    sessions, session = index_sessions(ts)
    assert sessions.tolist() == sorted(set(ts.tolist()))
    np.testing.assert_array_equal(sessions[session], ts)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["A", "B", "é", "Z9"]), max_size=30), st.sampled_from(["O", "U2"]))
def test_symbols_are_indexed_in_their_own_order(symbols, dtype):
    symbol = np.array(symbols, dtype=dtype)
    names, code = index_symbols(symbol)
    assert names.tolist() == sorted(set(symbols))
    assert names[code].tolist() == symbols


@settings(deadline=None)
@given(ROWS)
def test_average_ranks_agree_with_scipy_within_every_session(rows):
    session, values = columns(rows)
    ranks = average_ranks(session, values)
    for one in set(session.tolist()):
        expected = stats.rankdata(values[session == one], method="average")
        np.testing.assert_array_equal(ranks[session == one], expected)


def test_ranks_do_not_depend_on_how_many_sessions_there_are():
    values = np.random.default_rng(1).integers(0, 9, 70_000).astype(float)
    few, many = np.zeros(70_000, np.int64), np.full(70_000, 70_000)
    np.testing.assert_array_equal(average_ranks(few, values), average_ranks(many, values))


@settings(deadline=None)
@given(ROWS, st.integers(1, 7))
def test_quantiles_are_monotone_shared_by_equals_and_symmetric(rows, n_quantiles):
    session, values = columns(rows)
    quantiles = session_quantiles(session, values, n_quantiles)
    assert np.isin(quantiles, np.arange(n_quantiles)).all()
    np.testing.assert_array_equal(
        quantiles, session_quantiles(session, np.exp(values), n_quantiles)
    )
    for one in set(session.tolist()):
        x, q = values[session == one], quantiles[session == one]
        n = len(x)
        for a, b in zip(x, q, strict=True):
            middle = (sum(other < a for other in x) + sum(other <= a for other in x)) / (2 * n)
            assert b <= middle * n_quantiles + 1e-9 <= b + 1 + 1e-6


@pytest.mark.parametrize(
    ("n", "n_quantiles", "sizes"),
    [(10, 5, [2] * 5), (7, 5, [1, 2, 1, 2, 1]), (3, 5, [1, 0, 1, 0, 1]), (4, 1, [4])],
)
def test_quantile_sizes_are_alike_from_both_ends(n, n_quantiles, sizes):
    quantiles = session_quantiles(np.zeros(n, np.int64), np.arange(n), n_quantiles)
    assert np.bincount(quantiles, minlength=n_quantiles).tolist() == sizes
    with pytest.raises(ValueError, match="n_quantiles is 0"):
        session_quantiles(np.zeros(n, np.int64), np.arange(n), 0)


@settings(deadline=None)
@given(ROWS, st.integers(0, 2**32 - 1))
def test_sums_means_and_medians_agree_with_pandas_and_are_nan_without_a_row(rows, seed):
    session, values = columns(rows)
    counted = np.random.default_rng(seed).random(len(values)) < 0.7
    groups = pd.Series(values[counted]).groupby(session[counted])
    for found, expected in (
        (session_sums, groups.sum()),
        (session_means, groups.mean()),
        (session_medians, groups.median()),
    ):
        wanted = expected.reindex(range(5)).to_numpy(dtype=float)
        np.testing.assert_allclose(found(session, 5, values, counted), wanted, atol=1e-12)


@settings(deadline=None)
@given(
    st.sets(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=20),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_the_earlier_row_is_that_of_the_same_symbol(keys, lag, random):
    rows = sorted(keys)
    random.shuffle(rows)
    session, code = (np.array([row[i] for row in rows], dtype=np.int64) for i in (0, 1))
    expected = [rows.index((s - lag, c)) if (s - lag, c) in keys else -1 for s, c in rows]
    assert earlier_rows(session, code, lag).tolist() == expected


def test_a_symbol_twice_on_a_session_is_refused():
    with pytest.raises(ValueError, match="1 rows repeat a symbol and session"):
        earlier_rows(np.array([0, 1, 1]), np.array([2, 2, 2]), 1)


def test_correlations_of_sessions_without_a_row_are_nan():
    found = session_correlations(np.empty(0, np.int64), 2, np.empty(0), np.empty(0), True, 2)
    np.testing.assert_array_equal(found, [np.nan, np.nan])


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=3, max_size=40), st.integers(0, 45))
def test_newey_west_agrees_with_the_sum_over_all_pairs(series, lag):
    values = np.array(series)
    deviation, n = values - values.mean(), len(values)
    pairs = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    weights = np.clip(1 - pairs / (lag + 1), 0, None)
    total = max(0.0, float((weights * np.outer(deviation, deviation)).sum()))
    assert newey_west_se(values, lag) == pytest.approx(math.sqrt(total) / n, abs=1e-7)


def test_newey_west_without_lags_is_the_plain_standard_error():
    values = np.array([0.05, 0.03, np.nan, -0.01, 0.04, 0.02])
    expected = np.nanstd(values) / math.sqrt(5)
    assert newey_west_se(values, 0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("series", [[], [0.1, 0.2], [0.1, 0.2, np.nan]])
def test_newey_west_needs_three_values(series):
    assert math.isnan(newey_west_se(np.array(series), 2))


def test_overlapping_labels_widen_the_newey_west_error():
    noise = np.random.default_rng(1).standard_normal(2000)
    overlapping = np.convolve(noise, np.ones(5) / 5, mode="valid")
    plain, honest = newey_west_se(overlapping, 0), newey_west_se(overlapping, 10)
    assert 1.6 < honest / plain < 2.4


def test_icir_has_the_known_answer_and_is_nan_without_variation():
    assert mean_over_std(np.array([0.05, 0.03, -0.01, 0.04, 0.02])) == pytest.approx(1.129368)
    for series in ([], [0.1], [0.1, 0.1, np.nan]):
        assert math.isnan(mean_over_std(np.array(series)))


@settings(deadline=None)
@given(SERIES, st.integers(1, 6))
def test_every_hth_mean_agrees_with_a_loop_over_offsets(series, h):
    means, errors = [], []
    for offset in range(h):
        part = pd.Series(series[offset::h], dtype=float).dropna()
        if len(part):
            means.append(part.mean())
        if len(part) > 1:
            errors.append(stats.sem(part))
    mean, error = every_hth_mean(np.array(series), h)
    assert mean == pytest.approx(np.mean(means) if means else math.nan, nan_ok=True)
    assert error == pytest.approx(np.mean(errors) if errors else math.nan, nan_ok=True)


@settings(deadline=None)
@given(SERIES)
def test_every_first_mean_is_the_plain_mean_and_standard_error(series):
    values = pd.Series(series, dtype=float).dropna()
    mean, error = every_hth_mean(np.array(series), 1)
    assert mean == pytest.approx(mean_of_defined(np.array(series)), nan_ok=True)
    expected = stats.sem(values) if len(values) > 1 else math.nan
    assert error == pytest.approx(expected, nan_ok=True)


def test_every_hth_mean_has_an_honest_error_for_overlapping_labels():
    noise = np.random.default_rng(4).standard_normal(20_000)
    overlapping = np.convolve(noise, np.ones(5) / 5, mode="valid")
    true = overlapping.std() * math.sqrt(5 / len(overlapping))
    assert every_hth_mean(overlapping, 5)[1] == pytest.approx(true, rel=0.05)
    with pytest.raises(ValueError, match="h is 0"):
        every_hth_mean(overlapping, 0)
