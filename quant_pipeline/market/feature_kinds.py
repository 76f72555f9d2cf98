"""What a feature is: a compiled kernel's column, a plain function, or a rank across symbols."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from quant_pipeline.errors import SettingsError
from quant_pipeline.settings import IDENTIFIER

Floats = npt.NDArray[np.float64]
Series = npt.NDArray[np.floating]
INPUTS = ("open", "high", "low", "close", "volume", "vwap")


class Kernel(NamedTuple):
    """A compiled function of `kernels` and the series of `SymbolBars` that it takes."""

    name: str
    series: tuple[str, ...]


class KernelColumn(NamedTuple):
    """One of the columns that a kernel makes at once."""

    kernel: Kernel
    column: int


@dataclass(frozen=True)
class Feature:
    """A feature: its value at session t comes from sessions t - `window` to t.

    `compute` is a column of a kernel, or a plain function: given one array for each of `inputs`
    (adjusted, one value a market session from the symbol's first bar on, NaN where it has none),
    it returns one value a session. It is called from several threads and may not change its
    arrays. What is infinite or too large for float32 is stored as NaN.

    A move into one of the sessions after t - `window` that looks like an unadjusted split makes
    the value NaN: it lies between two of the prices that the value is made from.
    """

    name: str
    inputs: tuple[str, ...]
    window: int
    compute: KernelColumn | Callable[..., Series] = field(repr=False)
    formula: str = ""

    def __post_init__(self) -> None:
        require_identifier(self.name)
        if isinstance(self.inputs, str):
            raise SettingsError(
                f'Feature {self.name} has inputs "{self.inputs}"; write a tuple: ("close",).'
            )
        object.__setattr__(self, "inputs", tuple(self.inputs))
        unknown = [str(name) for name in self.inputs if name not in INPUTS]
        if unknown or not self.inputs:
            raise SettingsError(
                f"Feature {self.name} takes {', '.join(unknown) or 'nothing'}; inputs are "
                f"{', '.join(INPUTS)}."
            )
        if not isinstance(self.compute, KernelColumn) and not callable(self.compute):
            raise SettingsError(
                f"Feature {self.name} has compute={self.compute!r}: it is a function of the arrays "
                "of its inputs, or that of a built-in feature."
            )
        if type(self.window) is not int or self.window < 0:
            raise SettingsError(
                f"Feature {self.name} has window {self.window!r}: it is the number of sessions "
                "that the feature looks back, 0 or more."
            )


@dataclass(frozen=True)
class CrossSection:
    """A feature among those of its session: its rank or z-score within the universe.

    The rank is the average rank over the number of values, in (0, 1]; the z-score subtracts the
    mean and divides by the sample standard deviation (NaN where that is 0). A symbol outside the
    universe of the session has none and does not count.
    """

    name: str
    of: Feature
    how: Literal["rank", "zscore"]

    def __post_init__(self) -> None:
        require_identifier(self.name)
        if not isinstance(self.of, Feature):
            raise SettingsError(
                f"Feature {self.name} is to be of {self.of!r}, which is no Feature: write "
                'ALPHA158["ROC5"], or a Feature of your own.'
            )
        if self.how not in ("rank", "zscore"):
            raise SettingsError(f'Feature {self.name} has how="{self.how}": "rank" or "zscore".')

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.of.inputs

    @property
    def window(self) -> int:
        return self.of.window

    @property
    def formula(self) -> str:
        return f"{self.how}({self.of.name}) within the session's universe"


AnyFeature = Feature | CrossSection


def require_identifier(name: str) -> None:
    """Refuse a name that would not survive a database and a model file."""
    if not isinstance(name, str) or not re.fullmatch(IDENTIFIER, name):
        raise SettingsError(
            f"{name!r} is no feature name: a letter, then at most 62 letters, digits or _."
        )


@dataclass(frozen=True)
class SymbolBars:
    """One symbol's adjusted bars on consecutive market sessions, NaN where it has none.

    Series made from them keep the precision of the bars: float32 in, float32 arithmetic.
    """

    open: Series
    high: Series
    low: Series
    close: Series
    volume: Series
    vwap: Series

    @cached_property
    def close_move(self) -> Series:
        """The close less the one of the session before."""
        return _move(self.close)

    @cached_property
    def volume_move(self) -> Series:
        """The volume less the one of the session before."""
        return _move(self.volume)

    @cached_property
    def close_ratio(self) -> Series:
        """The close over the one of the session before."""
        return _growth(self.close)

    @cached_property
    def log_volume(self) -> Series:
        """ln(volume + 1)."""
        return np.log(self.volume + 1)

    @cached_property
    def log_volume_ratio(self) -> Series:
        """ln(volume over the one of the session before + 1)."""
        return np.log(_growth(self.volume) + 1)

    @cached_property
    def weighted_move(self) -> Series:
        """The size of the relative move, times volume."""
        return np.abs(self.close_ratio - 1) * self.volume


def _move(values: Series) -> Series:
    found = np.full_like(values, np.nan)
    np.subtract(values[1:], values[:-1], out=found[1:])
    return found


def _growth(values: Series) -> Series:
    """Each value over the one before; NaN where that is 0."""
    found = np.full_like(values, np.nan)
    np.divide(values[1:], values[:-1], out=found[1:])
    found[np.isinf(found)] = np.nan
    return found
