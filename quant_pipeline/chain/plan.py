"""What is missing or stale, from the records of what was written and what was ingested since."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

from quant_pipeline.chain.frame import frame_spec_id
from quant_pipeline.chain.learn import current_inputs
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData, NotEnoughHistory
from quant_pipeline.settings import Task, digest
from quant_pipeline.stores.meta import Batch
from quant_pipeline.stores.series import read_sessions

DATA_ASSETS = ("features_daily", "labels", "training_frame")


@dataclass(frozen=True)
class Stored:
    """What is stored: partitions with data, the newest session, and every ingest so far."""

    keys: list[str]
    first_session: date
    last_session: date
    n_sessions: int
    ingests: list[tuple[int, date]]


def read_stored(ws: Workspace) -> Stored:
    """Look at the price store; raises NoData if there is no session in it."""
    with ws.series.reading("planning") as con:
        sessions = read_sessions(con)["ts"].to_pylist()
        ingests = con.execute(
            "SELECT batch_id, first_changed FROM price_batches ORDER BY batch_id"
        ).fetchall()
    if not sessions:
        raise NoData("No session is stored yet. Run `quant ingest PATH`, or `quant demo`.")
    keys = ws.grid.keys(ws.grid.key(sessions[0]), ws.grid.key(sessions[-1]))
    return Stored(keys, sessions[0], sessions[-1], len(sessions), ingests)


def latest(batches: Iterable[Batch]) -> dict[tuple[str, str, str], Batch]:
    """Batches by (table, partition, task)."""
    return {(b.table_name, b.partition_key, b.task_id): b for b in batches}


def stale_data(ws: Workspace, stored: Stored) -> dict[str, dict[str, str]]:
    """Why partitions of each data asset have to be computed (again): asset -> partition -> why.

    A partition is stale if prices up to its end changed since, if settings that decide its
    rows changed, or if what it is made from was written after it.
    """
    batches = latest(ws.meta.batches())
    specs = {
        "features_daily": ws.feature_set_id,
        "labels": ws.label_spec_id,
        "training_frame": frame_spec_id(ws),
    }
    found: dict[str, dict[str, str]] = {asset: {} for asset in DATA_ASSETS}
    for key in stored.keys:
        asof = ws.grid.asof(key)
        for asset in DATA_ASSETS:
            tasks = ("",) if asset == "features_daily" else [t.task_id for t in ws.settings.tasks]
            mine = [batches.get((asset, key, t)) for t in tasks]
            why = _why_stale(mine, specs[asset], asof, stored.ingests)
            if not why and asset == "training_frame":
                why = _why_older(mine, batches, found, key, tasks)
            if why:
                found[asset][key] = why
    return found


def _why_stale(
    mine: Sequence[Batch | None], spec: str, asof: date, ingests: Sequence[tuple[int, date]]
) -> str:
    for batch in mine:
        if batch is None:
            return "missing"
        if batch.spec_id != spec:
            return "settings changed"
        if any(i > batch.price_batch_id and first <= asof for i, first in ingests):
            return "prices changed"
    return ""


def _why_older(
    mine: Sequence[Batch | None],
    batches: dict[tuple[str, str, str], Batch],
    found: dict[str, dict[str, str]],
    key: str,
    tasks: Sequence[str],
) -> str:
    if any(key in found[asset] for asset in ("features_daily", "labels")):
        return "features or labels are stale"
    for batch, task in zip(mine, tasks, strict=True):
        sources = [batches.get(("features_daily", key, "")), batches.get(("labels", key, task))]
        if batch and any(s and (s.id or 0) > (batch.id or 0) for s in sources):
            return "features or labels were written later"
    return ""


def missing_models(
    ws: Workspace, stored: Stored, keys: Sequence[str], tasks: Sequence[Task]
) -> tuple[dict[str, list[Task]], dict[str, str]]:
    """Tasks whose model of a closed partition is missing or was made from other data or settings.

    Gives those tasks by partition and, apart, why other partitions cannot have a model (open, or
    too little history). What was refused from the same data and settings is not tried again.
    """
    done = {
        (m.task_id, m.partition_key): digest(m.data_fingerprint, m.recipe) for m in ws.meta.models()
    }  # in the order of training: the newest one wins
    refused = {(r.task_id, r.partition_key, r.inputs) for r in ws.meta.refusals()}
    wanted: dict[str, list[Task]] = {}
    impossible: dict[str, str] = {}
    for key in keys:
        if ws.is_open(key, stored.last_session):
            impossible[key] = ws.open_message(key, stored.last_session)
            continue
        for task in tasks:
            try:
                require_history(ws, key, task)
            except NotEnoughHistory as error:
                impossible[key] = str(error)
                continue
            now = current_inputs(ws, key, task)
            is_done = done.get((task.task_id, key)) == now
            if not now or not (is_done or (task.task_id, key, now) in refused):
                wanted.setdefault(key, []).append(task)
    return wanted, impossible


def require_history(ws: Workspace, key: str, task: Task) -> None:
    """Raise NotEnoughHistory if no fold can fit by the end of a partition, whatever the data."""
    spec = ws.settings.folds
    with ws.series.reading("planning") as con:
        n_sessions = len(read_sessions(con, None, ws.grid.asof(key)))
    youth = ws.settings.universe.min_sessions - 1
    n_known = max(n_sessions - task.label_span - youth, 0)
    gaps = 2 * (task.label_span + spec.embargo_sessions)
    needed = spec.min_train_sessions + spec.stop_sessions + spec.n_folds * spec.test_sessions + gaps
    if n_known < needed:
        raise NotEnoughHistory(
            f"The folds need {needed} sessions (train {spec.min_train_sessions}, early stop "
            f"{spec.stop_sessions}, test {spec.n_folds} x {spec.test_sessions}, purge and embargo "
            f"{gaps}), but {task.task_id} has at most {n_known} known by {ws.grid.asof(key)}. "
            "Ingest more history or lower folds.min_train_sessions."
        )


def missing_scores(ws: Workspace, keys: Sequence[str], tasks: Sequence[Task]) -> list[str]:
    """Partitions whose predictions or outcomes are older than what they are made from."""
    batches = latest(ws.meta.batches())
    sessions = _sessions(ws)
    wanted = []
    for key in keys:
        before = ws.grid.shift(key, -1) if key != ws.grid.key(ws.grid.start) else key
        for task in tasks:
            scored = _written(batches, "predictions", key, task.task_id)
            features = _written(batches, "features_daily", key)
            if scored <= features or _is_unjudged(ws, batches, sessions, key, task):
                wanted.append(key)
                break
            models = [m for m in ws.meta.models(task.task_id) if m.partition_key == before]
            scored_by = batches[("predictions", key, task.task_id)].spec_id
            if models and not scored_by:
                wanted.append(key)
                break
    return wanted


def newest_closed(ws: Workspace, stored: Stored, day: date | None) -> str:
    """The newest complete partition by a day: its as-of date, or its last session, is not later."""
    closed = [k for k in stored.keys if not ws.is_open(k, stored.last_session)]
    if day is not None:
        with ws.series.reading("planning") as con:
            sessions = read_sessions(con)["ts"].to_pylist()
        last_of = {ws.grid.key(s): s for s in sessions}
        closed = [k for k in closed if min(ws.grid.asof(k), last_of.get(k, date.max)) <= day]
    if not closed:
        raise NoData(
            f"No complete window ends by {day or stored.last_session}: prices run from "
            f"{stored.first_session} to {stored.last_session}. Only complete windows train."
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
    batches: dict[tuple[str, str, str], Batch],
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
    batches: dict[tuple[str, str, str], Batch], table: str, key: str, task_id: str = ""
) -> int:
    """The number of the newest record of a slice, 0 if there is none."""
    batch = batches.get((table, key, task_id))
    return batch.id or 0 if batch else 0


def _sessions(ws: Workspace) -> list[date]:
    with ws.series.reading("planning") as con:
        sessions: list[date] = read_sessions(con)["ts"].to_pylist()
    return sessions
