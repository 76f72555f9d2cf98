"""What a proof found: that it holds, or the first place where it does not."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Outcome = Literal["holds", "fails", "unproven"]


@dataclass(frozen=True)
class Finding:
    """The first value that differs: where it is, what it should be, what it is."""

    stage: str
    table: str
    symbol: str = ""
    ts: date | None = None
    column: str = ""
    expected: Any = None
    found: Any = None

    def __str__(self) -> str:
        where = ", ".join(str(p) for p in (self.symbol, self.ts, self.column) if p)
        values = f": {_short(self.expected)} became {_short(self.found)}"
        return f"{self.stage}, {self.table}{f' ({where})' if where else ''}{values}"


@dataclass(frozen=True)
class Proof:
    """One proof of one as-of and task: `outcome` "unproven" tells in words what was in the way."""

    name: str
    outcome: Outcome
    words: str
    asof: date | None = None
    task_id: str = ""
    finding: Finding | None = None
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether it was refuted."""
        return self.outcome == "fails"


def first_difference(
    stage: str,
    table: str,
    expected: pa.Table,
    found: pa.Table,
    keys: Sequence[str] = ("symbol", "ts"),
) -> Finding | None:
    """The earliest row in which two tables differ, bit for bit; None if they are the same.

    Both have the same columns and are sorted by `ts` first, each row's `keys` once.
    """
    candidates: list[tuple[tuple[Any, ...], str, Any, Any]] = []
    left, right = expected, found
    order = _ordered(keys)
    if not expected.select(order).equals(found.select(order)):
        ours, theirs = (_key_rows(rows, order) for rows in (expected, found))
        missing, extra = set(ours) - set(theirs), set(theirs) - set(ours)
        candidates += [(min(missing), "", "a row", "no row")] if missing else []
        candidates += [(min(extra), "", "no row", "a row")] if extra else []
        both = sorted(set(ours) & set(theirs))
        left = expected.take(pa.array([ours[key] for key in both], pa.int64()))
        right = found.take(pa.array([theirs[key] for key in both], pa.int64()))
    for name in expected.column_names:
        at = _first_unlike(left[name], right[name])
        if at is not None:
            key = tuple(left[column][at].as_py() for column in order)
            candidates.append((key, name, left[name][at].as_py(), right[name][at].as_py()))
    if not candidates:
        return None
    (key, column, before, after) = min(candidates, key=lambda c: (c[0], c[1]))
    named = dict(zip(order, key, strict=True))
    return Finding(
        stage, table, str(named.get("symbol", "")), named.get("ts"), column, before, after
    )


def _ordered(keys: Sequence[str]) -> list[str]:
    """`ts` before the others: what comes first in time is named."""
    return sorted(keys, key=lambda name: name != "ts")


def _key_rows(rows: pa.Table, keys: Sequence[str]) -> dict[tuple[Any, ...], int]:
    columns = [rows[name].to_pylist() for name in keys]
    return {key: i for i, key in enumerate(zip(*columns, strict=True))}


def _first_unlike(a: pa.ChunkedArray, b: pa.ChunkedArray) -> int | None:
    if pa.types.is_floating(a.type):
        left, right = (c.to_numpy() for c in (a, b))
        unlike = np.flatnonzero((left != right) & ~(np.isnan(left) & np.isnan(right)))
        unlike = np.union1d(unlike, np.flatnonzero(np.signbit(left) != np.signbit(right)))
        unlike = unlike[~(np.isnan(left[unlike]) & np.isnan(right[unlike]))]
        return int(unlike[0]) if len(unlike) else None
    same = pc.fill_null(pc.equal(a, b), False)
    both_null = pc.and_(pc.is_null(a), pc.is_null(b))
    rows = np.flatnonzero(~pc.or_(same, both_null).to_numpy())
    return int(rows[0]) if len(rows) else None


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.9g}"
    return str(value)[:60]
