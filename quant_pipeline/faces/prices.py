"""`quant prices`: versions of bars, restatements, and what they reached."""

from collections import Counter
from datetime import date
from typing import Any

import typer

from quant_pipeline.chain.knowledge import models_that_knew_less, scores_that_knew_less
from quant_pipeline.chain.prices import read_history, read_restated
from quant_pipeline.chain.stale import read_stored
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData
from quant_pipeline.faces.output import print_table
from quant_pipeline.faces.symbols import stored_symbol

SHOWN = 20


def find_history(ws: Workspace, symbol: str, ts: date) -> list[dict[str, Any]]:
    """Versions of one bar, oldest first."""
    symbol = stored_symbol(ws, symbol)
    rows = read_history(ws, symbol, ts)
    if not rows:
        raise NoData(
            f"No version of {symbol} on {ts} is stored. `quant status` tells which sessions are."
        )
    return rows


def show_history(rows: list[dict[str, Any]]) -> None:
    """Versions as a table."""
    shown = [{**r, "ingested_at": f"{r['ingested_at']:%Y-%m-%d %H:%M}"} for r in rows]
    print_table(
        shown,
        {
            "batch_id": "batch", "ingested_at": "ingested (UTC)", "change": "change",
            "open": "open", "high": "high", "low": "low", "close": "close", "volume": "volume",
            "adj_index": "index", "superseded_by": "until batch", "source": "source",
        },
    )  # fmt: skip


def find_restated(
    ws: Workspace, first: date | None, last: date | None, symbol: str | None, *, with_reach: bool
) -> dict[str, Any]:
    """Restatements and, if asked for, the models and scores that were made before them."""
    wanted = symbol and stored_symbol(ws, symbol)
    found: dict[str, Any] = {"restated": read_restated(ws, first, last, wanted)}
    if with_reach:
        stored = read_stored(ws)
        found["models"] = models_that_knew_less(ws, stored)
        found["scores"] = scores_that_knew_less(ws, stored)
    return found


def show_restated(found: dict[str, Any]) -> None:
    """Restatements in words and tables."""
    rows = found["restated"]
    if not rows:
        typer.echo("No stored bar was restated, and none came after its window was sealed.")
    print_table(
        [{**r, "ingested_at": f"{r['ingested_at']:%Y-%m-%d %H:%M}"} for r in rows[:SHOWN]],
        {
            "symbol": "symbol", "ts": "session", "change": "change", "batch_id": "batch",
            "ingested_at": "ingested (UTC)", "old_close": "close before", "close": "close",
            "old_volume": "volume before", "volume": "volume", "index_change": "index change",
        },
    )  # fmt: skip
    if len(rows) > SHOWN:
        typer.echo(f"… and {len(rows) - SHOWN:,} more: --json lists all.")
    for model in found.get("models", []):
        typer.echo(
            f"Model {model['model_id'][:12]} of {model['task_id']} as of {model['asof']} was "
            f"trained on batch {model['made_in_batch']}; {model['changed_ts']} changed in batch "
            f"{model['batch_id']}. It stays; the next as-of knows."
        )
    scores = found.get("scores", [])
    if scores:
        kinds = ", ".join(f"{n:,} by {k}" for k, n in Counter(r["change"] for r in scores).items())
        typer.echo(
            f"{len(scores):,} stored scores from {scores[0]['ts']} on were made before something "
            f"they depend on changed ({kinds}). They stay as they were given: --json lists them."
        )
    elif "scores" in found:
        typer.echo("No stored score depends on anything that changed after it was made.")
