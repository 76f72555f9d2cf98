"""Metrics of a session are scikit-learn's, session by session, and gaps stay gaps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from quant_pipeline.ml.session_metrics import mean_and_error, session_metrics
from quant_pipeline.ml.sessions import newey_west_se
from quant_pipeline.settings import MetricSettings, Task

UP = Task(task_id="up", kind="classification", horizon=5)
LEVEL = Task(task_id="level", kind="regression", horizon=5)
ORDER = Task(task_id="order", kind="ranking", horizon=5)
SPEC = MetricSettings(min_names=2, top_k=3)


def rows(seed: int, n_sessions: int, n_names: int, n_scores: int):
    """Sessions with ties in their scores, some labels of one class only."""
    rng = np.random.default_rng(seed)
    days = np.busday_offset("2020-01-01", np.arange(n_sessions), roll="forward")
    ts = np.repeat(days, n_names)
    symbol = np.tile(np.array([f"S{i}" for i in range(n_names)], object), n_sessions)
    score = rng.integers(1, n_scores + 1, len(ts)) / (n_scores + 1)
    fwd_return = rng.standard_normal(len(ts))
    order = rng.permutation(len(ts))
    return ts[order], symbol[order], score[order], fwd_return[order]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 12), st.integers(1, 30))
def test_each_session_has_what_scikit_learn_gives_it(seed, n_sessions, n_names, n_scores):
    ts, symbol, score, fwd_return = rows(seed, n_sessions, n_names, n_scores)
    label = (fwd_return > 0).astype(float)
    sessions, found = session_metrics(UP, ts, symbol, score, label, fwd_return, SPEC)
    for i, day in enumerate(sessions):
        y, p = label[ts == day], score[ts == day]
        called = p > 0.5
        assert found["accuracy"][i] == pytest.approx(accuracy_score(y, called))
        assert found["brier"][i] == pytest.approx(brier_score_loss(y, p, pos_label=1))
        assert found["log_loss"][i] == pytest.approx(log_loss(y, p, labels=[0, 1]))
        expected = {
            "precision": precision_score(y, called) if called.any() else np.nan,
            "recall": recall_score(y, called) if y.any() else np.nan,
            "auc": roc_auc_score(y, p) if 0 < y.sum() < len(y) else np.nan,
            "average_precision": average_precision_score(y, p) if y.any() else np.nan,
        }
        for name, value in expected.items():
            assert found[name][i] == pytest.approx(value, nan_ok=True), name


def test_a_regression_has_its_error_and_all_have_the_top_of_the_list():
    ts, symbol, score, fwd_return = rows(1, 4, 10, 1000)
    sessions, found = session_metrics(LEVEL, ts, symbol, score, fwd_return, fwd_return, SPEC)
    assert found.keys() == {"mse", "precision_at_k", "ndcg_at_k"}
    for i, day in enumerate(sessions):
        mine = ts == day
        assert found["mse"][i] == pytest.approx(np.mean((score[mine] - fwd_return[mine]) ** 2))
        top = np.argsort(-score[mine])[:3]
        hit = fwd_return[mine] > np.median(fwd_return[mine])
        assert found["precision_at_k"][i] == pytest.approx(hit[top].mean())
    grades = (fwd_return > 0).astype(float)
    assert session_metrics(ORDER, ts, symbol, score, grades, fwd_return, SPEC)[1].keys() == {
        "precision_at_k", "ndcg_at_k"
    }  # fmt: skip


def test_a_session_without_scores_stays_as_a_gap_and_small_ones_are_not_judged():
    ts, symbol, score, fwd_return = rows(2, 6, 10, 1000)
    days = np.unique(ts)
    label = (fwd_return > 0).astype(float)
    score[ts == days[2]] = np.nan
    score[(ts == days[4]) & (symbol != "S0")] = np.nan
    sessions, found = session_metrics(UP, ts, symbol, score, label, fwd_return, SPEC)
    np.testing.assert_array_equal(sessions, days)
    for name, values in found.items():
        np.testing.assert_array_equal(np.isnan(values)[[0, 2, 4]], [False, True, True], name)
    means = mean_and_error(found, 10)
    assert means["accuracy"]["mean"] == pytest.approx(np.nanmean(found["accuracy"]))
    assert means["accuracy"]["se"] == newey_west_se(found["accuracy"], 10)


def test_nothing_to_judge_is_undefined():
    nothing = np.empty(0)
    ts = np.empty(0, "datetime64[D]")
    for task in (UP, LEVEL, ORDER):
        sessions, found = session_metrics(
            task, ts, np.empty(0, object), nothing, nothing, nothing, SPEC
        )
        assert len(sessions) == 0
        assert all(len(values) == 0 for values in found.values())
