"""Sensors that tell people: of failed runs, failed checks and days without prices."""

from collections.abc import Callable, Sequence

import dagster as dg
from dagster._core.storage.tags import PARENT_RUN_ID_TAG

from quant_pipeline.chain.alerts import Alert, Kind, failed_checks, is_wanted, late_days, send
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.retries import STARTED_BY

AT_ONCE = 10  # alerts of one tick: a tick has to end within a minute
# Gives what happened after a number, oldest first, and the number up to which it looked.
Find = Callable[[dg.DagsterInstance, int], tuple[list[Alert], int]]


def make_alert_sensors(workspace: Workspace) -> Sequence[dg.SensorDefinition]:
    """One sensor a kind of alert; each goes on where it stopped, and repeats what failed."""

    def runs(instance: dg.DagsterInstance, after: int) -> tuple[list[Alert], int]:
        return failed_runs(workspace, instance, after)

    return [
        _sensor(workspace, "run_failed", runs, "Tells of runs that failed."),
        _sensor(
            workspace, "check_failed", lambda _, after: failed_checks(workspace, after),
            "Tells of checks that failed, run by run.",
        ),
        _sensor(
            workspace, "data_late", lambda _, after: late_days(workspace, after),
            "Tells of days whose prices did not come by schedule.late_after.",
        ),
    ]  # fmt: skip


def _sensor(workspace: Workspace, kind: Kind, find: Find, says: str) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"alert_{kind}", minimum_interval_seconds=30, description=says,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )  # fmt: skip
    def alert(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        found, newest = find(context.instance, int(context.cursor or 0))
        if not is_wanted(workspace, kind):
            words = f"[alerts] of quant.toml wants no {kind}, or names nobody to tell."
        elif context.cursor is None:  # old news are no news
            words = "Tells of what happens from now on."
        else:
            _tell(workspace, kind, found)
            words = f"Told of {len(found)}."
        context.update_cursor(str(newest))
        return dg.SkipReason(words)

    return alert


def _tell(workspace: Workspace, kind: Kind, found: Sequence[Alert]) -> None:
    for one in found[:AT_ONCE]:
        send(workspace, one)
    if len(found) > AT_ONCE:
        send(workspace, Alert(kind, f"{len(found) - AT_ONCE} more of {kind}: see the web UI."))


def failed_runs(
    workspace: Workspace, instance: dg.DagsterInstance, after: int
) -> tuple[list[Alert], int]:
    """An alert for each run that failed after an event, and the newest event that was seen.

    Not of runs within another run, whose failure is told, nor of days without prices.
    """
    seen = dg.RunStatusChangeRecordsFilter(
        event_type=dg.DagsterEventType.RUN_FAILURE, after_storage_id=after
    )
    records = instance.fetch_run_status_changes(seen, limit=1000, ascending=True).records
    late = {r.run_id for r in workspace.meta.daily_runs() if r.state == "given_up"}
    found = []
    for record in records:
        run = instance.get_run_by_id(record.run_id)
        if run is None or run.run_id in late:
            continue
        is_nested = PARENT_RUN_ID_TAG in run.tags and STARTED_BY in run.tags
        if not is_nested:
            found.append(_of_run(instance, run))
    return found, max((r.storage_id for r in records), default=after)


def _of_run(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Alert:
    assets = sorted(key.to_user_string() for key in run.asset_selection or ())
    what = ", ".join(assets) or run.job_name
    partition = run.tags.get("dagster/partition", "")
    why = _reason(instance, run.run_id)
    where = f" in {partition}" if partition else ""
    facts = {"run_id": run.run_id, "assets": assets, "partition": partition}
    return Alert("run_failed", f"{what} failed{where}: {why}", facts)


def _reason(instance: dg.DagsterInstance, run_id: str) -> str:
    """The first error of a step, else what the run itself says."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        event = entry.dagster_event
        error = event.step_failure_data.error if event else None
        if error is not None:
            return (error.cause or error).message.strip()
    ends = instance.all_logs(run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    said = [e.dagster_event.message for e in ends if e.dagster_event]
    return (said[-1] if said else None) or "no step of it failed"
