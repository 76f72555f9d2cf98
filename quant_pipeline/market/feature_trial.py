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
    Floats,
    KernelColumn,
    SymbolBars,
)
from quant_pipeline.market.feature_matrix import call_function

SPARE_SESSIONS = 400  # more than a year of looking ahead
N_CUTS = 12
# Prices and volumes of made-up symbols: where they begin, and the size of a session's moves.
SCALES = (
    (20.0, 0.02, 1e5, 1.0),
    (20.0, 0.02, 1e5, 1.0),
    (20.0, 0.02, 1e5, 1.0),
    (1e-4, 0.05, 1e8, 2.0),
    (1e5, 0.01, 1e2, 1.0),
    (50.0, 0.25, 1e6, 3.0),
    (1e-3, 0.3, 1e4, 1.0),
    (1e4, 0.3, 1e9, 1.0),
)


def require_honest(features: Sequence[Feature | CrossSection]) -> None:
    """Refuse a feature whose value at a session does not come from its window up to there.

    Each plain function gets made-up symbols with holes, flat stretches, no volume, and prices and
    volumes of many sizes; the value at every session has to be the one that its window alone
    gives, to the last bit of float64. It is a trial, not a proof: what no made-up symbol sets off
    is not seen. Raises FeatureError.
    """
    for feature in features:
        base = feature.of if isinstance(feature, CrossSection) else feature
        if isinstance(base.compute, KernelColumn):
            _require_same_window(base)
            continue
        has_values = [_try(base, _made_up(base.window, seed)) for seed in range(len(SCALES))]
        if not any(has_values):
            raise FeatureError(
                f"Feature {base.name} is refused: tried on {len(SCALES)} made-up symbols with "
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
    before = _part(bars, 0, n)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the made-up symbols are odd on purpose
        whole = call_function(feature, bars)
        if any(not np.array_equal(getattr(bars, i), getattr(before, i), True) for i in INPUTS):
            raise FeatureError(
                f"Feature {feature.name} changes the arrays that it is given: others read them, "
                "too. Copy one before writing to it."
            )
        if not np.array_equal(whole, call_function(feature, before), equal_nan=True):
            raise FeatureError(
                f"Feature {feature.name} is refused: two calls with the same values gave different "
                "ones."
            )
        cuts = np.linspace(0, n - 1, N_CUTS).astype(int).tolist()
        for last in cuts:
            _compare(feature, bars, whole, 0, last)
        for first in cuts:
            _compare(feature, bars, whole, first, n - 1)
        for last in np.flatnonzero(~np.isnan(before.close)).tolist():
            _compare(feature, bars, whole, max(last - feature.window, 0), last)
    return bool((~np.isnan(whole)).any())


def _compare(feature: Feature, bars: SymbolBars, whole: Floats, first: int, last: int) -> None:
    """Refuse a feature that is not the same from sessions `first` to `last` alone."""
    warm = first and first + feature.window  # the first session whose window is there
    if warm > last:
        return
    alone = call_function(feature, _part(bars, first, last + 1))[warm - first :]
    at = _first_difference(alone, whole[warm : last + 1])
    if at is None:
        return
    if first:  # is it what is missing before, or what is missing behind?
        past = call_function(feature, _part(bars, 0, last + 1))
        if _first_difference(past, whole[: last + 1]) is not None:
            _compare(feature, bars, whole, 0, last)
    values = float(alone[at]), float(whole[warm + at])
    shown = [f"{value:.9g}" for value in values]
    if shown[0] == shown[1]:
        shown = [repr(value) for value in values]
    why = f"with the sessions up to {last} alone than with later ones, too: it looks ahead"
    if first:
        why = (
            f"with the sessions from {first} on alone: it uses more than its window of "
            f"{feature.window} sessions before a session"
        )
    hint = ""
    if np.isclose(*values, rtol=1e-6, atol=1e-12):
        hint = (
            " Only last digits differ, as those of a running sum do (pandas' rolling functions "
            "keep one): quant_pipeline.market.rolling has exact functions."
        )
    raise FeatureError(
        f"Feature {feature.name} is refused. Tried on {len(SCALES)} made-up symbols, its value of "
        f"session {warm + at} is {shown[0]} instead of {shown[1]} {why}.{hint}"
    )


def _first_difference(part: Floats, whole: Floats) -> int | None:
    differ = np.flatnonzero(~((part == whole) | (np.isnan(part) & np.isnan(whole))))
    return int(differ[0]) if len(differ) else None


def _made_up(window: int, seed: int) -> SymbolBars:
    """A symbol without a hole, with one longer than the window, or with many small ones."""
    n = window + SPARE_SESSIONS
    rng = np.random.default_rng([158, seed])
    price, move, traded, spread = SCALES[seed]
    close = price * np.exp(move * rng.standard_normal(n).cumsum())
    close[n // 3 : n // 3 + 9] = close[n // 3]
    opened = close * np.exp(0.01 * rng.standard_normal(n))
    high = np.maximum(opened, close) * (1 + 0.01 * rng.random(n))
    low = np.minimum(opened, close) * (1 - 0.01 * rng.random(n))
    volume = np.round(traded * np.exp(spread * rng.standard_normal(n)))
    volume[n // 2 : n // 2 + 4] = 0.0
    arrays = [opened, high, low, close, volume, (high + low + close) / 3]
    holes = [
        np.arange(0),
        np.arange(150, min(n - 150, 160 + window)),
        rng.permutation(n)[: n // 25],
    ][seed % 3]
    for values in arrays:
        values[holes[holes > 0]] = np.nan
    return SymbolBars(*arrays)


def _part(bars: SymbolBars, first: int, last: int) -> SymbolBars:
    return SymbolBars(*(getattr(bars, name)[first:last].copy() for name in INPUTS))
