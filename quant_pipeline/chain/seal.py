"""Sealing: a window is closed once, when nothing more is to be expected of it."""

from bisect import bisect_left
from collections.abc import Sequence
from datetime import date

import pyarrow as pa

from quant_pipeline.chain.slices import record_stored
from quant_pipeline.chain.workspace import Workspace, price_batch_id
from quant_pipeline.errors import GateError
from quant_pipeline.market.closing import Closing, Session, judge_closing
from quant_pipeline.market.grid import Grid
from quant_pipeline.stores.meta import utc_now
from quant_pipeline.stores.series import Connection, insert


def judge_until(ws: Workspace, key: str) -> list[Closing]:
    """Windows up to `key` that are not sealed, oldest first, up to the first that has to wait.

    So only the last one may not be sealable, and it tells what it waits for.
    """
    with ws.series.reading("sealing") as con:
        return _judge(ws, con, key)


def seal_until(ws: Workspace, key: str) -> list[Closing]:
    """Seal every window up to `key` that is complete; gives what `judge_until` gives.

    A seal freezes which dates of the window are sessions, and is never taken back: what arrives
    later is a restatement, which the next as-of sees.
    """
    looked_at = judge_until(ws, key)
    if any(c.is_sealable for c in looked_at):
        with ws.writing("sealing") as writing:
            looked_at = _judge(ws, writing.con, key)  # another process may have been faster
            complete = [c for c in looked_at if c.is_sealable]
            _store(ws, writing.con, complete)
            for closing in complete:
                record_stored(ws, writing, "seals", closing.key)
    return looked_at


def require_sealed(ws: Workspace, key: str) -> None:
    """Seal the windows up to `key`, or raise GateError: only complete windows train."""
    looked_at = seal_until(ws, key)
    if looked_at and not looked_at[-1].is_sealable:
        raise GateError(waiting_message(looked_at[-1], key))


def waiting_message(blocker: Closing, key: str) -> str:
    """Why nothing is trained for a partition yet."""
    mine = "" if blocker.key == key else f" comes after window {blocker.key}, which"
    return f"Window {key}{mine} is {blocker.why}. Only complete windows train."


def partition_before(grid: Grid, sessions: Sequence[date], key: str) -> str | None:
    """The newest partition with a session before a partition: the one whose model serves it."""
    n_before = bisect_left(sessions, grid.window(key)[0])
    return grid.key(sessions[n_before - 1]) if n_before else None


def sealed_keys(con: Connection) -> set[str]:
    """Partitions that are sealed."""
    return {key for (key,) in con.execute("SELECT partition_key FROM seals").fetchall()}


def frozen_range(con: Connection) -> tuple[date, date] | None:
    """First and last date whose answer about sessions is final, None before the first seal.

    It begins with the first session that was stored then: older history may still be added.
    """
    ((first, last),) = con.execute('SELECT min(first_session), max("asof") FROM seals').fetchall()
    return None if first is None else (first, last)


def read_counts(con: Connection) -> list[Session]:
    """Stored sessions with their bars, in time order."""
    rows = con.execute("SELECT ts, n_bars FROM sessions WHERE is_session ORDER BY ts").fetchall()
    return [Session(ts, n) for ts, n in rows]


def _judge(ws: Workspace, con: Connection, key: str) -> list[Closing]:
    sessions = read_counts(con)
    if not sessions:
        return []
    sealed = sealed_keys(con)
    found: list[Closing] = []
    for k in ws.grid.keys(ws.grid.key(sessions[0].ts), key):
        if k not in sealed:
            found.append(judge_closing(ws.grid, k, sessions, ws.settings.seal))
            if not found[-1].is_sealable:
                break
    return found


def _store(ws: Workspace, con: Connection, closings: Sequence[Closing]) -> None:
    now, batch_id = utc_now(), price_batch_id(con)
    ((first,),) = con.execute("SELECT min(ts) FROM sessions WHERE is_session").fetchall()
    rows = [
        {
            "partition_key": c.key, "asof": ws.grid.asof(c.key), "sealed_at": now,
            "batch_id": batch_id, "first_session": first,
            "last_session": c.last.ts if c.last else None,
            "n_bars": c.last.n_bars if c.last else None, "usual_bars": c.usual_bars,
            "n_later_sessions": c.n_later, "why": c.why,
        }
        for c in closings
    ]  # fmt: skip
    insert(con, "seals", pa.Table.from_pylist(rows, _SEALS))


_SEALS = pa.schema(
    [
        ("partition_key", pa.string()),
        ("asof", pa.date32()),
        ("sealed_at", pa.timestamp("us", tz="UTC")),
        ("batch_id", pa.int64()),
        ("first_session", pa.date32()),
        ("last_session", pa.date32()),
        ("n_bars", pa.int64()),
        ("usual_bars", pa.float64()),
        ("n_later_sessions", pa.int64()),
        ("why", pa.string()),
    ]
)
