"""The ledger counts recipes by itself, studies go on, and settings know when they were chosen."""

import math
from datetime import date

import numpy as np
import optuna
import pytest

from quant_pipeline.chain.trials import (
    choose_comparable,
    collect_series,
    judge_trials,
    note_trial,
    recipe_id,
)
from quant_pipeline.chain.tune import tune
from quant_pipeline.errors import DegenerateData
from quant_pipeline.settings import SHIPPED_CHOSEN_ASOF, Settings
from quant_pipeline_tests.homes import SmallHome


def quiet(_what: str, _done: int, _total: int) -> None:
    """Tell nobody."""


def test_refits_of_one_recipe_are_one_trial(finished) -> None:
    ws = finished.workspace
    assert len(ws.meta.models()) > len(ws.settings.tasks)
    trials = ws.meta.trials()
    assert sorted(t.task_id for t in trials) == ["ret_5d", "up_5d"]
    for trial in trials:
        task = ws.settings.task(trial.task_id)
        assert trial.recipe == recipe_id(ws, task)
        models = ws.meta.models(trial.task_id)
        assert {m.recipe for m in models} == {trial.recipe}
        assert trial.asof == models[0].asof


def test_a_hand_may_have_known_every_outcome_there_was(finished) -> None:
    ((newest,),) = finished.rows("SELECT max(known_at) FROM labels WHERE task_id = 'up_5d'")
    (trial,) = finished.workspace.meta.trials("up_5d")
    assert (trial.chosen_by, trial.chosen_asof) == ("hand", newest)
    assert {m.chosen_asof for m in finished.workspace.meta.models("up_5d")} == {newest}


def test_the_shipped_settings_declare_since_when_they_are_known(home) -> None:
    made = home()
    (made.root / "quant.toml").write_text(
        '[grid]\nstart = 2015-05-01\ntimezone = "America/New_York"\n'
    )
    ws = made.workspace
    for task in ws.tasks():
        trial = note_trial(ws, task, date(2016, 6, 30))
        assert (trial.chosen_by, trial.chosen_asof) == ("shipped settings", SHIPPED_CHOSEN_ASOF)
    assert Settings.model_construct().train == ws.settings.train


def test_a_session_has_the_value_of_the_earliest_model_that_tested_it(finished) -> None:
    ws = finished.workspace
    task = ws.settings.task("ret_5d")
    ((recipe, (days, values)),) = collect_series(ws, task).items()
    assert recipe == recipe_id(ws, task)
    expected: dict[str, float] = {}
    for model in sorted(ws.meta.models("ret_5d"), key=lambda m: m.asof):
        series = model.test_series
        for day, value in zip(series["ts"], series["top_minus_bottom"], strict=True):
            expected.setdefault(day, math.nan if value is None else value)
    assert [str(d) for d in days] == sorted(expected)
    np.testing.assert_array_equal(values, [expected[str(d)] for d in days])
    assert len(days) > len(ws.meta.models("ret_5d")[0].test_series["ts"])


@pytest.fixture
def tuned(used) -> SmallHome:
    ws = used.workspace
    tune(ws, "2016-06", ws.settings.task("ret_5d"), 3, quiet)
    return used


def test_a_study_goes_on_where_it_was_and_repeats_nothing(tuned) -> None:
    ws = tuned.workspace
    task = ws.settings.task("ret_5d")
    first = ws.meta.trials("ret_5d")
    assert len(first) == 3  # the recipe of quant.toml is one of them
    found = tune(tuned.workspace, "2016-06", task, 2, quiet)
    assert found.n_trials == 5
    trials = tuned.workspace.meta.trials("ret_5d")
    assert len(trials) == 5
    assert [t.recipe for t in trials[:3]] == [t.recipe for t in first]
    assert found.best_value >= found.usual_value
    usual = next(m for m in ws.meta.models("ret_5d") if m.partition_key == "2016-06")
    assert found.usual_value == pytest.approx(usual.metrics["rank_ic"])
    assert found.usual_se == pytest.approx(usual.metrics["rank_ic_se"])
    assert tuned.workspace.meta.trials("up_5d") == ws.meta.trials("up_5d")


def shipped_home(home) -> SmallHome:
    made = home("shipped")
    (made.root / "quant.toml").write_text(
        '[grid]\nstart = 2015-05-01\ntimezone = "America/New_York"\n'
    )
    return made


def with_train(s: Settings, **changes: object) -> Settings:
    return s.model_copy(update={"train": s.train.model_copy(update=changes)})


APRIL, JULY, LATER = date(2016, 4, 30), date(2016, 7, 31), date(2016, 8, 5)


def test_what_a_study_proposes_is_known_since_its_asof_if_all_else_is_as_shipped(home) -> None:
    ws = shipped_home(home).workspace
    (up, _) = ws.tasks()
    proposed = with_train(ws.settings, num_leaves=9)
    trial = note_trial(ws, up, APRIL, settings=proposed, study="s")
    assert (trial.chosen_by, trial.chosen_asof) == ("study s", APRIL)
    again = note_trial(ws, up, JULY, settings=proposed, study="later")
    assert (again.chosen_by, again.chosen_asof) == ("study later", JULY)
    assert note_trial(ws, up, APRIL, settings=proposed, study="s").chosen_asof == JULY


def test_a_hand_cannot_backdate_its_choice_by_a_study(home, market) -> None:
    """The task is edited with every outcome at hand, then tuned as of April."""
    made = shipped_home(home)
    made.ingest(market)
    made.run(["features_daily", "labels"], "2015-06", "2016-08")
    ws = made.workspace
    hindsight = ws.tasks()[1].model_copy(update={"winsorize": 0.1})
    for settings in (ws.settings, with_train(ws.settings, num_leaves=9)):
        trial = note_trial(ws, hindsight, APRIL, settings=settings, study="s")
        assert trial.chosen_asof == LATER
    by_hand = with_train(ws.settings, num_leaves=11)
    assert note_trial(ws, ws.tasks()[0], APRIL, settings=by_hand).chosen_asof == LATER


def test_the_first_trial_of_a_study_is_a_choice_by_hand(tuned) -> None:
    usual = recipe_id(tuned.workspace, tuned.workspace.settings.task("ret_5d"))
    tuned.change_settings("learning_rate = 0.1", "learning_rate = 0.2")
    ws = tuned.workspace
    task = ws.settings.task("ret_5d")
    tune(ws, "2016-06", task, 1, quiet)
    (trial,) = [t for t in ws.meta.trials("ret_5d") if t.recipe == recipe_id(ws, task)]
    assert (trial.chosen_by, trial.chosen_asof) == ("hand", LATER)
    assert trial.recipe != usual


def test_a_recipe_that_a_model_was_trained_with_keeps_its_date(finished, tmp_path) -> None:
    ws = finished.copy(tmp_path / "copy").workspace
    task = ws.settings.task("up_5d")
    (before,) = ws.meta.trials("up_5d")
    after = note_trial(ws, task, date(2020, 1, 1), study="much later")
    assert (after.chosen_by, after.chosen_asof) == (before.chosen_by, before.chosen_asof)


def test_later_studies_add_their_sessions_to_a_recipe(home) -> None:
    ws = shipped_home(home).workspace
    (up, _) = ws.tasks()
    old = {"ts": ["2016-01-04", "2016-01-05"], "rank_ic": [0.1, 0.2], "top_minus_bottom": [1, 2]}
    new = {"ts": ["2016-01-05", "2016-01-06"], "rank_ic": [0.3, 0.4], "top_minus_bottom": [3, 4]}
    for series in (old, new):
        trial = note_trial(ws, up, APRIL, study="s", series=series)
    assert trial.series == {
        "ts": ["2016-01-04", "2016-01-05", "2016-01-06"], "rank_ic": [0.1, 0.3, 0.4],
        "top_minus_bottom": [1, 3, 4],
    }  # fmt: skip


def test_a_killed_trial_is_repeated_and_the_usual_one_is_never_mistaken(tuned) -> None:
    ws = tuned.workspace
    task = ws.settings.task("ret_5d")
    storage = f"sqlite:///{ws.home.models / 'studies.sqlite'}"
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    expected = study.trials[0].value
    study.ask()  # and its process is killed
    found = tune(ws, "2016-06", task, 1, quiet)
    assert found.usual_value == expected
    states = [t.state.name for t in study.get_trials()]
    assert len(states) == 5
    assert states[3] == "FAIL"

    ws.home.models.joinpath("studies.sqlite").unlink()
    fresh = optuna.create_study(study_name=name, storage=storage, direction="maximize")
    fresh.enqueue_trial({"num_leaves": 7}, user_attrs={"usual": True})
    fresh.ask()  # killed in its first trial
    assert tune(ws, "2016-06", task, 2, quiet).usual_value == expected


def test_settings_outside_of_the_space_are_tried_as_they_are(used) -> None:
    used.change_settings("learning_rate = 0.1", "learning_rate = 0.1\nlambda_l2 = 0.0")
    ws = used.workspace
    found = tune(ws, "2016-06", ws.settings.task("ret_5d"), 2, quiet)
    assert found.usual_value is not None
    (first, *_) = [t for t in ws.meta.trials("ret_5d") if t.recipe == recipe_id(
        ws, ws.settings.task("ret_5d"))]  # fmt: skip
    assert first.settings["train"]["lambda_l2"] == 0.0


def test_a_study_of_which_nothing_can_be_judged_says_so(used) -> None:
    used.change_settings("[universe]", "[metrics]\nmin_names = 50\n\n[universe]")
    ws = used.workspace
    with pytest.raises(DegenerateData, match="None of the 2 settings of study ret_5d"):
        tune(ws, "2016-06", ws.settings.task("ret_5d"), 2, quiet)


DAYS = np.busday_offset("2016-01-04", np.arange(100), roll="forward")


def spreads(first: int, last: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return DAYS[first:last], np.random.default_rng(seed).standard_normal(last - first)


def test_recipes_are_compared_where_most_of_them_were_tested() -> None:
    series = {"a": spreads(0, 60, 1), "b": spreads(10, 70, 2), "c": spreads(80, 100, 3)}
    recipes, days, matrix = choose_comparable(series, 40)
    assert recipes == ["a", "b"]
    np.testing.assert_array_equal(days, DAYS[10:60])
    np.testing.assert_array_equal(matrix[:, 0], series["a"][1][10:])
    np.testing.assert_array_equal(matrix[:, 1], series["b"][1][:50])
    assert choose_comparable(series | {"d": spreads(58, 60, 4)}, 40)[0] == ["a", "b"]
    assert choose_comparable({}, 40)[0] == []
    undefined = {"a": (DAYS, np.full(100, np.nan)), "b": spreads(0, 100, 5)}
    assert choose_comparable(undefined, 40)[0] == ["b"]


def test_what_cannot_be_compared_is_told(tuned) -> None:
    ws = tuned.workspace
    task = ws.settings.task("ret_5d")
    longer = task.model_copy(update={"horizon": 10})
    odd = {"ts": ["2001-01-04"], "rank_ic": [0.1], "top_minus_bottom": [0.1]}
    note_trial(ws, longer, APRIL, series=odd)
    ws.settings.train.model_copy(update={"num_leaves": 3})
    other = with_train(ws.settings, num_leaves=3)
    note_trial(ws, task, APRIL, settings=other, series=odd)
    refused = with_train(ws.settings, num_leaves=4)
    note_trial(ws, task, APRIL, settings=refused, refused="No signal.")
    found = judge_trials(ws, task)
    assert found["n_trials"] == 6
    assert sorted(found["left_out"].values()) == [
        "No signal.",
        "another horizon, entry lag or protocol",
        "tested on other sessions than most",
    ]
    assert 0 <= found["deflated_sharpe"] <= 1
    alone = judge_trials(ws, ws.settings.task("up_5d"))
    assert "nothing else was tried" in alone["missing"]


def test_a_study_changes_no_model_and_no_score(used) -> None:
    was = used.state()
    ws = used.workspace
    tune(ws, "2016-06", ws.settings.task("up_5d"), 2, quiet)
    now = used.state()
    assert was == now


def test_the_best_of_many_is_judged_by_how_many_there_were(tuned) -> None:
    ws = tuned.workspace
    task = ws.settings.task("ret_5d")
    found = judge_trials(ws, task)
    assert found["n_trials"] == len(found["trials"]) == 3
    assert 0 <= found["deflated_sharpe"] <= 1
    sharpes = {row["recipe"]: row["sharpe"] for row in found["trials"]}
    assert found["best"] in sharpes
    alone = judge_trials(ws, ws.settings.task("up_5d"))
    assert alone["n_trials"] == 1
    assert "deflated_sharpe" not in alone
