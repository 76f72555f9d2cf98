"""`quant status`: what is there, what is stale or late and why, and what to type."""

from typing import Any

import typer

from quant_pipeline.chain.knowledge import models_that_knew_less
from quant_pipeline.chain.lateness import find_late
from quant_pipeline.chain.prices import count_prices
from quant_pipeline.chain.seal import judge_until, read_counts, waiting_message
from quant_pipeline.chain.stale import Stored, read_stored, stale_data
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData
from quant_pipeline.faces.output import count, print_table


def find_status(ws: Workspace) -> dict[str, Any]:
    """The state of a home as plain data."""
    found: dict[str, Any] = {"home": str(ws.home.root), "prices": None, "stale": {}, "tasks": []}
    try:
        stored = read_stored(ws)
    except NoData as error:
        return {**found, "next": str(error)}
    found["prices"] = count_prices(ws) | {
        "sessions": len(stored.sessions),
        "first_session": stored.first_session.isoformat(),
        "last_session": stored.last_session.isoformat(),
    }
    found["windows"] = _find_windows(ws, stored)
    found["late"] = _find_late(ws)
    found["stale"] = {asset: why for asset, why in stale_data(ws, stored).items() if why}
    found["models_that_knew_less"] = [
        {"model_id": m["model_id"], "task_id": m["task_id"], "asof": m["asof"].isoformat()}
        for m in models_that_knew_less(ws, stored)
    ]
    found["tasks"] = _find_tasks(ws)
    found["next"] = _next_step(found)
    return found


def _find_windows(ws: Workspace, stored: Stored) -> dict[str, Any]:
    """Sealed windows, and what the next one waits for."""
    looked_at = judge_until(ws, stored.keys[-1])
    ready = [c.key for c in looked_at if c.is_sealable]
    waiting = next((c for c in looked_at if not c.is_sealable), None)
    sealed = sorted(stored.sealed, key=stored.keys.index)
    return {
        "sealed": len(sealed),
        "sealed_through": sealed[-1] if sealed else None,
        "complete_not_sealed": ready,
        "open": waiting.key if waiting else None,
        "open_because": waiting_message(waiting, waiting.key) if waiting else None,
    }


def _find_late(ws: Workspace) -> list[str]:
    with ws.series.reading("status") as con:
        counts = read_counts(con)
        others = con.execute("SELECT ts, n_bars FROM sessions WHERE NOT is_session ORDER BY ts")
        return find_late(ws, counts, others.fetchall())


def _find_tasks(ws: Workspace) -> list[dict[str, Any]]:
    rows = ws.series.query(
        "SELECT task_id, count(*) AS n, max(ts) AS last FROM predictions GROUP BY task_id"
    ).to_pylist()
    scored = {r["task_id"]: (r["n"], r["last"]) for r in rows}
    tasks = []
    for task in ws.settings.tasks:
        models = ws.meta.models(task.task_id)
        n, last = scored.get(task.task_id, (0, None))
        tasks.append(
            {
                "task": task.task_id,
                "models": len(models),
                "newest_asof": models[-1].asof.isoformat() if models else None,
                "refused": len(ws.meta.refusals(task.task_id)),
                "scores": n,
                "scored_through": last.isoformat() if last else None,
            }
        )
    return tasks


def _next_step(found: dict[str, Any]) -> str:
    if not any(t["models"] for t in found["tasks"]):
        return (
            "No model has been trained yet. Run `quant train`, or `quant backfill --from D --to D`."
        )
    late = [t for t in found["tasks"] if t["scored_through"] != found["prices"]["last_session"]]
    if late:
        return (
            f"{late[0]['task']} is scored through {late[0]['scored_through'] or 'no session yet'}. "
            "Run `quant score`, which fills what is stale and trains complete windows first."
        )
    if found["stale"]:
        return "Some partitions are stale. Run `quant score`, which fills them first."
    return "Everything is up to date. Look at `quant predictions --top 5`, or `quant ui`."


def show_status(found: dict[str, Any]) -> None:
    """The state of a home in words."""
    typer.echo(f"Home {found['home']}")
    if found["prices"]:
        _show_prices(found)
        _show_windows(found)
        _show_stale(found["stale"])
        if found["models_that_knew_less"]:
            n = len(found["models_that_knew_less"])
            typer.echo(
                f"Restated since: {count(n, 'model')} learned from data that were restated later, "
                "and stay as they are. `quant prices restated --reach` lists what."
            )
        print_table(
            found["tasks"],
            {
                "task": "task",
                "models": "models",
                "newest_asof": "newest as of",
                "refused": "refused",
                "scores": "scores",
                "scored_through": "scored through",
            },
        )
    typer.echo(found["next"])


def _show_prices(found: dict[str, Any]) -> None:
    prices = found["prices"]
    typer.echo(
        f"Prices: {prices['bars']:,} bars of {prices['symbols']:,} symbols on "
        f"{prices['sessions']:,} sessions, {prices['first_session']} to "
        f"{prices['last_session']}, from "
        f"{prices['batches']:,} batch{'es' * (prices['batches'] != 1)}."
    )
    if prices["rejected"]:
        by_reason = ", ".join(f"{reason} {n:,}" for reason, n in prices["rejected"].items())
        typer.echo(f"Rejected: {sum(prices['rejected'].values()):,} rows ({by_reason}).")
    if prices["restated"] or prices["late"]:
        typer.echo(
            f"Restated: {prices['restated']:,} bars; after their window was sealed came "
            f"{prices['late']:,}."
        )
    for late in found["late"]:
        typer.echo(f"Late: {late}")


def _show_windows(found: dict[str, Any]) -> None:
    windows = found["windows"]
    if windows["sealed"]:
        typer.echo(
            f"Sealed: {count(windows['sealed'], 'window')}, through {windows['sealed_through']}."
        )
    ready = windows["complete_not_sealed"]
    if ready:
        span = ready[0] if len(ready) == 1 else f"{ready[0]} to {ready[-1]}"
        typer.echo(
            f"Complete, to be sealed when they train: {count(len(ready), 'window')}, {span}."
        )
    if windows["open_because"]:
        typer.echo(windows["open_because"])


def _show_stale(stale: dict[str, dict[str, str]]) -> None:
    """One line for each reason and stretch that assets share."""
    lines: dict[tuple[bool, str], list[str]] = {}
    for asset, why in stale.items():
        for is_missing in (True, False):
            keys = [key for key, reason in why.items() if (reason == "missing") == is_missing]
            if keys:
                span = keys[0] if len(keys) == 1 else f"{len(keys):,} of {keys[0]} to {keys[-1]}"
                reasons = list(dict.fromkeys(why[key] for key in keys))
                more = f" and {count(len(reasons) - 2, 'other reason')}" if len(reasons) > 2 else ""
                because = "" if is_missing else f", because {'; '.join(reasons[:2])}{more}"
                lines.setdefault((is_missing, f"{span}{because}"), []).append(asset)
    for (is_missing, text), assets in lines.items():
        typer.echo(f"{'Not computed yet' if is_missing else 'Stale'}: {', '.join(assets)}: {text}.")
