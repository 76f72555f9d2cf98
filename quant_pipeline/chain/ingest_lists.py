"""Ingest of lists: memberships of the universe and renamed tickers; each is a batch as a whole."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from quant_pipeline.chain.ingest import (
    NO_BARS,
    IngestReport,
    note_changes,
    record_batch,
    split_bars,
    store_versions,
    to_versions,
)
from quant_pipeline.chain.lists import read_memberships, stored_renames
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.workspace import Workspace, price_batch_id
from quant_pipeline.errors import SourceError
from quant_pipeline.market.adjust import Bars, Merged, merge_delivery
from quant_pipeline.market.renames import Renames
from quant_pipeline.stores import intervals
from quant_pipeline.stores.series import Connection, insert, query, read_sessions
from quant_pipeline.stores.sources import Reading

EVER = (date.min, date.max)


def ingest_memberships(ws: Workspace, path: Path, reading: Reading) -> IngestReport:
    """Take a file as the whole list of members from now on; earlier lists stay as versions.

    Sessions on which other symbols are members than before count as changed. The same list
    again changes nothing.
    """
    ws.require_same_grid()
    found = intervals.read_memberships(path, reading)
    report = IngestReport(source=str(path), n_read=len(found))
    with ws.series.writing("ingest of memberships") as con:
        before = read_memberships(con)
        if before.equals(found.sort_by([("symbol", "ascending"), ("first", "ascending")])):
            report.n_unchanged = len(found)
            return report
        report.batch_id = batch_id = price_batch_id(con) + 1
        report.n_new = len(found)
        insert(con, "membership_versions", _with_batch(found, batch_id))
        sessions = days(read_sessions(con)["ts"])
        changed = sessions[_differ(before.to_pylist(), found.to_pylist(), sessions)]
        note_changes(con, ws, changed.tolist(), batch_id, report)
        record_batch(con, "memberships", report)
    return report


def _differ(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], sessions: Any
) -> Any:
    """Sessions on which a symbol is a member in one list and not in the other."""
    differs = np.zeros(len(sessions), np.bool_)
    rows: dict[str, tuple[list[Any], list[Any]]] = {}
    for side, table in enumerate((before, after)):
        for row in table:
            rows.setdefault(row["symbol"], ([], []))[side].append((row["first"], row["last"]))
    for old, new in rows.values():
        if old != new:
            differs |= _covered(old, sessions) != _covered(new, sessions)
    return differs


def _covered(spans: Sequence[tuple[date, date | None]], sessions: Any) -> Any:
    inside = np.zeros(len(sessions), np.bool_)
    for first, last in spans:
        a, b = np.datetime64(first), np.datetime64(last or date.max)
        inside |= (sessions >= a) & (sessions <= b)
    return inside


def ingest_renames(ws: Workspace, path: Path, reading: Reading) -> IngestReport:
    """Take a file as the whole map of renamed tickers from now on.

    Bars that are stored under a ticker which now means a permanent id are moved to it: new
    versions there, deletions here. A map that would take stored bars apart again (an interval
    that is gone or shorter) is refused: bars do not remember the ticker they came with.
    """
    ws.require_same_grid()
    found = intervals.read_renames(path, reading)
    Renames.of(found)
    report = IngestReport(source=str(path), n_read=len(found))
    with ws.series.writing("ingest of renames") as con:
        before = stored_renames(con).to_pylist()
        added = [row for row in found.to_pylist() if row not in before]
        gone = [row for row in before if row not in found.to_pylist()]
        _require_unused(con, gone, found.to_pylist())
        if not added and not gone:
            report.n_unchanged = len(found)
            return report
        report.batch_id = batch_id = price_batch_id(con) + 1
        report.n_new = len(added)
        insert(con, "rename_versions", _with_batch(found, batch_id))
        changed: list[date] = []
        for row in added:
            changed += _move_bars(con, ws, row, batch_id, report)
        note_changes(con, ws, changed, batch_id, report)
        record_batch(con, "renames", report)
    return report


def _require_unused(
    con: Connection, gone: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]
) -> None:
    """Refuse to drop an interval with stored bars, unless another one still covers it."""
    for row in gone:
        first, last = _span(row)
        if any(_is_within(row, other) for other in found):
            continue
        n = con.execute(
            "SELECT count(*) FROM bars WHERE symbol = ? AND ts BETWEEN ? AND ?",
            [row["symbol"], first, last],
        ).fetchall()[0][0]
        if n:
            raise SourceError(
                f"The stored map takes {row['ticker']} for {row['symbol']}, and {n} bars of "
                f"{row['symbol']} are stored in that interval; the new one does not, but which of "
                "them came as which ticker is not known any more. Keep the line, or start a new "
                "home with the new map."
            )


def _is_within(row: dict[str, Any], other: dict[str, Any]) -> bool:
    same = (row["ticker"], row["symbol"]) == (other["ticker"], other["symbol"])
    return same and _span(other)[0] <= _span(row)[0] and _span(row)[1] <= _span(other)[1]


def _span(row: dict[str, Any]) -> tuple[date, date]:
    return row["first"] or EVER[0], row["last"] or EVER[1]


def _move_bars(
    con: Connection, ws: Workspace, row: dict[str, Any], batch_id: int, report: IngestReport
) -> list[date]:
    """Give stored bars of a ticker their permanent id; the dates of those that moved."""
    first, last = _span(row)
    if row["ticker"] == row["symbol"]:
        return []
    moved = query(
        con,
        "SELECT symbol, ts, open, high, low, close, volume, adj_index FROM bars "
        "WHERE symbol = ? AND ts BETWEEN ? AND ? ORDER BY ts",
        [row["ticker"], first, last],
    )
    if not len(moved):
        return []
    (given,) = split_bars(moved, "adj_index").values()
    kept = query(
        con,
        "SELECT symbol, ts, open, high, low, close, volume, adj_index FROM bars "
        "WHERE symbol = ? ORDER BY ts",
        [row["symbol"]],
    )
    stored: Bars = split_bars(kept, "adj_index").get(row["symbol"], NO_BARS)
    n_both = len(np.intersect1d(stored.ts, given.ts))
    if n_both:
        raise SourceError(
            f"{row['ticker']} and {row['symbol']} both have bars on {n_both} dates between "
            f"{first} and {last}, so they are not one company there. Correct the dates of the "
            "rename. Nothing was changed."
        )
    merged: Merged = merge_delivery(stored, given, ws.settings.ingest.tolerance)
    report.n_relinked += merged.n_relinked
    versions = to_versions([(row["symbol"], merged)])
    store_versions(con, versions, batch_id)
    _delete(con, moved, batch_id)
    report.n_readmitted += len(moved)
    return [*versions["ts"].to_pylist(), *moved["ts"].to_pylist()]


def _delete(con: Connection, rows: pa.Table, batch_id: int) -> None:
    """Versions that say: this bar is no more."""
    gone = rows.select(["symbol", "ts"]).append_column(
        "change", pa.array(["deleted"] * len(rows), pa.string())
    )
    for name in ("open", "high", "low", "close", "adj_index", "volume"):
        gone = gone.append_column(name, pa.nulls(len(rows), pa.float64()))
    store_versions(con, gone, batch_id, deleted=True)


def _with_batch(rows: pa.Table, batch_id: int) -> pa.Table:
    return rows.append_column("batch_id", pa.array(np.full(len(rows), batch_id)))
