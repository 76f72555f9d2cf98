"""walkforward_folds and lgbm_model: what a model as of the end of a partition may learn from."""

import hashlib
import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import quant_pipeline
from quant_pipeline.chain.frame import fingerprint_partitions, to_examples
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.seal import require_sealed
from quant_pipeline.chain.stale import require_fresh
from quant_pipeline.chain.workspace import Workspace, price_batch_id
from quant_pipeline.errors import DegenerateData, GateError, NotEnoughHistory
from quant_pipeline.market.features import FEATURE_VALUES
from quant_pipeline.ml.gate import require_complete, require_unchanged, require_usable
from quant_pipeline.ml.splits import Fold, fold_rows, make_folds
from quant_pipeline.ml.train import Examples, TrainedModel, train_model
from quant_pipeline.settings import Task, digest
from quant_pipeline.stores.meta import Model, Refusal, utc_now
from quant_pipeline.stores.series import (
    Connection,
    query,
    read_frame,
    read_manifests,
    read_sessions,
    replace,
)


def training_keys(
    ws: Workspace, con: Connection, key: str, task: Task
) -> tuple[list[str], Any, Any]:
    """Partitions whose increments a model of `key` learns from, and the window's first sessions.

    Gives the partitions, the first session of the training window, and the first session with
    a label known in the first of the partitions (from there on increments are whole).
    Raises NotEnoughHistory if no label is known by the end of `key`.
    """
    sessions = days(read_sessions(con, None, ws.grid.asof(key))["ts"])
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


def read_examples(ws: Workspace, con: Connection, key: str, task: Task) -> tuple[Examples, str]:
    """What a model as of the end of `key` may see, after proving that it is what was recorded.

    Gives the examples of the training window and a digest of the increments behind them.
    Raises GateError if an increment is missing or was restated since its manifest.
    """
    recorded = require_frame(ws, con, key, task)
    keys, window_start, whole_from = training_keys(ws, con, key, task)
    require_fresh(ws, con, keys, task)
    names = tuple(f.name for f in ws.features)
    table = read_frame(con, task.task_id, ws.grid.asof(key), whole_from, names)
    examples = to_examples(table, names)
    command = f"quant backfill --from {ws.grid.window(keys[0])[0]} --to {ws.grid.asof(key)}"
    found = fingerprint_partitions(ws, examples, keys, task)
    require_unchanged("training_frame", recorded, found, command)
    first = int(np.searchsorted(examples.ts, np.datetime64(window_start)))
    return _rows_from(examples, first), digest(window_start.isoformat(), *recorded.items())


def data_fingerprint(ws: Workspace, con: Connection, key: str, task: Task) -> str:
    """The digest that a model of `key` would record, from the manifests alone."""
    recorded = require_frame(ws, con, key, task)
    _, window_start, _ = training_keys(ws, con, key, task)
    return digest(window_start.isoformat(), *recorded.items())


def current_inputs(ws: Workspace, key: str, task: Task) -> str:
    """A digest of what a model of `key` would be made from now, empty if it cannot be made."""
    try:
        with ws.series.reading("planning") as con:
            return digest(data_fingerprint(ws, con, key, task), recipe_id(ws, task))
    except (GateError, NotEnoughHistory):
        return ""


def _rows_from(e: Examples, first: int) -> Examples:
    return Examples(
        e.symbol[first:], e.ts[first:], e.known_at[first:], e.x[first:], e.label[first:],
        e.fwd_return[first:], e.feature_names,
    )  # fmt: skip


def write_folds(ws: Workspace, key: str, task: Task, run_id: str = "") -> list[dict[str, Any]]:
    """Cut the training window of a closed partition into folds, and store them.

    Raises NotEnoughHistory, recorded as a refusal, if they do not fit.
    """
    with _recording_refusal(ws, key, task, run_id):
        return _write_folds(ws, key, task, run_id)


def settled_model(ws: Workspace, key: str, task: Task) -> Model | None:
    """The model of a sealed partition whose data was restated since: it stays as it is.

    It has today's settings, but learned from what was known before. None if there is no such
    model, or if training would use the same data.
    """
    recipe = recipe_id(ws, task)
    ids = [
        m.model_id
        for m in ws.meta.trained(task.task_id) if (m.partition_key, m.recipe) == (key, recipe)
    ]  # fmt: skip
    if not ids:
        return None
    same = [ws.meta.model(model_id) for model_id in ids]
    with ws.series.reading("training") as con:
        now = data_fingerprint(ws, con, key, task)
    return None if any(m.data_fingerprint == now for m in same) else same[-1]


def _write_folds(ws: Workspace, key: str, task: Task, run_id: str) -> list[dict[str, Any]]:
    require_sealed(ws, key)
    if settled_model(ws, key, task):
        rows = ws.series.query(
            "FROM walkforward_folds WHERE partition_key = ? AND task_id = ? ORDER BY fold",
            [key, task.task_id],
        )
        settled: list[dict[str, Any]] = rows.to_pylist()
        return settled
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
    rows = []
    for fold in make_folds(np.unique(ts), ws.settings.folds, task.label_span):
        found = fold_rows(fold, ts, known_at)
        window = {k: v.item() for k, v in asdict(fold).items() if k != "fold"}
        rows.append(
            {
                "partition_key": key,
                "task_id": task.task_id,
                "fold": fold.fold,
                "window_start": window_start,
                **window,
                "n_train": len(found.train),
                "n_stop": len(found.stop),
                "n_test": len(found.test),
                "n_purged": found.n_purged,
            }
        )
    table = pa.Table.from_pylist(rows)
    with ws.writing("walkforward_folds", run_id) as writing:
        where = "partition_key = ? AND task_id = ?"
        replace(writing.con, "walkforward_folds", table, where, [key, task.task_id])
        spec = digest(ws.settings.folds, ws.settings.train.window_sessions)
        writing.record("walkforward_folds", key, len(rows), digest(*rows), spec, task.task_id)
    return rows


def read_folds(con: Connection, key: str, task_id: str) -> list[Fold]:
    """The stored folds of a partition and task, oldest first."""
    names = "fold, train_start, train_end, stop_start, stop_end, test_start, test_end"
    rows = con.execute(
        f"SELECT {names} FROM walkforward_folds WHERE partition_key = ? AND task_id = ? "
        "ORDER BY fold",
        [key, task_id],
    ).fetchall()
    return [Fold(fold, *(np.datetime64(d, "D") for d in dates)) for fold, *dates in rows]


def train_or_refuse(ws: Workspace, key: str, task: Task, run_id: str = "") -> Model:
    """Train, store and register the model of a closed partition.

    A restatement changes no model of a sealed partition: the one that is there is given.
    Data from which no usable model can come is recorded as a refusal, so that the incumbent
    may serve the next partition, and the error goes on to the caller.
    """
    with _recording_refusal(ws, key, task, run_id):
        return _train(ws, key, task, run_id)


@contextmanager
def _recording_refusal(ws: Workspace, key: str, task: Task, run_id: str) -> Iterator[None]:
    try:
        yield
    except (DegenerateData, NotEnoughHistory) as error:
        ws.meta.add_refusal(
            Refusal(
                task_id=task.task_id, partition_key=key, asof=ws.grid.asof(key),
                reason=str(error), inputs=current_inputs(ws, key, task), run_id=run_id,
                created_at=utc_now(),
            )
        )  # fmt: skip
        raise


def _train(ws: Workspace, key: str, task: Task, run_id: str) -> Model:
    require_sealed(ws, key)
    settled = settled_model(ws, key, task)
    if settled is not None:
        return settled
    began = time.perf_counter()
    with ws.series.reading("training") as con:
        examples, fingerprint = read_examples(ws, con, key, task)
        folds = read_folds(con, key, task.task_id)
        batch_id = price_batch_id(con)
    if folds != make_folds(np.unique(examples.ts), ws.settings.folds, task.label_span):
        raise GateError(
            f"walkforward_folds has {len(folds)} folds of {task.task_id} for {key}, which are not "
            "those that today's data and quant.toml ask for. "
            f"Run `quant train --asof {ws.grid.asof(key)}`."
        )
    trained = train_model(examples, folds, task, ws.settings.train)
    require_usable(f"{task.task_id} as of {ws.grid.asof(key)}", trained.metrics, trained.n_splits)
    model_id, size = ws.files.write(_content(ws, key, task, trained, fingerprint))
    return ws.meta.add_model(
        Model(
            model_id=model_id, seq=0, task_id=task.task_id, partition_key=key,
            asof=ws.grid.asof(key), status="ready", parameters=trained.parameters,
            metrics=_plain(trained.metrics), fold_metrics=[_plain(m) for m in trained.fold_metrics],
            importance=trained.importance, features=list(examples.feature_names),
            feature_type="float32", feature_set_id=ws.feature_set_id, n_rows=trained.n_rows,
            n_sessions=len(np.unique(examples.ts)), n_symbols=len(set(examples.symbol.tolist())),
            first_ts=examples.ts[0].item(), last_ts=examples.ts[-1].item(), rounds=trained.rounds,
            price_batch_id=batch_id, data_fingerprint=fingerprint,
            recipe=recipe_id(ws, task), settings=experiment(ws, task), environment=environment(),
            code_version=code_version(), file_bytes=size, seconds=time.perf_counter() - began,
            run_id=run_id, created_at=utc_now(),
        )
    )  # fmt: skip


def _content(
    ws: Workspace, key: str, task: Task, trained: TrainedModel, fingerprint: str
) -> dict[str, Any]:
    """What a model file holds: nothing that differs between two trainings on the same data."""
    return {
        "format": 1,
        "task": task.model_dump(mode="json"),
        "asof": ws.grid.asof(key).isoformat(),
        "features": [f.name for f in ws.features],
        "feature_type": "float32",
        "feature_set_id": ws.feature_set_id,
        "rounds": trained.rounds,
        "data_fingerprint": fingerprint,
        "settings": experiment(ws, task),
        "booster": trained.booster_text,
    }


def experiment(ws: Workspace, task: Task) -> dict[str, Any]:
    """Every setting that decides a model of a task."""
    named = ws.settings.model_dump(mode="json", exclude={"tasks", "store", "ingest"})
    return {
        **named,
        "task": task.model_dump(mode="json"),
        "feature_modules": ws.feature_modules,
        "feature_values": FEATURE_VALUES,
    }


def recipe_id(ws: Workspace, task: Task) -> str:
    """Identifies task, features, universe and settings; refits on new data are one recipe."""
    s = ws.settings
    return digest(task, ws.feature_set_id, s.label, s.folds, s.train)


def environment() -> dict[str, str]:
    """What the bytes of a model depend on besides data and settings."""
    names = ("lightgbm", "numpy", "scikit-learn", "joblib")
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        **{name: version(name) for name in names},
    }


@cache
def code_version() -> str:
    """The package's version and a hash of its sources."""
    found = hashlib.sha256()
    root = Path(quant_pipeline.__file__).parent
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return f"{version('quant-pipeline')}+{found.hexdigest()[:12]}"


def _plain(metrics: Any) -> dict[str, Any]:
    """Metrics for JSON: what is not defined is null."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()
    }
