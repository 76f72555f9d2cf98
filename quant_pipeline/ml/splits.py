"""Walk-forward folds: whole sessions in time order, purged by each row's own label."""

from dataclasses import dataclass

import numpy as np

from quant_pipeline.errors import NotEnoughHistory
from quant_pipeline.settings import FoldSettings


@dataclass(frozen=True)
class Fold:
    """First and last session of the three windows of one fold, purged sessions included.

    ``fold`` counts from 1, oldest first.
    """

    fold: int
    train_start: np.datetime64
    train_end: np.datetime64
    stop_start: np.datetime64
    stop_end: np.datetime64
    test_start: np.datetime64
    test_end: np.datetime64


@dataclass(frozen=True, eq=False)
class FoldRows:
    """Row positions of one fold, ascending int64, and how many rows purge and embargo left out."""

    train: np.ndarray
    stop: np.ndarray
    test: np.ndarray
    n_purged: int


def make_folds(sessions: np.ndarray, spec: FoldSettings, label_span: int) -> list[Fold]:
    """Cut sessions into train / early-stop / test windows, oldest fold first.

    ``sessions`` are the sessions that have examples: datetime64[D], each once, oldest first.
    Test windows are the last ``n_folds * test_sessions`` sessions; they touch and never overlap.
    Every fold trains from the first session on.

    A label of session ``t`` is known ``label_span`` sessions later, so `fold_rows` drops the last
    ``label_span`` sessions of a train and of a stop window: that is the purge. Windows are made
    that much longer, so ``stop_sessions`` and ``min_train_sessions`` are what is left after it.
    ``embargo_sessions`` more sessions belong to no window, before each stop and test window.

    Raises NotEnoughHistory with every number involved if the folds do not fit.

    >>> days = np.arange("2024-01-01", "2024-02-25", dtype="datetime64[D]")
    >>> spec = FoldSettings(n_folds=2, min_train_sessions=20, stop_sessions=5, test_sessions=10)
    >>> for fold in make_folds(days, spec, label_span=2):
    ...     print(fold.train_end, fold.stop_start, fold.stop_end, fold.test_start, fold.test_end)
    2024-01-28 2024-01-29 2024-02-04 2024-02-05 2024-02-14
    2024-02-07 2024-02-08 2024-02-14 2024-02-15 2024-02-24
    """
    sessions = np.asarray(sessions, dtype="datetime64[D]")
    if np.isnat(sessions).any() or not (sessions[1:] > sessions[:-1]).all():
        raise ValueError("sessions must be sorted, each once, without NaT")
    if label_span < 1:
        raise ValueError(f"label_span is {label_span}; a label is known after its own session")
    _require_room(sessions, spec, label_span)
    folds = []
    for fold in range(1, spec.n_folds + 1):
        test = len(sessions) - (spec.n_folds - fold + 1) * spec.test_sessions
        stop_end = test - 1 - spec.embargo_sessions
        stop = stop_end + 1 - spec.stop_sessions - label_span
        train_end = stop - 1 - spec.embargo_sessions
        bounds = (0, train_end, stop, stop_end, test, test + spec.test_sessions - 1)
        folds.append(Fold(fold, *(sessions[position] for position in bounds)))
    return folds


def _require_room(sessions: np.ndarray, spec: FoldSettings, label_span: int) -> None:
    gap = label_span + spec.embargo_sessions
    tests = spec.n_folds * spec.test_sessions
    needed = spec.min_train_sessions + spec.stop_sessions + 2 * gap + tests
    if len(sessions) >= needed:
        return
    known = f"{len(sessions)} have known labels"
    if len(sessions):
        known += f" ({sessions[0]} to {sessions[-1]})"
    raise NotEnoughHistory(
        f"Folds need {needed} sessions (train {spec.min_train_sessions} + purge {label_span} + "
        f"embargo {spec.embargo_sessions} + stop {spec.stop_sessions} + purge {label_span} + "
        f"embargo {spec.embargo_sessions} + tests {spec.n_folds} x {spec.test_sessions}), "
        f"but {known}. Ingest more history, or lower folds.min_train_sessions or folds.n_folds."
    )


def fold_rows(fold: Fold, ts: np.ndarray, known_at: np.ndarray) -> FoldRows:
    """Row positions of a fold's windows, purged by each row's own ``known_at``.

    A train or stop row stays only if its label was known by the last session of its own window,
    hence before the next window (and the embargo before it) begins. Test rows all stay. Works for
    labels of any length and for rows in any order; ``n_purged`` counts the rows between
    ``train_start`` and ``test_end`` that no window keeps.

    Raises NotEnoughHistory if a window keeps no row.
    """
    in_train = (ts >= fold.train_start) & (ts <= fold.train_end)
    in_stop = (ts >= fold.stop_start) & (ts <= fold.stop_end)
    in_test = (ts >= fold.test_start) & (ts <= fold.test_end)
    train = np.flatnonzero(in_train & (known_at <= fold.train_end))
    stop = np.flatnonzero(in_stop & (known_at <= fold.stop_end))
    test = np.flatnonzero(in_test)
    _require_rows(fold, "train", train, in_train, fold.train_start, fold.train_end)
    _require_rows(fold, "stop", stop, in_stop, fold.stop_start, fold.stop_end)
    _require_rows(fold, "test", test, in_test, fold.test_start, fold.test_end)
    n_between = np.count_nonzero((ts >= fold.train_start) & (ts <= fold.test_end))
    return FoldRows(train, stop, test, int(n_between - len(train) - len(stop) - len(test)))


def _require_rows(
    fold: Fold,
    window: str,
    kept: np.ndarray,
    inside: np.ndarray,
    start: np.datetime64,
    end: np.datetime64,
) -> None:
    if len(kept):
        return
    n_inside = int(np.count_nonzero(inside))
    raise NotEnoughHistory(
        f"The {window} window of fold {fold.fold} ({start} to {end}) keeps no row: it has "
        f"{n_inside}, and {n_inside} have labels that became known only after {end}. "
        f"Ingest more history or lengthen folds.{_SETTING[window]}."
    )


_SETTING = {"train": "min_train_sessions", "stop": "stop_sessions", "test": "test_sessions"}


def find_overlaps(fold: Fold, ts: np.ndarray, known_at: np.ndarray, rows: FoldRows) -> int:
    """Number of offending pairs of a fold; 0 proves that no window saw a later one.

    Counted without the rule that `fold_rows` uses: pairs of a row and a session of a later window
    on or before the row's label, rows that two windows share, and rows outside their window.
    """
    windows = (
        (rows.train, fold.train_start, fold.train_end),
        (rows.stop, fold.stop_start, fold.stop_end),
        (rows.test, fold.test_start, fold.test_end),
    )
    n_offending = 0
    for position, (earlier, start, end) in enumerate(windows):
        n_offending += int(np.count_nonzero((ts[earlier] < start) | (ts[earlier] > end)))
        last_seen = np.sort(np.maximum(ts[earlier], known_at[earlier]))
        for later, later_start, _ in windows[position + 1 :]:
            sessions = np.union1d(ts[later], [later_start])
            n_seen = len(last_seen) - np.searchsorted(last_seen, sessions, side="left")
            n_offending += int(n_seen.sum()) + len(np.intersect1d(earlier, later))
    return n_offending
