"""`quant ingest`: store prices, report changed partitions to Dagster, tell what became of rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from quant_pipeline.chain.ingest import IngestReport, ingest
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.jobs import Progress, Runner


def ingest_and_report(
    ws: Workspace, paths: Sequence[Path], columns: Mapping[str, str], tell: Progress
) -> IngestReport:
    """Ingest files; every changed partition of prices_daily gets a materialization."""
    tell("reading and storing prices", 0, 1)
    report = ingest(ws, paths, columns, ws.today())
    if report.first_changed and report.last_changed:
        tell("checking stored prices", 0, 1)
        with Runner.open(ws) as runner:
            first, last = ws.grid.key(report.first_changed), ws.grid.key(report.last_changed)
            runner.materialize(["prices_daily"], first, last)
    tell("prices", 1, 1)
    return report


def show_report(report: IngestReport) -> None:
    """The counts, which add up to what was read."""
    n_rejected = sum(report.n_rejected.values())
    stored = (
        f"{report.n_new:,} new, {report.n_restated:,} restated, {report.n_unchanged:,} unchanged"
    )
    typer.echo(
        f"Read {report.n_read:,} rows of {report.n_symbols:,} symbols: {stored}, "
        f"{n_rejected:,} rejected."
    )
    for reason, n in report.n_rejected.items():
        typer.echo(f"  rejected {reason}: {n:,}")
    if report.n_rejected.get("before_grid_start"):
        typer.echo("  To use older prices, set grid.start in quant.toml of a new home.")
    if report.n_rebased:
        typer.echo(f"  of the unchanged, {report.n_rebased:,} were re-based by a constant")
    if report.n_no_session:
        typer.echo(f"  stored, but on dates that are no market session: {report.n_no_session:,}")
    if report.batch_id is None:
        typer.echo("Nothing changed.")
    else:
        typer.echo(
            f"Batch {report.batch_id}: changed from {report.first_changed} to "
            f"{report.last_changed}. Next: `quant train`, or `quant status`."
        )
    for problem in report.problems:
        typer.echo(f"Not read: {problem}", err=True)
