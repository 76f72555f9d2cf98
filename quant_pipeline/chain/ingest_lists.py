"""Ingest of lists: memberships of the universe and renamed tickers; each is a batch as a whole."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from quant_pipeline.chain.ingest import (
    NO_BARS,
    PRICES,
    IngestReport,
    add_changes,
    mark_late,
    moved_first_bars,
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
from quant_pipeline.stores.series import Connection, insert, query, read_first_bars, read_sessions
from quant_pipeline.stores.sources import Reading

EVER = (date.min, date.max)
COLUMNS = ("ts", *PRICES, "index")


def ingest_memberships(ws: Workspace, path: Path, reading: Reading) -> IngestReport:
    """Take a file as the whole list of members from now on; earlier lists stay as versions.

    Sessions on which other symbols are members than before count as changed. The same list
    again changes nothing.
    """
    ws.require_same_grid()
    found = intervals.read_memberships(path, reading)
    report = IngestReport(source=str(path), n_read=len(found))
    with ws.writing("ingest of memberships") as writing:
        con = writing.con
        before = read_memberships(con)
        if before.equals(found.sort_by([("symbol", "ascending"), ("first", "ascending")])):
            report.n_unchanged = len(found)
            return report
        report.batch_id = batch_id = price_batch_id(con) + 1
        report.n_new = len(found)
        insert(con, "membership_versions", _with_batch(found, batch_id))
        sessions = days(read_sessions(con)["ts"])
        changed = sessions[_differ(before.to_pylist(), found.to_pylist(), sessions)]
        note_changes(con, ws, changed.tolist(), batch_id, report, "memberships")
        record_batch(ws, writing, "memberships", report)
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
    with ws.writing("ingest of renames") as writing:
        con = writing.con
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
        _require_own_bars(con, added, before)
        firsts = read_first_bars(con)
        changed = _move_bars(con, ws, added, batch_id, report)
        moved = moved_first_bars(firsts, read_first_bars(con))
        add_changes(con, moved, batch_id, "ages")
        note_changes(con, ws, changed, batch_id, report)
        record_batch(ws, writing, "renames", report)
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


def _require_own_bars(
    con: Connection, added: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]]
) -> None:
    """Refuse to rename a permanent id that holds bars of another ticker: which is not known."""
    for row in added:
        for other in before:
            if other["symbol"] != row["ticker"] or other["ticker"] == row["ticker"]:
                continue
            first = max(_span(row)[0], _span(other)[0])
            last = min(_span(row)[1], _span(other)[1])
            if _read_bars(con, row["ticker"], first, last):
                raise SourceError(
                    f"{row['ticker']} is the permanent id of {other['ticker']} in the stored map, "
                    f"so its bars between {first} and {last} cannot be taken for {row['symbol']}. "
                    "Start a new home with the new map. Nothing was changed."
                )


def _move_bars(
    con: Connection,
    ws: Workspace,
    added: Sequence[dict[str, Any]],
    batch_id: int,
    report: IngestReport,
) -> list[date]:
    """Give stored bars of tickers their permanent ids, all lines at once; the dates that changed.

    First every line takes out its bars, as they are stored; then each id gets those that are its.
    """
    lines = [row for row in added if row["ticker"] != row["symbol"]]
    moved = [(row, _read_bars(con, row["ticker"], *_span(row))) for row in lines]
    names = {name for row in lines for name in (row["ticker"], row["symbol"])}
    stored = {name: _read_bars(con, name, *EVER) or NO_BARS for name in sorted(names)}
    final = dict(stored)
    for row, bars in moved:
        if bars:
            final[row["ticker"]] = _without(final[row["ticker"]], bars)
    for row, bars in sorted(moved, key=lambda m: m[1].ts[0] if m[1] else 0):
        if bars:
            final[row["symbol"]] = _with(ws, final[row["symbol"]], bars, row)
            report.n_moved += len(bars.ts)
    written = [(name, _difference(stored[name], final[name])) for name in stored]
    versions = mark_late(con, to_versions([(n, v) for n, v in written if len(v.bars.ts)]))
    store_versions(con, versions, batch_id)
    gone = [(name, np.setdiff1d(stored[name].ts, final[name].ts)) for name in stored]
    deleted = _delete(con, gone, batch_id)
    return [*versions["ts"].to_pylist(), *deleted]


def _read_bars(con: Connection, symbol: str, first: date, last: date) -> Bars | None:
    rows = query(
        con,
        "SELECT symbol, ts, open, high, low, close, volume, adj_index FROM bars "
        "WHERE symbol = ? AND ts BETWEEN ? AND ? ORDER BY ts",
        [symbol, first, last],
    )
    return split_bars(rows, "adj_index").get(symbol)


def _without(bars: Bars, taken: Bars) -> Bars:
    keep = ~np.isin(bars.ts, taken.ts)
    return Bars(*(getattr(bars, name)[keep] for name in COLUMNS))


def _with(ws: Workspace, stored: Bars, given: Bars, row: dict[str, Any]) -> Bars:
    """Bars of an id with those of a ticker; one date has to belong to one of them."""
    n_both = len(np.intersect1d(stored.ts, given.ts))
    if n_both:
        raise SourceError(
            f"{row['ticker']} and {row['symbol']} both have bars on {n_both} dates between "
            f"{_span(row)[0]} and {_span(row)[1]}, so they are not one company there. Correct the "
            "dates of the rename. Nothing was changed."
        )
    added = merge_delivery(stored, given, ws.settings.ingest.tolerance).bars
    rest = _without(stored, added)
    order = np.argsort(np.concatenate([rest.ts, added.ts]), kind="stable")
    return Bars(*(np.concatenate([getattr(rest, n), getattr(added, n)])[order] for n in COLUMNS))


def _difference(before: Bars, after: Bars) -> Merged:
    """Bars of `after` that are new or have other values, as versions to store."""
    place = np.searchsorted(before.ts, after.ts)
    is_new = ~np.isin(after.ts, before.ts)
    at = np.where(is_new, 0, place)
    is_other, is_moved = is_new.copy(), is_new.copy()
    if len(before.ts):
        for name in COLUMNS[1:-1]:
            is_other |= getattr(before, name)[at] != getattr(after, name)
        is_moved = is_other | (before.index[at] != after.index)
    change = np.where(is_new, "new", np.where(is_other, "restated", "relinked"))
    bars = Bars(*(getattr(after, name)[is_moved] for name in COLUMNS))
    return Merged(bars, change[is_moved].astype(object), 0, 0, 0, 0, 0, False)


def _delete(con: Connection, gone: Sequence[tuple[str, Any]], batch_id: int) -> list[date]:
    """Versions that say: this bar is no more."""
    symbols = [name for name, ts in gone for _ in ts]
    days_gone = [np.empty(0, np.int64), *(ts for _, ts in gone)]
    dates = np.concatenate(days_gone).astype("datetime64[D]")
    rows = {
        "symbol": pa.array(symbols, pa.string()),
        "ts": pa.array(dates, pa.date32()),
        "change": pa.array(["deleted"] * len(symbols), pa.string()),
        **{name: pa.nulls(len(symbols), pa.float64()) for name in PRICES},
        "adj_index": pa.nulls(len(symbols), pa.float64()),
    }
    store_versions(con, pa.table(rows), batch_id, deleted=True)
    found: list[date] = dates.tolist()
    return found


def _with_batch(rows: pa.Table, batch_id: int) -> pa.Table:
    return rows.append_column("batch_id", pa.array(np.full(len(rows), batch_id)))
