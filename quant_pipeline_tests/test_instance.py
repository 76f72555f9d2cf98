"""The Dagster instance of a home: a killed run holds up nobody, a living one is left alone."""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from dagster import DagsterRunStatus

from quant_pipeline.defs.instance import alive, bury_dead_runs, open_instance, prepare, template
from quant_pipeline.errors import GateError

RUN = """
import sys
from pathlib import Path
from quant_pipeline_tests.homes import SmallHome
with SmallHome(Path(sys.argv[1])).runner(recorded=True) as runner:
    runner.materialize(["features_daily", "labels"], "2015-06", "2016-08")
"""


def claimed(instance) -> dict[str, int]:
    """How many steps hold each pool."""
    storage = instance.event_log_storage
    keys = storage.get_concurrency_keys()
    return {key: len(storage.get_concurrency_info(key).claimed_slots) for key in keys}


def kill_while_writing_labels(used) -> None:
    lock = used.root / "data" / "quant.duckdb.lock"
    lock.write_text("")
    process = subprocess.Popen([sys.executable, "-c", RUN, str(used.root)], env=dict(os.environ))
    deadline = time.monotonic() + 90
    try:
        while '"what": "labels"' not in lock.read_text():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "the run did not get there"
            time.sleep(0.002)  # between two polls: the core belongs to the run
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL


def test_a_run_killed_inside_a_pool_is_reported_and_holds_up_nobody(used):
    was = used.state()
    kill_while_writing_labels(used)
    home = used.workspace.home
    with open_instance(home) as instance:
        (run,) = instance.get_runs(limit=1)
        assert run.status is DagsterRunStatus.STARTED
        assert claimed(instance)["series"] == 1, "or else this test shows nothing"
        with alive(home, "another run, which lives"):
            assert bury_dead_runs(instance, home) == [run.run_id]
        assert instance.get_run_by_id(run.run_id).status is DagsterRunStatus.FAILURE
        assert claimed(instance)["series"] == 0
        assert bury_dead_runs(instance, home) == []
    with used.runner(recorded=True) as runner:
        runner.materialize(["features_daily", "labels", "training_frame"], "2015-06", "2016-08")
        assert not any(claimed(runner.instance).values())
    assert used.state() == was


def test_a_run_tells_which_process_it_is(used):
    with used.runner(recorded=True) as runner:
        runner.materialize(["labels"], "2016-07", "2016-07")
        (run,) = runner.instance.get_runs(limit=1)
    assert run.tags["quant/pid"] == str(os.getpid())
    assert run.tags["quant/host"] == socket.gethostname()
    started = datetime.fromisoformat(run.tags["quant/process_started"])
    assert started < datetime.now(UTC)


def wait_until(process: subprocess.Popen, is_reached) -> None:
    deadline = time.monotonic() + 90
    while not is_reached():
        assert process.poll() is None, "the process ended before it got there"
        assert time.monotonic() < deadline, "the process did not get there"
        time.sleep(0.01)  # between two polls of another process


def test_ctrl_c_in_mid_training_frees_everything_and_the_next_command_goes_on(used):
    used.change_settings("max_rounds = 30\nearly_stopping_rounds = 5", LONG)
    command = [str(Path(sys.executable).with_name("quant")), "backfill",
               "--from", "2016-08-01", "--to", "2016-08-05", "--task", "up_5d"]  # fmt: skip
    environment = {**os.environ, "QUANT_HOME": str(used.root)}
    home = used.workspace.home
    was = used.state()
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        with open_instance(home) as instance:
            wait_until(process, lambda: claimed(instance).get("training", 0) == 1)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 130
            assert process.stderr is not None
            with process.stderr as said:
                assert said.read().splitlines()[1:] == [
                    "Stopped. What was finished is kept; the same command goes on from there."
                ]
            assert not any(claimed(instance).values())
            (run,) = instance.get_runs(limit=1)
            assert run.is_finished
            assert not run.is_success
    finally:
        process.kill()
    assert list((home.dagster / "alive").iterdir()) == []
    is_now = used.state()
    del was["walkforward_folds"], is_now["walkforward_folds"]
    assert is_now == was
    used.change_settings(LONG, "max_rounds = 30\nearly_stopping_rounds = 5")
    used.backfill(date(2016, 8, 1))
    assert used.scores()[-1][0] == date(2016, 8, 5)


LONG = "max_rounds = 50000\nearly_stopping_rounds = 50000"


def test_a_step_that_fails_gives_its_pool_back(used):
    used.change_series("DELETE FROM training_manifest WHERE partition_key = '2016-02'")
    with used.runner(recorded=True) as runner:
        with pytest.raises(GateError):
            runner.materialize(["walkforward_folds"], "2016-07", "2016-07")
        assert not any(claimed(runner.instance).values())
        (run,) = runner.instance.get_runs(limit=1)
        assert run.status is DagsterRunStatus.FAILURE
    assert list((used.workspace.home.dagster / "alive").iterdir()) == []


def test_the_instance_keeps_its_files_in_the_home_wherever_that_is_moved(used):
    home = used.workspace.home
    with open_instance(home) as instance:
        assert len(instance.get_runs()) > 3, "runs of before the home was copied"
    assert (home.dagster / "dagster.yaml").read_text() == template("dagster.yaml")
    assert str(home.root) not in template("dagster.yaml")
    assert prepare(home)["DAGSTER_HOME"] == str(home.dagster)
