"""What would grow for ever: Dagster's old runs and logs, and room that deleted rows left."""

import shutil
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Executions
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.reporting import Progress
from quant_pipeline.errors import StoreError
from quant_pipeline.stores.compaction import Room, compact, measure

ENDED = [
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
]


@dataclass(frozen=True)
class Kept:
    """What housekeeping did, or would do."""

    runs_deleted: int
    runs_kept_for_partitions: int
    log_folders_deleted: int
    database_before: Room
    database_after: Room


def keep_house(
    ws: Workspace, instance: dg.DagsterInstance, now: datetime, tell: Progress, *, dry_run: bool
) -> Kept:
    """Delete runs that ended long ago and old logs, and compact the database if it is worth it.

    A run that has the latest materialization or check of any partition stays, so that no partition
    looks different afterwards.
    """
    spec = ws.settings.housekeeping
    before = now - timedelta(days=spec.keep_days)
    old = instance.get_run_records(dg.RunsFilter(statuses=ENDED, updated_before=before))
    ids = [record.dagster_run.run_id for record in old]
    needed = needed_runs(instance) if ids else set()
    wanted = [run_id for run_id in ids if run_id not in needed]
    logs = old_logs(ws.home.dagster / "logs", before)
    room = measure(ws.series)
    is_worth_it = room.free_share >= spec.compact_from
    after = Room(room.total - room.free, 0) if is_worth_it else room
    if not dry_run:
        for i, run_id in enumerate(wanted):
            tell("deleting old runs", i, len(wanted))
            delete_run(instance, run_id)
        for folder in logs:
            shutil.rmtree(folder, ignore_errors=True)
        if is_worth_it:
            tell("compacting the database", 0, 1)
            after = compact(ws.series)
    return Kept(len(wanted), len(ids) - len(wanted), len(logs), room, after)


def describe_kept(done: Kept) -> dict[str, Any]:
    """The same in plain words and numbers."""
    mib = 2**20
    return {
        "runs_deleted": done.runs_deleted,
        "old_runs_kept_for_partitions": done.runs_kept_for_partitions,
        "log_folders_deleted": done.log_folders_deleted,
        "database_mib_before": round(done.database_before.total / mib, 1),
        "database_mib_after": round(done.database_after.total / mib, 1),
        "empty_share_before": round(done.database_before.free_share, 3),
    }


def needed_runs(instance: dg.DagsterInstance) -> set[str]:
    """Runs with the latest materialization or observation, or check, of some partition."""
    storage = _storage(instance)
    newest_check = sa.select(sa.func.max(Executions.c.id)).group_by(
        Executions.c.asset_key, Executions.c.check_name, Executions.c.partition
    )
    kinds = (dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_OBSERVATION)
    newest_event = (
        sa.select(sa.func.max(Events.c.id))
        .where(Events.c.dagster_event_type.in_([kind.value for kind in kinds]))
        .group_by(Events.c.dagster_event_type, Events.c.asset_key, Events.c.partition)
    )
    with storage.index_connection() as con:
        checked = con.execute(
            sa.select(Executions.c.run_id).where(Executions.c.id.in_(newest_check)).distinct()
        )
        made = con.execute(
            sa.select(Events.c.run_id).where(Events.c.id.in_(newest_event)).distinct()
        )
        return {run_id for rows in (checked, made) for (run_id,) in rows}


def delete_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete a run with its events, its checks' results and its logs."""
    storage = _storage(instance)
    instance.delete_run(run_id)
    with storage.index_connection() as con:
        con.execute(sa.delete(Executions).where(Executions.c.run_id == run_id))
    if hasattr(storage, "path_for_shard"):  # SQLite: a file a run
        path = Path(storage.path_for_shard(run_id))
        for part in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
            part.unlink(missing_ok=True)
    instance.compute_log_manager.delete_logs(prefix=[run_id])


def old_logs(folder: Path, before: datetime) -> list[Path]:
    """Folders of logs in which nothing was written since."""
    found = []
    for child in sorted(folder.glob("*")) if folder.is_dir() else []:
        times = [p.stat().st_mtime for p in (child, *child.rglob("*"))]
        if child.is_dir() and max(times, default=time.time()) < before.timestamp():
            found.append(child)
    return found


def _storage(instance: dg.DagsterInstance) -> SqlEventLogStorage:
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        raise StoreError("Dagster's storage is none of its SQL ones: no run can be deleted.")
    return storage
