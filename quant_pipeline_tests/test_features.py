"""Rules of features: each one passes these tests just by being registered.

Values are checked against Qlib's (oracles/ of the shared folder) and a slow oracle written here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant_pipeline.errors import SettingsError
from quant_pipeline.market.feature_matrix import compute_matrix, spans_jump
from quant_pipeline.market.features import (
    FEATURE_SETS,
    INPUTS,
    TRIVIAL_SCORES,
    Feature,
    choose_features,
    compute_features,
    look_back,
)
from quant_pipeline.settings import FeatureSettings

FEATURES = FEATURE_SETS["core"]
ORACLES = Path(__file__).parents[2] / "shared" / "oracles"
every_feature = pytest.mark.parametrize("name", list(FEATURES))


def make_bars(
    n_sessions: int = 320, n_symbols: int = 4, seed: int = 0, level: float = 30.0
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
        keep = rng.random(n_sessions) > 0.05
        keep[: 40 * i] = False
        keep[n_sessions - 25 * i :] = False
        frames.append(frame[keep])
    return pd.concat(frames, ignore_index=True)


BARS = make_bars()
SESSIONS = np.unique(BARS["ts"].to_numpy("datetime64[D]"))
LEVELS = {level: make_bars(150, 3, 1, level) for level in (1e-8, 1.0, 1e8)}


Column = npt.NDArray[np.floating]


def same_bits(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    keys = one[["symbol", "ts"]].astype(str).equals(other[["symbol", "ts"]].astype(str))
    names = [c for c in one if c not in ("symbol", "ts")]
    return keys and all(one[c].to_numpy().tobytes() == other[c].to_numpy().tobytes() for c in names)


# --- what every registered feature has to do


@every_feature
def test_a_feature_never_looks_ahead(name: str) -> None:
    whole = compute_features(BARS, [name])
    for last in SESSIONS[[0, 1, 30, 150, 255, -2]]:
        past = compute_features(BARS[BARS["ts"] <= last], [name])
        assert same_bits(past, whole[whole["ts"] <= last].reset_index(drop=True))


@every_feature
def test_the_look_back_is_enough_for_the_same_bits(name: str) -> None:
    """One partition computed from its look-back alone, with the symbols that are there."""
    whole = compute_features(BARS, [name])
    for start in (1, 60, 251, 290):
        first = max(start - look_back([FEATURES[name]]), 0)
        part = BARS[BARS["ts"] >= SESSIONS[first]]
        alone = compute_features(part, [name], SESSIONS[first:])
        wanted = SESSIONS[start]
        assert same_bits(
            alone[alone["ts"] >= wanted].reset_index(drop=True),
            whole[whole["ts"] >= wanted].reset_index(drop=True),
        )


@every_feature
def test_the_order_of_rows_and_other_symbols_do_not_matter(name: str) -> None:
    whole = compute_features(BARS, [name], SESSIONS)
    assert same_bits(compute_features(BARS.sample(frac=1, random_state=1), [name]), whole)
    alone = compute_features(BARS[BARS["symbol"] == "S2"], [name], SESSIONS)
    assert same_bits(alone, whole[whole["symbol"] == "S2"].reset_index(drop=True))


@every_feature
@pytest.mark.parametrize("level", list(LEVELS))
def test_a_feature_is_never_infinite(name: str, level: float) -> None:
    bars = LEVELS[level]
    extremes = bars.assign(volume=0.0), bars.assign(volume=bars["volume"] * 1e6), bars
    frozen = bars.assign(**dict.fromkeys(("open", "high", "low", "close", "vwap"), level))
    for one in (*extremes, frozen):
        values = compute_features(one, [name])[name]
        assert values.dtype == np.float32
        assert not np.isinf(values).any()


@every_feature
def test_a_feature_has_values_and_they_vary(name: str) -> None:
    values = compute_features(BARS, [name])[name]
    old_enough = BARS.groupby("symbol").size().sub(FEATURES[name].window).clip(lower=0).sum()
    assert values.notna().sum() > 0.75 * old_enough
    assert values.nunique() > 0.4 * old_enough


@every_feature
def test_a_feature_leaves_its_input_alone(name: str) -> None:
    bars = make_bars(60, 2)
    before = bars.copy()
    compute_features(bars, [name])
    pd.testing.assert_frame_equal(bars, before)


@every_feature
def test_missing_values_are_skipped_without_a_warning(name: str) -> None:
    bars = make_bars(80, 2)
    bars.loc[bars.index % 7 == 0, list(INPUTS)] = np.nan
    assert not np.isinf(compute_features(bars, [name])[name]).any()
    one = compute_features(bars.iloc[1:2], [name])
    assert len(one) == 1


# --- windows and jumps


@dataclass(frozen=True)
class Coded:
    """Bars sorted by (symbol, session), both as numbers."""

    symbol: npt.NDArray[np.int64]
    session: npt.NDArray[np.int64]
    columns: dict[str, npt.NDArray[np.float64]]

    def values(self, name: str, is_jump: npt.NDArray[np.bool_] | None = None) -> Column:
        features = [FEATURES[name]]
        return compute_matrix(self.symbol, self.session, self.columns, features, is_jump)[:, 0]

    def replaced(self, rows: npt.NDArray[np.bool_], scale: Column | float) -> "Coded":
        """The same bars, but for the values of some rows: all are multiplied."""
        columns = {k: np.where(rows, v * scale, v) for k, v in self.columns.items()}
        return Coded(self.symbol, self.session, columns)


def code(bars: pd.DataFrame) -> Coded:
    bars = bars.sort_values(["symbol", "ts"])
    symbol = pd.factorize(bars["symbol"], sort=True)[0].astype(np.int64)
    session = np.searchsorted(SESSIONS, bars["ts"].to_numpy("datetime64[D]")).astype(np.int64)
    return Coded(symbol, session, {name: bars[name].to_numpy() for name in INPUTS})


def slow_spans(
    symbol: npt.NDArray[np.int64],
    session: npt.NDArray[np.int64],
    is_jump: npt.NDArray[np.bool_],
    window: int,
) -> npt.NDArray[np.bool_]:
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


@every_feature
def test_a_value_needs_its_window_and_nothing_older(name: str) -> None:
    """Replace what is older than the window: same bits. Replace its oldest session: new values."""
    window = FEATURES[name].window
    usual = CODED.values(name)
    n_changed = 0
    for t in (window, window + 1, 280, 300, 310):
        now = CODED.session == t
        older = CODED.replaced(CODED.session < t - window, 1 / 7).values(name)
        assert older[now].tobytes() == usual[now].tobytes()
        rng = np.random.default_rng(t)
        for scale in (1 / 7, 7.0):
            noise = {k: scale * np.exp(rng.standard_normal(N)) for k in INPUTS}
            oldest = CODED.session == t - window
            columns = {k: np.where(oldest, v * noise[k], v) for k, v in CODED.columns.items()}
            other = Coded(CODED.symbol, CODED.session, columns).values(name)
            n_changed += int((other[now] != usual[now])[~np.isnan(usual[now])].sum())
    assert n_changed > 0, f"{name} does not need its {window} sessions"


def test_lags_reach_one_session_further_back_than_rolling_windows() -> None:
    for name, feature in FEATURES.items():
        kind, digits = name.rstrip("0123456789"), name.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        if digits.isdigit():
            assert feature.window == int(digits) - (kind != "ROC")
    assert FEATURES["MOM_12_1"].window == 250
    assert {f.window for f in FEATURES.values() if f.name.startswith("K")} == {0}


@every_feature
@pytest.mark.parametrize("jumps", list(SOME_JUMPS))
def test_exactly_the_values_whose_window_spans_a_jump_are_missing(name: str, jumps: str) -> None:
    is_jump = SOME_JUMPS[jumps]
    before = is_jump.copy(), {k: v.copy() for k, v in CODED.columns.items()}
    usual, found = CODED.values(name), CODED.values(name, is_jump)
    spans = slow_spans(CODED.symbol, CODED.session, is_jump, FEATURES[name].window)
    assert found.dtype == np.float32
    assert np.array_equal(np.isnan(found), np.isnan(usual) | spans)
    assert found[~spans].tobytes() == usual[~spans].tobytes()
    assert np.array_equal(is_jump, before[0])
    assert all(np.array_equal(v, before[1][k]) for k, v in CODED.columns.items())


@every_feature
@pytest.mark.parametrize("jumps", [j for j in SOME_JUMPS if j not in ("none", "all")])
def test_prices_before_a_jump_change_no_value_after_it(name: str, jumps: str) -> None:
    """So that it does not matter how far off an unadjusted price was."""
    is_jump = SOME_JUMPS[jumps]
    found = CODED.values(name, is_jump)
    newest = np.maximum.accumulate(np.where(is_jump, np.arange(N), -1))
    newest[newest < FIRSTS[CODED.symbol]] = -1  # one of the symbol before
    last_jump = np.array([newest[CODED.symbol == s][-1] for s in range(CODED.symbol[-1] + 1)])
    is_before = np.arange(N) < last_jump[CODED.symbol]
    is_after = (newest >= 0) & ~is_before
    assert is_before.any()
    noise = np.exp(3 * np.random.default_rng(0).standard_normal(N))
    for scale in (1 / 7, noise, np.nan):
        other = CODED.replaced(is_before, scale).values(name, is_jump)
        assert other[is_after].tobytes() == found[is_after].tobytes()
        is_untouched = ~is_before & ~is_after
        assert other[is_untouched].tobytes() == found[is_untouched].tobytes()
    if jumps == "early":
        assert (~np.isnan(found[is_after])).any(), "nothing was compared"


def test_without_a_flag_a_jump_reaches_every_feature_that_looks_back() -> None:
    """The rule above is not kept by features that ignore what is before a jump anyway."""
    is_before = CODED.session < 20
    for name, feature in FEATURES.items():
        usual, other = CODED.values(name), CODED.replaced(is_before, 1 / 7).values(name)
        is_changed = (usual != other) & ~np.isnan(usual) & ~is_before
        assert is_changed.any() == (feature.window > 0), name


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
    assert list(frame) == ["symbol", "ts", *FEATURES]
    keys = BARS.sort_values(["ts", "symbol"], ignore_index=True)[["symbol", "ts"]]
    assert frame["symbol"].tolist() == keys["symbol"].tolist()
    assert (frame["ts"].to_numpy() == keys["ts"].to_numpy()).all()


def test_one_feature_alone_has_the_bits_of_all_together() -> None:
    together = compute_features(BARS)
    for name in FEATURES:
        alone = compute_features(BARS, [name])
        assert alone[name].to_numpy().tobytes() == together[name].to_numpy().tobytes()


def test_a_bar_on_no_session_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"bars are on dates that are no session"):
        compute_features(BARS, ["KMID"], SESSIONS[:-1])


def test_no_bars_give_no_features() -> None:
    assert len(compute_features(BARS.iloc[:0])) == 0


# --- values: a slow oracle

Window = list[float]
Values = npt.NDArray[np.float64]


def present(values: Window) -> Window:
    return [v for v in values if not math.isnan(v)]


def mean_of(values: Window) -> float:
    found = present(values)
    return math.fsum(found) / len(found) if found else math.nan


def std_of(values: Window) -> float:
    found = present(values)
    if len(found) < 2:
        return math.nan
    center = mean_of(found)
    return math.sqrt(math.fsum((v - center) ** 2 for v in found) / (len(found) - 1))


def divided(a: float, b: float) -> float:
    return math.nan if b == 0 or math.isnan(a) or math.isnan(b) else a / b


def largest(values: Window) -> float:
    return max(present(values), default=math.nan)


def smallest(values: Window) -> float:
    return min(present(values), default=math.nan)


def correlation_of(x: Window, y: Window) -> float:
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if not math.isnan(a + b)]
    xs, ys = [a for a, _ in pairs], [b for _, b in pairs]
    if len(pairs) < 2 or std_of(xs) <= 2e-5 or std_of(ys) <= 2e-5:
        return math.nan
    mx, my = mean_of(xs), mean_of(ys)
    xy = math.fsum((a - mx) * (b - my) for a, b in pairs)
    xx, yy = math.fsum((a - mx) ** 2 for a in xs), math.fsum((b - my) ** 2 for b in ys)
    return xy / math.sqrt(xx * yy)


def slow_value(name: str, columns: dict[str, Values], t: int) -> float:
    """A feature of session t, from its definition in Alpha158, session by session."""
    o, h, low, c = (float(columns[n][t]) for n in ("open", "high", "low", "close"))
    candles: dict[str, Callable[[], float]] = {
        "KMID": lambda: divided(c - o, o),
        "KLEN": lambda: divided(h - low, o),
        "KUP": lambda: divided(h - max(o, c), o),
        "KLOW": lambda: divided(min(o, c) - low, o),
        "KSFT": lambda: divided(2 * c - h - low, o),
    }
    if name in candles:
        return candles[name]()

    def ago(n: int) -> float:
        return float(columns["close"][t - n]) if t >= n else math.nan

    if name == "MOM_12_1":
        return divided(ago(20), ago(250)) - 1
    kind, w = name.rstrip("0123456789"), int(name.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))

    def window(column: str) -> Window:
        return columns[column][max(t - w + 1, 0) : t + 1].tolist()

    volume = float(columns["volume"][t]) + 1e-12
    bottom, top = smallest(window("low")), largest(window("high"))
    logs = [math.log1p(v) for v in window("volume")]
    rolling: dict[str, Callable[[], float]] = {
        "ROC": lambda: divided(ago(w), c),
        "MA": lambda: divided(mean_of(window("close")), c),
        "STD": lambda: divided(std_of(window("close")), c),
        "MAX": lambda: divided(top, c),
        "MIN": lambda: divided(bottom, c),
        "RSV": lambda: divided(c - bottom, top - bottom + 1e-12),
        "CORR": lambda: correlation_of(window("close"), logs),
        "VMA": lambda: divided(mean_of(window("volume")), volume),
        "VSTD": lambda: divided(std_of(window("volume")), volume),
    }
    return rolling[kind]()


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**16), st.integers(70, 260))
@pytest.mark.parametrize("names", [list(FEATURES)])
def test_values_are_those_of_the_slow_oracle(names: list[str], seed: int, n: int) -> None:
    bars = make_bars(n, 2, seed)
    frame = compute_features(bars, names).set_index(["symbol", "ts"])
    sessions = np.unique(bars["ts"])
    rng = np.random.default_rng(seed)
    for symbol, mine in bars.groupby("symbol"):
        life = sessions[sessions >= mine["ts"].min()]
        placed = mine.set_index("ts").reindex(life)
        columns = {c: placed[c].to_numpy() for c in INPUTS}
        for t in rng.choice(np.flatnonzero(placed["close"].notna()), 12):
            for name in names:
                expected = slow_value(name, columns, int(t))
                found = float(frame.loc[(symbol, life[t]), name])
                assert found == pytest.approx(expected, rel=2e-6, abs=2e-7, nan_ok=True), name


# --- values: Qlib's


def test_values_are_those_of_qlib_with_the_same_missing_ones() -> None:
    if not (ORACLES / "alpha158_panel.parquet").exists():
        pytest.skip(f"{ORACLES} is missing: this was NOT tested against Qlib")
    panel = pq.read_table(ORACLES / "alpha158_panel.parquet").to_pandas()
    qlib = pq.read_table(ORACLES / "alpha158_qlib.parquet").to_pandas()
    f32 = np.float32
    factor = panel["adj_close"] / panel["close"]
    bars = pd.DataFrame({"symbol": panel["symbol"], "ts": pd.to_datetime(panel["ts"])})
    for name in ("open", "high", "low", "close"):
        bars[name] = (panel[name] * factor).astype(f32).astype(np.float64)
    bars["volume"] = (panel["volume"] / factor).astype(f32).astype(np.float64)
    bars["vwap"] = (bars["high"] + bars["low"] + bars["close"]) / 3
    names = [n for n in FEATURES if n in qlib]
    assert len(names) == len(FEATURES) - 1, "only MOM_12_1 is not one of Qlib's"
    ours = compute_features(bars, names)
    qlib["datetime"] = pd.to_datetime(qlib["datetime"])
    theirs = ours[["symbol", "ts"]].merge(
        qlib, left_on=["symbol", "ts"], right_on=["instrument", "datetime"], validate="1:1"
    )
    assert len(theirs) == len(panel)
    for name in names:
        x, y = ours[name].to_numpy(np.float64), theirs[name].to_numpy(np.float64)
        assert np.array_equal(np.isnan(x), np.isnan(y)), name
        far = np.abs(x - y) / np.maximum(1, np.abs(y))
        # Qlib takes the logarithm of volumes in float32, here it is one of float64.
        assert np.nanmax(far) < (1e-5 if name.startswith("CORR") else 1e-6), name
        assert np.mean(far[~np.isnan(far)] < 1e-6) > 0.98, name


# --- which features


def test_chosen_features_keep_their_order_and_unknown_names_are_named() -> None:
    assert choose_features(FeatureSettings()) == tuple(FEATURES.values())
    chosen = choose_features(FeatureSettings(include=("ROC5", "KMID", "MA20"), exclude=("MA20",)))
    assert [f.name for f in chosen] == ["KMID", "ROC5"]
    for wrong in (FeatureSettings(include=("ROC6",)), FeatureSettings(exclude=("ROC6",))):
        with pytest.raises(SettingsError, match=r"No feature ROC6\. Did you mean ROC"):
            choose_features(wrong)
    with pytest.raises(SettingsError, match="leave no feature at all"):
        choose_features(FeatureSettings(include=("KMID",), exclude=("KMID",)))


def test_look_back_is_the_longest_window() -> None:
    assert look_back(()) == 0
    assert look_back(tuple(FEATURES.values())) == 250


@pytest.mark.parametrize("name", ["", "1a", "a b", "a\n", "é", "a" * 64, "a=1"])
def test_a_name_that_could_rewrite_a_models_header_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="is no feature name"):
        Feature(name, "", 0, lambda b: b.close)


def test_trivial_scores_are_registered_features() -> None:
    for name, sign in TRIVIAL_SCORES.values():
        assert name in FEATURES
        assert sign in (1.0, -1.0)
