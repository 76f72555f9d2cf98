"""What a booster is fitted to, and how much rows count: per session, from known values alone."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.errors import DegenerateData
from quant_pipeline.ml.targets import make_target, row_weights
from quant_pipeline.settings import Task
from quant_pipeline_tests.test_train import changed, made_examples

TASKS = {
    "threshold": Task(task_id="t", kind="classification", horizon=5, threshold=0.01),
    "median": Task(task_id="t", kind="classification", horizon=5, above="median"),
    "return": Task(task_id="t", kind="regression", horizon=5),
    "demeaned": Task(task_id="t", kind="regression", horizon=5, normalize="demean"),
    "ranked": Task(task_id="t", kind="regression", horizon=5, normalize="rank"),
    "winsorized": Task(task_id="t", kind="regression", horizon=5, winsorize=0.1),
    "both": Task(task_id="t", kind="regression", horizon=5, winsorize=0.1, normalize="demean"),
    "graded": Task(task_id="t", kind="ranking", horizon=5, grades=4),
}


def slow_target(task: Task, returns: pd.Series) -> pd.Series:
    """The same for one session, by pandas."""
    if task.kind == "classification":
        bound = returns.median() if task.above == "median" else task.threshold
        return (returns > bound).astype(float)
    if task.kind == "ranking":
        share = (returns.rank(method="average") - 0.5) / len(returns)
        return np.floor(share * task.grades + 1e-12)
    clipped = returns.clip(returns.quantile(task.winsorize), returns.quantile(1 - task.winsorize))
    values = clipped if task.winsorize else returns
    if task.normalize == "demean":
        return values - values.mean()
    if task.normalize == "rank":
        return (values.rank(method="average") - 0.5) / len(values) - 0.5
    return values


@st.composite
def panels(draw):
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = sum(sizes)
    returns = rng.normal(0, 0.05, n)
    if draw(st.booleans()):
        returns = returns.round(2)  # ties
    days = np.repeat(np.busday_offset("2020-01-06", np.arange(len(sizes))), sizes)
    return days, returns


@pytest.mark.parametrize("name", list(TASKS))
@given(panels())
@settings(max_examples=40, deadline=None)
def test_a_target_is_what_pandas_makes_of_each_session(name, panel) -> None:
    task, (ts, returns) = TASKS[name], panel
    label = (returns > task.threshold).astype(float) if name == "threshold" else returns
    found = make_target(task, ts, label, returns)
    frame = pd.Series(returns).groupby(ts, group_keys=False)
    expected = frame.apply(lambda r: slow_target(task, r)).sort_index()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(TASKS))
@given(panels(), st.randoms())
@settings(max_examples=20, deadline=None)
def test_a_target_compares_rows_of_one_session_only_and_knows_no_order(name, panel, random) -> None:
    task, (ts, returns) = TASKS[name], panel
    label = (returns > task.threshold).astype(float)
    whole = make_target(task, ts, label, returns)
    for day in np.unique(ts):
        mine = ts == day
        np.testing.assert_array_equal(
            make_target(task, ts[mine], label[mine], returns[mine]), whole[mine]
        )
    order = np.array(random.sample(range(len(ts)), len(ts)))
    shuffled = make_target(task, ts[order], label[order], returns[order])
    np.testing.assert_allclose(shuffled, whole[order], rtol=1e-13, atol=1e-15)


def test_about_half_of_a_session_is_above_its_median() -> None:
    ts, returns = np.repeat(np.datetime64("2020-01-06"), 101), np.arange(101) / 100 - 0.8
    assert make_target(TASKS["median"], ts, returns, returns).sum() == 50
    assert make_target(TASKS["threshold"], ts, (returns > 0).astype(float), returns).sum() == 20


def test_a_label_that_is_no_class_is_refused() -> None:
    ts = np.repeat(np.datetime64("2020-01-06"), 3)
    with pytest.raises(DegenerateData, match=r"1 labels are neither 0 nor 1, first on 2020-01-06"):
        make_target(TASKS["threshold"], ts, np.array([0.0, 1.0, 0.5]), np.zeros(3))


# --- weights


RECENT = Task(task_id="t", kind="regression", horizon=5, weights="recency", half_life=10)
UNIQUE = Task(task_id="t", kind="regression", horizon=5, weights="uniqueness")
ALL = np.arange(2500)


def test_weights_have_mean_one_and_none_is_all_alike() -> None:
    examples = made_examples()
    assert row_weights(TASKS["return"], examples, ALL) is None
    for task in (RECENT, UNIQUE):
        for rows in (ALL, ALL[:800], ALL[500:600]):
            weights = row_weights(task, examples, rows)
            assert weights.mean() == pytest.approx(1.0)
            assert (weights > 0).all()


def test_recency_halves_every_half_life() -> None:
    weights = row_weights(RECENT, made_examples(), ALL).reshape(100, 25)
    assert np.ptp(weights, axis=1).max() == 0
    np.testing.assert_allclose(weights[10:, 0] / weights[:-10, 0], 2.0)


def test_a_return_is_unique_where_no_other_of_its_symbol_overlaps() -> None:
    """Inside a symbol's history each session of a 5-day return lies in five of them."""
    weights = row_weights(UNIQUE, made_examples(), ALL).reshape(100, 25)
    assert np.ptp(weights, axis=1).max() < 1e-12
    inner, first = weights[50, 0], weights[0, 0]
    np.testing.assert_allclose(weights[10:90], inner)
    share = np.mean([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert first / inner == pytest.approx(share / (1 / 5))


def test_weights_of_some_rows_depend_on_these_alone() -> None:
    """A fold must not tell from a weight whether a symbol has rows in its test window."""
    examples = made_examples()
    rows = ALL[:1000]
    later = changed(examples, "symbol", slice(1000, None), "ZZZ")
    for task in (RECENT, UNIQUE):
        np.testing.assert_array_equal(
            row_weights(task, later, rows), row_weights(task, examples, rows)
        )
