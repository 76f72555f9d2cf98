"""Evaluation: every metric beside its base, each setting and kind of task with its own effect."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from quant_pipeline.ml import metrics as metrics_module
from quant_pipeline.ml.metrics import evaluate, information_coefficient, newey_west_se
from quant_pipeline.settings import MetricSettings, Task

pytestmark = pytest.mark.filterwarnings("error")

DAY = np.datetime64("2024-01-02")
UP = Task(task_id="up_5d", kind="classification", horizon=5)
RETURN = Task(task_id="ret_5d", kind="regression", horizon=5, normalize="rank")
RANK = Task(task_id="rank_5d", kind="ranking", horizon=5)
TASKS = [UP, RETURN, RANK]
SPEC = MetricSettings(top_k=3)


def made_history(task: Task, n_sessions: int = 60, n_names: int = 25):
    """Columns of evaluate: a score that knows something of the return."""
    rng = np.random.default_rng(5)
    n = n_sessions * n_names
    ts = np.repeat(DAY + np.arange(n_sessions), n_names)
    symbol = np.tile(np.array([f"S{i:02d}" for i in range(n_names)], dtype=object), n_sessions)
    fwd_return = rng.standard_normal(n)
    score = 1 / (1 + np.exp(-(fwd_return + 3 * rng.standard_normal(n))))
    up = (fwd_return > 0).astype(float)
    target = {"classification": up, "ranking": np.floor(5 * stats.norm.cdf(fwd_return))}
    return ts, symbol, score, up, target.get(task.kind, fwd_return), fwd_return


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_evaluation_is_plain_numbers_with_standard_errors_and_a_base(task):
    metrics = evaluate(task, *made_history(task), SPEC)
    assert json.loads(json.dumps(metrics)) == metrics
    assert {type(value) for value in metrics.values()} == {int, float}
    assert (metrics["n_rows"], metrics["n_sessions"], metrics["n_ic_sessions"]) == (1500, 60, 60)
    assert metrics["ic"] > 4 * metrics["ic_se"] > 0
    assert metrics["rank_ic"] > 4 * metrics["rank_ic_se"] > 0
    assert metrics["rank_ic_every_hth"] == pytest.approx(metrics["rank_ic"])
    assert metrics["rank_ic_every_hth"] > 4 * metrics["rank_ic_every_hth_se"] > 0
    assert metrics["rank_icir"] > 0.5
    assert metrics["top_minus_bottom"] > 4 * metrics["top_minus_bottom_se"] > 0
    assert metrics["precision_at_k"] > metrics["precision_at_k_base"] + 0.1
    assert metrics["ndcg_at_k"] > metrics["ndcg_at_k_base"] + 0.05
    assert metrics["tied_at_k"] == 0


@pytest.mark.parametrize(
    ("task", "losses"),
    [(UP, {"auc", "log_loss", "accuracy_base"}), (RETURN, {"mse", "mse_base", "r2"}), (RANK, ())],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_kind_of_task_has_its_own_losses_and_a_ranking_none(task, losses):
    metrics = evaluate(task, *made_history(task), SPEC)
    shared = [set(evaluate(t, *made_history(t), SPEC)) for t in TASKS]
    assert set(losses) <= set(metrics)
    assert set(metrics) - set.intersection(*shared) >= set(losses)
    assert (set(metrics) == set.intersection(*shared)) == (task is RANK)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_evaluation_does_not_depend_on_row_order_or_on_names(task):
    columns = made_history(task)
    plain = evaluate(task, *columns, SPEC)
    order = np.random.default_rng(3).permutation(len(columns[0]))
    ts, symbol, *others = (column[order] for column in columns)
    renamed = np.array([f"X{name}" for name in symbol], dtype=object)
    assert evaluate(task, ts, symbol, *others, SPEC) == pytest.approx(plain, rel=1e-9)
    assert evaluate(task, ts, renamed, *others, SPEC) == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("kind", [UP, RANK], ids=lambda task: task.kind)
def test_chance_scores_reach_the_bases_of_precision_and_ndcg(kind):
    ts, symbol, _, *others = made_history(kind, n_sessions=2000)
    noise = np.random.default_rng(0).standard_normal(len(ts))
    metrics = evaluate(kind, ts, symbol, noise, *others, SPEC)
    assert metrics["precision_at_k"] == pytest.approx(metrics["precision_at_k_base"], abs=0.03)
    assert metrics["ndcg_at_k"] == pytest.approx(metrics["ndcg_at_k_base"], abs=0.03)


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"top_k": 5}, {"precision_at_k", "ndcg_at_k"}),
        ({"quantile": 0.4}, {"top_minus_bottom", "top_minus_bottom_se"}),
        ({"min_names": 26}, {"ic", "rank_ic", "top_minus_bottom", "ndcg_at_k", "precision_at_k"}),
    ],
    ids=["top_k", "quantile", "min_names"],
)
def test_each_metric_setting_changes_what_it_is_for(change, moved):
    plain = evaluate(RETURN, *made_history(RETURN), SPEC)
    other = evaluate(RETURN, *made_history(RETURN), SPEC.model_copy(update=change))
    changed = {name for name in plain if plain[name] != other[name]}
    assert changed == moved if "min_names" not in change else changed >= moved


def test_errors_of_overlapping_labels_use_twice_the_horizon():
    columns = made_history(RETURN)
    ts, _, score, _, _, fwd_return = columns
    for horizon in (1, 5, 10):
        task = Task(task_id="ret", kind="regression", horizon=horizon)
        metrics = evaluate(task, *columns, SPEC)
        _, ic = information_coefficient(ts, score, fwd_return)
        assert metrics["ic_se"] == newey_west_se(ic, 2 * horizon)
        assert metrics["is_short"] == (horizon == 10)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_rows_without_a_label_are_not_judged(task):
    columns = made_history(task)
    known = np.random.default_rng(2).random(len(columns[0])) < 0.9
    label = np.where(known, columns[3], np.nan)
    found = evaluate(task, *columns[:3], label, *columns[4:], SPEC)
    assert found == evaluate(task, *(column[known] for column in columns), SPEC)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_evaluating_no_row_gives_counts_of_zero_and_nan(task):
    none = np.empty(0)
    ts, symbol = none.astype("datetime64[D]"), none.astype(object)
    metrics = evaluate(task, ts, symbol, none, none, none, none, SPEC)
    assert [name for name, value in metrics.items() if not math.isnan(value)] == [
        "n_rows",
        "n_sessions",
        "n_ic_sessions",
        "is_short",
    ]


def test_hits_of_a_classification_are_its_ones_and_of_others_the_better_half():
    ts, symbol, score, _, _, fwd_return = made_history(UP)
    rare = (fwd_return > 1).astype(float)
    for task, base in ((UP, rare.mean()), (RETURN, 12 / 25), (RANK, 12 / 25)):
        metrics = evaluate(task, ts, symbol, score, rare, rare, fwd_return, SPEC)
        assert metrics["precision_at_k_base"] == pytest.approx(base)
        perfect = evaluate(task, ts, symbol, fwd_return, rare, rare, fwd_return, SPEC)
        assert perfect["precision_at_k"] > (0.8 if task is UP else 0.999)


def test_relevance_is_the_grade_of_a_ranking_and_that_of_the_return_for_others():
    ts, symbol, _, up, _, fwd_return = made_history(RANK)
    for task, target in (
        (RANK, 4 - np.floor(5 * stats.norm.cdf(fwd_return))),
        (RETURN, -fwd_return),
    ):
        found = evaluate(task, ts, symbol, fwd_return, up, target, fwd_return, SPEC)["ndcg_at_k"]
        assert found == pytest.approx(0, abs=0.01) if task is RANK else found == pytest.approx(1)


def test_the_base_of_precision_is_of_the_sessions_that_have_one():
    columns = made_history(UP)
    few = (DAY - 1 - np.zeros(5, int), *(column[:5] for column in columns[1:]))
    few[4][:] = 1.0
    more = (np.concatenate(pair) for pair in zip(few, columns, strict=True))
    plain, other = (evaluate(UP, *c, SPEC)["precision_at_k_base"] for c in (columns, more))
    assert other == plain


def test_every_public_name_of_the_module_is_there():
    assert sorted(metrics_module.__all__) == metrics_module.__all__
    assert all(hasattr(metrics_module, name) for name in metrics_module.__all__)
