"""Rules of reading files: every line is read or named, and nothing is believed by its name."""

import gzip
import os
from datetime import date
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.errors import SourceError
from quant_pipeline.market.columns import PRICE_COLUMNS
from quant_pipeline.market.validate import validate_rows
from quant_pipeline.stores.sources import list_files, read_all, read_prices

MAX = 1 << 24
DATA = Path(__file__).parents[2] / "shared" / "data"
HEADER = "symbol,date,open,high,low,close,adj close,volume\n"
ROWS = "NA,2020-01-02,10,11,9,10.50,,100\nNULL,2020-01-02,1,1,1,1,null,5\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def shared(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is missing: this was NOT tested on real files")
    return DATA / name


# --- what is read


def test_text_stays_as_delivered(tmp_path: Path) -> None:
    rows = read_prices(write(tmp_path / "p.csv", HEADER + ROWS), {}, MAX)
    assert list(rows) == list(PRICE_COLUMNS)
    assert rows["symbol"].tolist() == ["NA", "NULL"]
    assert rows["close"].tolist() == ["10.50", "1"]
    assert rows["adj_close"].tolist() == ["", "null"]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + (HEADER + ROWS).encode(),
        (HEADER + ROWS).replace("\n", "\r\n").encode(),
        (HEADER + ROWS).replace("\n", "\r").encode(),
        (HEADER + ROWS).replace("\n", "\n\n").encode(),
        ("\n\n" + HEADER + ROWS.rstrip()).encode(),
        (HEADER + ROWS).replace(",", ";").encode(),
        (HEADER + ROWS).replace(",", "\t").encode(),
        (HEADER + ROWS).replace("NULL", '"NULL"').encode(),
        gzip.compress((HEADER + ROWS).encode()),
    ],
)
@pytest.mark.parametrize("name", ["p.csv", "p.csv.gz", "p.parquet"])
def test_content_decides_whatever_its_dress(tmp_path: Path, content: bytes, name: str) -> None:
    plain = read_prices(write(tmp_path / "plain.csv", HEADER + ROWS), {}, MAX)
    pd.testing.assert_frame_equal(read_prices(write(tmp_path / name, content), {}, MAX), plain)


@pytest.mark.parametrize("name", ["BRK.B.csv", "BRK.B.csv.gz", "brk.b.CSV", "BRK.B"])
def test_the_files_name_is_the_symbol_where_no_column_is(tmp_path: Path, name: str) -> None:
    text = "Date,Open,High,Low,Close,Volume\n2020-01-02,1,1,1,1,1\n"
    (symbol,) = read_prices(write(tmp_path / name, text), {}, MAX)["symbol"]
    assert symbol.upper() == "BRK.B"


def test_rows_of_many_symbols_never_become_those_of_one(tmp_path: Path) -> None:
    text = "Code,Date,Open,High,Low,Close,Volume\n" + "A,2020-01-02,1,1,1,1,1\n" * 5
    path = write(tmp_path / "prices.csv", text)
    with pytest.raises(SourceError, match=r"5 rows on 1 dates .* --column symbol=NAME"):
        read_prices(path, {}, MAX)
    assert read_prices(path, {"symbol": "Code"}, MAX)["symbol"].tolist() == ["A"] * 5
    with pytest.raises(SourceError, match=r"lacks column symbol"):
        read_prices(write(tmp_path / "two words.csv", text), {}, MAX)


cells = st.text(st.sampled_from('a1",;\n\r \t'), max_size=6)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(cells, min_size=1, max_size=9).map(",".join), max_size=20))
def test_no_line_is_ever_swallowed(
    tmp_path_factory: pytest.TempPathFactory, junk: list[str]
) -> None:
    good = [f"A{i},2020-01-02,1,1,1,1,1,1" for i in range(len(junk) + 1)]
    lines = [line for pair in zip(good, [*junk, ""], strict=True) for line in pair]
    text = HEADER + "\n".join(lines)
    n_lines = sum(1 for line in text.replace("\r", "\n").split("\n")[1:] if line.strip())
    path = tmp_path_factory.getbasetemp() / "lines.csv"
    try:
        rows = read_prices(write(path, text), {}, MAX)
    except SourceError as error:
        assert "lines do not have the 8 fields" in str(error)  # noqa: PT017
        return
    assert set(good_symbol(line) for line in good) <= set(rows["symbol"].dropna())
    assert len(rows) == n_lines
    validated = validate_rows(rows, today=date(2021, 1, 1), first_date=date(2019, 1, 1))
    assert validated.n_valid == len(good)


def good_symbol(line: str) -> str:
    return line.split(",")[0]


def test_an_unclosed_quote_costs_its_own_line_only(tmp_path: Path) -> None:
    good = "".join(f"A{i},2020-01-02,1,1,1,1,1,1\n" for i in range(60_000))
    text = HEADER + good + 'B,2020-01-02,1,1,1,1,1,"1\n' + good.replace("A", "C")
    rows = read_prices(write(tmp_path / "p.csv", text), {}, MAX)
    assert len(rows) == 120_001
    assert rows["symbol"].isna().sum() == 1
    result = validate_rows(rows, today=date(2021, 1, 1), first_date=date(2019, 1, 1))
    assert (result.n_valid, result.counts["bad_line"]) == (120_000, 1)
    assert result.rejected["ts"].tolist() == ['B,2020-01-02,1,1,1,1,1,"1']


def test_parquet_keeps_types_and_symbols_are_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "Ticker": pa.array([7203, 9984]),
            "Date": pa.array([date(2020, 1, 2)] * 2),
            **{name: pa.array([1.0, 2.0]) for name in ("Open", "High", "Low", "Adj. Close")},
            "Close": pa.array([1, 2]).cast(pa.decimal128(22, 2)),
            "Volume": pa.array([5, None], pa.int64()),
        }
    )
    path = tmp_path / "prices"
    pq.write_table(table, path)
    rows = read_prices(path, {}, MAX)
    assert rows["symbol"].tolist() == ["7203", "9984"]
    assert rows["adj_close"].tolist() == rows["close"].tolist() == [1.0, 2.0]
    result = validate_rows(rows, today=date(2021, 1, 1), first_date=date(2019, 1, 1))
    assert (result.n_valid, result.counts["null_volume"]) == (1, 1)


def test_parquet_written_by_pandas_with_a_date_index(tmp_path: Path) -> None:
    columns = ["Open", "High", "Low", "Close", "Volume"]
    index = pd.date_range("2020-01-02", periods=2, name="Date", tz="America/New_York")
    frame = pd.DataFrame(1.0, index=index, columns=columns).assign(Symbol=pd.Categorical(["A"] * 2))
    frame.to_parquet(tmp_path / "p.parquet")
    rows = read_prices(tmp_path / "p.parquet", {}, MAX)
    result = validate_rows(rows, today=date(2021, 1, 1), first_date=date(2019, 1, 1))
    assert result.prices["ts"].to_pylist() == [date(2020, 1, 2), date(2020, 1, 3)]


# --- what is refused


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b'{"finance": {"error": 1}}\n2020-01-02,1,1,1,1,1\n', "begins like JSON"),
        (b"<!DOCTYPE html><html></html>", "is an HTML or XML page"),
        (b"404 Not Found: Timestamp data missing.\n", "it begins with '404 Not Found"),
        (b"404 Not Found: No data, symbol may be delisted", "no column of prices"),
        (b"a,b,c\n", "no column of prices"),
        (b"date,open,high,low,volume,px\n", r"lacks column close .* --column close=px\."),
        (b"\x89PNG\r\n\0\0\0", "is binary"),
        ("date,open".encode("utf-16"), "is UTF-16 text"),
        (HEADER.encode() + b"\xff\xfe,2020-01-02,1,1,1,1,1,1\n", "is not UTF-8 .near"),
        (HEADER.encode() + ROWS.encode() + b"\xff\n", "is not UTF-8 .near"),
        (HEADER.encode() + b"one\ntwo\n" + ROWS[:33].encode(), "2 of 3 lines"),
        (b"x" * 100_000, "first line of 100000 bytes"),
        (b"x," * 5000, "5001 fields"),
        (b"PAR1 and so on", "damaged Parquet"),
        (gzip.compress(b"date,open\n" * 99)[:-9], "damaged gzip"),
        (gzip.compress(b"date,open\n") + b"tail", "damaged gzip"),
        (gzip.compress(bytes(4 << 20)), "200 times its size"),
        (b"date,open\n" * (MAX // 10 + 1), "more than the limit"),
    ],
)
def test_what_is_no_table_is_named_with_its_reason(
    tmp_path: Path, content: bytes, why: str
) -> None:
    path = write(tmp_path / "A.csv", content)
    with pytest.raises(SourceError, match=why) as error:
        read_prices(path, {}, MAX)
    assert "A.csv" in str(error.value)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=300), st.sampled_from([b"", b"PAR1", b"\x1f\x8b", HEADER.encode()]))
def test_any_bytes_give_rows_or_a_named_problem(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, head: bytes
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "bytes.csv", head + content)
    (delivery,) = read_all([path], {}, MAX)
    assert (delivery.rows is None) != (delivery.problem is None)
    if delivery.rows is not None:
        validate_rows(delivery.rows, today=date(2021, 1, 1), first_date=date(2019, 1, 1))


def test_a_parquet_file_that_unpacks_too_large_is_refused(tmp_path: Path) -> None:
    n = 100_000
    table = pa.table({c: pa.array([1.0] * n) for c in PRICE_COLUMNS if c != "symbol"})
    pq.write_table(table, tmp_path / "A.parquet")
    with pytest.raises(SourceError, match=r"unpacks to 5600000 bytes, more than .* 1000000\."):
        read_prices(tmp_path / "A.parquet", {}, 1_000_000)


def test_a_parquet_column_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    table = pa.table({c: pa.array([[1]]) for c in PRICE_COLUMNS})
    pq.write_table(table, tmp_path / "A.parquet")
    with pytest.raises(SourceError, match=r"list<.* in column symbol"):
        read_prices(tmp_path / "A.parquet", {}, MAX)


# --- which files


def test_folders_give_their_price_files_once_and_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub" / ".hidden").mkdir(parents=True)
    for name in ("b.csv", "a.csv.gz", "sub/c.parquet", ".d.csv", "sub/.hidden/e.csv", "f.md"):
        write(tmp_path / name, "")
    found = list_files([tmp_path / "f.md", tmp_path, tmp_path / "b.csv"])
    assert [str(p.relative_to(tmp_path)) for p in found] == [
        *("f.md", "a.csv.gz", "b.csv", "sub/c.parquet")
    ]


def test_a_path_without_files_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere does not exist"):
        read_all([tmp_path / "nowhere"], {}, MAX)
    with pytest.raises(SourceError, match=r"holds no file that ends in \.csv"):
        list_files([tmp_path])
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(SourceError, match=r"neither a file nor a folder"):
        list_files([tmp_path / "pipe.csv"])


def test_a_bad_file_stops_no_other(tmp_path: Path) -> None:
    for name, text in (("a", "{"), ("b", HEADER + ROWS), ("c", "")):
        write(tmp_path / f"{name}.csv", text)
    a, b, c = read_all([tmp_path], {}, MAX)
    assert (a.rows, b.problem, c.rows) == (None, None, None)
    assert a.problem is not None
    assert "a.csv" in a.problem
    assert b.rows is not None
    assert len(b.rows) == 2


def test_messy_files_as_downloaded_give_rows_or_a_problem() -> None:
    folder = shared("raw_us_yahoo_messy")
    problems = set()
    for delivery in read_all([folder, shared("raw_in_nifty_messy.csv")], {}, MAX):
        if delivery.rows is None:
            problems.add(delivery.path.stem)
            continue
        result = validate_rows(delivery.rows, today=date(2026, 1, 1), first_date=date(1990, 1, 1))
        assert result.n_read == result.n_valid + len(result.rejected)
        assert result.n_valid > 300
    headless = {"SBNY", "SIVB", "SRE", "TSLA", "TT", "TWTR", "WMT", "XOM"}
    assert problems == headless | {"BF.B", "BRK.B"}
