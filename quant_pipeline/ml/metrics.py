"""What a score was worth: per session, over a history, beside its base rates.

Undefined is NaN, never 0. Rows may come in any order; rows with a NaN score or outcome are left
out of whatever needs both.
"""

import math
from typing import Literal

import numpy as np

from quant_pipeline.ml.ranking_metrics import grade_returns, ndcg_at_k, precision_at_k
from quant_pipeline.ml.sessions import (
    MIN_NAMES,
    average_ranks,
    every_hth_mean,
    index_sessions,
    mean_of_defined,
    mean_over_std,
    newey_west_se,
    order_rows,
    session_correlations,
    session_means,
    session_medians,
)
from quant_pipeline.settings import MetricSettings, Task

__all__ = [
    "MIN_NAMES",
    "average_ranks",
    "calibration_bins",
    "classification_metrics",
    "evaluate",
    "every_hth_mean",
    "index_sessions",
    "information_coefficient",
    "mean_over_std",
    "newey_west_se",
    "paired_difference",
    "permute_across_symbols",
    "regression_metrics",
    "session_outcomes",
    "top_minus_bottom",
]


def information_coefficient(
    ts: np.ndarray,
    score: np.ndarray,
    outcome: np.ndarray,
    rank: bool = False,
    min_names: int = MIN_NAMES,
) -> tuple[np.ndarray, np.ndarray]:
    """Sessions and the correlation of score and outcome across symbols on each of them.

    Pearson, or Spearman with average ranks. NaN where fewer than ``min_names`` (at least 2) rows
    have both values, or where either does not vary.
    """
    sessions, session = index_sessions(ts)
    return sessions, session_correlations(session, len(sessions), score, outcome, rank, min_names)


def top_minus_bottom(
    ts: np.ndarray,
    score: np.ndarray,
    outcome: np.ndarray,
    quantile: float = 0.2,
    min_names: int = MIN_NAMES,
) -> tuple[np.ndarray, np.ndarray]:
    """Sessions and the mean outcome of the top quantile minus that of the bottom one.

    A quantile is floor(n * quantile) names, at least one. Names with equal scores stand for one
    another: each counts with their mean outcome, so row order never decides. NaN where fewer than
    ``min_names`` (at least 2) rows have both values, or where all scores are equal.
    """
    if not 0 < quantile <= 0.5:
        raise ValueError(f"quantile is {quantile}; it must be in (0, 0.5]")
    sessions, session = index_sessions(ts)
    spread = np.full(len(sessions), np.nan)
    valid = np.isfinite(score) & np.isfinite(outcome)
    session, x, y = session[valid], score[valid], outcome[valid]
    order = order_rows(session, x)
    if ((x[order][1:] == x[order][:-1]) & (session[order][1:] == session[order][:-1])).any():
        order = np.lexsort((y, x, session))  # the same sum of tied rows in every row order
    session, x, y = session[order], x[order], y[order]
    n = np.bincount(session, minlength=len(sessions))
    start = np.cumsum(n) - n
    if not len(x):
        return sessions, spread
    is_run = np.concatenate(([True], (session[1:] != session[:-1]) | (x[1:] != x[:-1])))
    run = np.cumsum(is_run) - 1
    shared = (np.bincount(run, y) / np.bincount(run))[run]
    n_names = np.maximum(1, np.floor(n * quantile + 1e-9).astype(np.int64))
    position = np.arange(len(x)) - start[session]
    is_bottom = position < n_names[session]
    is_top = position >= (n - n_names)[session]
    total = np.bincount(session, shared * (is_top.astype(float) - is_bottom), len(sessions))
    has_spread = np.bincount(session[is_run], minlength=len(sessions)) > 1
    defined = has_spread & (n >= max(2, min_names))
    spread[defined] = total[defined] / n_names[defined]
    return sessions, spread


def classification_metrics(label: np.ndarray, score: np.ndarray) -> dict[str, float]:
    """Accuracy, AUC and losses of a probability, beside the base rate's own accuracy.

    ``base_rate`` is the share of ones, ``accuracy_base`` what always naming the commoner class
    reaches, ``log_loss_base`` and ``brier_base`` what always saying the base rate does (which is
    also the average precision of chance). AUC and average precision are NaN with one class;
    precision is NaN if nothing is predicted, recall if nothing is there. A score outside [0, 1]
    (past returns, say) is no probability: it has those two only, beside the base rates.
    """
    from sklearn import metrics as sk  # takes a second: imported by what uses it

    metrics = dict.fromkeys(_CLASSIFICATION, math.nan)
    valid = np.isfinite(label) & np.isfinite(score)
    if not valid.any():
        return metrics
    label, score = label[valid].astype(np.int64), score[valid].astype(np.float64)
    base = float(label.mean())
    metrics["base_rate"] = base
    metrics["accuracy_base"] = max(base, 1 - base)
    metrics["log_loss_base"] = -sum(p * math.log(p) for p in (base, 1 - base) if p > 0)
    metrics["brier_base"] = base * (1 - base)
    if 0 < base < 1:
        metrics["auc"] = float(sk.roc_auc_score(label, score))
        metrics["average_precision"] = float(sk.average_precision_score(label, score))
    if score.min() >= 0 and score.max() <= 1:
        is_up = score > 0.5
        metrics["accuracy"] = float(sk.accuracy_score(label, is_up))
        found = sk.precision_recall_fscore_support(
            label, is_up, average="binary", zero_division=np.nan
        )
        metrics["precision"], metrics["recall"] = float(found[0]), float(found[1])
        metrics["log_loss"] = float(sk.log_loss(label, score, labels=[0, 1]))
        metrics["brier"] = float(sk.brier_score_loss(label, score, pos_label=1, labels=[0, 1]))
    return metrics


_CLASSIFICATION = (
    "accuracy",
    "precision",
    "recall",
    "auc",
    "average_precision",
    "log_loss",
    "brier",
    "base_rate",
    "accuracy_base",
    "log_loss_base",
    "brier_base",
)


def calibration_bins(
    label: np.ndarray, score: np.ndarray, n_bins: int = 10, *, is_even: bool = False
) -> list[dict[str, float]]:
    """How often a probability came true, by equal-width bins of it; empty bins are left out.

    Or, with `is_even`, by bins of about as many rows each, between quantiles of the scores.
    Each bin is [``low``, ``high``), the last one with its end, and has ``n`` rows, their
    ``mean_score`` and ``share_of_ones``: alike if the probability is calibrated. ValueError for a
    score outside [0, 1].
    """
    valid = np.isfinite(label) & np.isfinite(score)
    label, score = label[valid].astype(np.float64), score[valid].astype(np.float64)
    if len(score) and (score.min() < 0 or score.max() > 1):
        raise ValueError(f"scores reach from {score.min():g} to {score.max():g}: no probabilities")
    edges = np.linspace(0, 1, n_bins + 1)
    if is_even and len(score):
        edges = np.unique(np.quantile(score, edges))
        edges = np.append(edges, edges[-1:]) if len(edges) == 1 else edges
        n_bins = len(edges) - 1
    found = np.clip(np.searchsorted(edges, score, side="right") - 1, 0, n_bins - 1)
    n = np.bincount(found, minlength=n_bins)
    ones, scores = (np.bincount(found, values, n_bins) for values in (label, score))
    return [
        {
            "low": float(edges[b]),
            "high": float(edges[b + 1]),
            "n": int(n[b]),
            "mean_score": float(scores[b] / n[b]),
            "share_of_ones": float(ones[b] / n[b]),
        }
        for b in np.flatnonzero(n)
    ]


def regression_metrics(target: np.ndarray, score: np.ndarray) -> dict[str, float]:
    """Mean squared error, that of always saying the mean (``mse_base``), and r2 = 1 - their ratio.

    r2 is NaN if the target does not vary.
    """
    valid = np.isfinite(target) & np.isfinite(score)
    if not valid.any():
        return {"mse": math.nan, "mse_base": math.nan, "r2": math.nan}
    target, score = target[valid].astype(np.float64), score[valid].astype(np.float64)
    mse = float(np.mean((target - score) ** 2))
    mse_base = float(np.mean((target - target.mean()) ** 2))
    varies = target.min() < target.max() and mse_base > 0
    return {"mse": mse, "mse_base": mse_base, "r2": 1 - mse / mse_base if varies else math.nan}


def evaluate(
    task: Task,
    ts: np.ndarray,
    symbol: np.ndarray,
    score: np.ndarray,
    label: np.ndarray,
    target: np.ndarray,
    fwd_return: np.ndarray,
    spec: MetricSettings,
) -> dict[str, float]:
    """Every metric of a score over a history, as plain numbers; NaN where undefined.

    IC, RankIC, top minus bottom, precision and NDCG judge the score against ``fwd_return``; each
    is a mean over sessions, the first three with a Newey-West standard error (2 * horizon lags:
    the labels overlap). ``icir`` and ``rank_icir`` are mean / standard deviation (ddof 1), not
    annualized; ``is_short`` is 1 if fewer than 10 * horizon sessions have an IC, too few for
    these errors. Losses are against ``target``, what the model was fitted to: the 0/1 label, or
    what a regression made of the return. A ranking has none: its score estimates nothing. Rows
    without a ``label`` do not count, but their sessions stay: a gap in time is a gap.
    """
    known = np.isfinite(label)
    score = np.where(known, score, np.nan)
    lag = 2 * task.horizon
    _, ic = information_coefficient(ts, score, fwd_return, False, spec.min_names)
    _, rank_ic = information_coefficient(ts, score, fwd_return, True, spec.min_names)
    _, spread = top_minus_bottom(ts, score, fwd_return, spec.quantile, spec.min_names)
    defined = ic[np.isfinite(ic)]
    every_hth = every_hth_mean(rank_ic, task.horizon)
    metrics: dict[str, float] = {
        "n_rows": int(known.sum()),
        "n_sessions": len(np.unique(ts[known])),
        "n_ic_sessions": len(defined),
        "is_short": int(len(defined) < 10 * task.horizon),
        "ic": mean_of_defined(ic),
        "ic_se": newey_west_se(ic, lag),
        "icir": mean_over_std(ic),
        "ic_positive_share": mean_of_defined((defined > 0).astype(float)),
        "rank_ic": mean_of_defined(rank_ic),
        "rank_ic_se": newey_west_se(rank_ic, lag),
        "rank_icir": mean_over_std(rank_ic),
        "rank_ic_every_hth": every_hth[0],
        "rank_ic_every_hth_se": every_hth[1],
        "top_minus_bottom": mean_of_defined(spread),
        "top_minus_bottom_se": newey_west_se(spread, lag),
    }
    metrics |= _top_of_the_list(task, ts, symbol, score, target, fwd_return, spec)
    return metrics | _losses(task, target, score)


def _losses(task: Task, target: np.ndarray, score: np.ndarray) -> dict[str, float]:
    if task.kind == "ranking":
        return {}
    is_class = task.kind == "classification"
    return (classification_metrics if is_class else regression_metrics)(target, score)


def _top_of_the_list(
    task: Task,
    ts: np.ndarray,
    symbol: np.ndarray,
    score: np.ndarray,
    target: np.ndarray,
    fwd_return: np.ndarray,
    spec: MetricSettings,
) -> dict[str, float]:
    """Precision and NDCG of the k highest scores of a session, beside what chance has.

    A hit is a label 1, or a return above the session's median; relevance is a ranking's grade,
    for others that of the return, which makes tasks comparable.
    """
    valid = np.isfinite(score) & np.isfinite(fwd_return) & np.isfinite(target)
    ts, symbol, score = ts[valid], symbol[valid], score[valid]
    target, fwd_return = target[valid], fwd_return[valid]
    sessions, session = index_sessions(ts)
    n, everyone = len(sessions), np.ones(len(ts), dtype=bool)
    is_ranking = task.kind == "ranking"
    relevance = target if is_ranking else grade_returns(ts, fwd_return, task.grades)
    hit = target
    if task.kind != "classification":
        hit = fwd_return > session_medians(session, n, fwd_return, everyone)[session]
    k, least = spec.top_k, spec.min_names
    _, precision, tied = precision_at_k(ts, symbol, score, hit, k, least)
    base = session_means(session, n, hit, everyone)
    base[np.isnan(precision)] = np.nan
    chance = np.zeros(len(ts))
    return {
        "precision_at_k": mean_of_defined(precision),
        "precision_at_k_base": mean_of_defined(base),
        "tied_at_k": mean_of_defined(tied),
        "ndcg_at_k": mean_of_defined(ndcg_at_k(ts, score, relevance, k, least)[1]),
        "ndcg_at_k_base": mean_of_defined(ndcg_at_k(ts, chance, relevance, k, least)[1]),
    }


def paired_difference(
    sessions_a: np.ndarray,
    values_a: np.ndarray,
    sessions_b: np.ndarray,
    values_b: np.ndarray,
    lag: int,
) -> dict[str, float]:
    """How much higher one series per session is than another, on the sessions that have both.

    ``n`` common sessions where both are defined, the ``mean`` of a - b, its Newey-West standard
    error ``se`` and ``t`` = mean / se; NaN without enough of them or without variation. Each
    session may be there once a series: ValueError.
    """
    for sessions in (sessions_a, sessions_b):
        if len(np.unique(sessions)) < len(sessions):
            raise ValueError(f"{len(sessions)} values, but {len(np.unique(sessions))} sessions")
    _, a, b = np.intersect1d(sessions_a, sessions_b, assume_unique=True, return_indices=True)
    difference = np.asarray(values_a, np.float64)[a] - np.asarray(values_b, np.float64)[b]
    mean, se = mean_of_defined(difference), newey_west_se(difference, lag)
    return {
        "n": int(np.isfinite(difference).sum()),
        "mean": mean,
        "se": se,
        "t": mean / se if se > 0 else math.nan,
    }


def session_outcomes(
    ts: np.ndarray,
    score: np.ndarray,
    label: np.ndarray,
    fwd_return: np.ndarray,
    kind: Literal["classification", "regression", "ranking"],
    quantile: float = 0.2,
    min_names: int = MIN_NAMES,
) -> dict[str, np.ndarray]:
    """How the scores of each session turned out: one row per session, as columns.

    ``ts``, ``n``, ``ic``, ``rank_ic``, ``hit_rate``, ``base_rate``, ``top_minus_bottom``. A hit of
    a classification: (score > 0.5) is the 0/1 label; ``base_rate`` is its mean label. A hit of a
    regression or ranking: score and forward return are on the same side of their session medians
    (rows on a median are not counted); its ``base_rate`` is NaN.
    """
    sessions, session = index_sessions(ts)
    if kind == "classification":
        counted = np.isfinite(score) & np.isfinite(label)
        is_hit = (score > 0.5) == (label > 0.5)
        base_rate = session_means(session, len(sessions), label, np.isfinite(label))
    else:
        valid = np.isfinite(score) & np.isfinite(fwd_return)
        n = len(sessions)
        above = np.sign(score - session_medians(session, n, score, valid)[session])
        beyond = np.sign(fwd_return - session_medians(session, n, fwd_return, valid)[session])
        counted = valid & (above != 0) & (beyond != 0)
        is_hit = above == beyond
        base_rate = np.full(n, np.nan)
    return {
        "ts": sessions,
        "n": np.bincount(session, minlength=len(sessions)),
        "ic": information_coefficient(ts, score, fwd_return, False, min_names)[1],
        "rank_ic": information_coefficient(ts, score, fwd_return, True, min_names)[1],
        "hit_rate": session_means(session, len(sessions), is_hit, counted),
        "base_rate": base_rate,
        "top_minus_bottom": top_minus_bottom(ts, score, fwd_return, quantile, min_names)[1],
    }


def permute_across_symbols(
    symbol: np.ndarray, ts: np.ndarray, values: np.ndarray, seed: int
) -> np.ndarray:
    """Each symbol's values replaced by another's: one permutation for the whole history.

    (s, t) gets the value of (pi(s), t), NaN where that row is missing. pi is a random cycle through
    all symbols, so with two or more of them nobody keeps its own; each symbol's path through time
    stays whole, which is what makes this the baseline for overlapping labels. Keys must be unique.
    """
    names, code = np.unique(symbol, return_inverse=True)
    permuted = np.full(len(values), np.nan)
    if not len(names):
        return permuted
    cycle = np.random.default_rng(seed).permutation(len(names))
    partner = np.empty_like(cycle)
    partner[cycle] = np.roll(cycle, -1)
    _, session = index_sessions(ts)
    key = session * len(names) + code
    order = np.argsort(key, kind="stable")
    wanted = session * len(names) + partner[code]
    found = order[np.minimum(np.searchsorted(key[order], wanted), len(key) - 1)]
    has_partner = key[found] == wanted
    permuted[has_partner] = values[found[has_partner]]
    return permuted
