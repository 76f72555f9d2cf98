"""Rolling kernels over one symbol's sessions, compiled once and cached beside this file.

Each takes float64 arrays with NaN on sessions without a bar, and the window in sessions, and
gives one float64 array. Windows are computed afresh at every session, so no rolling state
drifts and a partition computed alone has the same bits as one computed over all history.
NaN is skipped; a window without any value gives NaN. Entry t uses entries up to t only.
"""

import math

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]

EPSILON = 1e-12


@njit(cache=True, nogil=True)
def lag(x: Floats, window: int) -> Floats:
    """The value `window` sessions ago."""
    out = np.full(len(x), np.nan)
    out[window:] = x[: max(len(x) - window, 0)]
    return out


@njit(cache=True, nogil=True)
def mean(x: Floats, window: int) -> Floats:
    """Arithmetic mean of the window."""
    out = np.full(len(x), np.nan)
    for t in range(len(x)):
        total, n = 0.0, 0
        for i in range(max(t - window + 1, 0), t + 1):
            if not math.isnan(x[i]):
                total += x[i]
                n += 1
        if n:
            out[t] = total / n
    return out


@njit(cache=True, nogil=True)
def std(x: Floats, window: int) -> Floats:
    """Sample standard deviation (ddof 1) of the window; NaN for fewer than two values."""
    out = np.full(len(x), np.nan)
    for t in range(len(x)):
        first = max(t - window + 1, 0)
        total, n = 0.0, 0
        for i in range(first, t + 1):
            if not math.isnan(x[i]):
                total += x[i]
                n += 1
        if n > 1:
            center, squares = total / n, 0.0
            for i in range(first, t + 1):
                if not math.isnan(x[i]):
                    squares += (x[i] - center) ** 2
            out[t] = math.sqrt(squares / (n - 1))
    return out


@njit(cache=True, nogil=True)
def highest(x: Floats, window: int) -> Floats:
    """Largest value of the window."""
    out = np.full(len(x), np.nan)
    for t in range(len(x)):
        for i in range(max(t - window + 1, 0), t + 1):
            if x[i] > out[t] or (math.isnan(out[t]) and not math.isnan(x[i])):
                out[t] = x[i]
    return out


@njit(cache=True, nogil=True)
def lowest(x: Floats, window: int) -> Floats:
    """Smallest value of the window."""
    out = np.full(len(x), np.nan)
    for t in range(len(x)):
        for i in range(max(t - window + 1, 0), t + 1):
            if x[i] < out[t] or (math.isnan(out[t]) and not math.isnan(x[i])):
                out[t] = x[i]
    return out


@njit(cache=True, nogil=True)
def correlation(x: Floats, y: Floats, window: int) -> Floats:
    """Pearson correlation over sessions with both values; NaN where one hardly varies.

    "Hardly": a standard deviation (ddof 1) of at most 2e-5, as in Qlib 0.9.7.
    """
    out = np.full(len(x), np.nan)
    for t in range(len(x)):
        first = max(t - window + 1, 0)
        sx, sy, n = 0.0, 0.0, 0
        for i in range(first, t + 1):
            if not (math.isnan(x[i]) or math.isnan(y[i])):
                sx += x[i]
                sy += y[i]
                n += 1
        if n < 2:
            continue
        mx, my = sx / n, sy / n
        xx, yy, xy = 0.0, 0.0, 0.0
        for i in range(first, t + 1):
            if not (math.isnan(x[i]) or math.isnan(y[i])):
                xx += (x[i] - mx) ** 2
                yy += (y[i] - my) ** 2
                xy += (x[i] - mx) * (y[i] - my)
        if math.sqrt(xx / (n - 1)) > 2e-5 and math.sqrt(yy / (n - 1)) > 2e-5:
            out[t] = xy / math.sqrt(xx * yy)
    return out


@njit(cache=True, nogil=True)
def median_or_zero(x: Floats, window: int) -> Floats:
    """Median of the last `window` sessions, a missing one (also before the first) being 0."""
    out = np.empty(len(x))
    values = np.zeros(window)
    for t in range(len(x)):
        values[:] = 0.0
        first = max(t - window + 1, 0)
        for i in range(first, t + 1):
            if not math.isnan(x[i]):
                values[i - first] = x[i]
        out[t] = np.median(values)
    return out


def compile_all() -> None:
    """Compile every kernel for float64, so that no user's first run waits for it."""
    x = np.arange(8, dtype=np.float64)
    for kernel in (lag, mean, std, highest, lowest, median_or_zero):
        kernel(x, 3)
    correlation(x, x, 3)


if __name__ == "__main__":
    # Run as a script the functions would be cached under the name __main__.
    from quant_pipeline.market import kernels

    kernels.compile_all()
