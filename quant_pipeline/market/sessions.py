"""Which dates are market sessions, decided for each date from bars up to that date alone."""

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def find_sessions(
    day: Ints,
    symbol: Ints,
    *,
    min_share: float,
    active_dates: int,
    known: npt.NDArray[np.int8] | None = None,
    listed: Bools | None = None,
) -> Bools:
    """Tell for each date whether it is a session.

    `day` and `symbol` are codes 0..n-1 of each bar's date (in time order) and symbol, each pair
    once; the result has one entry a date. Entry d depends on bars of dates up to d only.

    A date is a session if at least `min_share` of the active symbols have a bar on it: those
    with a bar on a session among the `active_dates` dates before. Until there are such symbols,
    every date with a bar is one. A lone bar on a holiday is none, and shifts no window; where
    most symbols end for good, the others' dates are sessions again once those are forgotten.

    `listed` marks the dates of an exchange calendar: they are sessions, with or without bars;
    another date is a special session only by the rule above, with at least one active symbol.
    `known` fixes earlier decisions: 1 a session, 0 none, -1 to be decided.
    """
    n_days = len(known) if known is not None else len(listed) if listed is not None else 0
    n_days = max(n_days, int(day.max()) + 1 if len(day) else 0)
    n_symbols = int(symbol.max()) + 1 if len(symbol) else 0
    order = np.argsort(day, kind="stable")
    ends = np.searchsorted(day[order], np.arange(n_days + 1))
    last_seen = np.full(n_symbols, -(active_dates + 1), np.int64)
    is_session = np.zeros(n_days, np.bool_)
    for d in range(n_days):
        present = symbol[order[ends[d] : ends[d + 1]]]
        if known is not None and known[d] >= 0:
            is_session[d] = known[d] == 1
        elif listed is not None and listed[d]:
            is_session[d] = True
        else:
            is_active = last_seen >= d - active_dates
            n_active = int(np.count_nonzero(is_active))
            n_present = int(np.count_nonzero(is_active[present]))
            is_first = n_active == 0 and listed is None and len(present) > 0
            is_session[d] = is_first or 0 < n_present >= min_share * n_active
        if is_session[d]:
            last_seen[present] = d
    return is_session
