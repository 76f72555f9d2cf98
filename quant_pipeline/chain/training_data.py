"""What a model as of the end of a partition may learn from, and the proof that it is unchanged."""

from collections.abc import Sequence
from datetime import date

import numpy as np
import numpy.typing as npt

from quant_pipeline.chain.frame import fingerprint_partitions, read_rows
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.stale import require_fresh
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import GateError, NotEnoughHistory
from quant_pipeline.ml.examples import Examples
from quant_pipeline.ml.gate import require_complete, require_unchanged
from quant_pipeline.settings import Task, digest
from quant_pipeline.stores.series import Connection, read_manifests, read_sessions

Labels = npt.NDArray[np.float64]


def training_keys(
    ws: Workspace, con: Connection, key: str, task: Task, batch_id: int | None = None
) -> tuple[list[str], date, date]:
    """Partitions whose increments a model of `key` learns from, and the window's first sessions.

    As of a batch of prices, or now.

    Gives the partitions, the first session of the training window, and the first session with
    a label known in the first of the partitions (from there on increments are whole).
    Raises NotEnoughHistory if no label is known by the end of `key`.
    """
    sessions = days(read_sessions(con, None, ws.grid.asof(key), batch_id)["ts"])
    n_labelled = len(sessions) - task.label_span
    if n_labelled < 1:
        raise NotEnoughHistory(
            f"A label of {task.task_id} is known {task.label_span} sessions after its session, "
            f"but only {len(sessions)} sessions are stored by {ws.grid.asof(key)}."
        )
    first = max(n_labelled - ws.settings.train.window_sessions, 0)
    first_key = ws.grid.key(sessions[first + task.label_span].item())
    start = np.datetime64(ws.grid.window(first_key)[0])
    whole = max(int(np.searchsorted(sessions, start)) - task.label_span, 0)
    return ws.grid.keys(first_key, key), sessions[first].item(), sessions[whole].item()


def require_frame(ws: Workspace, con: Connection, key: str, task: Task) -> dict[str, str]:
    """Recorded fingerprints of all increments that a model of `key` needs; none may be missing."""
    keys, _, _ = training_keys(ws, con, key, task)
    manifests = read_manifests(con, task.task_id)
    command = f"quant backfill --from {ws.grid.window(keys[0])[0]} --to {ws.grid.asof(key)} " + (
        "--select training_frame"
    )
    require_complete("training_frame", keys, manifests, command)
    other = [k for k in keys if manifests[k]["feature_set_id"] != ws.feature_set_id]
    if other:
        raise GateError(
            f"training_frame of {len(other)} partitions (first {other[0]}) was made with other "
            f"features or another universe than quant.toml asks for now. Run `{command}`."
        )
    return {k: manifests[k]["fingerprint"] for k in keys}


def read_examples(
    ws: Workspace, con: Connection, key: str, tasks: Sequence[Task]
) -> tuple[Examples, dict[str, Labels], dict[str, str]]:
    """What models of tasks that are alike may see, after proving that it is what was recorded.

    Gives the examples of the training window, each task's labels of them and a digest of the
    increments behind them. Raises GateError if an increment is missing or was restated since its
    manifest.
    """
    recorded = {task.task_id: require_frame(ws, con, key, task) for task in tasks}
    keys, window_start, whole_from = training_keys(ws, con, key, tasks[0])
    for task in tasks:
        require_fresh(ws, con, keys, task)
    names = tuple(f.name for f in ws.features)
    asof = ws.grid.asof(key)
    examples, labels = read_rows(con, list(recorded), whole_from, asof, names)
    command = f"quant backfill --from {ws.grid.window(keys[0])[0]} --to {asof}"
    found = fingerprint_partitions(ws, examples, labels, keys, tasks)
    for task_id, fingerprints in recorded.items():
        require_unchanged("training_frame", fingerprints, found[task_id], command)
    first = int(np.searchsorted(examples.ts, np.datetime64(window_start)))
    digests = {t: digest(window_start.isoformat(), *f.items()) for t, f in recorded.items()}
    return examples.from_row(first), {t: label[first:] for t, label in labels.items()}, digests


def data_fingerprint(ws: Workspace, con: Connection, key: str, task: Task) -> str:
    """The digest that a model of `key` would record, from the manifests alone."""
    recorded = require_frame(ws, con, key, task)
    _, window_start, _ = training_keys(ws, con, key, task)
    return digest(window_start.isoformat(), *recorded.items())
