"""What the order of scores was worth: the top of the list, quantiles, and how they move.

Undefined is NaN, never 0. Rows may come in any order; rows without a value that a metric needs
are left out of it. Ties are shared or, where exactly k names are wanted, broken by a hash of
symbol and session, never by row order. A symbol has one row on a session.
"""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from quant_pipeline.ml.sessions import (
    MIN_NAMES,
    average_ranks,
    earlier_rows,
    index_sessions,
    index_symbols,
    mean_of_defined,
    newey_west_se,
    order_rows,
    session_correlations,
    session_means,
    session_medians,
    session_quantiles,
    session_sums,
)

# Share that stands for none: PSI has a logarithm.
LEAST_SHARE = 1e-4


def top_k_rows(
    ts: np.ndarray, symbol: np.ndarray, score: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are among the k highest finite scores of their session, and how much is a tie.

    All of them where there are fewer. Names tied for the last places get them by `stable_hash`.
    The second array has, per session, the share of the places that went that way; NaN without a
    score.
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be 1 at least")
    sessions, session = index_sessions(ts)
    rows = np.flatnonzero(np.isfinite(score))
    rows = rows[order_rows(session[rows], -score[rows].astype(np.float64))]
    group, ordered = session[rows], score[rows]
    n = np.bincount(group, minlength=len(sessions))
    place = np.arange(len(rows)) - (np.cumsum(n) - n)[group]
    is_chosen = np.zeros(len(ts), dtype=bool)
    is_chosen[rows[place < k]] = True
    share = np.where(n > 0, 0.0, np.nan)
    # Of each session with more than k names: those with the score of the k-th place.
    is_last = place == k - 1
    last_score = np.full(len(sessions), np.nan)
    last_score[group[is_last]] = ordered[is_last]
    is_tied = ordered == last_score[group]
    n_tied = np.bincount(group[is_tied], minlength=len(sessions))
    n_above = np.bincount(group[(place < k) & ~is_tied], minlength=len(sessions))
    n_free = k - n_above
    is_tied &= (n_tied > n_free)[group]
    tied, group = rows[is_tied], group[is_tied]
    if len(tied):
        order = _by_hash(ts[tied], symbol[tied], group)
        n = np.bincount(group, minlength=len(sessions))
        place = np.arange(len(tied)) - (np.cumsum(n) - n)[group]
        is_chosen[tied[order]] = place < n_free[group]
        share[n > 0] = n_free[n > 0] / k
    return is_chosen, share


def _by_hash(ts: np.ndarray, symbol: np.ndarray, session: np.ndarray) -> np.ndarray:
    """The rows, sorted by session, with those of one session in the order of their hash."""
    names, code = index_symbols(symbol)
    return np.lexsort((code, stable_hash(ts, names, code), session))


def stable_hash(ts: np.ndarray, names: np.ndarray, code: np.ndarray) -> np.ndarray:
    """A number per row that depends on its symbol and session alone, in every process alike.

    The first 8 bytes of the sha256 of the symbol, mixed with the session's second (or integer) by
    the finalizer of splitmix64.
    """
    digests = [sha256(str(name).encode()).digest()[:8] for name in names]
    own = np.frombuffer(b"".join(digests), dtype="<u8")
    when = ts.astype("datetime64[s]") if ts.dtype.kind == "M" else ts
    mixed = own[code] + when.astype(np.int64).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: np.ndarray = mixed ^ (mixed >> np.uint64(31))
    return hashed


def precision_at_k(
    ts: np.ndarray,
    symbol: np.ndarray,
    score: np.ndarray,
    hit: np.ndarray,
    k: int,
    min_names: int = MIN_NAMES,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sessions, the share of hits (0/1) among the k highest scores, the share of tied places.

    Of all names where there are fewer than k: the base rate. Ties are broken as in `top_k_rows`.
    NaN where fewer than ``min_names`` rows have both a score and a hit.
    """
    sessions, session = index_sessions(ts)
    hit = np.asarray(hit, dtype=np.float64)
    judged = np.isfinite(score) & np.isfinite(hit)
    is_chosen, tied = top_k_rows(ts, symbol, np.where(judged, score, np.nan), k)
    precision = session_means(session, len(sessions), hit, is_chosen)
    few = np.bincount(session[judged], minlength=len(sessions)) < max(1, min_names)
    precision[few] = tied[few] = np.nan
    return sessions, precision, tied


def ndcg_at_k(
    ts: np.ndarray,
    score: np.ndarray,
    relevance: np.ndarray,
    k: int,
    min_names: int = MIN_NAMES,
) -> tuple[np.ndarray, np.ndarray]:
    """Sessions and the normalized discounted cumulative gain of their k highest scores.

    sum of relevance / log2(place + 1) over the k places, divided by that of the best order: linear
    gain, equal scores with their mean relevance, as scikit-learn's ndcg_score. NaN where fewer
    than ``min_names`` (at least 2) rows have both values, or where nothing is relevant.
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be 1 at least")
    sessions, session = index_sessions(ts)
    valid = np.isfinite(score) & np.isfinite(relevance)
    session = session[valid]
    score, relevance = score[valid].astype(np.float64), relevance[valid].astype(np.float64)
    if len(relevance) and relevance.min() < 0:
        raise ValueError(f"relevance is {relevance.min():g} at least once; it must not be negative")
    best = _discounted_gain(session, len(sessions), relevance, relevance, k)
    gain = _discounted_gain(session, len(sessions), score, relevance, k)
    n = np.bincount(session, minlength=len(sessions))
    defined = (n >= max(2, min_names)) & (best > 0)
    ndcg = np.full(len(sessions), np.nan)
    ndcg[defined] = np.clip(gain[defined] / best[defined], 0.0, 1.0)
    return sessions, ndcg


def _discounted_gain(
    session: np.ndarray, n_sessions: int, score: np.ndarray, relevance: np.ndarray, k: int
) -> np.ndarray:
    if not len(score):
        return np.zeros(n_sessions)
    order = order_rows(session, -score)
    session, score, relevance = session[order], score[order], relevance[order]
    n = np.bincount(session, minlength=n_sessions)
    place = np.arange(len(score)) - (np.cumsum(n) - n)[session]
    is_run = np.concatenate(([True], (session[1:] != session[:-1]) | (score[1:] != score[:-1])))
    run = np.cumsum(is_run) - 1
    shared = (np.bincount(run, relevance) / np.bincount(run))[run]
    discount = np.where(place < k, 1 / np.log2(place + 2), 0.0)
    return np.bincount(session, shared * discount, n_sessions)


def grade_returns(ts: np.ndarray, fwd_return: np.ndarray, grades: int) -> np.ndarray:
    """Each return's quantile among its session's, 0 (worst) to grades - 1, as integers.

    By average rank, so equal returns have equal grades; see `session_quantiles`.

    >>> day = np.array(["2024-01-02"] * 4, dtype="datetime64[D]")
    >>> grade_returns(day, np.array([0.3, -0.1, 0.0, 0.3]), 2).tolist()
    [1, 0, 0, 1]
    """
    n_bad = int((~np.isfinite(fwd_return)).sum())
    if n_bad:
        raise ValueError(f"{n_bad} of {len(fwd_return)} returns are no finite number: no grade")
    return session_quantiles(index_sessions(ts)[1], fwd_return, grades)


def quantile_returns(
    ts: np.ndarray,
    score: np.ndarray,
    outcome: np.ndarray,
    n_quantiles: int,
    min_names: int = MIN_NAMES,
) -> tuple[np.ndarray, np.ndarray]:
    """Sessions and a matrix, sessions x quantiles of the score, of mean outcomes, lowest first.

    Equal scores share a quantile by their average rank. NaN for a quantile without a name, and
    where fewer than ``min_names`` (at least 2) rows have both values.
    """
    sessions, session = index_sessions(ts)
    valid = np.isfinite(score) & np.isfinite(outcome)
    session, outcome = session[valid], outcome[valid]
    cell = session * n_quantiles + session_quantiles(session, score[valid], n_quantiles)
    everyone = np.ones(len(cell), dtype=bool)
    means = session_means(cell, len(sessions) * n_quantiles, outcome, everyone)
    matrix = means.reshape(len(sessions), n_quantiles)
    matrix[np.bincount(session, minlength=len(sessions)) < max(2, min_names)] = np.nan
    return sessions, matrix


def in_top_quantile(session: np.ndarray, score: np.ndarray, quantile: float) -> np.ndarray:
    """Which finite scores are in the top quantile of their session: floor(n * quantile), 1 or more.

    Equal scores are in or out together: in if their average rank lies above the cut. So where all
    names have the same score there is no top quantile.
    """
    if not 0 < quantile <= 0.5:
        raise ValueError(f"quantile is {quantile}; it must be in (0, 0.5]")
    is_top = np.zeros(len(score), dtype=bool)
    rows = np.flatnonzero(np.isfinite(score))
    n = np.bincount(session[rows], minlength=1)[session[rows]]
    n_top = np.maximum(1, np.floor(n * quantile + 1e-9))
    ranks = average_ranks(session[rows], score[rows])
    is_top[rows] = ranks > n - n_top + 0.5
    return is_top


def turnover(
    ts: np.ndarray, symbol: np.ndarray, score: np.ndarray, quantile: float = 0.2, lag: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Sessions and the share of the top quantile's names that were not in it ``lag`` earlier.

    ``lag`` counts the sessions of ``ts``. NaN for the first ``lag`` sessions, and where either
    session has no top quantile. That of the bottom: give the scores with the opposite sign.
    """
    sessions, session = index_sessions(ts)
    _require_lag(lag, 1)
    top = np.flatnonzero(in_top_quantile(session, score, quantile))
    is_new = earlier_rows(session[top], index_symbols(symbol[top])[1], lag) < 0
    n = np.bincount(session[top], minlength=len(sessions))
    n_before = np.concatenate((np.zeros(lag, np.int64), n))[: len(sessions)]
    share = session_means(session[top], len(sessions), is_new, np.ones(len(top), dtype=bool))
    share[n_before == 0] = np.nan
    return sessions, share


def rank_autocorrelation(
    ts: np.ndarray,
    symbol: np.ndarray,
    score: np.ndarray,
    lag: int = 1,
    min_names: int = MIN_NAMES,
) -> tuple[np.ndarray, np.ndarray]:
    """Sessions and the Spearman correlation of scores with the same symbols' ``lag`` earlier.

    NaN where fewer than ``min_names`` symbols have both, or where either does not vary.
    """
    _require_lag(lag, 1)
    sessions, session = index_sessions(ts)
    before = _earlier(session, index_symbols(symbol)[1], score, lag)
    return sessions, session_correlations(session, len(sessions), score, before, True, min_names)


def ic_decay(
    ts: np.ndarray,
    symbol: np.ndarray,
    score: np.ndarray,
    fwd_return: np.ndarray,
    lags: Sequence[int],
    horizon: int,
    min_names: int = MIN_NAMES,
) -> list[dict[str, float]]:
    """How old scores still order today's returns: one row a lag, as plain numbers.

    ``lag``, ``n_sessions``, ``rank_ic`` (the mean RankIC of a symbol's score of ``lag`` sessions
    ago against its forward return of today) and ``rank_ic_se`` (Newey-West, 2 * ``horizon`` lags:
    the returns run over ``horizon`` sessions). Lag 0 is the score's own RankIC.
    """
    indexed = *index_sessions(ts), index_symbols(symbol)[1]
    rows: list[dict[str, float]] = []
    for lag in lags:
        ic = _ic_of_age(*indexed, score, fwd_return, lag, min_names)
        rows.append(
            {
                "lag": int(lag),
                "n_sessions": int(np.isfinite(ic).sum()),
                "rank_ic": mean_of_defined(ic),
                "rank_ic_se": newey_west_se(ic, 2 * horizon),
            }
        )
    return rows


def ic_of_age(
    ts: np.ndarray,
    symbol: np.ndarray,
    score: np.ndarray,
    fwd_return: np.ndarray,
    lag: int,
    min_names: int = MIN_NAMES,
) -> np.ndarray:
    """Of each session of ``ts``, the RankIC of scores ``lag`` sessions old with its returns."""
    indexed = *index_sessions(ts), index_symbols(symbol)[1]
    return _ic_of_age(*indexed, score, fwd_return, lag, min_names)


def _ic_of_age(
    sessions: np.ndarray,
    session: np.ndarray,
    code: np.ndarray,
    score: np.ndarray,
    fwd_return: np.ndarray,
    lag: int,
    min_names: int,
) -> np.ndarray:
    _require_lag(lag, 0)
    before = _earlier(session, code, score, lag) if lag else score
    return session_correlations(session, len(sessions), before, fwd_return, True, min_names)


def _earlier(session: np.ndarray, code: np.ndarray, values: np.ndarray, lag: int) -> np.ndarray:
    """Each row's value ``lag`` sessions earlier; NaN where its symbol had no row."""
    earlier = earlier_rows(session, code, lag)
    found = np.full(len(values), np.nan)
    found[earlier >= 0] = values[earlier[earlier >= 0]]
    return found


def _require_lag(lag: int, least: int) -> None:
    if lag < least:
        raise ValueError(f"lag is {lag}; it must be {least} at least")


def capacity(
    ts: np.ndarray, score: np.ndarray, traded_value: np.ndarray, quantile: float = 0.2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sessions, the traded value of all names of the top quantile, and of its median name.

    In the currency of ``traded_value``; names whose own is missing are left out of both. NaN where
    the session has no top quantile, or no name of it a traded value.
    """
    sessions, session = index_sessions(ts)
    counted = in_top_quantile(session, score, quantile) & np.isfinite(traded_value)
    total = session_sums(session, len(sessions), traded_value, counted)
    return sessions, total, session_medians(session, len(sessions), traded_value, counted)


def psi(reference: np.ndarray, current: np.ndarray, n_bins: int = 10) -> float:
    """Population stability index of values against a reference; NaN if either has none.

    Over the reference's quantile bins, cut at values of its own: the result is the same under
    every increasing transform. A value that fills a bin alone has a bin of its own. 0.1 is a
    shift, 0.2 a large one. Missing values are left out: watch their share apart.
    """
    if n_bins < 2:
        raise ValueError(f"n_bins is {n_bins}; it must be 2 at least")
    reference, current = (
        values[np.isfinite(values)].astype(np.float64) for values in (reference, current)
    )
    if not len(reference) or not len(current):
        return float("nan")
    cuts = np.quantile(reference, np.linspace(0, 1, n_bins + 1), method="higher")
    heavy = cuts[1:][cuts[1:] == cuts[:-1]]
    edges = np.unique(np.concatenate((cuts[1:-1], np.nextafter(heavy, np.inf))))
    shares = [
        np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        / len(values)
        for values in (reference, current)
    ]
    return psi_of_shares(*shares)


def psi_of_shares(reference: np.ndarray, current: np.ndarray) -> float:
    """Population stability index of bin shares: sum (c - r) ln(c / r), shares 1e-4 at least.

    >>> round(psi_of_shares(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.15, 0.25, 0.3, 0.3])), 6)
    0.060199
    """
    r, c = np.maximum(reference, LEAST_SHARE), np.maximum(current, LEAST_SHARE)
    return float(((c - r) * np.log(c / r)).sum())
