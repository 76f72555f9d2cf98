"""Features of a session, each known at its close: one entry a feature, one pass a symbol."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from quant_pipeline.errors import SettingsError, unknown_name
from quant_pipeline.market import kernels as k
from quant_pipeline.settings import IDENTIFIER, FeatureSettings

Floats = npt.NDArray[np.float64]
INPUTS = ("open", "high", "low", "close", "volume", "vwap")


@dataclass(frozen=True)
class SymbolBars:
    """One symbol's adjusted bars on consecutive market sessions, NaN where it has none."""

    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    vwap: Floats


@dataclass(frozen=True)
class Feature:
    """A feature: its value at session t comes from sessions t - `window` to t.

    A move into one of the sessions after t - `window` that looks like an unadjusted split makes
    the value NaN: it lies between two of the prices that the value is made from.
    """

    name: str
    formula: str
    window: int
    compute: Callable[[SymbolBars], Floats] = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(IDENTIFIER, self.name):
            raise SettingsError(
                f"{self.name!r} is no feature name: a letter, then at most 62 letters, digits or _."
            )


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Numerator over denominator; NaN where the denominator is 0."""
    return np.divide(
        numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator != 0
    )


def _candle_features() -> list[Feature]:
    return [
        Feature("KMID", "(close-open)/open", 0, lambda b: _ratio(b.close - b.open, b.open)),
        Feature("KLEN", "(high-low)/open", 0, lambda b: _ratio(b.high - b.low, b.open)),
        Feature(
            "KUP",
            "(high-max(open,close))/open",
            0,
            lambda b: _ratio(b.high - np.maximum(b.open, b.close), b.open),
        ),
        Feature(
            "KLOW",
            "(min(open,close)-low)/open",
            0,
            lambda b: _ratio(np.minimum(b.open, b.close) - b.low, b.open),
        ),
        Feature(
            "KSFT",
            "(2*close-high-low)/open",
            0,
            lambda b: _ratio(2 * b.close - b.high - b.low, b.open),
        ),
    ]


def _price_features(w: int) -> list[Feature]:
    def rsv(b: SymbolBars) -> Floats:
        low, high = k.lowest(b.low, w), k.highest(b.high, w)
        return _ratio(b.close - low, high - low + k.EPSILON)

    def over_close(
        name: str, formula: str, kernel: Callable[[Floats, int], Floats], column: str
    ) -> Feature:
        return Feature(
            f"{name}{w}",
            f"{formula}/close",
            w if kernel is k.lag else w - 1,
            lambda b: _ratio(kernel(getattr(b, column), w), b.close),
        )

    return [
        over_close("ROC", f"close {w} sessions ago", k.lag, "close"),
        over_close("MA", f"mean(close,{w})", k.mean, "close"),
        over_close("STD", f"std(close,{w})", k.std, "close"),
        over_close("MAX", f"max(high,{w})", k.highest, "high"),
        over_close("MIN", f"min(low,{w})", k.lowest, "low"),
        Feature(f"RSV{w}", f"(close-min(low,{w}))/(max(high,{w})-min(low,{w})+1e-12)", w - 1, rsv),
    ]


def _volume_features(w: int) -> list[Feature]:
    return [
        Feature(
            f"CORR{w}",
            f"corr(close,log(volume+1),{w})",
            w - 1,
            lambda b: k.correlation(b.close, np.log1p(b.volume), w),
        ),
        Feature(
            f"VMA{w}",
            f"mean(volume,{w})/(volume+1e-12)",
            w - 1,
            lambda b: _ratio(k.mean(b.volume, w), b.volume + k.EPSILON),
        ),
        Feature(
            f"VSTD{w}",
            f"std(volume,{w})/(volume+1e-12)",
            w - 1,
            lambda b: _ratio(k.std(b.volume, w), b.volume + k.EPSILON),
        ),
    ]


def _core() -> dict[str, Feature]:
    rolling = {f.name: f for w in (5, 10, 20, 60) for f in _price_features(w) + _volume_features(w)}
    returns = ("ROC5", "ROC10", "ROC20", "ROC60")
    levels = ("MA20", "MA60", "STD20", "STD60", "MAX20", "MIN20", "RSV20", "RSV60")
    volumes = ("CORR20", "VMA5", "VMA20", "VSTD20")
    momentum = Feature(
        "MOM_12_1",
        "close 20 sessions ago/close 250 sessions ago-1",
        250,
        lambda b: _ratio(k.lag(b.close, 20), k.lag(b.close, 250)) - 1.0,
    )
    chosen = [*_candle_features(), *(rolling[n] for n in (*returns, *levels, *volumes)), momentum]
    return {f.name: f for f in chosen}


FEATURE_SETS = {"core": _core()}
# Trivial scores to compare a model with: feature, and the sign that makes high values good.
TRIVIAL_SCORES = {
    "one-week reversal": ("ROC5", 1.0),
    "12-1 momentum": ("MOM_12_1", 1.0),
    "low volatility": ("STD60", -1.0),
}


def choose_features(settings: FeatureSettings) -> tuple[Feature, ...]:
    """The features that quant.toml asks for, in canonical order."""
    known = FEATURE_SETS[settings.set]
    for name in (*settings.include, *settings.exclude):
        if name not in known:
            raise SettingsError(unknown_name("feature", name, known))
    chosen = [f for f in known.values() if f.name not in settings.exclude]
    if settings.include:
        chosen = [f for f in chosen if f.name in settings.include]
    if not chosen:
        raise SettingsError("features.include and features.exclude leave no feature at all.")
    return tuple(chosen)


def look_back(features: Sequence[Feature]) -> int:
    """Sessions before the first wanted one that must be read."""
    return max((f.window for f in features), default=0)


def compute_features(
    bars: pd.DataFrame,
    names: Sequence[str] | None = None,
    sessions: npt.NDArray[np.datetime64] | None = None,
) -> pd.DataFrame:
    """Features of every bar, known at the close of its `ts`; float32, sorted by ts, symbol.

    `bars` has symbol, ts and adjusted open, high, low, close, volume, vwap (a NaN is a missing
    value). Windows count market sessions: those given, else the union of the frame's dates.
    A missing session is skipped, never filled; a window without a value is NaN. A ratio whose
    denominator is 0 is NaN; where the formula adds 1e-12 to it, it is large but finite.
    """
    known = FEATURE_SETS["core"]
    features = [known[n] for n in names] if names is not None else list(known.values())
    market = np.unique(bars["ts"].to_numpy("datetime64[D]")) if sessions is None else sessions
    codes, symbols = pd.factorize(bars["symbol"], sort=True)
    ts = bars["ts"].to_numpy("datetime64[D]")
    if not np.isin(ts, market).all():
        raise ValueError(f"{(~np.isin(ts, market)).sum()} bars are on dates that are no session")
    day = np.searchsorted(market, ts)
    order = np.lexsort((day, codes))
    codes, day = codes[order], day[order]
    columns = {name: bars[name].to_numpy(np.float64)[order] for name in INPUTS}
    values = compute_matrix(codes, day, columns, features)
    frame = pd.DataFrame(values, columns=[f.name for f in features])
    frame.insert(0, "ts", market[day].astype("datetime64[s]"))
    frame.insert(0, "symbol", np.asarray(symbols, dtype=object)[codes])
    return frame.sort_values(["ts", "symbol"], kind="stable", ignore_index=True)


def compute_matrix(
    symbol: npt.NDArray[np.int64],
    session: npt.NDArray[np.int64],
    columns: dict[str, Floats],
    features: Sequence[Feature],
    is_jump: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.float32]:
    """Bars x features from bars sorted by (symbol code, session number).

    Windows that span one of the bars flagged in `is_jump` are NaN.
    """
    out = np.empty((len(symbol), len(features)), np.float32)
    windows = np.array([feature.window for feature in features])
    for first, last in symbol_slices(symbol):
        place = session[first:last] - session[first]
        one = SymbolBars(**{name: spread(columns[name][first:last], place) for name in INPUTS})
        for j, feature in enumerate(features):
            out[first:last, j] = feature.compute(one)[place]
        if is_jump is not None and is_jump[first:last].any():
            age = _sessions_since(place, is_jump[first:last])
            out[first:last][age[:, None] < windows] = np.nan
    return out


def _sessions_since(place: npt.NDArray[np.int64], is_jump: npt.NDArray[np.bool_]) -> Floats:
    """Sessions since the last flagged bar up to each bar, 0 at it; infinite before the first."""
    newest = np.maximum.accumulate(np.where(is_jump, place, -1))
    return np.where(newest < 0, np.inf, place - newest)


def spans_jump(
    symbol: npt.NDArray[np.int64],
    session: npt.NDArray[np.int64],
    is_jump: npt.NDArray[np.bool_],
    window: int,
) -> npt.NDArray[np.bool_]:
    """Bars of which a feature with that window is NaN because of a flagged jump."""
    found = np.zeros(len(symbol), np.bool_)
    for first, last in symbol_slices(symbol):
        found[first:last] = _sessions_since(session[first:last], is_jump[first:last]) < window
    return found


def symbol_slices(symbol: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Start and end of each run of equal symbol codes."""
    cuts = np.flatnonzero(np.diff(symbol)) + 1
    edges = [0, *cuts.tolist(), len(symbol)]
    return list(pairwise(edges)) if len(symbol) else []


def spread(values: Floats, place: npt.NDArray[np.int64]) -> Floats:
    """Values at their sessions, NaN at the sessions between."""
    if place[-1] + 1 == len(place):
        return values
    out = np.full(int(place[-1]) + 1, np.nan)
    out[place] = values
    return out
