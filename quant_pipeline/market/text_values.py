"""What a text means: symbols, days and numbers in the ways that people write them."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.errors import SourceError

EPOCH = date(1970, 1, 1)
MIN_FIT = 0.95
MAX_DATE_CHARACTERS = 64

_SYMBOL = re.compile(
    r"(?=.{1,32}$)\^?[A-Z0-9][A-Z0-9.\-^=&_/:+]*", re.ASCII | re.IGNORECASE | re.DOTALL
)
_ZONE = r"(?:Z| ?UTC|[+-][0-9]{2}:?[0-9]{2})?"
_ISO = re.compile(
    r"([0-9]{4})(-?)([0-9]{2})\2([0-9]{2})(?:[T ]00:00(?::00(?:\.0+)?)?" + _ZONE + ")?"
)
_MIDNIGHT = re.compile(
    r"[T ] *(?:0?0:00(?::00(?:\.0+)?)?|12:00(?::00)? ?AM)" + _ZONE + "$", re.IGNORECASE
)
_D, _M, _B, _Y = "(?P<d>[0-9]{1,2})", "(?P<m>[0-9]{1,2})", "(?P<b>[A-Za-z]{3,9})", "(?P<y>[0-9]{4})"

DATE_FORMATS: Mapping[str, re.Pattern[str]] = {
    "%d/%m/%Y": re.compile(f"{_D}/{_M}/{_Y}"),
    "%m/%d/%Y": re.compile(f"{_M}/{_D}/{_Y}"),
    "%d-%m-%Y": re.compile(f"{_D}-{_M}-{_Y}"),
    "%m-%d-%Y": re.compile(f"{_M}-{_D}-{_Y}"),
    "%d.%m.%Y": re.compile(rf"{_D}\.{_M}\.{_Y}"),
    "%Y/%m/%d": re.compile(f"{_Y}/{_M}/{_D}"),
    "%Y-%m-%d": re.compile(f"{_Y}-{_M}-{_D}"),
    "%d-%b-%Y": re.compile(f"{_D}-{_B}-{_Y}"),
    "%d %b %Y": re.compile(f"{_D} {_B},? {_Y}"),
    "%b %d, %Y": re.compile(rf"{_B}\.? {_D},? {_Y}"),
    "unix": re.compile(r"(?P<unix>[1-9][0-9]{8,9})(?:\.0*)?"),
    "unix_ms": re.compile(r"(?P<unix_ms>[1-9][0-9]{11,12})(?:\.0*)?"),
}
_MONTH_NAMES = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
_MONTHS = {name[:n]: i + 1 for i, name in enumerate(_MONTH_NAMES) for n in (3, len(name))}
_MONTHS["sept"] = 9

_SPACE = " \u00a0\u2009\u202f"
_PLAIN = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|inf|infinity"
_NUMBER = f"(?i)^[+-]?(?:{_PLAIN})$"
_BY_COMMA = "[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}"
_BY_OTHERS = f"[0-9]{{1,3}}(?:[{_SPACE}][0-9]{{3}})+|[0-9]{{1,3}}(?:['\u2019][0-9]{{3}})+"
_GROUPED = rf"^[+-]?(?:{_BY_COMMA}|{_BY_OTHERS})(?:\.[0-9]*)?$"
_SUFFIXED = rf"(?i)^[+-]?(?:[0-9]+|{_BY_COMMA})(?:\.[0-9]*)? ?[kmb]$"
_SEPARATORS = f"[,'\u2019{_SPACE}]"
_WITH_COMMA = (
    r"(?i)^[+-]?(?:[0-9]+|[0-9]{1,3}(?:\.[0-9]{3})+|" + _BY_OTHERS + r")(?:,[0-9]*)?"
    r"(?:e[+-]?[0-9]+| ?[kmb])?$"
)
_SURELY_COMMA = (
    r"^[+-]?(?:[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]*|[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})|0[0-9]*,[0-9]+"
    r"|[0-9]{4,},[0-9]+)$"
)
_EXPONENTS = {"k": "e3", "m": "e6", "b": "e9"}


def normalize_symbol(text: str) -> str | None:
    """Spell a symbol the one way, or give None if it can't be one.

    >>> normalize_symbol(" brk.b"), normalize_symbol("^gspc"), normalize_symbol("two words")
    ('BRK.B', '^GSPC', None)
    """
    symbol = unicodedata.normalize("NFC", text).strip()
    return symbol.upper() if _SYMBOL.fullmatch(symbol) else None


def day_number(day: date) -> int:
    """Days since 1970-01-01."""
    return day.toordinal() - EPOCH.toordinal()


def parse_day(text: str) -> int | None:
    """Days since 1970-01-01 of an ISO or YYYYMMDD date, or None.

    >>> parse_day("1970-01-03"), parse_day("19700103 00:00:00"), parse_day("03/01/1970")
    (2, 2, None)
    """
    match = _ISO.fullmatch(text.strip())
    if match is None:
        return None
    year, _, month, day = match.groups()
    return _day_of(int(year), int(month), int(day))


def parse_day_as(text: str, date_format: str) -> int | None:
    """Days since 1970-01-01 of a date in a given format, or None.

    The format is one of DATE_FORMATS, or any other that strptime knows. A time of day has to be
    midnight; of a unix stamp the date in UTC counts.

    >>> parse_day_as("03/01/1970", "%d/%m/%Y"), parse_day_as("200000", "unix")
    (2, 2)
    """
    text = text.strip()
    if len(text) > MAX_DATE_CHARACTERS:
        return None
    if date_format in ("unix", "unix_ms"):
        return _day_of_stamp(text, 86_400 if date_format == "unix" else 86_400_000)
    if date_format in DATE_FORMATS:
        match = DATE_FORMATS[date_format].fullmatch(_MIDNIGHT.sub("", text))
        return None if match is None else _day_of_parts(match.groupdict())
    for candidate in (text, _MIDNIGHT.sub("", text)):
        try:
            stamp = datetime.strptime(candidate, date_format)
        except ValueError:
            continue
        is_midnight = stamp.time() == stamp.min.time()
        return day_number(stamp.date()) if is_midnight else None
    return None


def check_date_format(date_format: str) -> None:
    """Raise SourceError unless the format writes a whole date that can be read back."""
    if date_format in DATE_FORMATS or not date_format:
        return
    day = datetime(2019, 11, 28, tzinfo=UTC)
    if parse_day_as(day.strftime(date_format), date_format) != day_number(day.date()):
        raise SourceError(
            f"Date format {date_format} does not tell year, month and day. "
            "Name one such as %d/%m/%Y, %m/%d/%y, unix or unix_ms."
        )


def find_date_format(texts: Sequence[str], table: str) -> str:
    """The one of DATE_FORMATS in which dates are written, or "" if there is none.

    It has to read MIN_FIT of the texts that look like a date at all, and more than any other
    format reads. Years have four digits: with two, only the user knows.

    Raises SourceError if two formats fit equally well and give different days.

    >>> find_date_format(["03/04/2020", "13/04/2020"], "prices.csv")
    '%d/%m/%Y'
    """
    days = {name: _days_within(texts, name) for name in DATE_FORMATS}
    n_fit = {name: sum(day is not None for day in found) for name, found in days.items()}
    n_dates = sum(any(d is not None for d in row) for row in zip(*days.values(), strict=True))
    most = max(n_fit.values())
    if n_dates == 0 or most < MIN_FIT * n_dates:
        return ""
    best = [name for name, n in n_fit.items() if n == most]
    for other in best[1:]:
        if days[other] != days[best[0]]:
            example = next(t for t, a, b in zip(texts, days[best[0]], days[other], strict=True)
                           if a != b)  # fmt: skip
            raise SourceError(
                f"Dates of {table} can be read as {best[0]} and as {other}: all {most} fit both, "
                f"as {example.strip()}. Say which with --date-format {best[0]}."
            )
    return best[0]


def looks_like_date(text: str) -> bool:
    """Whether a text is a date in any way of writing that is known without being told."""
    if not 6 <= len(text.strip()) <= MAX_DATE_CHARACTERS:
        return False
    if parse_day(text) is not None:
        return True
    return any(_days_within([text], name)[0] is not None for name in DATE_FORMATS)


def iso(day: int) -> str:
    """ISO text of days since 1970-01-01."""
    return (EPOCH + timedelta(day)).isoformat()


def parse_numbers(text: pa.Array, *, has_suffixes: bool = False) -> pa.Array:
    """Numbers of trimmed texts as float64, null for what is none; decimals have a point.

    Thousands may be set apart by a comma, a space of any kind or an apostrophe, but only in
    groups that leave no doubt: ``1,234.5`` and ``12,34,567`` (as in India) are numbers, ``1,5``
    is none. With `has_suffixes`, ``1.23M`` is 1,230,000 (K, M and B). Exact to the last bit.
    """
    readable = pc.if_else(pc.match_substring_regex(text, _NUMBER), text, None)
    left = pc.and_(pc.is_valid(text), pc.is_null(readable))
    if pc.any(left).as_py():
        fits = pc.and_(left, pc.match_substring_regex(text, _GROUPED))
        bare = pc.replace_substring_regex(text, _SEPARATORS, "")
        readable = pc.if_else(fits, bare, readable)
        if has_suffixes:
            fits = pc.and_(left, pc.match_substring_regex(text, _SUFFIXED))
            for letter, exponent in _EXPONENTS.items():
                bare = pc.replace_substring_regex(bare, f"(?i){letter}$", exponent)
            readable = pc.if_else(fits, bare, readable)
    return pc.cast(readable, pa.float64())


def with_decimal_point(text: pa.Array) -> pa.Array:
    """Numbers written with a decimal comma, ``1.234,56``, as `parse_numbers` reads them.

    What would be a number with a point only, as ``1.5``, gets a remark, which makes it none.
    """
    bare = pc.utf8_trim_whitespace(text)
    fits = pc.match_substring_regex(bare, _WITH_COMMA)
    plain = pc.replace_substring_regex(bare, f"[.'\u2019{_SPACE}]", "")
    plain = pc.replace_substring(plain, ",", ".")
    misleads = pc.is_valid(parse_numbers(bare, has_suffixes=True))
    remark = pa.scalar(" is no number with a decimal comma", bare.type)
    remarked = pc.binary_join_element_wise(bare, remark, pa.scalar("", bare.type))
    others = pc.if_else(misleads, remarked, text)
    return pc.if_else(fits, plain, others)


def count_decimal_commas(text: pa.Array) -> tuple[int, int]:
    """How many texts can only be numbers with a decimal comma, and how many hold a comma."""
    bare = pc.utf8_trim_whitespace(text)
    n_sure = pc.sum(pc.match_substring_regex(bare, _SURELY_COMMA)).as_py() or 0
    return n_sure, pc.sum(pc.match_substring(bare, ",")).as_py() or 0


def count_thousands(text: pa.Array) -> int:
    """How many texts can only be numbers with commas between thousands: 1,234.5 or 1,234,567."""
    bare = pc.utf8_trim_whitespace(text)
    return pc.sum(pc.match_substring_regex(bare, r"[0-9],[0-9]{2,3}[.,][0-9]")).as_py() or 0


def _day_of(year: int, month: int, day: int) -> int | None:
    try:
        return day_number(date(year, month, day))
    except ValueError:
        return None


def _day_of_parts(parts: Mapping[str, str]) -> int | None:
    named = parts.get("b")
    month = _MONTHS.get(named.lower(), 0) if named else int(parts["m"])
    return _day_of(int(parts["y"]), month, int(parts["d"]))


def _day_of_stamp(text: str, per_day: int) -> int | None:
    match = re.fullmatch(r"(-?[0-9]{1,18})(?:\.[0-9]*)?", text, re.ASCII)
    if match is None:
        return None
    day = int(match[1]) // per_day
    return day if day_number(date.min) <= day <= day_number(date.max) else None


def _days_within(texts: Sequence[str], date_format: str) -> list[int | None]:
    """Days of those texts that have the very shape of the format."""
    shape = DATE_FORMATS[date_format]
    if date_format.startswith("unix"):
        return [parse_day_as(t, date_format) if shape.fullmatch(t.strip()) else None for t in texts]
    return [parse_day_as(text, date_format) for text in texts]
