"""Made-up sessions, labels and settings of folds, and the rows that slow loops would keep."""

import numpy as np
from hypothesis import strategies as st

from quant_pipeline.ml.splits import Block, Fold
from quant_pipeline.settings import FoldSettings

COMMON = {
    "min_train_sessions": st.integers(20, 30),
    "stop_sessions": st.integers(5, 12),
    "test_sessions": st.integers(5, 12),
    "embargo_sessions": st.integers(0, 8),
}
WINDOWS = st.sampled_from(["expanding", "rolling"])
FEW_FOLDS = st.builds(FoldSettings, n_folds=st.integers(1, 4), window=WINDOWS, **COMMON)
GROUPS = st.sampled_from([(3, 1), (4, 1), (4, 2), (5, 2), (6, 2), (6, 4)])
COMBINED = GROUPS.flatmap(
    lambda n: st.builds(
        FoldSettings,
        protocol=st.just("cpcv"),
        n_groups=st.just(n[0]),
        n_test_groups=st.just(n[1]),
        **COMMON,
    )
)
ANY = st.one_of(FEW_FOLDS, COMBINED)
SEEDS = st.integers(0, 2**32 - 1)
DAY = np.arange("2024-01-01", "2024-01-11", dtype="datetime64[D]")


def one_block_fold(number: int, *bounds: np.datetime64) -> Fold:
    """First and last session of the train, stop and test window."""
    return Fold(number, *((Block(*bounds[i : i + 2]),) for i in (0, 2, 4)))


def irregular_rows(n: int, span: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of n sessions in random order; sessions have holes, labels all lengths."""
    rng = np.random.default_rng(seed)
    market = calendar(n + 60, seed)
    has_examples = np.sort(rng.choice(n + 20, size=n, replace=False))
    session = np.repeat(has_examples, rng.integers(1, 4, size=n))
    long = rng.choice([0, 0, 1, 39]) * (rng.random(len(session)) < 0.05)
    lengths = np.maximum(rng.choice([1, span, span, span, span + 3], size=len(session)), long)
    shuffled = rng.permutation(len(session))
    return market[session][shuffled], market[session + lengths][shuffled]


def kept_by_hand(fold: Fold, ts: np.ndarray, known_at: np.ndarray) -> tuple[list[int], ...]:
    """Rows of train, stop and test, from every pair of a row and another row or block."""
    day, known = ts.tolist(), known_at.tolist()

    def lies_in(row, blocks):
        return any(block.start.item() <= day[row] <= block.end.item() for block in blocks)

    def is_free(row, own, others, other_rows):
        for other in other_rows:
            if day[row] <= known[other] and day[other] <= known[row]:
                return False
        for block in others:
            if day[row] < block.start.item():
                own_before = [b.end.item() for b in own if b.end < block.start]
                if known[row] > max(own_before):
                    return False
        return True

    rows = range(len(ts))
    test = [row for row in rows if lies_in(row, fold.test)]
    stop = [
        row for row in rows if lies_in(row, fold.stop) and is_free(row, fold.stop, fold.test, test)
    ]
    train = [
        row
        for row in rows
        if lies_in(row, fold.train) and is_free(row, fold.train, fold.stop + fold.test, stop + test)
    ]
    return train, stop, test


def calendar(n: int, seed: int = 0) -> np.ndarray:
    """Market sessions with irregular holes: weekends, holidays, a closed month."""
    steps = np.random.default_rng(seed).choice([1, 1, 1, 1, 3, 4, 30], size=n)
    return np.datetime64("2015-01-01") + np.cumsum(steps).astype("timedelta64[D]")


def regular_rows(n: int, span: int, per_session: int = 2) -> tuple[np.ndarray, np.ndarray]:
    market = calendar(n + span)
    return np.repeat(market[:n], per_session), np.repeat(market[span:], per_session)
