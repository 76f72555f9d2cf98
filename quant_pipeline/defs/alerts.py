"""Sensors that tell people: of failed runs, failed checks and days without prices."""

from collections.abc import Callable, Sequence

import dagster as dg
from dagster._core.storage.tags import PARENT_RUN_ID_TAG

from quant_pipeline.chain.alerts import Alert, Kind, failed_checks, is_wanted, late_days, send
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import AlertFailed
from quant_pipeline.stores.meta import CheckResult, DailyRun

AT_ONCE = 10  # alerts of one tick: a tick has to end within a minute
Newest = Callable[[dg.DagsterInstance], int]  # the number of what happened last
Find = Callable[[dg.DagsterInstance, int], list[Alert]]  # what happened after a number


def make_alert_sensors(workspace: Workspace) -> Sequence[dg.SensorDefinition]:
    """One sensor a kind of alert; each goes on where it stopped, and repeats what failed."""
    meta = workspace.meta
    return [
        _sensor(
            workspace, "run_failed", _newest_failure,
            lambda instance, after: failed_runs(workspace, instance, after),
            "Tells of runs that failed.",
        ),
        _sensor(
            workspace, "check_failed", lambda _: meta.newest_id(CheckResult),
            lambda _, after: failed_checks(workspace, after),
            "Tells of checks that failed, run by run.",
        ),
        _sensor(
            workspace, "data_late", lambda _: meta.newest_id(DailyRun),
            lambda _, after: late_days(workspace, after),
            "Tells of days whose prices did not come by schedule.late_after.",
        ),
    ]  # fmt: skip


def _sensor(
    workspace: Workspace, kind: Kind, newest: Newest, find: Find, says: str
) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"alert_{kind}", minimum_interval_seconds=30, description=says,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )  # fmt: skip
    def alert(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        upto = newest(context.instance)  # before looking: what comes meanwhile is told next time
        if not is_wanted(workspace, kind):
            words = f"[alerts] of quant.toml wants no {kind}, or names nobody to tell."
        elif context.cursor is None:  # old news are no news
            words = "Tells of what happens from now on."
        else:
            found = [a for a in find(context.instance, int(context.cursor)) if a.number <= upto]
            n_told, upto = _tell(context, workspace, found, upto)
            words = f"Told of {n_told} of {len(found)}."
        context.update_cursor(str(upto))
        return dg.SkipReason(words)

    return alert


def _tell(
    context: dg.SensorEvaluationContext,
    workspace: Workspace,
    found: Sequence[Alert],
    newest: int,
) -> tuple[int, int]:
    """Send alerts; gives how many were told, and where to go on from.

    What was told is not told again when a later one fails. Raises AlertFailed if the first does.
    """
    chosen = list(found[:AT_ONCE])
    if len(found) > AT_ONCE:
        rest = f"{len(found) - AT_ONCE} more of {found[0].kind}: see the web UI."
        chosen.append(Alert(found[0].kind, newest, rest))
    for n_told, one in enumerate(chosen):
        try:
            for problem in send(workspace, one):
                context.log.error(problem)
        except AlertFailed as error:
            if not n_told:
                raise
            context.log.error(str(error))
            return n_told, chosen[n_told - 1].number
    return len(found), newest


def _newest_failure(instance: dg.DagsterInstance) -> int:
    records = instance.fetch_run_status_changes(dg.DagsterEventType.RUN_FAILURE, limit=1).records
    return records[0].storage_id if records else 0


def failed_runs(workspace: Workspace, instance: dg.DagsterInstance, after: int) -> list[Alert]:
    """An alert for each run that failed after an event, oldest first.

    Not of runs within another run, whose failure is told, nor of days without prices.
    """
    seen = dg.RunStatusChangeRecordsFilter(
        event_type=dg.DagsterEventType.RUN_FAILURE, after_storage_id=after
    )
    records = instance.fetch_run_status_changes(seen, limit=1000, ascending=True).records
    told: set[str] = set()
    if is_wanted(workspace, "data_late"):
        told = {r.run_id for r in workspace.meta.daily_runs() if r.state == "given_up"}
    found = []
    for record in records:
        run = instance.get_run_record_by_id(record.run_id)
        if run is not None and record.run_id not in told and not _is_nested(instance, run):
            found.append(_of_run(instance, run.dagster_run, record.storage_id))
    return found


def _is_nested(instance: dg.DagsterInstance, run: dg.RunRecord) -> bool:
    """Whether a run was started within another one; that of a second try has ended before."""
    outer_id = run.dagster_run.tags.get(PARENT_RUN_ID_TAG)
    outer = instance.get_run_record_by_id(outer_id) if outer_id else None
    if outer is None:
        return False
    return outer.end_time is None or outer.end_time >= (run.start_time or 0)


def _of_run(instance: dg.DagsterInstance, run: dg.DagsterRun, number: int) -> Alert:
    assets = sorted(key.to_user_string() for key in run.asset_selection or ())
    what = ", ".join(assets) or run.job_name
    partition = run.tags.get("dagster/partition", "")
    why = _reason(instance, run.run_id)
    where = f" in {partition}" if partition else ""
    facts = {"run_id": run.run_id, "assets": assets, "partition": partition}
    return Alert("run_failed", number, f"{what} failed{where}: {why}", facts)


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
