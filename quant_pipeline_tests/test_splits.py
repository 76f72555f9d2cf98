"""Folds: windows in time order, and no label that reaches a later window."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.errors import NotEnoughHistory
from quant_pipeline.ml.splits import Fold, FoldRows, find_overlaps, fold_rows, make_folds
from quant_pipeline.settings import FoldSettings

pytestmark = pytest.mark.filterwarnings("error")

FEW_FOLDS = st.builds(
    FoldSettings,
    n_folds=st.integers(1, 4),
    min_train_sessions=st.integers(20, 30),
    stop_sessions=st.integers(5, 12),
    test_sessions=st.integers(5, 12),
    embargo_sessions=st.integers(0, 8),
)


def needed_sessions(spec: FoldSettings, span: int) -> int:
    gaps = 2 * (span + spec.embargo_sessions)
    tests = spec.n_folds * spec.test_sessions
    return spec.min_train_sessions + spec.stop_sessions + gaps + tests


def calendar(n: int, seed: int = 0) -> np.ndarray:
    """Market sessions with irregular holes: weekends, holidays, a closed month."""
    steps = np.random.default_rng(seed).choice([1, 1, 1, 1, 3, 4, 30], size=n)
    return np.datetime64("2015-01-01") + np.cumsum(steps).astype("timedelta64[D]")


def regular_rows(n: int, span: int, per_session: int = 2) -> tuple[np.ndarray, np.ndarray]:
    market = calendar(n + span)
    return np.repeat(market[:n], per_session), np.repeat(market[span:], per_session)


@settings(deadline=None)
@given(FEW_FOLDS, st.integers(1, 20), st.integers(0, 30))
def test_test_windows_touch_never_overlap_and_end_with_the_last_session(spec, span, extra):
    sessions = calendar(needed_sessions(spec, span) + extra)
    folds = make_folds(sessions, spec, span)
    position = {day: i for i, day in enumerate(sessions)}
    assert [fold.fold for fold in folds] == list(range(1, spec.n_folds + 1))
    assert folds[-1].test_end == sessions[-1]
    for fold in folds:
        assert position[fold.test_end] - position[fold.test_start] + 1 == spec.test_sessions
    for earlier, later in pairwise(folds):
        assert position[later.test_start] == position[earlier.test_end] + 1


@settings(deadline=None)
@given(FEW_FOLDS, st.integers(1, 20), st.integers(0, 30))
def test_windows_come_in_time_order_with_the_embargo_between(spec, span, extra):
    sessions = calendar(needed_sessions(spec, span) + extra)
    position = {day: i for i, day in enumerate(sessions)}
    for fold in make_folds(sessions, spec, span):
        assert fold.train_start == sessions[0]
        assert fold.train_start <= fold.train_end < fold.stop_start <= fold.stop_end
        for end, start in ((fold.train_end, fold.stop_start), (fold.stop_end, fold.test_start)):
            assert position[start] - position[end] == spec.embargo_sessions + 1


@settings(deadline=None)
@given(FEW_FOLDS, st.integers(1, 20), st.integers(0, 30))
def test_purged_windows_keep_the_sessions_that_the_settings_ask_for(spec, span, extra):
    ts, known_at = regular_rows(needed_sessions(spec, span) + extra, span)
    folds = make_folds(np.unique(ts), spec, span)
    kept = [fold_rows(fold, ts, known_at) for fold in folds]
    n_train = [len(np.unique(ts[rows.train])) for rows in kept]
    assert n_train[0] == spec.min_train_sessions + extra
    assert all(len(np.unique(ts[rows.stop])) == spec.stop_sessions for rows in kept)
    assert all(len(np.unique(ts[rows.test])) == spec.test_sessions for rows in kept)
    assert np.all(np.diff(n_train) == spec.test_sessions)
    gap = 2 * (span + spec.embargo_sessions)
    assert all(rows.n_purged == 2 * gap for rows in kept)


@settings(deadline=None)
@given(FEW_FOLDS, st.integers(1, 20))
def test_one_session_too_few_is_an_error_with_every_number(spec, span):
    needed = needed_sessions(spec, span)
    with pytest.raises(NotEnoughHistory) as caught:
        make_folds(calendar(needed - 1), spec, span)
    numbers = (needed, needed - 1, spec.min_train_sessions, span, spec.embargo_sessions)
    for number in (*numbers, spec.stop_sessions, spec.n_folds, spec.test_sessions):
        assert str(number) in str(caught.value)


@settings(deadline=None)
@given(st.data(), FEW_FOLDS, st.integers(1, 10))
def test_no_label_reaches_a_later_window_however_irregular_the_labels(data, spec, span):
    n = needed_sessions(spec, span) + data.draw(st.integers(0, 10))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    market = calendar(n + 60, seed)
    has_examples = np.sort(rng.choice(n + 20, size=n, replace=False))
    session = np.repeat(has_examples, rng.integers(1, 4, size=n))
    lengths = rng.choice([1, span, span, span, span + 3, 39], size=len(session))
    ts, known_at = market[session], market[session + lengths]
    shuffled = rng.permutation(len(ts))
    ts, known_at = ts[shuffled], known_at[shuffled]
    for fold in make_folds(np.unique(ts), spec, span):
        try:
            rows = fold_rows(fold, ts, known_at)
        except NotEnoughHistory:
            continue
        assert known_at[rows.train].max() < fold.stop_start
        assert known_at[rows.stop].max() < fold.test_start
        assert ts[rows.train].max() < ts[rows.stop].min() <= ts[rows.stop].max()
        assert ts[rows.stop].max() < ts[rows.test].min()
        assert find_overlaps(fold, ts, known_at, rows) == 0
        for positions in (rows.train, rows.stop, rows.test):
            assert positions.dtype == np.int64
            assert np.all(np.diff(positions) > 0)


@settings(deadline=None)
@given(st.integers(1, 10), st.integers(0, 40))
def test_without_embargo_only_rows_known_too_late_are_purged(span, extra):
    spec = FoldSettings(n_folds=2, min_train_sessions=20, stop_sessions=5, test_sessions=5)
    ts, known_at = regular_rows(needed_sessions(spec, span) + extra, span)
    for fold in make_folds(np.unique(ts), spec, span):
        rows = fold_rows(fold, ts, known_at)
        train = np.flatnonzero((ts < fold.stop_start) & (known_at < fold.stop_start))
        stop = (ts >= fold.stop_start) & (ts < fold.test_start) & (known_at < fold.test_start)
        np.testing.assert_array_equal(rows.train, train)
        np.testing.assert_array_equal(rows.stop, np.flatnonzero(stop))


def test_ten_daily_events_with_two_day_labels_leave_days_one_to_three():
    day = np.arange("2024-01-01", "2024-01-11", dtype="datetime64[D]")
    fold = Fold(1, day[0], day[4], day[5], day[7], day[8], day[9])
    rows = fold_rows(fold, day, day + 2)
    assert rows.train.tolist() == [0, 1, 2]
    assert rows.stop.tolist() == [5]
    assert rows.test.tolist() == [8, 9]
    assert rows.n_purged == 4


def test_the_shipped_defaults_fit_534_sessions_and_say_their_dates():
    sessions = np.busday_offset("2015-01-01", np.arange(534), roll="forward")
    folds = make_folds(sessions, FoldSettings(), label_span=6)
    assert [(str(fold.test_start), str(fold.test_end)) for fold in folds] == [
        ("2016-05-11", "2016-08-02"),
        ("2016-08-03", "2016-10-25"),
        ("2016-10-26", "2017-01-17"),
    ]


@pytest.mark.parametrize(
    ("window", "setting"),
    [("train", "min_train_sessions"), ("stop", "stop_sessions"), ("test", "test_sessions")],
)
def test_a_window_left_empty_is_an_error_that_names_it(window, setting):
    day = np.arange("2024-01-01", "2024-01-11", dtype="datetime64[D]")
    bounds = {"train": (0, 4), "stop": (5, 7), "test": (8, 9)}
    fold = Fold(2, *(day[i] for pair in bounds.values() for i in pair))
    known_at = day + 1
    start, end = bounds[window]
    if window == "test":
        day, known_at = day[:start], known_at[:start]
    else:
        known_at[start : end + 1] = np.datetime64("2024-03-01")
    with pytest.raises(NotEnoughHistory, match=rf"{window} window of fold 2 .*{setting}"):
        fold_rows(fold, day, known_at)


def test_overlaps_are_found_in_rows_that_were_not_purged():
    ts, known_at = regular_rows(60, span=3, per_session=1)
    spec = FoldSettings(n_folds=1, min_train_sessions=20, stop_sessions=5, test_sessions=5)
    fold = make_folds(np.unique(ts), spec, label_span=3)[0]
    rows = fold_rows(fold, ts, known_at)
    late = FoldRows(np.append(rows.train, rows.train[-1] + 1), rows.stop, rows.test, 0)
    assert find_overlaps(fold, ts, known_at, late) == 1
    late = FoldRows(rows.train, np.append(rows.stop, rows.stop[-1] + 2), rows.test, 0)
    assert find_overlaps(fold, ts, known_at, late) == 2
    shared = FoldRows(rows.train, np.append(rows.stop, rows.test[0]), rows.test, 0)
    assert find_overlaps(fold, ts, known_at, shared) > 0
    backwards = FoldRows(rows.test, rows.stop, rows.train, 0)
    assert find_overlaps(fold, ts, known_at, backwards) > len(rows.test)


@pytest.mark.parametrize("days", [["2024-01-02", "2024-01-01"], ["2024-01-01"] * 2, ["NaT"]])
def test_sessions_that_are_not_a_sorted_set_are_refused(days):
    with pytest.raises(ValueError, match="sorted"):
        make_folds(np.array(days, dtype="datetime64[D]"), FoldSettings(), 6)


def test_no_session_at_all_is_not_enough_history():
    with pytest.raises(NotEnoughHistory, match="0 have known labels"):
        make_folds(np.array([], dtype="datetime64[D]"), FoldSettings(), 6)


def test_folds_leave_their_inputs_unchanged():
    ts, known_at = regular_rows(600, span=6)
    sessions = np.unique(ts)
    for values in (ts, known_at, sessions):
        values.flags.writeable = False
    for fold in make_folds(sessions, FoldSettings(), 6):
        assert find_overlaps(fold, ts, known_at, fold_rows(fold, ts, known_at)) == 0
