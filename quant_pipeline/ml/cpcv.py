"""Combinatorial purged cross-validation, in positions of sessions (Lopez de Prado 2018, ch. 12).

Sessions are cut into groups; each combination of some groups is tested once by a fold that trains
on the others. A span is (first, last) position, both included.
"""

from bisect import bisect_left
from functools import lru_cache
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

Span = tuple[int, int]


class Layout(NamedTuple):
    """Spans of the windows of one fold, oldest first, purged sessions included."""

    train: tuple[Span, ...]
    stop: tuple[Span, ...]
    test: tuple[Span, ...]


def group_starts(n_sessions: int, n_groups: int) -> np.ndarray:
    """First position of each group, and at last ``n_sessions``; the first groups get the surplus.

    >>> group_starts(11, 3).tolist()
    [0, 4, 8, 11]
    """
    size, surplus = divmod(n_sessions, n_groups)
    number = np.arange(n_groups + 1)
    return number * size + np.minimum(number, surplus)


def fold_groups(n_groups: int, n_test_groups: int) -> list[tuple[int, ...]]:
    """The groups that each fold tests, counted from 0, in lexicographic order of folds.

    >>> fold_groups(3, 2)
    [(0, 1), (0, 2), (1, 2)]
    """
    if not 1 <= n_test_groups < n_groups:
        raise ValueError(f"{n_test_groups} of {n_groups} groups cannot be tested by a fold")
    return list(combinations(range(n_groups), n_test_groups))


def paths(n_groups: int, n_test_groups: int) -> np.ndarray:
    """Which fold, counted from 1, tests each group in each path: paths x groups.

    Every path has each group once, every pair of a fold and a group that it tests is in one path.
    A path takes a group's folds in turn, so there are n_test_groups / n_groups * n_folds paths.

    >>> paths(3, 2).tolist()
    [[1, 1, 2], [2, 3, 3]]
    """
    folds_of: list[list[int]] = [[] for _ in range(n_groups)]
    for fold, tested in enumerate(fold_groups(n_groups, n_test_groups), 1):
        for group in tested:
            folds_of[group].append(fold)
    return np.array(folds_of, dtype=np.int64).T.copy()


def make_layout(
    starts: np.ndarray, tested: tuple[int, ...], label_span: int, embargo: int, n_stop: int
) -> Layout:
    """Windows of the fold that tests these groups, of those that `group_starts` cut.

    Adjacent tested groups are one span. What is left between them trains; with an embargo, only
    from ``label_span + embargo`` sessions after a test span on, so the embargo counts from where
    the purge ends. The stop window ends the newest stretch that keeps ``n_stop`` sessions once
    the labels beside its tests are purged: its last ``n_stop``, and ``label_span`` more if a test
    span follows, whose purge takes those. Newer stretches are too short for it and train, as do
    the sessions before it. No stop window if ``n_stop`` is 0.

    Raises ValueError if no stretch is long enough.

    >>> make_layout(group_starts(40, 4), (1,), label_span=2, embargo=0, n_stop=5)
    Layout(train=((0, 9), (20, 34)), stop=((35, 39),), test=((10, 19),))
    >>> make_layout(group_starts(40, 4), (0, 3), label_span=2, embargo=3, n_stop=5)
    Layout(train=((15, 22),), stop=((23, 29),), test=((0, 9), (30, 39)))
    """
    test: list[Span] = []
    for group in tested:
        first, last = int(starts[group]), int(starts[group + 1]) - 1
        if test and test[-1][1] == first - 1:
            first, _ = test.pop()
        test.append((first, last))
    edges = [(-1, -1), *test, (int(starts[-1]), int(starts[-1]))]
    train: list[Span] = []
    stop: tuple[Span, ...] = ()
    for (_, before), (after, _) in reversed(list(pairwise(edges))):
        first, last = before + 1, after - 1
        head = label_span + embargo if before >= 0 else 0
        tail = label_span if after < starts[-1] else 0
        stop_first = last - tail - n_stop + 1
        if n_stop and not stop and stop_first >= first + head:
            stop, last = ((stop_first, last),), stop_first - 1
        if embargo:
            first += head
        if first <= last:
            train.append((first, last))
    if n_stop and not stop:
        raise ValueError(
            f"No stretch beside the tested groups {tested} of {starts[-1]} sessions in "
            f"{len(starts) - 1} groups keeps {n_stop} sessions to stop on after a purge of "
            f"{label_span} and an embargo of {embargo}"
        )
    return Layout(tuple(reversed(train)), stop, tuple(test))


@lru_cache(maxsize=64)
def needed_sessions(
    n_groups: int, n_test_groups: int, label_span: int, embargo: int, n_stop: int, n_train: int
) -> int:
    """Fewest sessions from which every fold has its stop window and ``n_train`` sessions to train.

    Both counted after purge and embargo. More sessions are always enough, too.
    """
    tested = np.array(fold_groups(n_groups, n_test_groups))
    is_test = np.zeros((n_groups + 1, len(tested)), dtype=bool)
    is_test[tested.T, np.arange(len(tested))] = True
    is_test[n_groups] = True  # the end of the sessions ends a stretch, too

    def fits(n_sessions: int) -> bool:
        sizes = np.diff(group_starts(n_sessions, n_groups))
        return _fewest_train(sizes, is_test, label_span, embargo, n_stop) >= n_train

    surely = n_groups * (n_train + n_stop + 3 * label_span + embargo)
    return bisect_left(range(surely), True, key=fits)


def _fewest_train(
    sizes: np.ndarray, is_test: np.ndarray, label_span: int, embargo: int, n_stop: int
) -> int:
    """Sessions that the fold with the fewest of them trains on; -1 if one cannot stop anywhere.

    ``is_test`` is groups (and one more, the end) x folds. The stop window costs a fold its
    ``n_stop`` sessions and those before it that its own purge finds.
    """
    stretch, kept_to_stop, total = np.zeros((3, is_test.shape[1]), dtype=np.int64)
    has_test_before = np.zeros(is_test.shape[1], dtype=bool)
    for group, size in enumerate(sizes):
        stretch = np.where(is_test[group], 0, stretch + size)
        purged = np.where(has_test_before, label_span + embargo, 0)
        if group < len(sizes) - 1:
            purged += label_span
        kept = np.where(is_test[group + 1], np.maximum(stretch - purged, 0), 0)
        total += kept
        kept_to_stop = np.where(kept >= n_stop, kept, kept_to_stop)
        has_test_before |= is_test[group]
    trained = total - np.minimum(kept_to_stop, n_stop + label_span)
    return int(np.where(kept_to_stop >= n_stop, trained, -1).min())
