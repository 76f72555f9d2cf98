"""Splits that the source did not adjust, flagged on the session they happen."""

import numpy as np
import numpy.typing as npt

from quant_pipeline.settings import JumpSettings

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Shares after a split for one before it; bonus issues are splits too (1 for 2 makes 3:2). Of
# reverse splits only the whole ones: takeovers and limit-up days look like the others.
WHOLE_RATIOS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30, 40, 50, 100)
BROKEN_RATIOS = (5 / 4, 4 / 3, 3 / 2, 5 / 2)

MAX_GAP = 3  # sessions to the bar before: a hole of two in the data hides no split
RATIO_TOLERANCE = 0.07  # how far the open lies from the ratio, as a share of the ratio's log
RANGE_SHARE = 0.2  # log(high / low) of the session, as a share of its log move
VALUE_LIMIT = 3.0  # traded value over what is usual
JUMP_LOOK_BACK = 20  # sessions whose traded value tells what is usual

_LOG_RATIOS = np.log([*WHOLE_RATIOS, *(1.0 / r for r in (*WHOLE_RATIOS, *BROKEN_RATIOS))])


def find_jumps(
    symbol: Ints,
    session: Ints,
    open_: Floats,
    high: Floats,
    low: Floats,
    close: Floats,
    traded_value: Floats,
    spec: JumpSettings,
) -> Bools:
    """Tell for each bar whether its price jumped as if by an unadjusted split.

    A split moves the price between two sessions, then trading goes on as ever. Flagged is a bar
    at most `MAX_GAP` sessions after the one before it, with log moves o and m from that bar's
    close to its own open and close, if

    - o and m both exceed ``spec.min_move`` in size (on the same side, by the third point)
    - o lies within `RATIO_TOLERANCE` * abs(r) of r, the log of a ratio listed above
    - 0 < log(high / low) <= `RANGE_SHARE` * abs(m): it traded, and stayed at the new level
    - traded value <= `VALUE_LIMIT` * the larger of the bar before's and the median of the last
      `JUMP_LOOK_BACK` sessions; values of 0 and NaN tell nothing, and without any price decides

    Bars are sorted by (symbol code, session number); prices are adjusted forward, traded value is
    raw volume times raw close. Known at the close of each bar's session: it takes nothing later,
    and nothing older than `JUMP_LOOK_BACK` sessions.
    """
    is_jump = np.zeros(len(close), np.bool_)
    if not spec.is_flagged or len(close) == 0:
        return is_jump
    follows = (symbol[1:] == symbol[:-1]) & (session[1:] - session[:-1] <= MAX_GAP)
    moved = np.abs(np.log(close[1:] / close[:-1])) > spec.min_move
    rows = np.flatnonzero(follows & moved) + 1
    before = close[rows - 1]
    at_open, at_close = np.log(open_[rows] / before), np.log(close[rows] / before)
    spread = np.log(high[rows] / low[rows])
    is_split = (np.abs(at_open) > spec.min_move) & _is_ratio(at_open)
    is_split &= (spread > 0) & (spread <= RANGE_SHARE * np.abs(at_close))
    rows = rows[is_split]
    usual = _usual_value(rows, symbol, session, traded_value)
    is_jump[rows] = ~(traded_value[rows] > VALUE_LIMIT * usual)
    return is_jump


def _is_ratio(move: Floats) -> Bools:
    distance = np.abs(move[:, None] - _LOG_RATIOS)
    is_ratio: Bools = np.any(distance <= RATIO_TOLERANCE * np.abs(_LOG_RATIOS), axis=1)
    return is_ratio


def _usual_value(rows: Ints, symbol: Ints, session: Ints, traded_value: Floats) -> Floats:
    """The larger of the bar before's traded value and the median before; infinite if unknown."""
    place = rows[:, None] - np.arange(1, JUMP_LOOK_BACK + 1)
    at = np.maximum(place, 0)
    is_known = (
        (place >= 0)
        & (symbol[at] == symbol[rows, None])
        & (session[at] >= session[rows, None] - JUMP_LOOK_BACK)
        & (traded_value[at] > 0)
    )
    values = np.sort(np.where(is_known, traded_value[at], np.inf), axis=1)
    n_known = is_known.sum(axis=1)
    row = np.arange(len(rows))
    median = (values[row, (n_known - 1) // 2] + values[row, n_known // 2]) / 2
    usual: Floats = np.fmax(median, np.where(is_known[:, 0], traded_value[at[:, 0]], np.nan))
    return usual
