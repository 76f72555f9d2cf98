"""Rolling statistics for features of one's own: a slow oracle's values, the same bits anywhere."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.market import rolling
from quant_pipeline.market.feature_trial import require_honest
from quant_pipeline.market.features import Feature

Oracle = Callable[[Sequence[float]], float]


def present(values: Sequence[float]) -> list[float]:
    return [v for v in values if not math.isnan(v)]


def slow_mean(values: Sequence[float]) -> float:
    found = present(values)
    return math.fsum(found) / len(found) if found else math.nan


def slow_std(values: Sequence[float]) -> float:
    found = present(values)
    if len(found) < 2:
        return math.nan
    center = math.fsum(found) / len(found)
    return math.sqrt(math.fsum((v - center) ** 2 for v in found) / (len(found) - 1))


ORACLES: dict[str, Oracle] = {
    "mean": slow_mean,
    "std": slow_std,
    "highest": lambda values: max(present(values), default=math.nan),
    "lowest": lambda values: min(present(values), default=math.nan),
}
every_function = pytest.mark.parametrize("name", list(ORACLES))
numbers = st.one_of(st.just(math.nan), st.floats(-1e6, 1e6))
series = st.lists(numbers, max_size=40).map(lambda values: np.array(values, np.float64))


@every_function
@settings(max_examples=60, deadline=None)
@given(series, st.integers(1, 45))
def test_values_are_those_of_the_slow_oracle(name, x, window) -> None:
    before = x.copy()
    found = getattr(rolling, name)(x, window)
    expected = [ORACLES[name](x[max(t - window + 1, 0) : t + 1].tolist()) for t in range(len(x))]
    assert found.dtype == np.float64
    if name in ("highest", "lowest"):
        np.testing.assert_array_equal(found, np.array(expected, np.float64))
    else:
        scale = np.nanmax(np.abs(x), initial=1.0) if len(present(x.tolist())) else 1.0
        # A spread is a square root: what cancels is half as many digits.
        atol = scale * (1e-13 if name == "mean" else 1e-7)
        np.testing.assert_allclose(found, np.array(expected, np.float64), rtol=1e-9, atol=atol)
    assert x.tobytes() == before.tobytes()


@given(series, st.integers(0, 45))
def test_a_lag_is_the_value_so_many_sessions_ago(x, sessions) -> None:
    found = rolling.lag(x, sessions)
    expected = [x[t - sessions] if t >= sessions else math.nan for t in range(len(x))]
    np.testing.assert_array_equal(found, np.array(expected, np.float64))
    assert not np.shares_memory(found, x)


@every_function
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 30), st.integers(0, 99))
def test_a_part_has_the_bits_of_the_whole(name, seed, window, t) -> None:
    rng = np.random.default_rng(seed)
    x = np.exp(3 * rng.standard_normal(100))
    x[rng.random(100) < 0.2] = np.nan
    function = getattr(rolling, name)
    whole = function(x, window)
    first = max(t - window + 1, 0)
    assert function(x[first : t + 1], window)[-1:].tobytes() == whole[t : t + 1].tobytes()
    assert function(x[: t + 1], window).tobytes() == whole[: t + 1].tobytes()


def test_a_spread_does_not_cancel_at_high_levels() -> None:
    x = 1e9 + np.tile([0.0, 1.0], 50)
    np.testing.assert_allclose(rolling.std(x, 20)[30:], np.std([0, 1] * 10, ddof=1), rtol=1e-12)
    assert (rolling.std(np.full(50, 0.1), 20)[1:] == 0.0).all()


def test_a_window_without_a_value_is_missing() -> None:
    x = np.array([1.0, math.nan, math.nan, 4.0])
    for name in ORACLES:
        assert math.isnan(getattr(rolling, name)(x, 2)[2]), name
        assert len(getattr(rolling, name)(x[:0], 2)) == 0
    assert math.isnan(rolling.std(x, 2)[3])


@pytest.mark.parametrize("window", [2, 20, 60])
@every_function
def test_features_made_from_them_are_honest(name, window) -> None:
    function = getattr(rolling, name)

    def compute(close):
        return function(close, window) / close

    require_honest([Feature("MINE", ("close",), window - 1, compute)])


@every_function
def test_float32_values_are_taken_as_well(name) -> None:
    """A frame of float32 gives features of one's own float32 arrays."""
    x = np.exp(np.random.default_rng(0).standard_normal(50)).astype(np.float32)
    function = getattr(rolling, name)
    np.testing.assert_allclose(function(x, 7), function(x.astype(np.float64), 7), rtol=1e-5)
