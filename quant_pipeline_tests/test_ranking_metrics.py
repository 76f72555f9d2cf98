"""Ranking metrics: known answers, slow oracles in plain Python, ties that no row order decides."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import ndcg_score

from quant_pipeline.ml.metrics import information_coefficient, newey_west_se
from quant_pipeline.ml.ranking_metrics import (
    capacity,
    grade_returns,
    ic_decay,
    ndcg_at_k,
    precision_at_k,
    psi,
    psi_of_shares,
    quantile_returns,
    rank_autocorrelation,
    stable_hash,
    top_k_rows,
    turnover,
)

pytestmark = pytest.mark.filterwarnings("error")

DAY = np.datetime64("2024-01-02")
SEEDS = st.integers(0, 2**32 - 1)


def panel(seed: int, n_sessions: int = 8, n_names: int = 12, digits: int = 1) -> pd.DataFrame:
    """Rows of a panel with holes, missing values and, with few digits, ties, in random order."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(
        [(DAY + 3 * s, f"S{i:02d}") for s in range(n_sessions) for i in range(n_names)],
        columns=["ts", "symbol"],
    )
    for name in ("score", "ret", "value"):
        values = np.round(rng.standard_normal(len(rows)), digits)
        values[rng.random(len(rows)) < 0.05] = np.nan
        rows[name] = values
    return rows[rng.random(len(rows)) < 0.9].sample(frac=1, random_state=seed % 2**31)


def arrays(rows: pd.DataFrame, *names: str) -> list[np.ndarray]:
    found = [rows[name].to_numpy() for name in names]
    for values in found:
        values.flags.writeable = False
    return found


def by_session(rows: pd.DataFrame) -> list[pd.DataFrame]:
    return [rows[rows.ts == day] for day in sorted(rows.ts.unique())]


def top_of(day: pd.DataFrame, quantile: float) -> set[str]:
    known = day[day.score.notna()]
    n = len(known)
    n_top = max(1, int(n * quantile + 1e-9))
    middle = stats.rankdata(known.score) - 0.5
    return set(known.symbol[middle > n - n_top])


METRICS = {
    "precision": lambda r: precision_at_k(*arrays(r, "ts", "symbol", "score", "hit"), 4, 3)[1:],
    "ndcg": lambda r: ndcg_at_k(*arrays(r, "ts", "score", "grade"), 4, 3)[1:],
    "quantiles": lambda r: quantile_returns(*arrays(r, "ts", "score", "ret"), 3, 3)[1:],
    "turnover": lambda r: turnover(*arrays(r, "ts", "symbol", "score"), 0.3, 2)[1:],
    "autocorrelation": lambda r: rank_autocorrelation(*arrays(r, "ts", "symbol", "score"), 1, 3)[
        1:
    ],
    "capacity": lambda r: capacity(*arrays(r, "ts", "score", "value"), 0.3)[1:],
    "decay": lambda r: [
        np.array(list(row.values()))
        for row in ic_decay(*arrays(r, "ts", "symbol", "score", "ret"), [0, 1, 3], 2, 3)
    ],
}


def full(seed: int, digits: int = 1) -> pd.DataFrame:
    rows = panel(seed, digits=digits)
    rows["hit"] = (rows.ret > 0).astype(float).where(rows.ret.notna())
    return rows.assign(grade=rows.value.abs().round())


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@settings(deadline=None, max_examples=40)
@given(seed=SEEDS)
def test_row_order_does_not_matter_even_with_ties(metric, seed):
    rows = full(seed)
    moved = rows.sample(frac=1, random_state=7)
    for one, other in zip(metric(rows), metric(moved), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@settings(deadline=None, max_examples=40)
@given(seed=SEEDS)
def test_an_increasing_transform_of_the_score_does_not_matter(metric, seed):
    rows = full(seed)
    moved = rows.assign(score=np.exp(2 * rows.score) - 5)
    for one, other in zip(metric(rows), metric(moved), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@settings(deadline=None, max_examples=40)
@given(seed=SEEDS)
def test_names_of_symbols_do_not_matter_without_ties(metric, seed):
    rows = full(seed, digits=9)
    moved = rows.assign(symbol=[f"{name[::-1]}.X" for name in rows.symbol])
    for one, other in zip(metric(rows), metric(moved), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_no_row_and_no_score_give_nan(metric):
    rows = full(1)
    metric(rows.iloc[:0])
    for found in metric(rows.assign(score=np.nan)):
        assert np.isnan(found[2:] if metric is METRICS["decay"] else found).all()


@settings(deadline=None)
@given(seed=SEEDS, k=st.integers(1, 14))
def test_precision_agrees_with_sorting_each_session(seed, k):
    rows = full(seed, digits=9)
    _, precision, tied = precision_at_k(*arrays(rows, "ts", "symbol", "score", "hit"), k, 10)
    for value, share, day in zip(precision, tied, by_session(rows), strict=True):
        known = day.dropna(subset=["score", "hit"])
        best = known.sort_values("score", ascending=False).head(k)
        expected = best.hit.mean() if len(known) >= 10 else math.nan
        assert value == pytest.approx(expected, nan_ok=True)
        assert share == 0 if math.isfinite(value) else math.isnan(share)


@settings(deadline=None)
@given(seed=SEEDS, k=st.integers(1, 14))
def test_the_best_k_are_chosen_and_only_equals_are_left_out_by_hash(seed, k):
    rows = panel(seed, digits=0)
    is_chosen, tied = top_k_rows(*arrays(rows, "ts", "symbol", "score"), k)
    rows = rows.assign(is_chosen=is_chosen)
    for share, day in zip(tied, by_session(rows), strict=True):
        inside, outside = day[day.is_chosen], day[~day.is_chosen & day.score.notna()]
        assert len(inside) == min(k, day.score.notna().sum())
        assert inside.score.notna().all()
        if not len(outside):
            assert share == 0
            continue
        assert inside.score.min() >= outside.score.max()
        places = (inside.score == outside.score.max()).sum()
        assert share == pytest.approx(places / k)


def test_tied_places_go_to_other_names_on_other_sessions():
    names = np.array([f"S{i}" for i in range(10)], dtype=object)
    ts, symbol = np.repeat(DAY + np.arange(200), 10), np.tile(names, 200)
    is_chosen, tied = top_k_rows(ts, symbol, np.zeros(2000), 3)
    shares = pd.Series(is_chosen).groupby(symbol).mean()
    assert shares.between(0.15, 0.45).all()
    assert (tied == 1).all()


def test_the_hash_is_the_same_in_every_process_and_unit_of_time():
    names, code = np.array(["A", "BRK.B"], dtype=object), np.array([0, 1, 0])
    days = DAY + np.array([0, 0, 1])
    found = stable_hash(days, names, code)
    assert len(set(found.tolist())) == 3
    for unit in ("ns", "s"):
        np.testing.assert_array_equal(stable_hash(days.astype(f"M8[{unit}]"), names, code), found)
    program = (
        "import numpy as np; from quant_pipeline.ml.ranking_metrics import stable_hash;"
        "d = np.array(['2024-01-02', '2024-01-02', '2024-01-03'], 'M8[D]');"
        "print(stable_hash(d, np.array(['A', 'BRK.B'], object), np.array([0, 1, 0])).tolist())"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert printed.stdout.decode().strip() == str(found.tolist())


def test_ndcg_has_the_known_answer():
    score = np.array([0.1, 0.2, 0.3, 4, 70])
    relevance = np.array([10, 0, 0, 1, 5])
    _, ndcg = ndcg_at_k(np.repeat(DAY, 5), score, relevance, 5, min_names=2)
    assert ndcg == pytest.approx([0.695694], abs=1e-6)


@settings(deadline=None)
@given(seed=SEEDS, k=st.integers(1, 14), digits=st.sampled_from([0, 1, 9]))
def test_ndcg_agrees_with_scikit_learn_on_every_session(seed, k, digits):
    rows = panel(seed, digits=digits)
    rows["grade"] = rows.value.clip(lower=0)
    _, ndcg = ndcg_at_k(*arrays(rows, "ts", "score", "grade"), k, 3)
    for value, day in zip(ndcg, by_session(rows), strict=True):
        known = day.dropna(subset=["score", "grade"])
        if len(known) < 3 or known.grade.max() == 0:
            assert math.isnan(value)
        else:
            assert value == pytest.approx(ndcg_score([known.grade], [known.score], k=k))


@settings(deadline=None)
@given(seed=SEEDS, grades=st.integers(2, 7))
def test_grades_rise_with_returns_and_equal_returns_have_equal_grades(seed, grades):
    rows = panel(seed, n_names=30).dropna(subset=["ret"])
    found = grade_returns(*arrays(rows, "ts", "ret"), grades)
    assert found.dtype.kind == "i"
    for day in by_session(rows.assign(grade=found)):
        ordered = day.sort_values("ret")
        assert ordered.grade.is_monotonic_increasing
        assert ordered.groupby("ret").grade.nunique().eq(1).all()
        assert (ordered.grade.min(), ordered.grade.max()) == (0, grades - 1)
    scaled = grade_returns(rows.ts.to_numpy(), 3 * rows.ret.to_numpy() + 1, grades)
    np.testing.assert_array_equal(scaled, found)


def test_a_return_that_is_no_number_has_no_grade():
    with pytest.raises(ValueError, match="1 of 2 returns"):
        grade_returns(np.repeat(DAY, 2), np.array([0.1, np.nan]), 5)


def test_quantile_returns_have_the_known_answer():
    ts = np.repeat(DAY + np.arange(3), 2)
    sessions, means = quantile_returns(ts, np.tile([1.0, 2.0], 3), np.tile([0.1, 0.2], 3), 2, 2)
    assert len(sessions) == 3
    np.testing.assert_allclose(means, [[0.1, 0.2]] * 3)


@settings(deadline=None)
@given(seed=SEEDS, n_quantiles=st.integers(1, 6))
def test_quantile_returns_agree_with_a_loop(seed, n_quantiles):
    rows = panel(seed)
    _, means = quantile_returns(*arrays(rows, "ts", "score", "ret"), n_quantiles, 5)
    for line, day in zip(means, by_session(rows), strict=True):
        known = day.dropna(subset=["score", "ret"])
        place = (stats.rankdata(known.score) - 0.5) / len(known) * n_quantiles
        for quantile, value in enumerate(line):
            inside = known.ret[np.floor(place + 1e-9) == quantile]
            expected = inside.mean() if len(known) >= 5 and len(inside) else math.nan
            assert value == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("lag", "expected"), [(1, [math.nan, 1, 1, 0]), (2, [math.nan, math.nan, 0, 1])]
)
def test_turnover_has_the_known_answers(lag, expected):
    ts, symbol = np.repeat(DAY + np.arange(4), 4), np.tile(np.array(list("ABCD"), object), 4)
    score = np.array([1, 2, 3, 4, 4, 3, 2, 1, 1, 2, 3, 4, 1, 2, 3, 4], dtype=float)
    np.testing.assert_array_equal(turnover(ts, symbol, score, 0.25, lag)[1], expected)


@settings(deadline=None)
@given(seed=SEEDS, quantile=st.sampled_from([0.1, 0.3, 0.5]), lag=st.integers(1, 3))
def test_turnover_agrees_with_sets_of_names(seed, quantile, lag):
    rows = panel(seed)
    tops = [top_of(day, quantile) for day in by_session(rows)]
    _, found = turnover(*arrays(rows, "ts", "symbol", "score"), quantile, lag)
    for i, value in enumerate(found):
        before = tops[i - lag] if i >= lag else set()
        expected = len(tops[i] - before) / len(tops[i]) if tops[i] and before else math.nan
        assert value == pytest.approx(expected, nan_ok=True)


@settings(deadline=None)
@given(seed=SEEDS, lag=st.integers(1, 3))
def test_rank_autocorrelation_agrees_with_scipy_on_common_names(seed, lag):
    rows = panel(seed, digits=2)
    wide = rows.pivot(index="ts", columns="symbol", values="score")
    _, found = rank_autocorrelation(*arrays(rows, "ts", "symbol", "score"), lag, 4)
    for i, value in enumerate(found):
        pair = wide.iloc[[i, i - lag]].T.dropna() if i >= lag else wide.iloc[:0].T
        expected = stats.spearmanr(pair.to_numpy())[0] if len(pair) >= 4 and i >= lag else math.nan
        assert value == pytest.approx(expected, nan_ok=True)


@settings(deadline=None)
@given(seed=SEEDS, horizon=st.integers(1, 3))
def test_ic_decay_agrees_with_a_merge_on_the_session_before(seed, horizon):
    rows = panel(seed, digits=3)
    wide = rows.pivot(index="ts", columns="symbol", values="score")
    found = ic_decay(*arrays(rows, "ts", "symbol", "score", "ret"), [0, 1, 2], horizon, 4)
    for lag, row in enumerate(found):
        old = wide.shift(lag).stack().rename("old").reset_index()
        both = rows.merge(old, on=["ts", "symbol"])
        _, ic = information_coefficient(*arrays(both, "ts", "old", "ret"), True, 4)
        assert row["lag"] == lag
        assert row["n_sessions"] == np.isfinite(ic).sum()
        assert row["rank_ic"] == pytest.approx(np.nanmean(ic))
        assert row["rank_ic_se"] == pytest.approx(newey_west_se(ic, 2 * horizon))


@settings(deadline=None)
@given(seed=SEEDS, quantile=st.sampled_from([0.1, 0.3, 0.5]))
def test_capacity_agrees_with_the_traded_value_of_the_names_in_the_top(seed, quantile):
    rows = panel(seed)
    _, total, median = capacity(*arrays(rows, "ts", "score", "value"), quantile)
    for whole, middle, day in zip(total, median, by_session(rows), strict=True):
        values = day.value[day.symbol.isin(top_of(day, quantile))]
        assert whole == pytest.approx(values.sum(min_count=1), nan_ok=True)
        assert middle == pytest.approx(values.median(), nan_ok=True)


def test_psi_of_shares_has_the_known_answer_and_a_floor():
    reference = np.array([0.1, 0.2, 0.3, 0.4])
    current = np.array([0.15, 0.25, 0.3, 0.3])
    assert psi_of_shares(reference, current) == pytest.approx(0.060199, abs=1e-6)
    floored = (0.5 - 1e-4) * math.log(0.5 / 1e-4) + 0.5 * math.log(2)
    assert psi_of_shares(np.array([0.5, 0.5]), np.array([0.0, 1.0])) == pytest.approx(floored)


def test_psi_of_values_has_the_known_answer_in_bins_of_the_reference():
    reference = np.arange(100.0)
    current = np.repeat([12.0, 37.0, 62.0, 87.0], [15, 25, 30, 30])
    expected = psi_of_shares(np.full(4, 0.25), np.array([0.15, 0.25, 0.3, 0.3]))
    assert psi(reference, current, 4) == pytest.approx(expected)


@settings(deadline=None)
@given(seed=SEEDS, n_bins=st.integers(2, 12), digits=st.integers(0, 6))
def test_psi_is_positive_zero_for_itself_and_blind_to_increasing_transforms(seed, n_bins, digits):
    rng = np.random.default_rng(seed)
    reference, current = (np.round(rng.standard_normal(n), digits) for n in (80, 60))
    value = psi(reference, current, n_bins)
    assert value >= 0
    assert psi(reference, reference, n_bins) == 0
    assert psi(rng.permutation(reference), rng.permutation(current), n_bins) == value
    assert psi(np.exp(reference), np.exp(current), n_bins) == pytest.approx(value)


def test_psi_cuts_at_values_of_the_reference_not_between_them():
    reference, current = np.arange(10.0), np.array([4.6, 4.6, 4.6, 9.0])
    assert psi(reference, current, 2) == psi(reference**5, current**5, 2) > 0.2


def test_psi_sees_a_shift_beyond_a_value_that_fills_bins_alone():
    zeros = np.zeros(50)
    assert psi(zeros, zeros) == 0
    assert psi(zeros, zeros + 5) > 1
    assert psi(zeros, zeros - 5) > 1
    mostly = np.concatenate((np.zeros(95), np.arange(5.0)))
    assert psi(mostly, np.full(100, 3.0)) > 1
    assert math.isnan(psi(np.array([np.nan]), zeros))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: top_k_rows(*arrays(r, "ts", "symbol", "score"), 0), "k is 0"),
        (lambda r: ndcg_at_k(*arrays(r, "ts", "score", "value"), 0), "k is 0"),
        (lambda r: ndcg_at_k(*arrays(r, "ts", "score", "value"), 3), "must not be negative"),
        (lambda r: turnover(*arrays(r, "ts", "symbol", "score"), 0.2, 0), "lag is 0"),
        (lambda r: turnover(*arrays(r, "ts", "symbol", "score"), 0.6), "quantile is 0"),
        (lambda r: psi(r.score.to_numpy(), r.score.to_numpy(), 1), "n_bins is 1"),
        (
            lambda r: rank_autocorrelation(*arrays(pd.concat([r, r]), "ts", "symbol", "score")),
            "repeat",
        ),
    ],
)
def test_what_cannot_be_cut_counted_or_matched_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(panel(3))
