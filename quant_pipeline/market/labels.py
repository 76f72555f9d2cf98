"""Labels: what happened after a score could have been traded, and when it became known."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from quant_pipeline.settings import Task

Days = npt.NDArray[np.datetime64]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Labels:
    """One row an example, all arrays of one length; `n_dropped` counts what got none, by reason."""

    symbol: Ints
    ts: Days
    entry_ts: Days
    exit_ts: Days
    known_at: Days
    fwd_return: Floats
    label: Floats
    n_dropped: dict[str, int]


def make_labels(
    close: Floats,
    sessions: Days,
    task: Task,
    known_from: np.datetime64,
    known_before: np.datetime64,
    missing_exit: Literal["last_close", "drop"] = "last_close",
) -> Labels:
    """Label every bar whose outcome became known in ``[known_from, known_before)``.

    `close` is sessions x symbols of forward-adjusted closes, NaN where a symbol has no bar.
    A score of session t can be traded at the close of t + entry_lag; the label runs from there
    over `horizon` market sessions to session x = t + entry_lag + horizon and is known at x.
    No bar at entry: no label. No bar at x: the last close before it (delisting losses stay
    in) or no label, as `missing_exit` says; known at x either way.

    `label` is 1 where the return exceeds the task's threshold, else 0 (classification), or the
    return itself (regression). Uses no bar after x.
    """
    known = np.flatnonzero((sessions >= known_from) & (sessions < known_before))
    known = known[known >= task.label_span]
    start, entry = known - task.label_span, known - task.horizon
    filled = _last_close(close)
    at_start, at_entry, at_exit = close[start], close[entry], close[known]
    has_bar = ~np.isnan(at_start)
    has_entry = has_bar & ~np.isnan(at_entry)
    no_exit = has_entry & np.isnan(at_exit)
    usable = has_entry & ~no_exit if missing_exit == "drop" else has_entry
    row, symbol = np.nonzero(usable)
    end_value = filled[known][row, symbol]
    fwd_return = end_value / at_entry[row, symbol] - 1.0
    label = (fwd_return > task.threshold).astype(np.float64)
    dropped = {"no_entry_bar": int((has_bar & ~has_entry).sum())}
    if missing_exit == "drop":
        dropped["no_exit_bar"] = int(no_exit.sum())
    return Labels(
        symbol=symbol.astype(np.int64),
        ts=sessions[start][row],
        entry_ts=sessions[entry][row],
        exit_ts=sessions[known][row],
        known_at=sessions[known][row],
        fwd_return=fwd_return,
        label=label if task.kind == "classification" else fwd_return,
        n_dropped=dropped,
    )


def _last_close(close: Floats) -> Floats:
    """Each column with its holes filled by the last value above them."""
    position = np.where(np.isnan(close), 0, np.arange(len(close))[:, None])
    np.maximum.accumulate(position, axis=0, out=position)
    return np.take_along_axis(close, position, axis=0)
