"""Combinatorial purged cross-validation: groups, paths, spans, and how many sessions it needs."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.ml.cpcv import (
    Layout,
    fold_groups,
    group_starts,
    make_layout,
    needed_sessions,
    paths,
)
from quant_pipeline.ml.splits import Block, make_folds, purge, required_sessions
from quant_pipeline_tests.folds_oracle import COMBINED, calendar

pytestmark = pytest.mark.filterwarnings("error")

GROUPS = st.integers(3, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 2)))


def sessions_of(spans) -> list[int]:
    return [at for first, last in spans for at in range(first, last + 1)]


def kept_by_hand(n, groups, tested, span, embargo, n_stop):
    """Sessions that train and stop, by looking at every session's label [t, t + span]."""
    group_of = [g for g, part in enumerate(np.array_split(np.arange(n), groups)) for _ in part]
    test = [t for t in range(n) if group_of[t] in tested]
    runs_end = [t for t in test if t + 1 not in test]
    free = [t for t in range(n) if t not in test]
    free = [t for t in free if not any(t <= x <= t + span or x <= t <= x + span for x in test)]
    free = [t for t in free if not any(end < t <= end + span + embargo for end in runs_end)]
    for end in [*sorted(runs_end, reverse=True), -1]:  # newest stretch first
        stretch = [t for t in free if t > end and not any(end < x < t for x in test)]
        if len(stretch) >= n_stop and stretch:
            stop = stretch[-n_stop:]
            return [t for t in free if t not in stop and not t < stop[0] <= t + span], stop
    return free, None


@given(st.integers(0, 60), st.integers(1, 12))
def test_groups_are_those_of_array_split(n, n_groups):
    starts = group_starts(n, n_groups).tolist()
    parts = np.array_split(np.arange(n), n_groups)
    assert starts == [0, *np.cumsum([len(part) for part in parts])]


@given(GROUPS)
def test_every_fold_and_group_is_in_one_path_and_every_path_has_each_group_once(n):
    n_groups, n_tested = n
    folds = list(combinations(range(n_groups), n_tested))
    found = paths(n_groups, n_tested)
    assert found.dtype == np.int64
    assert found.shape == (n_tested * math.comb(n_groups, n_tested) // n_groups, n_groups)
    used = [(fold, group) for path in found.tolist() for group, fold in enumerate(path)]
    wanted = [(fold, group) for fold, tested in enumerate(folds, 1) for group in tested]
    assert sorted(used) == wanted


@settings(deadline=None)
@given(COMBINED, st.integers(1, 10), st.integers(0, 30))
def test_every_session_is_tested_once_in_every_path(spec, span, extra):
    sessions = calendar(required_sessions(spec, span) + extra)
    folds = {fold.fold: fold for fold in make_folds(sessions, spec, span)}
    starts = group_starts(len(sessions), spec.n_groups)
    for path in paths(spec.n_groups, spec.n_test_groups):
        for group, number in enumerate(path.tolist()):
            mine = sessions[starts[group] : starts[group + 1]]
            blocks = folds[number].test
            assert sum(b.start <= mine[0] and mine[-1] <= b.end for b in blocks) == 1
        # and by all folds together as often as there are paths
    times = np.zeros(len(sessions), dtype=int)
    for fold in folds.values():
        for block in fold.test:
            times += (sessions >= block.start) & (sessions <= block.end)
    assert set(times) == {len(paths(spec.n_groups, spec.n_test_groups))}


@settings(deadline=None)
@given(COMBINED, st.integers(1, 10))
def test_folds_are_combinations_in_order_and_adjacent_groups_are_one_block(spec, span):
    sessions = calendar(required_sessions(spec, span))
    parts = np.array_split(sessions, spec.n_groups)
    folds = make_folds(sessions, spec, span)
    wanted = list(combinations(range(spec.n_groups), spec.n_test_groups))
    assert [fold.fold for fold in folds] == list(range(1, len(wanted) + 1))
    for fold, tested in zip(folds, wanted, strict=True):
        firsts = [group for group in tested if group - 1 not in tested]
        lasts = [group for group in tested if group + 1 not in tested]
        blocks = [Block(parts[a][0], parts[b][-1]) for a, b in zip(firsts, lasts, strict=True)]
        assert list(fold.test) == blocks


@settings(deadline=None)
@given(
    GROUPS, st.integers(20, 70), st.integers(0, 5), st.integers(0, 5), st.integers(1, 8), st.data()
)
def test_sessions_that_train_and_stop_are_those_that_a_loop_over_labels_keeps(
    groups, n, span, embargo, n_stop, data
):
    tested = data.draw(st.sampled_from(fold_groups(*groups)))
    starts = group_starts(n, groups[0])
    train, stop = kept_by_hand(n, groups[0], tested, span, embargo, n_stop)
    if stop is None:
        with pytest.raises(ValueError, match=f"keeps {n_stop} sessions"):
            make_layout(starts, tested, span, embargo, n_stop)
        return
    layout = make_layout(starts, tested, span, embargo, n_stop)
    day = np.arange(n).astype("datetime64[D]")
    blocks = Layout(*(tuple(Block(day[a], day[b]) for a, b in spans) for spans in layout))
    test = np.array(sessions_of(layout.test))
    kept = purge(blocks.stop, blocks.test, test, day, day + span)
    assert kept.tolist() == stop
    others, other_rows = blocks.stop + blocks.test, np.append(kept, test)
    assert purge(blocks.train, others, other_rows, day, day + span).tolist() == train


@settings(deadline=None, max_examples=50)
@given(
    GROUPS.filter(lambda n: n[0] < 7),
    st.integers(1, 5),
    st.integers(0, 5),
    st.integers(1, 8),
    st.integers(1, 15),
    st.data(),
)
def test_needed_sessions_are_the_fewest_that_a_loop_over_labels_finds(
    groups, span, embargo, n_stop, n_train, data
):
    def fits(n):
        kept = (
            kept_by_hand(n, groups[0], tested, span, embargo, n_stop)
            for tested in fold_groups(*groups)
        )
        return all(stop is not None and len(train) >= n_train for train, stop in kept)

    needed = needed_sessions(*groups, span, embargo, n_stop, n_train)
    assert fits(needed)
    assert not fits(needed - 1)
    assert fits(needed + data.draw(st.integers(1, 12)))
    assert not fits(data.draw(st.integers(1, needed - 1)))


@settings(deadline=None)
@given(COMBINED, st.integers(1, 10), st.integers(0, 30))
def test_after_a_test_block_purge_and_embargo_pass_before_anything_trains_or_stops(
    spec, span, extra
):
    sessions = calendar(required_sessions(spec, span) + extra)
    position = {day: i for i, day in enumerate(sessions)}
    gap = span + spec.embargo_sessions if spec.embargo_sessions else 0
    for fold in make_folds(sessions, spec, span):
        for block in fold.train + fold.stop:
            for test in fold.test:
                assert not 0 < position[block.start] - position[test.end] <= gap


def test_the_stop_window_ends_the_newest_stretch_that_is_long_enough():
    starts = group_starts(60, 6)
    assert make_layout(starts, (1, 4), 2, 0, 5).stop == ((55, 59),)
    # Between two tests and after them 10 sessions keep 8 - 2 and 8: 9 fit in neither.
    assert make_layout(starts, (2, 4), 2, 0, 9).stop == ((9, 19),)
    # The newest stretch may be all stop window and purge, older ones train.
    layout = make_layout(starts, (0, 4), 2, 0, 8)
    assert (layout.train, layout.stop) == (((10, 39), (50, 51)), ((52, 59),))


def test_an_embargo_can_take_a_whole_group():
    layout = make_layout(group_starts(40, 4), (0, 2), label_span=2, embargo=8, n_stop=0)
    assert layout == Layout((), (), ((0, 9), (20, 29)))


def test_twelve_samples_in_three_folds_two_of_them_tested():
    day = np.arange(12).astype("datetime64[D]")

    def train(n_purged: int, n_embargo: int) -> list[list[int]]:
        found = []
        for tested in fold_groups(3, 2):
            layout = make_layout(group_starts(12, 3), tested, n_purged, n_embargo, n_stop=0)
            own, _, test = (tuple(Block(day[a], day[b]) for a, b in spans) for spans in layout)
            rows = np.array(sessions_of(layout.test))
            found.append(purge(own, test, rows, day, day + n_purged).tolist())
        return found

    assert train(0, 0) == [[8, 9, 10, 11], [4, 5, 6, 7], [0, 1, 2, 3]]
    assert train(1, 0) == [[9, 10, 11], [5, 6], [0, 1, 2]]
    assert train(0, 1) == [[9, 10, 11], [5, 6, 7], [0, 1, 2, 3]]


@pytest.mark.parametrize("n_test_groups", [0, 4, 5])
def test_a_fold_that_tests_none_or_all_groups_is_refused(n_test_groups):
    with pytest.raises(ValueError, match=f"{n_test_groups} of 4 groups"):
        paths(4, n_test_groups)
