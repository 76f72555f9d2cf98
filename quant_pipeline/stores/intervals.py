"""Small tables of intervals that people write: who was a member when, what was renamed when."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from quant_pipeline.errors import SourceError
from quant_pipeline.market.columns import match_columns
from quant_pipeline.market.renames import Renames
from quant_pipeline.market.text_values import (
    EPOCH,
    check_date_format,
    find_date_format,
    normalize_symbol,
    parse_day,
    parse_day_as,
)
from quant_pipeline.stores.csv_files import clean_text, split_lines
from quant_pipeline.stores.sources import Reading, read_content

MAX_SHOWN = 10
"""So many bad lines are named; the others are counted."""

_FIRST = frozenset(
    {"first", "start", "from", "begin", "dateadded", "added", "startdate", "firstdate"}
    | {"fromdate", "begindate", "firstday", "validfrom"}
)
_LAST = frozenset(
    {"last", "end", "to", "until", "dateremoved", "removed", "enddate", "lastdate"}
    | {"todate", "untildate", "lastday", "validto", "validuntil"}
)
MEMBER_ALIASES: Mapping[str, frozenset[str]] = {
    "symbol": frozenset({"symbol", "ticker", "sym", "id", "permanentid"}),
    "first": _FIRST,
    "last": _LAST,
}
RENAME_ALIASES: Mapping[str, frozenset[str]] = {
    "ticker": frozenset({"ticker", "old", "oldticker", "oldsymbol", "oldname"}),
    "symbol": frozenset({"symbol", "new", "id", "permanentid", "newsymbol", "newticker"}),
    "first": _FIRST,
    "last": _LAST,
}
_OPEN = frozenset({"", "null", "nan", "nat", "na", "n/a", "none", "-"})


@dataclass(frozen=True)
class _Line:
    """One line as text: where it stands, and its values by canonical name."""

    where: str
    values: Mapping[str, str]


def read_memberships(path: Path, reading: Reading) -> pa.Table:
    """Members: symbol, first day and last day, both included; a null last day is still open.

    CSV or Parquet, gzipped or not, with a header; columns by MEMBER_ALIASES or
    `reading.columns`. Intervals of one symbol that overlap or follow each other without a day
    between them become one; the table is sorted by symbol and first day.

    Raises SourceError that names every line which is no membership: none is left out silently.
    """
    lines = _read_lines(path, reading, MEMBER_ALIASES, optional=())
    spans = _spans(lines, path, reading, ("symbol",), needs_first=True)
    merged: list[tuple[str, date, date | None]] = []
    for (symbol,), first, last in sorted(spans, key=lambda s: (s[0], s[1] or date.min)):
        start = first or date.min
        if merged and merged[-1][0] == symbol and _touches(merged[-1][2], start):
            merged[-1] = (symbol, merged[-1][1], _later(merged[-1][2], last))
        else:
            merged.append((symbol, start, last))
    return pa.table(
        {
            "symbol": pa.array([m[0] for m in merged], pa.string()),
            "first": pa.array([m[1] for m in merged], pa.date32()),
            "last": pa.array([m[2] for m in merged], pa.date32()),
        }
    )


def read_renames(path: Path, reading: Reading) -> pa.Table:
    """Renames: ticker, permanent id, first day and last day, both included; null is open.

    Columns by RENAME_ALIASES or `reading.columns`; first and last may be absent, and then a
    ticker always means its id. Sorted by ticker and first day, as `Renames.of` takes it.

    Raises SourceError that names every line which is no rename, and for intervals of one ticker
    that overlap.
    """
    lines = _read_lines(path, reading, RENAME_ALIASES, optional=("first", "last"))
    spans = _spans(lines, path, reading, ("ticker", "symbol"), needs_first=False)
    spans.sort(key=lambda s: (s[0][0], s[1] or date.min))
    table = pa.table(
        {
            "ticker": pa.array([names[0] for names, _, _ in spans], pa.string()),
            "symbol": pa.array([names[1] for names, _, _ in spans], pa.string()),
            "first": pa.array([first for _, first, _ in spans], pa.date32()),
            "last": pa.array([last for _, _, last in spans], pa.date32()),
        }
    )
    try:
        Renames.of(table)
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from error
    return table


def _read_lines(
    path: Path,
    reading: Reading,
    aliases: Mapping[str, frozenset[str]],
    optional: Sequence[str],
) -> list[_Line]:
    content = read_content(path, reading.max_bytes)
    names, rows = _parquet(content, path) if content[:4] == b"PAR1" else _csv(content, path)
    given = {name: theirs for name, theirs in reading.columns.items() if name in aliases}
    found = match_columns(
        names, given, aliases, table=path.name, optional=optional, kind="interval"
    )
    place = {canonical: names.index(name) for canonical, name in found.items()}
    bad = [f"{where} has {len(row)} fields, not {len(names)}"
           for where, row in rows if len(row) != len(names)]  # fmt: skip
    _refuse(bad, path)
    return [_Line(where, {c: row[i].strip() for c, i in place.items()}) for where, row in rows]


def _csv(content: bytes, path: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    lines = split_lines(clean_text(content, path))
    if not lines:
        raise SourceError(f"{path} is empty.")
    _, names = lines[0]
    return names, [(f"line {number}", fields) for number, fields in lines[1:]]


def _parquet(content: bytes, path: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        what = str(error).splitlines()[0]
        raise SourceError(f"{path} is a damaged Parquet file ({what}). Get it again.") from error
    columns = [[_text(value) for value in column.to_pylist()] for column in table.columns]
    rows = zip(*columns, strict=True) if columns else ()
    return table.column_names, [(f"row {i + 1}", list(row)) for i, row in enumerate(rows)]


def _text(value: object) -> str:
    if isinstance(value, datetime) and value.time() == value.min.time():
        return value.date().isoformat()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def _spans(
    lines: Sequence[_Line],
    path: Path,
    reading: Reading,
    keys: Sequence[str],
    *,
    needs_first: bool,
) -> list[tuple[tuple[str, ...], date | None, date | None]]:
    """Names, first and last day of each line, or a SourceError with every line that has none."""
    lines = [replace(line, values={"first": "", "last": "", **line.values}) for line in lines]
    date_format = _date_format(lines, path, reading)
    spans, bad = [], []
    for line in lines:
        names = tuple(normalize_symbol(line.values[key]) for key in keys)
        bad += [f"{line.where}: {line.values[key]!r} is no symbol ({key})"
                for key, name in zip(keys, names, strict=True) if name is None]  # fmt: skip
        days = {}
        for end in ("first", "last"):
            text = line.values[end]
            days[end] = _day(text, date_format)
            if days[end] is None and (text.lower() not in _OPEN):
                bad.append(f"{line.where}: {text!r} is no date ({end})")
            elif days[end] is None and end == "first" and needs_first:
                bad.append(f"{line.where} has no first day")
        first, last = days["first"], days["last"]
        if first is not None and last is not None and last < first:
            bad.append(f"{line.where} ends on {last}, before it begins on {first}")
        spans.append((tuple(name or "" for name in names), first, last))
    _refuse(bad, path)
    return spans


def _date_format(lines: Sequence[_Line], path: Path, reading: Reading) -> str:
    check_date_format(reading.date_format)
    texts = {line.values[end] for line in lines for end in ("first", "last")}
    others = sorted(text for text in texts if parse_day(text) is None)
    if reading.date_format or not others:
        return reading.date_format
    return find_date_format(others, path.name)


def _day(text: str, date_format: str) -> date | None:
    day = parse_day(text)
    if day is None and date_format:
        day = parse_day_as(text, date_format)
    return None if day is None else EPOCH + timedelta(day)


def _refuse(bad: Sequence[str], path: Path) -> None:
    if bad:
        more = f"; and {len(bad) - MAX_SHOWN} more" if len(bad) > MAX_SHOWN else ""
        raise SourceError(
            f"{path} was not read, for {len(bad)} mistakes: {'; '.join(bad[:MAX_SHOWN])}{more}. "
            "Correct the file; no line is left out."
        )


def _touches(last: date | None, start: date) -> bool:
    return last is None or start.toordinal() <= last.toordinal() + 1


def _later(one: date | None, other: date | None) -> date | None:
    return None if one is None or other is None else max(one, other)
