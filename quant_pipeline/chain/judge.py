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
from quant_pipeline.ml.session_metrics import mean_and_error, session_metrics
from quant_pipeline.ml.sessions import index_sessions, mean_of_defined, newey_west_se
from quant_pipeline.ml.targets import make_target
from quant_pipeline.settings import MetricSettings, Task
from quant_pipeline.stores.series import read_sessions

N_QUANTILES = 5


def judge_predictions(
    ws: Workspace,
    task: Task,
    first: date | None = None,
    last: date | None = None,
    permuted_with: Tell | None = None,
    model_id: str | None = None,
) -> list[dict[str, Any]]:
    """Stored scores of sessions whose labels are known, judged in groups that may not be pooled.

    One result for each `origin` (`live`: scored at once; `backfill`: later) and for sessions after
    and up to `chosen_asof` of their model: up to it the settings may have been led by their
    outcomes. Each has `metrics` (beside their base rates), `baselines`, `portfolio` (top k, gross
    and net of costs), `decay`, `quantiles`, `sessions` and, for
    a classification, `calibration`. Baselines are trivial scores of the same rows and, with
    `permuted_with`, which is told of the progress, those of models trained on permuted labels at
    every fourth as-of. With `model_id`, the scores of that model alone, served or in the shadow,
    and those that were served are a baseline. Raises NoData if there is no such session.
    """
    rows = _read(ws, task, first, last, model_id)
    if not len(rows):
        whose = task.task_id if model_id is None else f"model {model_id[:12]}"
        raise NoData(f"No score of {whose} has a known label in that range. See `quant status`.")
    baselines = align(rows, trivial_scores(ws, rows["ts"][0].as_py(), rows["ts"][-1].as_py()))
    if model_id is not None:
        served = _read(ws, task, first, last).select(["symbol", "ts", "score"])
        baselines |= {"scores that were served": align(rows, served)["score"]}
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
            is_mine = pc.and_(pc.equal(rows["origin"], origin), pc.equal(is_after, after))
            if pc.any(is_mine).as_py():
                names = {"task": task.task_id, "origin": origin, "settings_known_before": after}
                found.append(names | _judge(ws, task, rows, is_mine.to_numpy(), list(baselines)))
    return found


def _permuted(ws: Workspace, task: Task, rows: pa.Table, tell: Tell) -> dict[str, Floats]:
    """Scores of rows by models that learned from permuted labels, as of where theirs were."""
    first, last = rows["ts"][0].as_py(), rows["ts"][-1].as_py()
    keys = ws.grid.keys(ws.grid.shift(ws.grid.key(first), -1), ws.grid.shift(ws.grid.key(last), -1))
    found = permuted_scores(ws, task, keys, last, tell)
    return {} if found is None else {"permuted labels": align(rows, found)["score"]}


SERVED = "FROM predictions WHERE task_id = ?"
OF_A_MODEL = (
    "FROM (FROM predictions UNION ALL FROM predictions_shadow) WHERE task_id = ? AND model_id = ?"
)


def _read(
    ws: Workspace,
    task: Task,
    first: date | None,
    last: date | None,
    model_id: str | None = None,
) -> pa.Table:
    """Scores of sessions with known labels; a bar without a usable label has none, but counts."""
    with ws.series.reading("judging") as con:
        sessions = read_sessions(con)["ts"].to_pylist()
    known = sessions[: max(len(sessions) - task.label_span, 0)]
    if not known:
        return pa.table({})
    source, whose = SERVED, [task.task_id]
    if model_id is not None:
        source, whose = OF_A_MODEL, [task.task_id, model_id]
    return ws.series.query(
        "SELECT p.symbol, p.ts, p.model_id, p.score, p.origin, l.label, l.fwd_return, "
        "b.close * b.volume AS traded_value "
        f"FROM ({source}) p LEFT JOIN labels l USING (symbol, ts, task_id) "
        "LEFT JOIN prices_daily b USING (symbol, ts) "
        "WHERE p.ts BETWEEN ? AND ? ORDER BY p.ts, p.symbol",
        [*whose, max(first or known[0], known[0]), min(last or known[-1], known[-1])],
    )


def _judge(
    ws: Workspace, task: Task, rows: pa.Table, is_mine: np.ndarray, baselines: Sequence[str]
) -> dict[str, Any]:
    """One group. Targets come from whole sessions, and a session without its scores is a gap."""
    spec, least = ws.settings.metrics, ws.settings.metrics.min_names
    mine = rows.filter(pa.array(is_mine))
    span = with_gaps(ws, rows, mine["ts"][0].as_py(), mine["ts"][-1].as_py())
    ts, symbol = days(span["ts"]), span["symbol"].to_numpy()
    score, label, fwd_return, value = (
        span[name].to_numpy().astype(np.float64)
        for name in ("score", "label", "fwd_return", "traded_value")
    )
    target = np.full(len(ts), np.nan)
    known = np.isfinite(fwd_return)
    target[known] = make_target(task, ts[known], label[known], fwd_return[known])
    score[~of_group(rows, is_mine, span)] = np.nan
    _, session = index_sessions(ts)
    score[np.bincount(session[np.isfinite(score)], minlength=session[-1] + 1)[session] < least] = (
        np.nan
    )
    usual = ts, symbol, score
    portfolio = top_k_portfolio(*usual, fwd_return, spec.top_k, task.horizon, spec.cost_bps, least)
    lag = 2 * task.horizon
    columns = session_metrics(task, *usual, target, fwd_return, spec)[1]
    names, each = capacity(ts, score, value, spec.quantile)[1:]
    columns["turnover"] = turnover(*usual, spec.quantile, 1)[1]
    columns["rank_autocorrelation"] = rank_autocorrelation(*usual, 1, least)[1]
    columns |= {"capacity_top_quantile": names, "capacity_median_name": each}
    by_quantile = quantile_returns(ts, score, fwd_return, N_QUANTILES, least)[1]
    has_label = np.isfinite(mine["fwd_return"].to_numpy().astype(np.float64))
    found = {
        "first_ts": mine["ts"][0].as_py(),
        "last_ts": mine["ts"][-1].as_py(),
        "n_sessions": len(pc.unique(mine["ts"])),
        "n_scores": len(mine),
        "n_without_label": int((~has_label).sum()),
        "metrics": evaluate(task, *usual, label, target, fwd_return, spec),
        "baselines": [_beside(name, task, mine, spec) for name in baselines],
        "sessions": mean_and_error(columns, lag),
        "portfolio": portfolio.summary
        | {
            "n_unpriced": mean_of_defined(portfolio.n_unpriced),
            "tied": mean_of_defined(portfolio.tied),
        },
        "decay": ic_decay(*usual, fwd_return, decay_lags(task), task.horizon, least),
        "quantiles": [mean_of_defined(column) for column in by_quantile.T],
        "quantiles_se": [newey_west_se(column, lag) for column in by_quantile.T],
    }
    if task.kind == "classification":
        is_judged = known & np.isfinite(score)
        found["calibration"] = calibration_bins(target[is_judged], score[is_judged])
    plain: dict[str, Any] = _plain(found)
    return plain


def _beside(name: str, task: Task, mine: pa.Table, spec: MetricSettings) -> dict[str, Any]:
    """A baseline, and what the judged score was worth on just the rows that the baseline has."""
    baseline = mine[name].to_numpy()
    score = np.where(np.isfinite(baseline), mine["score"].to_numpy(), np.nan)
    there = summarize("", task, mine, score, spec)
    return summarize(name, task, mine, baseline, spec) | {
        "score_rank_ic": there["rank_ic"],
        "score_rank_ic_se": there["rank_ic_se"],
    }


def with_gaps(ws: Workspace, rows: pa.Table, first: date, last: date) -> pa.Table:
    """Rows from one session to another, with an empty row for each market session without any."""
    with ws.series.reading("judging") as con:
        sessions = read_sessions(con)["ts"]
    is_inside = pc.and_(pc.greater_equal(rows["ts"], first), pc.less_equal(rows["ts"], last))
    span = rows.filter(is_inside).append_column("row", _numbers(is_inside))
    wanted = sessions.filter(
        pc.and_(
            pc.and_(pc.greater_equal(sessions, first), pc.less_equal(sessions, last)),
            pc.invert(pc.is_in(sessions, pc.unique(span["ts"]))),
        )
    )
    empty = {
        "ts": wanted,
        "symbol": pa.array([""] * len(wanted)),
        "row": pa.array([-1] * len(wanted)),
    }
    gaps = pa.table(
        {f.name: empty.get(f.name, pa.nulls(len(wanted), f.type)) for f in span.schema}, span.schema
    )
    return pa.concat_tables([span, gaps]).sort_by([("ts", "ascending"), ("symbol", "ascending")])


def _numbers(is_kept: pa.ChunkedArray) -> pa.Array:
    return pa.array(np.flatnonzero(is_kept.to_numpy()))


def of_group(rows: pa.Table, is_mine: np.ndarray, span: pa.Table) -> np.ndarray:
    """Which rows of the span belong to the group."""
    number = span["row"].to_numpy()
    found: np.ndarray = (number >= 0) & is_mine[np.maximum(number, 0)]
    return found


def decay_lags(task: Task) -> Sequence[int]:
    """Ages of scores, in sessions, whose RankIC with today's returns is told."""
    return [0, 1, task.horizon, 2 * task.horizon, 4 * task.horizon]


def _plain(value: Any) -> Any:
    """The same for JSON: what is not defined is null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
