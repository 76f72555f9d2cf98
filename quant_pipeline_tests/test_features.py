"""Rules of features: each one passes these tests just by being registered.

Values are checked against Qlib's (oracles/ of the shared folder) and a slow oracle written here.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant_pipeline.errors import SettingsError
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
