"""What is missing: models and scores, from the records of what was written."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import date

from quant_pipeline.chain.learn import current_inputs
from quant_pipeline.chain.seal import judge_until, partition_before, waiting_message
from quant_pipeline.chain.stale import Stored, latest
from quant_pipeline.chain.trials import recipe_id
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData, NotEnoughHistory
from quant_pipeline.ml.splits import required_sessions
from quant_pipeline.settings import Task
from quant_pipeline.stores.meta import Written
from quant_pipeline.stores.series import read_sessions


def missing_models(
    ws: Workspace, stored: Stored, keys: Sequence[str], tasks: Sequence[Task]
) -> tuple[dict[str, list[Task]], dict[str, str]]:
    """Tasks whose model of a complete partition is missing or was made with other settings.

    Gives those tasks by partition and, apart, why other partitions cannot have a model (not
    sealed, or too little history). A restatement changes no model of a sealed partition: the
    next as-of sees it. What was refused from the same data and settings is not tried again.
    A partition without a session learns nothing new, so it needs no model of its own.
    """
    if not keys:
        return {}, {}
    done = {(m.task_id, m.partition_key, m.recipe) for m in ws.meta.trained()}
    recipes = {task.task_id: recipe_id(ws, task) for task in tasks}
    refused: dict[tuple[str, str], set[str]] = {}
    for r in ws.meta.refusals():
        if r.inputs:
            refused.setdefault((r.task_id, r.partition_key), set()).add(r.inputs)
    with_sessions = {ws.grid.key(ts) for ts in stored.sessions}
    waiting = next((c for c in judge_until(ws, keys[-1]) if not c.is_sealable), None)
    wanted: dict[str, list[Task]] = {}
    impossible: dict[str, str] = {}
    for key in keys:
        if key not in with_sessions:
            continue
        if waiting and ws.grid.asof(key) >= ws.grid.asof(waiting.key):
            impossible[key] = waiting_message(waiting, key)
            continue
        for task in tasks:
            if (task.task_id, key, recipes[task.task_id]) in done:
                continue
            try:
                require_history(ws, stored.sessions, key, task)
            except NotEnoughHistory as error:
                impossible[key] = str(error)
                continue
            inputs = refused.get((task.task_id, key), set())
            if not inputs or current_inputs(ws, key, task) not in inputs:
                wanted.setdefault(key, []).append(task)
    return wanted, impossible


def require_history(ws: Workspace, sessions: Sequence[date], key: str, task: Task) -> None:
    """Raise NotEnoughHistory if no fold can fit by the end of a partition, whatever the data."""
    n_sessions = bisect_right(sessions, ws.grid.asof(key))
    settings = ws.settings
    youth = max(settings.universe.min_sessions, settings.features.min_sessions) - 1
    n_known = max(n_sessions - task.label_span - youth, 0)
    needed = required_sessions(settings.folds, task.label_span)
    if n_known < needed:
        raise NotEnoughHistory(
            f"The folds ({settings.folds.protocol}) need {needed} sessions with labels, purge and "
            f"embargo included, but {task.task_id} has at most {n_known} known by "
            f"{ws.grid.asof(key)}. Ingest more history or lower folds.min_train_sessions."
        )


def missing_scores(ws: Workspace, keys: Sequence[str], tasks: Sequence[Task]) -> list[str]:
    """Partitions whose predictions or outcomes are older than what they are made from."""
    batches = latest(ws.meta.batches())
    sessions = _sessions(ws)
    with_model = {(m.task_id, m.partition_key) for m in ws.meta.trained()}
    wanted = []
    for key in keys:
        before = partition_before(ws.grid, sessions, key)
        for task in tasks:
            scored = _written(batches, "predictions", key, task.task_id)
            is_late = scored <= _written(batches, "features_daily", key)
            is_late = is_late or _is_unjudged(ws, batches, sessions, key, task)
            has_model = (task.task_id, before) in with_model
            if is_late or (has_model and not batches[("predictions", key, task.task_id)].spec_id):
                wanted.append(key)
                break
    return wanted


def outdated_scores(ws: Workspace, before: str, tasks: Sequence[Task]) -> list[str]:
    """Earlier partitions with a champion in which bars or labels came late: to be filled up."""
    served = {c.partition_key for task in tasks for c in ws.meta.champions(task.task_id)}
    start = ws.grid.window(before)[0]
    earlier = sorted((k for k in served if ws.grid.window(k)[0] < start), key=ws.grid.asof)
    return missing_scores(ws, earlier, tasks)


def newest_closed(ws: Workspace, stored: Stored, day: date | None) -> str:
    """The newest complete partition by a day: its as-of date, or its last session, is not later."""
    last_of = {ws.grid.key(ts): ts for ts in stored.sessions}
    waiting = next((c for c in judge_until(ws, stored.keys[-1]) if not c.is_sealable), None)
    closed = [k for k in last_of if not waiting or ws.grid.asof(k) < ws.grid.asof(waiting.key)]
    if day is not None:
        closed = [k for k in closed if min(ws.grid.asof(k), last_of[k]) <= day]
    if not closed:
        raise NoData(
            f"No complete window ends by {day or stored.last_session}: prices run from "
            f"{stored.first_session} to {stored.last_session}. "
            + (waiting_message(waiting, waiting.key) if waiting else "")
        )
    return closed[-1]


def unjudged_after(ws: Workspace, key: str, tasks: Sequence[Task]) -> list[str]:
    """Later partitions, judged before, in which labels of the scores of `key` became known."""
    batches = latest(ws.meta.batches())
    sessions = _sessions(ws)
    span = max(task.label_span for task in tasks)
    known = bisect_left(sessions, ws.grid.window(key)[1]) - 1 + span
    last = ws.grid.key(sessions[min(known, len(sessions) - 1)])
    return [
        later
        for later in ws.grid.keys(ws.grid.shift(key, 1), last)
        if any(
            _written(batches, "prediction_outcomes", later, task.task_id)
            and _is_unjudged(ws, batches, sessions, later, task)
            for task in tasks
        )
    ]


def _is_unjudged(
    ws: Workspace,
    batches: dict[tuple[str, str, str], Written],
    sessions: list[date],
    key: str,
    task: Task,
) -> bool:
    """Whether outcomes are older than the labels or than a score that they judge."""
    first = max(bisect_left(sessions, ws.grid.window(key)[0]) - task.label_span, 0)
    scored = ws.grid.keys(ws.grid.key(sessions[first]), key)
    sources = [_written(batches, "predictions", k, task.task_id) for k in scored]
    sources.append(_written(batches, "labels", key, task.task_id))
    return _written(batches, "prediction_outcomes", key, task.task_id) < max(sources)


def _written(
    batches: dict[tuple[str, str, str], Written], table: str, key: str, task_id: str = ""
) -> int:
    """The number of the newest record of a slice, 0 if there is none."""
    batch = batches.get((table, key, task_id))
    return batch.id if batch else 0


def _sessions(ws: Workspace) -> list[date]:
    with ws.series.reading("planning") as con:
        sessions: list[date] = read_sessions(con)["ts"].to_pylist()
    return sessions
