"""A part of the market gives the bits of all of it; features across symbols count members only."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant_pipeline.errors import FeatureError
from quant_pipeline.market import feature_matrix
from quant_pipeline.market.feature_matrix import compute_matrix
from quant_pipeline.market.features import (
    ALPHA158,
    INPUTS,
    KNOWN,
    AnyFeature,
    CrossSection,
    Feature,
    look_back,
)

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Matrix = npt.NDArray[np.float32]
N_SESSIONS = 330


def twice(close: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return 2.0 * close


def moves(close: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    found = np.full(len(close), np.nan)
    found[3:] = close[3:] - close[:-3]
    return found


TWICE, MOVES = Feature("TWICE", ("close",), 0, twice), Feature("MOVES", ("close",), 3, moves)
SINGLE: list[AnyFeature] = [*KNOWN.values(), TWICE, MOVES]
ACROSS: list[AnyFeature] = [
    CrossSection(f"{f.name}_{how}", f, how)
    for f in (KNOWN["ROC5"], KNOWN["RANK10"], KNOWN["MOM_12_1"], MOVES)
    for how in ("rank", "zscore")
]


@dataclass(frozen=True)
class Market:
    """Bars sorted by (symbol, session); symbol 0 trades on every session."""

    symbol: Ints
    session: Ints
    columns: dict[str, npt.NDArray[np.floating]]
    is_jump: Bools
    in_universe: Bools

    @property
    def first_session(self) -> Ints:
        return self.session[np.flatnonzero(np.diff(self.symbol, prepend=-1))]

    def values(
        self,
        features: Sequence[AnyFeature],
        rows: Bools | None = None,
        is_wanted: Bools | None = None,
        n_threads: int = 2,
    ) -> Matrix:
        """Features of some rows, of which some are wanted, as chain/features.py asks for them."""
        rows = np.ones(len(self.symbol), bool) if rows is None else rows
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "sched_getaffinity", lambda _pid: set(range(n_threads)))
            patch.setattr(feature_matrix, "ROWS_A_THREAD", 1)
            return compute_matrix(
                self.symbol[rows],
                self.session[rows],
                {name: values[rows] for name, values in self.columns.items()},
                features,
                self.is_jump[rows],
                self.first_session,
                None if is_wanted is None else is_wanted[rows],
                self.in_universe[rows],
            )


def make_panel(seed: int, n_symbols: int = 5, dtype: type = np.float64) -> Market:
    """Late listings, delistings, single missing sessions and holes longer than any window."""
    rng = np.random.default_rng(seed)
    is_there = rng.random((n_symbols, N_SESSIONS)) > rng.choice([0.0, 0.1, 0.5], n_symbols)[:, None]
    for row in is_there[1:]:
        row[: rng.integers(0, 200) * rng.integers(0, 2)] = False
        row[N_SESSIONS - rng.integers(0, 200) * rng.integers(0, 2) :] = False
        hole = rng.integers(0, N_SESSIONS)
        row[hole : hole + rng.integers(61, 120) * rng.integers(0, 2)] = False
        row[rng.integers(0, N_SESSIONS)] = True
    is_there[0] = True
    symbol, session = np.nonzero(is_there)
    close = 20 * np.exp(0.03 * rng.standard_normal(is_there.shape).cumsum(axis=1))[is_there]
    close = np.round(close, rng.integers(0, 3))
    opened = close * np.exp(0.01 * rng.standard_normal(len(close)))
    high = np.maximum(opened, close) * (1 + 0.01 * rng.random(len(close)))
    low = np.minimum(opened, close) * (1 - 0.01 * rng.random(len(close)))
    volume = np.round(1e4 * np.exp(rng.standard_normal(len(close))))
    volume[rng.random(len(close)) < 0.1] = 0.0
    arrays = (opened, high, low, close, volume, (high + low + close) / 3)
    columns = {name: x.astype(dtype) for name, x in zip(INPUTS, arrays, strict=True)}
    n = len(close)
    return Market(symbol, session, columns, rng.random(n) < 0.01, rng.random(n) < 0.8)


def differing(features: Sequence[AnyFeature], one: Matrix, other: Matrix) -> list[str]:
    assert one.shape == other.shape
    pairs = zip(features, one.T, other.T, strict=True)
    return [f.name for f, a, b in pairs if a.tobytes() != b.tobytes()]


some_features = st.lists(
    st.sampled_from(SINGLE), min_size=1, max_size=15, unique_by=lambda f: f.name
)
seeds = st.integers(0, 2**16)
quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


# --- incremental = full


@quick
@given(
    seeds,
    some_features,
    st.integers(0, N_SESSIONS - 1),
    st.integers(1, 40),
    st.sets(st.integers(1, 4)),
    st.integers(1, 7),
    st.sampled_from([np.float64, np.float32]),
)
def test_any_part_has_the_bits_of_the_whole(
    seed, features, start, length, symbols, n_threads, dtype
) -> None:
    """Any partition, subset of features and of symbols, number of threads."""
    market = make_panel(seed, dtype=dtype)
    everything = market.values(SINGLE, n_threads=1)
    is_mine = np.isin(market.symbol, [0, *symbols])
    is_wanted = is_mine & (market.session >= start) & (market.session < start + length)
    is_read = market.session >= start - look_back(features)
    is_read &= is_mine & (market.session < start + length)
    alone = market.values(features, is_read, is_wanted, n_threads)
    columns = [SINGLE.index(f) for f in features]
    assert differing(features, alone, everything[is_wanted][:, columns]) == []


@quick
@given(seeds, st.lists(st.sampled_from(SINGLE + ACROSS), min_size=1, max_size=12,
                       unique_by=lambda f: f.name),
       st.integers(0, N_SESSIONS - 1), st.integers(1, 40), st.integers(1, 7))  # fmt: skip
def test_any_partition_has_the_bits_of_the_whole_across_symbols_too(
    seed, features, start, length, n_threads
) -> None:
    market = make_panel(seed)
    everything = market.values(SINGLE + ACROSS, n_threads=1)
    is_wanted = (market.session >= start) & (market.session < start + length)
    is_read = market.session >= start - look_back(features)
    is_read &= market.session < start + length
    alone = market.values(features, is_read, is_wanted, n_threads)
    columns = [(SINGLE + ACROSS).index(f) for f in features]
    assert differing(features, alone, everything[is_wanted][:, columns]) == []


def test_a_symbol_alone_has_the_same_bits_though_nobody_traded_when_its_look_back_began() -> None:
    """Its first session is known, so it does not matter that no bar of the part is that old."""
    n = 200
    session = np.r_[0:20, 150:n]
    rng = np.random.default_rng(0)
    close = 20 * np.exp(0.02 * rng.standard_normal(len(session)).cumsum())
    columns = dict.fromkeys(INPUTS, close) | {"volume": 1e4 * close}
    symbol = np.zeros(len(session), np.int64)
    features = list(ALPHA158.values())
    whole = compute_matrix(symbol, session, columns, features)
    is_read = session >= 100
    part = compute_matrix(
        symbol[is_read],
        session[is_read],
        {name: values[is_read] for name, values in columns.items()},
        features,
        first_session=np.zeros(1, np.int64),
    )
    assert differing(features, part, whole[is_read]) == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs an affinity to set")
def test_one_core_gives_the_bits_of_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_matrix, "ROWS_A_THREAD", 1)
    market = make_panel(3)
    call = market.symbol, market.session, market.columns, list(KNOWN.values()), market.is_jump
    usual = os.sched_getaffinity(0)
    on_all = compute_matrix(*call)
    try:
        os.sched_setaffinity(0, {min(usual)})
        on_one = compute_matrix(*call)
    finally:
        os.sched_setaffinity(0, usual)
    assert differing(list(KNOWN.values()), on_one, on_all) == []


def test_nothing_drifts_over_5000_sessions() -> None:
    """After 20 years, a hundredfold price among them, a value is that of its window alone."""
    n, features = 5000, list(ALPHA158.values())
    rng = np.random.default_rng(5)
    close = 20 * np.exp(0.02 * rng.standard_normal(n).cumsum())
    close[1000:1200] *= 1e6
    high, low = close * (1 + 0.01 * rng.random(n)), close * (1 - 0.01 * rng.random(n))
    volume = np.round(1e5 * np.exp(rng.standard_normal(n)))
    volume[2000:2100] *= 1e9
    arrays = (low + (high - low) * rng.random(n), high, low, close, volume, (high + low) / 2)
    columns = dict(zip(INPUTS, arrays, strict=True))
    session, first = np.arange(n), np.zeros(1, np.int64)
    whole = compute_matrix(np.zeros(n, np.int64), session, columns, features)
    part = {name: values[-61:] for name, values in columns.items()}
    fresh = compute_matrix(
        np.zeros(61, np.int64), session[-61:], part, features, first_session=first
    )
    assert differing(features, fresh[-1:], whole[-1:]) == []
    assert np.isfinite(fresh[-1]).all()


def test_the_matrix_lies_feature_by_feature_and_holds_what_is_wanted() -> None:
    market = make_panel(1)
    is_wanted = market.session % 3 == 0
    found = market.values([KNOWN["KMID"], KNOWN["ROC5"]], is_wanted=is_wanted)
    assert found.shape == (is_wanted.sum(), 2)
    assert all(values.flags.c_contiguous for values in found.T)
    assert found.dtype == np.float32
    none = market.values([KNOWN["KMID"]], is_wanted=np.zeros(len(is_wanted), bool))
    assert none.shape == (0, 1)
    assert market.values([]).shape == (len(market.symbol), 0)


# --- plain functions


def test_a_function_gets_one_value_a_session_from_the_first_bar_on() -> None:
    seen: dict[str, npt.NDArray[np.floating]] = {}

    def keep(volume, close):
        seen["volume"], seen["close"] = volume.copy(), close.copy()
        return close

    session = np.array([4, 5, 8])
    columns = {name: np.array([1.0, 2.0, 3.0]) * (i + 1) for i, name in enumerate(INPUTS)}
    feature = Feature("KEEP", ("volume", "close"), 0, keep)
    found = compute_matrix(np.zeros(3, np.int64), session, columns, [feature])
    np.testing.assert_array_equal(seen["close"], [4.0, 8.0, np.nan, np.nan, 12.0])
    np.testing.assert_array_equal(seen["volume"], [5.0, 10.0, np.nan, np.nan, 15.0])
    assert found[:, 0].tolist() == [4.0, 8.0, 12.0]


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e39, -1e39])
def test_what_is_infinite_or_too_large_is_stored_as_missing(value) -> None:
    market = make_panel(2)
    feature = Feature("A", ("close",), 0, lambda close: np.where(close > 20, value, 1.0))
    found = market.values([feature])[:, 0]
    assert np.array_equal(np.isnan(found), market.columns["close"] > 20)
    assert set(found[~np.isnan(found)]) == {1.0}


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda close: 1.0, r"Feature BAD gave values of shape \(\) for \d+ sessions"),
        (lambda close: close[1:], r"Feature BAD gave values of shape \(\d+,\) for \d+ sessions"),
        (lambda close: np.c_[close, close], r"Feature BAD gave values of shape \(\d+, 2\)"),
        (
            lambda close: close.no,
            r"Feature BAD failed on .*, line \d+ of .*: AttributeError: .*no",
        ),
        (
            lambda close: 1 // 0,
            r"Feature BAD failed on .*, line \d+ of .*: ZeroDivisionError",
        ),
        (lambda: 1, r"Feature BAD failed on \d+ sessions: TypeError"),
        (lambda close: ["a"] * len(close), r"Feature BAD failed on \d+ sessions: ValueError"),
        (lambda close: None, r"Feature BAD gave values of shape"),
    ],
    ids=["scalar", "short", "table", "attribute", "division", "arguments", "text", "nothing"],
)
def test_a_function_that_fails_is_named(compute, message) -> None:
    with pytest.raises(FeatureError, match=message):
        make_panel(0).values([KNOWN["KMID"], Feature("BAD", ("close",), 0, compute)])


# --- across symbols


def slow_across(how: str, values: Matrix, session: Ints, is_member: Bools) -> Matrix:
    """Session by session, with scipy and numpy."""
    found = np.full(len(values), np.nan)
    for t in np.unique(session):
        rows = np.flatnonzero((session == t) & is_member & ~np.isnan(values))
        x = values[rows].astype(np.float64)
        if how == "rank":
            found[rows] = scipy.stats.rankdata(x, "average") / max(len(x), 1)
        elif len(x) > 1 and np.ptp(x) > 0:
            found[rows] = (x - np.mean(x)) / np.std(x, ddof=1)
    return found.astype(np.float32)


def wide_panel(seed: int) -> Market:
    return make_panel(seed, n_symbols=12)


BASES = {
    "ties": Feature("TIES", ("close",), 0, lambda close: np.round(close / 10)),
    "constant": Feature("CONSTANT", ("close",), 0, lambda close: 0.1 + 0 * close),
    "compiled": KNOWN["STD20"],
    "small": Feature("SMALL", ("close",), 0, lambda close: 1e6 + np.round(close / 10)),
    "missing": Feature("MISSING", ("close",), 0, lambda close: np.where(close > 20, np.nan, close)),
    "looks back": MOVES,
}


@settings(max_examples=15, deadline=None)
@given(seeds, st.sampled_from(list(BASES)), st.sampled_from(["rank", "zscore"]))
def test_ranks_and_zscores_are_those_of_the_slow_oracle(seed, base, how) -> None:
    market, of = wide_panel(seed), BASES[base]
    (values,) = market.values([of]).T
    (found,) = market.values([CrossSection("A", of, how)]).T
    expected = slow_across(how, values, market.session, market.in_universe)
    if how == "rank":
        assert found.tobytes() == expected.tobytes()
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert np.isnan(found[~market.in_universe]).all()


def test_equal_values_share_their_average_rank_and_have_no_zscore() -> None:
    n = 4
    columns = dict.fromkeys(INPUTS, np.array([5.0, 5.0, 9.0, 1.0]))
    base = Feature("CLOSE", ("close",), 0, lambda close: close)
    both = [CrossSection("R", base, "rank"), CrossSection("Z", base, "zscore")]
    arrays = np.arange(n), np.zeros(n, np.int64), columns, both
    found = compute_matrix(*arrays)
    assert found[:, 0].tolist() == [0.625, 0.625, 1.0, 0.25]
    np.testing.assert_allclose(found[:, 1], [0.0, 0.0, 1.2247449, -1.2247449], rtol=1e-6)
    two = compute_matrix(*arrays, in_universe=np.array([True, True, False, False]))
    assert two[:2, 0].tolist() == [0.75, 0.75]
    assert np.isnan(two[2:]).all()
    assert np.isnan(two[:, 1]).all(), "both are the same: there is no spread"
    one = compute_matrix(*arrays, in_universe=np.arange(n) == 2)
    assert one[2, 0] == 1.0
    assert np.isnan(one[:, 1]).all()


def test_a_base_that_was_not_chosen_is_computed_and_one_that_was_keeps_its_bits() -> None:
    market = wide_panel(4)
    for base in (KNOWN["CORR20"], MOVES):
        rank, zscore = CrossSection("R", base, "rank"), CrossSection("Z", base, "zscore")
        (usual,) = market.values([base]).T
        chosen = market.values([rank, base, zscore, KNOWN["KMID"]])
        assert chosen[:, 1].tobytes() == usual.tobytes()
        alone = market.values([rank, zscore])
        assert alone.shape[1] == 2
        assert alone[:, 0].tobytes() == chosen[:, 0].tobytes()
        assert alone[:, 1].tobytes() == chosen[:, 2].tobytes()
        expected = slow_across("rank", usual, market.session, market.in_universe)
        assert alone[:, 0].tobytes() == expected.tobytes()


def test_a_value_that_spans_a_jump_has_no_rank_and_does_not_count() -> None:
    market = wide_panel(6)
    base = KNOWN["STD20"]
    rank = CrossSection("R", base, "rank")
    values, ranks = market.values([base, rank]).T
    calm = Market(market.symbol, market.session, market.columns,
                  np.zeros(len(market.symbol), bool), market.in_universe)  # fmt: skip
    without = calm.values([base])[:, 0]
    spans = np.isnan(values) & ~np.isnan(without)
    assert spans.sum() > 50
    assert np.isnan(ranks[spans]).all()
    assert (
        ranks.tobytes() == slow_across("rank", values, market.session, market.in_universe).tobytes()
    )


def test_bases_of_one_name_but_another_function_are_not_mixed_up() -> None:
    """Nobody ever sees the name of a base that is not a feature of its own."""
    up = CrossSection("UP", Feature("BASE", ("close",), 0, lambda close: close), "rank")
    down = CrossSection("DOWN", Feature("BASE", ("close",), 0, lambda close: -close), "rank")
    market = wide_panel(7)
    alone = np.column_stack([market.values([up])[:, 0], market.values([down])[:, 0]])
    assert differing([up, down], market.values([up, down]), alone) == []


def test_inputs_stay_as_they_are() -> None:
    market = wide_panel(8)
    arrays = [market.symbol, market.session, market.is_jump, market.in_universe]
    arrays += list(market.columns.values())
    before = [a.copy() for a in arrays]
    market.values(SINGLE + ACROSS)
    compute_matrix(market.symbol, market.session, market.columns, SINGLE + ACROSS, market.is_jump)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(arrays, before, strict=True))
