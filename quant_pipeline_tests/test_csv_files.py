"""Rules of CSV layout: the header is found, and every line is a row or is kept as a line."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.errors import SourceError
from quant_pipeline.market.columns import map_columns
from quant_pipeline.stores.csv_files import CsvTable, NoHeader, read_csv

HEADER = "date,open,high,low,close,volume"
ROW = "2020-01-02,10,11,9,10.5,100"
PATH = Path("A.csv")


def find(names: Sequence[str]) -> dict[str, str]:
    return map_columns(names, {}, table="A.csv", has_symbol=True)


def read(text: str, header: Sequence[str] = ()) -> CsvTable:
    return read_csv(text.encode(), PATH, find, header)


lines = st.lists(
    st.sampled_from(["", " ", ROW, ROW.replace("02", "03"), '{"error": [1,2]}', "<html>", ",,,,,"])
    | st.text(st.sampled_from('a1.,;|" :-é'), max_size=30),
    max_size=30,
)


@settings(deadline=None, max_examples=150)
@given(lines, lines, st.booleans())
def test_rows_and_bad_lines_are_all_lines(
    before: list[str], after: list[str], has_header: bool
) -> None:
    text = "\n".join([*before, *([HEADER] if has_header else []), *after])
    n_lines = sum(1 for line in text.split("\n") if line.strip())
    try:
        table = read(text)
        n_lines -= 1
    except NoHeader:
        try:
            table = read(text, header=HEADER.split(","))
        except SourceError:
            return
    except SourceError:
        return
    assert table.columns.num_rows + len(table.bad_lines) == n_lines
    assert [
        line for line in table.bad_lines if line.strip() not in map(str.strip, [*before, *after])
    ] == []


def test_the_header_may_follow_other_lines() -> None:
    table = read(f"Prices of A\n# from: somewhere, 2020\n\n{HEADER}\n{ROW}\n")
    assert table.columns["close"].to_pylist() == ["10.5"]
    assert table.bad_lines == ["Prices of A", "# from: somewhere, 2020"]
    assert table.note == "header found in line 4"


def test_rows_before_the_header_are_rows() -> None:
    table = read(f"{ROW}\n{HEADER}\n{ROW}\n")
    assert table.columns.num_rows == 2


def test_a_header_far_below_is_not_looked_for() -> None:
    with pytest.raises(NoHeader, match="no header line, but rows of 6 fields"):
        read("junk\n" * 50 + f"{HEADER}\n{ROW}\n")


def test_rows_between_many_lines_of_errors_are_found() -> None:
    table = read('{\n  "error": 1\n}\n' * 40 + ROW, HEADER.split(","))
    assert (table.columns.num_rows, len(table.bad_lines)) == (1, 120)


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER},\n{ROW},\n",
        f"{HEADER}\n{ROW},\n",
        f"{HEADER},\n{ROW}\n",
        HEADER.replace(",", " , ") + f"\n{ROW}\n",
        f"{HEADER}\n{ROW}\n".replace(",", "|"),
        f"{HEADER}\n\n\n{ROW}",
    ],
)
def test_a_trailing_delimiter_and_spaces_change_nothing(text: str) -> None:
    table = read(text)
    assert [table.columns[c].to_pylist() for c in ("close", "volume")] == [["10.5"], ["100"]]
    assert table.bad_lines == []


def test_a_table_whose_rows_do_not_fit_is_none() -> None:
    with pytest.raises(SourceError, match=r"2 of 3 lines do not have the 6 fields of its header"):
        read(f"{HEADER}\n{ROW},1\n{ROW},1\n{ROW}\n")
