"""Rules of renames: on each day a ticker means one company, or itself."""

from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.errors import SourceError
from quant_pipeline.market.renames import Renames

EPOCH = date(1970, 1, 1)
names = st.sampled_from(["A", "B", "C", "X", "Z"])
ends = st.none() | st.integers(0, 12)


def table(*rows: tuple[str, str, Any, Any]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    return pa.table(
        {
            "ticker": pa.array(columns[0], pa.string()),
            "symbol": pa.array(columns[1], pa.string()),
            "first": pa.array(columns[2], pa.date32()),
            "last": pa.array(columns[3], pa.date32()),
        }
    )


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(names, names, ends, ends), max_size=5),
    st.lists(st.tuples(st.sampled_from(["A", "B", "Q", None]), st.integers(0, 12)), max_size=30),
)
def test_a_ticker_means_what_an_interval_of_its_day_says(
    spans: list[tuple[str, str, int | None, int | None]],
    rows: list[tuple[str | None, int]],
) -> None:
    as_dates = [
        (t, s, *(None if e is None else EPOCH + timedelta(e) for e in (a, b)))
        for t, s, a, b in spans
    ]
    claims: dict[tuple[str, int], list[str]] = {}
    for ticker, symbol, first, last in spans:
        for day in range(-1, 14):
            if (first is None or day >= first) and (last is None or day <= last):
                claims.setdefault((ticker, day), []).append(symbol)
    is_wrong = any(a is not None and b is not None and b < a for _, _, a, b in spans)
    if is_wrong or any(len(symbols) > 1 for symbols in claims.values()):
        with pytest.raises(SourceError, match=r"overlap|before it begins"):
            Renames.of(table(*as_dates))
        return
    known = sorted({ticker for ticker, _ in rows if ticker is not None})
    code = np.array([-1 if t is None else known.index(t) for t, _ in rows], np.int64)
    day = np.array([d for _, d in rows], np.int64)
    found, place = Renames.of(table(*as_dates)).apply(known, code, day)
    assert found == sorted(set(found))
    got = [None if p < 0 else found[p] for p in place]
    assert got == [None if t is None else claims.get((t, d), [t])[0] for t, d in rows]


def test_overlapping_intervals_are_named_with_their_dates() -> None:
    with pytest.raises(SourceError) as error:
        Renames.of(
            table(("FB", "META", None, date(2022, 6, 8)), ("fb", "OTHER", date(2022, 6, 8), None))
        )
    assert str(error.value) == (
        "Renames of FB overlap: to META ever since to 2022-06-08, to OTHER from 2022-06-08 on. "
        "A ticker means one company a day."
    )


def test_a_row_without_a_day_keeps_its_ticker() -> None:
    renames = Renames.of(table(("A", "B", None, None)))
    no_day = np.iinfo(np.int64).min
    found, place = renames.apply(["A"], np.array([0, 0]), np.array([no_day, 5]))
    assert [found[p] for p in place] == ["A", "B"]


def test_what_cannot_be_a_symbol_is_refused() -> None:
    with pytest.raises(SourceError, match="'two words' in the renames cannot be a symbol"):
        Renames.of(table(("A", "two words", None, None)))
