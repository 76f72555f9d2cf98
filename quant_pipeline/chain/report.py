"""How scores did against chance and against trivial scores, on the same rows."""

from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quant_pipeline.chain.features import features_between
from quant_pipeline.chain.folds import read_folds
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.training_data import read_examples
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import DegenerateData
from quant_pipeline.market.features import KNOWN, TRIVIAL_SCORES
from quant_pipeline.ml.examples import Examples
from quant_pipeline.ml.metrics import (
    information_coefficient,
    newey_west_se,
    permute_across_symbols,
    top_minus_bottom,
)
from quant_pipeline.ml.score import score_rows
from quant_pipeline.ml.train import Recipe, train_model
from quant_pipeline.settings import Task
from quant_pipeline.stores.series import query, registered

BASELINE_EVERY = 4
BASELINE_SEED = 7
Days = npt.NDArray[np.datetime64]
Floats = npt.NDArray[np.float64]


def compare(
    ws: Workspace,
    first: date,
    last: date,
    baseline_keys: Sequence[str],
    tell: Callable[[str, int, int], None],
) -> list[dict[str, Any]]:
    """One row a score: mean RankIC ± s.e., share of positive months, top minus bottom fifth.

    Every score is judged on the same sessions of the universe with known labels: each task's
    predictions, a model of the last task trained on labels permuted across symbols (at every
    fourth as-of), and three trivial scores. Standard errors are Newey-West over sessions with a
    lag of twice the horizon.
    """
    rows = []
    for task in ws.settings.tasks:
        found = _scored(ws, task, first, last)
        rows.append(_judge(f"task {task.task_id}", task, *found))
    task = ws.settings.tasks[-1]
    permuted = _permuted(ws, task, baseline_keys, last, tell)
    if permuted is not None:
        rows.append(_judge(f"{task.task_id}, permuted labels", task, *permuted))
    for name, score, ts, fwd_return in _trivial(ws, task, first, last):
        rows.append(_judge(name, task, ts, score, fwd_return))
    return rows


def _scored(ws: Workspace, task: Task, first: date, last: date) -> tuple[Days, Floats, Floats]:
    table = ws.series.query(
        "SELECT p.ts, p.score, l.fwd_return FROM predictions p JOIN labels l "
        "USING (symbol, ts, task_id) WHERE l.reason IS NULL AND p.task_id = ? "
        "AND p.ts >= ? AND p.ts <= ? "
        "ORDER BY p.ts, p.symbol",
        [task.task_id, first, last],
    )
    return days(table["ts"]), table["score"].to_numpy(), table["fwd_return"].to_numpy()


def _trivial(
    ws: Workspace, task: Task, first: date, last: date
) -> Iterator[tuple[str, Floats, Days, Floats]]:
    """Each trivial score with sessions and returns, whatever features the models use."""
    features = [KNOWN[feature] for feature, _ in TRIVIAL_SCORES.values()]
    made = features_between(ws, first, last + timedelta(days=1), features=features).rows
    names = ", ".join(f.name for f in features)
    with ws.series.reading("baseline") as con, registered(con, "made", made):
        rows = query(
            con,
            f"SELECT m.ts, {names}, l.fwd_return FROM made m JOIN labels l USING (symbol, ts) "
            "WHERE l.reason IS NULL AND m.in_universe AND l.task_id = ? ORDER BY m.ts, m.symbol",
            [task.task_id],
        )
    for name, (feature, sign) in TRIVIAL_SCORES.items():
        score = sign * rows[feature].to_numpy().astype(np.float64)
        yield name, score, days(rows["ts"]), rows["fwd_return"].to_numpy()


def _permuted(
    ws: Workspace,
    task: Task,
    keys: Sequence[str],
    last: date,
    tell: Callable[[str, int, int], None],
) -> tuple[Days, Floats, Floats] | None:
    """Scores of models whose labels were permuted across symbols, each for the windows after it."""
    chosen = list(keys)[::BASELINE_EVERY]
    pieces = []
    for i, key in enumerate(chosen):
        tell(f"permuted labels as of {ws.grid.asof(key)}", i, len(chosen))
        with ws.series.reading("baseline") as con:
            examples, labels, _ = read_examples(ws, con, key, [task])
            folds = read_folds(con, key, task.task_id)
        try:
            s = ws.settings
            permuted, label = _permute(examples, labels[task.task_id])
            recipe = Recipe(s.train, s.folds, s.metrics)
            trained = train_model(permuted, label, folds, task, recipe)
        except DegenerateData:
            continue  # chance found nothing to split on: no score, which is as good as noise
        start = ws.grid.window(ws.grid.shift(key, 1))[0]
        end = ws.grid.asof(ws.grid.shift(key, BASELINE_EVERY))
        rows = _feature_rows(ws, task, examples.feature_names, start, min(end, last))
        x = np.column_stack([rows[name].to_numpy() for name in examples.feature_names])
        names = examples.feature_names
        score = score_rows(trained.boosters, np.ascontiguousarray(x), names, names)
        pieces.append((days(rows["ts"]), score, rows["fwd_return"].to_numpy()))
    if not pieces:
        return None
    ts, scores, returns = (np.concatenate(part) for part in zip(*pieces, strict=True))
    return ts, scores, returns


def _feature_rows(
    ws: Workspace, task: Task, features: Sequence[str], start: date, end: date
) -> pa.Table:
    names = ", ".join(f'f."{name}"' for name in features)
    return ws.series.query(
        f"SELECT f.ts, {names}, l.fwd_return FROM features_daily f JOIN labels l "
        "USING (symbol, ts) WHERE l.reason IS NULL AND f.in_universe AND l.task_id = ? "
        "AND f.ts >= ? AND f.ts <= ? "
        "ORDER BY f.ts, f.symbol",
        [task.task_id, start, end],
    )


def _permute(e: Examples, label: Floats) -> tuple[Examples, Floats]:
    """The examples with another symbol's labels, the same other one through all of history."""
    label = permute_across_symbols(e.symbol, e.ts, label, BASELINE_SEED)
    fwd_return = permute_across_symbols(e.symbol, e.ts, e.fwd_return, BASELINE_SEED)
    keep = np.isfinite(label) & np.isfinite(fwd_return)
    kept = {name: getattr(e, name)[keep] for name in ("symbol", "ts", "entry_ts", "known_at")}
    x = np.ascontiguousarray(e.x[keep])
    examples = Examples(**kept, x=x, fwd_return=fwd_return[keep], feature_names=e.feature_names)
    return examples, label[keep]


def _judge(name: str, task: Task, ts: Days, score: Floats, fwd_return: Floats) -> dict[str, Any]:
    known = np.isfinite(score)
    ts, score, fwd_return = ts[known], score[known], fwd_return[known]
    lag = 2 * task.horizon
    sessions, rank_ic = information_coefficient(ts, score, fwd_return, rank=True)
    _, spread = top_minus_bottom(ts, score, fwd_return)
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
