"""`quant score` and `quant backfill`: choose partitions, run the assets, tell what was done."""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import pyarrow.compute as pc
import typer

from quant_pipeline.chain.champions import find_champions
from quant_pipeline.chain.predict import in_words, lost_features, score_shadow
from quant_pipeline.chain.stale import read_stored
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.jobs import (
    Backfilled,
    Runner,
    backfill,
    close_and_score,
    fill_data,
    plan_backfill,
)
from quant_pipeline.defs.reporting import Progress
from quant_pipeline.errors import SettingsError, unknown_name
from quant_pipeline.faces.output import count
from quant_pipeline.settings import Task

ASSETS = ("prices_daily", "features_daily", "labels", "training_frame", "walkforward_folds",
          "lgbm_model", "predictions", "prediction_outcomes")  # fmt: skip


def score_sessions(
    ws: Workspace, first: date | None, last: date | None, tasks: Sequence[Task], tell: Progress
) -> list[dict[str, Any]]:
    """Score the partitions of stored sessions in a range, and count what is stored then."""
    stored = read_stored(ws)
    last = min(last or stored.last_session, stored.last_session)
    first = max(first or ws.grid.window(ws.grid.key(last))[0], stored.first_session)
    with Runner.open(ws, tell) as runner:
        keys = close_and_score(runner, first, last, tasks)
    return [_counted(ws, first, last, keys, task) for task in tasks]


def _counted(
    ws: Workspace, first: date, last: date, keys: Sequence[str], task: Task
) -> dict[str, Any]:
    rows = ws.series.query(
        "SELECT ts, model_id, generated_at FROM predictions "
        "WHERE task_id = ? AND ts >= ? AND ts <= ?",
        [task.task_id, first, last],
    )
    serving = find_champions(ws, keys[-1], task)
    model_id, why = serving.newest, serving.why
    if model_id is not None:
        with ws.series.reading("scores") as con:
            lost = lost_features(ws, con, ws.meta.model(model_id))
        why += f"; no score was added: {in_words(lost)}" if lost else ""
    return {
        "task": task.task_id,
        "from": first.isoformat(),
        "to": last.isoformat(),
        "sessions": len(pc.unique(rows["ts"])),
        "scores": len(rows),
        "model": (model_id or "none")[:12],
        "because": why,
    }


def score_with_model(
    ws: Workspace, prefix: str, first: date | None, last: date | None, tell: Progress
) -> dict[str, Any]:
    """Shadow scores of one model, only of sessions after its as-of date."""
    model = ws.meta.model(prefix)
    stored = read_stored(ws)
    with Runner.open(ws, tell) as runner:
        fill_data(runner, stored)
    scored = score_shadow(
        ws, model, first or model.asof + timedelta(days=1), last or stored.last_session
    )
    return {
        "task": scored.task_id,
        "sessions": scored.n_sessions,
        "scores": scored.n_rows,
        "new": scored.n_new,
        "model": model.model_id[:12],
        "stored in": "predictions_shadow",
    }


def run_backfill(
    ws: Workspace,
    first: date,
    last: date,
    tasks: Sequence[Task],
    assets: Sequence[str],
    dry_run: bool,
    n_jobs: int,
    tell: Progress,
) -> Backfilled:
    """Fill a range, or only tell what is to do."""
    for asset in assets:
        if asset not in ASSETS:
            raise SettingsError(unknown_name("asset", asset, ASSETS))
    if dry_run and not assets:
        return plan_backfill(ws, first, last, tasks, read_stored(ws))
    ordered = [a for a in ASSETS if a in assets]
    with Runner.open(ws, tell) as runner:
        return backfill(runner, first, last, tasks, ordered, dry_run=dry_run, n_jobs=n_jobs)


def show_backfill(done: Backfilled, dry_run: bool) -> None:
    """What a backfill did, or would do, in words."""
    verb = "To do" if dry_run else "Done"
    for asset, keys in done.data.items():
        if keys:
            typer.echo(f"{verb}: {asset} of {count(len(keys), 'partition')}, {_span(keys)}")
    if done.models:
        typer.echo(f"{verb}: models of {count(len(done.models), 'as-of')}, {_span(done.models)}")
    if done.scores:
        typer.echo(
            f"{verb}: scores and outcomes of {count(len(done.scores), 'partition')}, "
            f"{_span(done.scores)}"
        )
    for title, reasons in (("No model", done.impossible), ("Refused", done.refused)):
        if reasons:
            newest = list(reasons)[-1]
            typer.echo(
                f"{title} for {count(len(reasons), 'as-of')}, {_span(list(reasons))}: "
                f"{reasons[newest]}"
            )
    if done.estimate and (done.data or done.models or done.scores):
        plan = done.estimate
        typer.echo(
            f"About {count(plan['runs'], 'run')} over {count(plan['partitions'], 'partition')}, "
            f"{plan['minutes']:g} minutes, {plan['mib']:,.0f} MiB of disk."
        )
    if not (done.data or done.models or done.scores):
        typer.echo("Nothing to do: everything is stored and unchanged.")
    elif not dry_run:
        typer.echo("Next: `quant predictions --top 5`, `quant models list`, or `quant ui`.")


def _span(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} to {keys[-1]}"
