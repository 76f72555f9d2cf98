"""Alerts: who is told of what, once; a message that nobody took is sent again."""

import json
import sys
from datetime import date
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.tags import PARENT_RUN_ID_TAG

from quant_pipeline.chain.alerts import Alert, send
from quant_pipeline.defs.location import make_definitions
from quant_pipeline.errors import AlertFailed, NotEnoughHistory
from quant_pipeline.stores.meta import CheckResult, DailyRun, utc_now
from quant_pipeline_tests.homes import SmallHome

# Appends what it is told to a file of the home, but for messages with the text of `refused`.
TAKES = """import pathlib, sys
text, refused = sys.stdin.read(), pathlib.Path("refused")
if refused.exists() and refused.read_text() in text:
    sys.exit("nobody is there")
with open("told.jsonl", "a") as file:
    file.write(text + chr(10))
"""
KINDS = ("run_failed", "check_failed", "data_late")


@pytest.fixture
def listening(used: SmallHome) -> SmallHome:
    """A home whose alerts go to a file."""
    (used.root / "take.py").write_text(TAKES)
    command = json.dumps([sys.executable, "take.py"])
    used.change_settings("[universe]", f"[alerts]\ncommand = {command}\n\n[universe]")
    return used


def told(made: SmallHome) -> list[dict[str, Any]]:
    file = made.root / "told.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def tick(made: SmallHome, instance: dg.DagsterInstance, kind: str, cursor: str | None) -> str:
    """Evaluate a sensor once; gives its new cursor."""
    definitions = make_definitions(made.workspace)
    sensor = definitions.resolve_sensor_def(f"alert_{kind}")
    with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
        sensor.evaluate_tick(context)
        assert context.cursor is not None
        return context.cursor


def check(passed: bool, severity: str = "ERROR", run_id: str = "r1", **facts: Any) -> CheckResult:
    values = {
        "asset": "prices_daily", "name": "moves_are_plausible", "partition_key": "2016-06",
        "task_id": "", "numbers": {"moves": 3}, "words": "3 moves.",
    }  # fmt: skip
    return CheckResult(
        passed=passed, severity=severity, run_id=run_id, checked_at=utc_now(), **values | facts
    )


def test_a_failed_run_is_told_once_with_its_first_error(listening):
    with listening.runner(recorded=True) as runner:
        cursor = tick(listening, runner.instance, "run_failed", None)
        with pytest.raises(NotEnoughHistory) as raised:
            runner.materialize(["walkforward_folds"], "2015-07", "2015-07")
        (run,) = runner.instance.get_runs(limit=1)
        again = tick(listening, runner.instance, "run_failed", cursor)
        assert tick(listening, runner.instance, "run_failed", again) == again
    (message,) = told(listening)
    assert message["kind"] == "run_failed"
    assert message["run_id"] == run.run_id
    assert message["text"].startswith("quant_pipeline in used: walkforward_folds failed in 2015-07")
    assert str(raised.value) in message["text"]
    assert message["home"] == str(listening.root)


def test_a_run_within_another_is_told_by_the_outer_one_alone(listening):
    listening.change_series("DELETE FROM training_manifest")
    listening.change_series("DELETE FROM walkforward_folds")
    with listening.runner(recorded=True) as runner:
        cursor = tick(listening, runner.instance, "run_failed", None)
        listening.change_series("ALTER TABLE features_daily RENAME TO gone")
        job = make_definitions(listening.workspace).resolve_job_def("retrain")
        job.execute_in_process(instance=runner.instance, raise_on_error=False)
        tick(listening, runner.instance, "run_failed", cursor)
        failed = runner.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    assert [PARENT_RUN_ID_TAG in run.tags for run in failed].count(True) == 1
    (message,) = told(listening)
    assert "retrain failed" in message["text"]


def test_failed_checks_are_told_run_by_run_from_the_severity_on(listening):
    meta = listening.workspace.meta
    with dg.DagsterInstance.ephemeral() as instance:
        meta.add_check_results([check(False)])
        cursor = tick(listening, instance, "check_failed", None)
        assert told(listening) == [], "what happened before is no news"
        meta.add_check_results(
            [check(False), check(True), check(False, "WARN"), check(False, run_id="r2")]
        )
        cursor = tick(listening, instance, "check_failed", cursor)
        assert [m["run_id"] for m in told(listening)] == ["r1", "r2"]
        assert [len(m["checks"]) for m in told(listening)] == [1, 1]
        assert "prices_daily/moves_are_plausible 2016-06: 3 moves." in told(listening)[0]["text"]
        tick(listening, instance, "check_failed", cursor)
        assert len(told(listening)) == 2
        listening.change_settings("[alerts]\n", '[alerts]\nseverity = "WARN"\n')
        meta.add_check_results([check(False, "WARN", partition_key=f"2016-0{i}") for i in range(9)])
        tick(listening, instance, "check_failed", cursor)
    message = told(listening)[-1]
    assert len(message["checks"]) == 9
    assert "9 checks failed (and 4 more)" in message["text"]


def test_a_day_without_prices_is_told_as_late_and_not_as_a_failed_run(listening):
    words = "prices of 2016-07-05 are missing"
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = tick(listening, instance, "data_late", None)
        for state in ("late", "given_up", "scored"):
            listening.workspace.meta.add_daily_run(
                DailyRun(
                    state=state, expected=date(2016, 7, 5), newest_session=date(2016, 7, 1),
                    words=words, run_id="r3", ran_at=utc_now(),
                )
            )  # fmt: skip
        tick(listening, instance, "data_late", cursor)
    (message,) = told(listening)
    assert message["kind"] == "data_late"
    assert words in message["text"]
    assert (message["expected"], message["newest_session"]) == ("2016-07-05", "2016-07-01")


def test_what_nobody_took_is_sent_again(listening):
    meta = listening.workspace.meta
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = tick(listening, instance, "check_failed", None)
        meta.add_check_results([check(False)])
        (listening.root / "refused").touch()
        with pytest.raises(AlertFailed, match="ended with 1: nobody is there"):
            tick(listening, instance, "check_failed", cursor)
        (listening.root / "refused").unlink()
        tick(listening, instance, "check_failed", cursor)
    assert len(told(listening)) == 1


def test_what_was_told_is_not_told_again_when_a_later_one_fails(listening):
    (listening.root / "refused").write_text("prices_daily/stop")
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = tick(listening, instance, "check_failed", None)
        listening.workspace.meta.add_check_results(
            [check(False), check(False, run_id="r2", name="stop"), check(False, run_id="r3")]
        )
        cursor = tick(listening, instance, "check_failed", cursor)
        assert [m["run_id"] for m in told(listening)] == ["r1"]
        (listening.root / "refused").unlink()
        tick(listening, instance, "check_failed", cursor)
    assert [m["run_id"] for m in told(listening)] == ["r1", "r2", "r3"]


def test_one_of_two_ways_is_enough(listening, monkeypatch):
    monkeypatch.setenv("QUANT_ALERTS__WEBHOOK", "http://127.0.0.1:9/nobody")
    (problem,) = send(listening.workspace, Alert("data_late", 1, "x"))
    assert "did not take a message" in problem
    assert len(told(listening)) == 1


def test_a_run_that_gave_up_is_told_as_failed_if_nobody_wants_late_days(listening):
    with listening.runner(recorded=True) as runner:
        with pytest.raises(NotEnoughHistory):
            runner.materialize(["walkforward_folds"], "2015-07", "2015-07")
        (run,) = runner.instance.get_runs(limit=1)
        listening.workspace.meta.add_daily_run(
            DailyRun(state="given_up", expected=date(2016, 7, 5), newest_session=None, words="x",
                     run_id=run.run_id, ran_at=utc_now())
        )  # fmt: skip
        tick(listening, runner.instance, "run_failed", "0")
        assert told(listening) == []
        listening.change_settings("[alerts]\n", '[alerts]\non = ["run_failed"]\n')
        tick(listening, runner.instance, "run_failed", "0")
    assert len(told(listening)) == 1


def test_more_than_ten_at_once_are_summed_up(listening):
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = tick(listening, instance, "check_failed", None)
        listening.workspace.meta.add_check_results(
            [check(False, run_id=f"r{i}") for i in range(14)]
        )
        tick(listening, instance, "check_failed", cursor)
    assert len(told(listening)) == 11
    assert "4 more of check_failed" in told(listening)[-1]["text"]


@pytest.mark.parametrize("kind", KINDS)
def test_without_anybody_to_tell_the_cursor_goes_on(used, kind):
    used.workspace.meta.add_check_results([check(False)])
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = tick(used, instance, kind, "0")
    assert (int(cursor) > 0) == (kind == "check_failed")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("WEBHOOK", "http://127.0.0.1:9/nobody", "The webhook of .alerts. did not take a message"),
        ("COMMAND", '["no-such-program"]', "could not be run: .*no-such-program"),
    ],
)
def test_an_alert_that_cannot_be_sent_says_why(home, monkeypatch, variable, value, words):
    made = home()
    monkeypatch.setenv(f"QUANT_ALERTS__{variable}", value)
    with pytest.raises(AlertFailed, match=words):
        send(made.workspace, Alert("data_late", 1, "x"))
