"""The features that there are, which of them are chosen, and the pure way to compute them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from quant_pipeline.errors import FeatureError, SettingsError, unknown_name
from quant_pipeline.market.alpha158 import ALPHA158
from quant_pipeline.market.feature_kinds import (
    INPUTS,
    AnyFeature,
    CrossSection,
    Feature,
    Floats,
)
from quant_pipeline.market.feature_matrix import compute_matrix
from quant_pipeline.settings import FeatureSettings

__all__ = [
    "ALPHA158",
    "FEATURE_SETS",
    "FEATURE_VALUES",
    "INPUTS",
    "KNOWN",
    "TRIVIAL_SCORES",
    "AnyFeature",
    "CrossSection",
    "Feature",
    "choose_features",
    "compute_features",
    "compute_matrix",
    "look_back",
]


def _momentum(close: Floats) -> Floats:
    found = np.full(len(close), np.nan)
    found[250:] = close[230:-20] / close[:-250] - 1.0
    return found


MOMENTUM = Feature("MOM_12_1", ("close",), 250, _momentum, "ago(c,20)/ago(c,250)-1")
_CORE = (
    "KMID", "KLEN", "KUP", "KLOW", "KSFT", "ROC5", "ROC10", "ROC20", "ROC60", "MA20", "MA60",
    "STD20", "STD60", "MAX20", "MIN20", "RSV20", "RSV60", "CORR20", "VMA5", "VMA20", "VSTD20",
)  # fmt: skip
KNOWN: dict[str, Feature] = {**ALPHA158, MOMENTUM.name: MOMENTUM}
FEATURE_SETS: dict[str, dict[str, Feature]] = {
    "alpha158": ALPHA158,
    "core": {name: KNOWN[name] for name in (*_CORE, MOMENTUM.name)},
}
# To be raised when a built-in feature, a cross-section or the universe gets other values: features
# are made again then, and models that learned from the old ones score no more.
FEATURE_VALUES = 1
# Columns beside features in features_daily and training_frame.
RESERVED = {
    "symbol", "ts", "task_id", "label", "fwd_return", "entry_ts", "exit_ts", "known_at",
    "in_universe", "lacks_history",
}  # fmt: skip
# Trivial scores to compare a model with: feature, and the sign that makes high values good.
TRIVIAL_SCORES = {
    "one-week reversal": ("ROC5", 1.0),
    "12-1 momentum": ("MOM_12_1", 1.0),
    "low volatility": ("STD60", -1.0),
}


def choose_features(
    settings: FeatureSettings, own: Sequence[AnyFeature] = ()
) -> tuple[AnyFeature, ...]:
    """The features that quant.toml asks for: the set and a user's own, or only those named."""
    known: dict[str, AnyFeature] = {**KNOWN}
    taken = {name.lower(): name for name in known}  # the database's names know no case
    for feature in own:
        name = feature.name
        if name.lower() in RESERVED:
            raise SettingsError(f"No feature can be called {name}: a column of that name is there.")
        if name.lower() in taken:
            other = taken[name.lower()]
            whose = f"the built-in {other}" if other in KNOWN else f"another of your own, {other}"
            raise SettingsError(
                f"Feature {name} of features.modules has the name of {whose}. Call it something "
                "else."
            )
        taken[name.lower()] = name
        known[name] = feature
    for name in (*settings.include, *settings.exclude):
        if name not in known:
            raise SettingsError(unknown_name("feature", name, known))
    usual = [*FEATURE_SETS[settings.set], *(feature.name for feature in own)]
    named = [name for name in known if name in settings.include] or usual
    chosen = [known[name] for name in named if name not in settings.exclude]
    if not chosen:
        raise SettingsError("features.include and features.exclude leave no feature at all.")
    return tuple(chosen)


def look_back(features: Sequence[AnyFeature]) -> int:
    """Sessions before the first wanted one that must be read."""
    return max((f.window for f in features), default=0)


def compute_features(
    bars: pd.DataFrame,
    names: Sequence[str | AnyFeature] | None = None,
    sessions: npt.NDArray[np.datetime64] | None = None,
) -> pd.DataFrame:
    """Features of every bar, known at the close of its `ts`; float32, sorted by ts, symbol.

    `bars` has symbol, ts and adjusted open, high, low, close, volume, vwap (a NaN is a missing
    value; float32 is taken as given), and may have in_universe for features across symbols.
    `names` are those of built-in features, or features of one's own (Feature, CrossSection); the
    158 of Alpha158 if none are given. Windows count market sessions: those given, else the union
    of the frame's dates.

    A missing session is skipped, never filled; a window without a value is NaN. A ratio whose
    denominator is 0 is NaN (of prices: open, close, the close d sessions ago; CORD: yesterday's
    volume); where the formula adds 1e-12 to it (KMID2, RSV, SUMP, VMA, WVMA …), it is large but
    finite, and 0 if the numerator is 0. Nothing is infinite: what float32 cannot hold is NaN.

    Raises FeatureError for an unknown name, a missing column, two bars of a symbol on one
    session, and a bar on no session.
    """
    features = _named(names)
    lacking = [c for c in ("symbol", "ts", *INPUTS) if c not in bars]
    if lacking:
        raise FeatureError(
            f"Bars lack {', '.join(lacking)} (they have: {', '.join(map(str, bars.columns))})."
        )
    market, day = _numbered(bars["ts"], sessions)
    codes, symbols = pd.factorize(bars["symbol"], sort=True)
    if (codes < 0).any():
        raise FeatureError(f"{(codes < 0).sum()} bars have no symbol.")
    columns = {name: bars[name].to_numpy() for name in INPUTS}
    members = bars["in_universe"].to_numpy(np.bool_) if "in_universe" in bars else None
    if not _is_sorted(codes, day):
        order = np.lexsort((day, codes))
        codes, day = codes[order], day[order]
        columns = {name: values[order] for name, values in columns.items()}
        members = None if members is None else members[order]
    is_again = (codes[1:] == codes[:-1]) & (day[1:] == day[:-1])
    if is_again.any():
        at = int(np.flatnonzero(is_again)[0])
        raise FeatureError(f"{symbols[codes[at]]} has two bars on {market[day[at]]}.")
    matrix = compute_matrix(codes, day, columns, features, in_universe=members).T
    by_session = np.argsort(day, kind="stable")
    for row in matrix:
        row[:] = row[by_session]
    frame = pd.DataFrame(matrix.T, columns=[f.name for f in features], copy=False)
    frame.insert(0, "ts", market.astype("datetime64[s]")[day[by_session]])
    frame.insert(0, "symbol", np.asarray(symbols, dtype=object)[codes[by_session]])
    return frame


def _numbered(
    column: "pd.Series[Any]", sessions: npt.NDArray[np.datetime64] | None
) -> tuple[npt.NDArray[np.datetime64], npt.NDArray[np.int64]]:
    """The market's sessions, and each bar's number among them."""
    try:
        if pd.api.types.is_numeric_dtype(column):
            raise TypeError(f"they are {column.dtype}, first {column.iloc[:1].tolist()}")
        ts = column.to_numpy("datetime64[D]")
    except (TypeError, ValueError) as error:
        raise FeatureError(f"Column ts of the bars does not hold dates: {error}.") from error
    if np.isnat(ts).any():
        raise FeatureError(f"{np.isnat(ts).sum()} bars have no ts.")
    if sessions is None:
        sessions = column.drop_duplicates().to_numpy("datetime64[D]")
    market = np.unique(sessions.astype("datetime64[D]"))
    day = np.searchsorted(market, ts)
    is_known = market[np.minimum(day, len(market) - 1)] == ts if len(market) else ts != ts
    if not is_known.all():
        raise FeatureError(
            f"{(~is_known).sum()} bars are on dates that are no session, first {ts[~is_known][0]}."
        )
    return market, day


def _is_sorted(codes: npt.NDArray[np.int64], day: npt.NDArray[np.int64]) -> bool:
    """Whether bars come by symbol, then session: then they need not be copied."""
    is_later = (codes[1:] > codes[:-1]) | ((codes[1:] == codes[:-1]) & (day[1:] >= day[:-1]))
    return bool(is_later.all())


def _named(names: Sequence[str | AnyFeature] | None) -> list[AnyFeature]:
    if names is None:
        return list(ALPHA158.values())
    found: list[Any] = []
    for name in [names] if isinstance(names, str) else names:
        if isinstance(name, str) and name not in KNOWN:
            raise FeatureError(unknown_name("feature", name, KNOWN))
        found.append(KNOWN[name] if isinstance(name, str) else name)
    twice = [name for name, n in Counter(f.name for f in found).items() if n > 1]
    if twice:
        raise FeatureError(f"Feature {twice[0]} is asked for twice.")
    return found
