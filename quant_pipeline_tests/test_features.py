"""Rules of features: each registered one passes these tests just by being registered.

All of them are computed at once; an assertion lists the names that fail. Values of the 158 are
checked in test_alpha158.py.
"""

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_pipeline.errors import FeatureError, SettingsError
from quant_pipeline.market.feature_matrix import compute_matrix, spans_jump
from quant_pipeline.market.features import (
    ALPHA158,
    FEATURE_SETS,
    INPUTS,
    KNOWN,
    RESERVED,
    TRIVIAL_SCORES,
    CrossSection,
    Feature,
    choose_features,
    compute_features,
    look_back,
)
from quant_pipeline.settings import FeatureSettings

NAMES = list(KNOWN)
FEATURES = list(KNOWN.values())
WINDOWS = sorted({f.window for f in FEATURES})
Column = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


def make_bars(
    n_sessions: int = 320,
    n_symbols: int = 4,
    seed: int = 0,
    level: float = 30.0,
    missing: float = 0.05,
) -> pd.DataFrame:
    """Adjusted bars with holes, a late listing, a delisting, zero volumes and a frozen stretch."""
    rng = np.random.default_rng(seed)
    sessions = np.datetime64("2019-01-01") + np.cumsum(rng.integers(1, 4, n_sessions))
    frames = []
    for i in range(n_symbols):
        close = level * np.exp(0.02 * rng.standard_normal(n_sessions).cumsum())
        frozen = slice(n_sessions // 2, n_sessions // 2 + 30)
        close[frozen] = close[frozen][0]
        open_ = close * np.exp(0.01 * rng.standard_normal(n_sessions))
        high = np.maximum(open_, close) * np.exp(0.01 * rng.random(n_sessions))
        low = np.minimum(open_, close) * np.exp(-0.01 * rng.random(n_sessions))
        for values in (open_, high, low):
            values[frozen] = close[frozen]
        volume = np.round(1e6 / level * np.exp(rng.standard_normal(n_sessions)))
        volume[rng.random(n_sessions) < 0.05] = 0.0
        volume[n_sessions // 2 + 10 : n_sessions // 2 + 35] = 0.0
        columns = (open_, high, low, close, volume, (high + low + close) / 3)
        frame = pd.DataFrame(dict(zip(INPUTS, columns, strict=True)))
        frame.insert(0, "ts", sessions.astype("datetime64[s]"))
        frame.insert(0, "symbol", f"S{i}")
        keep = rng.random(n_sessions) > missing
        keep[: 40 * i] = False
        keep[n_sessions - 25 * i :] = False
        frames.append(frame[keep])
    return pd.concat(frames, ignore_index=True)


BARS = make_bars()
SESSIONS = np.unique(BARS["ts"].to_numpy("datetime64[D]"))
LEVELS = {level: make_bars(150, 3, 1, level) for level in (1e-8, 1.0, 1e8)}


def all_of(bars: pd.DataFrame, sessions: npt.NDArray[np.datetime64] | None = None) -> pd.DataFrame:
    return compute_features(bars, NAMES, sessions)


@pytest.fixture(scope="module")
def whole() -> pd.DataFrame:
    """Every registered feature of BARS; only to be read."""
    return all_of(BARS)


def that_differ(one: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """Columns whose bits differ, keys included."""
    assert list(one) == list(other)
    found = []
    for name in one:
        x, y = one[name].to_numpy(), other[name].to_numpy()
        is_same = x.tolist() == y.tolist() if x.dtype == object else x.tobytes() == y.tobytes()
        if not is_same or len(x) != len(y):
            found.append(name)
    return found


# --- what every registered feature has to do


def test_there_are_158_and_momentum() -> None:
    assert len(ALPHA158) == 158
    assert [*ALPHA158, "MOM_12_1"] == NAMES
    assert [f.name for f in FEATURES] == NAMES
    assert len({name.lower() for name in NAMES} | RESERVED) == 159 + len(RESERVED)
    assert all(f.formula for f in FEATURES)
    assert FEATURE_SETS["alpha158"] == ALPHA158
    assert len(FEATURE_SETS["core"]) == 22
    assert all(KNOWN[name] is f for chosen in FEATURE_SETS.values() for name, f in chosen.items())


@pytest.mark.parametrize("last", [0, 1, 4, 30, 61, 150, 255, -2])
def test_no_feature_looks_ahead(whole, last) -> None:
    day = SESSIONS[last]
    past = all_of(BARS[BARS["ts"] <= day])
    assert that_differ(past, whole[whole["ts"] <= day].reset_index(drop=True)) == []


@pytest.mark.parametrize("start", [1, 60, 61, 170, 251, 290])
def test_the_look_back_of_its_window_alone_gives_a_feature_the_same_bits(start) -> None:
    """One partition from its look-back, as chain/features.py computes it."""
    wrong = []
    for window in WINDOWS:
        features = [f for f in FEATURES if f.window == window]
        is_read, is_wanted = CODED.session >= start - window, CODED.session >= start
        alone = compute_matrix(
            CODED.symbol[is_read],
            CODED.session[is_read],
            {name: values[is_read] for name, values in CODED.columns.items()},
            features,
            first_session=CODED.first_session,
            is_wanted=is_wanted[is_read],
        )
        wrong += other_bits(features, alone, CODED.values(features)[is_wanted])
    assert wrong == []


def test_the_order_of_rows_and_other_symbols_do_not_matter(whole) -> None:
    assert that_differ(all_of(BARS.sample(frac=1, random_state=1), SESSIONS), whole) == []
    for symbol in ("S0", "S2"):
        alone = all_of(BARS[BARS["symbol"] == symbol], SESSIONS)
        assert that_differ(alone, whole[whole["symbol"] == symbol].reset_index(drop=True)) == []


@pytest.mark.parametrize("level", list(LEVELS))
def test_no_feature_is_ever_infinite(level) -> None:
    bars = LEVELS[level]
    prices = ("open", "high", "low", "close", "vwap")
    tried = {
        "usual": bars,
        "no volume": bars.assign(volume=0.0),
        "much volume": bars.assign(volume=bars["volume"] * 1e6),
        "frozen": bars.assign(**dict.fromkeys(prices, level)),
        "huge": bars.assign(**{p: bars[p] * 1e300 for p in prices}),
        "tiny": bars.assign(**{p: bars[p] * 1e-290 for p in prices}),
        "no price": bars.assign(**dict.fromkeys(prices, 0.0)),
    }
    for what, one in tried.items():
        for dtype in (np.float64, np.float32):
            if dtype is np.float32 and what in ("huge", "tiny"):
                continue  # they are no float32
            found = all_of(one.astype(dict.fromkeys(INPUTS, dtype)))
            assert set(found[NAMES].dtypes) == {np.dtype(np.float32)}
            wrong = [name for name in NAMES if np.isinf(found[name]).any()]
            assert wrong == [], f"{what}, {dtype.__name__}"


def test_every_feature_has_values_and_they_vary(whole) -> None:
    few, same = [], []
    sizes = BARS.groupby("symbol").size()
    for name, feature in KNOWN.items():
        values = whole[name].dropna()
        if len(values) < 0.75 * sizes.sub(feature.window).clip(lower=0).sum():
            few.append(name)
        is_share_of_few = name.startswith(("IM", "CNT", "RANK"))
        usual = values.value_counts(normalize=True)  # IMXD is 0 where a bar is missing
        least, most = (5, 0.9) if is_share_of_few else (0.4 * len(values), 0.2)
        if len(usual) < least or usual.iloc[0] > most:
            same.append(name)
    assert few == []
    assert same == []


def test_no_two_features_are_the_same(whole) -> None:
    seen: dict[bytes, str] = {}
    twice = [
        (n, seen[b]) for n in NAMES if seen.setdefault(b := whole[n].to_numpy().tobytes(), n) != n
    ]
    assert twice == []


def test_features_leave_their_input_alone() -> None:
    bars = make_bars(90, 2)
    before = bars.copy()
    all_of(bars)
    pd.testing.assert_frame_equal(bars, before)
    for values in CODED.columns.values():
        assert not values.flags.writeable  # nobody wrote to them in all of these tests


def test_missing_values_are_skipped_without_a_warning() -> None:
    bars = make_bars(80, 2)
    bars.loc[bars.index % 7 == 0, list(INPUTS)] = np.nan
    found = all_of(bars)
    assert [name for name in NAMES if np.isinf(found[name]).any()] == []
    assert len(all_of(bars.iloc[1:2])) == 1
    nothing = all_of(bars.assign(**dict.fromkeys(INPUTS, np.nan)))
    places = ("IMAX", "IMIN", "IMXD", "CNTP", "CNTN", "CNTD")
    assert [n for n in NAMES if nothing[n].notna().any() and not n.startswith(places)] == []


# --- windows and jumps


@dataclass(frozen=True)
class Coded:
    """Bars sorted by (symbol, session), both as numbers."""

    symbol: npt.NDArray[np.int64]
    session: npt.NDArray[np.int64]
    columns: dict[str, npt.NDArray[np.float64]]

    @property
    def first_session(self) -> npt.NDArray[np.int64]:
        return self.session[np.flatnonzero(np.diff(self.symbol, prepend=-1))]

    def values(self, features: Sequence[Feature], is_jump: Bools | None = None) -> Column:
        return compute_matrix(self.symbol, self.session, self.columns, features, is_jump)

    def replaced(self, rows: Bools, scale: Column | float) -> "Coded":
        """The same bars, but for the values of some rows: all are multiplied."""
        columns = {k: np.where(rows, v * scale, v) for k, v in self.columns.items()}
        return Coded(self.symbol, self.session, columns)


def code(bars: pd.DataFrame) -> Coded:
    days = np.unique(bars["ts"].to_numpy("datetime64[D]"))
    bars = bars.sort_values(["symbol", "ts"])
    symbol = pd.factorize(bars["symbol"], sort=True)[0].astype(np.int64)
    session = np.searchsorted(days, bars["ts"].to_numpy("datetime64[D]")).astype(np.int64)
    columns = {name: bars[name].to_numpy().copy() for name in INPUTS}
    for values in columns.values():
        values.flags.writeable = False
    return Coded(symbol, session, columns)


def other_bits(features: Sequence[Feature], one: Column, other: Column) -> list[str]:
    """Names of the columns of two matrices whose bits differ."""
    pairs = zip(features, one.T, other.T, strict=True)
    return [f.name for f, a, b in pairs if a.tobytes() != b.tobytes()]


def slow_spans(symbol: Column, session: Column, is_jump: Bools, window: int) -> Bools:
    """Whether a flagged bar of the symbol lies after session t - window and not after t."""
    jumps = {(s, t) for s, t in zip(symbol[is_jump], session[is_jump], strict=True)}
    rows = zip(symbol.tolist(), session.tolist(), strict=True)
    return np.array(
        [any((s, u) in jumps for u in range(t - window + 1, t + 1)) for s, t in rows], bool
    )


CODED = code(BARS)
N = len(CODED.symbol)
FIRSTS = np.flatnonzero(np.diff(CODED.symbol, prepend=-1))
SOME_JUMPS = {
    "none": np.zeros(N, bool),
    "early": np.isin(np.arange(N), FIRSTS + 20),
    "first and last bar": np.isin(np.arange(N), [*FIRSTS, *(FIRSTS[1:] - 1), N - 1]),
    "one symbol": np.arange(N) == FIRSTS[1] + 30,
    "few": np.random.default_rng(2).random(N) < 0.01,
    "many": np.random.default_rng(3).random(N) < 0.2,
    "all": np.ones(N, bool),
}
every_jump = pytest.mark.parametrize("jumps", list(SOME_JUMPS))


def test_a_value_needs_nothing_older_than_its_window() -> None:
    wrong = set()
    for window in WINDOWS:
        features = [f for f in FEATURES if f.window == window]
        usual = CODED.values(features)
        for t in (window, window + 1, 280, 300, 310):
            now, is_older = CODED.session == t, CODED.session < t - window
            for scale in (1 / 7, np.nan):
                other = CODED.replaced(is_older, scale).values(features)
                wrong.update(other_bits(features, other[now], usual[now]))
    assert sorted(wrong) == []


def test_a_value_needs_the_oldest_session_of_its_window() -> None:
    bars = code(make_bars(missing=0.0))  # where a bar is missing, IMAX knows no other
    size = len(bars.symbol)
    wrong = []
    for window in WINDOWS:
        features = [f for f in FEATURES if f.window == window]
        usual = bars.values(features)
        n_changed = np.zeros(len(features), int)
        for t in (window, window + 1, 280, 300, 310):
            now, is_oldest = bars.session == t, bars.session == t - window
            for scale in (1 / 7, 7.0):
                rng = np.random.default_rng(t)
                noise = {k: scale * np.exp(rng.standard_normal(size)) for k in INPUTS}
                columns = {k: np.where(is_oldest, v * noise[k], v) for k, v in bars.columns.items()}
                other = Coded(bars.symbol, bars.session, columns).values(features)
                is_other = (other[now] != usual[now]) & ~np.isnan(usual[now])
                n_changed += is_other.sum(axis=0)
        wrong += [f.name for f, n in zip(features, n_changed, strict=True) if n == 0]
    assert wrong == []


def test_only_what_compares_with_an_earlier_session_reaches_one_further_back() -> None:
    lags = ("ROC", "CORD", "CNTP", "CNTN", "CNTD", "SUMP", "SUMN", "SUMD", "WVMA", "VSUMP",
            "VSUMN", "VSUMD")  # fmt: skip
    for name, feature in ALPHA158.items():
        kind, digits = name.rstrip("0123456789"), name.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        if digits and int(digits) > 2:
            assert feature.window == int(digits) - (kind not in lags), name
        else:
            assert feature.window == 0, name
    assert KNOWN["MOM_12_1"].window == 250


@every_jump
def test_exactly_the_values_whose_window_spans_a_jump_are_missing(jumps) -> None:
    is_jump = SOME_JUMPS[jumps]
    before = is_jump.copy()
    usual, found = CODED.values(FEATURES), CODED.values(FEATURES, is_jump)
    spans = {w: slow_spans(CODED.symbol, CODED.session, is_jump, w) for w in WINDOWS}
    missing, touched = [], []
    for feature, x, y in zip(FEATURES, usual.T, found.T, strict=True):
        is_out = spans[feature.window]
        if not np.array_equal(np.isnan(y), np.isnan(x) | is_out):
            missing.append(feature.name)
        if x[~is_out].tobytes() != y[~is_out].tobytes():
            touched.append(feature.name)
    assert missing == []
    assert touched == []
    assert np.array_equal(is_jump, before)


@pytest.mark.parametrize("jumps", [j for j in SOME_JUMPS if j not in ("none", "all")])
def test_prices_before_a_jump_change_no_value_after_it(jumps) -> None:
    """So that it does not matter how far off an unadjusted price was."""
    is_jump = SOME_JUMPS[jumps]
    found = CODED.values(FEATURES, is_jump)
    newest = np.maximum.accumulate(np.where(is_jump, np.arange(N), -1))
    newest[newest < FIRSTS[CODED.symbol]] = -1  # one of the symbol before
    last_jump = np.array([newest[CODED.symbol == s][-1] for s in range(CODED.symbol[-1] + 1)])
    is_before = np.arange(N) < last_jump[CODED.symbol]
    assert is_before.any()
    noise = np.exp(3 * np.random.default_rng(0).standard_normal(N))
    for scale in (1 / 7, noise, np.nan):
        other = CODED.replaced(is_before, scale).values(FEATURES, is_jump)
        assert other_bits(FEATURES, other[~is_before], found[~is_before]) == []
    if jumps == "early":
        is_after = (newest >= 0) & ~is_before
        compared = (~np.isnan(found[is_after])).any(axis=0)
        assert [
            f.name for f, is_there in zip(FEATURES, compared, strict=True) if not is_there
        ] == []


def test_without_a_flag_a_jump_reaches_every_feature_that_looks_back() -> None:
    """The rule above is not kept by features that ignore what is before a jump anyway."""
    is_before = CODED.session < 20
    usual, other = CODED.values(FEATURES), CODED.replaced(is_before, 1 / 7).values(FEATURES)
    reached = ((usual != other) & ~np.isnan(usual) & ~is_before[:, None]).any(axis=0)
    looks_back = [f.window > 0 for f in FEATURES]

    wrong = [f.name for f, a, b in zip(FEATURES, reached, looks_back, strict=True) if a != b]
    assert wrong == []


@given(st.integers(0, 2**16), st.integers(0, 12), st.sampled_from([0.0, 0.05, 0.3, 1.0]))
def test_bars_that_span_a_jump_are_those_of_the_slow_oracle(
    seed: int, window: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    symbol, session = np.nonzero(rng.random((4, 25)) < 0.6)
    is_jump = rng.random(len(symbol)) < share
    before = is_jump.copy()
    found = spans_jump(symbol, session, is_jump, window)
    assert found.dtype == np.bool_
    assert np.array_equal(found, slow_spans(symbol, session, is_jump, window))
    assert np.array_equal(is_jump, before)


def test_no_bars_span_no_jump() -> None:
    none = np.empty(0, np.int64)
    assert spans_jump(none, none, np.empty(0, bool), 5).tolist() == []


# --- the frame


def test_features_are_one_row_a_bar_sorted_by_session_and_symbol() -> None:
    frame = compute_features(BARS)
    assert list(frame) == ["symbol", "ts", *ALPHA158]
    keys = BARS.sort_values(["ts", "symbol"], ignore_index=True)[["symbol", "ts"]]
    assert frame["symbol"].tolist() == keys["symbol"].tolist()
    assert (frame["ts"].to_numpy() == keys["ts"].to_numpy()).all()
    assert frame.index.equals(pd.RangeIndex(len(BARS)))


def test_one_feature_alone_has_the_bits_of_all_together(whole) -> None:
    alone = pd.concat([compute_features(BARS, [name])[name] for name in NAMES], axis=1)
    assert that_differ(alone, whole[NAMES]) == []


def test_columns_come_in_the_order_that_was_asked_for(whole) -> None:
    names = ["MOM_12_1", "STD60", "KMID", "ROC5"]
    found = compute_features(BARS, names)
    assert list(found) == ["symbol", "ts", *names]
    assert that_differ(found, whole[list(found)]) == []
    assert list(compute_features(BARS, [])) == ["symbol", "ts"]


def test_features_may_be_given_as_objects_and_mixed_with_names(whole) -> None:
    doubled = Feature("DOUBLED", ("close",), 0, lambda close: 2 * close)
    ranked = CrossSection("ROC5_RANK", KNOWN["ROC5"], "rank")
    found = compute_features(BARS, [doubled, "KMID", KNOWN["ROC5"], ranked])
    assert list(found) == ["symbol", "ts", "DOUBLED", "KMID", "ROC5", "ROC5_RANK"]
    close = BARS.sort_values(["ts", "symbol"])["close"].to_numpy()
    assert np.array_equal(found["DOUBLED"], (2 * close).astype(np.float32))
    assert that_differ(found[["KMID", "ROC5"]], whole[["KMID", "ROC5"]]) == []
    assert found["ROC5_RANK"].max() == 1.0


@pytest.mark.parametrize("name", ["KMID", "STD20", "MOM_12_1"])
def test_a_feature_that_is_named_twice_is_the_same_twice_or_refused(whole, name) -> None:
    with contextlib.suppress(FeatureError):
        found = compute_features(BARS, [name, name])
        first, second = (found.iloc[:, i].to_numpy().tobytes() for i in (2, 3))
        assert first == second == whole[name].to_numpy().tobytes()


def test_a_column_of_a_kernel_may_have_another_name_beside_its_own(whole) -> None:
    again = Feature("AGAIN", ("open", "close"), 0, KNOWN["KMID"].compute)
    found = compute_features(BARS, [again, "KMID"])
    for name in ("AGAIN", "KMID"):
        assert found[name].to_numpy().tobytes() == whole["KMID"].to_numpy().tobytes(), name


def test_sessions_are_the_union_of_dates_unless_they_are_given(whole) -> None:
    one = BARS[BARS["symbol"] == "S3"]
    with_market = all_of(one, SESSIONS)
    assert that_differ(with_market, whole[whole["symbol"] == "S3"].reset_index(drop=True)) == []
    # Its own dates have no holes: nothing is missing from its windows.
    assert len(that_differ(all_of(one), with_market)) > 100
    again = all_of(one, np.concatenate([SESSIONS[::-1], SESSIONS[:5]]).astype("datetime64[ns]"))
    assert that_differ(again, with_market) == []


def test_dates_of_any_unit_give_the_same(whole) -> None:
    for unit in ("datetime64[ns]", "datetime64[us]"):
        assert that_differ(all_of(BARS.assign(ts=BARS["ts"].astype(unit))), whole) == []


def test_a_bar_on_no_session_is_an_error() -> None:
    n_bars = (BARS["ts"].to_numpy("datetime64[D]") == SESSIONS[-1]).sum()
    message = rf"{n_bars} bars are on dates that are no session, first {SESSIONS[-1]}"
    with pytest.raises(FeatureError, match=message):
        compute_features(BARS, ["KMID"], SESSIONS[:-1])
    with pytest.raises(FeatureError, match="no session"):
        compute_features(BARS, ["KMID"], SESSIONS[:0])


@pytest.mark.parametrize(
    ("ts", "message"),
    [
        (BARS["ts"].where(BARS.index > 0), "1 bars have no ts"),
        (BARS["ts"].astype(str).where(BARS.index > 0, "soon"), 'not hold dates: .*"soon"'),
        (BARS["ts"].dt.strftime("%Y%m%d").astype(int), "not hold dates: they are int64, first"),
    ],
    ids=["missing", "a word", "numbers"],
)
def test_a_ts_that_is_no_date_is_an_error(ts, message) -> None:
    with pytest.raises(FeatureError, match=message):
        compute_features(BARS.assign(ts=ts), ["KMID"])
    text = BARS.assign(ts=BARS["ts"].astype(str))
    pd.testing.assert_frame_equal(
        compute_features(text, ["KMID"]), compute_features(BARS, ["KMID"])
    )


def test_two_bars_of_a_symbol_on_a_session_are_an_error() -> None:
    twice = pd.concat([BARS, BARS.iloc[7:8].assign(close=1.0)])
    day = BARS["ts"].dt.date[7]
    with pytest.raises(FeatureError, match=f"S0 has two bars on {day}"):
        compute_features(twice)


def test_a_bar_without_a_symbol_is_an_error() -> None:
    """Not a bar of the symbol that comes last."""
    nameless = BARS.assign(symbol=BARS["symbol"].where(BARS.index != 5))
    with pytest.raises(FeatureError, match="symbol"):
        compute_features(nameless, ["KMID"])


def test_missing_columns_are_named() -> None:
    with pytest.raises(FeatureError, match=r"Bars lack volume, vwap \(they have: symbol, ts, open"):
        compute_features(BARS.drop(columns=["volume", "vwap"]))
    with pytest.raises(FeatureError, match=r"Bars lack ts"):
        compute_features(BARS.drop(columns=["ts"]))


def test_an_unknown_name_is_named_with_what_was_probably_meant() -> None:
    with pytest.raises(FeatureError, match=r"No feature ROC6\. Did you mean .*\bROC5\b"):
        compute_features(BARS, ["KMID", "ROC6"])


def test_no_bars_give_no_features() -> None:
    ranked = CrossSection("ROC5_RANK", KNOWN["ROC5"], "rank")
    for empty in (BARS.iloc[:0], BARS.iloc[:0].assign(in_universe=np.empty(0, bool))):
        found = compute_features(empty, [*NAMES, ranked], SESSIONS[:0])
        assert found.shape == (0, 162)
        assert len(compute_features(empty)) == 0


def test_a_frame_of_float32_is_computed_in_float32(whole) -> None:
    narrow = BARS.astype(dict.fromkeys(INPUTS, np.float32))
    found = all_of(narrow)
    wide = all_of(narrow.astype(dict.fromkeys(INPUTS, np.float64)))
    # The same numbers, so what differs is the arithmetic.
    assert {"CORR20", "CORD20", "WVMA20"} <= set(that_differ(found, wide))
    for name in ("MAX20", "MIN20", "ROC5", "IMAX20"):
        assert found[name].to_numpy().tobytes() == wide[name].to_numpy().tobytes(), name
    # One wide column makes all of it wide.
    mixed = all_of(narrow.astype({"vwap": np.float64}))
    assert that_differ(mixed, wide) == []


def test_a_function_that_writes_to_its_arrays_does_not_reach_the_frame() -> None:
    def halve(close):
        close /= 2
        return close

    bars = make_bars(60, 2, missing=0.0)
    before = bars.copy()
    compute_features(bars, [Feature("HALF", ("close",), 0, halve)])
    pd.testing.assert_frame_equal(bars, before)


@pytest.mark.parametrize("dtype", ["object", "category", "str"])
def test_symbols_may_be_of_any_kind(whole, dtype) -> None:
    assert that_differ(all_of(BARS.astype({"symbol": dtype})), whole) == []


def test_whole_numbers_are_taken_as_numbers() -> None:
    whole_numbers = BARS.assign(volume=BARS["volume"].astype(np.int64))
    assert that_differ(all_of(whole_numbers), all_of(BARS)) == []


# --- values: momentum


def slow_momentum(bars: pd.DataFrame) -> Iterable[float]:
    """Close 20 sessions ago over close 250 sessions ago, less 1, bar by bar."""
    number = {day: i for i, day in enumerate(sorted(bars["ts"].unique()))}
    close = {(s, number[ts]): c for s, ts, c in bars[["symbol", "ts", "close"]].itertuples(False)}
    for _, row in bars.sort_values(["ts", "symbol"]).iterrows():
        t = number[row["ts"]]
        new, old = (close.get((row["symbol"], t - d), math.nan) for d in (20, 250))
        yield new / old - 1.0


def test_momentum_is_the_close_20_sessions_ago_over_the_close_250_sessions_ago(whole) -> None:
    expected = np.array(list(slow_momentum(BARS)))
    assert np.isfinite(expected).sum() > 50
    np.testing.assert_allclose(whole["MOM_12_1"], expected, rtol=1e-6, atol=1e-7)


def test_momentum_of_a_short_history_is_missing() -> None:
    short = make_bars(251, 1)
    assert compute_features(short, ["MOM_12_1"])["MOM_12_1"].notna().sum() <= 1
    assert compute_features(short.iloc[:3], ["MOM_12_1"])["MOM_12_1"].isna().all()


# --- which features


def names_of(own: Sequence[Feature | CrossSection] = (), **changes: object) -> list[str]:
    return [f.name for f in choose_features(FeatureSettings(**changes), own)]


def test_chosen_features_keep_their_order_and_unknown_names_are_named() -> None:
    assert choose_features(FeatureSettings()) == tuple(ALPHA158.values())
    assert names_of(set="core") == list(FEATURE_SETS["core"])
    assert names_of(include=("ROC5", "KMID", "MA20"), exclude=("MA20",)) == ["KMID", "ROC5"]
    assert names_of(set="core", include=("WVMA60",)) == ["WVMA60"]
    assert len(names_of(exclude=("KMID",))) == 157
    for wrong in ({"include": ("ROC6",)}, {"exclude": ("ROC6",)}):
        with pytest.raises(SettingsError, match=r"No feature ROC6\. Did you mean ROC"):
            names_of(**wrong)
    with pytest.raises(SettingsError, match="leave no feature at all"):
        names_of(include=("KMID",), exclude=("KMID",))


def test_look_back_is_the_longest_window() -> None:
    assert look_back(()) == 0
    assert look_back(tuple(ALPHA158.values())) == 60
    assert look_back(tuple(FEATURE_SETS["core"].values())) == 250
    assert look_back([CrossSection("A", KNOWN["MOM_12_1"], "rank"), KNOWN["KMID"]]) == 250


def test_trivial_scores_are_registered_features() -> None:
    for name, sign in TRIVIAL_SCORES.values():
        assert name in KNOWN
        assert sign in (1.0, -1.0)


# --- one more feature is one more entry


OWN = Feature("MY_ONE", ("close", "volume"), 0, lambda close, volume: close * volume)


def test_a_feature_of_ones_own_comes_after_the_set() -> None:
    own = [OWN, CrossSection("MY_RANK", OWN, "rank")]
    assert names_of(own) == [*ALPHA158, "MY_ONE", "MY_RANK"]
    assert names_of(own, set="core")[22:] == ["MY_ONE", "MY_RANK"]
    assert names_of(own, include=("MY_RANK", "KMID")) == ["KMID", "MY_RANK"]
    assert names_of(own, exclude=("MY_ONE",)) == [*ALPHA158, "MY_RANK"]


@pytest.mark.parametrize("name", ["KMID", "kmid", "Mom_12_1", "VWAP0"])
def test_the_name_of_a_built_in_feature_is_refused_in_any_case(name) -> None:
    with pytest.raises(SettingsError, match=rf"Feature {name} .* has the name of the built-in"):
        choose_features(FeatureSettings(), [Feature(name, ("close",), 0, lambda close: close)])


def test_the_name_of_another_feature_of_ones_own_is_refused_in_any_case() -> None:
    again = Feature("my_one", ("close",), 0, lambda close: close)
    with pytest.raises(SettingsError, match=r"Feature my_one .* another of your own, MY_ONE"):
        choose_features(FeatureSettings(), [OWN, again])
    with pytest.raises(SettingsError, match="another of your own, MY_ONE"):
        choose_features(FeatureSettings(), [OWN, OWN])


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_the_name_of_a_column_that_is_there_is_refused_in_any_case(name) -> None:
    for one in (name, name.upper()):
        with pytest.raises(SettingsError, match=f"No feature can be called {one}"):
            choose_features(FeatureSettings(), [Feature(one, ("close",), 0, lambda close: close)])


@pytest.mark.parametrize("name", ["", "1a", "a b", "a\n", "é", "a" * 64, "a=1", "_a", None, 5])
def test_a_name_that_could_rewrite_a_models_header_is_refused(name) -> None:
    with pytest.raises(SettingsError, match="is no feature name"):
        Feature(name, ("close",), 0, lambda close: close)
    with pytest.raises(SettingsError, match="is no feature name"):
        CrossSection(name, OWN, "rank")


def test_unknown_inputs_are_refused_with_those_that_there_are() -> None:
    everything = r"inputs are open, high, low, close, volume, vwap"
    with pytest.raises(SettingsError, match=f"Feature A takes price, adj; {everything}"):
        Feature("A", ("close", "price", "adj"), 0, lambda *x: x[0])
    with pytest.raises(SettingsError, match=f"Feature A takes nothing; {everything}"):
        Feature("A", (), 0, lambda: 0)
    with pytest.raises(SettingsError, match=r'inputs "close"; write a tuple: \("close",\)'):
        Feature("A", "close", 0, lambda close: close)


def test_a_negative_window_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"Feature A has window -1: .* 0 or more"):
        Feature("A", ("close",), -1, lambda close: close)


@pytest.mark.parametrize("window", [5.0, "5", None])
def test_a_window_that_is_no_whole_number_is_refused(window) -> None:
    with pytest.raises(SettingsError, match="Feature A has window"):
        Feature("A", ("close",), window, lambda close: close)


def test_inputs_may_be_a_list_in_a_cross_section_too() -> None:
    """Or are refused with a message."""
    with contextlib.suppress(SettingsError):
        base = Feature("BASE", ["close"], 0, lambda close: close)
        found = compute_features(BARS, [CrossSection("A", base, "rank")])
        assert found["A"].max() == 1.0


def test_a_cross_section_is_a_rank_or_a_zscore_of_a_feature() -> None:
    with pytest.raises(SettingsError, match='how="median": "rank" or "zscore"'):
        CrossSection("A", OWN, "median")
    for no_feature in ("ROC5", CrossSection("B", OWN, "rank"), None):
        with pytest.raises(SettingsError, match="A"):
            CrossSection("A", no_feature, "rank")
