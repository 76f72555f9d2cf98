"""A slow, independent Alpha158: every feature from its formula, for tests only.

Qlib's names, formulas and missing-value rules (`qlib.contrib.data.loader.Alpha158DL`), written
with whole windows, one row a session, and no running sums. What is derived before a window
(ratios, logarithms, differences, candles) keeps the dtype of the frame; a window's statistics
are taken in extended precision of values from which the window's mean has been subtracted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

Series = npt.NDArray[np.floating]
"""One value a session, oldest first; NaN is a missing one."""
Windows = npt.NDArray[np.longdouble]
"""One row a session: the values of its window, the newest in the last column."""

INPUTS = ("open", "high", "low", "close", "volume", "vwap")
WINDOWS = (5, 10, 20, 30, 60)
SMALL = 1e-12
"""What Qlib adds to denominators."""
FLAT = 2e-5
"""A standard deviation up to this has no correlation."""


@dataclass(frozen=True)
class Life:
    """One symbol's bars on its sessions: from its first bar on, NaN where it has no bar."""

    open: Series
    high: Series
    low: Series
    close: Series
    volume: Series
    vwap: Series


# --- series derived before windows, in the dtype of the frame


def ago(values: Series, n: int) -> Series:
    """Qlib's Ref: the value n sessions ago."""
    older = np.full_like(values, np.nan)
    older[n:] = values[: max(len(values) - n, 0)]
    return older


def finite(values: Series) -> Series:
    """The same values; an infinite one is missing."""
    return np.where(np.isfinite(values), values, np.nan).astype(values.dtype)


def change(values: Series) -> Series:
    return values - ago(values, 1)


def rise(values: Series) -> Series:
    return np.maximum(change(values), 0)


def fall(values: Series) -> Series:
    return np.maximum(ago(values, 1) - values, 0)


def price_ratio(life: Life) -> Series:
    return finite(life.close / ago(life.close, 1))


def log_volume(life: Life) -> Series:
    return finite(np.log(life.volume + 1))


def log_volume_ratio(life: Life) -> Series:
    return finite(np.log(finite(life.volume / ago(life.volume, 1)) + 1))


def turbulence(life: Life) -> Series:
    """Volume times the size of the return, whose deviation and mean WVMA divides."""
    return finite(np.abs(price_ratio(life) - 1) * life.volume)


# --- statistics of a window


def windows(values: Series, d: int) -> Windows:
    """The last d sessions of every session; those before the first bar are NaN."""
    padded = np.concatenate([np.full(d - 1, np.nan), values]).astype(np.longdouble)
    return np.lib.stride_tricks.sliding_window_view(padded, d)


def n_sessions(n: int, d: int) -> npt.NDArray[np.int64]:
    """How many sessions each window has: fewer than d near the first bar."""
    return np.minimum(np.arange(n) + 1, d)


def count(w: Windows) -> npt.NDArray[np.int64]:
    return (~np.isnan(w)).sum(axis=1)


def total(w: Windows) -> Windows:
    """The sum of the valid values, NaN if there is none."""
    return np.where(count(w) > 0, np.nansum(w, axis=1), np.nan)


def mean(w: Windows) -> Windows:
    return total(w) / count(w)


def centred(w: Windows) -> Windows:
    """Distances from the mean; the second step takes away what the first mean was off."""
    near = w - mean(w)[:, None]
    return near - mean(near)[:, None]


def std(w: Windows) -> Windows:
    """With n - 1; NaN for fewer than two values."""
    n = count(w)
    return np.where(n < 2, np.nan, np.sqrt(np.nansum(centred(w) ** 2, axis=1) / (n - 1)))


def largest(w: Windows) -> Windows:
    return np.fmax.reduce(w, axis=1)


def smallest(w: Windows) -> Windows:
    return np.fmin.reduce(w, axis=1)


def quantile(w: Windows, q: float) -> Windows:
    """Linear between the two nearest of the sorted valid values."""
    ordered = np.sort(w, axis=1)  # NaN last
    place = q * np.maximum(count(w) - 1, 0)
    below = np.floor(place).astype(int)
    above = np.ceil(place).astype(int)
    rows = np.arange(len(w))
    low, high = ordered[rows, below], ordered[rows, above]
    return low + (high - low) * (place - below)


def rank_share(w: Windows) -> Windows:
    """Average rank of the newest value among the valid ones, as a share of their number."""
    newest = w[:, -1:]
    n_below, n_equal = (w < newest).sum(axis=1), (w == newest).sum(axis=1)
    return np.where(n_equal > 0, (n_below + (n_equal + 1) / 2) / count(w), np.nan)


def first_place(w: Windows, sign: int) -> Windows:
    """Where the first largest (sign 1) or smallest (-1) value is, from 1; a NaN wins.

    The window starts at the symbol's first bar if that is in it.
    """
    d = w.shape[1]
    places = []
    for row, n in zip(w, n_sessions(len(w), d), strict=True):
        life = sign * row[d - n :]
        places.append(np.nan if np.isnan(life).all() else np.argmax(life) + 1)
    return np.array(places, np.longdouble)


def products(x: Windows, y: Windows) -> tuple[Windows, Windows, Windows, Windows]:
    """Sums xx, xy, yy of distances from the means, and n: of places where both are valid."""
    is_pair = ~np.isnan(x) & ~np.isnan(y)
    a, b = (centred(np.where(is_pair, v, np.nan)) for v in (x, y))
    xx, xy, yy = (np.nansum(v, axis=1) for v in (a * a, a * b, b * b))
    return xx, xy, yy, is_pair.sum(axis=1)


def correlation(x: Windows, y: Windows) -> Windows:
    """Pearson's; NaN for fewer than two pairs and where either deviation is at most FLAT."""
    xx, xy, yy, n = products(x, y)
    is_flat = (np.sqrt(xx / (n - 1)) <= FLAT) | (np.sqrt(yy / (n - 1)) <= FLAT)
    return np.where((n < 2) | is_flat, np.nan, xy / np.sqrt(xx * yy))


def places_of(w: Windows) -> Windows:
    return np.broadcast_to(np.arange(w.shape[1], dtype=np.longdouble), w.shape)


def slope(w: Windows) -> Windows:
    """Of the least-squares line through the valid values by their place in the window."""
    xx, xy, _, n = products(places_of(w), w)
    return np.where(n < 2, np.nan, xy / xx)


def fit_share(w: Windows) -> Windows:
    """Share of the variance that the line explains; NaN where the deviation is at most FLAT."""
    xx, xy, yy, n = products(places_of(w), w)
    return np.where((n < 2) | (std(w) <= FLAT), np.nan, xy**2 / (xx * yy))


def residual(w: Windows) -> Windows:
    """Of the newest value from the line."""
    x = np.where(np.isnan(w), np.nan, places_of(w))
    return centred(w)[:, -1] - slope(w) * centred(x)[:, -1]


# --- features of one session


def body(s: Life) -> Series:
    return s.close - s.open


def span(s: Life) -> Series:
    return s.high - s.low + SMALL


def above(s: Life) -> Series:
    return s.high - np.maximum(s.open, s.close)


def below(s: Life) -> Series:
    return np.minimum(s.open, s.close) - s.low


def shift(s: Life) -> Series:
    return 2 * s.close - s.high - s.low


CANDLES: dict[str, Callable[[Life], Series]] = {
    "KMID": lambda s: body(s) / s.open,
    "KLEN": lambda s: (s.high - s.low) / s.open,
    "KMID2": lambda s: body(s) / span(s),
    "KUP": lambda s: above(s) / s.open,
    "KUP2": lambda s: above(s) / span(s),
    "KLOW": lambda s: below(s) / s.open,
    "KLOW2": lambda s: below(s) / span(s),
    "KSFT": lambda s: shift(s) / s.open,
    "KSFT2": lambda s: shift(s) / span(s),
    "OPEN0": lambda s: s.open / s.close,
    "HIGH0": lambda s: s.high / s.close,
    "LOW0": lambda s: s.low / s.close,
    "VWAP0": lambda s: s.vwap / s.close,
}

# --- features of a window of d sessions


def top(s: Life, d: int) -> Windows:
    return largest(windows(s.high, d))


def bottom(s: Life, d: int) -> Windows:
    return smallest(windows(s.low, d))


def place_in_range(s: Life, d: int) -> Windows:
    return (s.close - bottom(s, d)) / (top(s, d) - bottom(s, d) + SMALL)


def place_of_top(s: Life, d: int) -> Windows:
    return first_place(windows(s.high, d), 1) / d


def place_of_bottom(s: Life, d: int) -> Windows:
    return first_place(windows(s.low, d), -1) / d


def share_of_sessions(is_counted: npt.NDArray[np.bool_], d: int) -> Windows:
    """Of all sessions of the window, also those without a bar."""
    return total(windows(is_counted.astype(float), d)) / n_sessions(len(is_counted), d)


def share_up(s: Life, d: int) -> Windows:
    return share_of_sessions(s.close > ago(s.close, 1), d)


def share_down(s: Life, d: int) -> Windows:
    return share_of_sessions(s.close < ago(s.close, 1), d)


def share_of_path(part: Series, values: Series, d: int) -> Windows:
    """A sum of some changes by the sum of the sizes of all."""
    return total(windows(part, d)) / (total(windows(np.abs(change(values)), d)) + SMALL)


def difference_of_path(values: Series, d: int) -> Windows:
    up, down = total(windows(rise(values), d)), total(windows(fall(values), d))
    return (up - down) / (total(windows(np.abs(change(values)), d)) + SMALL)


def spread_of_turbulence(s: Life, d: int) -> Windows:
    w = windows(turbulence(s), d)
    return std(w) / (mean(w) + SMALL)


def log_correlation(s: Life, d: int) -> Windows:
    return correlation(windows(s.close, d), windows(log_volume(s), d))


def log_ratio_correlation(s: Life, d: int) -> Windows:
    return correlation(windows(price_ratio(s), d), windows(log_volume_ratio(s), d))


ROLLING: dict[str, Callable[[Life, int], Series]] = {
    "ROC": lambda s, d: ago(s.close, d) / s.close,
    "MA": lambda s, d: mean(windows(s.close, d)) / s.close,
    "STD": lambda s, d: std(windows(s.close, d)) / s.close,
    "BETA": lambda s, d: slope(windows(s.close, d)) / s.close,
    "RSQR": lambda s, d: fit_share(windows(s.close, d)),
    "RESI": lambda s, d: residual(windows(s.close, d)) / s.close,
    "MAX": lambda s, d: top(s, d) / s.close,
    "MIN": lambda s, d: bottom(s, d) / s.close,
    "QTLU": lambda s, d: quantile(windows(s.close, d), 0.8) / s.close,
    "QTLD": lambda s, d: quantile(windows(s.close, d), 0.2) / s.close,
    "RANK": lambda s, d: rank_share(windows(s.close, d)),
    "RSV": place_in_range,
    "IMAX": place_of_top,
    "IMIN": place_of_bottom,
    "IMXD": lambda s, d: place_of_top(s, d) - place_of_bottom(s, d),
    "CORR": log_correlation,
    "CORD": log_ratio_correlation,
    "CNTP": share_up,
    "CNTN": share_down,
    "CNTD": lambda s, d: share_up(s, d) - share_down(s, d),
    "SUMP": lambda s, d: share_of_path(rise(s.close), s.close, d),
    "SUMN": lambda s, d: share_of_path(fall(s.close), s.close, d),
    "SUMD": lambda s, d: difference_of_path(s.close, d),
    "VMA": lambda s, d: mean(windows(s.volume, d)) / (s.volume + SMALL),
    "VSTD": lambda s, d: std(windows(s.volume, d)) / (s.volume + SMALL),
    "WVMA": spread_of_turbulence,
    "VSUMP": lambda s, d: share_of_path(rise(s.volume), s.volume, d),
    "VSUMN": lambda s, d: share_of_path(fall(s.volume), s.volume, d),
    "VSUMD": lambda s, d: difference_of_path(s.volume, d),
}

ALPHA158 = (*CANDLES, *(f"{kind}{d}" for kind in ROLLING for d in WINDOWS))
"""The names in Qlib's order."""


def feature(life: Life, name: str) -> Series:
    """One feature of one symbol, a value a session, before the last rounding."""
    if name in CANDLES:
        return CANDLES[name](life)
    kind = name.rstrip("0123456789")
    return ROLLING[kind](life, int(name.removeprefix(kind)))


def rounded(values: Series) -> Series:
    """In float32; what does not fit, or is infinite, is missing."""
    return finite(values.astype(np.float32))


# --- the frame


def by_symbol(
    bars: pd.DataFrame,
    columns: dict[str, Callable[[Life], Series]],
    sessions: npt.NDArray[np.datetime64] | None,
) -> pd.DataFrame:
    """Columns computed from each symbol's life, on its bars, sorted by ts, symbol."""
    calendar = np.unique(bars["ts"].to_numpy() if sessions is None else sessions)
    calendar = calendar.astype(bars["ts"].to_numpy().dtype)
    pieces = []
    for symbol, mine in bars.groupby("symbol"):
        placed = mine.set_index("ts")[list(INPUTS)].sort_index()
        life = Life(*placed.reindex(calendar[calendar >= placed.index[0]]).to_numpy().T)
        where = np.searchsorted(calendar[calendar >= placed.index[0]], placed.index)
        with np.errstate(all="ignore"):
            values = {name: compute(life)[where] for name, compute in columns.items()}
        piece = pd.DataFrame({"symbol": symbol, "ts": placed.index} | values)
        pieces.append(piece)
    if not pieces:
        return pd.DataFrame(columns=["symbol", "ts", *columns])
    return pd.concat(pieces).sort_values(["ts", "symbol"], ignore_index=True)


def slow_features(
    bars: pd.DataFrame,
    names: Sequence[str] | None = None,
    sessions: npt.NDArray[np.datetime64] | None = None,
) -> pd.DataFrame:
    """Features of every bar in float32, sorted by ts, symbol; all 158 by default.

    `bars` has symbol, ts and INPUTS, all float64 or all float32, in any order of rows.
    `sessions` is every date of the market; the dates of the frame unless passed.
    """
    chosen = ALPHA158 if names is None else tuple(names)
    computed = {n: (lambda life, name=n: rounded(feature(life, name))) for n in chosen}
    return by_symbol(bars, computed, sessions)


def log_rounding(
    bars: pd.DataFrame,
    name: str,
    n_ulps: float,
    sessions: npt.NDArray[np.datetime64] | None = None,
) -> npt.NDArray[np.float64]:
    """How far a CORR or CORD may move if its logarithms are off by n_ulps, a value a row.

    The one step before a window that IEEE 754 does not define to the bit is the logarithm.
    Logarithms y off by at most e have centred values off by at most e in the root mean
    square, so a correlation moves by at most 2 * e / std(y), std with n. Infinite where they
    could move std(y) over the limit FLAT.
    """
    kind = name.rstrip("0123456789")
    d = int(name.removeprefix(kind))

    def bound(life: Life) -> Series:
        x, logs = {
            "CORR": (life.close, log_volume),
            "CORD": (price_ratio(life), log_volume_ratio),
        }[kind]
        y = logs(life)
        w = windows(np.where(np.isnan(x), np.nan, y), d)
        off = n_ulps * windows(np.where(np.isnan(x), np.nan, np.spacing(y)), d)
        largest_off = np.fmax.reduce(off, axis=1)
        spread = np.sqrt(np.nansum(centred(w) ** 2, axis=1) / count(w))
        unsure = np.abs(std(w) - FLAT) <= 2 * largest_off
        return np.where(unsure, np.inf, 2 * largest_off / spread).astype(np.float64)

    return by_symbol(bars, {name: bound}, sessions)[name].to_numpy()
