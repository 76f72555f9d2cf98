"""Price files: bytes in, rows as delivered out. What is a price, validate decides."""

import csv
import gzip
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from quant_pipeline.errors import SourceError
from quant_pipeline.market.columns import PRICE_COLUMNS, map_columns, show_names
from quant_pipeline.market.validate import normalize_symbol

SUFFIXES = (".csv", ".csv.gz", ".gz", ".parquet")
MAX_GZIP_RATIO = 200
MAX_COLUMNS = 2000
MAX_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class Delivery:
    """One file: its rows as delivered, or the problem that kept them from being read."""

    path: Path
    rows: pd.DataFrame | None
    problem: str | None


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


def read_all(
    paths: Sequence[Path], columns: Mapping[str, str], max_bytes: int
) -> Iterator[Delivery]:
    """Read every file of `list_files(paths)`, one after the other; a bad one stops no other."""
    return (_deliver(path, columns, max_bytes) for path in list_files(paths))


def read_prices(path: Path, columns: Mapping[str, str], max_bytes: int) -> pd.DataFrame:
    """Rows of a CSV or Parquet file, gzipped or not, under their canonical names.

    What the file is, its content says, not its name. CSV values stay text; Parquet values keep
    their types, but a symbol is always text. Without a symbol column the file's name is the
    symbol. A CSV line whose fields do not fit the header becomes a row that holds the line in
    `ts` and nothing else, so that no line gets lost. adj_close is all missing if not delivered.

    Raises SourceError for what is no table, lacks a column or exceeds `max_bytes` (also unpacked).
    """
    content = read_bytes(path, max_bytes)
    if content[:2] == b"\x1f\x8b":
        content = _unpack(content, path, max_bytes)
    if content[:4] == b"PAR1":
        rows = _read_parquet(content, path, columns, max_bytes)
    else:
        rows = _read_csv(content, path, columns)
    if "symbol" not in rows:
        rows = _named_by_file(rows, path)
    return rows.reindex(columns=list(PRICE_COLUMNS)).astype({"symbol": "str"})


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


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(parent, name)
            if not name.startswith(".") and name.lower().endswith(SUFFIXES) and file.is_file():
                yield file


def _deliver(path: Path, columns: Mapping[str, str], max_bytes: int) -> Delivery:
    try:
        return Delivery(path, read_prices(path, columns, max_bytes), None)
    except SourceError as error:
        return Delivery(path, None, str(error))


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


def _named_by_file(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Give rows the file's name as symbol; a line that is no row stays without one."""
    is_row = rows[["open", "high", "low", "close", "volume"]].notna().any(axis=1)
    n_rows, n_dates = int(is_row.sum()), int(rows.loc[is_row, "ts"].nunique())
    if n_rows > 2 * max(n_dates, 1):
        raise SourceError(
            f"Table {path.name} lacks column symbol, and with {n_rows} rows on {n_dates} dates it "
            "is not about one symbol. Name it with --column symbol=NAME."
        )
    return rows.assign(symbol=pd.Series(_stem(path), rows.index, dtype="str").where(is_row))


def _stem(path: Path) -> str:
    return re.sub(r"(\.csv|\.gz|\.parquet)+$", "", path.name, flags=re.IGNORECASE)


def _find_columns(names: Sequence[str], path: Path, given: Mapping[str, str]) -> dict[str, str]:
    has_symbol = normalize_symbol(_stem(path)) is not None
    return map_columns(names, given, table=path.name, has_symbol=has_symbol)


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


# --- CSV


def _read_csv(content: bytes, path: Path, given: Mapping[str, str]) -> pd.DataFrame:
    content = content.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    content = content.lstrip(b"\n")
    header, _, body = content.partition(b"\n")
    names, delimiter = _header(header, content, path)
    found = _find_columns(names, path, given)
    wanted = {canonical: f"f{names.index(name)}" for canonical, name in found.items()}
    try:
        table, bad_lines = _parse(body, len(names), wanted, delimiter)
    except pa.ArrowInvalid as error:
        raise SourceError(f"{path} cannot be read as CSV: {error}.") from error
    if len(bad_lines) > table.num_rows:
        raise SourceError(
            f"{path} is no table: {len(bad_lines)} of {len(bad_lines) + table.num_rows} lines do "
            f"not have the {len(names)} fields of its header, as {show_names(bad_lines[:1])}."
        )
    rows: pd.DataFrame = table.to_pandas()
    if not bad_lines:
        return rows
    return pd.concat([rows, pd.DataFrame({"ts": bad_lines}, dtype="str")], ignore_index=True)


def _header(header: bytes, content: bytes, path: Path) -> tuple[list[str], str]:
    """Names and delimiter of the first line, unless the content is something else."""
    head = content[:1024].lstrip().lower()
    if not head:
        raise SourceError(f"{path} is empty.")
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise SourceError(f"{path} is UTF-16 text. Save it as UTF-8.")
    if b"\0" in content:
        raise SourceError(f"{path} is binary, neither CSV nor Parquet nor gzip.")
    if head[:1] in (b"{", b"["):
        raise SourceError(f"{path} begins like JSON, not like a table. Get it again.")
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        raise SourceError(f"{path} is an HTML or XML page, not a table. Get it again.")
    try:
        _ = content.isascii() or content.decode()
    except UnicodeDecodeError as error:
        near = content[max(error.start - 20, 0) : error.end + 20].decode(errors="replace")
        raise SourceError(f"{path} is not UTF-8 (near {near!r}). Save it as UTF-8.") from error
    text = header[:MAX_HEADER_BYTES].decode(errors="replace")
    delimiter = max(",;\t|", key=text.count)
    names = next(csv.reader([text], delimiter=delimiter), [])
    if len(header) > MAX_HEADER_BYTES or len(names) > MAX_COLUMNS:
        raise SourceError(
            f"{path} has a first line of {len(header)} bytes and {len(names)} fields (limits: "
            f"{MAX_HEADER_BYTES} and {MAX_COLUMNS}), which is no header of a price table."
        )
    if len(names) < 2:
        raise SourceError(f"{path} is no table: it begins with {show_names([text])!r}.")
    return names, delimiter


def _parse(
    body: bytes, n_fields: int, wanted: Mapping[str, str], delimiter: str
) -> tuple[pa.Table, list[str]]:
    """Text columns by canonical name, and the lines that do not fit.

    Arrow lets an unclosed quote swallow thousands of lines without a word, so lines are counted,
    and if the count is wrong, each line with a quote has to stand on its own.
    """
    table, bad_lines = _parse_arrow(body, n_fields, wanted, delimiter)
    if b'"' in body and table.num_rows + len(bad_lines) != _count_lines(body):
        lines = body.split(b"\n")
        fits = [b'"' not in line or _is_closed(line, delimiter) for line in lines]
        body = b"\n".join(line for line, fit in zip(lines, fits, strict=True) if fit)
        table, bad_lines = _parse_arrow(body, n_fields, wanted, delimiter)
        if table.num_rows + len(bad_lines) != _count_lines(body):
            raise pa.ArrowInvalid("its quotes do not pair")
        unclosed = (line for line, fit in zip(lines, fits, strict=True) if not fit)
        bad_lines += [line.decode(errors="replace") for line in unclosed]
    return table, [line[:500] for line in bad_lines if line.strip()]


def _parse_arrow(
    body: bytes, n_fields: int, wanted: Mapping[str, str], delimiter: str
) -> tuple[pa.Table, list[str]]:
    bad_lines: list[str] = []

    def set_aside(row: Any) -> str:
        bad_lines.append(row.text)
        return "skip"

    fields = sorted(set(wanted.values()))
    if not body.strip():
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


def _count_lines(body: bytes) -> int:
    return sum(1 for line in body.split(b"\n") if line)


def _is_closed(line: bytes, delimiter: str) -> bool:
    text = line.decode(errors="replace")
    try:
        next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error:
        return False
    return True


# --- Parquet


def _read_parquet(
    content: bytes, path: Path, given: Mapping[str, str], max_bytes: int
) -> pd.DataFrame:
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        found = _find_columns(file.schema_arrow.names, path, given)
        groups = range(file.metadata.num_row_groups)
        n_bytes = sum(file.metadata.row_group(i).total_byte_size for i in groups)
        n_bytes = max(n_bytes, 8 * len(found) * file.metadata.num_rows)
        if n_bytes > max_bytes:
            raise SourceError(
                f"{path} unpacks to {n_bytes} bytes, more than the limit of {max_bytes}. "
                "Split it or raise ingest.max_file_mib."
            )
        table = file.read(columns=list(dict.fromkeys(found.values())))
        columns = {c: _plain(table[name], c, path) for c, name in found.items()}
    except (pa.ArrowException, OSError) as error:
        what = str(error).splitlines()[0]
        raise SourceError(f"{path} is a damaged Parquet file ({what}). Get it again.") from error
    rows: pd.DataFrame = pa.table(columns).to_pandas(date_as_object=False, ignore_metadata=True)
    return rows


def _plain(column: pa.ChunkedArray, canonical: str, path: Path) -> pa.ChunkedArray:
    """Text, dates and numbers as they are; a symbol as text; anything else is an error."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    is_whole = pa.types.is_integer(kind)
    is_number = is_whole or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if canonical == "symbol" and (is_text or is_whole):
        return column.cast(pa.string())
    if canonical == "ts" and (is_text or is_number or pa.types.is_date(kind)):
        return column
    if canonical == "ts" and pa.types.is_timestamp(kind):
        return column
    if canonical not in ("symbol", "ts"):
        if is_text:
            return column
        if is_number or pa.types.is_null(kind):
            return column.cast(pa.float64(), safe=False)
    raise SourceError(
        f"Table {path.name} has {kind} in column {canonical}, which cannot be read as such. "
        f"Choose another one with --column {canonical}=NAME."
    )
