"""What is missing or stale, from the records of what was written and what was ingested since."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt

from quant_pipeline.chain.frame import frame_spec_id
from quant_pipeline.chain.learn import current_inputs, recipe_id
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.seal import judge_until, partition_before, sealed_keys, waiting_message
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData, NotEnoughHistory
from quant_pipeline.market.features import look_back
from quant_pipeline.market.jumps import JUMP_LOOK_BACK
from quant_pipeline.settings import Task
from quant_pipeline.stores.meta import Batch
from quant_pipeline.stores.series import Connection, query, read_sessions

DATA_ASSETS = ("features_daily", "labels", "training_frame")


@dataclass(frozen=True)
class Changes:
    """Which batch changed which dates (prices, sessions, memberships), sorted by date."""

    ts: npt.NDArray[np.datetime64]
    batch_id: npt.NDArray[np.int64]

    @classmethod
    def read(cls, con: Connection) -> "Changes":
        """All changes that are stored."""
        rows = query(con, "SELECT ts, batch_id FROM price_changes ORDER BY ts, batch_id")
        return cls(days(rows["ts"]), rows["batch_id"].to_numpy())

    def newest_between(self, start: date, end: date) -> tuple[int, date] | None:
        """The newest batch that changed a date in ``[start, end)``, and the first such date."""
        a, b = np.searchsorted(self.ts, np.array([start, end], "datetime64[D]"))
        if a == b:
            return None
        at = a + int(np.argmax(self.batch_id[a:b]))
        return int(self.batch_id[at]), self.ts[at].item()

    def first_after(self, batch_id: int, first: date, last: date) -> tuple[int, date] | None:
        """The first batch after `batch_id` that changed a date from `first` to `last`, and it."""
        within = (self.ts >= np.datetime64(first)) & (self.ts <= np.datetime64(last))
        found = np.flatnonzero(within & (self.batch_id > batch_id))
        if not len(found):
            return None
        at = found[np.argmin(self.batch_id[found])]
        return int(self.batch_id[at]), self.ts[at].item()


@dataclass(frozen=True)
class Stored:
    """What is stored: partitions with data, market sessions, what each batch changed, seals."""

    keys: list[str]
    sessions: list[date]
    changes: Changes
    sealed: set[str]

    @property
    def first_session(self) -> date:
        return self.sessions[0]

    @property
    def last_session(self) -> date:
        return self.sessions[-1]


def read_stored(ws: Workspace) -> Stored:
    """Look at the price store; raises NoData if there is no session in it."""
    with ws.series.reading("planning") as con:
        sessions = read_sessions(con)["ts"].to_pylist()
        changes = Changes.read(con)
        sealed = sealed_keys(con)
    if not sessions:
        raise NoData("No session is stored yet. Run `quant ingest PATH`, or `quant demo`.")
    keys = ws.grid.keys(ws.grid.key(sessions[0]), ws.grid.key(sessions[-1]))
    return Stored(keys, sessions, changes, sealed)


def latest(batches: Iterable[Batch]) -> dict[tuple[str, str, str], Batch]:
    """Batches by (table, partition, task)."""
    return {(b.table_name, b.partition_key, b.task_id): b for b in batches}


def stale_data(ws: Workspace, stored: Stored) -> dict[str, dict[str, str]]:
    """Why partitions of each data asset have to be computed (again): asset -> partition -> why.

    A partition is stale if prices changed since on a date that it reaches, its look-back
    included, if settings that decide its rows changed, or if what it is made from was written
    after it.
    """
    batches = latest(ws.meta.batches())
    specs = {
        "features_daily": ws.feature_set_id,
        "labels": ws.label_spec_id,
        "training_frame": frame_spec_id(ws),
    }
    reach = reach_of(ws)
    found: dict[str, dict[str, str]] = {asset: {} for asset in DATA_ASSETS}
    for key in stored.keys:
        start, end = ws.grid.window(key)
        first = bisect_left(stored.sessions, start)
        for asset in DATA_ASSETS:
            tasks = ("",) if asset == "features_daily" else [t.task_id for t in ws.settings.tasks]
            mine = [batches.get((asset, key, t)) for t in tasks]
            earliest = stored.sessions[max(first - reach[asset], 0)] if first else start
            change = stored.changes.newest_between(min(earliest, start), end)
            why = _why_stale(mine, specs[asset], change)
            if not why and asset == "training_frame":
                why = _why_older(mine, batches, found, key, tasks)
            if why:
                found[asset][key] = why
    return found


def reach_of(ws: Workspace) -> dict[str, int]:
    """Sessions before a partition whose prices its rows may depend on, by data asset."""
    universe = ws.settings.universe
    features = max(look_back(ws.features), universe.value_sessions, universe.min_sessions)
    labels = max(task.label_span for task in ws.settings.tasks)
    return {
        "features_daily": features + JUMP_LOOK_BACK,
        "labels": labels + JUMP_LOOK_BACK,
        "training_frame": 0,
    }


def _why_stale(mine: Sequence[Batch | None], spec: str, change: tuple[int, date] | None) -> str:
    for batch in mine:
        if batch is None:
            return "missing"
        if batch.spec_id != spec:
            return "settings changed"
        if change is not None and change[0] > batch.price_batch_id:
            return f"prices of {change[1]} changed in batch {change[0]}"
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
    """Tasks whose model of a complete partition is missing or was made with other settings.

    Gives those tasks by partition and, apart, why other partitions cannot have a model (not
    sealed, or too little history). A restatement changes no model of a sealed partition: the
    next as-of sees it. What was refused from the same data and settings is not tried again.
    A partition without a session learns nothing new, so it needs no model of its own.
    """
    if not keys:
        return {}, {}
    done = {(m.task_id, m.partition_key, m.recipe) for m in ws.meta.models()}
    refused = {(r.task_id, r.partition_key, r.inputs) for r in ws.meta.refusals()}
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
            if (task.task_id, key, recipe_id(ws, task)) in done:
                continue
            try:
                require_history(ws, key, task)
            except NotEnoughHistory as error:
                impossible[key] = str(error)
                continue
            now = current_inputs(ws, key, task)
            if not now or (task.task_id, key, now) not in refused:
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
    with_model = {(m.task_id, m.partition_key) for m in ws.meta.models()}
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
    served = {key for task_id, key in ws.meta.champions() if task_id in {t.task_id for t in tasks}}
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
