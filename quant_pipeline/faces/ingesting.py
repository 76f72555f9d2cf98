"""`quant ingest`: store prices or lists, tell Dagster, tell what became of every row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import typer

from quant_pipeline.chain.ingest import IngestReport, ingest
from quant_pipeline.chain.ingest_lists import ingest_memberships, ingest_renames
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.reporting import Progress, report_prices
from quant_pipeline.errors import SourceError
from quant_pipeline.faces.output import count
from quant_pipeline.stores.sources import Reading

Kind = Literal["prices", "memberships", "renames"]


def ingest_and_report(
    ws: Workspace, paths: Sequence[Path], reading: Reading, kind: Kind, tell: Progress
) -> IngestReport:
    """Ingest files; every changed partition of prices_daily gets a materialization."""
    tell(f"reading and storing {kind}", 0, 1)
    if kind == "prices":
        report = ingest(ws, paths, reading, ws.today())
    else:
        if len(paths) != 1 or not paths[0].is_file():
            raise SourceError(f"--as {kind} takes one file: it is the whole list.")
        take = ingest_memberships if kind == "memberships" else ingest_renames
        report = take(ws, paths[0], reading)
    if report.changed_keys and kind != "memberships":
        report_prices(ws, report, tell)
    tell(kind, 1, 1)
    return report


def show_report(report: IngestReport, kind: Kind = "prices") -> None:
    """The counts, which add up to what was read."""
    if kind == "prices":
        _show_prices(report)
    else:
        typer.echo(f"Read {report.n_read:,} {kind}: {report.n_new:,} of them new.")
        if report.n_moved:
            typer.echo(f"  bars that moved to their permanent id: {report.n_moved:,}")
    for note in report.notes:
        typer.echo(f"Note: {note}")
    if report.batch_id is None:
        typer.echo("Nothing changed.")
    elif report.first_changed is None:
        typer.echo(f"Batch {report.batch_id}: no price changed.")
    else:
        typer.echo(
            f"Batch {report.batch_id}: changed from {report.first_changed} to "
            f"{report.last_changed}. Next: `quant status`, or `quant train`."
        )
    for problem in report.problems:
        typer.echo(f"Not read: {problem}", err=True)


def _show_prices(report: IngestReport) -> None:
    n_rejected = sum(report.n_rejected.values())
    typer.echo(
        f"Read {count(report.n_read, 'row')} of {count(report.n_symbols, 'symbol')}: "
        f"{report.n_new:,} new, {report.n_restated:,} restated, {report.n_unchanged:,} unchanged, "
        f"{n_rejected:,} rejected."
    )
    for reason, n in report.n_rejected.items():
        example = report.examples.get(reason, "")
        typer.echo(f"  rejected {reason}: {n:,}" + (f", first: {example}" if example else ""))
    if report.n_rejected.get("before_grid_start"):
        typer.echo("  To use older prices, set grid.start in quant.toml of a new home.")
    if report.n_rejected.get("conflicting_duplicate"):
        typer.echo(
            "  conflicting_duplicate: rows of one symbol and date with other values; none is kept. "
            'ingest.duplicates = "last" in quant.toml keeps the last one'
        )
    if report.n_rejected.get("no_session"):
        typer.echo(
            "  no_session: too few symbols have a bar on that date; kept, and taken in once "
            "enough of the others come, unless its window is sealed by then"
        )
    for day in report.missed_sessions:
        typer.echo(
            f"  {day} would be a session, but its window was sealed without it: its bars stay out. "
            "`quant prices restated --reach` lists what does not know it"
        )
    counts = (
        (report.n_late, "of the new, in windows that were sealed before: restatements"),
        (report.n_rebased, "of the unchanged, re-based by a constant"),
        (report.n_relinked, "besides, stored bars whose index moved with a restated one"),
        (report.n_new_sessions, "new sessions" if report.n_new_sessions > 1 else "new session"),
    )
    for n, what in counts:
        if n:
            typer.echo(f"  {n:,} {what}")
    if report.n_tied_by_close:
        typer.echo(
            f"  {count(report.n_tied_by_close, 'symbol')} with adj_close came without any bar that "
            "is stored already, and hang on it by closes: a dividend or split in between would "
            "count as a return. Deliver the last two sessions or more each time"
        )
    for row in report.restated[:3]:
        change = f"close {row['old_close']:g} -> {row['close']:g}"
        typer.echo(f"  restated: {row['symbol']} {row['ts']} {change}")
    if report.n_restated:
        typer.echo("  `quant prices restated` lists all of them.")
