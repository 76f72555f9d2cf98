"""How much a training row counts."""

from itertools import pairwise

import numpy as np


def recency(session_number: np.ndarray, half_life: float) -> np.ndarray:
    """0.5 ** (age / half_life), age in sessions before the newest row: 1 for that one.

    >>> recency(np.array([10, 8, 6]), half_life=2).tolist()
    [1.0, 0.5, 0.25]
    """
    if not half_life > 0:
        raise ValueError(f"half_life is {half_life}; it must be above 0")
    if not len(session_number):
        return np.empty(0)
    age = np.max(session_number) - np.asarray(session_number, dtype=np.float64)
    return np.asarray(0.5 ** (age / half_life))


def uniqueness(code: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Average uniqueness of each label among those of its symbol, in (0, 1].

    The label of a row covers the session numbers ``first`` to ``last``, both included. The mean,
    over them, of 1 / the number of labels of the same symbol ``code`` that cover the session
    (Lopez de Prado 2018, ch. 4). Raises ValueError if a label ends before it begins.

    >>> found = uniqueness(np.array([7, 7, 7]), np.array([0, 2, 4]), np.array([2, 3, 5]))
    >>> found.round(4).tolist()
    [0.8333, 0.75, 1.0]
    """
    n_backward = int(np.count_nonzero(last < first))
    if n_backward:
        at = int(np.argmax(last < first))
        raise ValueError(
            f"{n_backward} labels end before they begin, first row {at}: {first[at]}..{last[at]}"
        )
    if not len(code):
        return np.empty(0)
    _, symbol = np.unique(code, return_inverse=True)
    first, last = first.astype(np.int64), last.astype(np.int64)
    n_symbols = int(symbol.max()) + 1
    oldest = np.full(n_symbols, first.max())
    newest = np.full(n_symbols, last.min())
    np.minimum.at(oldest, symbol, first)
    np.maximum.at(newest, symbol, last)
    # Symbols one after the other, each from its oldest session to one after its newest.
    bounds = np.concatenate([[0], np.cumsum(newest - oldest + 2)])
    to_cell = (bounds[:-1] - oldest)[symbol]
    begin, end = first + to_cell, last + to_cell + 1
    size = int(bounds[-1])
    n_labels = np.cumsum(np.bincount(begin, minlength=size) - np.bincount(end, minlength=size))
    share = np.divide(1.0, n_labels, out=np.zeros(size), where=n_labels > 0)
    # Sums begin anew with each symbol, so that no other one changes a bit of its weights.
    up_to = np.zeros(size)
    for start, stop in pairwise(bounds.tolist()):
        np.cumsum(share[start : stop - 1], out=up_to[start + 1 : stop])
    return np.asarray((up_to[end] - up_to[begin]) / (last - first + 1))


def normalized(weights: np.ndarray) -> np.ndarray:
    """Weights in the same proportions with a mean of 1.

    Raises ValueError unless all are finite, none is negative and one is positive.

    >>> normalized(np.array([1.0, 3.0])).tolist()
    [0.5, 1.5]
    """
    weights = np.asarray(weights, dtype=np.float64)
    if not len(weights):
        return np.empty(0)
    n_bad = int(np.count_nonzero(~np.isfinite(weights) | (weights < 0)))
    if n_bad or not weights.max() > 0:
        raise ValueError(
            f"{n_bad} of {len(weights)} weights are negative or not finite, the largest is "
            f"{weights.max()}; all must be 0 or more, and one above 0"
        )
    scaled = weights / weights.max()
    return np.asarray(scaled / scaled.mean())
