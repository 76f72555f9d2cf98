"""Housekeeping: what is old goes, what any partition's state is known from stays."""

import os
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Executions

from quant_pipeline.defs.housekeeping import keep_house, needed_runs
from quant_pipeline.defs.instance import open_instance
from quant_pipeline.errors import StoreBusy, StoreError
from quant_pipeline.stores.compaction import compact, measure
from quant_pipeline.stores.copies import SAID
from quant_pipeline_tests.homes import EVERY, SmallHome
from quant_pipeline_tests.test_cli import succeed

LATER = datetime.now(UTC) + timedelta(days=400)


def quiet(*_: object) -> None:
    """Tell nobody."""


def seen(instance: dg.DagsterInstance) -> dict[str, dict[str, object]]:
    """What the UI knows of each partition: its latest materialization, and its checks."""
    storage = instance.event_log_storage
    found = {}
    for asset in EVERY:
        ids = storage.get_latest_storage_id_by_partition(
            dg.AssetKey(asset), dg.DagsterEventType.ASSET_MATERIALIZATION
        )
        found[asset] = dict(ids)
    with storage.index_connection() as con:
        rows = con.execute(Executions.select().order_by(Executions.c.id)).fetchall()
    checks = {(r.asset_key, r.check_name, r.partition): r.evaluation_event for r in rows}
    return found | {"checks": checks}


def test_old_runs_go_and_partitions_look_as_before(used):
    with used.runner(recorded=True) as runner:
        for _ in range(2):
            runner.materialize(["features_daily", "labels"], "2016-05", "2016-06")
        with pytest.raises(Exception, match=r"fold|sessions"):
            runner.materialize(["walkforward_folds"], "2015-07", "2015-07")
    with open_instance(used.workspace.home) as instance:
        was = seen(instance)
        ids = {run.run_id for run in instance.get_runs()}
        needed = needed_runs(instance)
        assert ids - needed, "or else there is nothing to delete"
        told = keep_house(used.workspace, instance, LATER, quiet, dry_run=True)
        assert {run.run_id for run in instance.get_runs()} == ids
        done = keep_house(used.workspace, instance, LATER, quiet, dry_run=False)
        assert (told.runs_deleted, told.log_folders_deleted) == (
            done.runs_deleted, done.log_folders_deleted,
        )  # fmt: skip
        assert done.runs_deleted == len(ids - needed)
        assert done.runs_kept_for_partitions == len(ids & needed)
        assert {run.run_id for run in instance.get_runs()} == ids & needed
        assert seen(instance) == was
        files = {p.stem for p in (used.workspace.home.dagster / "history" / "runs").glob("*-*.db")}
        assert files == ids & needed
        again = keep_house(used.workspace, instance, LATER, quiet, dry_run=False)
        assert again.runs_deleted == 0


def test_what_is_young_stays(used):
    with open_instance(used.workspace.home) as instance:
        n = len(instance.get_runs())
        done = keep_house(used.workspace, instance, datetime.now(UTC), quiet, dry_run=False)
        assert (done.runs_deleted, done.runs_kept_for_partitions) == (0, 0)
        assert len(instance.get_runs()) == n


def test_only_logs_in_which_nothing_is_written_any_more_are_deleted(used):
    logs = used.workspace.home.dagster / "logs"
    for name, age in (("old", 100), ("young", 1)):
        (logs / name / "compute_logs").mkdir(parents=True)
        file = logs / name / "compute_logs" / "x.out"
        file.write_text("x")
        then = (datetime.now(UTC) - timedelta(days=age)).timestamp()
        for path in (file, file.parent, logs / name):
            os.utime(path, (then, then))
    with open_instance(used.workspace.home) as instance:
        done = keep_house(used.workspace, instance, datetime.now(UTC), quiet, dry_run=False)
    assert done.log_folders_deleted == 1
    assert not (logs / "old").exists()
    assert (logs / "young").exists()


# --- Compaction


def half_empty(used: SmallHome) -> None:
    used.change_series("CREATE TABLE ballast AS SELECT random() AS x FROM range(3000000)")
    used.change_series("DROP TABLE ballast")


def test_compaction_gives_room_back_and_changes_nothing(used):
    half_empty(used)
    was, room = used.state(), measure(used.workspace.series)
    assert room.free_share > 0.5
    said = [used.rows(sql, "quant") for sql in SAID.values()]
    assert [len(rows) > 3 for rows in said] == [True, True, True, False]
    after = compact(used.workspace.series)
    assert after.total < room.total / 2
    assert used.state() == was
    assert [used.rows(sql, "quant") for sql in SAID.values()] == said
    assert not list((used.root / "data").glob("*.compact*"))
    used.backfill(date(2016, 8, 1))
    assert used.state() == was, "and it can be written to"


def test_what_cannot_be_compacted_stays_as_it_is(used, monkeypatch):
    half_empty(used)
    was, room = used.state(), measure(used.workspace.series)
    usage = os.statvfs(used.root)
    monkeypatch.setattr(
        "shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000, "total": usage.f_blocks})
    )
    with pytest.raises(StoreError, match=r"needs .* MiB beside it; the disk has 0 MiB"):
        compact(used.workspace.series)
    assert (used.state(), measure(used.workspace.series)) == (was, room)


def test_nobody_writes_meanwhile(used):
    used.change_settings("[universe]", "[store]\nlock_wait_seconds = 0.2\n\n[universe]")
    series = used.workspace.series
    with series.reading("a test"), pytest.raises(StoreBusy):
        compact(series)


def test_the_command_tells_and_does(used):
    half_empty(used)
    told = succeed(used.root, "run", "housekeeping", "--dry-run", "--json").json
    done = succeed(used.root, "run", "housekeeping", "--json").json
    assert told["runs_deleted"] == done["runs_deleted"] == 0
    assert done["empty_share_before"] > 0.5
    assert done["database_mib_after"] < done["database_mib_before"] / 2
    assert told["database_mib_after"] == pytest.approx(done["database_mib_after"], rel=0.5)
