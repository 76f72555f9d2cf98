"""SeriesStore: the DuckDB file with prices, features, labels, folds, predictions, outcomes."""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from quant_pipeline.errors import NoData, StoreError
from quant_pipeline.stores import schema
from quant_pipeline.stores.attached import LOCKED_DOWN, attached, lock_down, others_are_named
from quant_pipeline.stores.durable import sync
from quant_pipeline.stores.failures import failures_are_told
from quant_pipeline.stores.locks import held

log = logging.getLogger(__name__)
Connection = duckdb.DuckDBPyConnection
IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")

CONFIG: dict[str, Any] = {**LOCKED_DOWN, "enable_external_access": False}


@dataclass(frozen=True)
class SeriesStore:
    """One DuckDB file; every connection is short, configured alike, and held under a lock."""

    path: Path
    lock_wait_seconds: float = 60.0
    memory_gib: float = 4.0
    is_read_only: bool = False

    @contextmanager
    def writing(self, what: str) -> Iterator[Connection]:
        """One transaction: everything in the block is stored, or nothing."""
        if self.is_read_only:
            raise StoreError(f"{self.path.name} was opened to be read, not for {what}.")
        with self.locked(what), self._connected() as con:
            _migrate(con, self.path)
            con.execute("BEGIN TRANSACTION")
            try:
                yield con
            except BaseException:
                con.execute("ROLLBACK")
                raise
            con.execute("COMMIT")
            # Closing would do so, too, but tell of no failure: the next one to open the file would
            # take it for done and drop the log, though the disk may have kept neither.
            con.execute("CHECKPOINT")

    @contextmanager
    def reading(self, what: str = "reading") -> Iterator[Connection]:
        """A read-only connection; waits for a writer."""
        if not self.path.exists():
            raise NoData("Nothing has been ingested yet. Run `quant ingest PATH`, or `quant demo`.")
        with ExitStack() as stack:
            con = self._open_to_read(stack, what)
            if layout_of(con) < schema.VERSION:
                stack.close()
                if self.is_read_only:
                    raise StoreError(
                        f"{self.path.name} has tables of an earlier version of quant_pipeline. "
                        "`quant status` brings them up to date."
                    )
                with self.writing("bringing the tables up to date"):
                    pass
                con = self._open_to_read(stack, what)
            yield con

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> pa.Table:
        """The answer to one read-only query as an Arrow table."""
        with self.reading() as con:
            return query(con, sql, parameters)

    @contextmanager
    def locked(self, what: str, *, shared: bool = False) -> Iterator[None]:
        """The lock of the file, without a connection; makes the file if there is none."""
        lock = self.path.with_name(self.path.name + ".lock")
        with held(lock, what, self.lock_wait_seconds, shared=shared):
            if not self.path.exists():
                self._create()
            yield

    def _open_to_read(self, stack: ExitStack, what: str) -> Connection:
        stack.enter_context(self.locked(what, shared=True))
        return stack.enter_context(self._attached())

    @contextmanager
    def _attached(self) -> Iterator[Connection]:
        with (
            failures_are_told(self.path.name, duckdb.Error, OSError),
            attached(self.path, self.memory_gib) as con,
        ):
            _require_known(con, self.path)
            yield con

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        with failures_are_told(self.path.name, duckdb.Error, OSError):
            con = _connect(self.path, self.memory_gib)
            try:
                _require_known(con, self.path)
                yield con
            finally:
                con.close()

    def _create(self) -> None:
        """Make the file under another name first: one killed in its first writes never opens."""
        log = self.path.with_name(self.path.name + ".wal")
        if log.exists():
            raise StoreError(
                f"{self.path.name} is missing, but {log.name}, its newest changes, is there: a new "
                f"file would never open beside it. Restore {self.path.name}, or delete {log.name} "
                "to start anew."
            )
        new = self.path.with_name(self.path.name + ".new")
        for leftover in (new, new.with_name(new.name + ".wal")):
            leftover.unlink(missing_ok=True)
        with failures_are_told(self.path.name, duckdb.Error, OSError):
            con = _connect(new, self.memory_gib)
            try:
                con.execute(schema.TABLES)
                con.execute("CHECKPOINT")
            finally:
                con.close()
        os.replace(new, self.path)
        sync(self.path.parent)


def _connect(path: Path, memory_gib: float) -> Connection:
    """An instance of its own for a writer, who is alone with the file."""
    # Without a limit DuckDB keeps all that it read, up to 80 % of the machine's memory.
    config = {**CONFIG, "memory_limit": f"{memory_gib}GiB"}
    with others_are_named(path):
        con = duckdb.connect(str(path), config=config)
    lock_down(con)
    return con


def layout_of(con: Connection) -> int:
    """The layout of the tables, a number of `schema.VERSION`'s history."""
    try:
        ((version,),) = con.execute("SELECT version FROM store_version").fetchall()
    except duckdb.CatalogException:
        return 1
    return int(version)


def _require_known(con: Connection, path: Path) -> None:
    version = layout_of(con)
    if not schema.FIRST_VERSION <= version <= schema.VERSION:
        raise StoreError(
            f"{path.name} has tables of layout {version}, but this version of quant_pipeline works "
            f"with layouts {schema.FIRST_VERSION} to {schema.VERSION}. Move data/ and models/ away "
            "and ingest your prices again, or use the version that made them."
        )


def _migrate(con: Connection, path: Path) -> None:
    """Bring tables of an older layout up to date: all steps in one transaction, or none."""
    version = layout_of(con)
    if version == schema.VERSION:
        return
    con.execute("BEGIN TRANSACTION")
    try:
        for step in schema.MIGRATIONS[version - schema.FIRST_VERSION :]:
            con.execute(step)
        con.execute("UPDATE store_version SET version = ?", [schema.VERSION])
    except BaseException:
        con.execute("ROLLBACK")
        raise
    con.execute("COMMIT")
    log.info("%s was brought from layout %d to %d.", path.name, version, schema.VERSION)


def query(con: Connection, sql: str, parameters: Sequence[Any] = ()) -> pa.Table:
    """The answer to one query on an open connection as an Arrow table."""
    return con.sql(sql, params=list(parameters)).to_arrow_table()


def identifiers(names: Sequence[str]) -> str:
    """Names of columns or tables for a query, quoted and separated by commas.

    Raises StoreError for what is no name: values are bound, never written into a query.
    """
    for name in names:
        if not IDENTIFIER.fullmatch(name):
            raise StoreError(
                f"{name[:80]!r} is no name of a column: letters, digits and _, at most 63, a "
                "letter first."
            )
    return ", ".join(f'"{name}"' for name in names)


def fetch_row(
    con: Connection, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()
) -> tuple[Any, ...]:
    """The one row of a query, drained: a half-read result would block the connection."""
    given = dict(parameters) if isinstance(parameters, Mapping) else list(parameters)
    (row,) = con.execute(sql, given).fetchall()
    return tuple(row)


@contextmanager
def registered(con: Connection, name: str, rows: pa.Table) -> Iterator[None]:
    """Rows as a table of that name inside the block."""
    con.register(name, rows)
    yield
    con.unregister(name)  # not after an error: in an aborted transaction it would hide that one


def insert(con: Connection, table: str, rows: pa.Table) -> None:
    """Append rows by column name; a missing or unknown column is an error, not a NULL."""
    wanted = columns_of(con, table)
    if sorted(wanted) != sorted(rows.column_names):
        raise StoreError(
            f"Rows for {table} have columns {', '.join(rows.column_names)}, but it has "
            f"{', '.join(wanted)}. Nothing was written."
        )
    with registered(con, "incoming_rows", rows):
        con.execute(f"INSERT INTO {identifiers([table])} BY NAME SELECT * FROM incoming_rows")


def insert_or_create(con: Connection, table: str, rows: pa.Table) -> None:
    """Append rows to a table that may not be there yet: then it gets the columns of the rows."""
    if columns_of(con, table):
        insert(con, table, rows)
        return
    with registered(con, "first_rows", rows):
        con.execute(f"CREATE TABLE {identifiers([table])} AS SELECT * FROM first_rows")


def replace(
    con: Connection, table: str, rows: pa.Table, where: str, parameters: Sequence[Any]
) -> None:
    """Replace the rows of a slice inside the caller's transaction."""
    con.execute(f"DELETE FROM {identifiers([table])} WHERE {where}", list(parameters))
    if len(rows):
        insert(con, table, rows)


def digest_rows(rows: pa.Table) -> str:
    """A sha256 over the values of rows in their order, by column."""
    found = sha256()
    for name in sorted(rows.column_names):
        column = rows[name].combine_chunks()
        found.update(name.encode())
        if pa.types.is_string(column.type) and not column.null_count:
            found.update("\n".join(column.to_pylist()).encode())
            continue
        values = column.to_numpy(zero_copy_only=False)
        if values.dtype == object:  # its bytes would be addresses
            found.update(repr(column.to_pylist()).encode())
        else:
            found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def columns_of(con: Connection, table: str) -> list[str]:
    """Column names of a table in order; empty if there is no such table."""
    # duckdb_columns() has both in one query, but reads those of all tables: 2 to 10 ms more.
    there = con.execute(
        "SELECT 1 FROM duckdb_tables() WHERE table_name = ? AND schema_name = 'main'", [table]
    ).fetchall()
    if not there:  # an error would end the transaction
        return []
    rows = con.execute("SELECT name FROM pragma_table_info(?) ORDER BY cid", [table]).fetchall()
    return [name for (name,) in rows]


def read_sessions(
    con: Connection,
    first: date | None = None,
    last: date | None = None,
    batch_id: int | None = None,
) -> pa.Table:
    """Market sessions (ts) in time order, within dates both included, as of a batch or now."""
    source, given = as_of("sessions", batch_id)
    return query(
        con,
        f"SELECT ts FROM {source} WHERE is_session "
        "AND ts >= coalesce(?, DATE '0001-01-01') AND ts <= coalesce(?, DATE '9999-12-31') "
        "ORDER BY ts",
        [*given, first, last],
    )


def read_prices(con: Connection, first: date, last: date, batch_id: int | None = None) -> pa.Table:
    """Bars on sessions within dates both included, sorted by symbol, ts, as of a batch or now."""
    source, given = as_of("prices_daily", batch_id)
    return query(
        con,
        f"SELECT symbol, ts, open, high, low, close, adj_index, volume FROM {source} "
        "WHERE ts BETWEEN ? AND ? ORDER BY symbol, ts",
        [*given, first, last],
    )


def count_bars(
    con: Connection, first: date, before: date, batch_id: int | None = None
) -> dict[date, int]:
    """Bars of each session in ``[first, before)``, as of a batch or now."""
    source, given = as_of("sessions", batch_id)
    rows = con.execute(
        f"SELECT ts, n_bars FROM {source} WHERE is_session AND ts >= ? AND ts < ?",
        [*given, first, before],
    ).fetchall()
    return dict(rows)


def read_first_bars(con: Connection, batch_id: int | None = None) -> dict[str, date]:
    """Each symbol's first session with a bar, as of a batch or now."""
    source, given = as_of("prices_daily", batch_id)
    rows = con.execute(f"SELECT symbol, min(ts) FROM {source} GROUP BY symbol", given).fetchall()
    return dict(rows)


def as_of(view: str, batch_id: int | None) -> tuple[str, list[int]]:
    """What to read from for a view of prices as of a batch, and what to bind; the view is now."""
    return (view, []) if batch_id is None else (f"{schema.AS_OF[view]}(?)", [batch_id])


def read_frame(
    con: Connection,
    task_id: str,
    known_by: date,
    since: date,
    columns: Sequence[str],
    known_from: date = date(1, 1, 1),
) -> pa.Table:
    """Examples of a task known by a date, from a first session on, sorted by ts, symbol."""
    names = identifiers(("symbol", "ts", "entry_ts", "known_at", "label", "fwd_return", *columns))
    return query(
        con,
        f"SELECT {names} FROM training_frame "
        "WHERE task_id = ? AND known_at BETWEEN ? AND ? AND ts BETWEEN ? AND ? ORDER BY ts, symbol",
        # No label is known before its session: the bound spares a scan of all later features.
        [task_id, known_from, known_by, since, known_by],
    )


def read_manifests(con: Connection, task_id: str) -> Mapping[str, dict[str, Any]]:
    """The manifest rows of a task by partition."""
    rows = query(con, "SELECT * FROM training_manifest WHERE task_id = ?", [task_id]).to_pylist()
    return {row["partition_key"]: row for row in rows}
