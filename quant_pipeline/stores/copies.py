"""Copies of databases that are in use, made by the databases themselves."""

import sqlite3
from contextlib import closing
from pathlib import Path

import duckdb

from quant_pipeline.errors import StoreError
from quant_pipeline.stores.durable import sync
from quant_pipeline.stores.series import fetch_row

# Of views their columns: DuckDB writes the names of an EXCLUDE in any order.
SAID = {
    "tables": "SELECT table_name, sql FROM duckdb_tables() WHERE database_name = ? ORDER BY ALL",
    "views": "SELECT table_name, column_name, data_type, column_index FROM duckdb_columns() "
    "JOIN duckdb_views() v USING (database_name, schema_name) WHERE database_name = ? "
    "AND view_name = table_name AND NOT v.internal ORDER BY ALL",
    "macros": "SELECT function_name, macro_definition FROM duckdb_functions() "
    "WHERE database_name = ? AND NOT internal ORDER BY ALL",
    "indexes": "SELECT index_name, sql FROM duckdb_indexes() WHERE database_name = ? ORDER BY ALL",
}


def copy_duckdb(source: Path, target: Path, memory_gib: float, *, read_only: bool) -> None:
    """Write a DuckDB file anew and compare both row by row; the caller holds its lock.

    With `read_only` off, the source's log is taken into it first. Raises StoreError if the copy is
    not the same.
    """
    con = duckdb.connect(config={"memory_limit": f"{memory_gib}GiB"})
    try:
        con.execute("SET enable_progress_bar=false")
        con.execute("SET preserve_insertion_order=true")
        _attach(con, source, "old", " (READ_ONLY)" if read_only else "")
        _attach(con, target, "new", "")
        con.execute("SET enable_external_access=false")
        if not read_only:
            con.execute("CHECKPOINT old")
        con.execute("COPY FROM DATABASE old TO new")
        con.execute("CHECKPOINT new")
        _require_same(con)
    finally:
        con.close()
    sync(target)


def _attach(con: duckdb.DuckDBPyConnection, path: Path, name: str, how: str) -> None:
    quoted = str(path).replace("'", "''")
    con.execute(f"ATTACH '{quoted}' AS {name}{how}")


def _require_same(con: duckdb.DuckDBPyConnection) -> None:
    """Compare tables row by row, and all that is said of them."""
    found = {}
    for name in ("old", "new"):
        said = {kind: con.execute(sql, [name]).fetchall() for kind, sql in SAID.items()}
        rows = [
            (table, *fetch_row(
                con, f'SELECT count(*), sum(hash(t)::HUGEINT) FROM {name}.main."{table}" t'))
            for table, _ in said["tables"]
        ]  # fmt: skip
        found[name] = (said, rows)
    if found["old"] != found["new"]:
        raise StoreError("The copy is not the same as the database. Nothing was changed.")


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a SQLite file as of one moment, whoever writes to it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True, timeout=60)) as old,
        closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)
    sync(target)
