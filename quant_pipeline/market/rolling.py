"""Rolling statistics for features of one's own, compiled and cached like the kernels.

Each takes a symbol's values, one a market session (NaN where it has no bar), and a window in
sessions that ends with the session itself. NaN is skipped; a window without a value gives NaN.
Windows are computed afresh at every session. pandas' rolling functions carry a state along that
depends on where the data begins, so a few sessions alone would get other last digits than
all of history.
"""

import math

import numpy as np
import numpy.typing as npt
from numba import njit

from quant_pipeline.market import kernels  # it says where compiled code is kept

Values = npt.NDArray[np.floating]


def lag(x: Values, sessions: int) -> Values:
    """The value so many sessions ago, NaN before there was one.

    >>> lag(np.array([1.0, 2.0, 3.0]), 1)
    array([nan,  1.,  2.])
    """
    out = np.full(len(x), np.nan)
    out[sessions:] = x[: max(len(x) - sessions, 0)]
    return out


@njit(cache=True, nogil=True)
def mean(x: Values, window: int) -> Values:
    """Arithmetic mean of the window."""
    out = np.empty(len(x))
    for t in range(len(x)):
        out[t] = kernels.mean_and_std(x, t, window)[0]
    return out


@njit(cache=True, nogil=True)
def std(x: Values, window: int) -> Values:
    """Sample standard deviation (ddof 1) of the window; NaN for fewer than two values."""
    out = np.empty(len(x))
    for t in range(len(x)):
        out[t] = kernels.mean_and_std(x, t, window)[1]
    return out


@njit(cache=True, nogil=True)
def highest(x: Values, window: int) -> Values:
    """Largest value of the window."""
    out = np.full(len(x), np.nan)
    for t in range(len(x)):
        for i in range(max(t - window + 1, 0), t + 1):
            if x[i] > out[t] or (math.isnan(out[t]) and not math.isnan(x[i])):
                out[t] = x[i]
    return out


@njit(cache=True, nogil=True)
def lowest(x: Values, window: int) -> Values:
    """Smallest value of the window."""
    out = np.full(len(x), np.nan)
    for t in range(len(x)):
        for i in range(max(t - window + 1, 0), t + 1):
            if x[i] < out[t] or (math.isnan(out[t]) and not math.isnan(x[i])):
                out[t] = x[i]
    return out


def compile_all() -> None:
    """Compile every function for both precisions."""
    for function in (mean, std, highest, lowest):
        for dtype in (np.float64, np.float32):
            function(np.ones(3, dtype), 2)


if __name__ == "__main__":
    # Run as a script the functions would be cached under the name __main__.
    from quant_pipeline.market import rolling

    kernels.compile_all()
    rolling.compile_all()
