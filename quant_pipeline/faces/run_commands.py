"""`quant run`: the jobs that the schedules start, by hand."""

from typing import Annotated

import typer

from quant_pipeline.faces.options import Csv, Json, open_workspace
from quant_pipeline.faces.output import emit, print_table, progress, say

run_app = typer.Typer(
    help="The jobs of the schedules, by hand: daily, retrain, housekeeping, proofs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@run_app.command()
def daily(as_json: Json = False) -> None:
    """Take new prices from data/inbox and ingest.sources, close windows, score what lacks scores.

    Ends in an error when prices are late (after schedule.late_after) or a file cannot be read.

    Example: quant run daily
    """
    from quant_pipeline.defs.jobs import run_job

    ws = open_workspace()
    with progress() as tell:
        error = run_job(ws, "daily_score", tell)
    runs = ws.meta.daily_runs()
    if error is not None:
        if runs and not as_json:
            say(f"{runs[-1].state}: {runs[-1].words}.")
        raise error
    words = f"{runs[-1].state}: {runs[-1].words}."
    emit(runs[-1].model_dump(), as_json, lambda: typer.echo(words))


@run_app.command()
def retrain(as_json: Json = False, as_csv: Csv = False) -> None:
    """Train every task as of the end of the newest complete window.

    Example: quant run retrain
    """
    from quant_pipeline.defs.jobs import run_job
    from quant_pipeline.faces.model_commands import model_row, print_models

    ws = open_workspace()
    with progress() as tell:
        error = run_job(ws, "retrain", tell)
    if error is not None:
        raise error
    models = ws.meta.models()
    newest = max(m.asof for m in models)
    rows = [model_row(m) for m in models if m.asof == newest]
    emit(rows, as_json, lambda: print_models(rows), as_csv)


@run_app.command()
def housekeeping(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what is to do.")] = False,
    as_json: Json = False,
) -> None:
    """Delete Dagster's old runs and logs; write the database anew if much of it is empty.

    Runs that a partition's latest materialization or check is known from stay.

    Example: quant run housekeeping --dry-run
    """
    from quant_pipeline.defs.housekeeping import describe_kept, keep_house
    from quant_pipeline.defs.instance import bury_dead_runs, open_instance
    from quant_pipeline.stores.meta import utc_now

    ws = open_workspace()
    with progress() as tell, open_instance(ws.home) as instance:
        bury_dead_runs(instance, ws.home)
        done = describe_kept(keep_house(ws, instance, utc_now(), tell, dry_run=dry_run))

    def show() -> None:
        typer.echo("To do:" if dry_run else "Done:")
        print_table([{"what": name.replace("_", " "), "": n} for name, n in done.items()])

    emit(done, as_json, show)


@run_app.command()
def proofs(as_json: Json = False, as_csv: Csv = False) -> None:
    """Audit one as-of, and rebuild some scores from prices: those whose last proof is the oldest.

    Ends in an error if something does not hold; Dagster shows the results as asset checks.

    Example: quant run proofs
    """
    from quant_pipeline.defs.jobs import run_job
    from quant_pipeline.stores.meta import CheckResult

    ws = open_workspace()
    before = ws.meta.newest_id(CheckResult)
    with progress() as tell:
        error = run_job(ws, "proofs", tell)
    if error is not None:
        raise error
    names = ("asset", "name", "partition_key", "task_id", "passed", "words")
    rows = [{n: getattr(r, n) for n in names} for r in ws.meta.check_results(after=before)]
    words = "What was proved holds. See the checks of lgbm_model and predictions in `quant ui`."
    emit(rows, as_json, lambda: typer.echo(words), as_csv)
