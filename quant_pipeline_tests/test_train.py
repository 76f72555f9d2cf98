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

from quant_pipeline.errors import DegenerateData, NotEnoughHistory
from quant_pipeline.ml.metrics import permute_across_symbols
from quant_pipeline.ml.splits import Fold, fold_rows, make_folds
from quant_pipeline.ml.train import (
    Examples,
    TrainedModel,
    booster_parameters,
    make_target,
    train_model,
)
from quant_pipeline.settings import FoldSettings, Task, TrainSettings

pytestmark = pytest.mark.filterwarnings("error")

UP = Task(task_id="up_5d", kind="classification", horizon=5)
RETURN = Task(task_id="ret_5d", kind="regression", horizon=5)
RANK = Task(task_id="rank_5d", kind="regression", horizon=5, normalize="rank")
TASKS = [UP, RETURN, RANK]
SPEC = TrainSettings(
    min_rows=100,
    max_rounds=30,
    early_stopping_rounds=5,
    min_data_in_leaf=20,
    learning_rate=0.1,
    threads=1,
)
FOLDS = FoldSettings(n_folds=2, min_train_sessions=40, stop_sessions=10, test_sessions=12)


@cache
def made_examples(kind: str = "classification", signal: float = 0.5, seed: int = 0) -> Examples:
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
        known_at=market[session + 6],
        x=x,
        label=(fwd_return > 0).astype(float) if kind == "classification" else fwd_return,
        fwd_return=fwd_return,
        feature_names=("momentum", "f1", "f2", "f3", "f4"),
    )


def folds_of(examples: Examples, spec: FoldSettings = FOLDS) -> list[Fold]:
    return make_folds(np.unique(examples.ts), spec, UP.label_span)


def fit(examples: Examples, task: Task = UP, spec: TrainSettings = SPEC) -> TrainedModel:
    return train_model(examples, folds_of(examples), task, spec)


@cache
def fitted(task: Task = UP) -> TrainedModel:
    return fit(made_examples(task.kind), task)


def changed(examples: Examples, column: str, row: object, value: object) -> Examples:
    values = getattr(examples, column).copy()
    values[row] = value
    return dataclasses.replace(examples, **{column: values})


def trees(model: TrainedModel) -> str:
    return model.booster_text.split("parameters:")[0]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.task_id)
def test_the_planted_signal_is_found_out_of_sample(task):
    model = fitted(task)
    assert model.metrics["ic"] > 0.2
    assert model.metrics["ic"] > 4 * model.metrics["ic_se"]
    assert max(model.importance, key=model.importance.__getitem__) == "momentum"
    assert model.importance["momentum"] > 0.3


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.task_id)
def test_labels_permuted_across_symbols_give_no_ic(task):
    examples = made_examples(task.kind)
    for column in ("label", "fwd_return"):
        values = getattr(examples, column)
        permuted = permute_across_symbols(examples.symbol, examples.ts, values, seed=3)
        examples = dataclasses.replace(examples, **{column: permuted})
    model = fit(examples, task)
    assert abs(model.metrics["ic"]) < max(0.1, 4 * model.metrics["ic_se"])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.task_id)
def test_same_input_gives_the_same_bytes_whatever_was_trained_before(task):
    first = fitted(task)
    again = fit(made_examples(task.kind), task)
    assert again.booster_text == first.booster_text
    np.testing.assert_array_equal(again.test_score, first.test_score)
    assert repr(again.fold_metrics) == repr(first.fold_metrics)


def test_another_process_in_another_folder_gives_the_same_bytes(tmp_path):
    code = (
        "from hashlib import sha256\n"
        "from quant_pipeline_tests.test_train import fitted\n"
        "print(sha256(fitted().booster_text.encode()).hexdigest())"
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
    expected = hashlib.sha256(fitted().booster_text.encode()).hexdigest()
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
    "min_data_in_leaf": 60,
    "feature_fraction": 1.0,
    "bagging_fraction": 0.5,
    "lambda_l2": 0.0,
    "max_bin": 15,
    "bin_sample_rows": 100,
}
NOT_OF_THE_FIT = {"window_sessions", "min_rows"}


def test_every_training_setting_is_tried():
    """window_sessions cuts the examples before they get here; min_rows refuses them."""
    assert OTHER.keys() | NOT_OF_THE_FIT == TrainSettings.model_fields.keys()
    assert not OTHER.keys() & NOT_OF_THE_FIT


@pytest.mark.parametrize("setting", OTHER)
def test_each_training_setting_changes_the_model_and_is_recorded(setting):
    other = fit(made_examples(), UP, SPEC.model_copy(update={setting: OTHER[setting]}))
    assert other.booster_text != fitted().booster_text
    assert other.parameters != fitted().parameters


def test_parameters_are_the_same_in_the_same_order_and_belong_to_the_task():
    assert list(booster_parameters(UP, SPEC)) == list(booster_parameters(RETURN, SPEC))
    assert booster_parameters(UP, SPEC)["objective"] == "binary"
    assert booster_parameters(RETURN, SPEC)["objective"] == "regression"


def test_training_leaves_its_inputs_unchanged_and_prints_nothing(capfd):
    source = made_examples(seed=1)
    columns = ("symbol", "ts", "known_at", "x", "label", "fwd_return")
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
        assert model.booster_text.count("Tree=") == model.rounds
        assert [metrics["rounds"] for metrics in model.fold_metrics] == list(model.fold_rounds)


def test_importance_is_a_share_of_gain_in_feature_order():
    model = fitted()
    assert tuple(model.importance) == made_examples().feature_names
    assert sum(model.importance.values()) == pytest.approx(1.0)
    assert model.n_splits > 0
    assert model.n_rows == 2500


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32 - 1))
def test_a_fold_never_learns_from_its_purged_or_test_rows_or_later_ones(seed):
    examples, rng = made_examples(), np.random.default_rng(seed)
    fold = folds_of(examples)[0]
    rows = fold_rows(fold, examples.ts, examples.known_at)
    seen = np.zeros(len(examples.label), dtype=bool)
    seen[rows.train] = seen[rows.stop] = True
    keep_x = seen.copy()
    keep_x[rows.test[::2]] = True
    other = changed(examples, "label", ~seen, rng.integers(0, 2, np.count_nonzero(~seen)))
    noise = rng.normal(5, 100, (np.count_nonzero(~keep_x), 5))
    other = changed(other, "x", ~keep_x, noise.astype(np.float32))
    model, plain = fit(other), fitted()
    assert model.fold_rounds[0] == plain.fold_rounds[0]
    assert model.fold_metrics[0]["stop_loss"] == plain.fold_metrics[0]["stop_loss"]
    np.testing.assert_array_equal(model.test_score[:300:2], plain.test_score[:300:2])


def test_early_stopping_watches_the_stop_window():
    examples = made_examples()
    rows = fold_rows(folds_of(examples)[0], examples.ts, examples.known_at)
    reversed_labels = 1 - examples.label[rows.stop]
    model = fit(changed(examples, "label", rows.stop, reversed_labels))
    assert model.fold_rounds[0] < fitted().fold_rounds[0]


def test_a_rank_target_is_centred_within_each_session():
    examples = made_examples("regression")
    target = make_target(examples, RANK)
    for day in np.unique(examples.ts):
        rows = examples.ts == day
        assert target[rows].mean() == pytest.approx(0)
        assert np.ptp(target[rows]) == pytest.approx(24 / 25)
        np.testing.assert_array_equal(np.argsort(target[rows]), np.argsort(examples.label[rows]))
    assert np.abs(target).max() < 0.5
    np.testing.assert_array_equal(make_target(examples, RETURN), examples.label)


def test_equal_labels_share_their_rank():
    examples = changed(made_examples("regression"), "label", slice(0, 25), 0.01)
    np.testing.assert_array_equal(make_target(examples, RANK)[:25], np.zeros(25))


X = np.float32
BROKEN = {
    "two rows swapped": (lambda e: reordered(e, 30, 31), r"S06 .* is followed by S05"),
    "two sessions swapped": (lambda e: reordered(e, 24, 25), "in order of ts, then symbol"),
    "a key twice": (lambda e: changed(e, "symbol", 6, "S05"), r"row 5 \(S05 .*appears twice"),
    "NaN label": (lambda e: changed(e, "label", 9, math.nan), "1 of 2500 rows have a label"),
    "infinite label": (lambda e: changed(e, "label", 9, math.inf), r"S09 .*inf"),
    "NaN return": (lambda e: changed(e, "fwd_return", 9, math.nan), "fwd_return"),
    "infinite feature": (lambda e: changed(e, "x", (9, 2), -math.inf), r"f2 is infinite in 1 of"),
    "label known at once": (lambda e: changed(e, "known_at", 9, e.ts[9]), "known no later"),
    "no date": (lambda e: changed(e, "ts", 9, np.datetime64("NaT")), "no date"),
    "label of 2": (lambda e: changed(e, "label", 9, 2.0), "neither 0 nor 1"),
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
    "one class": (lambda e: dataclasses.replace(e, label=np.ones(2500)), "one label only, 1"),
    "one class in the first window": (
        lambda e: changed(e, "label", e.ts < folds_of(e)[0].train_end, 0.0),
        "training window 1",
    ),
    "constant features": (
        lambda e: dataclasses.replace(e, x=np.full_like(e.x, 3)),
        "All 5 features .* constant",
    ),
    "empty features": (
        lambda e: dataclasses.replace(e, x=np.full_like(e.x, math.nan)),
        "constant or missing",
    ),
}


def reordered(examples: Examples, one: int, other: int) -> Examples:
    order = np.arange(len(examples.label))
    order[[one, other]] = order[[other, one]]
    columns = ("symbol", "ts", "known_at", "x", "label", "fwd_return")
    return dataclasses.replace(examples, **{c: getattr(examples, c)[order] for c in columns})


def named(examples: Examples, name: str) -> Examples:
    return dataclasses.replace(examples, feature_names=(name, "f1", "f2", "f3", "f4"))


@pytest.mark.parametrize("broken", BROKEN)
def test_examples_that_no_model_can_be_trained_on_are_refused(broken):
    spoil, message = BROKEN[broken]
    examples = made_examples()
    folds = folds_of(examples)
    with pytest.raises(DegenerateData, match=message):
        train_model(spoil(examples), folds, UP, SPEC)


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
    examples = dataclasses.replace(made_examples("regression"), label=np.full(2500, 0.1))
    with pytest.raises(DegenerateData, match="one label only"):
        fit(examples, task)


def test_too_few_rows_are_refused_with_both_numbers():
    with pytest.raises(DegenerateData, match=r"2500 examples; train\.min_rows asks for 2501"):
        fit(made_examples(), UP, SPEC.model_copy(update={"min_rows": 2501}))


def test_a_booster_without_a_split_is_refused():
    with pytest.raises(DegenerateData, match=r"0 splits.*min_data_in_leaf is 1500"):
        fit(made_examples(), UP, SPEC.model_copy(update={"min_data_in_leaf": 1500}))


def test_no_fold_is_not_enough_history():
    with pytest.raises(NotEnoughHistory, match="at least one fold"):
        train_model(made_examples(), [], UP, SPEC)


def test_a_feature_that_starts_later_than_the_first_window_is_allowed(capfd):
    examples = made_examples()
    late = changed(examples, "x", (examples.ts < folds_of(examples)[0].test_start, 3), math.nan)
    model = fit(late)
    assert model.metrics["ic"] > 0.2
    assert capfd.readouterr() == ("", "")


def test_features_that_all_start_later_than_the_first_window_train_the_final_model(capfd):
    examples = made_examples()
    early = examples.ts < folds_of(examples)[0].stop_start
    model = fit(changed(examples, "x", early, math.nan))
    assert np.ptp(model.test_score[:300]) == 0
    assert math.isnan(model.fold_metrics[0]["ic"])
    assert model.n_splits > 0
    assert capfd.readouterr() == ("", "")
