"""Metrics of each session by itself, and the error of their mean, which respects overlap.

Undefined is NaN, never 0. Rows may come in any order; a session of fewer than ``min_names`` rows
with score and outcome has none.
"""

import numpy as np

from quant_pipeline.ml.ranking_metrics import grade_returns, ndcg_at_k, precision_at_k
from quant_pipeline.ml.sessions import (
    average_ranks,
    index_sessions,
    mean_of_defined,
    newey_west_se,
    order_rows,
    session_means,
    session_medians,
    session_sums,
)
from quant_pipeline.settings import MetricSettings, Task

SMALLEST = 1e-15  # a probability in a log loss, as scikit-learn clips it


def session_metrics(
    task: Task,
    ts: np.ndarray,
    symbol: np.ndarray,
    score: np.ndarray,
    target: np.ndarray,
    fwd_return: np.ndarray,
    spec: MetricSettings,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Sessions, and a column a metric: those of `evaluate` that a session can have.

    Of a classification accuracy, precision, recall, auc, average_precision, log_loss and brier
    against the 0/1 target, of a regression mse; of all precision_at_k and ndcg_at_k against the
    return. Sessions of ``ts`` without a score stay, as NaN.
    """
    sessions, session = index_sessions(ts)
    n = len(sessions)
    valid = np.isfinite(score) & np.isfinite(target) & np.isfinite(fwd_return)
    valid &= (np.bincount(session[valid], minlength=n) >= spec.min_names)[session]
    ts, symbol, score, at = (
        ts[valid],
        symbol[valid],
        score[valid].astype(np.float64),
        session[valid],
    )
    target, fwd_return = target[valid].astype(np.float64), fwd_return[valid]
    everyone = np.ones(len(ts), dtype=bool)
    found: dict[str, np.ndarray] = {}
    hit = target
    if task.kind == "classification":
        found |= _of_classes(at, n, score, target)
    else:
        hit = (fwd_return > session_medians(at, n, fwd_return, everyone)[at]).astype(np.float64)
    if task.kind == "regression":
        found["mse"] = session_means(at, n, (target - score) ** 2, everyone)
    relevance = target if task.kind == "ranking" else grade_returns(ts, fwd_return, task.grades)
    precision = precision_at_k(ts, symbol, score, hit, spec.top_k, spec.min_names)[1]
    ndcg = ndcg_at_k(ts, score, relevance, spec.top_k, spec.min_names)[1]
    for name, values in (("precision_at_k", precision), ("ndcg_at_k", ndcg)):
        found[name] = np.full(n, np.nan)
        found[name][np.unique(at)] = values
    return sessions, found


def _of_classes(
    at: np.ndarray, n: int, score: np.ndarray, label: np.ndarray
) -> dict[str, np.ndarray]:
    everyone = np.ones(len(at), dtype=bool)
    is_called, is_one = score > 0.5, label > 0.5
    likely = np.clip(score, SMALLEST, 1 - SMALLEST)
    loss = -np.where(is_one, np.log(likely), np.log1p(-likely))
    n_ones, n_rows = np.bincount(at, label, n), np.bincount(at, minlength=n)
    n_zeros = n_rows - n_ones
    with np.errstate(invalid="ignore", divide="ignore"):
        ranks = np.bincount(at, average_ranks(at, score) * label, n)
        auc = (ranks - n_ones * (n_ones + 1) / 2) / (n_ones * n_zeros)
    auc[(n_ones == 0) | (n_zeros == 0)] = np.nan
    return {
        "accuracy": session_means(at, n, is_called == is_one, everyone),
        "precision": session_means(at, n, label, is_called),
        "recall": session_means(at, n, is_called, is_one),
        "auc": auc,
        "average_precision": _average_precision(at, n, score, label),
        "log_loss": session_means(at, n, loss, everyone),
        "brier": session_means(at, n, (score - label) ** 2, everyone),
    }


def _average_precision(at: np.ndarray, n: int, score: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Sum over distinct scores, highest first, of the gain in recall times the precision there."""
    if not len(at):
        return np.full(n, np.nan)
    order = order_rows(at, -score)
    at, score, label = at[order], score[order], label[order]
    n_rows = np.bincount(at, minlength=n)
    first = (np.cumsum(n_rows) - n_rows)[at]
    hits = np.cumsum(label)
    n_hits = hits - (hits[first] - label[first])
    place = np.arange(len(at)) - first + 1
    is_end = np.concatenate(((at[1:] != at[:-1]) | (score[1:] != score[:-1]), [True]))
    end = np.flatnonzero(is_end)
    before = np.concatenate(([0], end[:-1]))
    gained = n_hits[end] - np.where(at[before] == at[end], n_hits[before], 0.0)
    gained[0] = n_hits[end[0]]
    total = np.bincount(at, label, n)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = session_sums(
            at[end], n, gained * n_hits[end] / place[end], np.ones(len(end), dtype=bool)
        )
        found: np.ndarray = share / total
    return np.where(total > 0, found, np.nan)


def mean_and_error(columns: dict[str, np.ndarray], lag: int) -> dict[str, dict[str, float]]:
    """The mean over sessions of each column, and its Newey-West standard error."""
    return {
        name: {"mean": mean_of_defined(values), "se": newey_west_se(values, lag)}
        for name, values in columns.items()
    }
