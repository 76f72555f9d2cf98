"""Rules of jumps: an unadjusted split is flagged on its session, from what was known then."""

import importlib.util
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.market import jumps
from quant_pipeline.market.jumps import BROKEN_RATIOS, JUMP_LOOK_BACK, WHOLE_RATIOS, find_jumps
from quant_pipeline.market.synthetic import make_market
from quant_pipeline.settings import JumpSettings

BENCH = Path(__file__).parents[1] / "bench" / "data_quality.py"
COLUMNS = ("symbol", "session", "open", "high", "low", "close", "traded_value")
N_SESSIONS = 60

specs = st.builds(JumpSettings, min_move=st.sampled_from([0.1, 0.33, 0.6]))


@st.composite
def bars(draw: st.DrawFn) -> pd.DataFrame:
    """Bars of some symbols with gaps, many splits and crashes, and values that may be missing."""
    n_symbols = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    has_bar = rng.random((n_symbols, N_SESSIONS)) < draw(st.sampled_from([0.3, 0.9, 1.0]))
    symbol, session = np.nonzero(has_bar)
    n = len(symbol)
    ratios = np.array([*WHOLE_RATIOS, *(1 / r for r in WHOLE_RATIOS), *BROKEN_RATIOS, 1.8])
    jump = np.where(rng.random(n) < 0.2, rng.choice(ratios, n), 1.0)
    overnight = rng.normal(0, 0.02, n) - np.log(jump)
    day = rng.normal(0, draw(st.sampled_from([0.0, 0.01, 0.1])), n)
    close = 50 * np.exp(np.cumsum(overnight + day))
    open_ = close * np.exp(-day)
    reach = draw(st.sampled_from([0.0, 0.01, 0.05]))
    value = rng.choice([1e6, 1.5e6, 4e6, 2e7, 0.0, np.nan], n)
    return pd.DataFrame(
        {
            "symbol": symbol,
            "session": session,
            "open": open_,
            "high": np.maximum(open_, close) * np.exp(reach * rng.random(n)),
            "low": np.minimum(open_, close) * np.exp(-reach * rng.random(n)),
            "close": close,
            "traded_value": value if draw(st.booleans()) else np.full(n, 1e6),
        }
    )


def flags(frame: pd.DataFrame, spec: JumpSettings | None = None) -> Any:
    return find_jumps(*[frame[c].to_numpy() for c in COLUMNS], spec or JumpSettings())


def is_split(mine: pd.DataFrame, at: int, min_move: float) -> bool:
    """The rule for the bar at a place of one symbol's bars, word by word."""
    now, previous = mine.iloc[at], mine.iloc[at - 1]
    if at == 0 or now.session - previous.session > jumps.MAX_GAP:
        return False
    o, m = math.log(now.open / previous.close), math.log(now.close / previous.close)
    whole = [math.log(r) for r in WHOLE_RATIOS]
    logs = [*whole, *(-r for r in whole), *(-math.log(r) for r in BROKEN_RATIOS)]
    past = mine[(mine.session < now.session) & (mine.session >= now.session - JUMP_LOOK_BACK)]
    known = past.traded_value[past.traded_value > 0]
    usual = max([known.median(), previous.traded_value], key=lambda v: -1 if np.isnan(v) else v)
    return (
        min(abs(o), abs(m)) > min_move
        and o * m > 0
        and any(abs(o - r) <= jumps.RATIO_TOLERANCE * abs(r) for r in logs)
        and 0 < math.log(now.high / now.low) <= jumps.RANGE_SHARE * abs(m)
        and (known.empty or not now.traded_value > jumps.VALUE_LIMIT * usual)
    )


@settings(deadline=None)
@given(bars(), specs)
def test_flags_are_those_of_the_slow_oracle(frame: pd.DataFrame, spec: JumpSettings) -> None:
    found = flags(frame, spec)
    for code in frame["symbol"].unique():
        mine = frame[frame["symbol"] == code]
        expected = [is_split(mine, i, spec.min_move) for i in range(len(mine))]
        assert found[frame["symbol"] == code].tolist() == expected


@settings(deadline=None)
@given(bars(), specs, st.integers(0, N_SESSIONS - 1), st.integers(0, 2**16))
def test_a_flag_never_looks_ahead(
    frame: pd.DataFrame, spec: JumpSettings, last: int, seed: int
) -> None:
    past = (frame["session"] <= last).to_numpy()
    expected = flags(frame, spec)[past]
    assert np.array_equal(flags(frame[past], spec), expected)
    other = frame.copy()
    noise = np.random.default_rng(seed).lognormal(0, 1, len(frame))
    prices = ["open", "high", "low", "close"]
    other.loc[~past, prices] = other.loc[~past, prices].mul(noise[~past], axis=0)
    other.loc[~past, "traded_value"] = noise[~past]
    assert np.array_equal(flags(other, spec)[past], expected)


@settings(deadline=None)
@given(bars(), specs, st.integers(0, N_SESSIONS - 1))
def test_the_look_back_is_enough(frame: pd.DataFrame, spec: JumpSettings, first: int) -> None:
    """What the chain reads for one partition gives the flags of the whole history."""
    read = frame[frame["session"] >= first - JUMP_LOOK_BACK]
    wanted = flags(read, spec)[read["session"] >= first]
    assert np.array_equal(wanted, flags(frame, spec)[frame["session"] >= first])


@settings(deadline=None)
@given(bars(), specs, st.integers(-8, 8), st.integers(-8, 8))
def test_a_currency_changes_no_flag(
    frame: pd.DataFrame, spec: JumpSettings, price: int, value: int
) -> None:
    """Powers of two, since these scale floats exactly."""
    scaled = frame.copy()
    scaled[["open", "high", "low", "close"]] *= 2.0**price
    scaled["traded_value"] *= 2.0**value
    assert np.array_equal(flags(scaled, spec), flags(frame, spec))


@settings(deadline=None)
@given(bars(), specs)
def test_each_symbol_is_judged_alone_and_inputs_stay(
    frame: pd.DataFrame, spec: JumpSettings
) -> None:
    before = frame.copy()
    found = flags(frame, spec)
    pd.testing.assert_frame_equal(frame, before)
    alone = [flags(mine, spec) for _, mine in frame.groupby("symbol")]
    assert np.array_equal(found, np.concatenate([np.zeros(0, bool), *alone]))


@settings(deadline=None)
@given(bars())
def test_each_setting_matters(frame: pd.DataFrame) -> None:
    assert not flags(frame, JumpSettings(is_flagged=False)).any()
    few = flags(frame, JumpSettings(min_move=1.0))
    assert not (few & ~flags(frame, JumpSettings(min_move=0.33))).any()
    assert not flags(frame, JumpSettings(min_move=5.0)).any()


def test_no_bars_have_no_flags() -> None:
    frame = pd.DataFrame(
        {c: np.zeros(0, np.int64 if c[0:2] in "sysession" else float) for c in COLUMNS}
    )
    assert flags(frame).shape == (0,)


def market_bars(price: str) -> pd.DataFrame:
    """The made-up market as bars whose index follows `price`: close or adj_close."""
    market = make_market(n_symbols=40, n_sessions=420)
    scale = market[price] / market["close"]
    frame = market[["open", "high", "low", "close"]].mul(scale, axis=0)
    frame.insert(0, "session", market["ts"].rank(method="dense").astype(int) - 1)
    frame.insert(0, "symbol", market["symbol"].rank(method="dense").astype(int) - 1)
    return frame.assign(traded_value=market["volume"] * 1e3)


@pytest.mark.parametrize(
    ("ratio", "share"),
    [
        (1.5, 0.75),
        *((r, 0.95) for r in (2.5, *WHOLE_RATIOS)),
        *((1 / r, 0.95) for r in WHOLE_RATIOS),
    ],
)
def test_planted_splits_are_found_and_nothing_else(ratio: float, share: float) -> None:
    """One split a symbol; opens of this market move by 2% overnight, more than real ones."""
    frame = market_bars("adj_close")
    assert not flags(frame).any()
    is_after = frame["session"] >= 200 + 3 * frame["symbol"]
    prices = ["open", "high", "low", "close"]
    frame.loc[is_after, prices] /= ratio
    splits = (
        is_after & (frame["symbol"] == frame["symbol"].shift()) & ~is_after.shift(fill_value=False)
    )
    found = flags(frame)
    assert not (found & ~splits).any()
    assert splits.sum() == 40
    assert found.sum() >= share * 40


def test_an_adjusted_close_leaves_nothing_to_flag_and_its_absence_all() -> None:
    assert flags(market_bars("adj_close")).sum() == 0
    assert flags(market_bars("close")).sum() >= 36  # 4 of the 40 list after their split


def one_split(**changes: float) -> pd.DataFrame:
    """Thirty quiet bars, then one that opened and closed at half the price, with changes."""
    quiet = {"open": 10.0, "high": 10.1, "low": 9.9, "close": 10.0, "traded_value": 1e6}
    split = {"open": 5.0, "high": 5.1, "low": 4.95, "close": 5.05, "traded_value": 1.2e6}
    frame = pd.DataFrame([quiet] * 30 + [split | changes])
    frame.insert(0, "session", np.arange(31))
    frame.insert(0, "symbol", 0)
    return frame


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"traded_value": 2.9e6},
        {"traded_value": 0.0},
        {"traded_value": np.nan},
        {"open": 5.0, "high": 5.4, "low": 4.8},
        {"session": 32},
    ],
)
def test_a_split_is_flagged_on_its_session(changes: dict[str, float]) -> None:
    frame = one_split(**{k: v for k, v in changes.items() if k != "session"})
    frame.loc[30, "session"] = changes.get("session", 30)
    assert np.flatnonzero(flags(frame)).tolist() == [30]


@pytest.mark.parametrize(
    "changes",
    [
        {"traded_value": 3.1e6},  # a crash is traded
        {"high": 5.5, "low": 4.5},  # a crash has a range
        {"open": 9.9, "high": 9.9},  # no gap at the open
        {"close": 9.0, "high": 9.1},  # bought back by the close
        {"open": 5.9, "high": 5.95, "low": 5.8, "close": 5.85},  # 1.69 is no ratio
        {"open": 7.5, "high": 7.6, "low": 7.4, "close": 7.5},  # too small
        {"open": 5.0, "high": 5.0, "low": 5.0, "close": 5.0},  # one trade, or a price limit
        {"open": 15.0, "high": 15.2, "low": 14.9, "close": 15.0},  # a takeover
    ],
)
def test_a_crash_is_not(changes: dict[str, float]) -> None:
    assert not flags(one_split(**changes)).any()


@pytest.mark.parametrize("unknown", [0.0, np.nan])
def test_without_volumes_the_price_decides(unknown: float) -> None:
    frame = one_split().assign(traded_value=unknown)
    frame.loc[30, "traded_value"] = 1e9
    assert flags(frame)[30]


def test_a_move_over_a_hole_is_no_one_session_move() -> None:
    frame = one_split()
    frame.loc[30, "session"] = 29 + jumps.MAX_GAP + 1
    assert not flags(frame).any()


def read_real(name: str) -> tuple[Any, Any]:
    """The bench program, and one of its sets with prices adjusted forward."""
    spec = importlib.util.spec_from_file_location("data_quality", BENCH)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    sys.modules["data_quality"] = bench  # its dataclass looks itself up there
    spec.loader.exec_module(bench)
    path = bench.DATA / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"{path} is missing: jumps of real prices were NOT tested")
    return bench, bench.read_set(path)


def flagged(prices: Any) -> set[tuple[str, str]]:
    return {prices.key(row) for row in np.flatnonzero(prices.flags(JumpSettings()))}


def test_the_unadjusted_splits_of_2022_to_2024_are_flagged() -> None:
    bench, prices = read_real("us_large_yahoo_2022_2024_asfound")
    known = set(bench.KNOWN_SPLITS)
    found = flagged(prices)
    assert len(known) == 22
    assert len(found & known) >= 18
    named = {("AMZN", "2022-06-06"), ("NVDA", "2024-06-10"), ("CMG", "2024-06-25")}
    assert found >= named | {("TSLA", "2022-08-25")}
    wrong = {(s, day) for s in ("ES", "TT") for day in ("2023-07-18", "2023-07-19")}
    assert found - known == wrong  # another instrument's prices for a day


def test_genuine_moves_of_adjusted_prices_are_not_flagged() -> None:
    _, prices = read_real("us_wiki100_1990_2018")
    found = flagged(prices)
    moves = {prices.key(row) for row in np.flatnonzero(np.abs(prices.move()) > 0.5)}
    genuine = {("AAPL", "2000-09-29"), ("AIG", "2008-09-15")}
    assert genuine <= moves
    assert not genuine & found
    assert found == {("BK", "1996-08-09"), ("ORCL", "1996-04-18")}  # wrong prices put right


def test_two_million_bars_take_less_than_half_a_second() -> None:
    n_symbols, n = 400, 4500
    rng = np.random.default_rng(0)
    move = rng.normal(0, 0.02, (n_symbols, n)) - np.where(rng.random((n_symbols, n)) < 0.01, 0.7, 0)
    close = np.exp(move.cumsum(axis=1) % 5).ravel()
    symbol, session = np.divmod(np.arange(n_symbols * n), n)
    value = np.ones(len(close))
    start = time.perf_counter()
    find_jumps(symbol, session, close, 1.01 * close, close, close, value, JumpSettings())
    assert time.perf_counter() - start < 0.5
