"""A feature of one's own is tried: it may not look ahead, nor further back than it says."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from quant_pipeline.errors import FeatureError, SettingsError
from quant_pipeline.market import rolling
from quant_pipeline.market.feature_trial import require_honest
from quant_pipeline.market.features import KNOWN, CrossSection, Feature

Values = npt.NDArray[np.floating]


def series(function: Callable[[pd.Series], pd.Series]) -> Callable[[Values], Values]:
    """A function of a pandas Series as one of arrays."""
    return lambda close: function(pd.Series(close)).to_numpy()


def ahead(close: Values) -> Values:
    found = np.full(len(close), np.nan)
    found[:-1] = close[1:]
    return found


def try_out(compute: Callable[..., Values], window: int = 5) -> None:
    require_honest([Feature("MINE", ("close",), window, compute)])


# --- honest ones


HONEST: dict[str, tuple[Callable[[Values], Values], int]] = {
    "the close": (lambda close: close, 0),
    "whole numbers": (lambda close: np.nan_to_num(close).astype(np.int64), 0),
    "true or false": (lambda close: close > 20, 0),
    "a pandas series": (lambda close: pd.Series(close) / 2, 0),
    "a lag": (lambda close: close / rolling.lag(close, 5), 5),
    "a mean": (lambda close: close / rolling.mean(close, 6), 5),
    "a spread": (lambda close: rolling.std(close, 6) / close, 5),
    "a shift": (series(lambda close: close.shift(5)), 5),
    "a longer window than needed": (series(lambda close: close.shift(5)), 30),
    "infinite values": (lambda close: close / (close > 20), 0),
    "a sorted window": (series(lambda close: close.rolling(6, min_periods=1).max()), 5),
    "a fill of sessions without a bar": (series(lambda close: close.ffill()), 0),
    "a limited fill": (series(lambda close: close.ffill(limit=5)), 5),
    "a long lag": (lambda close: rolling.lag(close, 300), 300),
}


@pytest.mark.parametrize("name", list(HONEST))
def test_an_honest_feature_passes(name) -> None:
    try_out(*HONEST[name])


def test_built_in_features_and_cross_sections_of_honest_ones_pass() -> None:
    base = Feature("BASE", ("close",), 5, HONEST["a lag"][0])
    require_honest([*KNOWN.values(), base, CrossSection("R", base, "rank")])
    require_honest([])


def test_a_feature_gets_its_inputs_in_their_order() -> None:
    def spread(high, low, volume):
        assert np.nanmin(high - low) >= 0
        assert np.array_equal(volume, volume.round(), equal_nan=True)
        return (high - low) / low

    require_honest([Feature("SPREAD", ("high", "low", "volume"), 0, spread)])


# --- refused: looks ahead


LOOKS_AHEAD: dict[str, Callable[[Values], Values]] = {
    "tomorrow": ahead,
    "a negative shift": series(lambda close: close.shift(-1)),
    "a longer negative shift": series(lambda close: close.shift(-60)),
    "a negative shift by a year": series(lambda close: close.shift(-250)),
    "a centred mean": series(lambda close: close.rolling(5, center=True, min_periods=1).mean()),
    "a z-score of all history": lambda close: (close - np.nanmean(close)) / np.nanstd(close),
    "the last value": lambda close: close / close[-1],
    "the number of sessions": lambda close: np.full(len(close), float(len(close))),
    "a rank in all history": series(lambda close: close.rank(pct=True)),
    "a backward fill": series(lambda close: close.bfill()),
    "the order of sessions turned round": series(lambda close: close[::-1].cumsum()[::-1]),
}


@pytest.mark.parametrize("name", list(LOOKS_AHEAD))
def test_a_feature_that_looks_ahead_is_refused(name) -> None:
    message = r"Feature MINE is refused\. .* session \d+ is .* instead of .*: it looks ahead"
    with pytest.raises(FeatureError, match=message):
        try_out(LOOKS_AHEAD[name])


# --- refused: a window that is too small


LOOKS_BACK: dict[str, tuple[Callable[[Values], Values], int]] = {
    "one session more": (lambda close: rolling.lag(close, 6), 5),
    "a mean of one more": (lambda close: rolling.mean(close, 7), 5),
    "no window at all": (lambda close: rolling.lag(close, 1), 0),
    "half a year more": (lambda close: rolling.lag(close, 100), 5),
    "a year more": (lambda close: rolling.lag(close, 250), 20),
    "an expanding mean": (series(lambda close: close.expanding().mean()), 5),
    "an exponential mean": (series(lambda close: close.ewm(span=60).mean()), 60),
    "a sum since the first bar": (series(lambda close: close.cumsum()), 60),
    "the age": (lambda close: np.arange(len(close), dtype=float), 60),
    "the first value": (lambda close: close / close[0], 60),
    "a lag of an unlimited fill": (
        lambda close: rolling.lag(pd.Series(close).ffill().to_numpy(), 1),
        1,
    ),
}


@pytest.mark.parametrize("name", list(LOOKS_BACK))
def test_a_window_smaller_than_what_is_used_is_refused(name) -> None:
    compute, window = LOOKS_BACK[name]
    message = rf"Feature MINE is refused\. .*: it uses more than its window of {window} sessions"
    with pytest.raises(FeatureError, match=message):
        try_out(compute, window)


def test_a_window_that_is_not_that_of_a_column_of_a_kernel_is_refused() -> None:
    """Else its values depend on which other features make the look-back longer."""
    with pytest.raises((FeatureError, SettingsError), match="MINE"):
        require_honest([Feature("MINE", ("close",), 0, KNOWN["ROC60"].compute)])


def test_the_base_of_a_cross_section_is_tried() -> None:
    for how in ("rank", "zscore"):
        base = Feature("BASE", ("close",), 0, ahead)
        with pytest.raises(FeatureError, match=r"Feature BASE is refused\. .*: it looks ahead"):
            require_honest([CrossSection("MINE", base, how)])


def outcome(compute: Callable[[Values], Values], window: int) -> str:
    try:
        try_out(compute, window)
    except FeatureError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("window", [2, 5, 20, 60])
@pytest.mark.parametrize("name", ["mean", "sum", "std", "var", "skew", "kurt"])
def test_what_carries_a_state_along_is_refused_every_time_with_a_way_out(name, window) -> None:
    """Its last digits depend on where the data begins, in float64 if not in float32."""
    running = series(lambda close: getattr(close.rolling(window, min_periods=1), name)())
    (message,) = {outcome(running, window - 1) for _ in range(3)} or {""}
    if window < 3 and name in ("skew", "kurt"):
        assert "no value at all" in message
    else:
        assert f"uses more than its window of {window - 1} sessions" in message
    if name in ("mean", "sum"):
        assert "quant_pipeline.market.rolling has exact functions" in message


@pytest.mark.parametrize("name", ["min", "max", "median", "rank"])
def test_what_carries_no_state_along_passes(name) -> None:
    exact = series(lambda close: getattr(close.rolling(20, min_periods=1), name)())
    assert outcome(exact, 19) == ""


RARE: dict[str, Callable[[Values, Values], npt.NDArray[np.bool_]]] = {
    "much traded": lambda close, volume: volume > 3e6,
    "hardly traded": lambda close, volume: volume < 3,
    "not traded": lambda close, volume: volume == 0,
    "dear": lambda close, volume: close > 3e5,
    "cheap": lambda close, volume: close < 1e-5,
    "doubled": lambda close, volume: close > 1.6 * rolling.lag(close, 1),
    "halved": lambda close, volume: close < 0.6 * rolling.lag(close, 1),
    "as yesterday": lambda close, volume: close == rolling.lag(close, 1),
    "back again": lambda close, volume: np.isnan(rolling.lag(close, 1)),
}


@pytest.mark.parametrize("name", list(RARE))
def test_looking_ahead_on_rare_values_alone_is_seen(name) -> None:
    def peek(close: Values, volume: Values) -> Values:
        return np.where(RARE[name](close, volume), ahead(close), close)

    with pytest.raises(FeatureError, match="it looks ahead"):
        require_honest([Feature("MINE", ("close", "volume"), 1, peek)])


# --- refused: anything else


def fill_in_place(close: Values) -> Values:
    close[np.isnan(close)] = 0.0
    return close


def sort_in_place(close: Values) -> Values:
    found = close.copy()
    close.sort()
    return found


@pytest.mark.parametrize("compute", [fill_in_place, sort_in_place])
def test_a_feature_that_changes_its_input_is_refused(compute) -> None:
    with pytest.raises(FeatureError, match="Feature MINE changes the arrays that it is given"):
        try_out(compute, 0)


FAILS: dict[str, tuple[Callable[..., object], str]] = {
    "a scalar": (lambda close: 1.0, r"gave values of shape \(\) for \d+ sessions"),
    "too few": (lambda close: close[1:], r"gave values of shape \(\d+,\) for \d+ sessions"),
    "a table": (lambda close: np.c_[close, close], r"gave values of shape \(\d+, 2\)"),
    "nothing": (lambda close: None, r"gave values of shape \(\)"),
    "text": (lambda close: ["a"] * len(close), r"failed on \d+ sessions: ValueError"),
    "an exception": (
        lambda close: close.no,
        r"failed on .*, line \d+ of .*: AttributeError: .*no",
    ),
    "no argument": (lambda: 1, r"failed on \d+ sessions: TypeError"),
}


@pytest.mark.parametrize("name", list(FAILS))
def test_a_feature_that_fails_is_named(name) -> None:
    compute, message = FAILS[name]
    with pytest.raises(FeatureError, match=f"Feature MINE {message}"):
        try_out(compute, 0)


def test_a_feature_that_is_never_anything_is_refused() -> None:
    """Nothing was tried, so nothing is known of it."""
    with pytest.raises(FeatureError, match="MINE"):
        try_out(lambda close: np.full(len(close), np.nan), 0)


def test_a_feature_that_draws_numbers_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(FeatureError, match="Feature MINE is refused"):
        try_out(lambda close: rng.standard_normal(len(close)), 0)


def test_a_short_history_does_not_fail_silently() -> None:
    """A symbol's first session comes alone, too."""
    with pytest.raises(
        FeatureError, match=r"Feature MINE failed on 1 sessions, line .*: IndexError"
    ):
        try_out(lambda close: close + 0 * close[1], 1)
