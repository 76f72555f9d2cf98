"""prediction_outcomes: how scores turned out, per session, once their labels are known."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.chain.panel import days
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.ml.metrics import session_outcomes
from quant_pipeline.ml.targets import make_target
from quant_pipeline.settings import Task, digest
from quant_pipeline.stores.series import query, replace

METRICS = ("ic", "rank_ic", "hit_rate", "base_rate", "top_minus_bottom")


def write_outcomes(
    ws: Workspace, keys: Sequence[str], task: Task, run_id: str = ""
) -> list[dict[str, Any]]:
    """Judge the scores whose labels became known in consecutive partitions, and store it."""
    start, end = ws.grid.window(keys[0])[0], ws.grid.window(keys[-1])[1]
    with ws.series.reading("outcomes") as con:
        judged = query(
            con,
            "SELECT p.model_id, p.origin, p.ts, p.symbol, p.score, l.known_at, l.label, "
            "l.fwd_return FROM predictions p JOIN labels l USING (symbol, ts, task_id) "
            "WHERE l.reason IS NULL AND p.task_id = ? AND l.known_at >= ? AND l.known_at < ? "
            "ORDER BY p.ts, p.symbol",
            [task.task_id, start, end],
        )
    rows = _judge(judged, task)
    table = pa.Table.from_pylist(rows, _OUTCOMES)
    with ws.writing("prediction_outcomes", run_id) as writing:
        where = "task_id = ? AND known_at >= ? AND known_at < ?"
        replace(writing.con, "prediction_outcomes", table, where, [task.task_id, start, end])
        for key in keys:
            mine = [r for r in rows if ws.grid.key(r["known_at"]) == key]
            writing.record("prediction_outcomes", key, len(mine), digest(*mine), "", task.task_id)
    return rows


_OUTCOMES = pa.schema(
    [
        ("task_id", pa.string()),
        ("model_id", pa.string()),
        ("ts", pa.date32()),
        ("known_at", pa.date32()),
        ("origin", pa.string()),
        ("n", pa.int64()),
        *((name, pa.float64()) for name in METRICS),
    ]
)


def _judge(judged: pa.Table, task: Task) -> list[dict[str, Any]]:
    rows = []
    for model_id in sorted(set(judged["model_id"].to_pylist())):
        mine = judged.filter(pc.equal(judged["model_id"], model_id))
        ts, fwd_return = days(mine["ts"]), mine["fwd_return"].to_numpy()
        label = mine["label"].to_numpy()
        if task.kind == "classification":
            label = make_target(task, ts, label, fwd_return)
        found = session_outcomes(ts, mine["score"].to_numpy(), label, fwd_return, task.kind)
        facts = {
            r["ts"]: (r["known_at"], r["origin"])
            for r in mine.select(["ts", "known_at", "origin"]).to_pylist()
        }
        for i, day in enumerate(found["ts"]):
            ts = day.item()
            rows.append(
                {
                    "task_id": task.task_id,
                    "model_id": model_id,
                    "ts": ts,
                    "known_at": facts[ts][0],
                    "origin": facts[ts][1],
                    "n": int(found["n"][i]),
                    **{m: _or_none(found[m][i]) for m in METRICS},
                }
            )
    return rows


def _or_none(value: float) -> float | None:
    return None if value != value else float(value)  # NaN becomes NULL


def publish_outcomes(ws: Workspace, keys: Sequence[str]) -> None:
    """Put the outcomes of partitions where readers find them."""
    for key in keys:
        start, end = ws.grid.window(key)
        rows = ws.series.query(
            "SELECT * FROM prediction_outcomes WHERE known_at >= ? AND known_at < ? "
            "ORDER BY ts, task_id, model_id",
            [start, end],
        )
        if len(rows):
            ws.published.write("outcomes", key, rows)
