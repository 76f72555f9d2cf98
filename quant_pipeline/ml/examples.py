"""What models learn from: rows of tasks that are alike, checked before anything is fitted."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quant_pipeline.errors import DegenerateData

FEATURE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
_COLUMNS = ("symbol", "ts", "entry_ts", "known_at", "fwd_return")


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled rows in canonical order (ts, symbol), each key once, of tasks with one horizon.

    ``x`` is float32, row-major, one column per feature name; NaN is a missing value. ``ts``,
    ``entry_ts`` and ``known_at`` are datetime64[D]; ``fwd_return`` is finite float64, earned from
    the close of ``entry_ts`` to that of ``known_at``. Labels are the tasks' own, apart from it.
    """

    symbol: np.ndarray
    ts: np.ndarray
    entry_ts: np.ndarray
    known_at: np.ndarray
    x: np.ndarray
    fwd_return: np.ndarray
    feature_names: tuple[str, ...]

    def from_row(self, first: int) -> "Examples":
        """The rows from a position on; nothing is copied."""
        kept = {name: getattr(self, name)[first:] for name in (*_COLUMNS, "x")}
        return Examples(**kept, feature_names=self.feature_names)

    def key(self, row: int) -> str:
        """A row in words."""
        return f"{self.symbol[row]} {self.ts[row]}"

    def check(self) -> None:
        """Raise DegenerateData with the first thing that no model can be trained on.

        LightGBM takes infinities for large numbers and a newline in a feature name for a header of
        its own, without a word.
        """
        _check_shapes(self)
        _check_names(self.feature_names)
        _check_order(self)
        self.require_finite("fwd_return", self.fwd_return)
        _check_features(self)

    def require_finite(self, name: str, values: np.ndarray) -> None:
        """Refuse values of the rows that are NaN or infinite: LightGBM takes NaN labels for 0."""
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise DegenerateData(
                f"{len(bad)} of {len(values)} rows have a {name} that is no finite number, "
                f"first {self.key(bad[0])}: {values[bad[0]]}. Recompute labels."
            )


def _check_shapes(examples: Examples) -> None:
    n, n_features = len(examples.fwd_return), len(examples.feature_names)
    x = examples.x
    if x.shape != (n, n_features) or x.dtype != np.float32 or not x.flags.c_contiguous:
        raise DegenerateData(
            f"The feature matrix is {x.dtype} {x.shape}; {n} labels and {n_features} feature "
            f"names need a row-major float32 matrix of shape ({n}, {n_features})."
        )
    for name in _COLUMNS:
        shape = getattr(examples, name).shape
        if shape != (n,):
            raise DegenerateData(f"Column {name} has shape {shape}, but there are {n} labels.")


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not FEATURE_NAME.fullmatch(name):
            raise DegenerateData(
                f"Feature name {name!r} cannot be stored in a model: use a letter, then at most "
                "62 letters, digits or underscores."
            )
    twice = sorted(name for name in set(names) if list(names).count(name) > 1)
    if twice:
        raise DegenerateData(f"Feature names must differ, but these repeat: {', '.join(twice)}.")


def _check_order(e: Examples) -> None:
    ts, symbol, entry, known = e.ts, e.symbol, e.entry_ts, e.known_at
    undated = np.isnat(ts) | np.isnat(entry) | np.isnat(known)
    bad = np.flatnonzero(undated | (known <= ts) | (entry <= ts) | (known <= entry))
    if len(bad):
        raise DegenerateData(
            f"{len(bad)} rows have no date or a label known no later than its own session, first "
            f"{e.key(bad[0])}: entered {entry[bad[0]]}, known at {known[bad[0]]}. Recompute labels."
        )
    same_day = ts[1:] == ts[:-1]
    in_order = (ts[1:] > ts[:-1]) | (same_day & (symbol[1:] > symbol[:-1]))
    if in_order.all():
        return
    row = int(np.flatnonzero(~in_order)[0])
    is_twice = same_day[row] and symbol[row + 1] == symbol[row]
    what = "appears twice" if is_twice else f"is followed by {e.key(row + 1)}"
    raise DegenerateData(
        f"Examples must be in order of ts, then symbol, each key once, but row {row} "
        f"({e.key(row)}) {what}. Another row order would train another model."
    )


def _check_features(e: Examples) -> None:
    if not len(e.x):
        return
    highest = np.fmax.reduce(e.x, axis=0)
    lowest = np.fmin.reduce(e.x, axis=0)
    infinite = np.flatnonzero(np.isinf(highest) | np.isinf(lowest))
    if len(infinite):
        column = e.x[:, infinite[0]]
        bad = np.flatnonzero(np.isinf(column))
        raise DegenerateData(
            f"Feature {e.feature_names[infinite[0]]} is infinite in {len(bad)} of {len(column)} "
            f"rows, first {e.key(bad[0])}. Features are finite numbers or NaN; recompute "
            "features_daily."
        )
    if not (highest > lowest).any():
        raise DegenerateData(
            f"All {len(e.feature_names)} features are constant or missing in {len(e.x)} rows: "
            "nothing can be learned from them."
        )
