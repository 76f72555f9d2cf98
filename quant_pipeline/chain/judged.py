"""What readers see of how scores turned out: each session judged by itself, published.

The means of these columns over a group's sessions are what `judge_predictions` gives of it.
"""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from quant_pipeline.chain.judge import N_QUANTILES, decay_lags, of_group, with_gaps
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData
from quant_pipeline.ml.portfolio import top_k_portfolio
from quant_pipeline.ml.ranking_metrics import (
    ic_of_age,
    quantile_returns,
    rank_autocorrelation,
    turnover,
)
from quant_pipeline.ml.session_metrics import session_metrics
from quant_pipeline.ml.sessions import index_sessions, session_correlations, session_means
from quant_pipeline.ml.targets import make_target
from quant_pipeline.settings import MetricSettings, Task
from quant_pipeline.stores.series import read_sessions


def judge_sessions(ws: Workspace, task: Task, start: date, end: date) -> pa.Table:
    """The sessions whose labels became known in ``[start, end)``, one row a group.

    A group is what `judge_predictions` does not pool: task, origin, and whether the session came
    after the settings were chosen. Columns: n, ic, rank_ic, what `session_metrics` has, of a
    classification base_rate (the share that came true), quantile_1
    (lowest) to quantile_5, turnover, rank_autocorrelation, rank_ic_age_{sessions}, and of the
    tranche formed on the session gross, net, tranche_turnover, n_names. NaN where undefined. What
    they were judged with stands beside them, as [metrics] names it: top_k, cost_bps and others.
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
    made_with, found = ws.settings.metrics.model_dump(), []
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
                columns = {c: pa.array(values[kept]) for c, values in part.items()}
                columns |= {c: pa.array([v] * int(kept.sum())) for c, v in made_with.items()}
                found.append(pa.table(names | columns))
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
    if task.kind == "classification":
        is_judged = known & np.isfinite(score)
        share = session_means(session, len(sessions), target, is_judged)
        found["base_rate"] = np.where(np.isfinite(found["accuracy"]), share, np.nan)
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
    Partitions that were judged with other [metrics] than today's are judged anew: readers add up
    sessions, and label them with what they were made with.
    """
    if not keys:
        return
    returns = _returns(ws, keys)
    for key, mine in _by_partition(ws, keys, returns).items():
        ws.published.write("returns", key, mine)
    wanted = {*_judged_otherwise(ws), *(keys if len(returns) else ())}
    if not wanted:
        return
    ordered = sorted(wanted, key=ws.grid.asof)
    start, end = ws.grid.window(ordered[0])[0], ws.grid.window(ordered[-1])[1]
    judged = [judge_sessions(ws, task, start, end) for task in ws.settings.tasks]
    if any(map(len, judged)):
        order = [(c, "ascending") for c in ("ts", "task_id", "origin", "settings_known_before")]
        everything = pa.concat_tables([t for t in judged if len(t)], promote_options="default")
        for key, mine in _by_partition(ws, ordered, everything.sort_by(order)).items():
            ws.published.write("judged", key, mine)


def _returns(ws: Workspace, keys: Sequence[str]) -> pa.Table:
    return ws.series.query(
        "SELECT p.symbol, p.ts, p.task_id, l.fwd_return, l.known_at FROM predictions p "
        "JOIN labels l USING (symbol, ts, task_id) "
        "WHERE l.reason IS NULL AND l.known_at >= ? AND l.known_at < ? "
        "ORDER BY p.symbol, p.ts, p.task_id",
        [ws.grid.window(keys[0])[0], ws.grid.window(keys[-1])[1]],
    )


def _judged_otherwise(ws: Workspace) -> list[str]:
    """Published partitions that were judged with other [metrics] than today's."""
    files = (ws.home.published / "judged").glob("[!.]*.parquet")
    stems = [f.stem for f in files if not is_judged_with(f, ws.settings.metrics)]
    return [stem for stem in stems if _is_partition(ws, stem)]


def _is_partition(ws: Workspace, name: str) -> bool:
    try:
        ws.grid.window(name)
    except NoData:
        return False
    return True


def is_judged_with(file: Path, spec: MetricSettings) -> bool:
    """Whether a published file of judged sessions says that it was made with these settings."""
    wanted: dict[str, Any] = spec.model_dump()
    try:
        found = pq.read_metadata(file)
    except (pa.ArrowException, OSError):
        return False
    for i in range(found.num_row_groups):
        group = found.row_group(i)
        columns = [group.column(j) for j in range(group.num_columns)]
        told = {c.path_in_schema: c.statistics for c in columns if c.path_in_schema in wanted}
        if any(
            told.get(name) is None or not told[name].min == told[name].max == value
            for name, value in wanted.items()
        ):
            return False
    return True


def _by_partition(ws: Workspace, keys: Sequence[str], rows: pa.Table) -> dict[str, pa.Table]:
    """The rows that became known in each partition that has some."""
    found = {}
    for key in keys:
        start, end = ws.grid.window(key)
        is_mine = pc.and_(pc.greater_equal(rows["known_at"], start), pc.less(rows["known_at"], end))
        if len(mine := rows.filter(is_mine)):
            found[key] = mine
    return found
