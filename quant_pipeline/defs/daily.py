"""The jobs that run by themselves: scores, models, housekeeping, proofs; schedules; the inbox.

Each is one op that starts runs of the assets, one after the other, as `quant` does: what a day
asks for (close the window before, train, score) reaches over several partitions and so over
several runs. The op holds no pool; the runs that it starts do.
"""

from collections.abc import Sequence

import dagster as dg

from quant_pipeline.chain.daily import is_settled, is_too_late, look_around, record
from quant_pipeline.chain.inbox import Taken, take_inbox, waiting_files
from quant_pipeline.chain.ingest import pull_sources
from quant_pipeline.chain.plan import newest_closed
from quant_pipeline.chain.stale import read_stored
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.reporting import report_prices
from quant_pipeline.defs.retries import retried
from quant_pipeline.errors import DataLate, NotEnoughHistory, ProofFailed, SourceError
from quant_pipeline.stores.meta import utc_now

WorkspaceParam = dg.ResourceParam[Workspace]
WEEK = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")


@dg.op
@retried
def take_prices_and_score(context: dg.OpExecutionContext, workspace: WorkspaceParam) -> None:
    """Ingest what came, close complete windows, score every session that has no scores yet."""
    from quant_pipeline.defs.jobs import Runner, close_and_score

    tell = context.log.info
    taken = take_inbox(workspace, tell)
    pulled = pull_sources(workspace)
    reports = [t.report for t in taken if t.report] + ([pulled] if pulled else [])
    for report in reports:
        if report.changed_keys:
            report_prices(workspace, report, lambda what, *_: tell(what))
    now, tasks = workspace.now(), workspace.tasks()
    arrival, first = look_around(workspace, now, tasks)
    state: str = arrival.state
    newest = None
    if first is not None:
        newest = read_stored(workspace).last_session
    if state == "new" and first is not None and newest is not None:
        runner = Runner.nested(workspace, context.instance, context.run_id, tell)
        close_and_score(runner, first, newest, tasks)
        state = "scored"
    elif state == "late" and is_too_late(workspace, now, arrival.expected):
        state = "given_up"
    record(workspace, state, arrival, newest, arrival.words, context.run_id)
    context.add_output_metadata(
        {
            "state": state,
            "because": arrival.words,
            "expected_session": str(arrival.expected),
            "newest_session": str(newest),
            "new_rows": sum(report.n_new for report in reports),
            "files": ", ".join(t.name for t in taken) or "none",
        }
    )
    tell(f"{state}: {arrival.words}")
    _raise_if_failed(state, arrival.words, taken)


def _raise_if_failed(state: str, words: str, taken: Sequence[Taken]) -> None:
    """A day that got no prices, and a file that could not be read, are failures to look at."""
    failed = [f"{t.name}: {t.reason}" for t in taken if t.report is None]
    if failed:
        raise SourceError("\n".join(["Moved to data/inbox/failed:", *failed]))
    if state == "given_up":
        raise DataLate(f"{words}. Deliver them to data/inbox or ingest.sources.")


@dg.op
@retried
def train_newest_window(context: dg.OpExecutionContext, workspace: WorkspaceParam) -> None:
    """Train every task as of the end of the newest complete window."""
    from quant_pipeline.defs.jobs import Runner, fill_data, train

    stored = read_stored(workspace)
    key = newest_closed(workspace, stored, None)
    runner = Runner.nested(workspace, context.instance, context.run_id, context.log.info)
    fill_data(runner, stored)
    refused = train(runner, {key: workspace.tasks()})
    models = [m for m in workspace.meta.models() if m.partition_key == key]
    context.add_output_metadata(
        {"partition": key, "models": ", ".join(m.model_id[:12] for m in models) or "none"}
    )
    if refused:
        raise NotEnoughHistory(refused[key])


@dg.op
@retried
def delete_what_is_old(context: dg.OpExecutionContext, workspace: WorkspaceParam) -> None:
    """Delete old runs and logs; write the database anew if much of it is empty."""
    from quant_pipeline.defs.housekeeping import describe_kept, keep_house

    def tell(what: str, *_: int) -> None:
        context.log.info(what)

    done = keep_house(workspace, context.instance, utc_now(), tell, dry_run=False)
    context.add_output_metadata(describe_kept(done))


@dg.op
@retried
def prove_a_sample(context: dg.OpExecutionContext, workspace: WorkspaceParam) -> None:
    """Audit one as-of, rebuild some scores, live ones first; what fails fails the run."""
    from quant_pipeline.chain.checks.run import run_checks
    from quant_pipeline.chain.proving import PROVED, choose_sample
    from quant_pipeline.defs.checks import file_results

    def tell(what: str, *_: int) -> None:
        context.log.info(what)

    bad, said = [], {}
    for asset, keys in choose_sample(workspace).items():
        name = PROVED[asset]
        found = run_checks(workspace, asset, keys, context.run_id, [name], tell) if keys else []
        file_results(context.instance, asset, found, [name])
        bad += [one for one in found if not one.passed]
        said[name] = ", ".join(keys) or "nothing yet"
    context.add_output_metadata(said | {"failed": len(bad)})
    if bad:
        raise ProofFailed("\n".join(f"{one.name} of {one.key}: {one.words}" for one in bad))


def make_jobs() -> list[dg.JobDefinition]:
    """The jobs, to be started by hand, by a schedule or by a new file."""

    @dg.job(description="Newest prices in, scores of every session that lacks them out.")
    def daily_score() -> None:
        take_prices_and_score()

    @dg.job(description="Folds, models and gate of the newest complete window.")
    def retrain() -> None:
        train_newest_window()

    @dg.job(description="Old runs, logs and empty room in the database away.")
    def housekeeping() -> None:
        delete_what_is_old()

    @dg.job(description="One as-of audited, and some scores rebuilt from prices.")
    def proofs() -> None:
        prove_a_sample()

    return [daily_score, retrain, housekeeping, proofs]


def make_schedules(
    workspace: Workspace, jobs: Sequence[dg.JobDefinition]
) -> list[dg.ScheduleDefinition]:
    """The schedules of quant.toml, by the exchange's clock; off until turned on."""
    spec, zone = workspace.settings.schedule, workspace.settings.grid.timezone
    daily_score, retrain, housekeeping, proofs = jobs

    @dg.schedule(
        job=daily_score,
        cron_schedule=daily_crons(spec.daily_at, spec.late_after, spec.retry_minutes, spec.days),
        execution_timezone=zone,
        default_status=_status(spec.daily),
    )
    def daily_score_schedule(
        context: dg.ScheduleEvaluationContext,
    ) -> dg.RunRequest | dg.SkipReason:
        """After the close, and again while the day's prices are missing."""
        tick = context.scheduled_execution_time.astimezone(workspace.settings.grid.zone)
        if is_settled(workspace, tick):
            return dg.SkipReason("The newest session is stored and scored.")
        return dg.RunRequest(run_key=tick.isoformat())

    def clocked(job: dg.JobDefinition, at: str, day: str, *, is_on: bool) -> dg.ScheduleDefinition:
        weekday = "*" if day == "every_day" else WEEK.index(day)
        return dg.ScheduleDefinition(
            name=f"{job.name}_schedule",
            job=job,
            cron_schedule=f"{int(at[3:])} {int(at[:2])} * * {weekday}",
            execution_timezone=zone,
            default_status=_status(is_on),
        )

    tidy, proving = workspace.settings.housekeeping, workspace.settings.proofs
    return [
        daily_score_schedule,
        clocked(retrain, spec.retrain_at, spec.retrain_on, is_on=spec.retrain),
        clocked(housekeeping, tidy.at, "sunday", is_on=tidy.weekly),
        clocked(proofs, proving.at, "every_day", is_on=proving.nightly),
    ]


def daily_crons(daily_at: str, late_after: str, every: int, days: str) -> list[str]:
    """Cron lines for the hour of the job, every so many minutes after it, and the last hour.

    >>> daily_crons("18:00", "19:10", 30, "weekdays")
    ['0 18 * * 1-5', '30 18 * * 1-5', '0 19 * * 1-5', '10 19 * * 1-5']
    """
    first, last = (int(t[:2]) * 60 + int(t[3:]) for t in (daily_at, late_after))
    week = "1-5" if days == "weekdays" else "*"
    minutes = [*range(first, last, every), last]
    return [f"{m % 60} {m // 60} * * {week}" for m in minutes]


def make_inbox_sensor(workspace: Workspace) -> dg.SensorDefinition:
    """The sensor of data/inbox."""

    @dg.sensor(
        job_name="daily_score",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def inbox(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        """Starts daily_score when complete files lie in data/inbox."""
        files = waiting_files(workspace.home)
        if not files:
            return dg.SkipReason("No file is waiting in data/inbox.")
        names = [f"{path.name} {path.stat().st_mtime_ns} {path.stat().st_size}" for path in files]
        return dg.RunRequest(run_key="; ".join(names))

    return inbox


def _status(is_on: bool) -> dg.DefaultScheduleStatus:
    return dg.DefaultScheduleStatus.RUNNING if is_on else dg.DefaultScheduleStatus.STOPPED
