"""Forward adjustment: a total-return index that a later dividend or split never rewrites."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Bars:
    """Bars of one symbol in time order; `ts` are day numbers, `index` the adjusted close."""

    ts: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    index: Floats


@dataclass(frozen=True)
class Merged:
    """What a delivery changes: bars to store as a new version, and how its rows were counted.

    `change` says of each bar to store why: "new", "restated" (its values differ materially) or
    "relinked" (only its index moved, with a row before it).
    `is_tied_by_close` tells of a delivery with adj_close that repeats no stored row: what was paid
    or split in between is a return now.
    """

    bars: Bars
    change: npt.NDArray[np.object_]
    n_new: int
    n_restated: int
    n_relinked: int
    n_unchanged: int
    n_rebased: int
    is_tied_by_close: bool


def merge_delivery(stored: Bars, given: Bars, tolerance: float) -> Merged:
    """Compare one symbol's delivery with what is stored and extend the index forward.

    `given.index` holds the delivered adj_close (NaN where there is none: then close counts).
    Each session's gross return is the ratio of two values within one delivery, so a vendor
    who rescales the whole past by a constant changes nothing; the index runs forward from the
    first bar ever delivered, which starts at its close. Rows are compared free of scale: gross
    return, open, high and low over close, and traded value; within `tolerance` (relative) the
    stored row stays, bit for bit. A bar that the delivery omits stays too, and bars that are put
    before or between stored ones are tied to these: theirs keep their index. After a correction
    the index returns to the stored values as soon as the delivery agrees with them again.

    A delivery hangs on its first bar that is stored in the same shape. If it shares none, closes
    link it to the stored bar before it (else after it), and a dividend or split there is missed.
    `stored` may lack bars older than the one before the delivery. Only rows whose values change
    are returned; n_new + n_restated + n_unchanged are the delivered rows.
    """
    ts = np.union1d(stored.ts, given.ts)
    s = _positions(stored.ts, ts)
    g = _positions(given.ts, ts)
    is_new = s < 0
    is_both = (s >= 0) & (g >= 0)
    shape_change = _shape_change(stored, given, s, g)
    index, is_material = _run_index(stored, given, s, g, shape_change, tolerance)
    is_material |= is_both & ~_is_same(shape_change, tolerance)
    is_material |= is_both & _value_differs(stored, given, s, g, tolerance)
    is_moved = ~is_new & (index != _at(stored.index, s))
    write = is_new | is_material | is_moved
    take_given = is_new | is_material
    is_rebased = is_both & ~is_material & _level_differs(stored, given, s, g, tolerance)

    def pick(old: Floats, new: Floats) -> Floats:
        values: Floats = np.where(take_given, _at(new, g), _at(old, s))[write]
        return values

    bars = Bars(
        ts=ts[write],
        open=pick(stored.open, given.open),
        high=pick(stored.high, given.high),
        low=pick(stored.low, given.low),
        close=pick(stored.close, given.close),
        volume=pick(stored.volume, given.volume),
        index=index[write],
    )
    change = np.where(is_new, "new", np.where(is_material, "restated", "relinked"))
    return Merged(
        bars=bars,
        change=change[write].astype(object),
        n_new=int(is_new.sum()),
        n_restated=int((is_material & ~is_new).sum()),
        n_relinked=int((is_moved & ~is_material).sum()),
        n_unchanged=int((is_both & ~is_material).sum()),
        n_rebased=int(is_rebased.sum()),
        is_tied_by_close=bool(
            len(stored.ts) and not is_both.any() and not np.isnan(given.index).all()
        ),
    )


def _run_index(
    stored: Bars, given: Bars, s: Ints, g: Ints, shape_change: Floats, tolerance: float
) -> tuple[Floats, Bools]:
    """The index at each date of the union, and which stored rows' returns differ materially."""
    is_material = np.zeros(len(s), np.bool_)
    if not len(stored.ts):
        return np.cumprod(_gross_returns(given), dtype=np.float64), is_material
    index = _at(stored.index, s)
    if not len(given.ts):
        return index, is_material
    returns = _gross_returns(given).tolist()
    close_change = np.median(shape_change, axis=0)
    anchor, value = _find_anchor(stored, given, s, g, shape_change, tolerance)
    index[anchor] = at_g = value
    rows = np.flatnonzero(g >= 0)
    for k in range(int(g[anchor]), 0, -1):  # what the delivery has before its anchor: backward
        i = rows[k - 1]
        value /= returns[k]
        if s[i] >= 0 and abs(value / index[i] - 1.0) <= tolerance:
            value = index[i]
        is_material[i] = s[i] >= 0 and value != index[i]
        index[i] = value
    shift = 1.0  # by which stored rows after a restated return move
    scale, moved = _at(given.close, g) / _at(stored.close, s), 1.0
    newest, omitted = anchor, []
    after = zip(s[anchor + 1 :].tolist(), g[anchor + 1 :].tolist(), strict=True)
    for i, (j, k) in enumerate(after, anchor + 1):
        if k < 0:
            omitted.append(i)
            continue
        at_g *= returns[k]
        if j < 0:
            index[i] = at_g
            continue
        old = float(stored.index[j])
        moved = 1.0
        if abs(at_g / old - 1.0) <= tolerance:
            at_g, shift = old, 1.0
        elif abs(at_g / (old * shift) - 1.0) <= tolerance:
            at_g = old * shift
        else:
            is_material[i] = True
            # A corrected close changes the returns into and out of its session; one that the
            # vendor only adjusts otherwise changes the level of all that follows.
            shift = at_g / old / float(close_change[i])
            shift = 1.0 if abs(shift - 1.0) <= tolerance else shift
            moved = float(scale[i] / scale[newest])
        index[omitted] *= shift
        index[i] = at_g
        newest, omitted = i, []
    # Rows after the last delivered one: a whole bar that was corrected there moves it alone.
    index[omitted] *= 1.0 if abs(moved / shift - 1.0) <= tolerance else shift
    return index, is_material


def _gross_returns(given: Bars) -> Floats:
    """Each row over the one before it, of adj_close if both have one, else of close.

    The first, which has none before it, is its close: the running product is an index.
    """
    adjusted = given.index[1:] / given.index[:-1]
    returns = np.where(np.isnan(adjusted), given.close[1:] / given.close[:-1], adjusted)
    return np.concatenate([given.close[:1], returns])


def _find_anchor(
    stored: Bars, given: Bars, s: Ints, g: Ints, shape_change: Floats, tolerance: float
) -> tuple[int, float]:
    """The row that the delivery hangs on, and the index there.

    Best is one that is stored alike, traded value included: a whole bar that was corrected has
    its shape, too. If a single bar is all there is to compare, and only its traded value differs,
    it is a correction; of several, it is their scale.
    """
    same = np.flatnonzero(_is_same(shape_change, tolerance))
    alike = same[~_value_differs(stored, given, s, g, tolerance)[same]]
    if len(alike) or len(same) > 1:
        i = int(alike[0] if len(alike) else same[0])
        return i, float(stored.index[s[i]])
    if len(same):
        i = int(same[0])
        return i, float(stored.index[s[i]] * (given.close[g[i]] / stored.close[s[i]]))
    common = np.flatnonzero((s >= 0) & (g >= 0))
    if len(common):
        i = int(common[0])
        return i, float(stored.index[s[i]] * np.median(shape_change[:, i]))
    newest = np.maximum.accumulate(s)
    linked = np.flatnonzero((g >= 0) & (newest >= 0))
    i = int(linked[0]) if len(linked) else int(np.flatnonzero(g >= 0)[-1])
    j = newest[i] if len(linked) else 0
    return i, float(stored.index[j] * (given.close[g[i]] / stored.close[j]))


def _shape_change(stored: Bars, given: Bars, s: Ints, g: Ints) -> Floats:
    """Close over open, high and low as delivered, each over the same as stored; NaN for others."""
    old_close, new_close = _at(stored.close, s), _at(given.close, g)
    pairs = ((stored.open, given.open), (stored.high, given.high), (stored.low, given.low))
    return np.stack([(new_close / _at(new, g)) / (old_close / _at(old, s)) for old, new in pairs])


def _is_same(shape_change: Floats, tolerance: float) -> Bools:
    is_same: Bools = np.all(np.abs(shape_change - 1.0) <= tolerance, axis=0)
    return is_same


def _value_differs(stored: Bars, given: Bars, s: Ints, g: Ints, tolerance: float) -> Bools:
    """Rows whose traded values differ."""
    old = _at(stored.volume, s) * _at(stored.close, s)
    new = _at(given.volume, g) * _at(given.close, g)
    # A vendor rounds re-based volumes to whole shares: one share is not a restatement.
    slack = tolerance * np.abs(old) + 1.5 * _at(given.close, g)
    return np.abs(new - old) > slack


def _level_differs(stored: Bars, given: Bars, s: Ints, g: Ints, tolerance: float) -> Bools:
    return np.abs(_at(given.close, g) / _at(stored.close, s) - 1.0) > tolerance


def _positions(ts: Ints, union: Ints) -> Ints:
    """Where each date of the union stands in `ts`, -1 where it does not."""
    at = np.full(len(union), -1, np.int64)
    at[np.searchsorted(union, ts)] = np.arange(len(ts))
    return at


def _at(values: Floats, position: Ints) -> Floats:
    """Values at positions, NaN at -1."""
    if not len(values):
        return np.full(len(position), np.nan)
    return np.where(position >= 0, values[position], np.nan)
