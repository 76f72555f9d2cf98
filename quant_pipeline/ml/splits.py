"""Folds: whole sessions in windows, purged by each row's own label."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from quant_pipeline.errors import NotEnoughHistory
from quant_pipeline.ml.cpcv import (
    Layout,
    Span,
    fold_groups,
    group_starts,
    make_layout,
    needed_sessions,
)
from quant_pipeline.settings import FoldSettings


class Block(NamedTuple):
    """Consecutive sessions, first and last one included."""

    start: np.datetime64
    end: np.datetime64


@dataclass(frozen=True)
class Fold:
    """The sessions of the three windows of one fold, oldest block first, purged ones included.

    ``fold`` counts from 1: oldest first (walk-forward), or combinations in lexicographic order.
    """

    fold: int
    train: tuple[Block, ...]
    stop: tuple[Block, ...]
    test: tuple[Block, ...]


@dataclass(frozen=True, eq=False)
class FoldRows:
    """Row positions of one fold, ascending int64, and how many rows purge and embargo left out."""

    train: np.ndarray
    stop: np.ndarray
    test: np.ndarray
    n_purged: int


def make_folds(sessions: np.ndarray, spec: FoldSettings, label_span: int) -> list[Fold]:
    """Cut sessions into train / early-stop / test windows, one fold after the other.

    ``sessions`` are the sessions that have examples: datetime64[D], each once, oldest first.
    A label of session ``t`` is known ``label_span`` sessions later, so `fold_rows` drops the
    sessions beside another window whose labels meet it: that is the purge. Windows are made that
    much longer, so ``stop_sessions`` and ``min_train_sessions`` are what is left after it.

    Protocol "walk_forward": windows in time order, test windows are the last
    ``n_folds * test_sessions`` sessions; they touch and never overlap. Every fold trains from the
    first session on ("expanding"), or on as many sessions as the first fold, so later ones drop
    the oldest ("rolling"). ``embargo_sessions`` more sessions belong to no window, before each
    stop and test window.

    Protocol "cpcv": ``n_groups`` groups of consecutive sessions, as equal as possible, the oldest
    with the surplus, and a fold for each combination of ``n_test_groups`` of them to test on. The
    rest trains, on both sides of a test, but for the stop window, which is the end of the newest
    stretch between tests that keeps ``stop_sessions`` after the purge (`cpcv.make_layout`). After
    a test, ``embargo_sessions`` more sessions than the purge takes are in no window.

    Raises NotEnoughHistory with every number involved below `required_sessions`.

    >>> days = np.arange("2024-01-01", "2024-02-25", dtype="datetime64[D]")
    >>> spec = FoldSettings(n_folds=2, min_train_sessions=20, stop_sessions=5, test_sessions=10)
    >>> for fold in make_folds(days, spec, label_span=2):
    ...     print(*(f"{block.start}..{block.end}" for block in fold.train + fold.stop + fold.test))
    2024-01-01..2024-01-28 2024-01-29..2024-02-04 2024-02-05..2024-02-14
    2024-01-01..2024-02-07 2024-02-08..2024-02-14 2024-02-15..2024-02-24

    >>> values = {"n_groups": 3, "n_test_groups": 1, "stop_sessions": 5, "min_train_sessions": 20}
    >>> for fold in make_folds(days, FoldSettings(protocol="cpcv", **values), label_span=2):
    ...     print(*(f"{block.start}..{block.end}" for block in fold.train), end=" | ")
    ...     print(*(f"{block.start}..{block.end}" for block in fold.stop + fold.test))
    2024-01-20..2024-02-19 | 2024-02-20..2024-02-24 2024-01-01..2024-01-19
    2024-01-01..2024-01-19 2024-02-07..2024-02-19 | 2024-02-20..2024-02-24 2024-01-20..2024-02-06
    2024-01-01..2024-01-30 | 2024-01-31..2024-02-06 2024-02-07..2024-02-24
    """
    sessions = np.asarray(sessions, dtype="datetime64[D]")
    if np.isnat(sessions).any() or not (sessions[1:] > sessions[:-1]).all():
        raise ValueError("sessions must be sorted, each once, without NaT")
    _require_room(sessions, spec, label_span)
    cut = _combine if spec.protocol == "cpcv" else _walk_forward
    layouts = cut(len(sessions), spec, label_span)
    return [
        Fold(number, *(tuple(_block(sessions, span) for span in window) for window in layout))
        for number, layout in enumerate(layouts, 1)
    ]


def required_sessions(spec: FoldSettings, label_span: int) -> int:
    """How many sessions with known labels the folds need at least; more are enough, too.

    Walk-forward: the windows of the first fold, and the other tests. Combinatorial: so many that
    the fold with the fewest training sessions has ``min_train_sessions`` after purge and embargo.

    >>> required_sessions(FoldSettings(), label_span=6)
    492
    """
    if label_span < 1:
        raise ValueError(f"label_span is {label_span}; a label is known after its own session")
    if spec.protocol == "cpcv":
        return needed_sessions(
            spec.n_groups,
            spec.n_test_groups,
            label_span,
            spec.embargo_sessions,
            spec.stop_sessions,
            spec.min_train_sessions,
        )
    gap = label_span + spec.embargo_sessions
    tests = spec.n_folds * spec.test_sessions
    return spec.min_train_sessions + spec.stop_sessions + 2 * gap + tests


def _walk_forward(n_sessions: int, spec: FoldSettings, label_span: int) -> list[Layout]:
    layouts = []
    for number in range(spec.n_folds):
        test = n_sessions - (spec.n_folds - number) * spec.test_sessions
        stop_end = test - 1 - spec.embargo_sessions
        stop = stop_end + 1 - spec.stop_sessions - label_span
        train_end = stop - 1 - spec.embargo_sessions
        train = number * spec.test_sessions if spec.window == "rolling" else 0
        spans = (train, train_end), (stop, stop_end), (test, test + spec.test_sessions - 1)
        layouts.append(Layout(*((span,) for span in spans)))
    return layouts


def _combine(n_sessions: int, spec: FoldSettings, label_span: int) -> list[Layout]:
    starts = group_starts(n_sessions, spec.n_groups)
    return [
        make_layout(starts, tested, label_span, spec.embargo_sessions, spec.stop_sessions)
        for tested in fold_groups(spec.n_groups, spec.n_test_groups)
    ]


def _block(sessions: np.ndarray, span: Span) -> Block:
    return Block(sessions[span[0]], sessions[span[1]])


def _require_room(sessions: np.ndarray, spec: FoldSettings, label_span: int) -> None:
    needed = required_sessions(spec, label_span)
    if len(sessions) >= needed:
        return
    known = f"{len(sessions)} have known labels"
    if len(sessions):
        known += f" ({sessions[0]} to {sessions[-1]})"
    if spec.protocol == "cpcv":
        parts = (
            f"{spec.n_groups} groups of which {spec.n_test_groups} are tested, and beside them "
            f"train {spec.min_train_sessions} + stop {spec.stop_sessions} after a purge of "
            f"{label_span} and an embargo of {spec.embargo_sessions}"
        )
        mend = "folds.min_train_sessions or folds.n_test_groups"
    else:
        parts = (
            f"train {spec.min_train_sessions} + purge {label_span} + embargo "
            f"{spec.embargo_sessions} + stop {spec.stop_sessions} + purge {label_span} + "
            f"embargo {spec.embargo_sessions} + tests {spec.n_folds} x {spec.test_sessions}"
        )
        mend = "folds.min_train_sessions or folds.n_folds"
    raise NotEnoughHistory(
        f"Folds need {needed} sessions ({parts}), but {known}. "
        f"Ingest more history, or lower {mend}."
    )


def fold_rows(fold: Fold, ts: np.ndarray, known_at: np.ndarray) -> FoldRows:
    """Row positions of a fold's windows, purged by each row's own ``known_at``.

    Test rows all stay. Stop rows stay where `purge` finds nothing of the test window, train rows
    where it finds nothing of the stop and test windows. Works for labels of any length and for
    rows in any order; ``n_purged`` counts the rows between the first and the last session of the
    fold that no window keeps.

    Raises NotEnoughHistory if a window keeps no row.
    """
    test = np.flatnonzero(_lies_in(fold.test, ts))
    stop = purge(fold.stop, fold.test, test, ts, known_at)
    others, other_rows = (*fold.stop, *fold.test), np.concatenate([stop, test])
    train = purge(fold.train, others, other_rows, ts, known_at)
    for window, kept in (("train", train), ("stop", stop), ("test", test)):
        _require_rows(fold, window, kept, ts)
    blocks = fold.train + others
    first, last = min(block.start for block in blocks), max(block.end for block in blocks)
    n_between = int(np.count_nonzero((ts >= first) & (ts <= last)))
    return FoldRows(train, stop, test, n_between - len(train) - len(stop) - len(test))


def purge(
    own: tuple[Block, ...],
    others: tuple[Block, ...],
    other_rows: np.ndarray,
    ts: np.ndarray,
    known_at: np.ndarray,
) -> np.ndarray:
    """Positions of the rows in own blocks whose label interval meets nothing of other windows.

    A row's interval is [ts, known_at]. It must be known by the last own session before the next
    of the other blocks, hence before that block and an embargo before it begin, and come after
    ``known_at`` of all other rows before its own block.
    """
    stays = np.zeros(len(ts), dtype=bool)
    for block in own:
        here = _lies_in((block,), ts)
        later = [other.start for other in others if other.start > block.end]
        if later:
            last = max(mine.end for mine in own if mine.end < min(later))
            here &= known_at <= last
        earlier = known_at[other_rows[ts[other_rows] < block.start]]
        if len(earlier):
            here &= ts > earlier.max()
        stays |= here
    return np.flatnonzero(stays)


def _lies_in(blocks: tuple[Block, ...], ts: np.ndarray) -> np.ndarray:
    inside = np.zeros(len(ts), dtype=bool)
    for block in blocks:
        inside |= (ts >= block.start) & (ts <= block.end)
    return inside


_SETTING = {"train": "min_train_sessions", "stop": "stop_sessions", "test": "test_sessions"}


def _require_rows(fold: Fold, window: str, kept: np.ndarray, ts: np.ndarray) -> None:
    if len(kept):
        return
    blocks = getattr(fold, window)
    n_inside = int(np.count_nonzero(_lies_in(blocks, ts)))
    where = ", ".join(f"{block.start} to {block.end}" for block in blocks) or "no session"
    raise NotEnoughHistory(
        f"The {window} window of fold {fold.fold} ({where}) keeps no row: it has {n_inside}, and "
        f"the labels of {n_inside} meet another window or its labels. "
        f"Ingest more history or lengthen folds.{_SETTING[window]}."
    )


def find_overlaps(fold: Fold, ts: np.ndarray, known_at: np.ndarray, rows: FoldRows) -> int:
    """Number of offending pairs of a fold; 0 proves that no window saw another one.

    Counted without the rules that `fold_rows` uses: pairs of a row of one window and a session of
    another one in the row's label interval, rows that two windows share, and rows outside their
    window (an embargo is outside all of them). The sessions of a window are those of its rows;
    stop and test windows also have the first one of each of their blocks, with or without rows.
    """
    unit = np.promote_types(ts.dtype, known_at.dtype)
    begins = ts.astype(unit).view(np.int64)  # numpy sorts integers ten times as fast as dates
    ends = np.maximum(known_at.astype(unit).view(np.int64), begins)
    windows = ((rows.train, fold.train), (rows.stop, fold.stop), (rows.test, fold.test))
    n_offending = 0
    for position, (one, blocks) in enumerate(windows):
        n_offending += len(one) - int(np.count_nonzero(_lies_in(blocks, ts[one])))
        is_in_one = np.zeros(len(ts), dtype=bool)
        is_in_one[one] = True
        for other, other_blocks in windows[position + 1 :]:
            starts = np.array([block.start for block in other_blocks], dtype=unit).view(np.int64)
            sessions = np.union1d(begins[other], starts)
            n_offending += _n_met(begins[one], ends[one], sessions)
            n_offending += _n_met(begins[other], ends[other], np.unique(begins[one]))
            n_offending += int(np.count_nonzero(is_in_one[other]))
    return n_offending


def _n_met(begins: np.ndarray, ends: np.ndarray, sessions: np.ndarray) -> int:
    """Pairs of an interval, both ends included, and a session in it."""
    begun = np.searchsorted(np.sort(begins), sessions, side="right")
    over = np.searchsorted(np.sort(ends), sessions, side="left")
    return int((begun - over).sum())
