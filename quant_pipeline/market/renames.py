"""Renamed tickers: which permanent id a ticker meant on a day."""

from dataclasses import dataclass
from datetime import date
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quant_pipeline.errors import SourceError
from quant_pipeline.market.text_values import day_number, iso, normalize_symbol

Ints = npt.NDArray[np.int64]

_FIRST_DAY, _LAST_DAY = day_number(date.min), day_number(date.max)


@dataclass(frozen=True)
class Renames:
    """Which ticker meant which permanent id from which day to which day, both included.

    Sorted by ticker and first day; days count from 1970-01-01. Intervals of one ticker never
    overlap. A permanent id is final: it is not looked up again as a ticker.
    """

    ticker: tuple[str, ...]
    symbol: tuple[str, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]

    @classmethod
    def of(cls, table: pa.Table) -> "Renames":
        """Build from columns ticker, symbol, first and last; a null end is open.

        Raises SourceError for what is no symbol, an interval that ends before it begins, and
        intervals of one ticker that overlap.
        """
        rows = []
        columns = [table[c].to_pylist() for c in ("ticker", "symbol", "first", "last")]
        for ticker, symbol, first, last in zip(*columns, strict=True):
            start = _FIRST_DAY if first is None else day_number(first)
            end = _LAST_DAY if last is None else day_number(last)
            if end < start:
                raise SourceError(
                    f"The rename of {ticker} to {symbol} ends on {last}, before it begins on "
                    f"{first}. Correct its dates."
                )
            rows.append((_symbol(ticker), start, end, _symbol(symbol)))
        rows.sort()
        for one, other in pairwise(rows):
            if one[0] == other[0] and other[1] <= one[2]:
                raise SourceError(
                    f"Renames of {one[0]} overlap: to {one[3]} {_span(one[1], one[2])}, to "
                    f"{other[3]} {_span(other[1], other[2])}. A ticker means one company a day."
                )
        return cls(
            ticker=tuple(row[0] for row in rows),
            symbol=tuple(row[3] for row in rows),
            first=tuple(row[1] for row in rows),
            last=tuple(row[2] for row in rows),
        )

    def apply(self, names: list[str], symbol: Ints, day: Ints) -> tuple[list[str], Ints]:
        """Give rows their permanent ids: sorted names, and each row's place among them.

        `symbol` holds places in `names`, negative for rows that have none; those stay as they
        are, and so does every row whose day lies in no interval of its ticker.
        """
        place = {name: i for i, name in enumerate(names)}
        used = [i for i, ticker in enumerate(self.ticker) if ticker in place]
        if not used:
            return names, symbol
        codes = np.array([place[self.ticker[i]] for i in used], np.int64)
        order = np.lexsort((np.array([self.first[i] for i in used], np.int64), codes))
        used, codes = [used[i] for i in order], codes[order]
        is_renamed = np.zeros(len(names) + 1, np.bool_)
        is_renamed[codes] = True
        is_dated = (day >= _FIRST_DAY) & (day <= _LAST_DAY)
        rows = np.flatnonzero(is_renamed[np.maximum(symbol, -1)] & is_dated)
        span = _LAST_DAY - _FIRST_DAY + 1
        starts = codes * span + [self.first[i] - _FIRST_DAY for i in used]
        ends = codes * span + [self.last[i] - _FIRST_DAY for i in used]
        key = symbol[rows] * span + day[rows] - _FIRST_DAY
        nearest = np.searchsorted(starts, key, side="right") - 1
        is_within = (nearest >= 0) & (key <= ends[nearest])
        together = sorted({*names, *(self.symbol[i] for i in used)})
        index = {name: i for i, name in enumerate(together)}
        targets = np.array([index[self.symbol[i]] for i in used], np.int64)
        renamed = np.array([*(index[name] for name in names), -1], np.int64)[np.maximum(symbol, -1)]
        renamed[rows[is_within]] = targets[nearest[is_within]]
        return together, renamed


def _symbol(text: str) -> str:
    symbol = normalize_symbol(text)
    if symbol is None:
        raise SourceError(f"{text!r} in the renames cannot be a symbol. Correct it.")
    return symbol


def _span(first: int, last: int) -> str:
    start = "ever since" if first == _FIRST_DAY else f"from {iso(first)}"
    return f"{start} on" if last == _LAST_DAY else f"{start} to {iso(last)}"
