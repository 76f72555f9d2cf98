"""Models and scores rebuilt byte by byte: identical, explained, or an alarm; and diff adds up."""

import json
from datetime import date
from typing import Any

import numpy as np
import pytest

from quant_pipeline.chain import verify_scores as verifying
from quant_pipeline.chain.audit import audit
from quant_pipeline.chain.difference import Difference, Step, diff_models, diff_scores
from quant_pipeline.chain.proving import MODELS, SCORES, choose_sample, prove, verdicts
from quant_pipeline.chain.verify import verify_model, verify_since
from quant_pipeline.chain.verify_scores import verify_scores
from quant_pipeline.errors import NoData
from quant_pipeline.market.canaries import make_canaries
from quant_pipeline.ml import boosters
from quant_pipeline.stores.meta import Model
from quant_pipeline_tests.homes import SmallHome
from quant_pipeline_tests.test_cli import call

MARKET = (24, 380, 30)
DAY = date(2019, 5, 3)


def quiet(*_: Any) -> None:
    """Tell nobody."""


def model_of(made: SmallHome, task_id: str = "up_5d", which: int = -1) -> Model:
    return made.workspace.meta.models(task_id)[which]


def change_row(made: SmallHome, **values: Any) -> None:
    """Change the newest model's row, as if another version had made it."""
    with made.workspace.meta.writing() as session:
        row = session.get(Model, model_of(made).model_id)
        assert row is not None
        for name, value in values.items():
            setattr(row, name, value)
        session.add(row)


def test_what_was_made_comes_out_again_to_the_last_byte(canary_home):
    ws = canary_home.workspace
    found = verify_since(ws, date(2019, 1, 1), quiet)
    assert {v.outcome for v in found} == {"identical"}
    assert sum(v.kind == "model" for v in found) == 4
    assert all(not v.reasons and not v.today for v in found)
    n_sessions = len(canary_home.rows("SELECT DISTINCT ts, task_id FROM predictions"))
    assert sum(v.kind == "scores" for v in found) == n_sessions > 40


def test_a_restatement_changes_no_answer_and_todays_stands_beside_it(copied):
    before = copied.state()["Model"]
    copied.ingest(make_canaries(*MARKET).second)
    ws = copied.workspace
    model = verify_model(ws, model_of(copied))
    assert model.outcome == "identical"
    assert model.today["model_id"] != model_of(copied).model_id
    assert 0.5 < model.today["correlation"] < 1.0
    (scores,) = verify_scores(ws, model_of(copied), [DAY])
    assert scores.outcome == "identical"
    assert copied.state()["Model"] == before


def test_a_difference_without_a_reason_is_an_alarm(copied, monkeypatch):
    honest = boosters.booster_parameters

    def otherwise(*args: Any) -> dict[str, Any]:
        return honest(*args) | {"learning_rate": 0.11}

    monkeypatch.setattr(boosters, "booster_parameters", otherwise)
    found = verify_model(copied.workspace, model_of(copied))
    assert (found.outcome, found.reasons) == ("alarm", ())
    assert found.agreement["scores"] == 19
    assert found.agreement["correlation"] > 0.9


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"code_version": "0.0.1+abc"}, "code 0.0.1+abc then"),
        ({"environment": {"lightgbm": "4.0.0"}}, "lightgbm 4.0.0 then"),
        ({"feature_set_id": "other"}, "features or own modules"),
    ],
)
def test_another_outcome_is_explained_by_what_is_not_as_it_was(copied, monkeypatch, change, reason):
    honest = boosters.booster_parameters
    monkeypatch.setattr(
        boosters, "booster_parameters", lambda *a: honest(*a) | {"learning_rate": 0.11}
    )
    for reader in ("verify", "making"):  # whose file says the same as the changed row
        monkeypatch.setattr(f"quant_pipeline.chain.{reader}.read_boosters", lambda *_: [])
    monkeypatch.setattr("quant_pipeline.chain.verify.score_rows", lambda *_: np.arange(19.0))
    change_row(copied, **change)
    found = verify_model(copied.workspace, model_of(copied))
    assert found.outcome == "explained"
    assert reason in found.reasons[0]


def test_what_is_as_it_was_is_identical_whatever_the_versions_say(copied):
    change_row(copied, code_version="0.0.1+abc")
    assert verify_model(copied.workspace, model_of(copied)).outcome == "identical"


def test_a_changed_score_is_an_alarm_and_ends_the_command_with_1(copied):
    change = "UPDATE predictions SET score = score + 1e-9 WHERE symbol = 'C001' AND ts = ?"
    copied.change_series(change, DAY)
    said = call(copied.root, "verify", "--ts", str(DAY), "--symbol", "C001", "--task", "up_5d")
    assert said.code == 1
    assert "ALARM      C001 of up_5d on 2019-05-03" in said.out
    assert "because of stored rows that are not those that the registry recorded" in said.out
    others = call(copied.root, "verify", "--ts", str(DAY), "--symbol", "C003", "--json")
    assert others.code == 0
    rows = json.loads(others.out)
    assert {row["outcome"] for row in rows} == {"identical"}
    assert [row["kind"] for row in rows] == ["scores", "model"] * 2


def test_scores_that_were_written_otherwise_are_an_alarm_though_nothing_has_changed(
    copied, monkeypatch
):
    honest = verifying.score_rows
    monkeypatch.setattr(verifying, "score_rows", lambda *a: honest(*a) + 1e-9)
    said = call(copied.root, "verify", "--ts", str(DAY), "--symbol", "c001", "--task", "up_5d")
    assert said.code == 1
    assert "Nothing that is recorded has changed since" in said.out
    assert "Then and now: 1 score" not in said.out
    assert " instead of " in said.out


@pytest.mark.parametrize(
    ("status", "of_model", "of_scores"),
    [
        ("imported", "it was imported", ""),
        ("pruned", "", "its file was pruned"),
        ("ready", "its features are gone: No feature NOPE", ""),
        ("older", "", "was trained with LightGBM 3.1.0"),
    ],
)
def test_what_cannot_be_made_again_says_why(copied, status, of_model, of_scores):
    model = model_of(copied)
    changes: dict[str, Any] = {"status": "ready" if status == "older" else status}
    if status == "ready":
        features = model.settings["features"] | {"include": ["NOPE"]}
        changes["settings"] = model.settings | {"features": features}
    if status == "older":
        changes["environment"] = model.environment | {"lightgbm": "3.1.0"}
    change_row(copied, **changes)
    ws = copied.workspace
    found = verify_model(ws, model_of(copied))
    assert of_model in " ".join(found.reasons)
    assert found.outcome == ("explained" if of_model else "identical")
    (scores,) = verify_scores(ws, model_of(copied), [DAY])
    assert of_scores in " ".join(scores.reasons)
    assert scores.outcome == ("explained" if of_scores else "identical")
    if status == "ready":
        audited = audit(ws, [model.asof], [ws.settings.task("up_5d")])
        assert of_model in " ".join(p.words for p in audited if p.outcome == "unproven")


def test_what_is_not_there_is_told(copied):
    with pytest.raises(NoData, match=r"No score of X by model .* of up_5d on 2019-05-03"):
        verify_scores(copied.workspace, model_of(copied), [DAY], "X")
    said = call(copied.root, "verify")
    assert said.code == 2
    assert "Name a model, or a session by --ts, or give --all." in said.err


def test_a_sample_is_proved_once_a_night_and_shown_until_then(copied):
    ws = copied.workspace
    (unproved,) = verdicts(ws, "lgbm_model", ["2019-03"])
    assert unproved.words.startswith("Not proved yet: `quant audit --asof 2019-03-31`")
    first = choose_sample(ws)
    assert first == {"lgbm_model": ["2019-04"], "predictions": ["2019-05", "2019-04"]}
    said = call(copied.root, "run", "proofs", "--json")
    assert said.code == 0, said.err
    rows = said.json
    assert isinstance(rows, list)
    assert list(rows[0]) == ["asset", "name", "partition_key", "task_id", "passed", "words"]
    assert {row["asset"] for row in rows} == {"lgbm_model", "predictions"}
    assert choose_sample(ws)["lgbm_model"] == ["2019-03"]
    found = verdicts(ws, "lgbm_model", ["2019-04"])
    assert [(c.name, c.passed, c.numbers["failed"]) for c in found] == [(MODELS, True, 0)] * 2
    (one, other) = verdicts(ws, "predictions", ["2019-05"])
    assert one.numbers["proved"] == other.numbers["proved"] == 4


def test_a_proof_that_fails_fails_the_job_and_the_check(copied):
    copied.change_series("UPDATE predictions SET score = score + 1e-9 WHERE ts >= '2019-05-01'")
    said = call(copied.root, "run", "proofs")
    assert said.code == 1
    assert f"{SCORES} of 2019-05: " in said.err
    assert not any(c.passed for c in verdicts(copied.workspace, "predictions", ["2019-05"]))


def test_only_a_check_that_is_asked_for_alone_proves(copied):
    found = prove(copied.workspace, "predictions", ["2019-05"], quiet)
    assert [(c.name, c.passed) for c in found] == [(SCORES, True)] * 2
    (none,) = prove(copied.workspace, "lgbm_model", ["2018-05"], quiet)
    assert none.words == "No model yet."


# --- diff


def adds_up(found: Difference) -> None:
    for symbol, after in found.after.items():
        steps = sum(step.change[symbol] for step in found.steps)
        assert steps == pytest.approx(after - found.before[symbol], abs=1e-12)
    shares = [row["share"] for row in found.rows()]
    if shares and None not in shares:
        assert sum(shares) == pytest.approx(1.0)


def test_nothing_is_different_from_itself(canary_home):
    model = model_of(canary_home)
    found = diff_models(canary_home.workspace, model, model, DAY, quiet)
    assert found.steps == ()
    assert found.before == found.after


def test_another_as_of_is_the_whole_difference(canary_home):
    a, b = (model_of(canary_home, which=i) for i in (0, -1))
    found = diff_models(canary_home.workspace, a, b, DAY, quiet)
    assert [row["cause"] for row in found.rows()] == ["later data"]
    adds_up(found)


def test_each_cause_is_swapped_once_and_they_add_up(copied):
    ws = copied.workspace
    a = model_of(copied, which=0)
    copied.ingest(make_canaries(*MARKET).second)
    copied.change_settings("learning_rate = 0.1", "learning_rate = 0.2")
    copied.change_settings("min_median_value = 1000.0", "min_median_value = 4000000.0")
    copied.change_settings('set = "core"', 'set = "core"\ninclude = ["KMID", "ROC5"]')
    ws = copied.workspace
    found = diff_scores(ws, ws.settings.task(a.task_id), DAY, quiet)
    assert [s.cause for s in found.steps] == [
        "restated prices", "features", "universe", "settings",
    ]  # fmt: skip
    adds_up(found)
    assert all(any(step.change.values()) for step in found.steps)


def test_models_of_different_tasks_are_not_compared(canary_home):
    a, b = (model_of(canary_home, task_id=t) for t in ("up_5d", "ret_5d"))
    with pytest.raises(NoData, match="their scores mean different things"):
        diff_models(canary_home.workspace, a, b, DAY, quiet)


def test_the_command_tells_causes_and_one_symbols_way(canary_home):
    a, b = (model_of(canary_home, which=i).model_id for i in (0, -1))
    said = call(canary_home.root, "diff", a, b, "--ts", str(DAY), "--symbol", "C001", "--json")
    told = json.loads(said.out)
    assert told["session"] == str(DAY)
    mine = told["symbol"]
    total = sum(mine["changes"].values())
    assert total == pytest.approx(mine["after"] - mine["before"], abs=1e-12)
    assert call(canary_home.root, "diff", a).code == 2
    assert call(canary_home.root, "diff", a, b, "--ts", str(DAY), "--symbol", "X").code == 1


def test_shares_are_those_of_the_whole():
    steps = (Step("a", "", {"A": 1.0, "B": 0.0}), Step("b", "", {"A": 1.0, "B": 2.0}))
    found = Difference(DAY, {"A": 0.0, "B": 0.0}, {"A": 2.0, "B": 2.0}, steps)
    assert [row["share"] for row in found.rows()] == [0.25, 0.75]
    assert [row["mean_change"] for row in found.rows()] == [0.5, 1.5]
