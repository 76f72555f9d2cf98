"""Rows grouped by session, and what a value per session adds up to over a history.

Undefined is NaN, never 0. Rows may come in any order. ``session`` is each row's position among
the sessions, as `index_sessions` gives it; ``counted`` says which rows take part.
"""

import math

import numpy as np

MIN_NAMES = 20


def index_sessions(ts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct sessions, oldest first, and each row's position among them."""
    if len(ts) and (ts[1:] >= ts[:-1]).all():
        is_first = np.concatenate(([True], ts[1:] != ts[:-1]))
        return ts[is_first], np.cumsum(is_first) - 1
    sessions, session = np.unique(ts, return_inverse=True)
    return sessions, session


def index_symbols(symbol: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct symbols in order, and each row's position among them."""
    rows = symbol.tolist()  # np.unique would sort every row as text
    names = sorted(set(rows))
    position = {name: code for code, name in enumerate(names)}
    code = np.fromiter(map(position.__getitem__, rows), np.int64, len(rows))
    return np.array(names, dtype=object), code


def order_rows(session: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The rows by session and within it by value, equal ones in any order."""
    order = np.argsort(values)
    if len(session) and session.max() < 2**16:
        session = session.astype(np.uint16)  # sorted by radix
    ordered: np.ndarray = order[np.argsort(session[order], kind="stable")]
    return ordered


def average_ranks(session: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rank of each value within its session, from 1; equal values share their mean rank."""
    if not len(values):
        return np.empty(0)
    order = order_rows(session, values)
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


def session_quantiles(session: np.ndarray, values: np.ndarray, n_quantiles: int) -> np.ndarray:
    """Each finite value's quantile within its session, 0 to n_quantiles - 1, lowest first.

    floor((r - 0.5) / n * n_quantiles) of the average rank r among n, in whole numbers: equal
    values share a quantile, and sizes are alike from both ends.
    """
    if n_quantiles < 1:
        raise ValueError(f"n_quantiles is {n_quantiles}; it must be 1 at least")
    n = np.bincount(session, minlength=1)[session]
    twice = np.rint(2 * average_ranks(session, values)).astype(np.int64)
    quantiles: np.ndarray = (twice - 1) * n_quantiles // (2 * n)
    return quantiles


def session_sums(
    session: np.ndarray, n_sessions: int, values: np.ndarray, counted: np.ndarray
) -> np.ndarray:
    """Each session's sum of the counted values; NaN if there is none."""
    n = np.bincount(session[counted], minlength=n_sessions)
    # bincount of no row at all gives integers, which cannot hold NaN
    total = np.bincount(session[counted], values[counted].astype(np.float64), n_sessions)
    return np.where(n > 0, total, np.nan)


def session_means(
    session: np.ndarray, n_sessions: int, values: np.ndarray, counted: np.ndarray
) -> np.ndarray:
    """Each session's mean of the counted values; NaN if there is none."""
    n = np.bincount(session[counted], minlength=n_sessions)
    return session_sums(session, n_sessions, values, counted) / np.maximum(n, 1)


def session_medians(
    session: np.ndarray, n_sessions: int, values: np.ndarray, counted: np.ndarray
) -> np.ndarray:
    """Each session's median of the counted values; NaN if there is none."""
    order = order_rows(session[counted], values[counted])
    ordered = values[counted][order].astype(np.float64)
    n = np.bincount(session[counted], minlength=n_sessions)
    start, has_any = np.cumsum(n) - n, n > 0
    median = np.full(n_sessions, np.nan)
    low, high = (start + (n - 1) // 2)[has_any], (start + n // 2)[has_any]
    median[has_any] = ordered[low] / 2 + ordered[high] / 2
    return median


def session_correlations(
    session: np.ndarray,
    n_sessions: int,
    x: np.ndarray,
    y: np.ndarray,
    rank: bool,
    min_names: int,
) -> np.ndarray:
    """Pearson or Spearman correlation of each session's rows that have both values.

    Average ranks on ties. NaN with fewer than ``min_names`` (at least 2) such rows, or where
    either does not vary.
    """
    valid = np.isfinite(x) & np.isfinite(y)
    session = session[valid]
    x, y = x[valid].astype(np.float64), y[valid].astype(np.float64)
    if rank:
        x, y = average_ranks(session, x), average_ranks(session, y)
    n = np.bincount(session, minlength=n_sessions)
    x, y = (_standardize(session, n, values) for values in (x, y))
    with np.errstate(invalid="ignore"):
        found = np.bincount(session, x * y, n_sessions).astype(np.float64)
    found[n < max(2, min_names)] = np.nan
    return np.clip(found, -1.0, 1.0)


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


def earlier_rows(session: np.ndarray, code: np.ndarray, lag: int) -> np.ndarray:
    """Each row's row of the same symbol code ``lag`` sessions earlier, -1 if there is none.

    Raises ValueError if a symbol has two rows on a session.
    """
    if not len(session):
        return np.empty(0, np.int64)
    width = int(code.max()) + 1
    key = session.astype(np.int64) * width + code
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    n_twice = int((ordered[1:] == ordered[:-1]).sum())
    if n_twice:
        raise ValueError(f"{n_twice} rows repeat a symbol and session; each may have one row")
    found = np.empty_like(order)
    wanted = ordered - lag * width
    at = np.minimum(np.searchsorted(ordered, wanted), len(key) - 1)
    found[order] = np.where(ordered[at] == wanted, order[at], -1)
    return found


def mean_of_defined(series: np.ndarray) -> float:
    """Mean of what is no NaN; NaN if nothing is."""
    values = series[np.isfinite(series)]
    return float(values.mean()) if len(values) else math.nan


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


def every_hth_mean(series: np.ndarray, h: int) -> tuple[float, float]:
    """Mean over every ``h``-th session, averaged over the h offsets, and its standard error.

    Sessions h apart have no overlapping h-session label. The error is std (ddof 1) / sqrt(n) of
    each offset's series, averaged over offsets: that of one offset, so wider than need be. NaN
    entries keep their session but are not counted; an offset needs one value for a mean, two for
    an error.

    >>> every_hth_mean(np.array([1.0, 10.0, 3.0, 14.0]), 2)
    (7.0, 1.5)
    """
    if h < 1:
        raise ValueError(f"h is {h}; it must be 1 at least")
    offsets = [part[np.isfinite(part)] for part in (series[i::h] for i in range(h))]
    means = np.array([part.mean() for part in offsets if len(part)])
    errors = [part.std(ddof=1) / math.sqrt(len(part)) for part in offsets if len(part) > 1]
    return mean_of_defined(means), mean_of_defined(np.array(errors))
