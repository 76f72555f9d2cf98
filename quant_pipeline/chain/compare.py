"""Two models side by side: the settings that differ, and their metrics fold by fold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quant_pipeline.ml.metrics import paired_difference
from quant_pipeline.settings import Task
from quant_pipeline.stores.meta import Model

SHOWN = (
    "rank_ic", "ic", "top_minus_bottom", "auc", "log_loss", "mse", "ndcg_at_k", "rounds",
)  # fmt: skip


def compare_models(a: Model, b: Model) -> dict[str, Any]:
    """What differs between two models, and how they did where both were tested.

    `settings`: each key that differs, with both values. `folds`: metrics of folds with the same
    test window. `sessions`: for RankIC and top minus bottom, the mean of a - b over the sessions
    that both were tested on with its Newey-West standard error (lag: twice the longer horizon).
    `differences`: of each metric of `folds`, the mean of a - b and its standard error over folds.
    """
    lag = 2 * max(Task(**m.settings["task"]).horizon for m in (a, b))
    days = [np.array(m.test_series["ts"], "datetime64[D]") for m in (a, b)]
    sessions = []
    for name in ("rank_ic", "top_minus_bottom"):
        x, y = (np.array(m.test_series[name], np.float64) for m in (a, b))
        found = paired_difference(days[0], x, days[1], y, lag)
        sessions.append({"metric": name, **found})
    return {
        "models": [{"model": m.model_id[:12], "task": m.task_id, "asof": m.asof} for m in (a, b)],
        "settings": _different(flatten(a.settings), flatten(b.settings)),
        "features": _different(
            dict.fromkeys(a.features, True), dict.fromkeys(b.features, True), absent=False
        ),
        "folds": (folds := _pair_folds(a, b)),
        "differences": _differences(folds),
        "sessions": sessions,
    }


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key.

    >>> flatten({"train": {"seed": 1}, "x": 2})
    {'train.seed': 1, 'x': 2}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _different(
    a: Mapping[str, Any], b: Mapping[str, Any], absent: Any = None
) -> list[dict[str, Any]]:
    keys = [*a, *(key for key in b if key not in a)]
    return [
        {"key": key, "a": a.get(key, absent), "b": b.get(key, absent)}
        for key in keys
        if a.get(key, absent) != b.get(key, absent)
    ]


def _pair_folds(a: Model, b: Model) -> list[dict[str, Any]]:
    theirs = {(f["fold"], f["test_start"], f["test_end"]): f for f in b.fold_metrics}
    rows = []
    for mine in a.fold_metrics:
        other = theirs.get((mine["fold"], mine["test_start"], mine["test_end"]))
        if other is not None:
            row = {"test_start": mine["test_start"], "test_end": mine["test_end"]}
            for name in SHOWN:
                if mine.get(name) is not None and other.get(name) is not None:
                    row |= {f"{name}_a": mine[name], f"{name}_b": other[name]}
            rows.append(row)
    return rows


def _differences(folds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How a differs from b by fold: folds, mean of a - b, standard error of it over folds."""
    rows = []
    for name in SHOWN:
        found = np.array([f[f"{name}_a"] - f[f"{name}_b"] for f in folds if f"{name}_a" in f])
        if len(found):
            se = float(found.std(ddof=1) / len(found) ** 0.5) if len(found) > 1 else None
            rows.append({"metric": name, "n": len(found), "mean": float(found.mean()), "se": se})
    return rows
