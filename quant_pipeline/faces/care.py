"""`quant reconcile`: whether the stores agree, and what a crash left behind cleared away."""

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
