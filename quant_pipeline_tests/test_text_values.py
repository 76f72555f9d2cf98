"""Rules of reading symbols, days and numbers from text."""

from datetime import date
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_pipeline.errors import SourceError
from quant_pipeline.market.text_values import (
    DATE_FORMATS,
    check_date_format,
    count_decimal_commas,
    day_number,
    find_date_format,
    looks_like_date,
    normalize_symbol,
    parse_day,
    parse_day_as,
    parse_numbers,
    with_decimal_point,
)

plain_floats = st.floats(min_value=0, max_value=1e15) | st.integers(0, 10**12).map(float)
days = st.dates(date(1980, 1, 1), date(2099, 12, 31))


def parse(*texts: str, has_suffixes: bool = False) -> list[float | None]:
    values: list[float | None] = parse_numbers(
        pa.array(texts, pa.string()), has_suffixes=has_suffixes
    ).to_pylist()
    return values


@given(plain_floats, st.sampled_from([",", " ", "'", "\u2019", "\u00a0", "\u202f"]), st.booleans())
def test_a_number_is_read_exactly_with_thousands_set_apart(
    value: float, separator: str, is_negative: bool
) -> None:
    text = f"{Decimal(repr(value)):,f}".replace(",", separator)
    assert parse("-" * is_negative + text) == [-value if is_negative else value]


@given(plain_floats, st.sampled_from([".", " ", "'", ""]))
def test_a_number_is_read_exactly_with_a_decimal_comma(value: float, separator: str) -> None:
    text = f"{Decimal(repr(value)):,f}".translate({ord(","): separator, ord("."): ","})
    assert parse(*with_decimal_point(pa.array([text])).to_pylist()) == [value]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1,234.5", 1234.5), ("12,34,567.5", 1234567.5), ("1 234", 1234.0), ("+1'000", 1000.0)],
)
def test_thousands(text: str, value: float) -> None:
    assert parse(text) == [value]


@pytest.mark.parametrize(
    "text", ["1,5", "1,23", "1,2345", "1234,567", ",123", "1,,234", "1.234,5", "$5", "5 €", "1 23",
             "12e", "0x1A", "1_000", "1,234 567", "1,234'567", "\u0661", "1.2M"]
)  # fmt: skip
def test_these_are_no_numbers(text: str) -> None:
    assert parse(text) == [None]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.23M", 1_230_000), ("5k", 5000), ("1,234.5 K", 1_234_500), ("2B", 2e9), ("1.5X", None)],
)
def test_volumes_may_count_thousands_millions_and_billions(text: str, value: float) -> None:
    assert parse(text, has_suffixes=True) == [value]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("text", ["1.5", "1.25", "10.1234", "1,234.5"])
def test_a_decimal_point_is_no_number_with_a_decimal_comma(text: str, kind: pa.DataType) -> None:
    (remarked,) = with_decimal_point(pa.chunked_array([pa.array([text], kind)])).to_pylist()
    assert remarked == f"{text} is no number with a decimal comma"
    assert parse(remarked) == [None]


def test_decimal_commas_are_told_from_thousands() -> None:
    texts = ["1,234", "1,234.5", "12,34,567", "1,5", "1.234,56", "1234,567", "7"]
    assert count_decimal_commas(pa.array(texts)) == (3, 6)


# --- days


def written(day: date, date_format: str) -> str:
    if date_format.startswith("unix"):
        return str(day_number(day) * 86_400 * (1000 if date_format == "unix_ms" else 1))
    return day.strftime(date_format)


@pytest.mark.parametrize("date_format", DATE_FORMATS)
@given(wanted=st.lists(days, min_size=1, max_size=20))
def test_every_date_format_reads_what_it_writes(date_format: str, wanted: list[date]) -> None:
    texts = [written(day, date_format) for day in wanted]
    expected = [day_number(day) for day in wanted]
    assert [parse_day_as(text, date_format) for text in texts] == expected
    assert all(looks_like_date(text) for text in texts)
    try:
        found = find_date_format(texts, "A.csv")
    except SourceError as error:
        assert "--date-format %" in str(error)  # noqa: PT017
        assert all(day.day <= 12 for day in wanted)
        return
    assert [parse_day_as(text, found) for text in texts] == expected


@given(st.text(max_size=20), st.sampled_from([*DATE_FORMATS, "%d/%m/%y", "%Y%m%d"]))
def test_any_text_is_a_day_or_none(text: str, date_format: str) -> None:
    assert parse_day_as(text, date_format) is None or text.strip()
    assert isinstance(looks_like_date(text), bool)


@pytest.mark.parametrize(
    ("text", "date_format"),
    [("1/2/2020 12:00:00 AM", "%m/%d/%Y"), ("02.01.2020 00:00", "%d.%m.%Y"),
     ("02/01/20", "%d/%m/%y"), ("2 January 2020", "%d %b %Y"), ("Jan. 2, 2020", "%b %d, %Y"),
     ("20200201", "%Y%d%m"), ("1577923200.0", "unix")],
)  # fmt: skip
def test_dates_as_people_write_them(text: str, date_format: str) -> None:
    assert parse_day_as(text, date_format) == day_number(date(2020, 1, 2))


@pytest.mark.parametrize(
    ("text", "date_format"),
    [("01/02/2020 16:00", "%m/%d/%Y"), ("02/01/20", "%d/%m/%Y"), ("31/02/2020", "%d/%m/%Y"),
     ("2 Juli 2020", "%d %b %Y"), ("9" * 18, "unix"), ("\u0661/1/2020", "%d/%m/%Y")],
)  # fmt: skip
def test_these_are_no_dates_of_that_format(text: str, date_format: str) -> None:
    assert parse_day_as(text, date_format) is None


def test_one_day_decides_between_two_formats_and_none_leaves_it_open() -> None:
    assert find_date_format(["03/04/2020"] * 9 + ["04/13/2020"], "A.csv") == "%m/%d/%Y"
    assert find_date_format(["03/03/2020", "04/04/2020"], "A.csv") == "%d/%m/%Y"
    assert find_date_format(["Total", "n/a"], "A.csv") == find_date_format([], "A.csv") == ""
    assert find_date_format(["31/12/2019", "12/31/2019"], "A.csv") == ""
    with pytest.raises(SourceError, match=r"Dates of A\.csv can be read as %d/%m/%Y and as %m/%d"):
        find_date_format(["03/04/2020", "05/06/2020"], "A.csv")


@pytest.mark.parametrize("date_format", ["%d/%m", "%H:%M", "days", "%Y", "%Q"])
def test_a_format_that_tells_no_day_is_refused(date_format: str) -> None:
    with pytest.raises(SourceError, match="does not tell year, month and day"):
        check_date_format(date_format)


@pytest.mark.parametrize(
    "text", ["^GSPC", "BRK.B", "NASDAQ:AAPL", "A+B", "M&M", "X" * 32, "005930"]
)
def test_these_are_symbols(text: str) -> None:
    assert normalize_symbol(text.lower()) == text


@pytest.mark.parametrize("text", ["^", "^^A", "A^B" * 0, ":A", "+A", "X" * 33, "A B", "ß"])
def test_these_are_no_symbols(text: str) -> None:
    assert normalize_symbol(text) is None


@given(days)
def test_iso_dates_are_read_without_being_told(day: date) -> None:
    assert parse_day(day.isoformat()) == parse_day(f"{day:%Y%m%d}") == day_number(day)
