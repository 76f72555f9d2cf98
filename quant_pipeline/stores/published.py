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

    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    checked = ds.ParquetFileFormat(default_fragment_scan_options=options)
    return ds.dataset(files, schema, format=checked).to_table(filter=where, columns=columns)


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
    ) -> pa.Table | None:
        """Rows of a published table, None if nothing of it is published yet.

        Of the `newest` partitions only, if that is given: their names sort like time.
        A column that only some partitions have is null in the others. Raises StoreError for a
        damaged file.
        """
        files = sorted((self.folder / table).glob("[!.]*.parquet"))[-(newest or 0) :]
        if not files:
            return None
        try:
            schemas = [pq.read_schema(file) for file in files]
            schema = pa.unify_schemas(schemas, promote_options="permissive")
            if len(files) == 1 and where is None:
                with pq.ParquetFile(files[0], page_checksum_verification=True) as file:
                    return file.read(columns)
            return _read_all(files, schema, where, columns)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(
                f"data/published/{table} is damaged ({str(error).splitlines()[0][:200]}). "
                "`quant reconcile` makes it anew from the tables."
            ) from error
