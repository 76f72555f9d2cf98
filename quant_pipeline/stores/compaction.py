"""Compaction: the database written anew, without the room that deleted rows left behind."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import duckdb

from quant_pipeline.errors import StoreError
from quant_pipeline.stores.model_files import sync_folder
from quant_pipeline.stores.series import SeriesStore, fetch_row


@dataclass(frozen=True)
class Room:
    """Bytes of the database's file, and how many of them hold nothing."""

    total: int
    free: int

    @property
    def free_share(self) -> float:
        return self.free / self.total if self.total else 0.0


def measure(store: SeriesStore) -> Room:
    """The room that a database takes; read-only."""
    with store.reading("measuring") as con:
        block, total, free = fetch_row(
            con, "SELECT block_size, total_blocks, free_blocks FROM pragma_database_size()"
        )
    return Room(block * total, block * free)


def compact(store: SeriesStore) -> Room:
    """Write the database anew under another name, compare both, and swap them; gives its room.

    Others wait meanwhile, or end with StoreBusy. Killed at any moment it leaves the old file or
    the new one. Raises StoreError, and changes nothing, if the disk has no room for a second file
    or the copy is not the same.
    """
    room = measure(store)
    _require_disk(store.path, room.total - room.free)
    with store.locked("compaction"):
        new = store.path.with_name(store.path.name + ".compact")
        _discard(new)
        try:
            _copy(store, new)
            _sync(new)
            os.replace(new, store.path)
        except BaseException:
            _discard(new)
            raise
        sync_folder(store.path.parent)
    return measure(store)


def _discard(new: Path) -> None:
    for leftover in (new, new.with_name(new.name + ".wal")):
        leftover.unlink(missing_ok=True)


def _require_disk(path: Path, wanted: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < wanted * 1.1:
        raise StoreError(
            f"Compaction writes {path.name} anew and needs {wanted / 2**20:,.0f} MiB beside it; "
            f"the disk has {free / 2**20:,.0f} MiB. Make room first. Nothing was changed."
        )


def _copy(store: SeriesStore, new: Path) -> None:
    con = duckdb.connect(config={"memory_limit": f"{store.memory_gib}GiB"})
    try:
        con.execute("SET enable_progress_bar=false")
        con.execute("SET preserve_insertion_order=true")
        for name, path in (("old", store.path), ("new", new)):
            quoted = str(path).replace("'", "''")
            con.execute(f"ATTACH '{quoted}' AS {name}")
        con.execute("SET enable_external_access=false")
        con.execute("CHECKPOINT old")  # or its log would be taken for the new file's
        con.execute("COPY FROM DATABASE old TO new")
        con.execute("CHECKPOINT new")
        _require_same(con)
    finally:
        con.close()
    log = store.path.with_name(store.path.name + ".wal")
    if log.exists():
        raise StoreError(f"{log.name} is still there after a checkpoint. Nothing was changed.")


# Of views their columns: DuckDB writes the names of an EXCLUDE in any order.
_SAID = {
    "tables": "SELECT table_name, sql FROM duckdb_tables() WHERE database_name = ? ORDER BY ALL",
    "views": "SELECT table_name, column_name, data_type, column_index FROM duckdb_columns() "
    "JOIN duckdb_views() v USING (database_name, schema_name) WHERE database_name = ? "
    "AND view_name = table_name AND NOT v.internal ORDER BY ALL",
    "macros": "SELECT function_name, macro_definition FROM duckdb_functions() "
    "WHERE database_name = ? AND NOT internal ORDER BY ALL",
    "indexes": "SELECT index_name, sql FROM duckdb_indexes() WHERE database_name = ? ORDER BY ALL",
}


def _require_same(con: duckdb.DuckDBPyConnection) -> None:
    """Compare tables row by row, and all that is said of them."""
    found = {}
    for name in ("old", "new"):
        said = {kind: con.execute(sql, [name]).fetchall() for kind, sql in _SAID.items()}
        rows = [
            (table, *fetch_row(
                con, f'SELECT count(*), sum(hash(t)::HUGEINT) FROM {name}.main."{table}" t'))
            for table, _ in said["tables"]
        ]  # fmt: skip
        found[name] = (said, rows)
    if found["old"] != found["new"]:
        raise StoreError("The compacted copy is not the same as the database. Nothing was changed.")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
