"""Training: the planted signal is found, nothing else is, same input gives same bytes."""

import dataclasses
import hashlib
import math
import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from quant_pipeline.errors import DegenerateData, NotEnoughHistory
from quant_pipeline.ml.boosters import booster_parameters
from quant_pipeline.ml.examples import Examples
from quant_pipeline.ml.metrics import permute_across_symbols
from quant_pipeline.ml.splits import Fold, fold_rows, make_folds
from quant_pipeline.ml.train import Recipe, TrainedModel, train_model, train_models
from quant_pipeline.settings import FoldSettings, MetricSettings, Task, TrainSettings

pytestmark = pytest.mark.filterwarnings("error")

UP = Task(task_id="up_5d", kind="classification", horizon=5)
RETURN = Task(task_id="ret_5d", kind="regression", horizon=5)
RANK = Task(task_id="rank_5d", kind="regression", horizon=5, normalize="rank")
MEDIAN = Task(task_id="above_5d", kind="classification", horizon=5, above="median")
ORDER = Task(task_id="order_5d", kind="ranking", horizon=5)
RECENT = Task(task_id="recent_5d", kind="regression", horizon=5, weights="recency", half_life=20)
UNIQUE = Task(task_id="unique_5d", kind="classification", horizon=5, weights="uniqueness")
TASKS = [UP, RETURN, RANK, MEDIAN, ORDER, RECENT, UNIQUE]
SPEC = TrainSettings(
    min_rows=100,
    max_rounds=30,
    early_stopping_rounds=5,
    min_data_in_leaf=20,
    num_leaves=31,
    feature_fraction=0.5,
    lambda_l2=10.0,
    learning_rate=0.1,
    threads=1,
)
FOLDS = FoldSettings(n_folds=2, min_train_sessions=40, stop_sessions=10, test_sessions=12)


@cache
def made_examples(signal: float = 0.5, seed: int = 0) -> Examples:
    """100 sessions x 25 symbols x 5 features, the first of which tells the return."""
    rng = np.random.default_rng(seed)
    market = np.busday_offset("2015-01-01", np.arange(106), roll="forward")
    n, session = 2500, np.repeat(np.arange(100), 25)
    x = rng.standard_normal((n, 5)).astype(np.float32)
    fwd_return = 0.02 * (signal * x[:, 0] + rng.standard_normal(n))
    x[rng.random(x.shape) < 0.05] = np.nan
    return Examples(
        symbol=np.tile(np.array([f"S{i:02d}" for i in range(25)], dtype=object), 100),
        ts=market[session],
        entry_ts=market[session + 1],
        known_at=market[session + 6],
        x=x,
        fwd_return=fwd_return,
        feature_names=("momentum", "f1", "f2", "f3", "f4"),
    )


def labels_of(examples: Examples, task: Task = UP) -> np.ndarray:
    if task.kind == "classification" and task.above == "threshold":
        return (examples.fwd_return > task.threshold).astype(float)
    return examples.fwd_return


def folds_of(examples: Examples, spec: FoldSettings = FOLDS) -> list[Fold]:
    return make_folds(np.unique(examples.ts), spec, UP.label_span)


def recipe(spec: TrainSettings = SPEC, folds: FoldSettings = FOLDS) -> Recipe:
    return Recipe(spec, folds, MetricSettings())


def fit(
    examples: Examples,
    task: Task = UP,
    spec: TrainSettings = SPEC,
    label: np.ndarray | None = None,
    folds: FoldSettings = FOLDS,
) -> TrainedModel:
    label = labels_of(examples, task) if label is None else label
    return train_model(examples, label, folds_of(examples, folds), task, recipe(spec, folds))


@cache
def fitted(task: Task = UP) -> TrainedModel:
    return fit(made_examples(), task)


def changed(examples: Examples, column: str, row: object, value: object) -> Examples:
    values = getattr(examples, column).copy()
    values[row] = value
    return dataclasses.replace(examples, **{column: values})


def trees(model: TrainedModel) -> str:
    return model.boosters[0].split("parameters:")[0]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.task_id)
def test_the_planted_signal_is_found_out_of_sample(task):
    model = fitted(task)
    assert model.metrics["ic"] > 0.2
    assert model.metrics["ic"] > 4 * model.metrics["ic_se"]
    for shares in (model.importance["gain"], model.importance["fold_gain"]):
        assert max(shares, key=shares.__getitem__) == "momentum"
        assert shares["momentum"] > 0.3


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.task_id)
def test_labels_permuted_across_symbols_give_no_ic(task):
    examples = made_examples()
    permuted = permute_across_symbols(examples.symbol, examples.ts, examples.fwd_return, seed=3)
    model = fit(dataclasses.replace(examples, fwd_return=permuted), task)
    assert abs(model.metrics["ic"]) < max(0.1, 4 * model.metrics["ic_se"])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.task_id)
def test_same_input_gives_the_same_bytes_whatever_was_trained_before(task):
    first = fitted(task)
    again = fit(made_examples(), task)
    assert again.boosters == first.boosters
    np.testing.assert_array_equal(again.test_score, first.test_score)
    assert repr(again.fold_metrics) == repr(first.fold_metrics)


def test_another_process_in_another_folder_gives_the_same_bytes(tmp_path):
    code = (
        "from hashlib import sha256\n"
        "from quant_pipeline_tests.test_train import fitted\n"
        "print(sha256(fitted().boosters[0].encode()).hexdigest())"
    )
    path = os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = hashlib.sha256(fitted().boosters[0].encode()).hexdigest()
    assert run.stdout.strip() == expected


def test_the_number_of_threads_changes_no_tree_and_no_score():
    two = fit(made_examples(), UP, SPEC.model_copy(update={"threads": 2}))
    assert trees(two) == trees(fitted())
    np.testing.assert_array_equal(two.test_score, fitted().test_score)


OTHER = {
    "max_rounds": 3,
    "early_stopping_rounds": 1,
    "seed": 7,
    "threads": 2,
    "learning_rate": 0.2,
    "num_leaves": 5,
    "max_depth": 2,
    "min_data_in_leaf": 60,
    "feature_fraction": 1.0,
    "bagging_fraction": 0.5,
    "lambda_l1": 1.0,
    "lambda_l2": 0.0,
    "max_bin": 15,
    "bin_sample_rows": 100,
    "seeds": 2,
}
NOT_OF_THE_FIT = {"window_sessions", "min_rows"}


def test_every_training_setting_is_tried():
    """window_sessions cuts the examples before they get here; min_rows refuses them."""
    assert OTHER.keys() | NOT_OF_THE_FIT == TrainSettings.model_fields.keys()
    assert not OTHER.keys() & NOT_OF_THE_FIT


@pytest.mark.parametrize("setting", OTHER)
def test_each_training_setting_changes_the_model_and_is_recorded(setting):
    other = fit(made_examples(), UP, SPEC.model_copy(update={setting: OTHER[setting]}))
    assert other.boosters != fitted().boosters
    assert other.parameters != fitted().parameters


def test_parameters_are_the_same_in_the_same_order_and_belong_to_the_task():
    assert list(booster_parameters(UP, SPEC)) == list(booster_parameters(RETURN, SPEC))
    assert booster_parameters(UP, SPEC)["objective"] == "binary"
    assert booster_parameters(RETURN, SPEC)["objective"] == "regression"


def test_training_leaves_its_inputs_unchanged_and_prints_nothing(capfd):
    source = made_examples(seed=1)
    columns = ("symbol", "ts", "entry_ts", "known_at", "x", "fwd_return")
    examples = dataclasses.replace(source, **{c: getattr(source, c).copy() for c in columns})
    for column in columns:
        getattr(examples, column).flags.writeable = False
    parameters = booster_parameters(UP, SPEC)
    fit(examples)
    for column in columns:
        np.testing.assert_array_equal(getattr(examples, column), getattr(source, column))
    assert booster_parameters(UP, SPEC) == parameters
    assert capfd.readouterr() == ("", "")


def test_every_test_row_has_one_score_of_its_own_fold():
    examples, model = made_examples(), fitted()
    rows = [fold_rows(fold, examples.ts, examples.known_at) for fold in folds_of(examples)]
    test = np.concatenate([part.test for part in rows])
    np.testing.assert_array_equal(model.test_ts, examples.ts[test])
    np.testing.assert_array_equal(model.test_symbol, examples.symbol[test])
    np.testing.assert_array_equal(model.test_fold, np.repeat([1, 2], [300, 300]))
    assert np.isfinite(model.test_score).all()
    assert model.metrics["n_rows"] == len(model.test_score) == 600
    for part, metrics in zip(rows, model.fold_metrics, strict=True):
        found = [metrics[name] for name in ("n_train", "n_stop", "n_test", "n_purged")]
        assert found == [len(part.train), len(part.stop), len(part.test), part.n_purged]


def test_the_final_fit_uses_the_median_of_the_folds_rounds():
    for model in map(fitted, TASKS):
        assert model.rounds == max(1, int(np.median(model.fold_rounds)))
        (text,) = model.boosters
        assert text.count("Tree=") == model.rounds
        assert [(metrics["rounds"],) for metrics in model.fold_metrics] == list(model.fold_rounds)


def test_importance_is_a_share_of_gain_and_of_splits_in_feature_order():
    model = fitted()
    for name in ("gain", "split", "fold_gain", "fold_split"):
        assert tuple(model.importance[name]) == made_examples().feature_names
        assert sum(model.importance[name].values()) == pytest.approx(1.0)
    for name in ("fold_gain_std", "fold_split_std"):
        assert all(0 <= spread < 0.5 for spread in model.importance[name].values())
    assert model.n_splits > 0
    assert model.n_rows == 2500


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32 - 1))
def test_a_fold_never_learns_from_its_purged_or_test_rows_or_later_ones(seed):
    examples, rng = made_examples(), np.random.default_rng(seed)
    fold = folds_of(examples)[0]
    rows = fold_rows(fold, examples.ts, examples.known_at)
    seen = np.zeros(len(examples.ts), dtype=bool)
    seen[rows.train] = seen[rows.stop] = True
    keep_x = seen.copy()
    keep_x[rows.test[::2]] = True
    label = labels_of(examples)
    label[~seen] = rng.integers(0, 2, np.count_nonzero(~seen))
    noise = rng.normal(5, 100, (np.count_nonzero(~keep_x), 5))
    other = changed(examples, "x", ~keep_x, noise.astype(np.float32))
    model, plain = fit(other, label=label), fitted()
    assert model.fold_rounds[0] == plain.fold_rounds[0]
    assert model.fold_metrics[0]["stop_metric"] == plain.fold_metrics[0]["stop_metric"]
    np.testing.assert_array_equal(model.test_score[:300:2], plain.test_score[:300:2])


def test_early_stopping_watches_the_stop_window():
    examples = made_examples()
    rows = fold_rows(folds_of(examples)[0], examples.ts, examples.known_at)
    label = labels_of(examples)
    label[rows.stop] = 1 - label[rows.stop]
    model = fit(examples, label=label)
    assert model.fold_rounds[0] < fitted().fold_rounds[0]


BROKEN = {
    "two rows swapped": (lambda e: reordered(e, 30, 31), r"S06 .* is followed by S05"),
    "two sessions swapped": (lambda e: reordered(e, 24, 25), "in order of ts, then symbol"),
    "a key twice": (lambda e: changed(e, "symbol", 6, "S05"), r"row 5 \(S05 .*appears twice"),
    "NaN return": (lambda e: changed(e, "fwd_return", 9, math.nan), "1 of 2500 rows have a fwd_r"),
    "infinite return": (lambda e: changed(e, "fwd_return", 9, math.inf), r"S09 .*inf"),
    "entered at once": (lambda e: changed(e, "entry_ts", 9, e.ts[9]), "known no later"),
    "infinite feature": (lambda e: changed(e, "x", (9, 2), -math.inf), r"f2 is infinite in 1 of"),
    "label known at once": (lambda e: changed(e, "known_at", 9, e.ts[9]), "known no later"),
    "no date": (lambda e: changed(e, "ts", 9, np.datetime64("NaT")), "no date"),
    "newline in a name": (lambda e: named(e, "a\nb"), r"'a\\nb' cannot be stored"),
    "name at its end": (lambda e: named(e, "a\n"), "cannot be stored"),
    "64 letters": (lambda e: named(e, "a" * 64), "at most 62"),
    "empty name": (lambda e: named(e, ""), "cannot be stored"),
    "name twice": (lambda e: named(e, "f4"), "repeat: f4"),
    "one name too many": (
        lambda e: dataclasses.replace(e, feature_names=(*e.feature_names, "f5")),
        r"shape \(2500, 6\)",
    ),
    "float64": (lambda e: dataclasses.replace(e, x=e.x.astype(float)), "row-major float32"),
    "column-major": (lambda e: dataclasses.replace(e, x=np.asfortranarray(e.x)), "row-major"),
    "short column": (lambda e: dataclasses.replace(e, ts=e.ts[1:]), "Column ts has shape"),
    "constant features": (
        lambda e: dataclasses.replace(e, x=np.full_like(e.x, 3)),
        "All 5 features are constant",
    ),
    "empty features": (
        lambda e: dataclasses.replace(e, x=np.full_like(e.x, math.nan)),
        "constant or missing",
    ),
}


def reordered(examples: Examples, one: int, other: int) -> Examples:
    order = np.arange(len(examples.ts))
    order[[one, other]] = order[[other, one]]
    columns = ("symbol", "ts", "entry_ts", "known_at", "x", "fwd_return")
    return dataclasses.replace(examples, **{c: getattr(examples, c)[order] for c in columns})


def named(examples: Examples, name: str) -> Examples:
    return dataclasses.replace(examples, feature_names=(name, "f1", "f2", "f3", "f4"))


@pytest.mark.parametrize("broken", BROKEN)
def test_examples_that_no_model_can_be_trained_on_are_refused(broken):
    spoil, message = BROKEN[broken]
    examples = made_examples()
    folds, label = folds_of(examples), labels_of(examples)
    with pytest.raises(DegenerateData, match=message):
        train_model(spoil(examples), label, folds, UP, recipe())


def first_window(examples: Examples) -> np.ndarray:
    return examples.ts <= folds_of(examples)[0].train[0].end


BROKEN_LABELS = {
    "NaN": (lambda e, y: np.where(np.arange(2500) == 9, math.nan, y), "1 of 2500 rows have a lab"),
    "infinite": (lambda e, y: np.where(np.arange(2500) == 9, math.inf, y), r"S09 .*inf"),
    "of 2": (lambda e, y: np.where(np.arange(2500) == 9, 2.0, y), "neither 0 nor 1"),
    "one class": (lambda e, y: np.ones(2500), "one label only, 1"),
    "one class at first": (lambda e, y: np.where(first_window(e), 0.0, y), "training window 1"),
    "too few": (lambda e, y: y[1:], r"shape \(2499,\) for 2500 rows"),
}


@pytest.mark.parametrize("broken", BROKEN_LABELS)
def test_labels_that_no_model_can_be_trained_on_are_refused(broken):
    spoil, message = BROKEN_LABELS[broken]
    examples = made_examples()
    with pytest.raises(DegenerateData, match=message):
        fit(examples, label=spoil(examples, labels_of(examples)))


@given(st.permutations(range(25)).filter(lambda order: list(order) != sorted(order)))
@settings(max_examples=20, deadline=None)
def test_any_other_order_of_symbols_is_refused(order):
    examples = made_examples()
    symbol = examples.symbol.copy()
    symbol[:25] = symbol[list(order)]
    with pytest.raises(DegenerateData, match="in order of ts, then symbol"):
        dataclasses.replace(examples, symbol=symbol).check()


@pytest.mark.parametrize("task", [RETURN, RANK], ids=lambda task: task.task_id)
def test_a_regression_on_one_value_is_refused(task):
    examples = dataclasses.replace(made_examples(), fwd_return=np.full(2500, 0.1))
    with pytest.raises(DegenerateData, match="one label only"):
        fit(examples, task)


def test_too_few_rows_are_refused_with_both_numbers():
    with pytest.raises(DegenerateData, match=r"2500 examples; train\.min_rows asks for 2501"):
        fit(made_examples(), UP, SPEC.model_copy(update={"min_rows": 2501}))


def test_a_booster_without_a_split_is_refused():
    with pytest.raises(DegenerateData, match=r"0 splits.*min_data_in_leaf is 1500"):
        fit(made_examples(), UP, SPEC.model_copy(update={"min_data_in_leaf": 1500}))


@pytest.mark.parametrize("task", [UP, RANK, ORDER], ids=lambda task: task.task_id)
def test_a_model_that_no_fold_tested_is_refused(task):
    """The final booster, on more rows than any fold, would have a split."""
    few_leaves = SPEC.model_copy(update={"min_data_in_leaf": 1100, "bagging_fraction": 1.0})
    with pytest.raises(DegenerateData, match=r"None of the 2 folds of task .* the model would be"):
        fit(made_examples(), task, few_leaves)


def test_the_settings_of_metrics_reach_the_test_series():
    model = fitted()
    few = model.test_series(MetricSettings(min_names=26))
    assert not np.isfinite(few["rank_ic"]).any()
    usual, tenth = (model.test_series(MetricSettings(quantile=q)) for q in (0.2, 0.1))
    np.testing.assert_array_equal(usual["rank_ic"], tenth["rank_ic"])
    assert (usual["top_minus_bottom"] != tenth["top_minus_bottom"]).any()


def test_no_fold_is_not_enough_history():
    with pytest.raises(NotEnoughHistory, match="at least one fold"):
        train_model(made_examples(), labels_of(made_examples()), [], UP, recipe())


def test_a_feature_that_starts_later_than_the_first_window_is_allowed(capfd):
    examples = made_examples()
    late = changed(examples, "x", (examples.ts < folds_of(examples)[0].test[0].start, 3), math.nan)
    model = fit(late)
    assert model.metrics["ic"] > 0.2
    assert capfd.readouterr() == ("", "")


def test_features_that_all_start_later_than_the_first_window_train_the_final_model(capfd):
    examples = made_examples()
    early = examples.ts < folds_of(examples)[0].stop[0].start
    model = fit(changed(examples, "x", early, math.nan))
    assert np.ptp(model.test_score[:300]) == 0
    assert math.isnan(model.fold_metrics[0]["ic"])
    assert model.n_splits > 0
    assert capfd.readouterr() == ("", "")


# --- many tasks at once


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_task_trained_with_others_has_the_bytes_that_it_has_alone(seeds):
    examples, spec = made_examples(), SPEC.model_copy(update={"seeds": seeds})
    for tasks in (TASKS, TASKS[::-1]):
        labels = {task.task_id: labels_of(examples, task) for task in tasks}
        together = train_models(examples, labels, folds_of(examples), tasks, recipe(spec))
        assert list(together) == [task.task_id for task in tasks]
        for task in tasks:
            alone = fitted(task) if seeds == 1 else fit(examples, task, spec)
            assert together[task.task_id].boosters == alone.boosters
            assert repr(together[task.task_id].fold_metrics) == repr(alone.fold_metrics)
            assert together[task.task_id].importance == alone.importance
            np.testing.assert_array_equal(together[task.task_id].test_score, alone.test_score)


def test_what_one_task_cannot_learn_costs_the_others_nothing():
    examples = made_examples()
    labels = {task.task_id: labels_of(examples, task) for task in (UP, RANK)}
    labels["up_5d"] = np.ones(2500)
    found = train_models(examples, labels, folds_of(examples), [UP, RANK], recipe())
    assert isinstance(found["up_5d"], DegenerateData)
    assert "one label only" in str(found["up_5d"])
    assert found["rank_5d"].boosters == fitted(RANK).boosters


def test_seeds_are_averaged_and_each_is_a_booster_of_its_own():
    three = fit(made_examples(), UP, SPEC.model_copy(update={"seeds": 3}))
    assert len(set(three.boosters)) == 3
    assert trees(three) == trees(fitted()) or three.rounds != fitted().rounds
    alone = [
        fit(made_examples(), UP, SPEC.model_copy(update={"seed": SPEC.seed + i})) for i in range(3)
    ]
    assert {len(rounds) for rounds in three.fold_rounds} == {3}
    assert three.fold_rounds[0][0] == alone[0].fold_rounds[0][0]


def test_combinations_of_groups_are_tested_as_often_as_they_are_combined():
    folds = FoldSettings(
        protocol="cpcv", n_groups=5, n_test_groups=2, min_train_sessions=20, stop_sessions=5
    )
    model = fit(made_examples(), RANK, folds=folds)
    assert len(model.fold_metrics) == 10
    tested = np.unique(model.test_ts, return_counts=True)[1]
    assert set(tested) == {25 * 4}
    assert model.metrics["ic"] > 0.2
    series = model.test_series(MetricSettings())
    assert len(series["ts"]) == 100
    assert np.nanmean(series["rank_ic"]) > 0.2


def test_the_test_series_is_that_of_the_test_windows():
    model = fitted(RANK)
    series = model.test_series(MetricSettings())
    assert list(series["ts"]) == sorted(set(model.test_ts))
    for i, day in enumerate(series["ts"]):
        mine = model.test_ts == day
        expected = spearmanr(model.test_score[mine], model.test_return[mine]).statistic
        assert series["rank_ic"][i] == pytest.approx(expected, abs=6e-6)
