"""What pictures of scores show: RankIC by session and month, quantile returns, calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from quant_pipeline.chain.panel import days
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.ml.ranking_metrics import quantile_returns
from quant_pipeline.ml.sessions import mean_of_defined, newey_west_se, session_means
from quant_pipeline.ml.targets import make_target
from quant_pipeline.settings import Task
from quant_pipeline.stores.series import query

if TYPE_CHECKING:
    from quant_pipeline.ml.train import TrainedModel

N_QUANTILES = 5
YEAR = timedelta(days=365)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """What scores were worth: rows of `quantiles`, lowest first, and of `calibration`.

    A quantile has its number, the mean return of a session and its Newey-West standard error;
    `calibration` is that of `calibration_bins`, empty but for a classification.
    """

    quantiles: list[dict[str, float]]
    calibration: list[dict[str, float]]


def judge_tests(task: Task, trained: "TrainedModel", min_names: int) -> Judged:
    """The folds' test windows; a session that several folds tested has the mean of theirs."""
    found = []
    for fold in np.unique(trained.test_fold):
        mine = trained.test_fold == fold
        ts, score, outcome = (
            a[mine] for a in (trained.test_ts, trained.test_score, trained.test_return)
        )
        found.append(quantile_returns(ts, score, outcome, N_QUANTILES, min_names))
    sessions, matrix = (np.concatenate(part) for part in zip(*found, strict=True))
    known, at = np.unique(sessions, return_inverse=True)
    by_session = [session_means(at, len(known), column, np.isfinite(column)) for column in matrix.T]
    return Judged(
        _quantiles(by_session, 2 * task.horizon),
        _calibration(task, trained.test_target, trained.test_score),
    )


def judge_outcomes(ws: Workspace, task: Task, key: str, origin: str) -> Judged:
    """Stored scores of an origin whose labels became known in a partition, of whichever model."""
    start, end = ws.grid.window(key)
    with ws.series.reading("outcomes") as con:
        rows = query(
            con,
            "SELECT p.ts, p.score, l.label, l.fwd_return FROM predictions p "
            "JOIN labels l USING (symbol, ts, task_id) WHERE l.reason IS NULL "
            "AND p.task_id = ? AND p.origin = ? AND l.known_at >= ? AND l.known_at < ? "
            "ORDER BY p.ts, p.symbol",
            [task.task_id, origin, start, end],
        )
    ts, score, fwd_return = (
        days(rows["ts"]),
        rows["score"].to_numpy(),
        rows["fwd_return"].to_numpy(),
    )
    matrix = quantile_returns(ts, score, fwd_return, N_QUANTILES, ws.settings.metrics.min_names)[1]
    target = make_target(task, ts, rows["label"].to_numpy(), fwd_return)
    return Judged(_quantiles(list(matrix.T), 2 * task.horizon), _calibration(task, target, score))


def rank_ic_of_a_year(
    ws: Workspace, task: Task, key: str, origin: str
) -> tuple[npt.NDArray[Any], Floats]:
    """Sessions and RankIC of an origin's outcomes known by the end of a partition, a year back.

    A session that several models scored has the mean of theirs.
    """
    end = ws.grid.window(key)[1]
    rows = ws.series.query(
        "SELECT ts, avg(rank_ic) AS rank_ic FROM prediction_outcomes "
        "WHERE task_id = ? AND origin = ? AND known_at >= ? AND known_at < ? "
        "AND rank_ic IS NOT NULL GROUP BY ts ORDER BY ts",
        [task.task_id, origin, end - YEAR, end],
    )
    return days(rows["ts"]), pc.cast(rows["rank_ic"], "float64").to_numpy()


def by_month(ts: npt.NDArray[Any], values: Floats) -> list[dict[str, Any]]:
    """The mean of each calendar month that has a value, and the sum of all values up to its end."""
    months = ts.astype("datetime64[M]")
    rows: list[dict[str, Any]] = []
    total = 0.0
    for month in np.unique(months):
        mine = values[(months == month) & np.isfinite(values)]
        if len(mine):
            total += float(mine.sum())
            rows.append(
                {"month": str(month), "mean": float(mine.mean()), "sum": total, "n": len(mine)}
            )
    return rows


def _quantiles(by_session: Sequence[Floats], lag: int) -> list[dict[str, float]]:
    rows = [
        {"quantile": i, "mean": mean_of_defined(column), "se": newey_west_se(column, lag)}
        for i, column in enumerate(by_session, 1)
    ]
    return [row for row in rows if np.isfinite(row["mean"])]


def _calibration(task: Task, target: Floats, score: Floats) -> list[dict[str, float]]:
    from quant_pipeline.ml.metrics import calibration_bins  # scikit-learn takes its time

    return calibration_bins(target, score) if task.kind == "classification" else []
