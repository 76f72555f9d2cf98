"""`quant doctor`, `reconcile`, `backup`, `restore`, `upgrade`: the home looked after."""

from pathlib import Path
from typing import Annotated

import typer

from quant_pipeline.faces.options import Csv, Json, open_workspace
from quant_pipeline.faces.output import count, emit, progress


def reconcile(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what is to do.")] = False,
    as_json: Json = False,
    as_csv: Csv = False,
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
        words = f"{count(n, 'problem')} {done}, {len(left)} for you."
        typer.echo(words if found else "All agrees.")

    emit(rows, as_json, show, as_csv)
    if left:
        raise typer.Exit(1)


def backup(
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    as_json: Json = False,
) -> None:
    """Copy the home while it is used: prices, tables, registry, models, settings, runs.

    The copy is checked before it appears; writers wait while the database is copied.

    Example: quant backup /backups/2026-11-23
    """
    from quant_pipeline.chain.backup import back_up

    ws = open_workspace()
    with progress() as tell:
        written = back_up(ws, folder.resolve(), tell)
    words = f"Backed up to {folder}: {written / 2**20:,.1f} MiB. All agrees."
    emit({"path": str(folder.resolve()), "bytes": written}, as_json, lambda: typer.echo(words))


def restore(
    backup: Annotated[Path, typer.Argument(help="The folder of a backup.")],
    folder: Annotated[
        Path | None, typer.Argument(help="Where to, without a home; QUANT_HOME if none.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a home from a backup, which is checked before and stays as it is.

    Example: quant restore /backups/2026-11-23 ~/research/again
    """
    from quant_pipeline.chain.backup import restore as run
    from quant_pipeline.settings import Home

    root = folder.resolve() if folder else Home.from_environment().root
    with progress() as tell:
        ws = run(backup.resolve(), root, tell)
    words = f"Restored to {ws.home.root}. Next: `quant status` there."
    emit({"home": str(ws.home.root)}, as_json, lambda: typer.echo(words))


SIGNS = {"ok": "ok", "look": "LOOK", "bad": "BAD"}


def doctor(as_json: Json = False, as_csv: Csv = False) -> None:
    """Look whether home and machine are fit: versions, access, room, locks, and what is stored.

    Changes nothing. Exit code 1 if something has to be mended.

    Example: quant doctor
    """
    from quant_pipeline.chain.doctor import Finding, examine
    from quant_pipeline.defs.instance import open_instance
    from quant_pipeline.defs.upgrade import outdated

    ws = open_workspace()
    with progress() as tell:
        found = examine(ws, tell)
    with open_instance(ws.home) as instance:
        old = outdated(instance)
    words = f"The storage of {', '.join(old)} is of an older dagster: run `quant upgrade`."
    fine = "Its storage is that of the installed version."
    found.append(Finding("dagster", "bad" if old else "ok", words if old else fine))

    def show() -> None:
        for finding in found:
            typer.echo(f"{SIGNS[finding.state]:<5}{finding.what:<11}{finding.words}")

    emit([vars(finding) for finding in found], as_json, show, as_csv)
    if any(finding.state == "bad" for finding in found):
        raise typer.Exit(1)


def upgrade(as_json: Json = False) -> None:
    """Bring the home of an older version up to date: registry, tables, Dagster's storage.

    Stop `quant ui` before. Dagster's storage is copied first; the others change as a whole or not
    at all.

    Example: quant upgrade
    """
    from quant_pipeline.defs.instance import open_instance
    from quant_pipeline.defs.upgrade import upgrade as run

    ws = open_workspace()
    ws.meta.trained()
    if ws.home.database.exists():
        ws.series.query("SELECT 1")
    with open_instance(ws.home) as instance:
        kept = run(instance, ws.home)
    words = (
        f"Dagster's storage was brought up to date; as it was before: {kept}"
        if kept
        else "Dagster's storage is up to date."
    )

    def show() -> None:
        typer.echo("Registry and tables are up to date.")
        typer.echo(words)

    emit({"dagster_storage_before": str(kept) if kept else None}, as_json, show)
