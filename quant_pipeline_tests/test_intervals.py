"""Rules of small interval tables: every line counts, and each mistake is named with its line."""

from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.errors import SourceError
from quant_pipeline.market.renames import Renames
from quant_pipeline.stores.intervals import read_memberships, read_renames
from quant_pipeline.stores.sources import Reading

DAY = date(2020, 1, 1)
spans = st.lists(
    st.tuples(st.sampled_from("AB"), st.integers(0, 20), st.integers(0, 6)), max_size=9
)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@settings(deadline=None, max_examples=100)
@given(spans)
def test_members_are_the_union_of_their_intervals(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int, int]]
) -> None:
    lines = [f"{s},{DAY + timedelta(a)},{DAY + timedelta(a + n)}" for s, a, n in rows]
    path = tmp_path_factory.getbasetemp() / "members.csv"
    members = read_memberships(write(path, "\n".join(["symbol,first,last", *lines])), Reading())
    expected = {(s, DAY + timedelta(d)) for s, a, n in rows for d in range(a, a + n + 1)}
    got = [
        (m["symbol"], m["first"] + timedelta(d))
        for m in members.to_pylist()
        for d in range((m["last"] - m["first"]).days + 1)
    ]
    assert got == sorted(expected)


@pytest.mark.parametrize(
    "text",
    [
        "Ticker,Start,End\n aapl ,2020-01-02,\nBRK.B,2020-01-02,2020-02-03\n",
        "symbol;date_added;date_removed\nAAPL;02/01/2020;-\nBRK.B;02/01/2020;03/02/2020\n"
        "BRK.B;13/01/2020;13/01/2020\n",
        "\ufeffto,from,symbol\r\nnull,20200102,AAPL\r\n\r\n2020-02-03,2020-01-02,BRK.B\r\n",
    ],
)
def test_members_as_people_write_them(tmp_path: Path, text: str) -> None:
    members = read_memberships(write(tmp_path / "m.csv", text), Reading())
    assert members.schema == pa.schema(
        [("symbol", pa.string()), ("first", pa.date32()), ("last", pa.date32())]
    )
    first = date(2020, 1, 2)
    assert [tuple(m.values()) for m in members.to_pylist()] == [
        ("AAPL", first, None),
        ("BRK.B", first, date(2020, 2, 3)),
    ]


def test_parquet_is_read_as_well(tmp_path: Path) -> None:
    table = pa.table({"old": ["FB"], "new": ["META"], "until": [date(2022, 6, 8)]})
    pq.write_table(table, tmp_path / "r.csv")
    renames = read_renames(tmp_path / "r.csv", Reading())
    assert renames.to_pylist() == [
        {"ticker": "FB", "symbol": "META", "first": None, "last": date(2022, 6, 8)}
    ]
    assert Renames.of(renames).symbol == ("META",)


def test_columns_may_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", "was,now\nFB,META\n")
    with pytest.raises(SourceError, match=r"no column of intervals .* --column ticker=NAME"):
        read_renames(path, Reading())
    named = Reading(columns={"ticker": "was", "symbol": "now", "close": "px_last"})
    assert read_renames(path, named)["symbol"].to_pylist() == ["META"]


def test_every_mistake_is_named_with_its_line(tmp_path: Path) -> None:
    text = (
        "symbol,first,last\n\nA,2020-01-02,\ntwo words,2020-01-02,\nB,soon,\nC,,2020-01-02\n"
        "D,2020-01-03,2020-01-02\n"
    )
    with pytest.raises(SourceError) as error:
        read_memberships(write(tmp_path / "m.csv", text), Reading())
    assert str(error.value) == (
        f"{tmp_path / 'm.csv'} was not read, for 4 mistakes: line 4: 'two words' is no symbol "
        "(symbol); line 5: 'soon' is no date (first); line 6 has no first day; line 7 ends on "
        "2020-01-02, before it begins on 2020-01-03. Correct the file; no line is left out."
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("\u00a0\n", "is empty"),
        ("symbol,first,last\nA,2020-01-02\n", "line 2 has 2 fields, not 3"),
        ("symbol,first\nA,2020-01-02\n", "lacks column last"),
        ("symbol,first,last\nA,03/04/2020,\n", "--date-format %d/%m/%Y"),
        ("symbol,first,last\n" + "A,x,\n" * 12, "12 mistakes: .* and 2 more"),
    ],
)
def test_what_cannot_be_read_is_refused_whole(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(SourceError, match=why):
        read_memberships(write(tmp_path / "m.csv", text), Reading())


def test_overlapping_renames_name_the_file(tmp_path: Path) -> None:
    text = "ticker,symbol,first,last\nFB,META,,2022-06-08\nFB,PROF,2022-06-08,\n"
    with pytest.raises(SourceError, match=r"r\.csv: Renames of FB overlap: .* 2022-06-08"):
        read_renames(write(tmp_path / "r.csv", text), Reading())
