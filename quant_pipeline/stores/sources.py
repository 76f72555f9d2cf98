"""Price files: bytes in, rows as delivered out. What is a price, validate decides."""

import gzip
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.errors import SourceError
from quant_pipeline.market.columns import PRICE_COLUMNS, map_columns, show_names
from quant_pipeline.market.text_values import (
    check_date_format,
    count_decimal_commas,
    count_thousands,
    find_date_format,
    iso,
    normalize_symbol,
    parse_day,
    parse_day_as,
    with_decimal_point,
)
from quant_pipeline.stores.csv_files import (
    HEADER_LINES,
    MAX_COLUMNS,
    MAX_LINE_BYTES,
    NoHeader,
    find_header,
    read_csv,
)
from quant_pipeline.stores.parquet_files import read_parquet

SUFFIXES = (".csv", ".csv.gz", ".gz", ".parquet")
MAX_GZIP_RATIO = 200
"""A gzip file may unpack to so many times its size; CSV of prices packs to a fifth at best."""
SAMPLE_ROWS = 2000
"""A file with decimal commas has some within so many rows."""
SAMPLE_DATES = 100_000
"""The format of dates is found from so many different ones at most."""
LIMITS = (
    "Limits of a file: ingest.max_file_mib, packed and unpacked; gzip unpacks to at most "
    f"{MAX_GZIP_RATIO} times its size; {MAX_COLUMNS} columns; {MAX_LINE_BYTES >> 10} KiB a line, "
    f"the header too; the header within the first {HEADER_LINES} lines."
)
"""What is refused for its size, for the help of the command."""


@dataclass(frozen=True)
class Reading:
    """How files are to be read; what is not said is found out for each file.

    - columns: the file's name of a canonical column, as ``{"close": "px_last"}``
    - symbol_from_name: the file's name is the symbol, whatever columns it has
    - date_format: as ``%d/%m/%Y``, or ``unix`` or ``unix_ms``. Then only such dates count
    - decimal: ``,`` reads 1.234,56
    - header: names of the fields in files that have no header line
    - max_bytes: of a file, packed and unpacked
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    symbol_from_name: bool = False
    date_format: str = ""
    decimal: Literal[".", ","] = "."
    header: tuple[str, ...] = ()
    max_bytes: int = 4096 << 20


@dataclass(frozen=True)
class Delivery:
    """One file: its rows as delivered, or the problem that kept them from being read.

    `note` tells what was found out about the file that the user should know of, or is empty.
    """

    path: Path
    rows: pd.DataFrame | None
    problem: str | None
    note: str = ""


def list_files(paths: Sequence[Path]) -> list[Path]:
    """List files as they are named, and those of folders, sorted, hidden ones left out.

    A folder gives every file below it that ends in one of SUFFIXES. No file comes twice.
    Raises SourceError for a path that does not exist, and for a folder without any such file.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            found = sorted(_walk(path))
            if not found:
                raise SourceError(f"Folder {path} holds no file that ends in {_or(SUFFIXES)}.")
        elif path.is_file():
            found = [path]
        elif path.exists():
            raise SourceError(f"{path} is neither a file nor a folder.")
        else:
            raise SourceError(f"{path} does not exist. Check the path (now in {Path.cwd()}).")
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def read_all(paths: Sequence[Path], reading: Reading) -> Iterator[Delivery]:
    """Read every file of `list_files(paths)` in that order; a bad one stops no other.

    A file that holds rows but no header line is read with `reading.header`, or else with the
    header on which all other CSV files of the command agree that have as many fields; its note
    says so. Only then are the first bytes of the other files looked at.

    Raises SourceError at once for paths without files and for a `date_format` that is none.
    """
    check_date_format(reading.date_format)
    files = list_files(paths)
    return _deliver_all(files, reading)


def read_prices(path: Path, reading: Reading) -> pd.DataFrame:
    """Rows of a CSV or Parquet file, gzipped or not, under their canonical names.

    What the file is, its content says, not its name. CSV values stay text; Parquet values keep
    their types, but a symbol is always text. Without a symbol column the file's name is the
    symbol. A CSV line whose fields do not fit the header becomes a row that holds the line in
    `ts` and nothing else, so that no line gets lost; such rows come last. adj_close is all
    missing if not delivered. Dates in one of DATE_FORMATS become ISO text, numbers with a decimal
    comma get a point if `reading` says so, and all other values stay as they are.

    Raises SourceError for what is no table, lacks a column, exceeds a limit or has dates that
    can be read in two ways.
    """
    check_date_format(reading.date_format)
    return _read(path, reading)[0]


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a file; SourceError if it cannot be read or is larger than `max_bytes`."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(content) > max_bytes:
        raise SourceError(
            f"{path} has {path.stat().st_size} bytes, more than the limit of {max_bytes}. "
            "Split it or raise ingest.max_file_mib."
        )
    return content


def read_content(path: Path, max_bytes: int) -> bytes:
    """The content of a file, unpacked if it is gzip; SourceError beyond the limits."""
    content = read_bytes(path, max_bytes)
    return _unpack(content, path, max_bytes) if content[:2] == b"\x1f\x8b" else content


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(parent, name)
            if not name.startswith(".") and name.lower().endswith(SUFFIXES) and file.is_file():
                yield file


def _deliver_all(files: Sequence[Path], reading: Reading) -> Iterator[Delivery]:
    shared: dict[int, tuple[tuple[str, ...], Path] | None] | None = None
    for path in files:
        try:
            yield _deliver(path, reading)
        except NoHeader as error:
            if shared is None:
                shared = _shared_headers(files, reading)
            known = shared.get(error.n_fields)
            if known is None:
                yield Delivery(path, None, str(error))
                continue
            header, other = known
            delivery = _deliver(path, replace(reading, header=header))
            yield replace(delivery, note=f"no header line; read with that of {other.name}")


def _deliver(path: Path, reading: Reading) -> Delivery:
    try:
        rows, note = _read(path, reading)
    except NoHeader:
        raise
    except SourceError as error:
        return Delivery(path, None, str(error))
    return Delivery(path, rows, None, note)


def _shared_headers(
    files: Sequence[Path], reading: Reading
) -> dict[int, tuple[tuple[str, ...], Path] | None]:
    """For each number of fields the one header that files have, with the first such file."""
    shared: dict[int, tuple[tuple[str, ...], Path] | None] = {}
    for path in files:
        names = find_header(_head(path), partial(_find_columns, path=path, reading=reading))
        if names is None:
            continue
        known = shared.setdefault(len(names), (names, path))
        if known is not None and list(map(str.strip, known[0])) != list(map(str.strip, names)):
            shared[len(names)] = None
    return shared


def _head(path: Path) -> bytes:
    """The first bytes of a file, unpacked; none of one that cannot be read or is Parquet."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_LINE_BYTES)
        if content[:2] == b"\x1f\x8b":
            with gzip.open(path) as packed:
                content = packed.read(MAX_LINE_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""
    return b"" if content[:4] == b"PAR1" else content


def _read(path: Path, reading: Reading) -> tuple[pd.DataFrame, str]:
    """Rows of a file, and what the user should know about how it was read."""
    content = read_content(path, reading.max_bytes)
    find = partial(_find_columns, path=path, reading=reading)
    if content[:4] == b"PAR1":
        table, bad_lines, notes = read_parquet(content, path, find, reading.max_bytes), [], []
    else:
        text = read_csv(content, path, find, reading.header)
        table, bad_lines, notes = text.columns, text.bad_lines, [text.note]
    del content
    table, note = _with_plain_dates(table, path, reading.date_format)
    notes.append(note)
    table = _with_plain_numbers(table, path, reading.decimal)
    rows: pd.DataFrame = table.to_pandas(date_as_object=False, ignore_metadata=True)
    if bad_lines:
        rows = pd.concat([rows, pd.DataFrame({"ts": bad_lines}, dtype="str")], ignore_index=True)
    if reading.symbol_from_name or "symbol" not in rows:
        rows = _named_by_file(rows, path, reading.symbol_from_name)
    rows = rows.reindex(columns=list(PRICE_COLUMNS)).astype({"symbol": "str"})
    return rows, "; ".join(note for note in notes if note)


def _unpack(packed: bytes, path: Path, max_bytes: int) -> bytes:
    limit = min(max_bytes, max(MAX_GZIP_RATIO * len(packed), 1 << 20))
    try:
        with gzip.GzipFile(fileobj=BytesIO(packed)) as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path} is a damaged gzip file ({error}). Get it again.") from error
    if len(content) > limit:
        raise SourceError(
            f"{path} unpacks from {len(packed)} to more than {limit} bytes (limits: {max_bytes} "
            f"bytes and {MAX_GZIP_RATIO} times its size), so it was not read. Unpack it yourself "
            "if it is what it should be, or raise ingest.max_file_mib."
        )
    return content


def _named_by_file(rows: pd.DataFrame, path: Path, is_told: bool) -> pd.DataFrame:
    """Give rows the file's name as symbol; a line that is no row stays without one."""
    is_row = rows[["open", "high", "low", "close", "volume"]].notna().any(axis=1)
    n_rows, n_dates = int(is_row.sum()), int(rows.loc[is_row, "ts"].nunique())
    if n_rows > 2 * max(n_dates, 1):
        lacks = "gets its symbol from its name" if is_told else "lacks column symbol"
        raise SourceError(
            f"Table {path.name} {lacks}, and with {n_rows} rows on {n_dates} dates it "
            "is not about one symbol. Name it with --column symbol=NAME."
        )
    return rows.assign(symbol=pd.Series(_stem(path), rows.index, dtype="str").where(is_row))


def _stem(path: Path) -> str:
    return re.sub(r"(\.csv|\.gz|\.parquet)+$", "", path.name, flags=re.IGNORECASE)


def _find_columns(names: Sequence[str], path: Path, reading: Reading) -> dict[str, str]:
    has_symbol = normalize_symbol(_stem(path)) is not None
    if reading.symbol_from_name and not has_symbol:
        raise SourceError(f"The name of {path} cannot be a symbol. Name the file after one.")
    return map_columns(names, reading.columns, table=path.name, has_symbol=has_symbol)


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


# --- values


def _with_plain_dates(table: pa.Table, path: Path, told: str) -> tuple[pa.Table, str]:
    """Dates as ISO text where they are text or numbers, and a note on another format, if any.

    With a format told, a date that is not in it gets a remark, so that it counts as none.
    """
    kind = table.schema.field("ts").type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind) or not table.num_rows:
        return table, ""
    chunks = table["ts"].combine_chunks()
    whole = chunks.combine_chunks() if isinstance(chunks, pa.ChunkedArray) else chunks
    encoded = whole.dictionary_encode()
    delivered = ["" if v is None else _as_text(v) for v in encoded.dictionary.to_pylist()]
    others = [text for text in delivered if parse_day(text) is None]
    date_format = told or (find_date_format(others[:SAMPLE_DATES], path.name) if others else "")
    texts, n_days = [], 0
    for text in delivered:
        is_iso = parse_day(text) is not None
        day = parse_day_as(text, date_format) if date_format and (told or not is_iso) else None
        remark = f" is not {told}" if told and is_iso and day is None else ""
        texts.append(text + remark if day is None else iso(day))
        n_days += day is not None or (is_iso and not told)
    note = "" if told or not date_format else f"dates read as {date_format}"
    if not n_days:
        note = (
            f"no date could be read, as {show_names(delivered[:1])!r}: a bar of a day has a date, "
            "or midnight in its own zone; other ways to write it: --date-format"
        )
    if not date_format:
        return table, note
    plain = pa.array(texts, pa.string()).take(encoded.indices)
    return table.set_column(table.column_names.index("ts"), "ts", plain), note


def _as_text(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _with_plain_numbers(table: pa.Table, path: Path, decimal: Literal[".", ","]) -> pa.Table:
    """Text columns of numbers with a decimal point; SourceError if they surely have a comma."""
    texts = [
        name
        for name, column in zip(table.column_names, table.columns, strict=True)
        if name not in ("symbol", "ts") and len(column)
        and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type))
    ]  # fmt: skip
    if decimal == ",":
        for name in texts:
            place = table.column_names.index(name)
            table = table.set_column(place, name, with_decimal_point(table[name]))
        return table
    with_commas = [
        name
        for name in texts
        if pc.any(pc.match_substring(table[name].slice(0, SAMPLE_ROWS), ",")).as_py()
    ]
    # 49,600 may be forty-nine point six: somewhere it has to be plain that commas part thousands.
    is_plain = any(count_thousands(table[name]) for name in with_commas)
    for name in with_commas:
        n_sure, n_commas = count_decimal_commas(table[name])
        is_all = name != "volume" and n_commas == len(table)
        if 2 * n_sure > n_commas or (not is_plain and (n_sure or is_all)):
            raise SourceError(
                f"Table {path.name} has a decimal comma in {max(n_sure, 1)} values of column "
                f"{name} or more, as in {show_names(_with_comma(table[name]))}. Read it with "
                "--decimal , (then 1.234,56 is a number and 1.5 is none)."
            )
    return table


def _with_comma(column: pa.ChunkedArray) -> list[str]:
    found = column.filter(pc.match_substring(column, ","))
    return [str(value) for value in found.slice(0, 2).to_pylist()]
