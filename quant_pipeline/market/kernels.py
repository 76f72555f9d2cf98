"""Compiled kernels: the window statistics of one symbol, all windows in one pass.

A kernel of features takes float64 series with NaN on sessions without a bar (`candles` takes
them as they are given), its windows in ascending order, the sessions `at` which values are
wanted, and for each of its columns (kind by kind, window by window) the row of `out` to write
to; what does not fit into float32 becomes NaN. Each value is made afresh from its window, newest
session first, so no rolling state drifts, and a few sessions computed alone have the same bits
as in all of history. Sums run over differences to the newest value of the window: then no terms
much larger than the result cancel. NaN is skipped. Entry t uses entries up to t only.

The machine code is kept under the environment that runs it (`sys.prefix`).
"""

import math
import sys
from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt
from numba import njit

from quant_pipeline.market.alpha158 import KERNELS, WINDOWS

numba.config.CACHE_DIR = str(Path(sys.prefix) / "var" / "numba")  # type: ignore[attr-defined]

Floats = npt.NDArray[np.floating]
Narrow = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

EPSILON = 1e-12
LARGEST = float(np.finfo(np.float32).max)
HARDLY_VARIES = 2e-5  # a standard deviation; as in Qlib 0.9.7


@njit(cache=True, nogil=True)
def _narrow(x: float) -> float:
    """A value that fits into float32, else NaN."""
    return x if abs(x) <= LARGEST else math.nan


@njit(cache=True, nogil=True)
def _ratio(a: float, b: float) -> float:
    """A quotient that fits into float32; NaN where b is 0."""
    return _narrow(a / b) if b != 0.0 else math.nan


@njit(cache=True, nogil=True)
def candles(
    opened: Floats, high: Floats, low: Floats, close: Floats, vwap: Floats,
    windows: Ints, at: Ints, slots: Ints, out: Narrow,
) -> None:  # fmt: skip
    """KMID, KLEN, KMID2, KUP, KUP2, KLOW, KLOW2, KSFT, KSFT2, OPEN0, HIGH0, LOW0, VWAP0."""
    for j in range(len(at)):
        t = at[j]
        o, h, low_, c = opened[t], high[t], low[t], close[t]
        span = h - low_ + EPSILON
        body, upper, lower = c - o, h - max(o, c), min(o, c) - low_
        shift = c + c - h - low_
        out[slots[0], j] = _ratio(body, o)
        out[slots[1], j] = _ratio(h - low_, o)
        out[slots[2], j] = _ratio(body, span)
        out[slots[3], j] = _ratio(upper, o)
        out[slots[4], j] = _ratio(upper, span)
        out[slots[5], j] = _ratio(lower, o)
        out[slots[6], j] = _ratio(lower, span)
        out[slots[7], j] = _ratio(shift, o)
        out[slots[8], j] = _ratio(shift, span)
        out[slots[9], j] = _ratio(o, c)
        out[slots[10], j] = _ratio(h, c)
        out[slots[11], j] = _ratio(low_, c)
        out[slots[12], j] = _ratio(vwap[t], c)


@njit(cache=True, nogil=True)
def trend(close: Floats, windows: Ints, at: Ints, slots: Ints, out: Narrow) -> None:
    """ROC, MA, STD, BETA, RSQR, RESI: level, spread and least squares line of the window."""
    n_windows = len(windows)
    for j in range(len(at)):
        t = at[j]
        now, newest = close[t], math.nan
        n, i = 0, 0
        si = sii = sd = sdd = sid = 0.0
        for k in range(n_windows):
            stop = min(windows[k], t + 1)
            while i < stop:
                x = close[t - i]
                if not math.isnan(x):
                    if n == 0:
                        newest = x
                    n += 1
                    d = x - newest
                    si += i
                    sii += i * i
                    sd += d
                    sdd += d * d
                    sid += i * d
                i += 1
            ago = close[t - windows[k]] if t >= windows[k] else math.nan
            mean = std = slope = square = rest = math.nan
            if n > 0:
                mean = sd / n
            if n > 1:
                ii, dd, id_ = sii - si * si / n, max(sdd - sd * mean, 0.0), sid - si * mean
                std = math.sqrt(dd / (n - 1))
                slope = id_ / ii
                rest = slope * si / n - mean
                if std > HARDLY_VARIES:
                    square = slope * id_ / dd
            out[slots[k], j] = _ratio(ago, now)
            out[slots[n_windows + k], j] = _ratio(newest + mean, now)
            out[slots[2 * n_windows + k], j] = _ratio(std, now)
            out[slots[3 * n_windows + k], j] = _ratio(-slope, now)
            out[slots[4 * n_windows + k], j] = _narrow(square)
            out[slots[5 * n_windows + k], j] = _ratio(rest, now)


@njit(cache=True, nogil=True)
def extremes(
    high: Floats, low: Floats, close: Floats, windows: Ints, at: Ints, slots: Ints, out: Narrow
) -> None:
    """MAX, MIN, RSV, IMAX, IMIN, IMXD: the window's range and where its ends are.

    Positions count from 1 at the window's oldest session; a missing value wins them.
    """
    n_windows = len(windows)
    for j in range(len(at)):
        t = at[j]
        now = close[t]
        top = bottom = math.nan
        i, i_top, i_bottom, i_no_high, i_no_low = 0, 0, 0, -1, -1
        for k in range(n_windows):
            stop = min(windows[k], t + 1)
            while i < stop:
                h, low_ = high[t - i], low[t - i]
                if math.isnan(h):
                    i_no_high = i
                elif not h < top:
                    top, i_top = h, i
                if math.isnan(low_):
                    i_no_low = i
                elif not low_ > bottom:
                    bottom, i_bottom = low_, i
                i += 1
            first = stop - (i_no_high if i_no_high >= 0 else i_top)
            last = stop - (i_no_low if i_no_low >= 0 else i_bottom)
            out[slots[k], j] = _ratio(top, now)
            out[slots[n_windows + k], j] = _ratio(bottom, now)
            out[slots[2 * n_windows + k], j] = _ratio(now - bottom, top - bottom + EPSILON)
            out[slots[3 * n_windows + k], j] = first / windows[k]
            out[slots[4 * n_windows + k], j] = last / windows[k]
            out[slots[5 * n_windows + k], j] = (first - last) / windows[k]


@njit(cache=True, nogil=True)
def _quantile(ordered: Floats, n: int, share: float) -> float:
    """Linear between the order statistics, as pandas has it."""
    if n == 0:
        return math.nan
    place = share * (n - 1)
    i = int(place)
    if i + 1 >= n:
        return float(ordered[n - 1])
    return float(ordered[i] + (ordered[i + 1] - ordered[i]) * (place - i))


@njit(cache=True, nogil=True)
def order(close: Floats, windows: Ints, at: Ints, slots: Ints, out: Narrow) -> None:
    """QTLU, QTLD, RANK: quantiles 0.8 and 0.2, and the average rank of now as a share."""
    n_windows = len(windows)
    ordered = np.empty(windows[-1])
    for j in range(len(at)):
        t = at[j]
        now = close[t]
        n, i, n_less, n_equal = 0, 0, 0, 0
        for k in range(n_windows):
            stop = min(windows[k], t + 1)
            while i < stop:
                x = close[t - i]
                if not math.isnan(x):
                    n_less += x < now
                    n_equal += x == now
                    place = n
                    while place > 0 and ordered[place - 1] > x:
                        ordered[place] = ordered[place - 1]
                        place -= 1
                    ordered[place] = x
                    n += 1
                i += 1
            rank = math.nan if n_equal == 0 else (n_less + 0.5 * (n_equal + 1)) / n
            out[slots[k], j] = _ratio(_quantile(ordered, n, 0.8), now)
            out[slots[n_windows + k], j] = _ratio(_quantile(ordered, n, 0.2), now)
            out[slots[2 * n_windows + k], j] = rank


@njit(cache=True, nogil=True)
def co_movement(x: Floats, y: Floats, windows: Ints, at: Ints, slots: Ints, out: Narrow) -> None:
    """CORR or CORD: correlation over sessions with both; NaN where one hardly varies."""
    n_windows = len(windows)
    for j in range(len(at)):
        t = at[j]
        n, i = 0, 0
        x_new = y_new = math.nan
        sx = sy = sxx = syy = sxy = 0.0
        for k in range(n_windows):
            stop = min(windows[k], t + 1)
            while i < stop:
                a, b = x[t - i], y[t - i]
                if not (math.isnan(a) or math.isnan(b)):
                    if n == 0:
                        x_new, y_new = a, b
                    n += 1
                    a -= x_new
                    b -= y_new
                    sx += a
                    sy += b
                    sxx += a * a
                    syy += b * b
                    sxy += a * b
                i += 1
            found = math.nan
            if n > 1:
                xx, yy = sxx - sx * sx / n, syy - sy * sy / n
                least = HARDLY_VARIES * HARDLY_VARIES * (n - 1)
                if xx > least and yy > least:
                    found = (sxy - sx * sy / n) / math.sqrt(xx * yy)
            out[slots[k], j] = _narrow(found)


@njit(cache=True, nogil=True)
def counts(move: Floats, windows: Ints, at: Ints, slots: Ints, out: Narrow) -> None:
    """CNTP, CNTN, CNTD: shares of sessions with a rise, with a fall, and their difference."""
    n_windows = len(windows)
    for j in range(len(at)):
        t = at[j]
        i, n_up, n_down = 0, 0, 0
        for k in range(n_windows):
            stop = min(windows[k], t + 1)
            while i < stop:
                n_up += move[t - i] > 0.0
                n_down += move[t - i] < 0.0
                i += 1
            out[slots[k], j] = n_up / stop
            out[slots[n_windows + k], j] = n_down / stop
            out[slots[2 * n_windows + k], j] = (n_up - n_down) / stop


@njit(cache=True, nogil=True)
def shares(move: Floats, windows: Ints, at: Ints, slots: Ints, out: Narrow) -> None:
    """SUMP, SUMN, SUMD: rises, falls and their difference as shares of all movement."""
    n_windows = len(windows)
    for j in range(len(at)):
        t = at[j]
        i, n, up, down = 0, 0, 0.0, 0.0
        for k in range(n_windows):
            stop = min(windows[k], t + 1)
            while i < stop:
                d = move[t - i]
                if not math.isnan(d):
                    n += 1
                    up += max(d, 0.0)
                    down += max(-d, 0.0)
                i += 1
            total = up + down + EPSILON if n else math.nan
            out[slots[k], j] = _ratio(up, total)
            out[slots[n_windows + k], j] = _ratio(down, total)
            out[slots[2 * n_windows + k], j] = _ratio(up - down, total)


@njit(cache=True, nogil=True)
def mean_and_std(x: Floats, t: int, window: int) -> tuple[float, float]:
    """Mean and sample standard deviation of the window."""
    newest, n, sd, sdd = math.nan, 0, 0.0, 0.0
    for i in range(min(window, t + 1)):
        value = x[t - i]
        if not math.isnan(value):
            if n == 0:
                newest = value
            n += 1
            sd += value - newest
            sdd += (value - newest) ** 2
    if n < 2:
        return newest, math.nan
    return newest + sd / n, math.sqrt(max(sdd - sd * sd / n, 0.0) / (n - 1))


@njit(cache=True, nogil=True)
def levels(volume: Floats, windows: Ints, at: Ints, slots: Ints, out: Narrow) -> None:
    """VMA, VSTD: mean and standard deviation of the window over the newest value."""
    n_windows = len(windows)
    for j in range(len(at)):
        now = volume[at[j]] + EPSILON
        for k in range(n_windows):
            mean, std = mean_and_std(volume, at[j], windows[k])
            out[slots[k], j] = _ratio(mean, now)
            out[slots[n_windows + k], j] = _ratio(std, now)


@njit(cache=True, nogil=True)
def unevenness(x: Floats, windows: Ints, at: Ints, slots: Ints, out: Narrow) -> None:
    """WVMA: standard deviation over mean."""
    n_windows = len(windows)
    for j in range(len(at)):
        for k in range(n_windows):
            mean, std = mean_and_std(x, at[j], windows[k])
            out[slots[k], j] = _ratio(std, mean + EPSILON)


@njit(cache=True, nogil=True)
def median_or_zero(x: Floats, at: Ints, window: int) -> Floats:
    """Median of the last `window` sessions, a missing one (also before the first) being 0."""
    out = np.empty(len(at))
    values = np.zeros(window)
    for j in range(len(at)):
        values[:] = 0.0
        first = max(at[j] - window + 1, 0)
        for i in range(first, at[j] + 1):
            if not math.isnan(x[i]):
                values[i - first] = x[i]
        out[j] = np.median(values)
    return out


def compile_all() -> None:
    """Compile every kernel for the types it is called with, so that no first run waits for it."""
    windows, at, out = np.array(WINDOWS), np.arange(3), np.empty((99, 5), np.float32)
    for kernel, n_columns in KERNELS.items():
        for dtype in (np.float64, np.float32) if kernel.name == "candles" else (np.float64,):
            series = [np.ones(3, dtype)] * len(kernel.series)
            globals()[kernel.name](*series, windows, at, np.arange(n_columns), out[:, 1:4])
    median_or_zero(np.ones(3), at, 3)
