"""How scores did against chance and against trivial scores, on the same rows."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quant_pipeline.chain.baselines import Tell, align, permuted_scores, trivial_scores
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.ml.metrics import information_coefficient, newey_west_se, top_minus_bottom
from quant_pipeline.settings import MetricSettings, Task

Floats = npt.NDArray[np.float64]


def compare(
    ws: Workspace, first: date, last: date, baseline_keys: Sequence[str], tell: Tell
) -> list[dict[str, Any]]:
    """One row a score: mean RankIC ± s.e., share of positive months, top minus bottom fifth.

    Each task's predictions, then, on the rows of the last task's, a model of it trained on labels
    permuted across symbols (at every fourth as-of) and three trivial scores.
    """
    found, spec = [], ws.settings.metrics
    for task in ws.settings.tasks:
        rows = scored_rows(ws, task, first, last)
        found.append(summarize(f"task {task.task_id}", task, rows, rows["score"].to_numpy(), spec))
    permuted = permuted_scores(ws, task, baseline_keys, last, tell)
    if permuted is not None:
        (score,) = align(rows, permuted).values()
        found.append(summarize(f"{task.task_id}, permuted labels", task, rows, score, spec))
    for name, score in align(rows, trivial_scores(ws, first, last)).items():
        found.append(summarize(name, task, rows, score, spec))
    return found


def scored_rows(ws: Workspace, task: Task, first: date, last: date) -> pa.Table:
    """Stored scores (symbol, ts, score, fwd_return) of sessions whose labels are known."""
    return ws.series.query(
        "SELECT p.symbol, p.ts, p.score, l.fwd_return FROM predictions p JOIN labels l "
        "USING (symbol, ts, task_id) WHERE l.reason IS NULL AND p.task_id = ? "
        "AND p.ts >= ? AND p.ts <= ? "
        "ORDER BY p.ts, p.symbol",
        [task.task_id, first, last],
    )


def summarize(
    name: str, task: Task, rows: pa.Table, score: Floats, spec: MetricSettings
) -> dict[str, Any]:
    """What a score of rows with ts and fwd_return was worth; rows without one do not count.

    Standard errors are Newey-West over sessions with a lag of twice the horizon.
    """
    fwd_return = rows["fwd_return"].to_numpy()
    known = np.isfinite(score) & np.isfinite(fwd_return)
    ts, score, fwd_return = days(rows["ts"])[known], score[known], fwd_return[known]
    lag = 2 * task.horizon
    least = spec.min_names
    sessions, rank_ic = information_coefficient(ts, score, fwd_return, True, least)
    _, spread = top_minus_bottom(ts, score, fwd_return, spec.quantile, least)
    months = sessions.astype("datetime64[M]")
    by_month = [_mean(rank_ic[months == month]) for month in np.unique(months)]
    known_months = [m for m in by_month if m == m]
    return {
        "score": name,
        "sessions": int(np.isfinite(rank_ic).sum()),
        "rank_ic": _or_none(_mean(rank_ic)),
        "rank_ic_se": _or_none(newey_west_se(rank_ic, lag)),
        "months": len(known_months),
        "positive_months": sum(m > 0 for m in known_months),
        "top_minus_bottom": _or_none(_mean(spread)),
        "top_minus_bottom_se": _or_none(newey_west_se(spread, lag)),
    }


def _mean(values: Floats) -> float:
    found = values[np.isfinite(values)]
    return float(found.mean()) if len(found) else float("nan")


def _or_none(value: float) -> float | None:
    return None if value != value else float(value)
