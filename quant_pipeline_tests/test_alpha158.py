"""Alpha158 has Qlib's values, and those of a slow oracle on the panels that break formulas.

The oracle (alpha158_oracle.py) shares no code with the kernels. It has to pass each rule here
that the kernels have to pass, so a rule that is wrong fails twice.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant_pipeline.market.features import compute_features
from quant_pipeline_tests.alpha158_oracle import (
    ALPHA158,
    CANDLES,
    INPUTS,
    WINDOWS,
    log_rounding,
    slow_features,
)

ORACLES = Path(__file__).parents[2] / "shared" / "oracles"
PRICES = ("open", "high", "low", "close", "vwap")
CLOSE_ENOUGH = 1e-6
"""Of a value, eight roundings of a float32."""
LEAST = 1e-6
"""Values below this are compared as if they were this large.

Relative to max(1, |x|) a deviation of 1e-6 of the price could be anything. In float64 and
without cancelling, sums of 60 values up to 30 times the newest are off by less than 1e-12.
"""
N_ULPS = 4
"""What float32 logarithms of numpy and of C libraries may be off."""

both = pytest.mark.parametrize("compute", [slow_features, compute_features], ids=["slow", "ours"])
both_dtypes = pytest.mark.parametrize("dtype", ["float64", "float32"])


def named(*kinds: str) -> tuple[str, ...]:
    return tuple(f"{kind}{d}" for kind in kinds for d in WINDOWS)


FAMILIES = {
    "candles": tuple(CANDLES),
    "levels": named("ROC", "MA", "STD", "MAX", "MIN", "QTLU", "QTLD", "RANK", "RSV"),
    "lines": named("BETA", "RSQR", "RESI"),
    "places": named("IMAX", "IMIN", "IMXD"),
    "correlations": named("CORR", "CORD"),
    "counts": named("CNTP", "CNTN", "CNTD"),
    "paths": named("SUMP", "SUMN", "SUMD", "VSUMP", "VSUMN", "VSUMD"),
    "volumes": named("VMA", "VSTD", "WVMA"),
}


def distance(
    found: npt.ArrayLike, expected: npt.ArrayLike, least: float = 1.0
) -> npt.NDArray[np.float64]:
    """Relative to max(least, |expected|); NaN where both are missing, infinite where one is."""
    x, y = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    apart = np.abs(x - y) / np.maximum(least, np.abs(y))
    return np.where(np.isnan(x) != np.isnan(y), np.inf, apart)


# --- values: Qlib's


@pytest.fixture(scope="module")
def panel() -> pd.DataFrame:
    """The bars that were Qlib's input, in float32."""
    if not (ORACLES / "alpha158_panel.parquet").exists():
        pytest.skip(f"{ORACLES} is missing: Alpha158 was NOT tested against Qlib")
    raw = pq.read_table(ORACLES / "alpha158_panel.parquet").to_pandas()
    factor = raw["adj_close"] / raw["close"]
    bars = pd.DataFrame({"symbol": raw["symbol"], "ts": pd.to_datetime(raw["ts"])})
    for name in ("open", "high", "low", "close"):
        bars[name] = (raw[name] * factor).astype(np.float32)
    bars["volume"] = (raw["volume"] / factor).astype(np.float32)
    bars["vwap"] = (bars["high"] + bars["low"] + bars["close"]) / 3
    assert all(bars[name].dtype == np.float32 for name in INPUTS)
    return bars


@pytest.fixture(scope="module")
def qlib(panel) -> pd.DataFrame:
    """Qlib's values of the panel's rows, in the panel's order by session and symbol."""
    frame = pq.read_table(ORACLES / "alpha158_qlib.parquet").to_pandas()
    frame["datetime"] = pd.to_datetime(frame["datetime"])
    keys = panel[["symbol", "ts"]].sort_values(["ts", "symbol"])
    there = {"left_on": ["symbol", "ts"], "right_on": ["instrument", "datetime"]}
    return keys.merge(frame, how="left", validate="1:1", indicator=True, **there)


def test_the_names_are_qlibs_in_its_order(qlib) -> None:
    keys = ("symbol", "ts", "instrument", "datetime", "LABEL0", "_merge")
    assert tuple(n for n in qlib if n not in keys) == ALPHA158
    assert len(ALPHA158) == 158
    assert sorted(ALPHA158) == sorted(n for names in FAMILIES.values() for n in names)


@both
def test_values_are_those_of_qlib_with_the_same_missing_ones(compute, panel, qlib) -> None:
    assert (qlib["_merge"] == "both").all()
    found = compute(panel, ALPHA158)
    assert found["symbol"].tolist() == qlib["symbol"].tolist()
    assert (found["ts"].to_numpy() == qlib["ts"].to_numpy()).all()
    worst = pd.Series({n: np.nanmax(distance(found[n], qlib[n])) for n in ALPHA158})
    worst = worst.sort_values(ascending=False)
    report = f"furthest from Qlib (inf: missing in one only):\n{worst.head(12).to_string()}"
    assert (worst <= CLOSE_ENOUGH).sum() >= 157, report
    assert (worst <= 2e-5).all(), report


def test_all_158_are_the_default_and_one_row_a_bar(panel) -> None:
    bars = panel[panel["ts"] < panel["ts"].min() + pd.Timedelta(days=30)]
    assert list(compute_features(bars)) == ["symbol", "ts", *ALPHA158]
    assert len(compute_features(bars)) == len(bars)


# --- values: the slow oracle's, on random panels


def price_path(
    rng: np.random.Generator, kind: str, level: float, n: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Prices of n sessions; of some kinds the whole bar is one price."""
    close = np.exp(0.02 * rng.standard_normal(n).cumsum())
    if kind == "frozen":
        close[:] = 1.0
    if kind == "half frozen":
        close[n // 3 :] = close[n // 3]
    if kind == "ticks":
        close = 1 + 0.25 * rng.integers(0, 3, n)
    if kind == "nearly flat":
        close = 1 + 1e-6 * rng.standard_normal(n)
    if kind == "splits":
        close *= np.where(np.arange(n) >= n // 2, rng.choice([2.0, 0.1]), 1.0)
    close = level * close
    if kind in ("frozen", "half frozen"):
        return dict.fromkeys(PRICES, close)
    step = 0.25 if kind == "ticks" else 0.01
    moves = rng.integers(0, 3, (3, n)) if kind == "ticks" else rng.random((3, n))
    open_ = close * (1 + step * (moves[0] - 1))
    high = np.maximum(open_, close) * (1 + step * moves[1])
    low = np.minimum(open_, close) * (1 - step * moves[2])
    return {"open": open_, "high": high, "low": low, "close": close, "vwap": (high + low) / 2}


def volume_path(rng: np.random.Generator, kind: str, n: int) -> npt.NDArray[np.float64]:
    volume = np.round(np.minimum(1e6 * np.exp(2 * rng.standard_normal(n)), 1e9))
    if kind == "some zero":
        volume[rng.random(n) < 0.4] = 0.0
    if kind == "stopped":
        volume[n // 2 :] = 0.0
    if kind == "zero":
        volume[:] = 0.0
    if kind == "frozen":
        volume[:] = 12345.0
    if kind == "nearly frozen":
        volume = 1e9 - rng.integers(0, 3, n)
    if kind == "few":
        volume = rng.integers(0, 3, n).astype(np.float64)
    if kind == "some missing":
        volume[rng.random(n) < 0.3] = np.nan
    return volume


PRICE_KINDS = ("walk", "walk", "splits", "ticks", "frozen", "half frozen", "nearly flat")
OFTEN = ("walk", "walk", "some zero", "some missing")
VOLUME_KINDS = (*OFTEN, "stopped", "zero", "frozen", "nearly frozen", "few")
CALENDAR = np.arange("2019-01-01", "2019-04-01", dtype="datetime64[D]").astype("datetime64[s]")


@st.composite
def symbol_bars(draw: st.DrawFn, symbol: str, n: int) -> pd.DataFrame:
    """One symbol's bars on some of the n sessions, at least on one."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    level = draw(st.sampled_from([1.0, 1.0, 1e8, 1e-8]))
    columns = price_path(rng, draw(st.sampled_from(PRICE_KINDS)), level, n)
    columns["volume"] = volume_path(rng, draw(st.sampled_from(VOLUME_KINDS)), n)
    is_bar = rng.random(n) >= draw(st.sampled_from([0.0, 0.1, 0.6]))
    hole = draw(st.sampled_from([0, 3, 20, 65]))
    start = draw(st.integers(1, 12))
    is_bar[start : start + hole] = False
    life = draw(st.sampled_from(["whole", "whole", "late", "delisted", "one row"]))
    if life == "late":
        is_bar[: n // 3] = False
    if life == "delisted":
        is_bar[2 * n // 3 :] = False
    if life == "one row" or not is_bar.any():
        is_bar[:] = np.arange(n) == n // 2
    frame = pd.DataFrame({"symbol": symbol, "ts": CALENDAR[:n]} | columns)
    return frame[is_bar]


@st.composite
def panels(draw: st.DrawFn) -> tuple[pd.DataFrame, npt.NDArray[np.datetime64] | None]:
    """Bars of two to four symbols in any order; their market's sessions, or None."""
    n = draw(st.just(len(CALENDAR)) | st.integers(1, len(CALENDAR)))
    symbols = ["B", "A", "D", "C"][: draw(st.integers(2, 4))]
    frames = [draw(symbol_bars(symbol, n)) for symbol in symbols]
    bars = pd.concat(frames).sample(frac=1, random_state=draw(st.integers(0, 99)))
    return bars.reset_index(drop=True), CALENDAR[:n] if draw(st.booleans()) else None


def disagreements(
    found: pd.DataFrame, expected: pd.DataFrame, allowed: dict[str, npt.NDArray[np.float64]]
) -> Iterable[str]:
    """A line for each feature that is further off than it may be, with its worst value.

    `allowed` is what a feature may be off beyond CLOSE_ENOUGH, a value a row.
    """
    for name in list(expected)[2:]:
        apart = np.nan_to_num(distance(found[name], expected[name], LEAST), nan=0, posinf=np.inf)
        size = np.maximum(LEAST, np.abs(expected[name].to_numpy(np.float64)))
        limit = CLOSE_ENOUGH + allowed.get(name, 0.0) / size
        is_far = apart > limit
        if is_far.any():
            at = int(np.where(is_far, apart, -1).argmax())
            row = expected.iloc[at]
            yield (
                f"{name}: {is_far.sum()} of {len(found)} rows; {row['symbol']} {row['ts']:%m-%d} "
                f"is {found[name].iloc[at]!r}, not {row[name]!r} (allowed {limit[at]:.1e})"
            )


@both_dtypes
@pytest.mark.parametrize("family", list(FAMILIES))
@settings(
    max_examples=24,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(panels())
def test_values_are_those_of_the_slow_oracle(
    family: str, dtype: str, drawn: tuple[pd.DataFrame, npt.NDArray[np.datetime64] | None]
) -> None:
    """To CLOSE_ENOUGH, but for correlations of logarithms, the one step that is not exact.

    Each other step before a window is one IEEE operation, so it has one right result in
    either dtype, and all statistics are well conditioned relative to max(LEAST, |x|). Two
    good float32 logarithms differ in the last bits though; where volumes hardly vary this
    moves a correlation by `log_rounding`, which is far below CLOSE_ENOUGH in float64.
    """
    bars, sessions = drawn
    bars = bars.astype(dict.fromkeys(INPUTS, dtype))
    before = bars.copy()
    names = FAMILIES[family]
    found, expected = compute_features(bars, names, sessions), slow_features(bars, names, sessions)
    pd.testing.assert_frame_equal(bars, before)
    assert list(found) == list(expected) == ["symbol", "ts", *names]
    assert found["symbol"].tolist() == expected["symbol"].tolist()
    assert (found["ts"].to_numpy() == expected["ts"].to_numpy()).all()
    assert all(found[n].dtype == np.float32 for n in names)
    assert not np.isinf(found[list(names)].to_numpy()).any()
    allowed = {}
    if family == "correlations":
        allowed = {n: log_rounding(bars, n, N_ULPS, sessions) for n in names}
    lines = list(disagreements(found, expected, allowed))
    assert not lines, "\n".join(lines)


# --- one rule each, on bars made by hand

DAYS = np.arange("2020-01-01", "2020-06-01", dtype="datetime64[D]").astype("datetime64[s]")
MISSING = math.nan


def bars_of(
    close: Sequence[float],
    volume: float | Sequence[float] = 100.0,
    days: Sequence[int] | None = None,
    **others: Sequence[float] | float,
) -> pd.DataFrame:
    """Bars of A on the given days (from 0 on); open, high, low and vwap are the close."""
    where = list(range(len(close))) if days is None else list(days)
    close = np.asarray(close, np.float64)
    columns = dict.fromkeys(PRICES, close) | {"volume": volume} | others
    frame = pd.DataFrame({"symbol": "A", "ts": DAYS[where]} | columns)
    return frame.astype(dict.fromkeys(INPUTS, np.float64))


def assert_last(compute, bars: pd.DataFrame, sessions=DAYS, **expected: float) -> None:
    """The newest row's features; a name without a window stands for all five."""
    names = {
        n: value
        for name, value in expected.items()
        for n in ([name] if name in ALPHA158 else named(name))
    }
    row = compute(bars, list(names), sessions).iloc[-1]
    wrong = {
        name: (float(row[name]), value)
        for name, value in names.items()
        if float(row[name]) != pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True)
    }
    assert not wrong, f"found, expected: {wrong}"


@both
def test_the_first_bar_has_what_needs_one_value(compute) -> None:
    bars = bars_of([10.0], open=8.0, high=12.0, low=7.0, vwap=9.0)
    assert_last(compute, bars, KMID=0.25, KLEN=0.625, KMID2=0.4, KUP=0.25, KUP2=0.4)
    assert_last(compute, bars, KLOW=0.125, KLOW2=0.2, KSFT=0.125, KSFT2=0.2)
    assert_last(compute, bars, OPEN0=0.8, HIGH0=1.2, LOW0=0.7, VWAP0=0.9)
    assert_last(compute, bars, MA=1, MAX=1.2, MIN=0.7, QTLU=1, QTLD=1, RANK=1, RSV=0.6, VMA=1)
    assert_last(compute, bars, IMAX5=0.2, IMIN5=0.2, IMAX60=1 / 60, IMXD=0)
    assert_last(compute, bars, CNTP=0, CNTN=0, CNTD=0)
    two = ("ROC", "STD", "BETA", "RSQR", "RESI", "CORR", "CORD", "VSTD", "WVMA")
    paths = ("SUMP", "SUMN", "SUMD", "VSUMP", "VSUMN", "VSUMD")
    assert_last(compute, bars, **dict.fromkeys((*two, *paths), MISSING))


@both
def test_two_bars_are_a_line(compute) -> None:
    bars = bars_of([1.0, 2.0], [3.0, 1.0])
    assert_last(compute, bars, BETA=0.5, RSQR=1, RESI=0, STD=math.sqrt(0.5) / 2, CORR=-1)
    assert_last(compute, bars, CORD=MISSING, WVMA=MISSING, SUMP=1, SUMN=0, SUMD=1, VSUMD=-1)
    assert_last(compute, bars, QTLU=0.9, QTLD=0.6, VMA=2, VSTD=math.sqrt(2))


@both
def test_no_volume_at_all_is_zero_not_infinite(compute) -> None:
    bars = bars_of([1.0, 2.0, 1.5, 3.0], 0.0)
    zero = ("VMA", "VSTD", "WVMA", "VSUMP", "VSUMN", "VSUMD")
    assert_last(compute, bars, **dict.fromkeys(zero, 0.0), CORR=MISSING, CORD=MISSING)


@both
@both_dtypes
def test_no_volume_today_is_a_large_number(compute, dtype) -> None:
    bars = bars_of([1.0, 2.0, 1.0], [100.0, 200.0, 0.0]).astype(dict.fromkeys(INPUTS, dtype))
    assert_last(compute, bars, VMA=1e14, VSTD=1e14, VSUMD=-1 / 3)


@both
@both_dtypes
def test_a_value_that_does_not_fit_into_float32_is_missing(compute, dtype) -> None:
    bars = bars_of([1.0, 2.0, 1.0], [1e30, 1e30, 0.0]).astype(dict.fromkeys(INPUTS, dtype))
    assert_last(compute, bars, VMA=MISSING, VSTD=MISSING, VSUMD=-1)


@both
@both_dtypes
def test_a_ratio_by_zero_is_missing(compute, dtype) -> None:
    bars = bars_of([1.0, 2.0, 0.0], open=[1.0, 1.0, 0.0], high=3.0, low=0.0)
    bars = bars.astype(dict.fromkeys(INPUTS, dtype))
    by_open = ("KMID", "KLEN", "KUP", "KLOW", "KSFT")
    by_close = ("OPEN0", "HIGH0", "LOW0", "VWAP0", "ROC5", "MA", "STD", "BETA", "RESI", "MAX")
    assert_last(compute, bars, **dict.fromkeys((*by_open, *by_close), MISSING))
    assert_last(compute, bars, KMID2=0, KUP2=1, KLOW2=0, KSFT2=-1, RSV=0, RANK=1 / 3)


@both
def test_a_return_from_a_price_of_zero_is_missing(compute) -> None:
    """Of WVMA and CORD it takes away one session, no more."""
    bars = bars_of([1.0, 0.0, 2.0, 4.0, 2.0], [1.0, 1.0, 5.0, 3.0, 2.0])
    sizes = [1.0, 3.0, 1.0]  # |return| * volume, without session 2
    spread = float(np.std(sizes, ddof=1) / np.mean(sizes))
    pairs = np.corrcoef([0.0, 2.0, 0.5], np.log1p([1.0, 3 / 5, 2 / 3]))
    assert_last(compute, bars, WVMA=spread, CORD=float(pairs[0, 1]))


@both
def test_a_volume_ratio_by_zero_is_missing_from_cord(compute) -> None:
    bars = bars_of([1.0, 2.0, 3.0, 2.0, 5.0], [1.0, 2.0, 0.0, 4.0, 3.0])
    pairs = np.corrcoef([2.0, 1.5, 2.5], np.log1p([2.0, 0.0, 0.75]))
    assert_last(compute, bars, CORD=float(pairs[0, 1]))


@both
@pytest.mark.parametrize("level", [1e-8, 0.1, 1e8])
def test_flat_prices_have_no_trend_and_no_correlation(compute, level) -> None:
    bars = bars_of([level] * 60, np.arange(1.0, 61.0))
    zero = ("STD", "BETA", "RESI", "RSV", "WVMA", "CNTP", "CNTN", "CNTD", "SUMP", "SUMN", "SUMD")
    assert_last(compute, bars, **dict.fromkeys((*CANDLES, *zero), 0.0) | candle_ratios())
    assert_last(compute, bars, RSQR=MISSING, CORR=MISSING, CORD=MISSING)
    assert_last(compute, bars, ROC5=1, ROC60=MISSING, MA=1, MAX=1, MIN=1, QTLU=1, QTLD=1)
    for d in WINDOWS:
        places = {f"RANK{d}": (d + 1) / 2 / d, f"IMAX{d}": 1 / d, f"IMIN{d}": 1 / d}
        assert_last(compute, bars, **places, **{f"IMXD{d}": 0})


def candle_ratios() -> dict[str, float]:
    return dict.fromkeys(("OPEN0", "HIGH0", "LOW0", "VWAP0"), 1.0)


@both
@both_dtypes
def test_a_deviation_of_at_most_2e_5_has_no_correlation(compute, dtype) -> None:
    """Of RSQR the closes', of CORR and CORD either; sqrt(2) is two values' distance by std."""
    for share, is_flat in ((0.99, True), (1.01, False)):
        step = share * 2e-5 * math.sqrt(2)
        price = bars_of([0.25, 0.25 + step], [10.0, 20.0]).astype(dict.fromkeys(INPUTS, dtype))
        assert_last(compute, price, RSQR=MISSING if is_flat else 1, CORR=MISSING if is_flat else 1)
        volume = bars_of([1.0, 2.0], [0.0, math.expm1(step)])  # a log of 1 + v in float64
        assert_last(compute, volume, RSQR=1, CORR=MISSING if is_flat else 1)
        ratio = bars_of([1.0, 1.0, 1 + step], [10.0, 20.0, 30.0])
        assert_last(compute, ratio, CORD=MISSING if is_flat else -1)


@both
def test_a_correlation_is_flat_by_its_pairs_alone(compute) -> None:
    """Other sessions' closes vary, but not those that have a volume."""
    bars = bars_of([1.0, 2.0, 3.0, 3.00001], [MISSING, MISSING, 10.0, 20.0])
    assert_last(compute, bars, CORR=MISSING)
    ratio = bars_of([1.0, 2.0, 2.0, 2.00001], [MISSING, 10.0, 20.0, 10.0])
    assert_last(compute, ratio, CORD=MISSING)


@both
def test_ties_share_their_average_rank(compute) -> None:
    assert_last(compute, bars_of([1.0, 2.0, 2.0, 3.0, 2.0]), RANK=3 / 5)
    assert_last(compute, bars_of([9.0, 1.0, 2.0, 2.0, 3.0, 2.0]), RANK5=3 / 5, RANK10=3 / 6)
    assert_last(compute, bars_of([2.0, 2.0, 2.0], days=[0, 2, 3]), RANK=2 / 3)


@both
def test_the_first_of_equal_extremes_counts(compute) -> None:
    bars = bars_of([2.0] * 6, high=[9.0, 4.0, 5.0, 5.0, 4.0, 3.0], low=[1.0, 2, 1, 2, 1, 2])
    assert_last(compute, bars, IMAX5=2 / 5, IMIN5=2 / 5, IMXD5=0)
    assert_last(compute, bars, IMAX10=1 / 10, IMIN10=1 / 10, IMXD10=0)


@both
def test_a_session_without_a_bar_wins_both_extremes(compute) -> None:
    bars = bars_of([5.0, 2.0, 3.0, 4.0], days=[0, 1, 3, 4])
    assert_last(compute, bars, IMAX5=3 / 5, IMIN5=3 / 5, IMAX60=3 / 60, IMXD=0)
    later = bars_of([5.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0], days=[0, 1, 3, 4, 5, 6, 7])
    assert_last(compute, later, IMAX5=2 / 5, IMIN5=3 / 5, IMXD5=-1 / 5, IMAX10=3 / 10, IMXD10=0)


@both
def test_counts_are_shares_of_all_sessions_since_the_first_bar(compute) -> None:
    """Session 2 has no bar: it and the next one count as no rise and no fall."""
    bars = bars_of([1.0, 2.0, 3.0, 4.0, 3.0], days=[10, 11, 13, 14, 15])
    assert_last(compute, bars, CNTP5=2 / 5, CNTN5=1 / 5, CNTD5=1 / 5)
    assert_last(compute, bars, CNTP10=2 / 6, CNTN10=1 / 6, CNTD10=1 / 6, CNTP60=2 / 6)


@both
def test_after_a_hole_of_70_sessions_only_the_new_bar_is_left(compute) -> None:
    close = [10.0, 11.0, 12.0, 20.0]
    bars = bars_of(close, [5.0, 6.0, 7.0, 8.0], days=[0, 1, 2, 73])
    assert_last(compute, bars, MA=1, MAX=1, MIN=1, QTLU=1, QTLD=1, RANK=1, RSV=0, VMA=1)
    assert_last(compute, bars, CNTP=0, CNTN=0, CNTD=0, IMXD=0, IMAX5=1 / 5, IMIN60=1 / 60)
    gone = ("ROC", "STD", "BETA", "RSQR", "RESI", "CORR", "CORD", "VSTD", "WVMA", "SUMP", "VSUMN")
    assert_last(compute, bars, **dict.fromkeys(gone, MISSING))
    next_one = bars_of([*close, 25.0], [5.0, 6.0, 7.0, 8.0, 4.0], days=[0, 1, 2, 73, 74])
    assert_last(compute, next_one, MA=0.9, BETA=0.2, RESI=0, SUMD=1, VMA=1.5, ROC=MISSING)
    assert_last(compute, next_one, CNTP5=1 / 5, CNTP60=1 / 60, IMAX5=1 / 5)
    # The frame's own dates are all sessions then: there is no hole.
    assert_last(compute, bars, None, ROC5=MISSING, MA=13.25 / 20, CNTP=3 / 4, IMAX5=4 / 5)


@both
def test_lags_look_at_the_session_not_at_the_bar(compute) -> None:
    close = np.arange(1.0, 10.0)
    assert_last(compute, bars_of(close), ROC5=4 / 9, ROC10=MISSING)
    bars = bars_of(close[1:], days=[0, 1, 2, 4, 5, 6, 7, 8])  # none on day 3
    assert_last(compute, bars, ROC5=MISSING)
    # A rise over a hole is none: the changes are those of days 5 to 8 only.
    assert_last(compute, bars, CNTP5=4 / 5, SUMP5=1, WVMA5=float(wvma(close[4:])))


def wvma(close: npt.NDArray[np.float64]) -> float:
    sizes = np.abs(close[1:] / close[:-1] - 1) * 100
    return float(np.std(sizes, ddof=1) / np.mean(sizes))


@both
def test_a_line_keeps_the_place_of_missing_sessions(compute) -> None:
    """Two a session, with a hole: a line through the bars by their number would miss it."""
    bars = bars_of([10.0, 12.0, 18.0, 20.0], days=[0, 1, 4, 5])
    assert_last(compute, bars, BETA10=2 / 20, RSQR10=1, RESI10=0, BETA5=2 / 20)


@both
def test_a_missing_volume_takes_only_its_session_away(compute) -> None:
    close, volume = [1.0, 2.0, 4.0, 3.0, 6.0], [4.0, 8.0, MISSING, 2.0, 5.0]
    bars = bars_of(close, volume)
    assert_last(compute, bars, VMA=19 / 4 / 5, VSTD=float(np.std([4, 8, 2, 5], ddof=1)) / 5)
    assert_last(compute, bars, VSUMP=1, VSUMN=0, VSUMD=1)  # of 4, 3
    assert_last(compute, bars, WVMA=float(np.std([8, 0.5, 5], ddof=1) / np.mean([8, 0.5, 5])))
    pairs = np.corrcoef([1.0, 2.0, 3.0, 6.0], np.log1p([4.0, 8.0, 2.0, 5.0]))
    assert_last(compute, bars, CORR=float(pairs[0, 1]), CORD=MISSING, MA=16 / 5 / 6)


@both
def test_a_row_without_a_volume_has_what_the_others_give(compute) -> None:
    bars = bars_of([1.0, 2.0, 4.0], [4.0, 8.0, MISSING])
    assert_last(compute, bars, VMA=MISSING, VSTD=MISSING, VSUMP=1, VSUMN=0, CORR=1, MA=7 / 12)
    alone = bars_of([1.0], MISSING)
    assert_last(compute, alone, VMA=MISSING, VSTD=MISSING, VSUMP=MISSING, CORR=MISSING, MA=1)


@both
def test_windows_are_counted_by_symbol_from_its_own_first_bar(compute) -> None:
    one = bars_of(np.arange(1.0, 31.0), np.arange(30.0))
    late = bars_of([5.0, 4.0, 6.0], [1.0, 2.0, 1.0], days=[27, 28, 29]).assign(symbol="B")
    together = compute(pd.concat([late, one]), ALPHA158)
    apart = pd.concat([compute(one, ALPHA158), compute(late, ALPHA158)])
    expected = apart.sort_values(["ts", "symbol"], ignore_index=True)
    pd.testing.assert_frame_equal(together, expected)
    assert_last(compute, late, CNTP=1 / 3, IMAX5=3 / 5, IMIN5=2 / 5)


@both
def test_statistics_do_not_cancel_at_high_levels(compute) -> None:
    """A cent at a level of 1e8: sums of squares alone would have no correct digit left."""
    cents = np.array([0.0, 1.0, 0.0, 3.0, 2.0, 5.0, 1.0]) / 64  # exact in float64
    bars = bars_of(1e8 + cents, 2.0**40 + 64 * cents)
    x = np.arange(7.0)
    line = np.polyfit(x, cents, 1)
    left = cents[-1] - np.polyval(line, 6.0)
    fit = float(np.corrcoef(x, cents)[0, 1] ** 2)
    assert_last(compute, bars, RSQR10=fit, RSV10=1 / 5, RANK10=1 / 2, SUMD10=1 / 13)
    found = compute(bars, ["BETA10", "RESI10", "STD10", "VSTD10"]).iloc[-1]
    assert found["BETA10"] == pytest.approx(line[0] / 1e8, rel=1e-6)
    assert found["RESI10"] == pytest.approx(left / 1e8, rel=1e-6)
    assert found["STD10"] == pytest.approx(np.std(cents, ddof=1) / 1e8, rel=1e-6)
    assert found["VSTD10"] == pytest.approx(64 * np.std(cents, ddof=1) / 2.0**40, rel=1e-6)


@both
def test_what_stands_before_windows_keeps_the_dtype_of_the_frame(compute) -> None:
    """As in Qlib: candles, ratios and logarithms of a float32 frame are float32."""
    close, open_ = np.float32(100.1), np.float32(100.05)
    bars = bars_of([float(close)], open=float(open_), high=100.2, low=100.0)
    narrow = bars.astype(dict.fromkeys(INPUTS, np.float32))
    assert compute(bars, ["KMID"])["KMID"][0] == np.float32((float(close) / float(open_)) - 1)
    assert compute(narrow, ["KMID"])["KMID"][0] == (close - open_) / open_
    # Returns of 2/3 and of 2 epsilons; float32 rounds the first to one epsilon.
    step = float(np.spacing(np.float32(3)))
    bars = bars_of([3.0, 3 + step, 3 + 4 * step])
    narrow = bars.astype(dict.fromkeys(INPUTS, np.float32))
    assert_last(compute, bars, WVMA=float(np.std([1, 3], ddof=1) / 2))
    assert_last(compute, narrow, WVMA=float(np.std([1, 2], ddof=1) / 1.5))
