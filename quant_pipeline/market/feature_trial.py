"""Try features on a small made-up market: they may not look ahead, nor further back than said."""

import warnings
from collections.abc import Sequence

import numpy as np

from quant_pipeline.errors import FeatureError
from quant_pipeline.market.alpha158 import ALPHA158
from quant_pipeline.market.feature_kinds import (
    INPUTS,
    CrossSection,
    Feature,
    KernelColumn,
    SymbolBars,
)
from quant_pipeline.market.feature_matrix import Narrow, call_function

SPARE_SESSIONS = 600  # more than a year or two of looking ahead
N_SYMBOLS = 3
N_CUTS = 24


def require_honest(features: Sequence[Feature | CrossSection]) -> None:
    """Refuse a feature whose value at a session does not come from its window up to there.

    Each plain function gets made-up symbols with holes, flat stretches and no volume, whole, then
    up to a session, then from `window` sessions before one: where both have a session, the
    values have to be the same to the last bit of float32. Raises FeatureError.
    """
    for feature in features:
        base = feature.of if isinstance(feature, CrossSection) else feature
        if isinstance(base.compute, KernelColumn):
            _require_same_window(base)
            continue
        has_values = [_try(base, _made_up(base.window, seed)) for seed in range(N_SYMBOLS)]
        if not any(has_values):
            raise FeatureError(
                f"Feature {base.name} is refused: tried on {N_SYMBOLS} made-up symbols with "
                f"{base.window + SPARE_SESSIONS} sessions, it has no value at all."
            )


def _require_same_window(feature: Feature) -> None:
    """Refuse another name for a built-in feature with another window than it has."""
    for known in ALPHA158.values():
        if known.compute == feature.compute and known.window != feature.window:
            raise FeatureError(
                f"Feature {feature.name} has window {feature.window}, but it is {known.name}, "
                f"whose window is {known.window}."
            )


def _try(feature: Feature, bars: SymbolBars) -> bool:
    """Whether it has a value; raises FeatureError if it cannot be trusted."""
    n = len(bars.close)
    before = _copy(bars)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the made-up symbols are odd on purpose
        whole = call_function(feature, bars)
        if any(not np.array_equal(getattr(bars, i), getattr(before, i), True) for i in INPUTS):
            raise FeatureError(
                f"Feature {feature.name} changes the arrays that it is given: others read them, "
                "too. Copy one before writing to it."
            )
        if not np.array_equal(whole, call_function(feature, _copy(bars)), equal_nan=True):
            raise FeatureError(
                f"Feature {feature.name} is refused: two calls with the same values gave different "
                "ones."
            )
        for last in np.linspace(0, n - 2, N_CUTS).astype(int).tolist():
            past = call_function(feature, _part(bars, 0, last + 1))
            _require_same(
                feature, past, whole[: last + 1], 0, f"with the sessions up to {last} alone than "
                "with later ones, too: it looks ahead",
            )  # fmt: skip
        for t in np.linspace(feature.window, n - 1, N_CUTS).astype(int).tolist():
            first = t - feature.window
            alone = call_function(feature, _part(bars, first, n))[feature.window :]
            _require_same(
                feature, alone, whole[t:], t, f"with the sessions from {first} on alone: it uses "
                f"more than its window of {feature.window} sessions before a session",
            )  # fmt: skip
    return bool((~np.isnan(whole)).any())


def _require_same(feature: Feature, part: Narrow, whole: Narrow, start: int, why: str) -> None:
    differ = np.flatnonzero(~((part == whole) | (np.isnan(part) & np.isnan(whole))))
    if len(differ):
        at = int(differ[0])
        raise FeatureError(
            f"Feature {feature.name} is refused. Tried on {N_SYMBOLS} made-up symbols, its value "
            f"of session {start + at} is {part[at]:.9g} instead of {whole[at]:.9g} {why}."
        )


def _made_up(window: int, seed: int) -> SymbolBars:
    """A symbol without a hole, with one longer than the window, or with many small ones."""
    n = window + SPARE_SESSIONS
    rng = np.random.default_rng([158, seed])
    close = 20.0 * np.exp(0.02 * rng.standard_normal(n).cumsum())
    close[n // 3 : n // 3 + 9] = close[n // 3]
    opened = close * np.exp(0.01 * rng.standard_normal(n))
    high = np.maximum(opened, close) * (1 + 0.01 * rng.random(n))
    low = np.minimum(opened, close) * (1 - 0.01 * rng.random(n))
    volume = np.round(1e5 * np.exp(rng.standard_normal(n)))
    volume[n // 2 : n // 2 + 4] = 0.0
    arrays = [opened, high, low, close, volume, (high + low + close) / 3]
    holes = [
        np.arange(0),
        np.arange(150, min(n - 150, 160 + window)),
        rng.permutation(n)[: n // 25],
    ]
    for values in arrays:
        values[holes[seed][holes[seed] > 0]] = np.nan
    return SymbolBars(*arrays)


def _part(bars: SymbolBars, first: int, last: int) -> SymbolBars:
    return SymbolBars(*(getattr(bars, name)[first:last].copy() for name in INPUTS))


def _copy(bars: SymbolBars) -> SymbolBars:
    return _part(bars, 0, len(bars.close))
