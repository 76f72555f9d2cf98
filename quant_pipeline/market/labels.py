"""Labels: what happened after a score could have been traded, and when it became known."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from quant_pipeline.settings import Task

Days = npt.NDArray[np.datetime64]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

REASONS = ("no_entry_bar", "no_exit_bar", "suspect_jump")


@dataclass(frozen=True)
class Labels:
    """One row a bar whose outcome became known, all arrays of one length.

    `reason` is empty where there is a label, and else says why there is none: `label` is NaN
    then, and so is `fwd_return`.
    """

    symbol: Ints
    ts: Days
    entry_ts: Days
    exit_ts: Days
    known_at: Days
    fwd_return: Floats
    label: Floats
    reason: npt.NDArray[np.object_]

    def n_by_reason(self) -> dict[str, int]:
        """Rows without a label, by reason, also those that never occurred."""
        return {reason: int((self.reason == reason).sum()) for reason in REASONS}


def make_labels(
    close: Floats,
    is_jump: Bools,
    sessions: Days,
    task: Task,
    known_from: np.datetime64,
    known_before: np.datetime64,
    missing_exit: Literal["last_close", "drop"] = "last_close",
) -> Labels:
    """Label every bar whose outcome became known in ``[known_from, known_before)``.

    `close` is sessions x symbols of forward-adjusted closes, NaN where a symbol has no bar, and
    `is_jump` tells which of them came after a move that looks like an unadjusted split.
    A score of session t can be traded at the close of t + entry_lag; the label runs from there
    over `horizon` market sessions to session x = t + entry_lag + horizon and is known at x.
    Uses no bar after x.

    `label` is 1 where the return exceeds the task's threshold, else 0 (classification), or the
    return itself, of which ml/targets.py makes what compares symbols. There is none, for one of
    REASONS, where

    - no_entry_bar: the symbol has no bar at entry, so nothing could be bought
    - no_exit_bar: none at x, and `missing_exit` is "drop"; else the last close before x counts
      (losses of delisting stay in), known at x either way
    - suspect_jump: a flagged jump lies after entry and not after x
    """
    known = np.flatnonzero((sessions >= known_from) & (sessions < known_before))
    known = known[known >= task.label_span]
    start, entry = known - task.label_span, known - task.horizon
    row, symbol = np.nonzero(~np.isnan(close[start]))
    at_entry, at_exit = close[entry][row, symbol], close[known][row, symbol]
    n_jumps = np.cumsum(is_jump, axis=0, dtype=np.int32)
    reason = np.full(len(row), "", object)
    reason[(n_jumps[known] - n_jumps[entry])[row, symbol] > 0] = "suspect_jump"
    if missing_exit == "drop":
        reason[np.isnan(at_exit)] = "no_exit_bar"
    reason[np.isnan(at_entry)] = "no_entry_bar"
    fwd_return = _last_close(close)[known][row, symbol] / at_entry - 1.0
    fwd_return[reason != ""] = np.nan
    if task.kind == "classification" and task.above == "threshold":
        label = np.where(np.isnan(fwd_return), np.nan, fwd_return > task.threshold)
    else:
        label = fwd_return.copy()
    return Labels(
        symbol=symbol.astype(np.int64),
        ts=sessions[start][row],
        entry_ts=sessions[entry][row],
        exit_ts=sessions[known][row],
        known_at=sessions[known][row],
        fwd_return=fwd_return,
        label=label,
        reason=reason,
    )


def _last_close(close: Floats) -> Floats:
    """Each column with its holes filled by the last value above them."""
    position = np.where(np.isnan(close), 0, np.arange(len(close))[:, None])
    np.maximum.accumulate(position, axis=0, out=position)
    return np.take_along_axis(close, position, axis=0)
