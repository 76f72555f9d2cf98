"""What is stale, from the records of what was written and of what each batch changed since."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

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
from quant_pipeline.stores.meta import Batch
from quant_pipeline.stores.series import Connection, query

DATA_ASSETS = ("features_daily", "labels", "training_frame")


@dataclass(frozen=True)
class Changes:
    """Which batch changed which dates, sorted by date."""

    ts: npt.NDArray[np.datetime64]
    batch_id: npt.NDArray[np.int64]

    @classmethod
    def read(cls, con: Connection, kinds: Sequence[str]) -> "Changes":
        """Stored changes of some kinds: "prices" (sessions, too), "ages", "memberships"."""
        marks = ", ".join("?" for _ in kinds)
        rows = query(
            con,
            f"SELECT ts, batch_id FROM price_changes WHERE kind IN ({marks}) ORDER BY ts, batch_id",
            list(kinds),
        )
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
    """What is stored: partitions, market sessions, what each batch changed, what is sealed.

    `changes` are those of prices and sessions; features depend on the ages of symbols and, if
    quant.toml says so, on memberships besides.
    """

    keys: list[str]
    sessions: list[date]
    changes: Changes
    feature_changes: Changes
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
    used = ["memberships"] if ws.settings.universe.memberships else []
    return Stored(
        # Through the newest date, session or not: what was made for it may be stale.
        keys=ws.grid.keys(ws.grid.key(sessions[0]), ws.grid.key(known[-1]["ts"])),
        sessions=sessions,
        changes=Changes.read(con, ["prices"]),
        feature_changes=Changes.read(con, ["prices", "ages", *used]),
        sealed=sealed_keys(con),
    )


def latest(batches: Iterable[Batch]) -> dict[tuple[str, str, str], Batch]:
    """Batches by (table, partition, task)."""
    return {(b.table_name, b.partition_key, b.task_id): b for b in batches}


def stale_data(
    ws: Workspace,
    stored: Stored,
    keys: Sequence[str] | None = None,
    tasks: Sequence[Task] | None = None,
) -> dict[str, dict[str, str]]:
    """Why partitions of each data asset have to be computed (again): asset -> partition -> why.

    A partition is stale if prices changed since on a date that it reaches, its look-back
    included, if settings that decide its rows changed, or if what it is made from was written
    after it. Looks at all partitions and tasks, if none are named.
    """
    task_ids = [t.task_id for t in tasks or ws.settings.tasks]
    batches = latest(ws.meta.batches())
    specs = {
        "features_daily": ws.feature_set_id,
        "labels": ws.label_spec_id,
        "training_frame": frame_spec_id(ws),
    }
    reach = reach_of(ws)
    found: dict[str, dict[str, str]] = {asset: {} for asset in DATA_ASSETS}
    for key in stored.keys if keys is None else keys:
        start, end = ws.grid.window(key)
        first = bisect_left(stored.sessions, start)
        for asset in DATA_ASSETS:
            ids = ("",) if asset == "features_daily" else task_ids
            mine = [batches.get((asset, key, t)) for t in ids]
            back = min(max(first - reach[asset], 0), len(stored.sessions) - 1)
            earliest = stored.sessions[back]
            changes = stored.feature_changes if asset == "features_daily" else stored.changes
            change = changes.newest_between(min(earliest, start), end)
            why = _why_stale(mine, specs[asset], change)
            if not why and asset == "training_frame":
                why = _why_older(mine, batches, found, key, ids)
            if why:
                found[asset][key] = why
    return found


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
