"""Checks of labels, frame, folds and models: each seen failing on what was damaged."""

from datetime import date

import pytest

from quant_pipeline.chain.checks.learning import (
    check_folds,
    check_frame,
    check_labels,
    check_models,
)
from quant_pipeline.chain.checks.result import CHECKS, Checked
from quant_pipeline.chain.proving import PROVED

KEY = "2016-06"
KEYS = ["2016-05", "2016-06", "2016-07"]
KNOWN_IN_JUNE = "known_at BETWEEN '2016-06-01' AND '2016-06-30'"


def failed(found: list[Checked]) -> list[tuple[str, str, str]]:
    return [(c.name, c.key, c.task_id) for c in found if not c.passed]


def test_a_finished_home_passes_every_check(finished):
    ws = finished.workspace
    keys = ws.grid.keys("2015-06", "2016-08")
    for asset, look in (
        ("labels", check_labels), ("training_frame", check_frame),
        ("walkforward_folds", check_folds), ("lgbm_model", check_models),
    ):  # fmt: skip
        found = look(ws, keys)
        assert failed(found) == []
        assert {c.name for c in found} == set(CHECKS[asset]) - set(PROVED.values())
        assert {c.key for c in found} == set(keys)


@pytest.mark.parametrize(
    "damage", ["entry_ts = ts", "exit_ts = entry_ts", "exit_ts = known_at + 1", "ts = known_at"]
)
def test_a_label_known_before_it_can_be_is_an_error(used, damage):
    where = f"task_id = 'ret_5d' AND symbol = 'S001' AND {KNOWN_IN_JUNE}"
    used.change_series(f"UPDATE labels SET {damage} WHERE {where}")
    found = [c for c in check_labels(used.workspace, KEYS) if not c.passed]
    assert failed(found) == [("labels_follow_their_sessions", KEY, "ret_5d")]
    n = used.rows(f"SELECT count(*) FROM labels WHERE {where}")[0][0]
    assert (found[0].severity, found[0].numbers["out_of_order"]) == ("ERROR", n)


@pytest.mark.parametrize(("value", "rate"), [(0.01, 1.0), (-0.01, 0.0)])
def test_labels_that_are_all_alike_are_a_warning(used, value, rate):
    used.change_series(
        f"UPDATE labels SET fwd_return = {value} WHERE task_id = 'up_5d' AND {KNOWN_IN_JUNE}"
    )
    found = [c for c in check_labels(used.workspace, KEYS) if not c.passed]
    assert failed(found) == [("base_rate_is_usual", KEY, "up_5d")]
    assert (found[0].severity, found[0].numbers["base_rate"]) == ("WARN", rate)


def test_a_missing_manifest_is_an_error_there_and_in_the_newest_partition(used):
    used.change_series(
        "DELETE FROM training_manifest WHERE partition_key = '2016-06' AND task_id = 'up_5d'"
    )
    found = check_frame(used.workspace, KEYS)
    assert ("increments_are_complete", KEY, "up_5d") in failed(found)
    assert ("examples_are_as_recorded", "2016-07", "up_5d") in failed(found)
    assert not any(key == "2016-05" for _, key, _ in failed(found))


def test_rows_left_out_that_do_not_add_up_are_an_error(used):
    used.change_series(
        "UPDATE training_manifest SET n_outside_universe = n_outside_universe + 1 "
        "WHERE partition_key = '2016-06'"
    )
    found = [c for c in check_frame(used.workspace, KEYS) if not c.passed]
    assert failed(found) == [("increments_are_complete", KEY, task) for task in ("up_5d", "ret_5d")]
    assert "labels became known" in found[0].words


def test_features_of_another_meaning_are_told_of(used):
    used.change_settings("[universe]\nmin_sessions = 20", "[universe]\nmin_sessions = 25")
    found = check_frame(used.workspace, [KEY])
    assert {name for name, *_ in failed(found)} == set(CHECKS["training_frame"])


def test_changed_rows_are_found_in_their_partition(used):
    """The newest one fails, because its model learns from them; its neighbours do not."""
    used.change_series("UPDATE features_daily SET KMID = KMID + 0.001 WHERE ts = '2016-05-10'")
    found = [c for c in check_frame(used.workspace, KEYS) if not c.passed]
    assert {(c.name, c.key) for c in found} == {
        ("examples_are_as_recorded", "2016-05"), ("examples_are_as_recorded", "2016-07")
    }  # fmt: skip
    assert "changed since it was recorded" in found[0].words
    assert {c.severity for c in found} == {"ERROR"}


def test_a_window_that_reaches_into_the_next_one_is_an_error(used):
    used.change_series(
        "UPDATE walkforward_folds SET last_kept = end_ts + 10 "
        "WHERE part = 'train' AND partition_key = '2016-06' AND task_id = 'up_5d'"
    )
    found = [c for c in check_folds(used.workspace, KEYS) if not c.passed]
    assert failed(found) == [("windows_do_not_overlap", KEY, "up_5d")]
    assert found[0].numbers["overlaps"] > 0


def test_windows_of_a_trained_partition_survive_a_restatement(used):
    """Its model stays as it is, and so do they; without a model they would have to be cut anew."""
    used.change_series(
        "DELETE FROM labels WHERE task_id = 'up_5d' AND symbol = "
        "(SELECT min(symbol) FROM labels) AND ts BETWEEN '2015-09-01' AND '2015-12-31'"
    )
    ws = used.workspace
    (one,) = [c for c in check_folds(ws, [KEY]) if c.task_id == "up_5d"]
    assert one.passed
    assert one.numbers["rows_kept"] > one.numbers["rows_there"]
    assert "restated since" in one.words
    with ws.meta.writing() as session:
        for model in ws.meta.models("up_5d"):
            model.partition_key = "another"
            session.merge(model)
    assert failed(check_folds(ws, [KEY])) == [("windows_do_not_overlap", KEY, "up_5d")]


def test_a_partition_without_windows_says_that_nothing_was_proved(used):
    used.change_series("DELETE FROM walkforward_folds")
    found = check_folds(used.workspace, [KEY])
    assert [c.words for c in found] == [
        f"No windows of {task}: nothing to prove." for task in ("up_5d", "ret_5d")
    ]


def test_a_model_without_a_split_is_an_error(used):
    ws = used.workspace
    with ws.meta.writing() as session:
        for model in ws.meta.models("up_5d"):
            if model.partition_key == KEY:
                none = dict.fromkeys(model.importance["split"], 0.0)
                model.importance = {**model.importance, "split": none}
                session.merge(model)
    (one,) = [c for c in check_models(ws, [KEY]) if not c.passed]
    assert "has no split" in one.words


def test_a_model_whose_file_is_changed_or_gone_is_an_error(used):
    model_id = used.model_ids()[KEY, "up_5d"][0]
    file = used.root / "models" / f"{model_id}.joblib"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert failed(check_models(used.workspace, KEYS)) == [("model_is_usable", KEY, "up_5d")]
    file.unlink()
    (found,) = [c for c in check_models(used.workspace, KEYS) if not c.passed]
    assert (found.severity, "is missing" in found.words) == ("ERROR", True)


def test_a_model_with_a_loss_that_is_no_number_is_an_error(used):
    model = used.workspace.meta.model(used.model_ids()[KEY, "ret_5d"][0])
    with used.workspace.meta.writing() as session:
        model.metrics = {**model.metrics, "mse": None}
        session.add(model)
    (found,) = [c for c in check_models(used.workspace, KEYS) if not c.passed]
    assert (found.task_id, "mse = None" in found.words) == ("ret_5d", True)


def test_before_any_label_is_known_there_is_nothing_to_refuse(finished):
    found = check_frame(finished.workspace, ["2015-05"])
    assert all(c.passed for c in found if c.name == "examples_are_as_recorded")
    assert finished.workspace.grid.asof("2015-05") == date(2015, 5, 31)
