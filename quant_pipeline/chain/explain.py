"""Why a score is what it is: SHAP values of a stored prediction, and of a model as a whole."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from quant_pipeline.chain.model_content import read_boosters
from quant_pipeline.chain.predict import lost_features, refuse_lost
from quant_pipeline.chain.stale import require_fresh_features
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData
from quant_pipeline.ml.score import explain_rows, score_rows
from quant_pipeline.settings import Task
from quant_pipeline.stores.meta import Model
from quant_pipeline.stores.series import Connection, identifiers, query

# Rows that a model's mean SHAP values are taken over, at most.
N_ROWS = 5_000


def explain_prediction(ws: Workspace, task: Task, symbol: str, day: date) -> dict[str, Any]:
    """A stored score taken apart: what each feature added, the largest first.

    `base` and the contributions add up to `raw`; the score is `raw` itself, or for a
    classification its logistic function. `score_now` is what today's features would give: it
    differs from `score` if their prices were restated since. Raises NoData if there is no such
    score.
    """
    with ws.series.reading("explaining") as con:
        stored = query(
            con,
            "SELECT model_id, score FROM predictions WHERE task_id = ? AND symbol = ? AND ts = ?",
            [task.task_id, symbol, day],
        ).to_pylist()
        if not stored:
            raise NoData(
                f"{symbol} has no score of {task.task_id} on {day}. See `quant predictions --task "
                f"{task.task_id} --ts {day}`."
            )
        model = ws.meta.model(stored[0]["model_id"])
        key = ws.grid.key(day)
        x = _features(ws, con, model, "symbol = ? AND ts = ?", [symbol, day], [key])
    if not len(x):
        raise NoData(f"{symbol} has no features on {day} any more: its bar was deleted.")
    return _explain(ws, model, x, symbol, day, stored[0]["score"])


def explain_features(
    ws: Workspace, model: Model, features: pa.Table, symbol: str, day: date, score: float
) -> dict[str, Any]:
    """The same of a score whose features are given, as a table of one row."""
    known = set(features.column_names)
    refuse_lost(model, {n: "is no feature any more" for n in model.features if n not in known})
    x = np.array([[features[name][0].as_py() for name in model.features]], np.float32)
    return _explain(ws, model, x, symbol, day, score)


def _explain(
    ws: Workspace, model: Model, x: np.ndarray, symbol: str, day: date, score: float
) -> dict[str, Any]:
    boosters, names = read_boosters(ws, model), tuple(model.features)
    parts = explain_rows(boosters, x, names, names)[0]
    order = np.argsort(-np.abs(parts[:-1]), kind="stable")
    return {
        "symbol": symbol,
        "ts": day,
        "task": model.task_id,
        "model": model.model_id[:12],
        "score": score,
        "score_now": float(score_rows(boosters, x, names, names)[0]),
        "raw": float(parts.sum()),
        "base": float(parts[-1]),
        "contributions": [
            {"feature": names[i], "value": _or_none(x[0, i]), "adds": float(parts[i])}
            for i in order.tolist()
        ],
    }


def explain_model(ws: Workspace, model: Model) -> list[dict[str, Any]]:
    """Each feature's mean absolute SHAP value, its share of splits and gain, and folds' spread.

    Over at most 5,000 rows, evenly spaced, of the sessions that the model learned from; the
    largest first.
    """
    with ws.series.reading("explaining") as con:
        span = "in_universe AND ts BETWEEN ? AND ?"
        x = _features(ws, con, model, span, [model.first_ts, model.last_ts])
    x = np.ascontiguousarray(x[:: max(1, -(-len(x) // N_ROWS))])
    boosters, names = read_boosters(ws, model), tuple(model.features)
    parts = explain_rows(boosters, x, names, names, ws.settings.train.threads)[:, :-1]
    mean = np.abs(parts).mean(axis=0) if len(x) else np.full(len(names), np.nan)
    rows = [
        {
            "feature": name,
            "mean_shap": _or_none(mean[i]),
            **{kind: shares[name] for kind, shares in model.importance.items()},
        }
        for i, name in enumerate(names)
    ]
    return sorted(rows, key=lambda row: (-(row["mean_shap"] or 0.0), -row["gain"], row["feature"]))


def _features(
    ws: Workspace,
    con: Connection,
    model: Model,
    where: str,
    parameters: list[Any],
    keys: Sequence[str] = (),
) -> np.ndarray:
    """A model's features of some rows, row-major, sorted by ts, symbol."""
    refuse_lost(model, lost_features(ws, con, model))
    if keys:
        require_fresh_features(ws, con, keys)
    table = query(
        con,
        f"SELECT {identifiers(model.features)} FROM features_daily "
        f"WHERE {where} ORDER BY ts, symbol",
        parameters,
    )
    x = np.empty((len(table), len(model.features)), np.float32)
    for j, name in enumerate(model.features):
        x[:, j] = table[name].to_numpy()
    return x


def _or_none(value: float) -> float | None:
    return None if value != value else float(value)
