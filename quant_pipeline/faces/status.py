"""`quant status`: what is there, what is stale and why, and what to type."""

from typing import Any

import typer

from quant_pipeline.chain.plan import read_stored, stale_data
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData
from quant_pipeline.faces.output import print_table
from quant_pipeline.stores.series import fetch_row


def find_status(ws: Workspace) -> dict[str, Any]:
    """The state of a home as plain data."""
    found: dict[str, Any] = {"home": str(ws.home.root), "prices": None, "stale": {}, "tasks": []}
    try:
        stored = read_stored(ws)
    except NoData as error:
        return {**found, "next": str(error)}
    with ws.series.reading("status") as con:
        n_bars, n_symbols = fetch_row(
            con, "SELECT count(*), count(DISTINCT symbol) FROM prices_daily"
        )
        n_rejected = fetch_row(con, "SELECT count(*) FROM prices_rejected")[0]
        scored = {
            task: (n, last)
            for task, n, last in con.execute(
                "SELECT task_id, count(*), max(ts) FROM predictions GROUP BY task_id"
            ).fetchall()
        }
    found["prices"] = {
        "symbols": n_symbols,
        "bars": n_bars,
        "sessions": stored.n_sessions,
        "first_session": stored.first_session.isoformat(),
        "last_session": stored.last_session.isoformat(),
        "rejected": n_rejected,
    }
    found["stale"] = {asset: why for asset, why in stale_data(ws, stored).items() if why}
    for task in ws.settings.tasks:
        models = ws.meta.models(task.task_id)
        n, last = scored.get(task.task_id, (0, None))
        found["tasks"].append(
            {
                "task": task.task_id,
                "models": len(models),
                "newest_asof": models[-1].asof.isoformat() if models else None,
                "refused": len(ws.meta.refusals(task.task_id)),
                "scores": n,
                "scored_through": last.isoformat() if last else None,
            }
        )
    found["next"] = _next_step(found)
    return found


def _next_step(found: dict[str, Any]) -> str:
    if not any(t["models"] for t in found["tasks"]):
        return (
            "No model has been trained yet. Run `quant train`, or `quant backfill --from D --to D`."
        )
    late = [t for t in found["tasks"] if t["scored_through"] != found["prices"]["last_session"]]
    if late:
        return (
            f"Scores of {late[0]['task']} end at {late[0]['scored_through'] or 'no session'}. "
            "Run `quant train`, then `quant score`."
        )
    if found["stale"]:
        return "Some partitions are stale. Run `quant train`, which fills them first."
    return "Everything is up to date. Look at `quant predictions --top 5`, or `quant ui`."


def show_status(found: dict[str, Any]) -> None:
    """The state of a home in words."""
    typer.echo(f"Home {found['home']}")
    prices = found["prices"]
    if prices:
        typer.echo(
            f"Prices: {prices['bars']:,} bars of {prices['symbols']:,} symbols on "
            f"{prices['sessions']:,} sessions, {prices['first_session']} to "
            f"{prices['last_session']}; {prices['rejected']:,} rows rejected."
        )
        for asset, why in found["stale"].items():
            keys, reasons = list(why), sorted(set(why.values()))
            typer.echo(
                f"Stale: {asset} in {len(keys)} partitions ({keys[0]} to {keys[-1]}): "
                f"{', '.join(reasons)}."
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
