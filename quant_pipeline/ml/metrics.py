"""What a score was worth: per session, over a history, beside its base rates.

Undefined is NaN, never 0. Rows may come in any order; rows with a NaN score or outcome are left
out of whatever needs both.
"""

import math
from typing import Literal

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from quant_pipeline.settings import Task

MIN_NAMES = 20


def index_sessions(ts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct sessions, oldest first, and each row's position among them."""
    if len(ts) and (ts[1:] >= ts[:-1]).all():
        is_first = np.concatenate(([True], ts[1:] != ts[:-1]))
        return ts[is_first], np.cumsum(is_first) - 1
    sessions, session = np.unique(ts, return_inverse=True)
    return sessions, session


def average_ranks(session: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rank of each value within its session, from 1; equal values share their mean rank."""
    if not len(values):
        return np.empty(0)
    order = np.lexsort((values, session))
    ordered, group = values[order], session[order]
    is_group = np.concatenate(([True], group[1:] != group[:-1]))
    is_run = is_group | np.concatenate(([True], ordered[1:] != ordered[:-1]))
    run_start = np.flatnonzero(is_run)
    run_end = np.append(run_start[1:], len(values))
    group_start = np.flatnonzero(is_group)[np.cumsum(is_group)[run_start] - 1]
    rank = (run_start + run_end - 1) / 2 - group_start + 1
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(rank, run_end - run_start)
    return ranks


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
    valid = np.isfinite(score) & np.isfinite(outcome)
    session = session[valid]
    x, y = score[valid].astype(np.float64), outcome[valid].astype(np.float64)
    if rank:
        x, y = average_ranks(session, x), average_ranks(session, y)
    n = np.bincount(session, minlength=len(sessions))
    x, y = (_standardize(session, n, values) for values in (x, y))
    with np.errstate(invalid="ignore"):
        # bincount of no row at all gives integers, which cannot hold NaN
        ic = np.bincount(session, x * y, len(sessions)).astype(np.float64)
    ic[n < max(2, min_names)] = np.nan
    return sessions, np.clip(ic, -1.0, 1.0)


def _standardize(session: np.ndarray, n: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values minus their session's mean, divided by their norm; NaN where they do not vary."""
    low, high = np.full(len(n), np.inf), np.full(len(n), -np.inf)
    np.minimum.at(low, session, values)
    np.maximum.at(high, session, values)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        # Scaled to [0, 1] first, so that squares neither underflow nor overflow.
        scaled = (values - low[session]) / (high - low)[session]
        deviation = scaled - (np.bincount(session, scaled, len(n)) / n)[session]
        norm = np.sqrt(np.bincount(session, deviation**2, len(n)))
        standardized: np.ndarray = deviation / norm[session]
    return standardized


def newey_west_se(series: np.ndarray, lag: int) -> float:
    """Standard error of the mean of a time series, with Bartlett weights up to ``lag``.

    sqrt((g0 + 2 sum_j (1 - j / (lag + 1)) gj) / n), gj = sum u_t u_(t-j) / n (Newey, West 1987).
    NaN values are dropped first; NaN if fewer than 3 are left.
    """
    values = np.asarray(series, dtype=np.float64)
    values = values[np.isfinite(values)]
    n = len(values)
    if n < 3:
        return math.nan
    deviation = values - values.mean()
    variance = float(deviation @ deviation) / n
    for j in range(1, min(lag, n - 1) + 1):
        variance += 2 * (1 - j / (lag + 1)) * float(deviation[j:] @ deviation[:-j]) / n
    return math.sqrt(max(variance, 0.0) / n)


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
    order = np.lexsort((outcome[valid], score[valid], session[valid]))
    session, x, y = (values[valid][order] for values in (session, score, outcome))
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
    reaches, ``log_loss_base`` and ``brier_base`` what always saying the base rate does. AUC is NaN
    with one class; precision is NaN if nothing is predicted, recall if nothing is there. A score
    outside [0, 1] (past returns, say) is no probability: it has an AUC only, beside the base rates.
    """
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
        metrics["auc"] = float(roc_auc_score(label, score))
    if score.min() >= 0 and score.max() <= 1:
        is_up = score > 0.5
        metrics["accuracy"] = float(accuracy_score(label, is_up))
        metrics["precision"] = float(precision_score(label, is_up, zero_division=np.nan))
        metrics["recall"] = float(recall_score(label, is_up, zero_division=np.nan))
        metrics["log_loss"] = float(log_loss(label, score, labels=[0, 1]))
        metrics["brier"] = float(brier_score_loss(label, score, pos_label=1, labels=[0, 1]))
    return metrics


_CLASSIFICATION = (
    "accuracy",
    "precision",
    "recall",
    "auc",
    "log_loss",
    "brier",
    "base_rate",
    "accuracy_base",
    "log_loss_base",
    "brier_base",
)


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
    score: np.ndarray,
    target: np.ndarray,
    fwd_return: np.ndarray,
    lag: int,
    min_names: int = MIN_NAMES,
) -> dict[str, float]:
    """Every metric of a score over a history, as plain numbers; NaN where undefined.

    IC, RankIC and top minus bottom judge the score against ``fwd_return``; each is a mean over
    sessions with a Newey-West standard error (``lag`` = 2 * horizon for overlapping labels).
    ``icir`` is mean / standard deviation (ddof 1), not annualized. Losses are against ``target``:
    the 0/1 label, or what `make_target` gave a regression.
    """
    sessions, ic = information_coefficient(ts, score, fwd_return, False, min_names)
    _, rank_ic = information_coefficient(ts, score, fwd_return, True, min_names)
    _, spread = top_minus_bottom(ts, score, fwd_return, min_names=min_names)
    defined = ic[np.isfinite(ic)]
    metrics: dict[str, float] = {
        "n_rows": len(ts),
        "n_sessions": len(sessions),
        "n_ic_sessions": len(defined),
        "ic": _mean(ic),
        "ic_se": newey_west_se(ic, lag),
        "rank_ic": _mean(rank_ic),
        "rank_ic_se": newey_west_se(rank_ic, lag),
        "icir": mean_over_std(ic),
        "ic_positive_share": _mean((defined > 0).astype(float)),
        "top_minus_bottom": _mean(spread),
        "top_minus_bottom_se": newey_west_se(spread, lag),
    }
    if task.kind == "classification":
        return metrics | classification_metrics(target, score)
    return metrics | regression_metrics(target, score)


def mean_over_std(series: np.ndarray) -> float:
    """Mean / standard deviation (ddof 1) of what is defined: ICIR, of an IC series.

    NaN with fewer than two values, or without variation.

    >>> round(mean_over_std(np.array([0.05, 0.03, -0.01, 0.04, 0.02])), 6)
    1.129368
    """
    values = series[np.isfinite(series)]
    if len(values) < 2 or values.min() == values.max():
        return math.nan
    return float(values.mean() / values.std(ddof=1))


def _mean(series: np.ndarray) -> float:
    values = series[np.isfinite(series)]
    return float(values.mean()) if len(values) else math.nan


def session_outcomes(
    ts: np.ndarray,
    score: np.ndarray,
    label: np.ndarray,
    fwd_return: np.ndarray,
    kind: Literal["classification", "regression"],
    min_names: int = MIN_NAMES,
) -> dict[str, np.ndarray]:
    """How the scores of each session turned out: one row per session, as columns.

    ``ts``, ``n``, ``ic``, ``rank_ic``, ``hit_rate``, ``base_rate``, ``top_minus_bottom``. A hit of
    a classification: (score > 0.5) is the label; ``base_rate`` is its mean label. A hit of a
    regression: score and forward return are on the same side of their session medians (rows on a
    median are not counted); its ``base_rate`` is NaN.
    """
    sessions, session = index_sessions(ts)
    if kind == "classification":
        counted = np.isfinite(score) & np.isfinite(label)
        is_hit = (score > 0.5) == (label > 0.5)
        base_rate = _session_mean(session, len(sessions), label, np.isfinite(label))
    else:
        valid = np.isfinite(score) & np.isfinite(fwd_return)
        n = len(sessions)
        above = np.sign(score - _session_median(session, n, score, valid)[session])
        beyond = np.sign(fwd_return - _session_median(session, n, fwd_return, valid)[session])
        counted = valid & (above != 0) & (beyond != 0)
        is_hit = above == beyond
        base_rate = np.full(n, np.nan)
    return {
        "ts": sessions,
        "n": np.bincount(session, minlength=len(sessions)),
        "ic": information_coefficient(ts, score, fwd_return, False, min_names)[1],
        "rank_ic": information_coefficient(ts, score, fwd_return, True, min_names)[1],
        "hit_rate": _session_mean(session, len(sessions), is_hit, counted),
        "base_rate": base_rate,
        "top_minus_bottom": top_minus_bottom(ts, score, fwd_return, min_names=min_names)[1],
    }


def _session_mean(
    session: np.ndarray, n_sessions: int, values: np.ndarray, counted: np.ndarray
) -> np.ndarray:
    n = np.bincount(session[counted], minlength=n_sessions)
    total = np.bincount(session[counted], values[counted].astype(np.float64), n_sessions)
    mean = np.full(n_sessions, np.nan)
    mean[n > 0] = total[n > 0] / n[n > 0]
    return mean


def _session_median(
    session: np.ndarray, n_sessions: int, values: np.ndarray, counted: np.ndarray
) -> np.ndarray:
    order = np.lexsort((values[counted], session[counted]))
    ordered = values[counted][order].astype(np.float64)
    n = np.bincount(session[counted], minlength=n_sessions)
    start, has_any = np.cumsum(n) - n, n > 0
    median = np.full(n_sessions, np.nan)
    low, high = (start + (n - 1) // 2)[has_any], (start + n // 2)[has_any]
    median[has_any] = ordered[low] / 2 + ordered[high] / 2
    return median


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
