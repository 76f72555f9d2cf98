"""prediction_outcomes: how scores turned out, per session, once their labels are known."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from quant_pipeline.chain.judged import publish_judged
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.ml.metrics import session_outcomes
from quant_pipeline.ml.targets import make_target
from quant_pipeline.settings import MetricSettings, Task, digest
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
    rows = _judge(judged, task, ws.settings.metrics)
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


def _judge(judged: pa.Table, task: Task, spec: MetricSettings) -> list[dict[str, Any]]:
    """One row a model, origin and session; targets are made from whole sessions."""
    ts, fwd_return = days(judged["ts"]), judged["fwd_return"].to_numpy()
    label, score = judged["label"].to_numpy(), judged["score"].to_numpy()
    if task.kind == "classification":
        label = make_target(task, ts, label, fwd_return)
    models, model = _codes(judged["model_id"])
    origins, of = _codes(judged["origin"])
    known = judged.select(["ts", "known_at"]).group_by(["ts", "known_at"]).aggregate([])
    known_at = dict(zip(known["ts"].to_pylist(), known["known_at"].to_pylist(), strict=True))
    rows = []
    pairs = np.unique(np.stack([model, of]), axis=1).T.tolist()
    for m, o, model_id, origin in sorted((m, o, models[m], origins[o]) for m, o in pairs):
        mine = (model == m) & (of == o)
        found = session_outcomes(
            ts[mine], score[mine], label[mine], fwd_return[mine], task.kind,
            spec.quantile, spec.min_names,
        )  # fmt: skip
        for i, day in enumerate(found["ts"]):
            rows.append(
                {
                    "task_id": task.task_id,
                    "model_id": model_id,
                    "ts": day.item(),
                    "known_at": known_at[day.item()],
                    "origin": origin,
                    "n": int(found["n"][i]),
                    **{m: _or_none(found[m][i]) for m in METRICS},
                }
            )
    return sorted(rows, key=lambda row: (row["model_id"], row["ts"], row["origin"]))


def _codes(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The distinct values of a column, and each row's place among them."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _or_none(value: float) -> float | None:
    return None if value != value else float(value)  # NaN becomes NULL


def publish_outcomes(ws: Workspace, keys: Sequence[str]) -> None:
    """Put the outcomes of partitions where readers find them."""
    for key in keys:
        start, end = ws.grid.window(key)
        rows = ws.series.query(
            "SELECT * FROM prediction_outcomes WHERE known_at >= ? AND known_at < ? "
            "ORDER BY ts, task_id, model_id, origin",
            [start, end],
        )
        if len(rows):
            ws.published.write("outcomes", key, rows)
    publish_judged(ws, keys)
