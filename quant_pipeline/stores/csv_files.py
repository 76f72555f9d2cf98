"""CSV text in, columns of text out: header, delimiter, and every line that does not fit."""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from quant_pipeline.errors import SourceError
from quant_pipeline.market.columns import count_known, show_names
from quant_pipeline.market.text_values import looks_like_date

MAX_COLUMNS = 2000
"""Fields of a header; a price table has about ten."""
MAX_LINE_BYTES = 1 << 16
"""Bytes of any line, the header too; a row of prices has about a hundred."""
HEADER_LINES = 50
"""A header stands within so many lines that are not empty."""
ROW_LINES = 10_000
"""In a file without a header, rows begin within so many lines that are not empty."""
SHOWN_CHARACTERS = 500
"""Of a line that does not fit, so much is kept."""

DELIMITERS = ",;\t|"
_NUMERIC = re.compile(r"[+-]?[0-9.][0-9.,' \u00a0]*(?:e[+-]?[0-9]+)?[kmb]?", re.I | re.ASCII)

FindColumns = Callable[[Sequence[str]], dict[str, str]]
"""Canonical name to the file's name; SourceError if the names are no header of such a table."""


@dataclass(frozen=True)
class CsvTable:
    """Text columns by canonical name, the lines that are no rows, and how the header was found."""

    columns: pa.Table
    bad_lines: list[str]
    note: str = ""


class NoHeader(SourceError):
    """A file that holds rows but no header line; `n_fields` is how many fields its rows have."""

    def __init__(self, path: Path, n_fields: int) -> None:
        super().__init__(
            f"{path} has no header line, but rows of {n_fields} fields. "
            "Name them in order with --header date,open,high,low,close,volume."
        )
        self.n_fields = n_fields


@dataclass(frozen=True)
class _Layout:
    """What the fields are, and which bytes of the content are not rows: those of the header."""

    names: list[str]
    found: dict[str, str]
    delimiter: str
    header: tuple[int, int] = (0, 0)
    note: str = ""


def read_csv(content: bytes, path: Path, find: FindColumns, header: Sequence[str] = ()) -> CsvTable:
    """The columns that `find` names, as text, and every other line that is not empty.

    The header is the first line within HEADER_LINES in which `find` finds its columns. Where
    there is none but lines that look like rows of prices, `header` names their fields; every line
    is tried as a row then. A row has as many fields as the header, or one empty one more.

    Raises NoHeader if `header` is missing, and SourceError for what is no table.
    """
    content = clean_text(content, path)
    layout = _find_layout(content, path, find, header)
    begin, start = layout.header
    if content[:begin].strip():
        content, start = content[:begin] + content[start:], 0
    names = _fit_names(content[start : start + (1 << 18)], layout)
    wanted = {canonical: f"f{names.index(name)}" for canonical, name in layout.found.items()}
    try:
        table, bad_lines = _parse(content, start, len(names), wanted, layout.delimiter)
    except pa.ArrowInvalid as error:
        raise SourceError(f"{path} cannot be read as CSV: {error}.") from error
    if len(bad_lines) > table.num_rows and _is_misfit(table, bad_lines, layout.delimiter):
        raise SourceError(
            f"{path} is no table: {len(bad_lines)} of {len(bad_lines) + table.num_rows} lines "
            f"do not have the {len(names)} fields of its header, as {show_names(bad_lines[:1])}."
        )
    note = layout.note
    if not table.num_rows and not bad_lines:
        note = "a header and no row"
    return CsvTable(table, bad_lines, note)


def find_header(head: bytes, find: FindColumns) -> tuple[str, ...] | None:
    """Names of the header in the first bytes of a file, or None."""
    text = head.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for _, _, line in islice(_lines(text), HEADER_LINES):
        for delimiter in _delimiters(line):
            names = _split(line, delimiter)
            if _finds(find, names):
                return tuple(names)
    return None


def clean_text(content: bytes, path: Path) -> bytes:
    """The content in UTF-8 without byte order mark and with plain line ends, or SourceError."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise SourceError(f"{path} is UTF-16 text. Save it as UTF-8.")
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content[:1024].strip() and not content.strip():
        raise SourceError(f"{path} is empty.")
    if (null := content.find(b"\0")) >= 0:
        n_lines = content.count(b"\n", 0, null) + 1
        raise SourceError(
            f"{path} is binary, neither CSV nor Parquet nor gzip (a NUL byte in line {n_lines})."
        )
    try:
        _ = content.isascii() or content.decode()
    except UnicodeDecodeError as error:
        near = content[max(error.start - 20, 0) : error.end + 20].decode(errors="replace")
        raise SourceError(f"{path} is not UTF-8 (near {near!r}). Save it as UTF-8.") from error
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    start = 0
    while len(content) - start > MAX_LINE_BYTES:
        end = content.rfind(b"\n", start, start + MAX_LINE_BYTES + 1)
        if end < 0:
            n_lines = content.count(b"\n", 0, start) + 1
            raise SourceError(
                _foreign(content, path)
                or f"{path} has a line of more than {MAX_LINE_BYTES} bytes (line {n_lines}), which "
                "is no row of prices, so it was not read. Get it again, or remove that line."
            )
        start = end + 1
    return content


def split_lines(content: bytes) -> list[tuple[int, list[str]]]:
    """Line numbers and fields of all lines that are not empty, of text from `clean_text`."""
    delimiter, numbered = "", []
    for i, line in enumerate(content.decode().split("\n")):
        if line.strip():
            delimiter = delimiter or _delimiters(line)[0]
            numbered.append((i + 1, _split(line, delimiter)))
    return numbered


# --- header


def _find_layout(content: bytes, path: Path, find: FindColumns, header: Sequence[str]) -> _Layout:
    lines = list(islice(_lines(content), HEADER_LINES))
    for start, end, line in lines:
        for delimiter in _delimiters(line):
            names = _split(line, delimiter)
            if found := _finds(find, names):
                n_line = content.count(b"\n", 0, start) + 1
                note = f"header found in line {n_line}" if start > lines[0][0] else ""
                return _Layout(names, found, delimiter, (start, end), note)
    for i, (_, _, line) in enumerate(lines):
        delimiter = _delimiters(line)[0]
        names = _split(line, delimiter)
        following = _split(lines[i + 1][2], delimiter) if i + 1 < len(lines) else []
        rows_ahead = len(following) == len(names) and _is_row(following)
        if len(names) > MAX_COLUMNS:
            raise SourceError(
                f"{path} has {len(names)} fields in one line (limit: {MAX_COLUMNS}), which is no "
                "header of a price table."
            )
        is_foreign = rows_ahead and not any(_is_numeric(name) for name in names)
        if len(names) > 1 and not _is_row(names) and (is_foreign or count_known(names) > 1):
            find(names)  # says what is lacking
    return _layout_of_rows(content, path, find, header)


def _layout_of_rows(
    content: bytes, path: Path, find: FindColumns, header: Sequence[str]
) -> _Layout:
    """The layout of rows without a header line, their fields being named by `header`."""
    shapes: Counter[tuple[str, int]] = Counter()
    for _, _, line in islice(_lines(content), ROW_LINES):
        for delimiter in _delimiters(line):
            fields = _split(line, delimiter)
            if len(fields) <= MAX_COLUMNS and _is_row(fields):
                shapes[delimiter, len(fields)] += 1
                break
    if not shapes:
        raise SourceError(_describe(content, path))
    (delimiter, n_fields), _ = shapes.most_common(1)[0]
    if not header:
        raise NoHeader(path, n_fields)
    if len(header) != n_fields:
        raise SourceError(
            f"{path} has no header line and rows of {n_fields} fields, but --header names "
            f"{len(header)}: {show_names(header)}. Name each field."
        )
    note = "no header line; read with the one given"
    return _Layout(list(header), find(header), delimiter, note=note)


def _fit_names(head: bytes, layout: _Layout) -> list[str]:
    """Names of the header, and of a last empty field if only rows or only it end in a delimiter."""
    names = layout.names
    rows = [_split(line, layout.delimiter) for _, _, line in islice(_lines(head), 100)]
    counts = Counter(map(len, rows))
    n_usual = counts.most_common(1)[0][0] if counts else len(names)
    if n_usual == len(names) - 1 and not names[-1].strip():
        return names[:-1]
    if n_usual == len(names) + 1 and not any(r[-1].strip() for r in rows if len(r) == n_usual):
        return [*names, ""]
    return names


def _is_misfit(table: pa.Table, bad_lines: Sequence[str], delimiter: str) -> bool:
    """Whether the header is not that of the rows: more of them do not fit than do."""
    if not table.num_rows:
        return True
    seen = bad_lines[:ROW_LINES]
    n_rows = sum(_is_row(_split(line, delimiter)) for line in seen)
    return bool(n_rows * len(bad_lines) > table.num_rows * len(seen))


def _describe(content: bytes, path: Path) -> str:
    """Say what a text that is no table is."""
    line = content.lstrip()[:4096].split(b"\n", 1)[0].decode(errors="replace")
    return _foreign(content, path) or (
        f"{path} is no table: no line of it is a header or a row of prices. "
        f"It begins with {show_names([line])!r}."
    )


def _foreign(content: bytes, path: Path) -> str:
    """Say that a text is one of the usual bodies of errors, or nothing."""
    head = content[:4096].lstrip().lower()
    if head[:1] in (b"{", b"["):
        return f"{path} begins like JSON, not like a table. Get it again."
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--")):
        return f"{path} is an HTML or XML page, not a table. Get it again."
    return ""


def _finds(find: FindColumns, names: Sequence[str]) -> dict[str, str]:
    if not 1 < len(names) <= MAX_COLUMNS:
        return {}
    try:
        return find(names)
    except SourceError:
        return {}


def _lines(content: bytes) -> Iterator[tuple[int, int, str]]:
    """Start, end and text of each line that is not empty."""
    start = 0
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end + 1
        text = content[start:end].decode(errors="replace").rstrip("\n")
        if text.strip():
            yield start, end, text
        start = end


def _delimiters(line: str) -> list[str]:
    """Delimiters that occur, the most frequent first; a comma if none does."""
    used = [d for d in DELIMITERS if d in line]
    return sorted(used, key=line.count, reverse=True) or [","]


def _split(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [])


def _is_numeric(text: str) -> bool:
    return _NUMERIC.fullmatch(text.strip()) is not None


def _is_row(fields: Sequence[str]) -> bool:
    """Whether one field is a date and four others are numbers."""
    if len(fields) < 5 or sum(map(_is_numeric, fields)) < 4:
        return False
    dates = [i for i, field in enumerate(fields) if looks_like_date(field)]
    return any(
        sum(_is_numeric(field) for i, field in enumerate(fields) if i != date) >= 4
        for date in dates
    )


# --- rows


def _parse(
    content: bytes, start: int, n_fields: int, wanted: Mapping[str, str], delimiter: str
) -> tuple[pa.Table, list[str]]:
    """Text columns by canonical name, and the lines that do not fit.

    Arrow lets an unclosed quote swallow thousands of lines without a word, so lines are counted,
    and if the count is wrong, each line with a quote has to stand on its own.
    """
    body = pa.py_buffer(content).slice(start)
    table, bad_lines = _parse_arrow(body, n_fields, wanted, delimiter)
    has_quote = content.find(b'"', start) >= 0
    if has_quote and table.num_rows + len(bad_lines) != _count_lines(content, start):
        lines = content[start:].split(b"\n")
        fits = [b'"' not in line or _is_closed(line, delimiter) for line in lines]
        text = b"\n".join(line for line, fit in zip(lines, fits, strict=True) if fit)
        table, bad_lines = _parse_arrow(pa.py_buffer(text), n_fields, wanted, delimiter)
        if table.num_rows + len(bad_lines) != _count_lines(text, 0):
            raise pa.ArrowInvalid("its quotes do not pair")
        unclosed = (line for line, fit in zip(lines, fits, strict=True) if not fit)
        bad_lines += [line.decode(errors="replace") for line in unclosed]
    return table, [line[:SHOWN_CHARACTERS] for line in bad_lines if line.strip()]


def _parse_arrow(
    body: pa.Buffer, n_fields: int, wanted: Mapping[str, str], delimiter: str
) -> tuple[pa.Table, list[str]]:
    bad_lines: list[str] = []

    def set_aside(row: Any) -> str:
        bad_lines.append(row.text)
        return "skip"

    fields = sorted(set(wanted.values()))
    if not (body[:MAX_LINE_BYTES].to_pybytes().strip() or body.to_pybytes().strip()):
        empty = pa.array([], pa.string())
        return pa.table(dict.fromkeys(wanted, empty)), bad_lines
    table = pyarrow.csv.read_csv(
        pa.BufferReader(body),
        read_options=pyarrow.csv.ReadOptions(column_names=[f"f{i}" for i in range(n_fields)]),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=delimiter, invalid_row_handler=set_aside, newlines_in_values=False
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(fields, pa.string()),
            include_columns=fields,
            strings_can_be_null=False,
        ),
    )
    columns = {canonical: table[field] for canonical, field in wanted.items()}
    return pa.table(columns), bad_lines


def _count_lines(content: bytes, start: int) -> int:
    """Lines that are not empty, from `start` on."""
    if content.find(b"\n\n", start) < 0:
        n_ends = content.count(b"\n", start) - content.startswith(b"\n", start)
        return n_ends + (len(content) > start and not content.endswith(b"\n"))
    return sum(1 for line in content[start:].split(b"\n") if line)


def _is_closed(line: bytes, delimiter: str) -> bool:
    text = line.decode(errors="replace")
    try:
        next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error:
        return False
    return True
