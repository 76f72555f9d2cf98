"""Parquet files of prices: columns by their canonical names, as text, dates or numbers."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from quant_pipeline.errors import SourceError
from quant_pipeline.stores.csv_files import MAX_COLUMNS, FindColumns

_UNNAMED_INDEX = "__index_level_0__"


def _find(names: list[str], find: FindColumns) -> dict[str, str]:
    """Which columns are wanted; an index without a name is the date if no column is."""
    try:
        return find([name for name in names if name != _UNNAMED_INDEX])
    except SourceError:
        if _UNNAMED_INDEX not in names:
            raise
    found = find(["date" if name == _UNNAMED_INDEX else name for name in names])
    if found["ts"] not in names:
        found["ts"] = _UNNAMED_INDEX
    return found


def read_parquet(content: bytes, path: Path, find: FindColumns, max_bytes: int) -> pa.Table:
    """Wanted columns of a Parquet file by their canonical names; `find` says which they are.

    Raises SourceError for a damaged file, one with too many columns or bytes, and a column that
    holds something else.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        names = file.schema_arrow.names
        if len(names) > MAX_COLUMNS:
            raise SourceError(f"{path} has {len(names)} columns (limit: {MAX_COLUMNS}).")
        found = _find(names, find)
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
    return pa.table(columns)


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
