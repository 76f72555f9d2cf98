"""Is the best of many trials skill? Deflated Sharpe ratio and probability of overfitting.

Sharpe ratios are those of one period, mean / standard deviation (ddof 1), never annualized.
"""

import math
from itertools import combinations
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

NORMAL = NormalDist()
FEWEST = 3  # values without which a series has no skewness, and no Sharpe ratio here
# A half of a trial with a smaller share of its whole variance is constant but for rounding.
NO_VARIANCE = 1e-13


class Moments(NamedTuple):
    """What a Sharpe ratio is judged by; kurtosis is 3 when normal."""

    sharpe: float
    n: int
    skew: float
    kurtosis: float


def sharpe_moments(series: np.ndarray) -> Moments:
    """Sharpe ratio, number of finite values, skewness and kurtosis (both biased) of a series.

    All but the number are NaN with fewer than 3 values or without variation.
    """
    values = np.asarray(series, dtype=np.float64)
    values = values[np.isfinite(values)]
    n = len(values)
    if n < FEWEST or values.min() == values.max():
        return Moments(math.nan, n, math.nan, math.nan)
    mean, std = float(values.mean()), float(values.std(ddof=1))
    z = (values - mean) / values.std()
    return Moments(mean / std, n, float((z**3).mean()), float((z**4).mean()))


def probabilistic_sharpe(
    sharpe: float, n: int, benchmark: float = 0.0, skew: float = 0.0, kurtosis: float = 3.0
) -> float:
    """Probability that the true Sharpe ratio is above the benchmark's, from n periods.

    Phi[(SR - SR0) sqrt(n - 1) / sqrt(1 - g3 SR + (g4 - 1) / 4 SR^2)] (Bailey, Lopez de Prado
    2012). NaN with fewer than 2 periods, for a NaN, or where the variance is not positive.
    """
    variance = 1 - skew * sharpe + (kurtosis - 1) / 4 * sharpe**2
    if n < 2 or not variance > 0:
        return math.nan
    return NORMAL.cdf((sharpe - benchmark) * math.sqrt((n - 1) / variance))


def expected_max_sharpe(n_trials: int, variance: float) -> float:
    """Sharpe ratio that the best of independent trials without any skill shows on average.

    sqrt(V) [(1 - g) PhiInv(1 - 1/N) + g PhiInv(1 - 1/(N e))], g = 0.57722, ``variance`` that of
    the trials' Sharpe ratios (Bailey, Lopez de Prado 2014). 0 for one trial; NaN for a NaN.
    """
    if n_trials < 1 or variance < 0:
        raise ValueError(
            f"{n_trials} trials with a variance of {variance}: there must be 1 at least, and a "
            "variance is never negative"
        )
    if n_trials == 1:
        return 0.0
    highest = -NORMAL.inv_cdf(1 / n_trials), -NORMAL.inv_cdf(1 / (n_trials * math.e))
    weight = np.euler_gamma
    return float(math.sqrt(variance) * ((1 - weight) * highest[0] + weight * highest[1]))


def deflated_sharpe(series: np.ndarray, n_trials: int, variance: float) -> float:
    """Probability that the chosen trial has skill, given how many there were to choose from.

    The probabilistic Sharpe ratio of its series against the `expected_max_sharpe` of all trials,
    whose Sharpe ratios, of the same period, have that ``variance``. NaN values are left out; NaN
    with fewer than 3 or without variation.
    """
    found = sharpe_moments(series)
    benchmark = expected_max_sharpe(n_trials, variance)
    return probabilistic_sharpe(found.sharpe, found.n, benchmark, found.skew, found.kurtosis)


def probability_of_overfitting(series: np.ndarray, n_blocks: int = 16) -> dict[str, float]:
    """How often the best trial in one half of the sessions is below the median in the other.

    ``series`` is sessions x trials, returns or spreads. Sessions where a trial has no finite value
    are dropped, the others cut into ``n_blocks`` consecutive blocks, as equal as possible. Each
    choice of half of the blocks is one split: the trial with the highest Sharpe ratio there has
    the average rank r (1 is the lowest) among N trials on the other half, and the logit
    ln(w / (1 - w)), w = r / (N + 1). Combinatorially symmetric cross-validation (Bailey, Borwein,
    Lopez de Prado, Zhu 2015). Trials without variation in a half take no part in it; a split is
    not counted where the best one has none in the other half, or is alone there.

    - pbo: share of splits with a logit of 0 or less; about 0.5 for trials without any skill
    - loss_share: share of splits where the best one's Sharpe ratio is negative in the other half
    - mean_degradation: its Sharpe ratio less that in the other half, averaged over splits
    - mean_logit, n_splits, n_blocks, n_trials, n_sessions (used), n_dropped

    Measures are NaN with fewer than 2 trials, or fewer than 2 sessions a block.
    """
    if n_blocks < 2 or n_blocks % 2:
        raise ValueError(f"n_blocks is {n_blocks}; it must be even, and 2 at least")
    if series.ndim != 2:
        raise ValueError(f"series must be sessions x trials, but has shape {series.shape}")
    is_whole = np.isfinite(series).all(axis=1)
    values = series[is_whole].astype(np.float64)
    n_sessions, n_trials = values.shape
    found: dict[str, float] = dict.fromkeys(
        ("pbo", "loss_share", "mean_degradation", "mean_logit"), math.nan
    )
    found |= {"n_splits": 0, "n_blocks": n_blocks, "n_trials": n_trials}
    found |= {"n_sessions": n_sessions, "n_dropped": len(series) - n_sessions}
    if n_trials < 2 or n_sessions < 2 * n_blocks:
        return found
    # In lexicographic order the other half of the i-th split is the i-th from the end.
    sharpe = _half_sharpes(values, n_blocks)
    inside, logit, outside = _choose_best(sharpe, sharpe[::-1])
    if len(logit):
        found |= {
            "pbo": float((logit <= 0).mean()),
            "loss_share": float((outside < 0).mean()),
            "mean_degradation": float((inside - outside).mean()),
            "mean_logit": float(logit.mean()),
            "n_splits": len(logit),
        }
    return found


def _half_sharpes(values: np.ndarray, n_blocks: int) -> np.ndarray:
    """Sharpe ratio of every trial on every half of the blocks: halves x trials.

    From sums by block of the deviations from the trial's mean; NaN without variation.
    """
    n_sessions, n_trials = values.shape
    mean = values.mean(axis=0)
    deviation = values - mean
    starts = np.arange(n_blocks) * n_sessions // n_blocks
    sums = np.add.reduceat(deviation, starts)
    squares = np.add.reduceat(deviation**2, starts)
    counts = np.diff(np.append(starts, n_sessions))
    halves = np.array(list(combinations(range(n_blocks), n_blocks // 2)))
    total, square = (np.zeros((len(halves), n_trials)) for _ in range(2))
    for block in halves.T:  # no matrix product: equal trials must come out equal to the last bit
        total += sums[block]
        square += squares[block]
    n = counts[halves].sum(axis=1)[:, None]
    average = total / n
    variance = (square - total * average) / (n - 1)
    variance[variance <= NO_VARIANCE * squares.sum(axis=0) / n_sessions] = np.nan
    return np.asarray((mean + average) / np.sqrt(variance))


def _choose_best(
    inside: np.ndarray, outside: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each split: the best trial's Sharpe ratio, its logit and ratio in the other half."""
    split = np.arange(len(inside))
    best = np.where(np.isnan(inside), -np.inf, inside).argmax(axis=1)
    chosen, after = inside[split, best], outside[split, best]
    n_defined = np.isfinite(outside).sum(axis=1)
    n_below = (outside < after[:, None]).sum(axis=1)
    n_equal = (outside == after[:, None]).sum(axis=1)
    rank = n_below + (n_equal + 1) / 2
    counts = np.isfinite(chosen) & np.isfinite(after) & (n_defined > 1)
    share = (rank / (n_defined + 1))[counts]
    return chosen[counts], np.log(share / (1 - share)), after[counts]
