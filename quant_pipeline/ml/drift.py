"""How far one sample's distribution has moved from another's."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# A bin that one side leaves empty counts as half a row there: its logarithm is else infinite.
EMPTY = 0.5


def stability_index(expected: Floats, found: Floats) -> Floats:
    """Population stability index of bin counts: sum of (q - p) * ln(q / p) over the last axis.

    p and q are the shares of each bin in ``expected`` and ``found``; it is Jeffreys' divergence
    (Jeffreys 1946) of the binned samples, symmetric and never negative. Usual reading (Siddiqi
    2006, Credit Risk Scorecards): under 0.1 no change, over 0.25 a large one. For n and m
    independent rows of one distribution in B bins it is about (1/n + 1/m) times a chi-square of
    B - 1 degrees (Yurdakul 2018). An empty bin counts as `EMPTY` rows; NaN where a sample has no
    row at all.

    >>> stability_index(np.array([50.0, 50.0]), np.array([80.0, 20.0])).round(4)
    np.float64(0.4159)
    """
    p, q = _shares(expected), _shares(found)
    index: Floats = np.sum((q - p) * np.log(q / p), axis=-1)
    return index


def _shares(counts: Floats) -> Floats:
    total = counts.sum(axis=-1, keepdims=True)
    held = np.where((counts == 0) & (total > 0), EMPTY, counts)
    with np.errstate(invalid="ignore"):  # no row at all: 0 / 0 is the NaN that is told
        shares: Floats = held / held.sum(axis=-1, keepdims=True)
    return shares


def merge_bins(counts: Floats, reference: Floats, n_bins: int = 10) -> Floats:
    """Counts of a fine grid as counts of about ``n_bins`` bins that are even in the reference.

    Both have shape (..., fine bins). Fine bins are joined in order until the reference has
    its share; a fine bin is never cut, so that values with a large share of their own (zeros)
    make a bin of their own, and the last ones may stay empty.
    """
    total = reference.sum(axis=-1, keepdims=True)
    before = np.cumsum(reference, axis=-1) - reference / 2  # the middle of each fine bin
    with np.errstate(invalid="ignore", divide="ignore"):
        place = np.nan_to_num(np.floor(before / total * n_bins))
    place = np.minimum(place, n_bins - 1).astype(np.int64)
    merged = np.zeros((*counts.shape[:-1], n_bins))
    rows = counts.reshape(-1, counts.shape[-1])
    places = np.broadcast_to(place, counts.shape).reshape(rows.shape)
    flat = merged.reshape(-1, n_bins)
    for i in range(n_bins):
        flat[:, i] = np.where(places == i, rows, 0).sum(axis=1)
    return merged


def population_stability(expected: Floats, found: Floats, n_bins: int = 10) -> float:
    """The index of two samples of numbers, in bins of equal share of ``expected``.

    NaN is left out. Equal samples give 0 whatever their ties.

    >>> population_stability(np.arange(100.0), np.arange(100.0))
    0.0
    """
    a, b = (np.sort(values[~np.isnan(values)]) for values in (expected, found))
    if not len(a) or not len(b):
        return float("nan")
    edges = np.unique(np.quantile(a, np.arange(1, n_bins) / n_bins))
    counts = [np.diff(np.searchsorted(v, edges, side="right"), prepend=0, append=len(v))
              for v in (a, b)]  # fmt: skip
    return float(stability_index(counts[0].astype(np.float64), counts[1].astype(np.float64)))
