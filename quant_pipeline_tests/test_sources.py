"""Rules of reading files: every line is read or named, and nothing is believed by its name."""

import gzip
import os
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.errors import SourceError
from quant_pipeline.market.columns import PRICE_COLUMNS
from quant_pipeline.market.text_values import DATE_FORMATS
from quant_pipeline.market.validate import validate_rows
from quant_pipeline.stores.sources import LIMITS, Reading, list_files, read_all, read_prices

READING = Reading(max_bytes=1 << 24)
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
    rows = read_prices(write(tmp_path / "p.csv", HEADER + ROWS), READING)
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
    plain = read_prices(write(tmp_path / "plain.csv", HEADER + ROWS), READING)
    pd.testing.assert_frame_equal(read_prices(write(tmp_path / name, content), READING), plain)


@pytest.mark.parametrize("name", ["BRK.B.csv", "BRK.B.csv.gz", "brk.b.CSV", "BRK.B"])
def test_the_files_name_is_the_symbol_where_no_column_is(tmp_path: Path, name: str) -> None:
    text = "Date,Open,High,Low,Close,Volume\n2020-01-02,1,1,1,1,1\n"
    (symbol,) = read_prices(write(tmp_path / name, text), READING)["symbol"]
    assert symbol.upper() == "BRK.B"


def test_rows_of_many_symbols_never_become_those_of_one(tmp_path: Path) -> None:
    text = "Code,Date,Open,High,Low,Close,Volume\n" + "A,2020-01-02,1,1,1,1,1\n" * 5
    path = write(tmp_path / "prices.csv", text)
    with pytest.raises(SourceError, match=r"5 rows on 1 dates .* --column symbol=NAME"):
        read_prices(path, READING)
    assert read_prices(path, Reading({"symbol": "Code"}))["symbol"].tolist() == ["A"] * 5
    with pytest.raises(SourceError, match=r"lacks column symbol"):
        read_prices(write(tmp_path / "two words.csv", text), READING)


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
        rows = read_prices(write(path, text), READING)
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
    rows = read_prices(write(tmp_path / "p.csv", text), READING)
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
    rows = read_prices(path, READING)
    assert rows["symbol"].tolist() == ["7203", "9984"]
    assert rows["adj_close"].tolist() == rows["close"].tolist() == [1.0, 2.0]
    result = validate_rows(rows, today=date(2021, 1, 1), first_date=date(2019, 1, 1))
    assert (result.n_valid, result.counts["null_volume"]) == (1, 1)


def test_parquet_written_by_pandas_with_a_date_index(tmp_path: Path) -> None:
    columns = ["Open", "High", "Low", "Close", "Volume"]
    index = pd.date_range("2020-01-02", periods=2, name="Date", tz="America/New_York")
    frame = pd.DataFrame(1.0, index=index, columns=columns).assign(Symbol=pd.Categorical(["A"] * 2))
    frame.to_parquet(tmp_path / "p.parquet")
    rows = read_prices(tmp_path / "p.parquet", READING)
    result = validate_rows(rows, today=date(2021, 1, 1), first_date=date(2019, 1, 1))
    assert result.prices["ts"].to_pylist() == [date(2020, 1, 2), date(2020, 1, 3)]


# --- what is refused


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b'{"finance": {"error": 1}}\n{"more": [1, 2, 3, 4, 5]}', "begins like JSON"),
        (b'{"finance": "' + b"x" * 100_000, "begins like JSON"),
        (b"2020-01-02,1,1,1,1,1\n", "no header line, but rows of 6 .* --header date,open"),
        (b"<!DOCTYPE html><html></html>", "is an HTML or XML page"),
        (b"404 Not Found: Timestamp data missing.\n", "It begins with '404 Not Found"),
        (b"404 Not Found: No data, symbol may be delisted", "It begins with '404 Not Found"),
        (b"a,b,c\n", "no line of it is a header or a row"),
        (b"Datum,K1,K2,K3,K4,K5\n2020-01-02,1,1,1,1,1\n", "no column of prices"),
        (b"date,open,high,low,close,close,volume\n", "2 columns named close"),
        (b"date,open,high,low,volume,px\n", r"lacks column close .* --column close=px\."),
        (b"\x89PNG\r\n\0\0\0", "is binary"),
        ("date,open".encode("utf-16"), "is UTF-16 text"),
        (HEADER.encode() + b"\xff\xfe,2020-01-02,1,1,1,1,1,1\n", "is not UTF-8 .near"),
        (HEADER.encode() + ROWS.encode() + b"\xff\n", "is not UTF-8 .near"),
        (HEADER.encode() + b"one\ntwo\n", "2 of 2 lines"),
        (b"x" * 100_000, r"more than 65536 bytes \(line 1\)"),
        (HEADER.encode() + b"x" * 100_000, r"more than 65536 bytes \(line 2\)"),
        (b"x," * 5000, "5001 fields"),
        (b"PAR1 and so on", "damaged Parquet"),
        (gzip.compress(b"date,open\n" * 99, mtime=0)[:-9], "damaged gzip"),
        (gzip.compress(b"date,open\n", mtime=0) + b"tail", "damaged gzip"),
        (gzip.compress(bytes(4 << 20), mtime=0), "200 times its size"),
        (b"date,open\n" * (READING.max_bytes // 10 + 1), "more than the limit"),
    ],
)
def test_what_is_no_table_is_named_with_its_reason(
    tmp_path: Path, content: bytes, why: str
) -> None:
    path = write(tmp_path / "A.csv", content)
    with pytest.raises(SourceError, match=why) as error:
        read_prices(path, READING)
    assert "A.csv" in str(error.value)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=300), st.sampled_from([b"", b"PAR1", b"\x1f\x8b", HEADER.encode()]))
def test_any_bytes_give_rows_or_a_named_problem(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, head: bytes
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "bytes.csv", head + content)
    (delivery,) = read_all([path], READING)
    assert (delivery.rows is None) != (delivery.problem is None)
    if delivery.rows is not None:
        validate_rows(delivery.rows, today=date(2021, 1, 1), first_date=date(2019, 1, 1))


def test_a_parquet_file_that_unpacks_too_large_is_refused(tmp_path: Path) -> None:
    n = 100_000
    table = pa.table({c: pa.array([1.0] * n) for c in PRICE_COLUMNS if c != "symbol"})
    pq.write_table(table, tmp_path / "A.parquet")
    with pytest.raises(SourceError, match=r"unpacks to 5600000 bytes, more than .* 1000000\."):
        read_prices(tmp_path / "A.parquet", Reading(max_bytes=1_000_000))


def test_a_parquet_column_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    table = pa.table({c: pa.array([[1]]) for c in PRICE_COLUMNS})
    pq.write_table(table, tmp_path / "A.parquet")
    with pytest.raises(SourceError, match=r"list<.* in column symbol"):
        read_prices(tmp_path / "A.parquet", READING)


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
        read_all([tmp_path / "nowhere"], READING)
    with pytest.raises(SourceError, match=r"holds no file that ends in \.csv"):
        list_files([tmp_path])
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(SourceError, match=r"neither a file nor a folder"):
        list_files([tmp_path / "pipe.csv"])


def test_a_bad_file_stops_no_other(tmp_path: Path) -> None:
    for name, text in (("a", "{"), ("b", HEADER + ROWS), ("c", "")):
        write(tmp_path / f"{name}.csv", text)
    a, b, c = read_all([tmp_path], READING)
    assert (a.rows, b.problem, c.rows) == (None, None, None)
    assert a.problem is not None
    assert "a.csv" in a.problem
    assert b.rows is not None
    assert len(b.rows) == 2


def test_messy_files_as_downloaded_lose_no_line() -> None:
    folder = shared("raw_us_yahoo_messy")
    problems, notes = {}, {}
    for delivery in read_all([folder], READING):
        if delivery.rows is None:
            problems[delivery.path.stem] = delivery.problem
            continue
        notes[delivery.path.stem] = delivery.note
        lines = [line for line in delivery.path.read_text().split("\n") if line.strip()]
        assert len(delivery.rows) == len(lines) - (not delivery.note)
        result = validate_rows(delivery.rows, today=date(2026, 1, 1), first_date=date(1990, 1, 1))
        assert result.n_read == result.n_valid + len(result.rejected)
        assert result.n_valid > 90
    assert set(problems) == {"BF.B", "BRK.B"}
    assert all("begins with '404 Not Found" in str(problem) for problem in problems.values())
    headless = {"SBNY", "SIVB", "SRE", "TSLA", "TT", "TWTR", "WMT", "XOM"}
    assert {name for name, note in notes.items() if note} == headless
    assert notes["XOM"] == "no header line; read with that of AAPL.csv"


def test_the_nifty_file_is_read_whole() -> None:
    (delivery,) = read_all([shared("raw_in_nifty_messy.csv")], READING)
    assert delivery.rows is not None
    result = validate_rows(delivery.rows, today=date(2026, 1, 1), first_date=date(1990, 1, 1))
    assert (result.n_read, result.n_valid, delivery.note) == (36_494, 36_494, "")


# --- how it is to be read

BARE = "Date,Open,High,Low,Close,Volume\n"
ROW = "2020-01-02,10,11,9,10.5,100\n"


def deliver(path: Path, **told: Any) -> tuple[list[dict[str, Any]], str]:
    """Prices of one file, and its note."""
    (delivery,) = read_all([path], Reading(**told))
    assert delivery.rows is not None, delivery.problem
    result = validate_rows(delivery.rows, today=date(2030, 1, 1), first_date=date(1960, 1, 1))
    return result.prices.to_pylist(), delivery.note


def test_a_file_without_header_takes_the_one_all_others_agree_on(tmp_path: Path) -> None:
    write(tmp_path / "A.csv", '{"error": 1}\n' + ROW)
    write(tmp_path / "B.csv.gz", gzip.compress((BARE + ROW).encode()))
    write(tmp_path / "C.csv", "Symbol," + BARE + "C," + ROW)
    a, b, c = read_all([tmp_path], READING)
    assert [d.path.name for d in (a, b, c)] == ["A.csv", "B.csv.gz", "C.csv"]
    assert a.note == "no header line; read with that of B.csv.gz"
    assert a.rows is not None
    assert a.rows["close"].tolist()[0] == "10.5"
    assert a.rows["ts"].tolist() == ["2020-01-02", '{"error": 1}']
    write(tmp_path / "D.csv", "Date,Open,High,Low,Volume,Close\n" + ROW)
    a, *_ = read_all([tmp_path], READING)
    assert "--header date,open" in str(a.problem)


def test_header_names_the_fields_of_files_that_have_none(tmp_path: Path) -> None:
    path = write(tmp_path / "A.csv", ROW * 2)
    header = ("date", "open", "high", "low", "close", "volume")
    prices, note = deliver(path, header=header)
    assert [p["close"] for p in prices] == [10.5]
    assert note == "no header line; read with the one given"
    with pytest.raises(SourceError, match=r"rows of 6 fields, but --header names 2: date, open"):
        read_prices(path, Reading(header=("date", "open")))


def test_the_name_is_the_symbol_if_told_so(tmp_path: Path) -> None:
    path = write(tmp_path / "NEW.csv", "Symbol," + BARE + "OLD," + ROW)
    assert deliver(path)[0][0]["symbol"] == "OLD"
    assert deliver(path, symbol_from_name=True)[0][0]["symbol"] == "NEW"
    write(tmp_path / "two words.csv", BARE + ROW)
    with pytest.raises(SourceError, match="cannot be a symbol"):
        read_prices(tmp_path / "two words.csv", Reading(symbol_from_name=True))


@pytest.mark.parametrize("date_format", [f for f in DATE_FORMATS if f.startswith("%")])
def test_dates_are_read_in_the_format_that_fits_them_all(tmp_path: Path, date_format: str) -> None:
    days = [date(2020, 1, 2), date(2020, 1, 31)]
    body = "".join(ROW.replace("2020-01-02", f'"{day.strftime(date_format)}"') for day in days)
    prices, note = deliver(write(tmp_path / "A.csv", BARE + body))
    assert [p["ts"] for p in prices] == days
    assert note == ("" if date_format == "%Y-%m-%d" else f"dates read as {date_format}")


@pytest.mark.parametrize("stamp", ["1577923200", "1577975400", "1577923200000", "1577975400123"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_unix_stamps_count_as_their_utc_date(tmp_path: Path, stamp: str, kind: str) -> None:
    path = write(tmp_path / "A.csv", BARE + ROW.replace("2020-01-02", stamp))
    if kind == "parquet":
        pd.read_csv(path).to_parquet(path)
    prices, note = deliver(path)
    assert [p["ts"] for p in prices] == [date(2020, 1, 2)]
    assert note == ("dates read as unix" if len(stamp) == 10 else "dates read as unix_ms")


def test_dates_that_can_be_read_in_two_ways_need_the_users_word(tmp_path: Path) -> None:
    path = write(tmp_path / "A.csv", BARE + ROW.replace("2020-01-02", "03/04/2020"))
    with pytest.raises(SourceError, match=r"as 03/04/2020\. Say which with --date-format %d/%m/%Y"):
        read_prices(path, READING)
    assert deliver(path, date_format="%d/%m/%Y")[0][0]["ts"] == date(2020, 4, 3)
    assert deliver(path, date_format="%m/%d/%Y")[0][0]["ts"] == date(2020, 3, 4)
    with pytest.raises(SourceError, match="does not tell year, month and day"):
        read_prices(path, Reading(date_format="%d/%m"))


def test_a_given_date_format_is_the_only_one(tmp_path: Path) -> None:
    text = BARE + ROW.replace("2020-01-02", "2020-13-01") + ROW.replace("2020-01-02", "2020-01-31")
    path = write(tmp_path / "A.csv", text)
    (delivery,) = read_all([path], Reading(date_format="%Y-%d-%m"))
    assert delivery.rows is not None
    result = validate_rows(delivery.rows, today=date(2030, 1, 1), first_date=date(1960, 1, 1))
    assert result.prices["ts"].to_pylist() == [date(2020, 1, 13)]
    assert result.rejected["ts"].tolist() == ["2020-01-31 is not %Y-%d-%m"]
    assert result.rejected["reason"].tolist() == ["bad_date"]


def test_years_of_two_digits_need_the_users_word(tmp_path: Path) -> None:
    path = write(tmp_path / "A.csv", BARE + ROW.replace("2020-01-02", "02/01/20"))
    rows, note = deliver(path)
    assert rows == []
    assert note.startswith("no date could be read, as '02/01/20': ")
    assert "--date-format" in note
    assert deliver(path, date_format="%d/%m/%y")[0][0]["ts"] == date(2020, 1, 2)


def test_three_decimals_after_a_comma_are_not_thousands(tmp_path: Path) -> None:
    """49,600 in every price, or one 1233,710 among them: nothing says that these are thousands."""
    head = "date;open;high;low;close;volume\n"
    alone = "".join(f"2015-02-0{d};49,600;49,790;49,270;49,470;3736201\n" for d in range(2, 7))
    mixed = head + alone + "2015-02-09;1233,710;1240,100;1230,200;1239,300;900\n"
    for text in (head + alone, mixed):
        path = tmp_path / "AAA.csv"
        path.write_text(text)
        with pytest.raises(SourceError, match=r"decimal comma in .* or more, as in 49,600"):
            read_prices(path, Reading())
        rows = read_prices(path, Reading(decimal=","))
        assert rows["open"].iloc[0] == "49.600"
    thousands = 'date,open,high,low,close,volume\n2015-02-02,"1,600.5","1,700","1,500","1,650",9\n'
    path.write_text(thousands)
    assert read_prices(path, Reading())["open"].tolist() == ["1,600.5"]


def test_a_decimal_comma_is_read_if_told_and_never_taken_for_thousands(tmp_path: Path) -> None:
    body = "2020-01-02;10,5;1.111,25;9;10,5;1.000\n2020-01-03;10.5;11;9;10;1\n"
    path = write(tmp_path / "A.csv", BARE.replace(",", ";") + body)
    with pytest.raises(SourceError, match=r"decimal comma in 1 values of column open.*--decimal ,"):
        read_prices(path, READING)
    (delivery,) = read_all([path], Reading(decimal=","))
    assert delivery.rows is not None
    result = validate_rows(delivery.rows, today=date(2030, 1, 1), first_date=date(1960, 1, 1))
    (price,) = result.prices.to_pylist()
    assert [price[c] for c in ("open", "high", "volume")] == [10.5, 1111.25, 1000.0]
    assert result.rejected["open"].tolist() == ["10.5 is no number with a decimal comma"]
    assert result.rejected["reason"].tolist() == ["null_price"]


def test_a_header_without_rows_is_a_table_with_a_note(tmp_path: Path) -> None:
    prices, note = deliver(write(tmp_path / "INFRATEL.csv", BARE))
    assert (prices, note) == ([], "a header and no row")


def test_parquet_with_an_unnamed_date_index(tmp_path: Path) -> None:
    frame = pd.DataFrame(1.0, pd.DatetimeIndex(["2020-01-02"]), ["open", "high", "low", "close"])
    frame.assign(volume=1).to_parquet(tmp_path / "A.parquet")
    assert deliver(tmp_path / "A.parquet")[0][0]["ts"] == date(2020, 1, 2)


def test_parquet_of_a_filtered_frame_has_an_index_that_is_no_date(tmp_path: Path) -> None:
    frame = pd.DataFrame(1.0, [3, 7], ["open", "high", "low", "close", "volume"])
    frame["ts"], frame["symbol"] = pd.to_datetime(["2020-01-02", "2020-01-03"]), "A"
    frame.to_parquet(tmp_path / "some.parquet")
    assert "__index_level_0__" in pq.read_schema(tmp_path / "some.parquet").names
    rows = deliver(tmp_path / "some.parquet")[0]
    assert [row["ts"] for row in rows] == [date(2020, 1, 2), date(2020, 1, 3)]


def test_the_limits_are_stated_with_their_numbers() -> None:
    for number in ("200 times", "2000 columns", "64 KiB a line", "first 50 lines"):
        assert number in LIMITS
