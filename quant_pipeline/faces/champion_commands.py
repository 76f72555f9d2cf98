"""`quant models promote, retire, rollback, hold, release, champions, compare, prune`."""

from datetime import date
from typing import Annotated, Any

import typer

from quant_pipeline.faces.model_commands import models_app
from quant_pipeline.faces.options import (
    Csv,
    Json,
    ModelId,
    OneTask,
    TaskId,
    chosen,
    day_option,
    open_workspace,
)
from quant_pipeline.faces.output import count, emit, print_table, say

__all__ = ["models_app"]

Reason = Annotated[str, typer.Option(help="Why; it is recorded for good.")]


@models_app.command("champions")
def list_champions(
    task: TaskId = None,
    on: Annotated[date | None, day_option("Who served on this date, like 2021-11-30.")] = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """List who serves which sessions, and why; --on D: who served on that date.

    Example: quant models champions --task ret_5d --on 2021-03-14
    """
    from quant_pipeline.chain.champions import champion_on

    ws = open_workspace()
    rows: list[dict[str, Any]] = []
    for one in chosen(ws, task):
        if on is None:
            found = ws.meta.champions(one.task_id)
        else:
            found = [c for c in [champion_on(ws, one, on)] if c is not None]
        rows += [_champion_row(c) for c in found]

    def show() -> None:
        columns = {"task_id": "task", "from": "from", "model": "model", "why": "why"}
        print_table(rows, columns)
        if not rows:
            when = f"on {on}" if on else "yet"
            typer.echo(f"Nobody served {when}. See `quant models list` and `quant status`.")

    emit(rows, as_json, show, as_csv)


def _champion_row(champion: Any) -> dict[str, Any]:
    return {
        "task_id": champion.task_id, "partition": champion.partition_key,
        "from": champion.from_ts.isoformat(), "model": champion.model_id[:12],
        "model_id": champion.model_id, "why": champion.why,
        "decided_at": champion.decided_at.isoformat(),
    }  # fmt: skip


@models_app.command()
def promote(model_id: ModelId, reason: Reason, as_json: Json = False) -> None:
    """Let a model serve from the first session that is not stored yet.

    Example: quant models promote 3f9a --reason "less turnover"
    """
    from quant_pipeline.chain.champions import promote as order

    _tell(order(open_workspace(), model_id, reason), as_json)


@models_app.command()
def retire(model_id: ModelId, reason: Reason, as_json: Json = False) -> None:
    """Take a model out of service for good; another one takes its place if it serves.

    Example: quant models retire 3f9a --reason "learned from wrong splits"
    """
    from quant_pipeline.chain.champions import retire as order

    ws = open_workspace()
    retired = ws.meta.model(model_id).model_id
    champion = order(ws, retired, reason)

    def show() -> None:
        typer.echo("It will never serve again.")
        if champion is not None:
            _tell(champion)

    found = {"retired": retired, "serves": champion and _champion_row(champion)}
    emit(found, as_json, show)


@models_app.command()
def rollback(task: OneTask, reason: Reason, as_json: Json = False) -> None:
    """Let the champion before the present one serve again, be it a refit of the same settings.

    The next model that is trained may take over from it, unless it is held.

    Example: quant models rollback --task ret_5d --reason "scores look odd"
    """
    from quant_pipeline.chain.champions import rollback as order

    ws = open_workspace()
    _tell(order(ws, ws.settings.task(task), reason), as_json)


@models_app.command()
def hold(task: OneTask, reason: Reason, as_json: Json = False) -> None:
    """Keep the champion whatever is trained, until `quant models release`.

    Example: quant models hold --task ret_5d --reason "audit in March"
    """
    _hold(task, reason, as_json, release=False)


@models_app.command()
def release(task: OneTask, reason: Reason, as_json: Json = False) -> None:
    """Let new models challenge a held champion again.

    Example: quant models release --task ret_5d --reason "audit done"
    """
    _hold(task, reason, as_json, release=True)


def _hold(task_id: str, reason: str, as_json: bool, *, release: bool) -> None:
    from quant_pipeline.chain.champions import hold as order

    ws = open_workspace()
    since = order(ws, ws.settings.task(task_id), reason, release=release)
    what = "may be challenged again" if release else "is held"
    words = f"The champion of {task_id} {what} from {since} on."
    found = {"task_id": task_id, "is_held": not release, "from": since.isoformat()}
    emit(found, as_json, lambda: typer.echo(words))


def _tell(champion: Any, as_json: bool = False) -> None:
    words = (
        f"Model {champion.model_id[:12]} serves {champion.task_id} from {champion.from_ts} on: "
        f"{champion.why}."
    )
    emit(_champion_row(champion), as_json, lambda: typer.echo(words))
    if as_json:
        return
    say(
        f"The next model may take over. To keep this one: `quant models hold --task "
        f"{champion.task_id} --reason ...`."
    )


@models_app.command()
def compare(a: ModelId, b: ModelId, as_json: Json = False) -> None:
    """Compare two models: only the settings that differ, and metrics where both were tested.

    Example: quant models compare 3f9a 77b0
    """
    from quant_pipeline.chain.compare import compare_models

    ws = open_workspace()
    found = compare_models(ws.meta.model(a), ws.meta.model(b))

    def show() -> None:
        for letter, model in zip("ab", found["models"], strict=True):
            typer.echo(f"{letter}: {model['model']}, {model['task']} as of {model['asof']}")
        typer.echo("")
        print_table(found["settings"], {"key": "setting", "a": "a", "b": "b"})
        if not found["settings"]:
            typer.echo("The settings are the same.")
        if found["features"]:
            typer.echo(f"{count(len(found['features']), 'feature')} of one only: " + ", ".join(
                row["key"] for row in found["features"]))  # fmt: skip
        shown = {"Folds": "folds", "Fold by fold": "differences", "Sessions": "sessions"}
        for title, name in shown.items():
            typer.echo(f"\n{title}, where both were tested:")
            rows = [{**row, "metric": _title(row["metric"])} if "metric" in row else row
                    for row in found[name]]  # fmt: skip
            print_table(rows, {key: _title(key) for key in rows[0]} if rows else None)
            if not rows:
                typer.echo("none")

    emit(found, as_json, show)


def _title(name: str) -> str:
    """A name of a metric, or of one of model a or b, as people read it."""
    from quant_pipeline.faces.report import SHOWN

    titles = {metric: title for title, metric, _ in SHOWN}
    metric, _, letter = name.rpartition("_")
    if letter in ("a", "b"):
        return f"{titles.get(metric, metric)} {letter}"
    others = {"test_start": "from", "test_end": "to", "se": "± s.e."}
    return titles.get(name) or others.get(name, name)


@models_app.command()
def prune(
    keep: Annotated[int, typer.Option(min=1, help="Newest files a task to keep.")] = 24,
    task: TaskId = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what is to do.")] = False,
    as_json: Json = False,
) -> None:
    """Delete old model files; those of champions stay, and so does what is recorded of each.

    Example: quant models prune --keep 12 --dry-run
    """
    from quant_pipeline.chain.retention import prune_files

    ws = open_workspace()
    pruned = prune_files(ws, chosen(ws, task), keep, dry_run=dry_run)
    verb = "To delete" if dry_run else "Deleted"
    words = f"{verb}: {count(len(pruned), 'model file')}."
    emit({"is_dry_run": dry_run, "model_ids": pruned}, as_json, lambda: typer.echo(words))
