"""The assets as Dagster sees them: keys, dependencies, mappings, pools, and the one grid."""

import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest

from quant_pipeline.defs.grid import make_partitions
from quant_pipeline.defs.location import make_definitions
from quant_pipeline.market.grid import Grid
from quant_pipeline.settings import GridSettings, Settings

SNAPSHOT = {
    # asset: (group, pool, backfill in runs of, {dependency: partition offset})
    "prices_daily": ("market", "series", None, {}),
    "features_daily": ("market", "series", None, {"prices_daily": 0}),
    "labels": ("market", "series", None, {"prices_daily": 0}),
    "training_frame": ("learning", "series", None, {"features_daily": 0, "labels": 0}),
    "walkforward_folds": ("learning", "series", 1, {"training_frame": 0}),
    "lgbm_model": ("learning", "training", 1, {"walkforward_folds": 0}),
    "predictions": ("predictions", "series", None, {"features_daily": 0, "lgbm_model": -1}),
    "prediction_outcomes": ("predictions", "series", None, {"labels": 0, "predictions": 0}),
}
CHECKS = {
    ("prices_daily", "no_session_is_missing"),
    ("prices_daily", "bars_are_not_stale"),
    ("prices_daily", "moves_are_plausible"),
    ("prices_daily", "sessions_are_covered"),
    ("prices_daily", "prices_are_recent"),
    ("features_daily", "features_are_finite"),
    ("features_daily", "features_are_filled"),
    ("features_daily", "features_have_not_drifted"),
    ("labels", "labels_follow_their_sessions"),
    ("labels", "base_rate_is_usual"),
    ("training_frame", "increments_are_complete"),
    ("training_frame", "examples_are_as_recorded"),
    ("walkforward_folds", "windows_do_not_overlap"),
    ("lgbm_model", "model_is_usable"),
    ("lgbm_model", "future_does_not_matter"),
    ("predictions", "scores_are_rebuilt"),
    ("predictions", "scores_come_from_earlier_models"),
    ("predictions", "universe_is_scored"),
    ("predictions", "scores_are_spread"),
    ("predictions", "scores_are_unique"),
    ("predictions", "scores_have_not_drifted"),
    ("predictions", "scores_are_reproduced"),
    ("prediction_outcomes", "rank_ic_is_usual"),
}


@pytest.fixture
def graph(workspace):
    return make_definitions(workspace).resolve_asset_graph()


def offset(node, parent) -> int:
    mapping = node.partition_mappings.get(parent)
    if mapping is None:
        return 0
    assert type(mapping) is dg.TimeWindowPartitionMapping
    assert mapping.start_offset == mapping.end_offset, "one to one"
    return mapping.start_offset


def test_the_asset_graph_is_the_one_of_the_design(graph):
    found = {}
    for node in graph.asset_nodes:
        key = node.key.to_user_string()
        policy = node.backfill_policy
        (pool,) = node.pools
        found[key] = (
            node.group_name,
            pool,
            policy.max_partitions_per_run,
            {parent.to_user_string(): offset(node, parent) for parent in node.parent_keys},
        )
    assert found == SNAPSHOT


def test_each_asset_has_a_text_for_the_catalogue(graph):
    for node in graph.asset_nodes:
        assert node.description
        assert len(node.description) > 40, node.key


def test_gates_are_shown_as_checks(graph):
    assert {(key.asset_key.to_user_string(), key.name) for key in graph.asset_check_keys} == CHECKS


def test_all_assets_and_checks_share_one_grid(graph, workspace):
    grid = make_partitions(workspace.settings)
    assert {node.partitions_def for node in graph.asset_nodes} == {grid}
    assert {graph.get(key).partitions_def for key in graph.asset_check_keys} == {grid}


@pytest.mark.parametrize("cadence", ["monthly", "weekly", "daily"])
@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Manila", "Europe/London", "UTC"])
def test_the_grid_of_dagster_is_the_grid(cadence, zone):
    """Keys and windows agree over years, clock changes included, up to today's open window."""
    settings = Settings(grid=GridSettings(cadence=cadence, start=date(2015, 3, 18), timezone=zone))
    theirs = make_partitions(settings)
    ours = Grid(cadence, settings.grid.start)
    now = datetime(2019, 11, 20, 12, tzinfo=UTC)
    keys = list(theirs.get_partition_keys(current_time=now))
    assert keys == ours.keys(ours.key(settings.grid.start), ours.key(now.date()))
    for key in keys:
        window = theirs.time_window_for_partition_key(key)
        assert (window.start.date(), window.end.date()) == ours.window(key)
        midnights = {moment.strftime("%H:%M") for moment in (window.start, window.end)}
        assert midnights == {"00:00"}
    assert theirs.get_last_partition_key() == ours.key(datetime.now(settings.grid.zone).date())


@pytest.mark.parametrize("cadence", ["monthly", "weekly", "daily"])
@pytest.mark.parametrize("day", [date(2016, 2, 29), date(2016, 12, 31), date(2018, 1, 1)])
def test_the_open_window_is_the_one_that_holds_today(cadence, day):
    settings = Settings(grid=GridSettings(cadence=cadence, timezone="UTC"))
    theirs, ours = make_partitions(settings), Grid(cadence, settings.grid.start)
    for hour in (0, 23):
        now = datetime(day.year, day.month, day.day, hour, 30, tzinfo=UTC)
        assert list(theirs.get_partition_keys(current_time=now))[-1] == ours.key(day)
    tomorrow = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
    last = list(theirs.get_partition_keys(current_time=tomorrow))[-1]
    assert last == ours.key(day + timedelta(days=1))


def test_importing_the_definitions_warns_of_nothing(home):
    made = home()
    command = [sys.executable, "-W", "error", "-c", "import quant_pipeline.definitions"]
    environment = {**os.environ, "QUANT_HOME": str(made.root)}
    done = subprocess.run(
        command, env=environment, cwd=made.root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in made.root.iterdir()] == ["quant.toml"], "only reads"


def test_the_definitions_load_as_the_web_server_loads_them(workspace):
    definitions = make_definitions(workspace)
    dg.Definitions.validate_loadable(definitions)
    job = definitions.resolve_implicit_global_asset_job_def()
    assert job.executor_def.name == "in_process"


def test_the_daemon_looks_after_killed_runs_and_the_inbox_by_default(workspace):
    sensors = {s.name: s for s in make_definitions(workspace).sensors}
    told = {"alert_run_failed", "alert_check_failed", "alert_data_late"}
    assert sensors.keys() == {"killed_runs", "inbox"} | told
    assert all(s.default_status is dg.DefaultSensorStatus.RUNNING for s in sensors.values())
    sensor = sensors["killed_runs"]
    with dg.DagsterInstance.ephemeral() as instance:
        found = sensor.evaluate_tick(dg.build_sensor_context(instance))
    assert (found.run_requests, found.skip_message) == ([], "No run was killed.")
