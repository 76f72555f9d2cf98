"""The IO manager for DuckDB: atomic, by column name, checked against its window.

dagster-duckdb's own one deletes and inserts in two autocommits, swaps reordered columns, stores
rows outside the partition, and lets an empty frame erase one. Here delete, insert and checks are
one transaction of the series store, under its lock. An output may come in blocks of partitions,
each computed before the store is opened and stored in a transaction of its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from dagster._core.storage.db_io_manager import DbIOManager, DbTypeHandler, TableSlice
from dagster_duckdb import DuckDBIOManager
from dagster_duckdb.io_manager import DuckDbClient
from pydantic import Field

from quant_pipeline.chain.slices import made_from, record_rows
from quant_pipeline.chain.workspace import Workspace, Writing
from quant_pipeline.defs.retries import retrying
from quant_pipeline.errors import StoreError
from quant_pipeline.ml.gate import require_complete
from quant_pipeline.settings import Home
from quant_pipeline.stores.series import (
    Connection,
    columns_of,
    fetch_row,
    identifiers,
    insert_or_create,
    query,
    read_sessions,
)


@dataclass(frozen=True)
class Blocks:
    """Rows of all partitions of a run, some partitions at a time, made when they are asked for."""

    blocks: Iterator[tuple[list[str], pa.Table]]
    run: dg.DagsterRun | None = None


class SeriesIOManager(DuckDBIOManager):
    """Stores Arrow tables as partitions of tables named like their assets."""

    home: str = Field(description="The folder that holds quant.toml, data/ and models/.")

    @classmethod
    def of(cls, home: Home) -> "SeriesIOManager":
        """An IO manager on the series store of a home."""
        return cls(database=str(home.database), home=str(home.root))

    @staticmethod
    def type_handlers() -> Sequence[DbTypeHandler[Any]]:
        """Not used: the handler needs the workspace, see create_io_manager."""
        return []

    def create_io_manager(self, context: Any) -> DbIOManager:
        client = SeriesClient(Workspace.open(Home(Path(self.home))))
        return DbIOManager(
            db_client=client,
            database=self.database,
            schema="main",
            type_handlers=[ArrowHandler(client)],
            default_load_type=pa.Table,
            io_manager_name="SeriesIOManager",
        )


class SeriesClient(DuckDbClient):
    """Connects through the series store; to write, the handler opens it when rows are there."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    @contextmanager
    def connect(  # type: ignore[override]
        self, context: Any, table_slice: TableSlice
    ) -> Iterator[Connection | None]:
        if isinstance(context, dg.InputContext):
            with self.workspace.series.reading(table_slice.table) as con:
                yield con
        else:
            yield None

    @staticmethod
    def ensure_schema_exists(context: Any, table_slice: TableSlice, connection: Any) -> None:
        """The schema is DuckDB's main one."""

    @staticmethod
    def delete_table_slice(context: Any, table_slice: TableSlice, connection: Any) -> None:
        """Nothing yet: the handler deletes once it has checked what is to be stored."""

    @staticmethod
    def get_select_statement(table_slice: TableSlice) -> str:
        start, end = window_of(table_slice)
        column = table_slice.partition_dimensions[0].partition_expr  # type: ignore[index]
        names = identifiers(table_slice.columns) if table_slice.columns else "*"
        return (
            f"SELECT {names} FROM {identifiers([table_slice.table])} "
            f"WHERE {column} >= DATE '{start}' AND {column} < DATE '{end}' ORDER BY ALL"
        )


class ArrowHandler(DbTypeHandler[pa.Table]):
    """Checks and stores one range of partitions, and reads one."""

    def __init__(self, client: SeriesClient) -> None:
        self.client = client

    @property
    def supported_types(self) -> Sequence[type]:
        return [pa.Table, Blocks]

    def handle_output(
        self,
        context: dg.OutputContext,
        table_slice: TableSlice,
        obj: pa.Table | Blocks,
        connection: Any,
    ) -> dict[str, Any]:
        if isinstance(obj, Blocks):
            with retrying(obj.run):
                for part, rows in obj.blocks:
                    self._store(context, table_slice, part, rows)
            return {}  # each partition has told its own number
        self._store(context, table_slice, list(context.asset_partition_keys), obj)
        return {"dagster/row_count": len(obj)}

    def _store(
        self, context: dg.OutputContext, table_slice: TableSlice, keys: list[str], rows: pa.Table
    ) -> None:
        ws = self.client.workspace
        with ws.writing(table_slice.table, context.run_id) as writing:
            replace_window(ws, writing, context, table_slice, keys, rows)

    def load_input(
        self, context: dg.InputContext, table_slice: TableSlice, connection: Any
    ) -> pa.Table:
        return query(connection, SeriesClient.get_select_statement(table_slice))


def window_of(table_slice: TableSlice) -> tuple[date, date]:
    """The dates ``[start, end)`` of a slice of consecutive partitions."""
    window: Any = table_slice.partition_dimensions[0].partitions  # type: ignore[index]
    return window.start.date(), window.end.date()


def replace_window(
    ws: Workspace,
    writing: Writing,
    context: dg.OutputContext,
    table_slice: TableSlice,
    keys: Sequence[str],
    rows: pa.Table,
) -> None:
    """Put rows in the place of consecutive partitions of a table, or raise and change nothing."""
    con, table = writing.con, table_slice.table
    column = table_slice.partition_dimensions[0].partition_expr  # type: ignore[index]
    start, end = ws.grid.window(keys[0])[0], ws.grid.window(keys[-1])[1]
    metadata = context.definition_metadata or {}
    _require_in_window(table, rows, column, start, end)
    if metadata.get("rows_expected_with_prices"):
        _require_sessions(con, table, rows, column, start, end)
    if metadata.get("some_rows_expected_with_prices"):
        _require_some(ws, con, table, rows, start, end)
    _require_unique(table, rows, metadata.get("key", ()))
    stored = columns_of(con, table)
    if stored and sorted(stored) != sorted(rows.column_names):
        run = window_of(table_slice)
        _require_whole(con, table, column, *run, stored, rows.column_names)
        con.execute(f"DROP TABLE {table}")
        stored = []
        for key in (k for k in context.asset_partition_keys if k not in keys):
            writing.record(table, key, 0, "", "")  # empty until its block comes
    if stored:
        con.execute(f"DELETE FROM {table} WHERE {column} >= ? AND {column} < ?", [start, end])
    insert_or_create(con, table, rows)
    record_rows(ws, writing, keys, table, rows, column)


def _require_in_window(table: str, rows: pa.Table, column: str, start: date, end: date) -> None:
    if column not in rows.column_names:
        names = ", ".join(rows.column_names)
        raise StoreError(f"Rows for {table} lack column {column} (they have: {names}).")
    if rows[column].null_count:
        raise StoreError(f"{rows[column].null_count} rows for {table} have no {column}.")
    found = pc.min_max(rows[column]).as_py()
    if len(rows) and (found["min"] < start or found["max"] >= end):
        raise StoreError(
            f"Rows for {table} have {column} from {found['min']} to {found['max']}, outside the "
            f"window {start} to {end} (exclusive). What is stored there stays."
        )


def _require_sessions(
    con: Connection, table: str, rows: pa.Table, column: str, start: date, end: date
) -> None:
    """Refuse an output that lacks a session with bars: it would erase what is stored."""
    sessions = con.execute(
        "SELECT DISTINCT ts FROM prices_as_of(?) WHERE ts >= ? AND ts < ? ORDER BY ts",
        [made_from(rows), start, end],
    ).fetchall()
    present = {str(day) for day in pc.unique(rows[column]).to_pylist()}
    require_complete(table, [str(day) for (day,) in sessions], present, "quant backfill")


def _require_some(
    ws: Workspace, con: Connection, table: str, rows: pa.Table, start: date, end: date
) -> None:
    """Refuse no labels at all for a window in which outcomes of some bars became known."""
    if len(rows):
        return
    batch_id = made_from(rows)
    sessions = read_sessions(con, None, end - timedelta(days=1), batch_id)["ts"].to_pylist()
    span = min(task.label_span for task in ws.settings.tasks)
    labelled = [sessions[i - span] for i in range(span, len(sessions)) if sessions[i] >= start]
    if not labelled:
        return
    n_bars = fetch_row(
        con,
        "SELECT count(*) FROM prices_as_of(?) WHERE ts IN (SELECT unnest(?))",
        [batch_id, labelled],
    )[0]
    if n_bars:
        raise StoreError(
            f"No rows for {table} between {start} and {end} (exclusive), but the outcomes of "
            f"{n_bars} bars became known there: that would erase what is stored. It stays."
        )


def _require_unique(table: str, rows: pa.Table, key: Sequence[str]) -> None:
    if not key:
        return
    n = len(rows.group_by(list(key)).aggregate([]))
    if n != len(rows):
        raise StoreError(
            f"Rows for {table} repeat {len(rows) - n} of their keys ({', '.join(key)}). "
            "What is stored stays."
        )


def _require_whole(
    con: Connection, table: str, column: str, start: date, end: date,
    stored: Sequence[str], given: Sequence[str],
) -> None:  # fmt: skip
    """Other columns than stored are fine only where nothing of the old ones stays."""
    n_kept, first, last = fetch_row(
        con,
        f"SELECT count(*) FILTER ({column} < ? OR {column} >= ?), min({column}), max({column}) "
        f"FROM {table}",
        [start, end],
    )
    if n_kept:
        change = sorted(set(stored) ^ set(given))
        raise StoreError(
            f"{table} is stored with other columns ({', '.join(change[:6])}); {n_kept} rows "
            f"outside {start} to {end} would be mixed with new ones. Run `quant backfill --from "
            f"{min(first, start)} --to {max(last, end - timedelta(days=1))}`, which rebuilds all "
            "of it."
        )
