"""Which symbols count on a session, from what was known at its close."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from quant_pipeline.market.feature_matrix import spread, symbol_slices
from quant_pipeline.settings import UniverseSettings


def find_members(
    symbol: npt.NDArray[np.int64],
    session: npt.NDArray[np.int64],
    traded_value: npt.NDArray[np.float64],
    first_session: npt.NDArray[np.int64],
    spec: UniverseSettings,
    is_wanted: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.bool_]:
    """Tell for each bar, sorted by (symbol code, session number), whether it is in the universe.

    A member has at least `min_sessions` market sessions since its first bar
    (`first_session`, one entry a symbol code) and a median traded value of at least
    `min_median_value` over the last `value_sessions` sessions, those without a bar counting as 0.
    Bars that are not wanted are told to be outside.
    """
    from quant_pipeline.market import kernels  # numba, only when needed

    wanted = np.ones(len(symbol), np.bool_) if is_wanted is None else is_wanted
    age = session - first_session[symbol] + 1
    median = np.full(len(symbol), np.nan)
    for first, last in symbol_slices(symbol):
        place = session[first:last] - session[first]
        rows = first + np.flatnonzero(wanted[first:last])
        values = spread(traded_value[first:last], place)
        median[rows] = kernels.median_or_zero(values, place[rows - first], spec.value_sessions)
    return wanted & (age >= spec.min_sessions) & (median >= spec.min_median_value)


def find_covered(
    symbol: npt.NDArray[np.int64],
    ts: npt.NDArray[np.datetime64],
    intervals: Sequence[tuple[int, np.datetime64, np.datetime64 | None]],
) -> npt.NDArray[np.bool_]:
    """Tell for each bar, sorted by symbol code, whether a membership interval holds its `ts`.

    `intervals` has (symbol code, first day, last day), both days included; a last day of None
    has not come yet. Whether a session is in one is known on it.
    """
    found = np.zeros(len(symbol), np.bool_)
    for code, first, last in intervals:
        a, b = np.searchsorted(symbol, [code, code + 1])
        inside = ts[a:b] >= first
        if last is not None:
            inside &= ts[a:b] <= last
        found[a:b] |= inside
    return found
