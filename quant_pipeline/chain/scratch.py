"""A scratch home: prices as of a batch, with the future as it was or made up, and nothing else."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import SettingsError, StoreError
from quant_pipeline.market.rewriting import (
    make_up_bars,
    make_up_sessions,
    restate_bars,
    rewrite_memberships,
)
from quant_pipeline.settings import Home, Settings
from quant_pipeline.stores.locks import held, writer_of
from quant_pipeline.stores.meta import MetaStore, Model
from quant_pipeline.stores.model_files import ModelFiles
from quant_pipeline.stores.published import Published
from quant_pipeline.stores.schema import AS_OF
from quant_pipeline.stores.series import Connection, SeriesStore, insert

PREFIX, IN_USE = "quant-scratch-", "in-use.lock"
DAYS_AFTER = 75
"""So many calendar days after the cut are copied, or made up."""
SHARE_RESTATED = 0.3
SHARE_FLIPPED = 0.05
BYTES_A_VALUE = 12  # of a feature on disk, written twice at most


@dataclass(frozen=True)
class Present:
    """What a scratch home may know: prices as of a batch, sessions up to a date."""

    batch_id: int
    cut: date
    first: date  # of each symbol, older bars than this but for the first are not needed


@dataclass(frozen=True)
class Rewritten:
    """What the making up of a future came to."""

    n_real: int  # bars after the cut that there really are
    n_made_up: int
    n_alike: int  # of these, with the same values
    n_restated: int  # bars before the cut that a later batch changes


def settings_of(ws: Workspace, model: Model) -> Settings:
    """The settings that a model was made with, its task alone; the rest as quant.toml has it.

    Raises SettingsError if this version of the package does not know one of them any more.
    """
    recorded = {k: v for k, v in model.settings.items() if k in Settings.model_fields}
    try:
        return Settings.model_validate(
            ws.settings.model_dump() | recorded | {"tasks": [model.settings["task"]]}
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SettingsError(
            f"Model {model.model_id[:12]} was made with settings that this version of "
            f"quant_pipeline does not take: {name} ({first['msg']}). Use the version that made it."
        ) from None


@contextmanager
def empty_home(ws: Workspace, settings: Settings) -> Iterator[Workspace]:
    """A home of its own in a temporary folder, removed at the end, with the features of another.

    Folders that a killed process left behind are removed, too.
    """
    _remove_leftovers()
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX) as folder,
        held(Path(folder) / IN_USE, "a proof", wait_seconds=0),
    ):
        root = Path(folder)
        home = Home(root)
        home.models.mkdir()
        home.database.parent.mkdir()
        for name in settings.features.modules:
            if (ws.home.root / f"{name}.py").exists():  # else the error is that of the module
                shutil.copy2(ws.home.root / f"{name}.py", root / f"{name}.py")
        yield replace(
            ws,
            home=home,
            settings=settings,
            series=SeriesStore(home.database, memory_gib=settings.store.memory_gib),
            meta=MetaStore(home.registry),
            files=ModelFiles(home.models),
            published=Published(home.published),
        )


def _remove_leftovers() -> None:
    """Delete scratch homes of processes that were killed: nobody holds their locks any more."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{IN_USE}"):
        try:
            is_mine = lock.stat().st_uid == os.getuid()
            if is_mine and writer_of(lock) is None:
                shutil.rmtree(lock.parent, ignore_errors=True)
        except FileNotFoundError:  # its owner has just removed it
            continue


@contextmanager
def scratch_home(
    ws: Workspace,
    settings: Settings,
    present: Present,
    rng: np.random.Generator | None = None,
) -> Iterator[tuple[Workspace, Rewritten | None]]:
    """A home of its own in a temporary folder, removed at the end, with nothing but prices.

    With `rng` everything that became known later than `present` is made up: sessions, bars,
    members, and a later batch that restates what came before. The home's own stores are only
    read. Raises StoreError if the temporary folder has too little room.
    """
    with empty_home(ws, settings) as made:
        yield made, _fill(ws, made, present, rng)


def _fill(
    ws: Workspace, made: Workspace, present: Present, rng: np.random.Generator | None
) -> Rewritten | None:
    with ws.series.reading("an audit") as con:
        tables = read_copied(con, present)
    _require_room(made, len(tables["bars"]))
    rewritten = None
    if rng is not None:
        tables, rewritten = with_another_future(tables, present, rng)
    with made.series.writing("an audit") as con:
        _store(con, tables, present.batch_id)
    return rewritten


_COPIED = {
    "bars": "WITH firsts AS (SELECT symbol, min(ts) AS ts FROM prices_as_of($batch) GROUP BY 1) "
    "SELECT symbol, ts, open, high, low, close, adj_index, volume FROM bars_as_of($batch) b "
    "WHERE ts <= $last AND (ts >= $first OR EXISTS (FROM firsts f WHERE f.symbol = b.symbol "
    "AND f.ts = b.ts)) ORDER BY symbol, ts",
    "sessions": "SELECT ts, n_bars, is_session FROM sessions_as_of($batch) WHERE ts <= $last "
    "ORDER BY ts",
    "members": "SELECT symbol, first, last FROM memberships_as_of($batch) ORDER BY ALL",
    "batches": "SELECT * FROM price_batches WHERE batch_id <= $batch ORDER BY batch_id",
    "changes": "SELECT * FROM price_changes WHERE batch_id <= $batch ORDER BY ALL",
    "seals": 'SELECT * FROM seals WHERE "asof" <= $cut ORDER BY ALL',
}


def read_copied(con: Connection, present: Present) -> dict[str, pa.Table]:
    """What a scratch home is made from, as of a batch and some days beyond the cut."""
    last = present.cut + timedelta(days=DAYS_AFTER)
    given = {"batch": present.batch_id, "first": present.first, "cut": present.cut, "last": last}
    found = {}
    for name, sql in _COPIED.items():
        mine = {key: value for key, value in given.items() if f"${key}" in sql}
        found[name] = con.sql(sql, params=mine).to_arrow_table()
    return found


def with_another_future(
    tables: dict[str, pa.Table], present: Present, rng: np.random.Generator
) -> tuple[dict[str, pa.Table], Rewritten]:
    """The same tables with another future, and with `restated` and `flipped` of a later batch."""
    cut = pa.scalar(present.cut, pa.date32())
    known, real = (
        tables["bars"].filter(is_(tables["bars"]["ts"], cut)) for is_ in (pc.less_equal, pc.greater)
    )
    members = tables["members"]
    sessions = tables["sessions"].filter(pc.less_equal(tables["sessions"]["ts"], cut))
    later = make_up_sessions(present.cut, DAYS_AFTER, rng)
    made_up = make_up_bars(_newest(known), later["ts"].combine_chunks(), rng)
    restated = restate_bars(known, SHARE_RESTATED, rng)
    is_flipped = rng.random(len(sessions)) < SHARE_FLIPPED
    flipped = sessions.filter(pa.array(is_flipped))
    flipped = flipped.set_column(2, "is_session", pc.invert(flipped["is_session"]))
    rewritten = tables | {
        "bars": pa.concat_tables([known, made_up.select(known.column_names)]),
        "sessions": pa.concat_tables([sessions, later]),
        "members": rewrite_memberships(members, present.cut, rng) if len(members) else members,
        "restated": restated,
        "flipped": flipped,
    }
    alike = real.join(made_up, keys=real.column_names, join_type="inner")
    return rewritten, Rewritten(len(real), len(made_up), len(alike), len(restated))


def _newest(bars: pa.Table) -> pa.Table:
    """The last row of each symbol; rows are sorted by symbol, ts."""
    symbol = bars["symbol"].combine_chunks().dictionary_encode().indices.to_numpy()
    return bars.take(pa.array(np.flatnonzero(np.append(symbol[1:] != symbol[:-1], True))))


def _store(con: Connection, tables: dict[str, pa.Table], batch_id: int) -> None:
    """Store prices as one batch, the later one behind it, and let "now" be the first of them."""
    _insert_bars(con, tables["bars"], batch_id, "new")
    _insert_sessions(con, tables["sessions"], batch_id)
    members = tables["members"]
    if len(members):
        newest = _newest_of_kind(tables["batches"], "memberships")
        insert(con, "membership_versions", _with(members, batch_id=newest))
    insert(con, "price_batches", tables["batches"])
    insert(con, "price_changes", tables["changes"])
    insert(con, "seals", tables["seals"])
    if "restated" in tables:
        later = batch_id + 1
        _insert_bars(con, tables["restated"], later, "restated")
        pairs = tables["restated"].select(["symbol", "ts"])
        insert(con, "price_superseded", _with(pairs, batch_id=batch_id, by_batch_id=later))
        _insert_sessions(con, tables["flipped"], later)
    for view in ("bars", "sessions", "prices_daily", "memberships"):
        con.execute(f"CREATE OR REPLACE VIEW {view} AS FROM {AS_OF[view]}({batch_id:d})")


def _insert_bars(con: Connection, bars: pa.Table, batch_id: int, change: str) -> None:
    insert(con, "price_versions", _with(bars, batch_id=batch_id, change=change, deleted=False))


def _insert_sessions(con: Connection, sessions: pa.Table, batch_id: int) -> None:
    insert(con, "session_versions", _with(sessions, batch_id=batch_id, why="copied"))


def _with(rows: pa.Table, **constants: Any) -> pa.Table:
    """Rows with columns of one value."""
    for name, value in constants.items():
        rows = rows.append_column(name, pa.array([value] * len(rows), pa.scalar(value).type))
    return rows


def _newest_of_kind(batches: pa.Table, kind: str) -> int:
    mine = batches.filter(pc.equal(batches["kind"], kind))
    return int(pc.max(mine["batch_id"]).as_py())


def _require_room(made: Workspace, n_bars: int) -> None:
    needed = n_bars * (len(made.features) + 20) * BYTES_A_VALUE
    free = shutil.disk_usage(made.home.root).free
    if free < needed:
        raise StoreError(
            f"The proof needs about {needed / 2**30:.1f} GiB for a scratch copy, but "
            f"{made.home.root.parent} has {free / 2**30:.1f} GiB. Free some, or set TMPDIR to a "
            "folder on another disk."
        )
