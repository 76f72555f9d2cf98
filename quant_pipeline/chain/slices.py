"""What is stored of a recorded slice of a table: its rows, counted and digested as when written."""

from collections.abc import Callable
from typing import Any

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.settings import digest
from quant_pipeline.stores.meta import Written
from quant_pipeline.stores.series import Connection, columns_of, digest_rows, query

Counted = tuple[int, str]


def stored_digest(ws: Workspace, con: Connection, slice_: Written) -> Counted:
    """Rows and digest of what is stored now; 0 and an empty digest for nothing."""
    if slice_.table_name == "features_daily" and not columns_of(con, "features_daily"):
        return 0, ""  # made with its first rows
    n_rows, found = _DIGESTS[slice_.table_name](ws, con, slice_)
    return (n_rows, found) if n_rows else (0, "")


# Slices whose digest is that of their rows: of a task, if there is one, and a window.
_ROWS = {
    "features_daily": "SELECT * FROM features_daily WHERE ts >= ? AND ts < ? ORDER BY ts, symbol",
    "labels": "SELECT * FROM labels WHERE task_id = ? AND known_at >= ? AND known_at < ? "
    "ORDER BY ts, symbol",
    "predictions": "SELECT symbol, ts, score FROM predictions "
    "WHERE task_id = ? AND ts >= ? AND ts < ? ORDER BY ts, symbol",
}


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


def _of_dicts(rows: list[dict[str, Any]]) -> Counted:
    return len(rows), digest(*rows)


_DIGESTS: dict[str, Callable[[Workspace, Connection, Written], Counted]] = {
    **dict.fromkeys(_ROWS, _rows),
    "training_frame": _frame,
    "walkforward_folds": _folds,
    "prediction_outcomes": _outcomes,
}
