"""What readers see of how scores turned out: each session judged by itself, published.

The means of these columns over a group's sessions are what `judge_predictions` gives of it.
"""

from collections.abc import Sequence
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.chain.judge import N_QUANTILES, decay_lags, of_group, with_gaps
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.ml.portfolio import top_k_portfolio
from quant_pipeline.ml.ranking_metrics import (
    ic_of_age,
    quantile_returns,
    rank_autocorrelation,
    turnover,
)
from quant_pipeline.ml.session_metrics import session_metrics
from quant_pipeline.ml.sessions import index_sessions, session_correlations
from quant_pipeline.ml.targets import make_target
from quant_pipeline.settings import Task
from quant_pipeline.stores.series import read_sessions


def judge_sessions(ws: Workspace, task: Task, start: date, end: date) -> pa.Table:
    """The sessions whose labels became known in ``[start, end)``, one row a group.

    A group is what `judge_predictions` does not pool: task, origin, and whether the session came
    after the settings were chosen. Columns: n, ic, rank_ic, what `session_metrics` has, quantile_1
    (lowest) to quantile_5, turnover, rank_autocorrelation, rank_ic_age_{sessions}, and of the
    tranche formed on the session gross, net, tranche_turnover, n_names. NaN where undefined.
    """
    sessions = _sessions(ws)
    known = sessions[task.label_span :]
    first, last = np.searchsorted(known, np.array([start, end], "datetime64[D]"))
    if first == last:
        return pa.table({})
    before = max(int(first) - max(decay_lags(task)), 0)
    rows = _read(ws, task, sessions[before].item(), sessions[last - 1].item())
    chosen = {m.model_id: m.chosen_asof for m in ws.meta.models(task.task_id)}
    asof = np.array([chosen[m] for m in rows["model_id"].to_pylist()], "datetime64[D]")
    is_after, origin = days(rows["ts"]) > asof, rows["origin"].to_numpy()
    is_wanted = days(rows["ts"]) >= sessions[first]
    found = []
    for name in ("live", "backfill"):
        for after in (True, False):
            is_mine = (origin == name) & (is_after == after)
            if (is_mine & is_wanted).any():
                part = _columns(ws, task, rows, is_mine)
                at = np.searchsorted(sessions, part.pop("ts"))
                kept = np.isin(sessions[at], days(rows["ts"])[is_mine & is_wanted])
                names = {
                    "task_id": pa.array([task.task_id] * int(kept.sum()), pa.string()),
                    "origin": pa.array([name] * int(kept.sum()), pa.string()),
                    "settings_known_before": pa.array([after] * int(kept.sum())),
                    "ts": pa.array(sessions[at][kept], pa.date32()),
                    "known_at": pa.array(known[at[kept]], pa.date32()),
                }
                found.append(
                    pa.table(names | {c: pa.array(values[kept]) for c, values in part.items()})
                )
    return pa.concat_tables(found) if found else pa.table({})


def _columns(
    ws: Workspace, task: Task, rows: pa.Table, is_mine: np.ndarray
) -> dict[str, np.ndarray]:
    """Of each market session in the span of some rows, what the scores of a group were worth."""
    spec, least = ws.settings.metrics, ws.settings.metrics.min_names
    span = with_gaps(ws, rows, rows["ts"][0].as_py(), rows["ts"][-1].as_py())
    ts, symbol = days(span["ts"]), span["symbol"].to_numpy()
    score, label, fwd_return = (
        span[name].to_numpy().astype(np.float64) for name in ("score", "label", "fwd_return")
    )
    target = np.full(len(ts), np.nan)
    known = np.isfinite(fwd_return)
    target[known] = make_target(task, ts[known], label[known], fwd_return[known])
    score[~of_group(rows, is_mine, span)] = np.nan
    sessions, session = index_sessions(ts)
    n = np.bincount(session[np.isfinite(score)], minlength=len(sessions))
    score[(n < least)[session]] = np.nan
    usual = ts, symbol, score
    found: dict[str, np.ndarray] = {"ts": sessions, "n": n}
    for name, ranked in (("ic", False), ("rank_ic", True)):
        found[name] = session_correlations(session, len(sessions), score, fwd_return, ranked, least)
    found |= session_metrics(task, *usual, target, fwd_return, spec)[1]
    quantiles = quantile_returns(ts, score, fwd_return, N_QUANTILES, least)[1]
    found |= {f"quantile_{i}": column for i, column in enumerate(quantiles.T, 1)}
    found["turnover"] = turnover(*usual, spec.quantile, 1)[1]
    found["rank_autocorrelation"] = rank_autocorrelation(*usual, 1, least)[1]
    for lag in decay_lags(task):
        found[f"rank_ic_age_{lag}"] = ic_of_age(*usual, fwd_return, lag, least)
    tranches = top_k_portfolio(*usual, fwd_return, spec.top_k, task.horizon, spec.cost_bps, least)
    found |= {"gross": tranches.gross, "net": tranches.net,
              "tranche_turnover": tranches.turnover, "n_names": tranches.n_names}  # fmt: skip
    return found


def _sessions(ws: Workspace) -> np.ndarray:
    with ws.series.reading("judging") as con:
        return days(read_sessions(con)["ts"])


def _read(ws: Workspace, task: Task, first: date, last: date) -> pa.Table:
    return ws.series.query(
        "SELECT p.symbol, p.ts, p.model_id, p.score, p.origin, l.label, l.fwd_return "
        "FROM predictions p LEFT JOIN labels l USING (symbol, ts, task_id) "
        "WHERE p.task_id = ? AND p.ts BETWEEN ? AND ? ORDER BY p.ts, p.symbol",
        [task.task_id, first, last],
    )


def publish_judged(ws: Workspace, keys: Sequence[str]) -> None:
    """Put judged sessions, and each score's return, where readers find them.

    By the partition in which the labels became known, as outcomes are; `keys` are consecutive.
    """
    if not keys:
        return
    start, end = ws.grid.window(keys[0])[0], ws.grid.window(keys[-1])[1]
    returns = ws.series.query(
        "SELECT p.symbol, p.ts, p.task_id, l.fwd_return, l.known_at FROM predictions p "
        "JOIN labels l USING (symbol, ts, task_id) "
        "WHERE l.reason IS NULL AND l.known_at >= ? AND l.known_at < ? "
        "ORDER BY p.symbol, p.ts, p.task_id",
        [start, end],
    )
    found = [judge_sessions(ws, task, start, end) for task in ws.settings.tasks]
    judged = [t for t in found if len(t)]
    if not judged or not len(returns):
        return
    order = [(name, "ascending") for name in ("ts", "task_id", "origin", "settings_known_before")]
    everything = pa.concat_tables(judged, promote_options="default").sort_by(order)
    for key in keys:
        for name, rows in (("returns", returns), ("judged", everything)):
            mine = _known_in(rows, *ws.grid.window(key))
            if len(mine):
                ws.published.write(name, key, mine)


def _known_in(rows: pa.Table, start: date, end: date) -> pa.Table:
    return rows.filter(
        pc.and_(pc.greater_equal(rows["known_at"], start), pc.less(rows["known_at"], end))
    )
