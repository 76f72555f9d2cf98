"""What is stored of a recorded slice of a table: its rows, counted and digested as when written."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.chain.workspace import Workspace, Writing
from quant_pipeline.errors import NoData
from quant_pipeline.settings import digest
from quant_pipeline.stores.meta import Written
from quant_pipeline.stores.schema import NEWEST
from quant_pipeline.stores.series import Connection, columns_of, digest_rows, fetch_row, query

Counted = tuple[int, str]


def stored_digest(ws: Workspace, con: Connection, slice_: Written) -> Counted:
    """Rows and digest of what is stored now; 0 and an empty digest for nothing."""
    if slice_.table_name == "features_daily" and not columns_of(con, "features_daily"):
        return 0, ""  # made with its first rows
    if not _can_be(ws, slice_):  # a flipped bit in the registry
        return 0, ""
    n_rows, found = _DIGESTS[slice_.table_name](ws, con, slice_)
    return (n_rows, found) if n_rows else (0, "")


def _can_be(ws: Workspace, slice_: Written) -> bool:
    """Whether there is such a table, and such a partition or batch of it."""
    if slice_.table_name not in _DIGESTS:
        return False
    if slice_.table_name == "price_batches":
        return slice_.partition_key.isdecimal() and len(slice_.partition_key) < 19
    try:
        ws.grid.window(slice_.partition_key)
    except NoData:
        return False
    return True


def record_stored(ws: Workspace, writing: Writing, table: str, key: str, task_id: str = "") -> None:
    """Note a slice that this transaction has written with what is stored of it."""
    slice_ = Written(0, table, key, task_id, 0, "", 0, "")
    n_rows, found = stored_digest(ws, writing.con, slice_)
    writing.record(table, key, n_rows, found, "", task_id)


def made_from(rows: pa.Table) -> int:
    """The newest batch of prices that rows know; what came later is no reason to refuse them."""
    return int((rows.schema.metadata or {}).get(b"price_batch_id", NEWEST))


def record_rows(
    ws: Workspace,
    writing: Writing,
    keys: Sequence[str],
    table: str,
    rows: pa.Table,
    column: str,
) -> None:
    """Note the slices of rows that were put in the place of consecutive partitions of a table."""
    known = replace(writing, price_batch_id=min(made_from(rows), writing.price_batch_id))
    by_task = "task_id" in rows.column_names
    # Of rows that do not tell what they were made with it is unknown: they count as stale.
    spec = (rows.schema.metadata or {}).get(b"spec_id", b"").decode()
    for key in keys:
        start, end = ws.grid.window(key)
        days = rows[column]
        mine = rows.filter(pc.and_(pc.greater_equal(days, start), pc.less(days, end)))
        for task_id in [t.task_id for t in ws.settings.tasks] if by_task else [""]:
            part = mine.filter(pc.equal(mine["task_id"], task_id)) if by_task else mine
            known.record(table, key, len(part), digest_rows(part), spec, task_id)


# Slices whose digest is that of their rows: of a task, if there is one, and a window.
_ROWS = {
    "features_daily": "SELECT * FROM features_daily WHERE ts >= ? AND ts < ? ORDER BY ts, symbol",
    "labels": "SELECT * FROM labels WHERE task_id = ? AND known_at >= ? AND known_at < ? "
    "ORDER BY ts, symbol",
    "predictions": "SELECT symbol, ts, score FROM predictions "
    "WHERE task_id = ? AND ts >= ? AND ts < ? ORDER BY ts, symbol",
    "predictions_shadow": "SELECT symbol, ts, model_id, score FROM predictions_shadow "
    "WHERE task_id = ? AND ts >= ? AND ts < ? ORDER BY ts, symbol, model_id",
}
# Where the rows of a batch of prices are. They are never changed, and a transaction is stored as a
# whole or not at all: counts tell whether it is.
_OF_A_BATCH = {
    "price_batches": "batch_id", "price_versions": "batch_id", "price_superseded": "by_batch_id",
    "price_changes": "batch_id", "rows_rejected": "batch_id", "session_versions": "batch_id",
    "membership_versions": "batch_id", "rename_versions": "batch_id",
}  # fmt: skip


def _rows(ws: Workspace, con: Connection, slice_: Written) -> Counted:
    task = [slice_.task_id] if slice_.task_id else []
    window = ws.grid.window(slice_.partition_key)
    rows = query(con, _ROWS[slice_.table_name], [*task, *window])
    return len(rows), digest_rows(rows)


def _frame(_: Workspace, con: Connection, slice_: Written) -> Counted:
    sql = (
        "SELECT n_rows, fingerprint FROM training_manifest WHERE partition_key = ? AND task_id = ?"
    )
    rows = con.execute(sql, [slice_.partition_key, slice_.task_id]).fetchall()
    return rows[0] if rows else (0, "")


def _folds(_: Workspace, con: Connection, slice_: Written) -> Counted:
    sql = (
        "SELECT * FROM walkforward_folds WHERE partition_key = ? AND task_id = ? "
        "ORDER BY fold, list_position(['train', 'stop', 'test'], part), block"
    )
    return _of_dicts(query(con, sql, [slice_.partition_key, slice_.task_id]).to_pylist())


def _outcomes(ws: Workspace, con: Connection, slice_: Written) -> Counted:
    window = ws.grid.window(slice_.partition_key)
    sql = (
        "SELECT * FROM prediction_outcomes WHERE task_id = ? AND known_at >= ? AND known_at < ? "
        "ORDER BY model_id, ts, origin"
    )
    return _of_dicts(query(con, sql, [slice_.task_id, *window]).to_pylist())


def _prices(_: Workspace, con: Connection, slice_: Written) -> Counted:
    batch_id = int(slice_.partition_key)
    counts = {
        table: fetch_row(con, f"SELECT count(*) FROM {table} WHERE {column} = ?", [batch_id])[0]
        for table, column in _OF_A_BATCH.items()
    }
    return sum(counts.values()), digest(counts)


def _seal(_: Workspace, con: Connection, slice_: Written) -> Counted:
    sql = "SELECT * EXCLUDE (sealed_at) FROM seals WHERE partition_key = ?"
    return _of_dicts(query(con, sql, [slice_.partition_key]).to_pylist())


def _of_dicts(rows: list[dict[str, Any]]) -> Counted:
    return len(rows), digest(*rows)


_DIGESTS: dict[str, Callable[[Workspace, Connection, Written], Counted]] = {
    **dict.fromkeys(_ROWS, _rows),
    "training_frame": _frame,
    "walkforward_folds": _folds,
    "prediction_outcomes": _outcomes,
    "price_batches": _prices,
    "seals": _seal,
}
