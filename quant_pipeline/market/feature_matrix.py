"""Bars in, a matrix of features out: one pass a symbol, symbols shared out over all cores."""

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from quant_pipeline.errors import FeatureError
from quant_pipeline.market.alpha158 import KERNELS, WINDOWS
from quant_pipeline.market.feature_kinds import (
    INPUTS,
    AnyFeature,
    CrossSection,
    Feature,
    Floats,
    Kernel,
    KernelColumn,
    Series,
    SymbolBars,
)

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Narrow = npt.NDArray[np.float32]
# What is less costs more in waiting for Python's lock than a second core saves.
ROWS_A_THREAD = 20_000
_WINDOWS = np.array(WINDOWS, np.int64)


def compute_matrix(
    symbol: Ints,
    session: Ints,
    columns: Mapping[str, Series],
    features: Sequence[AnyFeature],
    is_jump: Bools | None = None,
    first_session: Ints | None = None,
    is_wanted: Bools | None = None,
    in_universe: Bools | None = None,
) -> Narrow:
    """Wanted bars x features, from bars sorted by (symbol code, session number).

    Windows that span one of the bars flagged in `is_jump` are NaN. Bars may begin in the middle
    of history: then `first_session`, one entry a symbol code, says when each symbol began, and
    the wanted bars (all by default) have those of their windows before them. Only bars
    `in_universe` count for features across symbols. Known at the close of each bar's session.

    The matrix lies in memory feature by feature. Its bits depend neither on the number of
    threads nor on what other bars and features are asked for.
    """
    wanted = np.ones(len(symbol), np.bool_) if is_wanted is None else is_wanted
    ends = np.concatenate([[0], np.cumsum(wanted)])
    plan = _Plan.of(features)
    # One column more than needed: no slice is contiguous, so kernels are compiled for one layout.
    out = np.empty((plan.n_rows, int(ends[-1]) + 1), np.float32)[:, :-1]
    task = _Panel(symbol, session, _as_given(columns), wanted, is_jump, first_session)
    slices = [(a, b) for a, b in symbol_slices(symbol) if ends[a] < ends[b]]
    n_threads = min(_n_cores(), 1 + int(ends[-1]) // ROWS_A_THREAD)
    shares = [slices[i :: n_threads * 4] for i in range(n_threads * 4)]

    def fill(share: list[tuple[int, int]]) -> None:
        with np.errstate(all="ignore"):
            for a, b in share:
                _fill_symbol(plan, task, a, b, out[:, ends[a] : ends[b]])

    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(fill, [share for share in shares if share]))
    for row, same in plan.copies:
        out[row] = out[same]
    members = None if in_universe is None else in_universe[wanted]
    for feature, row, base in plan.across:
        out[row] = _across_symbols(feature, out[base], session[wanted], members)
    return out[: len(features)].T


def _n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass
class _Plan:
    """Which row of the matrix each feature goes to, and what has to be called.

    After the features' rows come those of features that others are made from, and one row for
    columns of a kernel that nobody asked for.
    """

    kernels: list[tuple[Callable[..., None], Kernel, Ints]] = field(default_factory=list)
    functions: list[tuple[Feature, int]] = field(default_factory=list)
    across: list[tuple[CrossSection, int, int]] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    windows: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    n_rows: int = 0

    @classmethod
    def of(cls, features: Sequence[AnyFeature]) -> "_Plan":
        bases = dict.fromkeys(f.of for f in features if isinstance(f, CrossSection))
        rows = [*features, *(base for base in bases if base not in features)]
        plan = cls(windows=np.array([f.window for f in rows] + [0]), n_rows=len(rows) + 1)
        slots: dict[Kernel, dict[int, int]] = {}
        for row, feature in enumerate(rows):
            if isinstance(feature, CrossSection):
                plan.across.append((feature, row, rows.index(feature.of)))
            elif isinstance(feature.compute, KernelColumn):
                mine = slots.setdefault(feature.compute.kernel, {})
                same = mine.setdefault(feature.compute.column, row)
                if same != row:
                    plan.copies.append((row, same))
            else:
                plan.functions.append((feature, row))
        if slots:
            from quant_pipeline.market import kernels  # numba, only when needed

            for kernel, rows_by_column in slots.items():
                n = KERNELS[kernel]
                where = np.array([rows_by_column.get(i, len(rows)) for i in range(n)], np.int64)
                plan.kernels.append((getattr(kernels, kernel.name), kernel, where))
        return plan


@dataclass(frozen=True)
class _Panel:
    symbol: Ints
    session: Ints
    columns: dict[str, Series]
    is_wanted: Bools
    is_jump: Bools | None
    first_session: Ints | None


def _as_given(columns: Mapping[str, Series]) -> dict[str, Series]:
    """All float32 if all are, else all float64: what the kernels were compiled for."""
    narrow = all(columns[name].dtype == np.float32 for name in INPUTS)
    dtype = np.float32 if narrow else np.float64
    return {name: np.asarray(columns[name], dtype) for name in INPUTS}


def _fill_symbol(plan: _Plan, panel: _Panel, first: int, last: int, out: Narrow) -> None:
    """Fill the columns of one symbol's wanted bars.

    Its arrays begin with its first bar ever (sessions before its first one here may be in its
    windows, too) or where the window of its first wanted bar does.
    """
    began = panel.session[first]
    if panel.first_session is not None:
        began = panel.first_session[panel.symbol[first]]
    first_wanted = panel.session[first + int(np.argmax(panel.is_wanted[first:last]))]
    start = max(int(began), int(first_wanted - plan.windows.max()))
    first += int(np.searchsorted(panel.session[first:last], start))
    place = panel.session[first:last] - start
    bars = SymbolBars(**{n: spread(panel.columns[n][first:last], place) for n in INPUTS})
    is_wanted = panel.is_wanted[first:last]
    at = place[is_wanted]
    for function, kernel, slots in plan.kernels:
        series = [getattr(bars, name) for name in kernel.series]
        if kernel.name != "candles":
            series = [np.asarray(values, np.float64) for values in series]
        function(*series, _WINDOWS, at, slots, out)
    for feature, row in plan.functions:
        out[row] = narrowed(call_function(feature, bars)[at])
    if panel.is_jump is not None and panel.is_jump[first:last].any():
        age = _sessions_since(place, panel.is_jump[first:last])[is_wanted]
        out[plan.windows[:, None] > age] = np.nan


def call_function(feature: Feature, bars: SymbolBars) -> Floats:
    """What a feature's plain function gives for a symbol, one value a session.

    Raises FeatureError if it fails or gives something else than one number a session.
    """
    assert not isinstance(feature.compute, KernelColumn)
    n = len(bars.close)
    try:
        values = feature.compute(*(getattr(bars, name) for name in feature.inputs))
        found = np.asarray(values, np.float64)
    except Exception as error:
        raise FeatureError(
            f"Feature {feature.name} failed on {n} sessions{where(error, feature.compute)}: "
            f"{type(error).__name__}: {str(error).rstrip('.')}."
        ) from error
    if found.shape != (n,):
        raise FeatureError(
            f"Feature {feature.name} gave values of shape {found.shape} for {n} sessions: it has "
            "to give one number a session."
        )
    return found


def narrowed(values: Floats) -> Narrow:
    """As float32; what is infinite then is NaN."""
    found = values.astype(np.float32)
    found[np.isinf(found)] = np.nan
    return found


def where(error: Exception, function: Callable[..., Any]) -> str:
    """The line of a function's file at which an error arose, as far as it is known."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return f", line {lines[-1]} of {Path(str(file)).name}" if lines else ""


def _across_symbols(
    feature: CrossSection, values: Narrow, session: Ints, in_universe: Bools | None
) -> Narrow:
    """Ranks or z-scores of values within each session."""
    counted = pd.Series(values, dtype=np.float64)
    if in_universe is not None:
        counted = counted.where(in_universe)
    groups = counted.groupby(session)
    if feature.how == "rank":
        found = groups.rank(method="average", pct=True)
    else:
        std = groups.transform("std")
        found = (counted - groups.transform("mean")) / std.where(std > 0)
    return found.to_numpy(np.float32)


def _sessions_since(place: Ints, is_jump: Bools) -> npt.NDArray[np.float64]:
    """Sessions since the last flagged bar up to each bar, 0 at it; infinite before the first."""
    newest = np.maximum.accumulate(np.where(is_jump, place, -1))
    return np.where(newest < 0, np.inf, place - newest)


def spans_jump(symbol: Ints, session: Ints, is_jump: Bools, window: int) -> Bools:
    """Bars of which a feature with that window is NaN because of a flagged jump."""
    found = np.zeros(len(symbol), np.bool_)
    for first, last in symbol_slices(symbol):
        found[first:last] = _sessions_since(session[first:last], is_jump[first:last]) < window
    return found


def symbol_slices(symbol: Ints) -> list[tuple[int, int]]:
    """Start and end of each run of equal symbol codes."""
    cuts = np.flatnonzero(np.diff(symbol)) + 1
    edges = [0, *cuts.tolist(), len(symbol)]
    return list(pairwise(edges)) if len(symbol) else []


def spread(values: Series, place: Ints) -> Series:
    """A copy of values, at their places: NaN at those between and before."""
    if place[-1] + 1 == len(place):
        return values.copy()
    out = np.full(int(place[-1]) + 1, np.nan, values.dtype)
    out[place] = values
    return out
