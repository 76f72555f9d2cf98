"""training_frame: which examples became trainable in a partition, counted and fingerprinted."""

from collections import Counter
from collections.abc import Sequence
from datetime import date, timedelta
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa

from quant_pipeline.chain.blocks import in_blocks
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.ml.train import Examples
from quant_pipeline.settings import Task, digest
from quant_pipeline.stores.schema import TRAINING_FRAME
from quant_pipeline.stores.series import Connection, fetch_row, query, read_frame, replace


def frame_spec_id(ws: Workspace) -> str:
    """Identifies what the rows of training_frame are made of."""
    return digest(ws.feature_set_id, ws.label_spec_id)


def write_manifests(ws: Workspace, keys: Sequence[str], run_id: str = "") -> list[dict[str, Any]]:
    """Count and fingerprint the increments of consecutive partitions, and store the manifests."""
    rows = []
    for block in in_blocks(ws, keys, len(ws.features)):
        rows += _write_manifests(ws, block, run_id)
    return rows


def _write_manifests(ws: Workspace, keys: Sequence[str], run_id: str) -> list[dict[str, Any]]:
    rows = []
    with ws.writing("training_frame", run_id) as writing:
        con = writing.con
        con.execute(TRAINING_FRAME)
        for task in ws.settings.tasks:
            rows += _manifests(ws, con, task, keys)
        table = pa.Table.from_pylist(rows, _MANIFEST)
        marks = ", ".join("?" for _ in keys)
        replace(con, "training_manifest", table, f"partition_key IN ({marks})", list(keys))
        for row in rows:
            writing.record(
                "training_frame", row["partition_key"], row["n_rows"], row["fingerprint"],
                frame_spec_id(ws), row["task_id"],
            )  # fmt: skip
    return rows


_MANIFEST = pa.schema(
    [
        ("partition_key", pa.string()),
        ("task_id", pa.string()),
        ("n_rows", pa.int64()),
        ("n_symbols", pa.int64()),
        ("first_ts", pa.date32()),
        ("last_ts", pa.date32()),
        ("n_labels", pa.int64()),
        ("n_no_entry_bar", pa.int64()),
        ("n_no_exit_bar", pa.int64()),
        ("n_suspect_jump", pa.int64()),
        ("n_outside_universe", pa.int64()),
        ("n_short_history", pa.int64()),
        ("n_without_features", pa.int64()),
        ("feature_set_id", pa.string()),
        ("fingerprint", pa.string()),
    ]
)


def _manifests(
    ws: Workspace, con: Connection, task: Task, keys: Sequence[str]
) -> list[dict[str, Any]]:
    start, end = ws.grid.window(keys[0])[0], ws.grid.window(keys[-1])[1]
    names = tuple(f.name for f in ws.features)
    since = first_label(con, task.task_id, start, end)
    found = read_increments(con, task.task_id, since, start, end, names)
    fingerprints = fingerprint_partitions(ws, found, keys, task)
    counts = query(
        con,
        "SELECT l.known_at, count(l.label) AS n_labels, "
        "count(f.symbol) FILTER (l.reason IS NULL) AS n_with, "
        "count(*) FILTER (l.reason IS NULL AND f.lacks_history) AS n_short_history, "
        "count(*) FILTER (l.reason = 'no_entry_bar') AS n_no_entry_bar, "
        "count(*) FILTER (l.reason = 'no_exit_bar') AS n_no_exit_bar, "
        "count(*) FILTER (l.reason = 'suspect_jump') AS n_suspect_jump "
        "FROM labels l LEFT JOIN features_daily f USING (symbol, ts) "
        "WHERE l.task_id = ? AND l.known_at >= ? AND l.known_at < ? AND ts >= ? AND ts < ? "
        "GROUP BY l.known_at",
        [task.task_id, start, end, since, end],
    ).to_pylist()
    totals: dict[str, Counter[str]] = {key: Counter() for key in keys}
    for row in counts:
        totals[ws.grid.key(row.pop("known_at"))].update(row)
    rows = []
    for key in keys:
        part = in_window(found, *ws.grid.window(key))
        ts = found.ts[part]
        n_short = totals[key]["n_short_history"]
        rows.append(
            {
                "partition_key": key,
                "task_id": task.task_id,
                "n_rows": len(ts),
                "n_symbols": len(np.unique(found.symbol[part].astype(str))),
                "first_ts": ts[0].item() if len(ts) else None,
                "last_ts": ts[-1].item() if len(ts) else None,
                "n_labels": totals[key]["n_labels"],
                "n_no_entry_bar": totals[key]["n_no_entry_bar"],
                "n_no_exit_bar": totals[key]["n_no_exit_bar"],
                "n_suspect_jump": totals[key]["n_suspect_jump"],
                "n_outside_universe": totals[key]["n_with"] - len(ts) - n_short,
                "n_short_history": n_short,
                "n_without_features": totals[key]["n_labels"] - totals[key]["n_with"],
                "feature_set_id": ws.feature_set_id,
                "fingerprint": fingerprints[key],
            }
        )
    return rows


def first_label(con: Connection, task_id: str, start: date, end: date) -> date:
    """The first session of which a label became known in ``[start, end)``; `end` if there is none.

    Features before it need not be looked at.
    """
    (found,) = fetch_row(
        con,
        "SELECT coalesce(min(ts), ?) FROM labels WHERE task_id = ? AND known_at >= ? "
        "AND known_at < ?",
        [end, task_id, start, end],
    )
    first: date = found
    return first


def read_increments(
    con: Connection, task_id: str, since: date, start: date, end: date, names: Sequence[str]
) -> Examples:
    """Examples that became known in ``[start, end)``, of sessions from `since` on.

    Sorted by ts, symbol.
    """
    table = read_frame(con, task_id, end - timedelta(days=1), since, names, known_from=start)
    return to_examples(table, names)


def to_examples(table: pa.Table, names: Sequence[str]) -> Examples:
    """Rows of training_frame as arrays; the features become one row-major float32 matrix."""
    x = np.empty((len(table), len(names)), np.float32)
    for j, name in enumerate(names):
        x[:, j] = table[name].to_numpy()
    return Examples(
        symbol=table["symbol"].to_numpy(),
        ts=days(table["ts"]),
        known_at=days(table["known_at"]),
        x=x,
        label=table["label"].to_numpy(),
        fwd_return=table["fwd_return"].to_numpy(),
        feature_names=tuple(names),
    )


def in_window(examples: Examples, start: date, end: date) -> slice:
    """Rows that became known in ``[start, end)``: one run, as known_at never falls with ts."""
    known = examples.known_at
    first, last = np.searchsorted(known, np.array([start, end], "datetime64[D]"))
    return slice(int(first), int(last))


def fingerprint_partitions(
    ws: Workspace, examples: Examples, keys: Sequence[str], task: Task
) -> dict[str, str]:
    """The fingerprint of each partition's increment within the examples.

    What the labels mean is in it: a task that was changed does not train on its old labels.
    """
    meaning = digest(task, ws.settings.label)
    return {
        key: fingerprint(examples, in_window(examples, *ws.grid.window(key)), meaning)
        for key in keys
    }


def fingerprint(examples: Examples, rows: slice, meaning: str) -> str:
    """A sha256 over every value of rows in canonical order; equal data, equal fingerprint."""
    found = sha256("\n".join([meaning, *examples.feature_names]).encode())
    found.update("\n".join(examples.symbol[rows].tolist()).encode())
    for values in (examples.ts, examples.known_at):
        found.update(values[rows].astype("datetime64[D]").astype(np.int64).tobytes())
    for numbers in (examples.label, examples.fwd_return, examples.x):
        part = np.ascontiguousarray(numbers[rows])
        part = np.where(np.isnan(part), np.array(np.nan, part.dtype), part)  # one NaN, one sign
        found.update(part.tobytes())
    return found.hexdigest()
