"""The jobs that run by themselves: what they find to do, and that they do it like a backfill."""

import os
from dataclasses import replace
from datetime import date, datetime
from zoneinfo import ZoneInfo

import dagster as dg
import pandas as pd
import pytest

from quant_pipeline.chain.daily import is_settled
from quant_pipeline.chain.inbox import take_inbox, waiting_files
from quant_pipeline.defs.location import make_definitions
from quant_pipeline.market.arrival import expected_session, judge_arrival
from quant_pipeline.settings import ScheduleSettings
from quant_pipeline.stores.meta import Champion
from quant_pipeline_tests.test_cli import call, succeed

SPEC = ScheduleSettings()
NEW_YORK = ZoneInfo("America/New_York")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=NEW_YORK)


# --- What a moment asks for


@pytest.mark.parametrize(
    ("now", "calendar", "expected"),
    [
        ("2016-07-01T18:00", "XNYS", date(2016, 7, 1)),
        ("2016-07-01T17:59", "XNYS", date(2016, 6, 30)),
        ("2016-07-02T20:00", "XNYS", date(2016, 7, 1)),
        ("2016-07-04T20:00", "XNYS", date(2016, 7, 1)),  # a holiday
        ("2016-07-05T09:00", "XNYS", date(2016, 7, 1)),
        ("2016-07-04T20:00", "", date(2016, 7, 4)),  # nobody knows that it is one
        ("2016-07-03T20:00", "", date(2016, 7, 1)),
        ("2016-11-06T23:00", "24/7", date(2016, 11, 6)),  # clocks are set back
    ],
)
def test_prices_are_expected_from_the_hour_of_the_job_on(now, calendar, expected):
    assert expected_session(at(now), SPEC, calendar) == expected


def test_a_market_without_weekends_expects_every_day():
    spec = ScheduleSettings(days="every_day")
    assert expected_session(at("2016-07-03T20:00"), spec, "") == date(2016, 7, 3)


@pytest.mark.parametrize(
    ("newest", "is_done", "calendar", "state", "words"),
    [
        (date(2016, 7, 5), False, "XNYS", "new", "sessions up to 2016-07-05 are to be scored"),
        (date(2016, 7, 1), False, "XNYS", "new", "; prices of 2016-07-05 are still missing"),
        (date(2016, 7, 5), True, "XNYS", "nothing_new", "none is missing"),
        (date(2016, 7, 1), True, "XNYS", "late", "prices of 2016-07-05 are missing"),
        (date(2016, 7, 1), True, "", "nothing_new", "cannot be known: sessions.calendar is empty"),
        (None, False, "", "late", "no session is stored"),
    ],
)
def test_late_data_is_told_from_a_holiday(newest, is_done, calendar, state, words):
    found = judge_arrival(newest, is_done, at("2016-07-05T18:30"), SPEC, calendar)
    assert found.state == state
    assert words in found.words


def test_a_deadline_before_the_job_is_refused():
    with pytest.raises(ValueError, match=r"late_after \(17:00\) must be later"):
        ScheduleSettings(late_after="17:00")


# --- The inbox


def deliver(made, frame: pd.DataFrame | bytes, name: str) -> None:
    made.workspace.home.inbox.mkdir(parents=True, exist_ok=True)
    path = made.workspace.home.inbox / name
    if isinstance(frame, bytes):
        path.write_bytes(frame)
    else:
        frame.to_parquet(path, index=False)
    os.utime(path, (0, 0))


def run_job(
    made, name: str = "daily_score", now: datetime | None = None
) -> tuple[dg.ExecuteInProcessResult, dict]:
    """Run a job with a Dagster instance in memory; gives its result and what it told."""
    workspace = made.workspace
    if now is not None:
        workspace = replace(workspace, clock=lambda: now)
    with dg.DagsterInstance.ephemeral() as instance:
        job = make_definitions(workspace).resolve_job_def(name)
        result = job.execute_in_process(instance=instance, raise_on_error=False)
        (step,) = [e for e in result.all_node_events if e.is_step_success or e.is_step_failure]
        outputs = [e for e in result.all_node_events if e.is_successful_output]
    shown = {k: v.value for e in outputs for k, v in e.step_output_data.metadata.items()}
    assert result.success == step.is_step_success
    return result, shown


def test_files_that_may_still_be_written_are_left_alone(home):
    made = home()
    deliver(made, b"x", "a.csv")
    for name in (".b.csv", "c.csv.part", "d.csv.reason.txt"):
        deliver(made, b"x", name)
    (made.workspace.home.inbox / "fresh.csv").write_bytes(b"x")
    assert [p.name for p in waiting_files(made.workspace.home)] == ["a.csv"]


def test_a_bad_file_is_moved_aside_with_its_reason_and_the_others_are_read(home, market):
    made = home()
    inbox = made.workspace.home.inbox
    deliver(made, b"<html>Too many requests</html>", "a.csv")
    deliver(made, market[market["ts"] < "2015-07-01"], "b.parquet")
    deliver(made, market[market["ts"] < "2015-07-01"].assign(close=-1.0), "c.parquet")
    taken = take_inbox(made.workspace, lambda _: None)
    assert [t.report is None for t in taken] == [True, False, True]
    assert sorted(p.name for p in (inbox / "failed").iterdir()) == [
        "a.csv", "a.csv.reason.txt", "c.parquet", "c.parquet.reason.txt",
    ]  # fmt: skip
    assert "a.csv" in (inbox / "failed" / "a.csv.reason.txt").read_text()
    assert "non_positive_price" in (inbox / "failed" / "c.parquet.reason.txt").read_text()
    assert [p.name for p in (inbox / "done").iterdir()] == ["b.parquet"]
    deliver(made, b"<html></html>", "a.csv")
    take_inbox(made.workspace, lambda _: None)
    assert (inbox / "failed" / "a.2.csv").exists()


# --- The jobs


def test_daily_runs_with_a_missed_day_give_the_scores_of_one_backfill(home, finished, market):
    made = home()
    made.ingest(market[market["ts"] < "2016-07-28"])
    _, shown = run_job(made)
    assert shown["state"] == "scored"
    for i, days in enumerate((["2016-07-28"], ["2016-07-29", "2016-08-01"], ["2016-08-02"])):
        deliver(made, market[market["ts"].isin(pd.to_datetime(days))], f"{i}.parquet")
        result, shown = run_job(made)
        assert result.success
        assert (shown["state"], shown["newest_session"]) == ("scored", days[-1])
    end = date(2016, 8, 3)
    expected = [row for row in finished.scores(end) if row[0] >= date(2016, 7, 1)]
    assert made.scores() == expected
    assert made.model_ids().items() <= finished.model_ids().items()
    runs = made.workspace.meta.daily_runs()
    assert [run.state for run in runs] == ["scored"] * 4
    assert runs[-1].newest_session == date(2016, 8, 2)
    _, shown = run_job(made)
    assert shown["state"] == "nothing_new"
    assert "cannot be known" in shown["because"]


def test_missing_prices_are_late_until_the_deadline_and_then_an_error_that_names_the_session(
    home, market
):
    made = home(changes={"[universe]": '[sessions]\ncalendar = "XNYS"\n\n[universe]'})
    made.ingest(market[market["ts"] < "2015-08-01"])
    assert run_job(made, now=at("2015-08-03T17:59"))[1]["state"] == "scored"
    was = made.state()
    result, shown = run_job(made, now=at("2015-08-03T18:00"))
    assert result.success
    assert (shown["state"], shown["expected_session"]) == ("late", "2015-08-03")
    assert not is_settled(made.workspace, at("2015-08-03T21:59"))
    for now in ("2015-08-03T22:00", "2015-08-04T17:59"):  # the deadline, and the day after
        result, shown = run_job(made, now=at(now))
        assert not result.success
        assert shown == {}
    runs = made.workspace.meta.daily_runs()
    assert [run.state for run in runs] == ["scored", "late", "given_up", "given_up"]
    assert {run.expected for run in runs[1:]} == {date(2015, 8, 3)}
    assert "prices of 2015-08-03 are missing" in runs[3].words
    assert "the newest stored session is 2015-07-31" in runs[3].words
    assert made.state() == was
    assert is_settled(made.workspace, at("2015-08-03T23:59"))
    assert not is_settled(made.workspace, at("2015-08-04T18:00"))


@pytest.mark.long
def test_a_bad_file_fails_the_run_after_the_good_ones_were_scored(home, market):
    made = home()
    made.ingest(market[market["ts"] < "2016-07-28"])
    deliver(made, b"<html></html>", "a.csv")
    result, _ = run_job(made)
    assert not result.success
    assert made.workspace.meta.daily_runs()[-1].state == "scored"
    assert made.scores()[-1][0] == date(2016, 7, 27)


def test_retrain_trains_the_newest_complete_window(home, finished, market):
    made = home()
    made.ingest(market)
    result, shown = run_job(made, "retrain")
    assert result.success
    assert shown["partition"] == "2016-07"
    assert set(made.model_ids()) == {("2016-07", "up_5d"), ("2016-07", "ret_5d")}
    assert made.model_ids().items() <= finished.model_ids().items()


# --- Schedules and the sensor


def evaluate(made, tick: datetime) -> dg.RunRequest | dg.SkipReason:
    definitions = make_definitions(made.workspace)
    schedule = definitions.resolve_schedule_def("daily_score_schedule")
    with dg.build_schedule_context(scheduled_execution_time=tick) as context:
        found = schedule.evaluate_tick(context)
    (what,) = found.run_requests or [dg.SkipReason(found.skip_message)]
    return what


def test_schedules_are_off_until_turned_on_and_go_by_the_clock_of_the_exchange(home):
    made = home()
    for name in ("daily_score_schedule", "retrain_schedule"):
        schedule = make_definitions(made.workspace).resolve_schedule_def(name)
        assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
        assert schedule.execution_timezone == "America/New_York"
    made.change_settings("[universe]", "[schedule]\ndaily = true\nretrain = true\n\n[universe]")
    for name in ("daily_score_schedule", "retrain_schedule"):
        schedule = make_definitions(made.workspace).resolve_schedule_def(name)
        assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING


def test_a_tick_asks_for_a_run_until_the_session_is_scored(used):
    before, after = at("2016-08-05T18:30"), at("2016-08-08T18:00")
    assert isinstance(evaluate(used, before), dg.RunRequest)
    run_job(used)
    assert isinstance(evaluate(used, before), dg.SkipReason)
    assert isinstance(evaluate(used, after), dg.RunRequest)


def test_new_files_start_the_daily_job_once(used):
    sensor = make_definitions(used.workspace).resolve_sensor_def("inbox")
    asked = []
    for files in ([], ["a.csv"], ["a.csv"], ["a.csv", "b.csv"]):
        for name in files:
            deliver(used, b"x", name)
        with dg.build_sensor_context() as context:
            asked.append([r.run_key for r in sensor.evaluate_tick(context).run_requests])
    assert asked[0] == []
    assert asked[1] == asked[2] != asked[3]
    assert len(asked[3]) == 1


# --- By hand


def test_the_jobs_run_by_hand_and_tell_what_they_found(home, market):
    made = home()
    made.ingest(market[market["ts"] < "2016-07-28"])
    found = succeed(made.root, "run", "daily", "--json").json
    assert (found["state"], found["newest_session"]) == ("scored", "2016-07-27")
    again = succeed(made.root, "run", "daily")
    assert again.out.splitlines()[-1].startswith("nothing_new: the newest stored session is 2016")
    (row, *_) = succeed(made.root, "run", "retrain", "--json").json
    assert row["asof"] == "2016-06-30"
    deliver(made, b"<html></html>", "a.csv")
    failed = call(made.root, "run", "daily")
    assert failed.code == 1
    assert "Moved to data/inbox/failed:" in failed.err


@pytest.mark.long
def test_as_ofs_trained_side_by_side_are_those_of_a_serial_backfill(home, finished, market):
    made = home()
    made.ingest(market)
    words = ("backfill", "--from", "2016-06-01", "--to", "2016-08-05", "--jobs", "2")
    succeed(made.root, *words)
    expected = {key: ids for key, ids in finished.model_ids().items() if key[0] >= "2016-05"}
    assert made.model_ids() == expected
    assert made.scores() == [row for row in finished.scores() if row[0] >= date(2016, 6, 1)]
    chosen = [(c["task_id"], c["partition_key"], c["model_id"]) for c in made.registry(Champion)]
    assert chosen == [
        (c["task_id"], c["partition_key"], c["model_id"])
        for c in finished.registry(Champion)
        if c["partition_key"] >= "2016-06"
    ]
