"""`quant reconcile`, `backup`, `restore`: the home looked after."""

from pathlib import Path
from typing import Annotated

import typer

from quant_pipeline.faces.options import Json, open_workspace
from quant_pipeline.faces.output import count, emit, progress, say


def reconcile(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what is to do.")] = False,
    as_json: Json = False,
) -> None:
    """Check that files, registry, tables and published data agree; repair what can be.

    Exit code 1 if something is left that needs you.

    Example: quant reconcile --dry-run
    """
    from quant_pipeline.chain.reconcile import not_repaired
    from quant_pipeline.chain.reconcile import reconcile as run

    ws = open_workspace()
    with progress() as tell:
        found = run(ws, tell, dry_run=dry_run)
    left = not_repaired(found)
    rows = [
        {
            "invariant": p.invariant,
            "what": p.what,
            "can_be_repaired": p.repair is not None,
            "remedy": p.advice,
        }
        for p in found
    ]

    def show() -> None:
        for problem in found:
            typer.echo(f"{problem.invariant}: {problem.what}; {problem.advice}.")
        n = len(found) - len(left)
        done = "can be repaired" if dry_run else "repaired"
        say(f"{count(n, 'problem')} {done}, {len(left)} for you." if found else "All agrees.")

    emit(rows, as_json, show)
    if left:
        raise typer.Exit(1)


def backup(folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")]) -> None:
    """Copy the home while it is used: prices, tables, registry, models, settings, runs.

    The copy is checked before it appears; writers wait while the database is copied.

    Example: quant backup /backups/2026-11-23
    """
    from quant_pipeline.chain.backup import back_up

    ws = open_workspace()
    with progress() as tell:
        written = back_up(ws, folder.resolve(), tell)
    typer.echo(f"Backed up to {folder}: {written / 2**20:,.1f} MiB. All agrees.")


def restore(
    backup: Annotated[Path, typer.Argument(help="The folder of a backup.")],
    folder: Annotated[
        Path | None, typer.Argument(help="Where to, without a home; QUANT_HOME if none.")
    ] = None,
) -> None:
    """Make a home from a backup, which is checked before and stays as it is.

    Example: quant restore /backups/2026-11-23 ~/research/again
    """
    from quant_pipeline.chain.backup import restore as run
    from quant_pipeline.settings import Home

    root = folder.resolve() if folder else Home.from_environment().root
    with progress() as tell:
        ws = run(backup.resolve(), root, tell)
    typer.echo(f"Restored to {ws.home.root}. Next: `quant status` there.")
