"""What stored scores were worth, once their labels are known; unlike ones are never pooled."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.chain.baselines import Floats, Tell, align, permuted_scores, trivial_scores
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.report import summarize
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData
from quant_pipeline.ml.metrics import calibration_bins, evaluate
from quant_pipeline.ml.portfolio import top_k_portfolio
from quant_pipeline.ml.ranking_metrics import (
    capacity,
    ic_decay,
    quantile_returns,
    rank_autocorrelation,
    turnover,
)
from quant_pipeline.ml.sessions import mean_of_defined
from quant_pipeline.ml.targets import make_target
from quant_pipeline.settings import Task
from quant_pipeline.stores.series import read_sessions

N_QUANTILES = 5


def judge_predictions(
    ws: Workspace,
    task: Task,
    first: date | None = None,
    last: date | None = None,
    permuted_with: Tell | None = None,
) -> list[dict[str, Any]]:
    """Stored scores of sessions whose labels are known, judged in groups that may not be pooled.

    One result for each `origin` (`live`: scored at once; `backfill`: later) and for sessions after
    and up to `chosen_asof` of their model: up to it the settings may have been led by their
    outcomes. Each has `metrics` (beside their base rates), `baselines`, `portfolio` (top k, gross
    and net of costs), `decay`, `quantiles`, `turnover`, `rank_autocorrelation`, `capacity` and, for
    a classification, `calibration`. Baselines are trivial scores of the same rows and, with
    `permuted_with`, which is told of the progress, those of models trained on permuted labels at
    every fourth as-of. Raises NoData if there is no such session.
    """
    rows = _read(ws, task, first, last)
    if not len(rows):
        raise NoData(
            f"No score of {task.task_id} has a known label in that range. See `quant status`."
        )
    baselines = align(rows, trivial_scores(ws, rows["ts"][0].as_py(), rows["ts"][-1].as_py()))
    if permuted_with is not None:
        baselines |= _permuted(ws, task, rows, permuted_with)
    for name, score in baselines.items():
        rows = rows.append_column(name, pa.array(score))
    chosen = {m.model_id: m.chosen_asof for m in ws.meta.models(task.task_id)}
    asof = pa.array([chosen[m] for m in rows["model_id"].to_pylist()], pa.date32())
    is_after = pc.greater(rows["ts"], asof)
    found = []
    for origin in ("live", "backfill"):
        for after in (True, False):
            mine = rows.filter(pc.and_(pc.equal(rows["origin"], origin), pc.equal(is_after, after)))
            if len(mine):
                found.append(
                    {"task": task.task_id, "origin": origin, "settings_known_before": after}
                    | _judge(ws, task, mine)
                    | {
                        "baselines": [
                            summarize(name, task, mine, mine[name].to_numpy()) for name in baselines
                        ]
                    }
                )
    return found


def _permuted(ws: Workspace, task: Task, rows: pa.Table, tell: Tell) -> dict[str, Floats]:
    """Scores of rows by models that learned from permuted labels, as of where theirs were."""
    first, last = rows["ts"][0].as_py(), rows["ts"][-1].as_py()
    keys = ws.grid.keys(ws.grid.shift(ws.grid.key(first), -1), ws.grid.shift(ws.grid.key(last), -1))
    found = permuted_scores(ws, task, keys, last, tell)
    return {} if found is None else {"permuted labels": align(rows, found)["score"]}


def _read(ws: Workspace, task: Task, first: date | None, last: date | None) -> pa.Table:
    """Scores of sessions with known labels; a bar without a usable label has none, but counts."""
    with ws.series.reading("judging") as con:
        sessions = read_sessions(con)["ts"].to_pylist()
    known = sessions[: max(len(sessions) - task.label_span, 0)]
    if not known:
        return pa.table({})
    return ws.series.query(
        "SELECT p.symbol, p.ts, p.model_id, p.score, p.origin, l.label, l.fwd_return, "
        "b.close * b.volume AS traded_value "
        "FROM predictions p LEFT JOIN labels l USING (symbol, ts, task_id) "
        "LEFT JOIN prices_daily b USING (symbol, ts) "
        "WHERE p.task_id = ? AND p.ts BETWEEN ? AND ? ORDER BY p.ts, p.symbol",
        [task.task_id, max(first or known[0], known[0]), min(last or known[-1], known[-1])],
    )


def _judge(ws: Workspace, task: Task, rows: pa.Table) -> dict[str, Any]:
    spec = ws.settings.metrics
    ts, symbol, score = days(rows["ts"]), rows["symbol"].to_numpy(), rows["score"].to_numpy()
    label, fwd_return, value = (
        rows[name].to_numpy().astype(np.float64) for name in ("label", "fwd_return", "traded_value")
    )
    has_label = np.isfinite(fwd_return)
    target = np.full(len(ts), np.nan)
    target[has_label] = make_target(task, ts[has_label], label[has_label], fwd_return[has_label])
    least = spec.min_names
    usual = ts[has_label], symbol[has_label], score[has_label]
    portfolio = top_k_portfolio(
        ts, symbol, score, fwd_return, spec.top_k, task.horizon, spec.cost_bps, least
    )
    names, each = capacity(ts, score, value, spec.quantile)[1:]
    by_quantile = quantile_returns(ts, score, fwd_return, N_QUANTILES, least)[1]
    found = {
        "first_ts": ts[0].item(),
        "last_ts": ts[-1].item(),
        "n_sessions": len(np.unique(ts)),
        "n_scores": len(ts),
        "n_without_label": int((~has_label).sum()),
        "metrics": evaluate(
            task, *usual, label[has_label], target[has_label], fwd_return[has_label], spec
        ),
        "portfolio": portfolio.summary,
        "decay": ic_decay(*usual, fwd_return[has_label], _lags(task), task.horizon, least),
        "quantiles": [mean_of_defined(column) for column in by_quantile.T],
        "turnover": mean_of_defined(turnover(ts, symbol, score, spec.quantile, 1)[1]),
        "rank_autocorrelation": mean_of_defined(
            rank_autocorrelation(ts, symbol, score, 1, least)[1]
        ),
        "capacity": {"top_quantile": mean_of_defined(names), "median_name": mean_of_defined(each)},
    }
    if task.kind == "classification":
        found["calibration"] = calibration_bins(target[has_label], score[has_label])
    plain: dict[str, Any] = _plain(found)
    return plain


def _lags(task: Task) -> Sequence[int]:
    return [0, 1, task.horizon, 2 * task.horizon, 4 * task.horizon]


def _plain(value: Any) -> Any:
    """The same for JSON: what is not defined is null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
