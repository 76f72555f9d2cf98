"""walkforward_folds and lgbm_model: what a model as of the end of a partition may learn from."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from quant_pipeline.chain.folds import cut_folds, read_folds, stored_windows
from quant_pipeline.chain.provenance import code_version, environment
from quant_pipeline.chain.seal import require_sealed
from quant_pipeline.chain.training_data import data_fingerprint, read_examples
from quant_pipeline.chain.trials import note_trial, recipe_id
from quant_pipeline.chain.workspace import Workspace, price_batch_id
from quant_pipeline.errors import DegenerateData, GateError, NotEnoughHistory
from quant_pipeline.market.features import FEATURE_VALUES
from quant_pipeline.ml.examples import Examples
from quant_pipeline.ml.gate import require_usable
from quant_pipeline.ml.splits import Fold, make_folds
from quant_pipeline.ml.train import Recipe, TrainedModel, train_models
from quant_pipeline.settings import Task, alike, digest
from quant_pipeline.stores.meta import Model, Refusal, utc_now
from quant_pipeline.stores.series import Connection

# What data cannot give: recorded, and the incumbent serves.
Unlearnable = (DegenerateData, NotEnoughHistory)
UnlearnableError = DegenerateData | NotEnoughHistory
# Told of each model that was trained, with its folds' scores, which the registry does not keep.
Seen = Callable[[Task, TrainedModel], None]


def current_inputs(ws: Workspace, key: str, task: Task) -> str:
    """A digest of what a model of `key` would be made from now, empty if it cannot be made."""
    try:
        with ws.series.reading("planning") as con:
            return digest(data_fingerprint(ws, con, key, task), recipe_id(ws, task))
    except (GateError, NotEnoughHistory):
        return ""


def write_folds(ws: Workspace, key: str, task: Task, run_id: str = "") -> list[dict[str, Any]]:
    """Cut the training window of a closed partition into folds, and store them.

    Those of a sealed partition whose data was restated stay. Raises NotEnoughHistory, recorded as
    a refusal, if they do not fit.
    """
    require_sealed(ws, key)
    try:
        if settled_model(ws, key, task):
            return stored_windows(ws, key, task)
        return cut_folds(ws, key, task, run_id)
    except NotEnoughHistory as error:
        raise _refuse(ws, key, task, error, run_id) from None


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


def train_tasks(
    ws: Workspace,
    key: str,
    tasks: Sequence[Task],
    run_id: str = "",
    seen: Seen = lambda _task, _trained: None,
) -> dict[str, Model | UnlearnableError]:
    """Train, store and register the models of a closed partition; by task, in their order.

    A restatement changes no model of a sealed partition: the one that is there is given. Data
    from which no usable model of a task can come is recorded as a refusal and is that task's
    result, so that the incumbent may serve the next partition. Tasks that are alike share rows
    and bins; each model has the bytes that it has alone. `seen` gets those that were trained.
    """
    require_sealed(ws, key)
    found: dict[str, Model | UnlearnableError] = {}
    for group in alike(tasks):
        wanted = []
        for task in group:
            try:
                settled = settled_model(ws, key, task)
            except NotEnoughHistory as error:
                found[task.task_id] = _refuse(ws, key, task, error, run_id)
                continue
            if settled is None:
                wanted.append(task)
            else:
                found[task.task_id] = settled
        if wanted:
            found |= _train_alike(ws, key, wanted, run_id, seen)
    return {task.task_id: found[task.task_id] for task in tasks}


def _train_alike(
    ws: Workspace, key: str, tasks: Sequence[Task], run_id: str, seen: Seen
) -> dict[str, Model | UnlearnableError]:
    began = time.perf_counter()
    try:
        with ws.series.reading("training") as con:
            examples, labels, fingerprints = read_examples(ws, con, key, tasks)
            folds = _checked_folds(ws, con, key, tasks, examples)
            batch_id = price_batch_id(con)
        s = ws.settings
        trained = train_models(examples, labels, folds, tasks, Recipe(s.train, s.folds, s.metrics))
    except Unlearnable as error:  # of all of them
        return {task.task_id: _refuse(ws, key, task, error, run_id) for task in tasks}
    seconds = (time.perf_counter() - began) / len(tasks)
    found: dict[str, Model | UnlearnableError] = {}
    for task in tasks:
        result = trained[task.task_id]
        try:
            if isinstance(result, Unlearnable):
                raise result
            name = f"{task.task_id} as of {ws.grid.asof(key)}"
            require_usable(name, result.metrics, result.n_splits)
        except DegenerateData as error:
            found[task.task_id] = _refuse(ws, key, task, error, run_id)
            continue
        fingerprint = fingerprints[task.task_id]
        model_id, size = ws.files.write(_content(ws, key, task, result, fingerprint))
        row = _row(ws, key, task, result, examples)
        found[task.task_id] = ws.meta.add_model(
            Model(
                **row, model_id=model_id, file_bytes=size, price_batch_id=batch_id,
                data_fingerprint=fingerprint, seconds=seconds, run_id=run_id,
            )
        )  # fmt: skip
        seen(task, result)
    return found


def _checked_folds(
    ws: Workspace, con: Connection, key: str, tasks: Sequence[Task], examples: Examples
) -> list[Fold]:
    """The folds that are stored, if they are those of today's data and settings."""
    folds = make_folds(np.unique(examples.ts), ws.settings.folds, tasks[0].label_span)
    for task in tasks:
        stored = read_folds(con, key, task.task_id)
        if stored != folds:
            raise GateError(
                f"walkforward_folds has {len(stored)} folds of {task.task_id} for {key}, which are "
                "not those that today's data and quant.toml ask for. "
                f"Run `quant train --asof {ws.grid.asof(key)}`."
            )
    return folds


def _refuse(
    ws: Workspace, key: str, task: Task, error: UnlearnableError, run_id: str
) -> UnlearnableError:
    if isinstance(error, DegenerateData):  # too short a history tried nothing
        note_trial(ws, task, ws.grid.asof(key), refused=str(error))
    ws.meta.add_refusal(
        Refusal(
            task_id=task.task_id, partition_key=key, asof=ws.grid.asof(key), reason=str(error),
            inputs=current_inputs(ws, key, task), run_id=run_id, created_at=utc_now(),
        )
    )  # fmt: skip
    return error


def refusals_of(ws: Workspace, key: str, tasks: Sequence[Task]) -> dict[str, str]:
    """Why tasks have no model of a partition with today's settings, where that was recorded."""
    have = {(m.task_id, m.recipe) for m in ws.meta.trained() if m.partition_key == key}
    found = {}
    for task in tasks:
        reasons = [r.reason for r in ws.meta.refusals(task.task_id) if r.partition_key == key]
        if reasons and (task.task_id, recipe_id(ws, task)) not in have:
            found[task.task_id] = reasons[-1]
    return found


def _row(
    ws: Workspace, key: str, task: Task, trained: TrainedModel, examples: Examples
) -> dict[str, Any]:
    """Columns of a registry row that tell what was trained, on what, and how it did."""
    trial = note_trial(ws, task, ws.grid.asof(key))
    return {
        "seq": 0,
        "task_id": task.task_id,
        "partition_key": key,
        "asof": ws.grid.asof(key),
        "status": "ready",
        "parameters": trained.parameters,
        "metrics": _plain(trained.metrics),
        "fold_metrics": [_plain(m) for m in trained.fold_metrics],
        "test_series": plain_series(trained.test_series(ws.settings.metrics)),
        "importance": trained.importance,
        "features": list(examples.feature_names),
        "feature_type": "float32",
        "feature_set_id": ws.feature_set_id,
        "n_rows": trained.n_rows,
        "n_sessions": len(np.unique(examples.ts)),
        "n_symbols": len(set(examples.symbol.tolist())),
        "first_ts": examples.ts[0].item(),
        "last_ts": examples.ts[-1].item(),
        "rounds": trained.rounds,
        "recipe": trial.recipe,
        "chosen_asof": trial.chosen_asof,
        "settings": experiment(ws, task),
        "environment": environment(),
        "code_version": code_version(),
        "created_at": utc_now(),
    }


def _content(
    ws: Workspace, key: str, task: Task, trained: TrainedModel, fingerprint: str
) -> dict[str, Any]:
    """What a model file holds: nothing that differs between two trainings on the same data."""
    return {
        "format": 2,
        "task": task.model_dump(mode="json"),
        "asof": ws.grid.asof(key).isoformat(),
        "features": [f.name for f in ws.features],
        "feature_type": "float32",
        "feature_set_id": ws.feature_set_id,
        "rounds": trained.rounds,
        "data_fingerprint": fingerprint,
        "settings": experiment(ws, task),
        "boosters": list(trained.boosters),
    }


# Sections of quant.toml that decide a model; how it is judged, checked or scheduled does not.
DECISIVE = {
    "grid", "sessions", "seal", "jumps", "universe", "label", "features", "folds", "train",
}  # fmt: skip


def experiment(ws: Workspace, task: Task) -> dict[str, Any]:
    """Every setting that decides a model of a task."""
    named = ws.settings.model_dump(mode="json", include=DECISIVE)
    return {
        **named,
        "task": task.model_dump(mode="json"),
        "feature_modules": ws.feature_modules,
        "feature_values": FEATURE_VALUES,
    }


def plain_series(series: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    """Columns for JSON: dates as text, what is not defined as null."""
    dates = [str(day) for day in series["ts"]]
    others = [(name, values.tolist()) for name, values in series.items() if name != "ts"]
    return {"ts": dates, **{n: [v if v == v else None for v in values] for n, values in others}}


def _plain(metrics: Any) -> dict[str, Any]:
    """Metrics for JSON: what is not defined is null."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()
    }
