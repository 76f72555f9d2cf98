"""`quant demo --synthetic`: the chain on a made-up market whose truth is known, no download."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import typer

from quant_pipeline.chain.ingest import reading_of
from quant_pipeline.chain.report import scored_rows, summarize
from quant_pipeline.chain.stale import read_stored
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.instance import prepare, template
from quant_pipeline.defs.jobs import Runner, backfill
from quant_pipeline.faces.demo import Clock, Tell, require_home_of, shown
from quant_pipeline.faces.ingesting import ingest_and_report
from quant_pipeline.faces.output import print_table
from quant_pipeline.market.canaries import Canaries, make_canaries
from quant_pipeline.settings import Home, Task

SIZE = {"n_symbols": 60, "n_sessions": 620, "n_live": 40, "signal": 0.3}
FIRST = date(2020, 2, 1)
SOURCES = ("synthetic_1.parquet", "synthetic_2.parquet")


def run_synthetic(tell: Tell) -> dict[str, Any]:
    """Ingest, walk forward, ingest what the vendor restated, score on; compare with the truth."""
    home = Home.from_environment()
    home.raw.mkdir(parents=True, exist_ok=True)
    home.models.mkdir(parents=True, exist_ok=True)
    if not home.settings_file.exists():
        home.settings_file.write_text(template("quant.toml"))
    prepare(home)
    ws = Workspace.open(home)
    require_home_of(ws, SOURCES)
    clock = Clock()
    market = make_canaries(**SIZE)  # type: ignore[arg-type]
    for name, delivery in zip(SOURCES, (market.first, market.second), strict=True):
        path = home.raw / name
        delivery.to_parquet(path, index=False)
        _ingest(ws, path, tell)
        clock.lap("ingest")
        last = read_stored(ws).last_session
        with Runner.open(ws, clock.telling(tell)) as runner:
            backfill(runner, FIRST, last, ws.settings.tasks)
        clock.lap("scores")
    truth = [_judge(ws, market, task) for task in ws.settings.tasks]
    kinds = pd.Series([event.kind for event in market.events]).value_counts().to_dict()
    return {
        "symbols": len(market.symbols),
        "sessions": len(market.sessions),
        "signal": market.signal,
        "planted_ic": {task.task_id: market.ic(task.horizon, task.entry_lag)
                       for task in ws.settings.tasks},
        "events": kinds | {"restated bars": len(market.restated),
                           "omitted bars": len(market.omitted)},
        "scores": [row for rows in truth for row in rows],
        "seconds": clock.laps,
        "home": str(home.root),
    }  # fmt: skip


def _ingest(ws: Workspace, path: Path, tell: Tell) -> None:
    ingest_and_report(ws, [path], reading_of(ws), "prices", tell)


def _judge(ws: Workspace, market: Canaries, task: Task) -> list[dict[str, Any]]:
    """A task's scores, and on the same rows the signal that was planted."""
    rows = scored_rows(ws, task, FIRST, date.max)
    spec = ws.settings.metrics
    planted = _signal_of(rows, market)
    return [
        summarize(f"task {task.task_id}", task, rows, rows["score"].to_numpy(), spec),
        summarize(f"{task.task_id}: the planted signal", task, rows, planted, spec),
    ]


def _signal_of(rows: pa.Table, market: Canaries) -> np.ndarray:
    """The true signal of each row: the session's shock, its sign turned."""
    session = np.searchsorted(market.sessions, rows["ts"].to_numpy().astype("datetime64[D]"))
    code = {symbol: i for i, symbol in enumerate(market.symbols)}
    symbol = np.array([code[s] for s in rows["symbol"].to_pylist()])
    found: np.ndarray = -market.shocks[session, symbol]
    return found


def show_synthetic(found: dict[str, Any]) -> None:
    """The result for people: what was planted, what was found, what to type next."""
    events = ", ".join(f"{n} {kind}{'s' * (n != 1)}" if not kind.endswith("bars") else f"{n} {kind}"
                       for kind, n in found["events"].items())  # fmt: skip
    planted = ", ".join(f"{value:.3f} ({task})" for task, value in found["planted_ic"].items())
    typer.echo(
        f"A made-up market: {found['symbols']} symbols on {found['sessions']} sessions; {events}.\n"
        f"Planted: a signal whose correlation with what follows is {planted}.\n"
    )
    print_table(
        [shown(row) for row in found["scores"]],
        {"score": "score", "rank_ic": "mean RankIC ± s.e.", "months": "months > 0",
         "spread": "top minus bottom fifth, 5-day return, gross"},
    )  # fmt: skip
    laps = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in found["seconds"].items())
    typer.echo(f"\nTook {sum(found['seconds'].values()):.0f} s: {laps}.")
    typer.echo("Next: quant audit · quant verify --all · quant prices restated · quant ui")
