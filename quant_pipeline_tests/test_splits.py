"""Folds: windows that tile time, and no label that meets another window."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.errors import NotEnoughHistory
from quant_pipeline.ml.splits import (
    Block,
    find_overlaps,
    fold_rows,
    make_folds,
    purge,
    required_sessions,
)
from quant_pipeline.settings import FoldSettings
from quant_pipeline_tests.folds_oracle import (
    ANY,
    DAY,
    FEW_FOLDS,
    SEEDS,
    calendar,
    irregular_rows,
    kept_by_hand,
    one_block_fold,
    regular_rows,
)

pytestmark = pytest.mark.filterwarnings("error")


@settings(deadline=None)
@given(FEW_FOLDS, st.integers(1, 20), st.integers(0, 30))
def test_test_windows_touch_never_overlap_and_end_with_the_last_session(spec, span, extra):
    sessions = calendar(required_sessions(spec, span) + extra)
    folds = make_folds(sessions, spec, span)
    position = {day: i for i, day in enumerate(sessions)}
    assert [fold.fold for fold in folds] == list(range(1, spec.n_folds + 1))
    assert folds[-1].test[0].end == sessions[-1]
    for fold in folds:
        assert position[fold.test[0].end] - position[fold.test[0].start] + 1 == spec.test_sessions
    for earlier, later in pairwise(folds):
        assert position[later.test[0].start] == position[earlier.test[0].end] + 1


@settings(deadline=None)
@given(FEW_FOLDS, st.integers(1, 20), st.integers(0, 30))
def test_windows_come_in_time_order_with_the_embargo_between(spec, span, extra):
    sessions = calendar(required_sessions(spec, span) + extra)
    position = {day: i for i, day in enumerate(sessions)}
    for fold in make_folds(sessions, spec, span):
        assert fold.train[0].start <= fold.train[0].end < fold.stop[0].start <= fold.stop[0].end
        for end, start in (
            (fold.train[0].end, fold.stop[0].start),
            (fold.stop[0].end, fold.test[0].start),
        ):
            assert position[start] - position[end] == spec.embargo_sessions + 1


@settings(deadline=None)
@given(FEW_FOLDS, st.integers(1, 20), st.integers(0, 30))
def test_purged_windows_keep_the_sessions_that_the_settings_ask_for(spec, span, extra):
    ts, known_at = regular_rows(required_sessions(spec, span) + extra, span)
    folds = make_folds(np.unique(ts), spec, span)
    kept = [fold_rows(fold, ts, known_at) for fold in folds]
    n_train = [len(np.unique(ts[rows.train])) for rows in kept]
    assert n_train[0] == spec.min_train_sessions + extra
    assert all(len(np.unique(ts[rows.stop])) == spec.stop_sessions for rows in kept)
    assert all(len(np.unique(ts[rows.test])) == spec.test_sessions for rows in kept)
    assert np.all(np.diff(n_train) == (spec.test_sessions if spec.window == "expanding" else 0))
    gap = 2 * (span + spec.embargo_sessions)
    assert all(rows.n_purged == 2 * gap for rows in kept)


@settings(deadline=None)
@given(ANY, st.integers(1, 20))
def test_one_session_too_few_is_an_error_with_every_number(spec, span):
    needed = required_sessions(spec, span)
    with pytest.raises(NotEnoughHistory) as caught:
        make_folds(calendar(needed - 1), spec, span)
    numbers = (needed, needed - 1, spec.min_train_sessions, span, spec.embargo_sessions)
    own = (spec.n_groups, spec.n_test_groups)
    if spec.protocol == "walk_forward":
        own = (spec.n_folds, spec.test_sessions)
    for number in (*numbers, *own, spec.stop_sessions):
        assert str(number) in str(caught.value)


@settings(deadline=None)
@given(FEW_FOLDS, st.integers(1, 20), st.integers(0, 30))
def test_every_fold_trains_from_the_first_session_or_on_as_many_as_the_first_one(spec, span, extra):
    sessions = calendar(required_sessions(spec, span) + extra)
    position = {day: i for i, day in enumerate(sessions)}
    folds = make_folds(sessions, spec, span)
    starts = [position[fold.train[0].start] for fold in folds]
    sizes = [
        position[fold.train[0].end] + 1 - start for fold, start in zip(folds, starts, strict=True)
    ]
    if spec.window == "expanding":
        assert set(starts) == {0}
    else:
        assert starts == [number * spec.test_sessions for number in range(spec.n_folds)]
        assert set(sizes) == {spec.min_train_sessions + extra + span}
    other = spec.model_copy(update={"window": "expanding"})
    for fold, expanding in zip(folds, make_folds(sessions, other, span), strict=True):
        assert (fold.stop, fold.test) == (expanding.stop, expanding.test)
        assert fold.train[0].end == expanding.train[0].end


@settings(deadline=None)
@given(ANY, st.integers(1, 10), st.integers(0, 10), SEEDS)
def test_no_label_interval_meets_another_window_however_irregular_the_labels(
    spec, span, extra, seed
):
    ts, known_at = irregular_rows(required_sessions(spec, span) + extra, span, seed)
    for fold in make_folds(np.unique(ts), spec, span):
        try:
            rows = fold_rows(fold, ts, known_at)
        except NotEnoughHistory:
            continue
        for one, other, blocks in (
            (rows.train, rows.stop, fold.stop),
            (rows.train, rows.test, fold.test),
            (rows.stop, rows.test, fold.test),
        ):
            begins, ends = ts[one][:, None], known_at[one][:, None]
            assert not ((begins <= known_at[other]) & (ts[other] <= ends)).any()
            for block in blocks:
                assert not ((begins <= block.end) & (block.start <= ends)).any()
        assert find_overlaps(fold, ts, known_at, rows) == 0
        for positions in (rows.train, rows.stop, rows.test):
            assert positions.dtype == np.int64
            assert np.all(np.diff(positions) > 0)


@settings(deadline=None, max_examples=30)
@given(ANY, st.integers(1, 6), SEEDS)
def test_rows_are_those_that_a_loop_over_all_pairs_keeps(spec, span, seed):
    ts, known_at = irregular_rows(required_sessions(spec, span), span, seed)
    for fold in make_folds(np.unique(ts), spec, span)[:6]:
        expected = kept_by_hand(fold, ts, known_at)
        if not all(expected):
            with pytest.raises(NotEnoughHistory, match=f"fold {fold.fold} "):
                fold_rows(fold, ts, known_at)
            continue
        rows = fold_rows(fold, ts, known_at)
        assert (rows.train.tolist(), rows.stop.tolist(), rows.test.tolist()) == expected
        blocks = fold.train + fold.stop + fold.test
        first, last = min(b.start for b in blocks), max(b.end for b in blocks)
        n_between = sum(first <= day <= last for day in ts)
        assert rows.n_purged == n_between - sum(map(len, expected))


@settings(deadline=None)
@given(ANY, st.integers(1, 6), SEEDS)
def test_row_order_changes_nothing(spec, span, seed):
    ts, known_at = regular_rows(required_sessions(spec, span) + 3, span)
    order = np.random.default_rng(seed).permutation(len(ts))
    for fold in make_folds(np.unique(ts), spec, span):
        rows, shuffled = fold_rows(fold, ts, known_at), fold_rows(fold, ts[order], known_at[order])
        assert shuffled.n_purged == rows.n_purged
        for window in ("train", "stop", "test"):
            found = np.sort(order[getattr(shuffled, window)])
            np.testing.assert_array_equal(found, getattr(rows, window))


@settings(deadline=None)
@given(ANY, st.integers(1, 10), st.integers(0, 30))
def test_windows_of_a_fold_share_no_session_and_lie_within_the_sessions(spec, span, extra):
    sessions = calendar(required_sessions(spec, span) + extra)
    for fold in make_folds(sessions, spec, span):
        times = np.zeros(len(sessions), dtype=int)
        for window in (fold.train, fold.stop, fold.test):
            assert list(window) == sorted(window)
            for block in window:
                assert {block.start, block.end} <= set(sessions)
                times += (sessions >= block.start) & (sessions <= block.end)
        assert times.max() == 1
        if not spec.embargo_sessions and spec.protocol == "cpcv":
            assert times.min() == 1


@settings(deadline=None)
@given(ANY, st.integers(1, 10), st.integers(0, 30))
def test_windows_keep_the_sessions_that_the_settings_ask_for(spec, span, extra):
    needed = required_sessions(spec, span)
    ts, known_at = regular_rows(needed + extra, span, per_session=1)
    kept = [fold_rows(fold, ts, known_at) for fold in make_folds(ts, spec, span)]
    fewest = min(len(rows.train) for rows in kept)
    assert fewest >= spec.min_train_sessions
    assert extra or fewest == spec.min_train_sessions or spec.protocol == "cpcv"
    assert {len(rows.stop) for rows in kept} == {spec.stop_sessions}


@settings(deadline=None)
@given(ANY, st.integers(1, 20), st.integers(0, 30))
def test_folds_fit_from_the_required_sessions_on_and_never_below(spec, span, extra):
    needed = required_sessions(spec, span)
    assert make_folds(calendar(needed + extra), spec, span)
    for n in (needed - 1, max(needed - 1 - extra, 0)):
        with pytest.raises(NotEnoughHistory, match=rf"need {needed} sessions .*{n} have known"):
            make_folds(calendar(n), spec, span)


@settings(deadline=None)
@given(st.integers(1, 10), st.integers(0, 40))
def test_without_embargo_only_rows_known_too_late_are_purged(span, extra):
    spec = FoldSettings(n_folds=2, min_train_sessions=20, stop_sessions=5, test_sessions=5)
    ts, known_at = regular_rows(required_sessions(spec, span) + extra, span)
    for fold in make_folds(np.unique(ts), spec, span):
        rows = fold_rows(fold, ts, known_at)
        train = np.flatnonzero((ts < fold.stop[0].start) & (known_at < fold.stop[0].start))
        stop = (
            (ts >= fold.stop[0].start) & (ts < fold.test[0].start) & (known_at < fold.test[0].start)
        )
        np.testing.assert_array_equal(rows.train, train)
        np.testing.assert_array_equal(rows.stop, np.flatnonzero(stop))


def test_ten_daily_events_with_two_day_labels_leave_days_one_to_three():
    rows = fold_rows(one_block_fold(1, *DAY[[0, 4, 5, 7, 8, 9]]), DAY, DAY + 2)
    assert rows.train.tolist() == [0, 1, 2]
    assert rows.stop.tolist() == [5]
    assert rows.test.tolist() == [8, 9]
    assert rows.n_purged == 4
    halves = (Block(DAY[0], DAY[4]),), (Block(DAY[5], DAY[9]),)
    assert purge(*halves, np.arange(5, 10), DAY, DAY + 2).tolist() == [0, 1, 2]
    assert purge(*halves[::-1], np.arange(5), DAY, DAY + 2).tolist() == [7, 8, 9]


def test_the_shipped_defaults_fit_534_sessions_and_say_their_dates():
    sessions = np.busday_offset("2015-01-01", np.arange(534), roll="forward")
    folds = make_folds(sessions, FoldSettings(), label_span=6)
    assert [(str(fold.test[0].start), str(fold.test[0].end)) for fold in folds] == [
        ("2016-05-11", "2016-08-02"),
        ("2016-08-03", "2016-10-25"),
        ("2016-10-26", "2017-01-17"),
    ]


@pytest.mark.parametrize(
    ("window", "setting"),
    [("train", "min_train_sessions"), ("stop", "stop_sessions"), ("test", "test_sessions")],
)
def test_a_window_left_empty_is_an_error_that_names_it(window, setting):
    day = DAY
    bounds = {"train": (0, 4), "stop": (5, 7), "test": (8, 9)}
    fold = one_block_fold(2, *(day[i] for pair in bounds.values() for i in pair))
    known_at = day + 1
    start, end = bounds[window]
    if window == "test":
        day, known_at = day[:start], known_at[:start]
    else:
        known_at[start : end + 1] = np.datetime64("2024-03-01")
    with pytest.raises(NotEnoughHistory, match=rf"{window} window of fold 2 .*{setting}"):
        fold_rows(fold, day, known_at)


def test_a_label_that_spans_a_whole_test_block_trains_nothing():
    day = np.arange("2024-01-01", "2024-01-21", dtype="datetime64[D]")
    own = (Block(day[0], day[6]), Block(day[10], day[19]))
    others = (Block(day[7], day[9]),)
    known_at = day + 1
    known_at[3] = day[15]  # over the test block
    known_at[8] = day[16]  # of a test row
    test = np.array([7, 8, 9])
    assert purge(own, others, test, day, known_at).tolist() == [0, 1, 2, 4, 5, 17, 18, 19]


def test_a_label_span_below_one_session_is_refused():
    with pytest.raises(ValueError, match="label_span is 0"):
        required_sessions(FoldSettings(), 0)


@pytest.mark.parametrize("days", [["2024-01-02", "2024-01-01"], ["2024-01-01"] * 2, ["NaT"]])
def test_sessions_that_are_not_a_sorted_set_are_refused(days):
    with pytest.raises(ValueError, match="sorted"):
        make_folds(np.array(days, dtype="datetime64[D]"), FoldSettings(), 6)


def test_no_session_at_all_is_not_enough_history():
    with pytest.raises(NotEnoughHistory, match="0 have known labels"):
        make_folds(np.array([], dtype="datetime64[D]"), FoldSettings(), 6)


@pytest.mark.parametrize("protocol", ["walk_forward", "cpcv"])
def test_folds_leave_their_inputs_unchanged(protocol):
    ts, known_at = regular_rows(600, span=6)
    sessions = np.unique(ts)
    for values in (ts, known_at, sessions):
        values.flags.writeable = False
    for fold in make_folds(sessions, FoldSettings(protocol=protocol), 6):
        assert find_overlaps(fold, ts, known_at, fold_rows(fold, ts, known_at)) == 0
