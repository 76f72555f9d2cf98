"""Results of checks of several partitions, filed under each in Dagster's storage.

Dagster 1.13 takes one evaluation an event, at about four commits each. This writes what those
events would write to the table that the web UI reads, in one transaction.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData as Target,
)
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Executions
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._serdes import serialize_value
from dagster_shared.record import copy

from quant_pipeline.stores.meta import utc_now


def file_by_partition(
    context: dg.AssetCheckExecutionContext,
    asset: str,
    evaluations: Sequence[dg.AssetCheckEvaluation],
) -> None:
    """File evaluations of partitions as if each had been an event of this run."""
    op = context.op_execution_context
    step = op.get_step_execution_context().step.key
    if not _file(op.instance, asset, evaluations, op.run_id, op.job_name, step):
        for evaluation in evaluations:
            op.log_event(evaluation)  # type: ignore[arg-type]


def file_without_run(
    instance: dg.DagsterInstance, asset: str, evaluations: Sequence[dg.AssetCheckEvaluation]
) -> None:
    """File evaluations of partitions that changed outside of a run, as an ingest changes them."""
    if not _file(instance, asset, evaluations, "", "", None):
        for evaluation in evaluations:
            instance.report_runless_asset_event(evaluation)


def _file(
    instance: dg.DagsterInstance,
    asset: str,
    evaluations: Sequence[dg.AssetCheckEvaluation],
    run_id: str,
    job_name: str,
    step: str | None,
) -> bool:
    """Whether the storage is one that has the table; another one takes events only."""
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        return False
    latest = storage.get_latest_storage_id_by_partition(
        dg.AssetKey(asset), DagsterEventType.ASSET_MATERIALIZATION,
        {e.partition for e in evaluations if e.partition is not None},
    )  # fmt: skip
    now = utc_now()
    with storage.index_connection() as con:
        targets = _targets(con, list(latest.values()))
        newest = con.execute(sa.select(sa.func.max(Events.c.id))).scalar() or 0
        rows = []
        for one in evaluations:
            target = targets.get(latest.get(one.partition or "", 0))
            entry = EventLogEntry(  # type: ignore[no-untyped-call]
                error_info=None, level=10, user_message="", run_id=run_id,
                timestamp=now.timestamp(), step_key=step, job_name=job_name,
                dagster_event=_event(copy(one, target_materialization_data=target), job_name),
            )  # fmt: skip
            rows.append(
                {
                    "asset_key": one.asset_key.to_string(),
                    "check_name": one.check_name,
                    "partition": one.partition,
                    "run_id": run_id,
                    "execution_status": "SUCCEEDED" if one.passed else "FAILED",
                    "evaluation_event": serialize_value(entry),
                    "evaluation_event_timestamp": now.replace(tzinfo=None),
                    "evaluation_event_storage_id": newest,
                    "materialization_event_storage_id": target and target.storage_id,
                }
            )
        con.execute(sa.delete(Executions).where(_same(asset, evaluations, run_id)))
        con.execute(sa.insert(Executions), rows)
    return True


def _same(asset: str, evaluations: Sequence[dg.AssetCheckEvaluation], run_id: str) -> Any:
    """Rows that the evaluations replace: planned ones of the run, or of an earlier attempt."""
    return sa.and_(
        Executions.c.run_id == run_id,
        Executions.c.asset_key == dg.AssetKey(asset).to_string(),
        Executions.c.check_name.in_({e.check_name for e in evaluations}),
        Executions.c.partition.in_({e.partition for e in evaluations}),
    )


def _targets(con: Any, ids: Sequence[int]) -> dict[int, Target]:
    """The materializations of some storage ids."""
    wanted = sa.select(Events.c.id, Events.c.run_id, Events.c.timestamp).where(Events.c.id.in_(ids))
    return {
        row.id: Target(storage_id=row.id, run_id=row.run_id, timestamp=_utc(row.timestamp))
        for row in con.execute(wanted)
    }


def _utc(stored: datetime) -> float:
    """Seconds since 1970 of a time that is stored without its zone."""
    return stored.replace(tzinfo=UTC).timestamp()


def _event(evaluation: dg.AssetCheckEvaluation, job_name: str) -> DagsterEvent:
    return DagsterEvent(
        event_type_value=DagsterEventType.ASSET_CHECK_EVALUATION.value,
        job_name=job_name,
        event_specific_data=evaluation,
    )
