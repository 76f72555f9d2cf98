"""Which dates are market sessions, decided for each date from bars up to that date alone."""

import numpy as np
import numpy.typing as npt


def find_sessions(
    day: npt.NDArray[np.int64],
    symbol: npt.NDArray[np.int64],
    *,
    min_share: float,
    active_dates: int,
) -> npt.NDArray[np.bool_]:
    """Tell for each date with a bar whether it is a session.

    A date is a session if it has at least `min_share` times as many bars as there are symbols
    that had one on the last `active_dates` dates (with any bar) before it. Until there are such
    symbols, every date is one. A lone bar on a holiday therefore is none, and shifts no window;
    where most symbols end for good, the others' dates are sessions again once those are forgotten.

    `day` and `symbol` are codes 0..n-1 of each bar's date (in time order) and symbol; the
    result has one entry a date. Entry d depends on bars of dates up to d only.
    """
    n_days = int(day.max()) + 1 if len(day) else 0
    n_symbols = int(symbol.max()) + 1 if len(symbol) else 0
    order = np.argsort(day, kind="stable")
    ends = np.searchsorted(day[order], np.arange(n_days + 1))
    last_seen = np.full(n_symbols, -(active_dates + 1), np.int64)
    is_session = np.zeros(n_days, np.bool_)
    for d in range(n_days):
        present = symbol[order[ends[d] : ends[d + 1]]]
        n_active = int(np.count_nonzero(last_seen >= d - active_dates))
        is_session[d] = len(present) >= min_share * n_active
        last_seen[present] = d
    return is_session
