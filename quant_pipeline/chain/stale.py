"""What is stale, from the records of what was written and of what each batch changed since."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property

import numpy as np
import numpy.typing as npt

from quant_pipeline.chain.frame import frame_spec_id
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.seal import sealed_keys
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import GateError, NoData
from quant_pipeline.market.features import look_back
from quant_pipeline.market.jumps import JUMP_LOOK_BACK
from quant_pipeline.settings import Task
from quant_pipeline.stores.meta import Written
from quant_pipeline.stores.series import Connection, query

DATA_ASSETS = ("features_daily", "labels", "training_frame")


WORDS = {
    "prices": "prices of {} changed",
    "ages": "symbols that began on {} have another age",
    "memberships": "members of {} changed",
}


@dataclass(frozen=True)
class Changes:
    """Which batch changed which dates of one kind, sorted by date."""

    kind: str
    ts: npt.NDArray[np.datetime64]
    batch_id: npt.NDArray[np.int64]

    @classmethod
    def read(cls, con: Connection, kind: str) -> "Changes":
        """Stored changes of "prices" (sessions, too), "ages", "memberships" or "missed" dates."""
        rows = query(
            con,
            "SELECT ts, batch_id FROM price_changes WHERE kind = ? ORDER BY ts, batch_id",
            [kind],
        )
        return cls(kind, days(rows["ts"]), rows["batch_id"].to_numpy())

    def newest_between(self, start: date, end: date) -> tuple[int, str] | None:
        """The newest batch that changed a date in ``[start, end)``, and why in words."""
        a, b = np.searchsorted(self.ts, np.array([start, end], "datetime64[D]"))
        if a == b:
            return None
        at = a + int(np.argmax(self.batch_id[a:b]))
        batch_id = int(self.batch_id[at])
        return batch_id, f"{WORDS[self.kind].format(self.ts[at].item())} in batch {batch_id}"

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
    """What is stored: partitions, market sessions, what each batch changed, what is sealed.

    `changes` of prices and sessions reach features and labels; those of `ages` and, if
    quant.toml uses them, of `memberships` only features. `missed` dates stay out for good.
    """

    keys: list[str]
    sessions: list[date]
    changes: Changes
    ages: Changes
    memberships: Changes | None
    missed: Changes
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
        return _read_stored(ws, con)


def _read_stored(ws: Workspace, con: Connection) -> Stored:
    known = query(con, "SELECT ts, is_session FROM sessions ORDER BY ts").to_pylist()
    sessions = [row["ts"] for row in known if row["is_session"]]
    if not sessions:
        raise NoData("No session is stored yet. Run `quant ingest PATH`, or `quant demo`.")
    uses_members = ws.settings.universe.memberships
    return Stored(
        # Through the newest date, session or not: what was made for it may be stale.
        keys=ws.grid.keys(ws.grid.key(sessions[0]), ws.grid.key(known[-1]["ts"])),
        sessions=sessions,
        changes=Changes.read(con, "prices"),
        ages=Changes.read(con, "ages"),
        memberships=Changes.read(con, "memberships") if uses_members else None,
        missed=Changes.read(con, "missed"),
        sealed=sealed_keys(con),
    )


def latest(batches: Iterable[Written]) -> dict[tuple[str, str, str], Written]:
    """Batches by (table, partition, task)."""
    return {(b.table_name, b.partition_key, b.task_id): b for b in batches}


def stale_data(
    ws: Workspace,
    stored: Stored,
    keys: Sequence[str] | None = None,
    tasks: Sequence[Task] | None = None,
) -> dict[str, dict[str, str]]:
    """Why partitions of each data asset have to be computed (again): asset -> partition -> why.

    A partition is stale if something changed since on a date that it reaches, its look-back
    included, if settings that decide its rows changed, or if what it is made from was written
    after it. Looks at all partitions and tasks, if none are named, and always at the features of
    the earlier partitions that their examples come from.
    """
    wanted = stored.keys if keys is None else keys
    chosen = list(tasks or ws.settings.tasks)
    sources = _feature_keys(ws, stored, wanted[0], wanted[-1], chosen)
    span = (sources[0], wanted[-1])
    written = _Written(ws, span)
    batches = written.newest
    found: dict[str, dict[str, str]] = {asset: {} for asset in DATA_ASSETS}
    for key in dict.fromkeys([*sources, *wanted]):
        why = _why_stale(
            [batches.get(("features_daily", key, ""))],
            ws.feature_set_id,
            _changes_of_features(ws, stored, key),
        )
        if why:
            found["features_daily"][key] = why
    label_span = max(task.label_span for task in ws.settings.tasks)
    for key in wanted:
        window = _reach(ws, stored, key, label_span + JUMP_LOOK_BACK)
        changed = stored.changes.newest_between(*window)
        mine = [batches.get(("labels", key, t.task_id)) for t in chosen]
        why = _why_stale(mine, ws.label_spec_id, [changed])
        if why:
            found["labels"][key] = why
        why = _why_frame_stale(ws, stored, written, found, key, chosen)
        if why:
            found["training_frame"][key] = why
    return found


def _feature_keys(
    ws: Workspace, stored: Stored, first: str, last: str, tasks: Sequence[Task]
) -> list[str]:
    """Partitions whose features the examples come from that became known in some partitions."""
    at = bisect_left(stored.sessions, ws.grid.window(first)[0])
    back = min(max(at - max(t.label_span for t in tasks), 0), len(stored.sessions) - 1)
    earliest = ws.grid.key(stored.sessions[back])
    start = min(earliest, first, key=ws.grid.asof)
    return ws.grid.keys(start, last)


def _reach(ws: Workspace, stored: Stored, key: str, n_sessions: int) -> tuple[date, date]:
    """Dates ``[first, after)`` of a partition and of so many sessions before it."""
    start, end = ws.grid.window(key)
    at = bisect_left(stored.sessions, start)
    back = min(max(at - n_sessions, 0), len(stored.sessions) - 1)
    return min(stored.sessions[back], start), end


def _changes_of_features(ws: Workspace, stored: Stored, key: str) -> list[tuple[int, str] | None]:
    window = _reach(ws, stored, key, reach_of_features(ws))
    found = [stored.changes.newest_between(*window), stored.ages.newest_between(*window)]
    if stored.memberships is not None:
        found.append(stored.memberships.newest_between(*ws.grid.window(key)))
    return found


def _why_stale(
    mine: Sequence[Written | None], spec: str, changes: Sequence[tuple[int, str] | None]
) -> str:
    for batch in mine:
        if batch is None:
            return "missing"
        if batch.spec_id != spec:
            return "settings changed"
        for change in changes:
            if change is not None and change[0] > batch.price_batch_id:
                return change[1]
    return ""


def _why_frame_stale(
    ws: Workspace,
    stored: Stored,
    written: "_Written",
    found: dict[str, dict[str, str]],
    key: str,
    tasks: Sequence[Task],
) -> str:
    mine = [written.newest.get(("training_frame", key, t.task_id)) for t in tasks]
    why = _why_stale(mine, frame_spec_id(ws), [])
    if why:
        return why
    sources = _feature_keys(ws, stored, key, key, tasks)
    stale = [k for k in sources if k in found["features_daily"]]
    if stale or key in found["labels"]:
        return f"features of {stale[0]} are stale" if stale else "labels are stale"
    made_from = [("features_daily", k, "") for k in sources]
    for batch, task in zip(mine, tasks, strict=True):
        for source in [*made_from, ("labels", key, task.task_id)]:
            if batch and written.has_changed(source, batch.id):
                return "features or labels were written later"
    return ""


class _Written:
    """The newest batch of each slice of the data assets in a span, and what was there before."""

    def __init__(self, ws: Workspace, span: tuple[str, str]) -> None:
        self._ws, self._span = ws, span
        self.newest = latest(b for table in DATA_ASSETS for b in ws.meta.batches(table, span))

    def has_changed(self, slice_: tuple[str, str, str], batch_id: int) -> bool:
        """Whether a slice was written after a batch, with other values than it had then."""
        newest = self.newest.get(slice_)
        if newest is None or newest.id <= batch_id:
            return False
        versions = self._digests[slice_]
        at = bisect_left(versions, (batch_id, ""))
        return at == 0 or versions[at - 1][1] != newest.digest

    @cached_property
    def _digests(self) -> dict[tuple[str, str, str], list[tuple[int, str]]]:
        tables = ("features_daily", "labels")
        found = [self._ws.meta.digests(table, self._span) for table in tables]
        return {slice_: versions for part in found for slice_, versions in part.items()}


def require_fresh(ws: Workspace, con: Connection, keys: Sequence[str], task: Task) -> None:
    """Refuse to learn from features and labels that were made before prices changed."""
    stale = stale_data(ws, _read_stored(ws, con), keys, [task])
    for asset, why in stale.items():
        if why:
            key, reason = next(iter(why.items()))
            raise GateError(
                f"{asset} is stale in {len(why)} of {len(keys)} partitions that {task.task_id} "
                f"learns from, first {key}: {reason}. Run `quant backfill --from "
                f"{ws.grid.window(keys[0])[0]} --to {ws.grid.asof(keys[-1])}`."
            )


def require_fresh_features(ws: Workspace, con: Connection, keys: Sequence[str]) -> None:
    """Refuse to score from features that are missing or were made from other prices or settings."""
    stored = _read_stored(ws, con)
    batches = latest(ws.meta.batches("features_daily", (keys[0], keys[-1])))
    for key in keys:
        mine = [batches.get(("features_daily", key, ""))]
        why = _why_stale(mine, ws.feature_set_id, _changes_of_features(ws, stored, key))
        if why:
            raise GateError(
                f"features_daily of {key} is stale: {why}. Run `quant score --from "
                f"{ws.grid.window(key)[0]} --to {ws.grid.asof(keys[-1])}`, which rebuilds it first."
            )


def reach_of_features(ws: Workspace) -> int:
    """Sessions before a session whose prices its features or its universe may depend on."""
    universe = ws.settings.universe
    history = max(universe.min_sessions, ws.settings.features.min_sessions)
    return max(look_back(ws.features), universe.value_sessions, history) + JUMP_LOOK_BACK
