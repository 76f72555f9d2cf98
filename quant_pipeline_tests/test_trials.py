"""The ledger counts recipes by itself, studies go on, and settings know when they were chosen."""

import math
from datetime import date

import numpy as np
import pytest

from quant_pipeline.chain.trials import collect_series, judge_trials, note_trial, recipe_id
from quant_pipeline.chain.tune import tune
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


def test_what_a_study_proposed_is_known_since_its_asof(tuned) -> None:
    ws = tuned.workspace
    task = ws.settings.task("ret_5d")
    found = tune(ws, "2016-06", task, 1, quiet)
    proposals = [t for t in ws.meta.trials("ret_5d") if t.chosen_by.startswith("study ret_5d")]
    assert len(proposals) == 3
    assert {t.chosen_asof for t in proposals} == {date(2016, 6, 30)}
    lines = "\n".join(f"{k} = {v}" for k, v in proposals[0].settings["train"].items())
    text = (tuned.root / "quant.toml").read_text()
    (tuned.root / "quant.toml").write_text(text[: text.index("[train]")] + "[train]\n" + lines)
    tuned.run(["walkforward_folds", "lgbm_model"], "2016-07")
    model = [m for m in tuned.workspace.meta.models("ret_5d") if m.recipe == proposals[0].recipe]
    assert [m.chosen_asof for m in model] == [date(2016, 6, 30)]
    assert found.best.keys() <= proposals[0].settings["train"].keys()


def test_a_study_changes_no_model_and_no_score(used) -> None:
    was = used.state()
    ws = used.workspace
    tune(ws, "2016-06", ws.settings.task("up_5d"), 2, quiet)
    now = used.state()
    assert {k for k in was if was[k] != now[k]} <= {"walkforward_folds"}
    assert was["walkforward_folds"] == now["walkforward_folds"]


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
