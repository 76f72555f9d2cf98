"""Leaks: rows that meet another window, planted or random, are all found."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from quant_pipeline.ml.splits import (
    Block,
    Fold,
    FoldRows,
    find_overlaps,
    fold_rows,
    make_folds,
    purge,
    required_sessions,
)
from quant_pipeline.settings import FoldSettings
from quant_pipeline_tests.folds_oracle import ANY, SEEDS, irregular_rows, regular_rows

pytestmark = pytest.mark.filterwarnings("error")


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


def spec_of(protocol: str, embargo: int = 0) -> FoldSettings:
    return FoldSettings(
        protocol=protocol,
        n_folds=2,
        n_groups=5,
        n_test_groups=2,
        min_train_sessions=20,
        stop_sessions=5,
        test_sessions=10,
        embargo_sessions=embargo,
    )


def leaks(fold: Fold, ts: np.ndarray, known_at: np.ndarray, rows: FoldRows) -> dict[str, FoldRows]:
    """Rows of a fold with one leak each: what a splitter without that rule would keep."""
    found = {}
    never = np.full(len(ts), ts.min() - 1)  # known before everything: nothing is purged
    for window in ("train", "stop"):
        own = getattr(fold, window)
        others = fold.test if window == "stop" else fold.stop + fold.test
        other_rows = rows.test if window == "stop" else np.append(rows.stop, rows.test)
        none = np.empty(0, dtype=np.int64)
        found[f"{window} not purged before"] = purge(own, others, other_rows, ts, never)
        found[f"{window} not purged after"] = purge(own, others, none, ts, known_at)
    return {
        name: replace(rows, **{name.split()[0]: kept})
        for name, kept in found.items()
        if len(kept) > len(getattr(rows, name.split()[0]))
    }


@pytest.mark.parametrize("protocol", ["walk_forward", "cpcv"])
@pytest.mark.parametrize("embargo", [0, 2])
def test_a_purge_left_out_on_either_side_is_found_in_every_fold(protocol, embargo):
    spec = spec_of(protocol, embargo)
    ts, known_at = regular_rows(required_sessions(spec, 3) + 20, 3)
    seen = set()
    for fold in make_folds(np.unique(ts), spec, 3):
        rows = fold_rows(fold, ts, known_at)
        for name, leaking in leaks(fold, ts, known_at, rows).items():
            assert find_overlaps(fold, ts, known_at, leaking) > 0, name
            seen.add(name)
    assert {"train not purged before", "stop not purged before"} <= seen
    assert ("train not purged after" in seen) == (protocol == "cpcv" and not embargo)


@pytest.mark.parametrize("protocol", ["walk_forward", "cpcv"])
def test_rows_of_an_embargo_left_out_are_found(protocol):
    spec = spec_of(protocol, 4)
    ts, known_at = regular_rows(required_sessions(spec, 3) + 20, 3)
    sessions = np.unique(ts)
    with_embargo = make_folds(sessions, spec, 3)
    without = make_folds(sessions, spec_of(protocol, 0), 3)
    n_found = 0
    for fold, other in zip(with_embargo, without, strict=True):
        rows = fold_rows(other, ts, known_at)
        assert find_overlaps(other, ts, known_at, rows) == 0
        n_found += find_overlaps(fold, ts, known_at, rows) > 0
    # Only a fold that tests nothing but the newest groups has nothing after its test.
    assert n_found == len(with_embargo) - (protocol == "cpcv")


@pytest.mark.parametrize("protocol", ["walk_forward", "cpcv"])
@pytest.mark.parametrize("window", ["stop", "test"])
def test_a_stop_or_test_block_that_grows_by_one_session_is_found(protocol, window):
    spec = spec_of(protocol)
    ts, known_at = regular_rows(required_sessions(spec, 3), 3)
    sessions = np.unique(ts)
    n_shifted = 0
    for fold in make_folds(sessions, spec, 3):
        rows = fold_rows(fold, ts, known_at)
        for at, block in enumerate(getattr(fold, window)):
            before = np.searchsorted(sessions, block.start) - 1
            owner = [b for b in fold.train + fold.stop if b.start <= sessions[before] <= b.end]
            if before < 0 or not owner:
                continue
            blocks = list(getattr(fold, window))
            blocks[at] = Block(sessions[before], block.end)
            shifted = replace(fold, **{window: tuple(blocks)})
            kept = fold_rows(shifted, ts, known_at)
            assert find_overlaps(fold, ts, known_at, kept) > 0
            earlier = rows.train if window == "stop" else np.append(rows.train, rows.stop)
            if (known_at[earlier] == sessions[before]).any():
                n_shifted += 1
                assert find_overlaps(shifted, ts, known_at, rows) > 0
    assert n_shifted >= 2


@settings(deadline=None, max_examples=30)
@given(ANY, SEEDS)
def test_overlaps_of_any_rows_are_those_that_a_loop_over_all_pairs_counts(spec, seed):
    ts, known_at = irregular_rows(required_sessions(spec, 3), 3, seed)
    rng = np.random.default_rng(seed)
    fold = make_folds(np.unique(ts), spec, 3)[0]
    names = ("train", "stop", "test")
    parts = [np.sort(rng.choice(len(ts), size=12, replace=False)) for _ in names]
    expected = 0
    for i, one in enumerate(parts):
        blocks = getattr(fold, names[i])
        expected += sum(not any(b.start <= ts[row] <= b.end for b in blocks) for row in one)
        for j in range(i + 1, 3):
            sessions = {*ts[parts[j]], *(block.start for block in getattr(fold, names[j]))}
            expected += sum(ts[row] <= day <= known_at[row] for row in one for day in sessions)
            own = set(ts[one])
            expected += sum(ts[row] <= day <= known_at[row] for row in parts[j] for day in own)
            expected += len(set(one.tolist()) & set(parts[j].tolist()))
    assert find_overlaps(fold, ts, known_at, FoldRows(*parts, 0)) == expected
