"""training_frame: which examples became trainable in a partition, counted and fingerprinted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quant_pipeline.chain.blocks import in_blocks
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import GateError
from quant_pipeline.ml.examples import Examples
from quant_pipeline.settings import Task, alike, digest
from quant_pipeline.stores.schema import TRAINING_FRAME
from quant_pipeline.stores.series import Connection, fetch_row, query, read_frame, replace

Labels = npt.NDArray[np.float64]


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
        for tasks in alike(ws.settings.tasks):
            rows += _manifests(ws, con, tasks, keys)
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
    ws: Workspace, con: Connection, tasks: Sequence[Task], keys: Sequence[str]
) -> list[dict[str, Any]]:
    """The manifests of tasks that are alike: their rows are read once."""
    start, end = ws.grid.window(keys[0])[0], ws.grid.window(keys[-1])[1]
    names = tuple(f.name for f in ws.features)
    ids = [task.task_id for task in tasks]
    since = first_label(con, ids[0], start, end)
    found, labels = read_rows(con, ids, since, end - timedelta(days=1), names, known_from=start)
    fingerprints = fingerprint_partitions(ws, found, labels, keys, tasks)
    rows = []
    for task in tasks:
        totals = _count(ws, con, task, keys, since)
        for key in keys:
            part = in_window(found, *ws.grid.window(key))
            ts, n = found.ts[part], totals[key]
            rows.append(
                {
                    "partition_key": key,
                    "task_id": task.task_id,
                    "n_rows": len(ts),
                    "n_symbols": len(np.unique(found.symbol[part].astype(str))),
                    "first_ts": ts[0].item() if len(ts) else None,
                    "last_ts": ts[-1].item() if len(ts) else None,
                    **{name: n[name] for name in COUNTED},
                    "n_outside_universe": n["n_with"] - len(ts) - n["n_short_history"],
                    "n_without_features": n["n_labels"] - n["n_with"],
                    "feature_set_id": ws.feature_set_id,
                    "fingerprint": fingerprints[task.task_id][key],
                }
            )
    return rows


COUNTED = ("n_labels", "n_no_entry_bar", "n_no_exit_bar", "n_suspect_jump", "n_short_history")


def _count(
    ws: Workspace, con: Connection, task: Task, keys: Sequence[str], since: date
) -> dict[str, Counter[str]]:
    """Bars whose outcome became known in each partition: with a label, or by reason without."""
    start, end = ws.grid.window(keys[0])[0], ws.grid.window(keys[-1])[1]
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
    return totals


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


def read_rows(
    con: Connection,
    task_ids: Sequence[str],
    since: date,
    known_by: date,
    names: Sequence[str],
    known_from: date = date(1, 1, 1),
) -> tuple[Examples, dict[str, Labels]]:
    """Examples of tasks that are alike, known by a date, sorted by ts, symbol, and each's labels.

    Features are read once. Raises GateError if the tasks have other rows than one another.
    """
    first, *others = task_ids
    table = read_frame(con, first, known_by, since, names, known_from)
    examples = to_examples(table, names)
    labels = {first: table["label"].to_numpy()}
    for task_id in others:
        mine = read_frame(con, task_id, known_by, since, (), known_from)
        if not mine.select(KEY_COLUMNS).equals(table.select(KEY_COLUMNS)):
            raise GateError(
                f"Tasks {first} and {task_id} have the same horizon and entry lag, but not the "
                f"same rows in training_frame by {known_by}. Run `quant backfill --from {since} "
                f"--to {known_by} --select labels,training_frame`."
            )
        labels[task_id] = mine["label"].to_numpy()
    return examples, labels


KEY_COLUMNS = ["symbol", "ts", "entry_ts", "known_at", "fwd_return"]


def to_examples(table: pa.Table, names: Sequence[str]) -> Examples:
    """Rows of training_frame as arrays; the features become one row-major float32 matrix."""
    x = np.empty((len(table), len(names)), np.float32)
    for j, name in enumerate(names):
        x[:, j] = table[name].to_numpy()
    return Examples(
        symbol=table["symbol"].to_numpy(),
        ts=days(table["ts"]),
        entry_ts=days(table["entry_ts"]),
        known_at=days(table["known_at"]),
        x=x,
        fwd_return=table["fwd_return"].to_numpy(),
        feature_names=tuple(names),
    )


def in_window(examples: Examples, start: date, end: date) -> slice:
    """Rows that became known in ``[start, end)``: one run, as known_at never falls with ts."""
    known = examples.known_at
    first, last = np.searchsorted(known, np.array([start, end], "datetime64[D]"))
    return slice(int(first), int(last))


def fingerprint_partitions(
    ws: Workspace,
    examples: Examples,
    labels: Mapping[str, Labels],
    keys: Sequence[str],
    tasks: Sequence[Task],
) -> dict[str, dict[str, str]]:
    """The fingerprint of each task's increments within the examples, by task and partition.

    What the labels mean is in it: a task that was changed does not train on its old labels.
    """
    found: dict[str, dict[str, str]] = {task.task_id: {} for task in tasks}
    meanings = {task.task_id: digest(task.meaning, ws.settings.label) for task in tasks}
    for key in keys:
        rows = in_window(examples, *ws.grid.window(key))
        shared = fingerprint(examples, rows)
        for task_id, meaning in meanings.items():
            own = sha256(f"{meaning} {shared}".encode())
            own.update(_plain_bytes(labels[task_id][rows]))
            found[task_id][key] = own.hexdigest()
    return found


def fingerprint(examples: Examples, rows: slice) -> str:
    """A sha256 over every value of rows in canonical order, labels apart."""
    found = sha256("\n".join(examples.feature_names).encode())
    found.update("\n".join(examples.symbol[rows].tolist()).encode())
    for values in (examples.ts, examples.entry_ts, examples.known_at):
        found.update(values[rows].astype("datetime64[D]").astype(np.int64).tobytes())
    for numbers in (examples.fwd_return, examples.x):
        found.update(_plain_bytes(numbers[rows]))
    return found.hexdigest()


def _plain_bytes(numbers: np.ndarray) -> bytes:
    """Bytes of numbers, with one NaN of one sign."""
    part = np.ascontiguousarray(numbers)
    is_nan = np.isnan(part)
    if is_nan.any():
        part = np.where(is_nan, np.array(np.nan, part.dtype), part)
    return part.tobytes()
