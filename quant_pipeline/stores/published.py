"""What readers need, as Parquet under data/published/: they never wait for a writer."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from quant_pipeline.errors import StoreError
from quant_pipeline.stores.durable import write_durably

if TYPE_CHECKING:
    import pyarrow.dataset as ds

CODED = pa.dictionary(pa.int32(), pa.string())  # text is compared once a value, not once a row


def is_whole(file: Path) -> bool:
    """Whether every page of a Parquet file has its checksum."""
    try:
        pq.read_table(file, page_checksum_verification=True, partitioning=None)
    except (pa.ArrowException, OSError):
        return False
    return True


def _read_all(
    files: list[Path], schema: pa.Schema, where: "ds.Expression | None", columns: list[str] | None
) -> pa.Table:
    import pyarrow.dataset as ds  # which imports pandas: half of the time of `quant predictions`

    texts = [f.name for f in schema if f.type == pa.string()]
    form = ds.ParquetFileFormat(
        ds.ParquetReadOptions(dictionary_columns=texts),
        default_fragment_scan_options=ds.ParquetFragmentScanOptions(
            page_checksum_verification=True
        ),
    )
    coded = pa.schema([f.with_type(CODED) if f.name in texts else f for f in schema])
    found = ds.dataset(files, coded, format=form).to_table(filter=where, columns=columns)
    return found.cast(pa.schema([schema.field(name) for name in found.column_names]))


@dataclass(frozen=True)
class Published:
    """A folder of `{table}/{partition}.parquet`, each replaced as a whole."""

    folder: Path

    def write(self, table: str, partition: str, rows: pa.Table) -> None:
        """Replace one partition of a published table."""
        buffer = io.BytesIO()
        pq.write_table(rows, buffer, compression="zstd", write_page_checksum=True)
        self.write_bytes(table, partition, buffer.getvalue())

    def write_bytes(self, table: str, partition: str, raw: bytes) -> None:
        """Replace one partition of a published table by a Parquet file's bytes."""
        target = self.folder / table / f"{partition}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_durably(target, raw)

    def read(
        self,
        table: str,
        where: "ds.Expression | None" = None,
        columns: list[str] | None = None,
        newest: int | None = None,
        since: str = "",
        until: str = "",
    ) -> pa.Table | None:
        """Rows of a published table, None if nothing of it is published yet.

        Of the `newest` partitions only, if that is given, or of those from `since` to `until`:
        their names sort like time.
        A column that only some partitions have is null in the others. Raises StoreError for a
        damaged file.
        """
        files = sorted((self.folder / table).glob("[!.]*.parquet"))[-(newest or 0) :]
        if not files:
            return None
        inside = [f for f in files if f.stem >= since and (not until or f.stem <= until)]
        try:
            schemas = [pq.read_schema(file) for file in inside or files[-1:]]
            schema = pa.unify_schemas(schemas, promote_options="permissive")
            if len(inside) == 1 and where is None:
                with pq.ParquetFile(inside[0], page_checksum_verification=True) as file:
                    return file.read(columns)
            return _read_all(inside, schema, where, columns)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(
                f"data/published/{table} is damaged ({str(error).splitlines()[0][:200]}). "
                "`quant reconcile` makes it anew from the tables."
            ) from error
