"""Forward adjustment: a total-return index that a later dividend or split never rewrites."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bars:
    """Bars of one symbol in time order; `ts` are day numbers, `index` the forward-adjusted close."""

    ts: npt.NDArray[np.int64]
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    index: Floats


@dataclass(frozen=True)
class Merged:
    """What a delivery changes: bars to store as a new version, and how its rows were counted."""

    bars: Bars
    n_new: int
    n_restated: int
    n_relinked: int
    n_unchanged: int
    n_rebased: int


def merge_delivery(stored: Bars, given: Bars, tolerance: float) -> Merged:
    """Compare one symbol's delivery with what is stored and extend the index forward.

    `given.index` holds the delivered adj_close (NaN where there is none: then close counts).
    Each session's gross return is the ratio of two values within one delivery, so a vendor
    who rescales the whole past by a constant changes nothing; the index runs forward from the
    first bar, which starts at its close. Rows are compared free of scale: gross return,
    open, high and low over close, and traded value; within `tolerance` (relative) the stored row
    stays, bit for bit. A bar that the delivery omits stays too, and one that is put in between keeps
    the index before and after it consistent. Only rows whose values change are returned.
    """
    ts = np.union1d(stored.ts, given.ts)
    s = _positions(stored.ts, ts)
    g = _positions(given.ts, ts)
    index, is_material = _run_index(stored, given, s, g, tolerance)
    is_new = s < 0
    is_both = (s >= 0) & (g >= 0)
    is_material |= is_both & _shape_differs(stored, given, s, g, tolerance)
    is_moved = ~is_new & (index != _at(stored.index, s))
    write = is_new | is_material | is_moved
    take_given = is_new | is_material
    is_rebased = is_both & ~is_material & _level_differs(stored, given, s, g, tolerance)

    def pick(name: str) -> Floats:
        old, new = getattr(stored, name), getattr(given, name)
        values = np.where(take_given, _at(new, g), _at(old, s))
        return values[write]

    bars = Bars(ts[write], *(pick(n) for n in ("open", "high", "low", "close", "volume")), index[write])
    return Merged(
        bars=bars,
        n_new=int(is_new.sum()),
        n_restated=int((is_material & ~is_new).sum()),
        n_relinked=int((is_moved & ~is_material).sum()),
        n_unchanged=int((is_both & ~is_material).sum()),
        n_rebased=int(is_rebased.sum()),
    )


def _run_index(
    stored: Bars, given: Bars, s: npt.NDArray[np.int64], g: npt.NDArray[np.int64], tolerance: float
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The index at each date of the union, and which stored rows' returns differ materially."""
    if not len(stored.ts):
        return _fresh_index(given), np.zeros(len(s), np.bool_)
    has_adjusted = ~np.isnan(given.index)
    level = np.where(has_adjusted, given.index, given.close)
    index = np.empty(len(s))
    is_material = np.zeros(len(s), np.bool_)
    last_g = last_s = -1  # positions in `given` and `stored` of the last row seen of each
    at_g = at_s = np.nan  # the index at those rows
    for i, (j, k) in enumerate(zip(s.tolist(), g.tolist(), strict=True)):
        before = index[i - 1] if i else np.nan
        kept = stored.index[j] if j >= 0 and last_s < 0 and i == 0 else np.nan
        if j >= 0 and last_s >= 0:
            is_anchored = at_s == stored.index[last_s]
            kept = stored.index[j] if is_anchored else at_s * (stored.index[j] / stored.index[last_s])
        asserted = np.nan
        if k >= 0 and last_g >= 0:
            both_closes = not (has_adjusted[k] and has_adjusted[last_g])
            ratio = given.close[k] / given.close[last_g] if both_closes else level[k] / level[last_g]
            asserted = at_g * ratio
        if np.isnan(kept):
            value = asserted
            if np.isnan(value):  # nothing in its own delivery to link to: closes count
                close = given.close[k] if k >= 0 else stored.close[j]
                previous = _close_before(stored, given, last_s, last_g)
                value = close if np.isnan(before) else before * (close / previous)
            is_material[i] = j >= 0
        elif np.isnan(asserted) or abs(asserted / kept - 1.0) <= tolerance:
            value = kept
        else:
            value, is_material[i] = asserted, True
        index[i] = value
        if j >= 0:
            last_s, at_s = j, value
        if k >= 0:
            last_g, at_g = k, value
    return index, is_material


def _fresh_index(given: Bars) -> Floats:
    """The index of a symbol of which nothing is stored: its first close, then gross returns."""
    both = ~np.isnan(given.index[1:]) & ~np.isnan(given.index[:-1])
    ratio = np.where(both, given.index[1:] / given.index[:-1], given.close[1:] / given.close[:-1])
    return np.cumprod(np.concatenate([given.close[:1], ratio]))


def _close_before(stored: Bars, given: Bars, last_s: int, last_g: int) -> float:
    """The close of the newest row seen so far, of either source."""
    if last_g >= 0 and (last_s < 0 or given.ts[last_g] >= stored.ts[last_s]):
        return float(given.close[last_g])
    return float(stored.close[last_s]) if last_s >= 0 else np.nan


def _shape_differs(
    stored: Bars, given: Bars, s: npt.NDArray[np.int64], g: npt.NDArray[np.int64], tolerance: float
) -> npt.NDArray[np.bool_]:
    """Rows whose open, high or low over close, or traded value, differ beyond the tolerance."""
    differs = np.zeros(len(s), np.bool_)
    for name in ("open", "high", "low"):
        old = _at(getattr(stored, name), s) / _at(stored.close, s)
        new = _at(getattr(given, name), g) / _at(given.close, g)
        differs |= np.abs(new / old - 1.0) > tolerance
    old_value = _at(stored.volume, s) * _at(stored.close, s)
    new_value = _at(given.volume, g) * _at(given.close, g)
    # A vendor rounds re-based volumes to whole shares: one share is not a restatement.
    slack = tolerance * np.abs(old_value) + 1.5 * _at(given.close, g)
    return differs | (np.abs(new_value - old_value) > slack)


def _level_differs(
    stored: Bars, given: Bars, s: npt.NDArray[np.int64], g: npt.NDArray[np.int64], tolerance: float
) -> npt.NDArray[np.bool_]:
    return np.abs(_at(given.close, g) / _at(stored.close, s) - 1.0) > tolerance


def _positions(
    ts: npt.NDArray[np.int64], union: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Where each date of the union stands in `ts`, -1 where it does not."""
    at = np.full(len(union), -1, np.int64)
    at[np.searchsorted(union, ts)] = np.arange(len(ts))
    return at


def _at(values: Floats, position: npt.NDArray[np.int64]) -> Floats:
    """Values at positions, NaN at -1."""
    if not len(values):
        return np.full(len(position), np.nan)
    return np.where(position >= 0, values[position], np.nan)
