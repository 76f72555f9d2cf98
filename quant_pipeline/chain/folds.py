"""walkforward_folds: the validation protocol's windows, stored, and proved anew in SQL."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from quant_pipeline.chain.panel import days
from quant_pipeline.chain.stale import require_fresh
from quant_pipeline.chain.training_data import require_frame, training_keys
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.ml.splits import Block, Fold, fold_rows, make_folds
from quant_pipeline.settings import Task, digest
from quant_pipeline.stores.series import Connection, fetch_row, query, replace

PARTS = ("train", "stop", "test")


def cut_folds(ws: Workspace, key: str, task: Task, run_id: str = "") -> list[dict[str, Any]]:
    """Cut the training window of a closed partition into folds, and store their windows.

    One row a fold, part (train, stop, test) and block of sessions: its bounds, the first and last
    session that the purge left, and how many rows it kept and dropped there. Raises
    NotEnoughHistory if they do not fit.
    """
    with ws.series.reading("folds") as con:
        require_frame(ws, con, key, task)
        keys, window_start, _ = training_keys(ws, con, key, task)
        require_fresh(ws, con, keys, task)
        known = query(
            con,
            "SELECT ts, known_at FROM training_frame WHERE task_id = ? AND known_at <= ? "
            "AND ts >= ? ORDER BY ts, symbol",
            [task.task_id, ws.grid.asof(key), window_start],
        )
    ts, known_at = days(known["ts"]), days(known["known_at"])
    folds = make_folds(np.unique(ts), ws.settings.folds, task.label_span)
    rows = [
        {"partition_key": key, "task_id": task.task_id, "window_start": window_start, **row}
        for fold in folds for row in _windows(fold, ts, known_at)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows)
    with ws.writing("walkforward_folds", run_id) as writing:
        where = "partition_key = ? AND task_id = ?"
        replace(writing.con, "walkforward_folds", table, where, [key, task.task_id])
        spec = digest(ws.settings.folds, ws.settings.train.window_sessions)
        writing.record("walkforward_folds", key, len(rows), digest(*rows), spec, task.task_id)
    return rows


def _windows(fold: Fold, ts: np.ndarray, known_at: np.ndarray) -> list[dict[str, Any]]:
    found = fold_rows(fold, ts, known_at)
    rows = []
    for part in PARTS:
        kept = ts[getattr(found, part)]
        for number, block in enumerate(getattr(fold, part), 1):
            mine = kept[(kept >= block.start) & (kept <= block.end)]
            n_inside = int(np.count_nonzero((ts >= block.start) & (ts <= block.end)))
            rows.append(
                {
                    "fold": fold.fold,
                    "part": part,
                    "block": number,
                    "start_ts": block.start.item(),
                    "end_ts": block.end.item(),
                    "first_kept": mine[0].item() if len(mine) else None,
                    "last_kept": mine[-1].item() if len(mine) else None,
                    "n_rows": len(mine),
                    "n_purged": n_inside - len(mine),
                }
            )
    return rows


def stored_windows(ws: Workspace, key: str, task: Task) -> list[dict[str, Any]]:
    """What `cut_folds` stored."""
    rows = ws.series.query(
        "FROM walkforward_folds WHERE partition_key = ? AND task_id = ? "
        "ORDER BY fold, start_ts, part",
        [key, task.task_id],
    )
    found: list[dict[str, Any]] = rows.to_pylist()
    return found


def read_folds(con: Connection, key: str, task_id: str) -> list[Fold]:
    """The stored folds of a partition and task, oldest first."""
    rows = con.execute(
        "SELECT fold, part, start_ts, end_ts FROM walkforward_folds "
        "WHERE partition_key = ? AND task_id = ? ORDER BY fold, part, block",
        [key, task_id],
    ).fetchall()
    found: dict[int, dict[str, list[Block]]] = {}
    for fold, part, start, end in rows:
        block = Block(np.datetime64(start, "D"), np.datetime64(end, "D"))
        found.setdefault(fold, {name: [] for name in PARTS})[part].append(block)
    return [Fold(n, *(tuple(parts[name]) for name in PARTS)) for n, parts in found.items()]


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a fold for people: the sessions of each part, block by block, and its rows."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        names = {"task": row["task_id"], "fold": row["fold"]}
        fold = found.setdefault((row["task_id"], row["fold"]), names)
        part, block = row["part"], f"{row['start_ts']}..{row['end_ts']}"
        fold[part] = f"{fold[part]}, {block}" if part in fold else block
        for name in ("n_rows", "n_purged"):
            fold[f"{part} {name}"] = fold.get(f"{part} {name}", 0) + row[name]
    return list(found.values())


# Rows of the frame that each window kept, by session and day of knowledge; then every pair of
# windows of a fold in which an outcome of the one lies where the other one's examples are.
_PROOF = """
WITH kept AS (
    SELECT fold, part, first_kept, last_kept, n_rows FROM walkforward_folds
    WHERE partition_key = $key AND task_id = $task AND first_kept IS NOT NULL),
used AS (
    SELECT k.fold, k.part, f.ts, f.known_at, count(*) AS n
    FROM kept k JOIN training_frame f ON f.ts BETWEEN k.first_kept AND k.last_kept
    WHERE f.task_id = $task AND f.known_at <= $asof GROUP BY ALL),
meeting AS (
    SELECT sum(a.n) AS n FROM used a JOIN used b
    ON a.fold = b.fold AND (a.part, b.part) IN
        (('train', 'stop'), ('train', 'test'), ('stop', 'test'))
    AND a.ts <= b.known_at AND b.ts <= a.known_at)
SELECT coalesce((SELECT n FROM meeting), 0),
    (SELECT sum(n_rows) FROM kept), (SELECT sum(n) FROM used)
"""


def count_overlaps(con: Connection, key: str, task: Task, asof: object) -> tuple[int, int, int]:
    """Prove the stored windows of a partition anew, with nothing of the code that cut them.

    Gives how many rows of a window have an outcome that meets examples of a later or the other
    one of its fold (0 proves that no window saw another one), how many rows the windows are said
    to have kept, and how many rows of training_frame lie there.
    """
    found = fetch_row(con, _PROOF, {"key": key, "task": task.task_id, "asof": asof})
    return int(found[0]), int(found[1] or 0), int(found[2] or 0)
