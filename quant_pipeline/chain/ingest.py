"""Ingest: the only writer of price rows; one command is one batch and one transaction."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.chain.lists import read_renames
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.seal import frozen_range
from quant_pipeline.chain.sessions import Decision, decide_sessions, store_sessions
from quant_pipeline.chain.slices import record_stored
from quant_pipeline.chain.workspace import Workspace, Writing, price_batch_id
from quant_pipeline.errors import SourceError
from quant_pipeline.market.adjust import Bars, Merged, merge_delivery
from quant_pipeline.market.validate import PRICE_SCHEMA, Validated, validate_rows
from quant_pipeline.stores.meta import utc_now
from quant_pipeline.stores.series import (
    Connection,
    insert,
    query,
    read_first_bars,
    registered,
)
from quant_pipeline.stores.sources import Reading, list_files, read_all

PRICES = ("open", "high", "low", "close", "volume")
SHOWN_RESTATED = 10


@dataclass
class IngestReport:
    """What became of every row that was read.

    n_read = n_new + n_restated + n_unchanged + all of n_rejected. Apart from that, n_late of the
    new ones came after their window was sealed, n_rebased of the unchanged ones are on another
    scale, and n_tied_by_close symbols came with adj_close but repeat no stored bar, so that a
    dividend or split in between counts as a return. n_relinked stored bars got another index
    because of a restated one before them, and n_moved ones another symbol by a list of renames.
    """

    source: str
    batch_id: int | None = None
    n_read: int = 0
    n_new: int = 0
    n_restated: int = 0
    n_unchanged: int = 0
    n_rejected: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    n_late: int = 0
    n_relinked: int = 0
    n_rebased: int = 0
    n_tied_by_close: int = 0
    n_moved: int = 0
    n_symbols: int = 0
    n_new_sessions: int = 0
    first_changed: date | None = None
    last_changed: date | None = None
    newest_session: date | None = None
    missed_sessions: list[date] = field(default_factory=list)
    restated: list[dict[str, Any]] = field(default_factory=list)
    changed_keys: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def ingest(ws: Workspace, paths: Sequence[Path], reading: Reading, today: date) -> IngestReport:
    """Read files, store what is new or differs, reject the rest by reason.

    A file that is no table is named in `problems` and the others are read. Ingesting the same
    rows again changes nothing and records no batch. Raises SourceError if no file can be read.
    """
    ws.require_same_grid(keep=False)
    report = IngestReport(source=", ".join(str(p) for p in paths))
    rows, names = _read(paths, reading, report)
    renames = read_renames(ws)
    validated = validate_rows(
        rows, today=today, first_date=ws.grid.start, renames=renames.map,
        duplicates=ws.settings.ingest.duplicates,
    )  # fmt: skip
    del rows
    report.n_read = validated.n_read
    ws.require_same_grid()
    with ws.writing("ingest") as writing:
        renames.require_current(writing.con)
        _store(writing.con, ws, validated, names, report)
        if report.batch_id is not None:
            record_batch(ws, writing, "prices", report)
    return report


def reading_of(ws: Workspace, **given: Any) -> Reading:
    """How files are read: what a command says, else quant.toml's [ingest]."""
    spec = ws.settings.ingest
    columns = {**spec.columns, **given.pop("columns", {})}
    names = ("symbol_from_name", "date_format", "decimal", "header")
    chosen = {name: given.get(name) or getattr(spec, name) for name in names}
    return Reading(columns=columns, max_bytes=spec.max_file_mib << 20, **chosen)


def pull_sources(ws: Workspace) -> IngestReport | None:
    """Ingest the files and folders that quant.toml names (ingest.sources), None if it has none."""
    paths = [ws.home.root / source for source in ws.settings.ingest.sources]
    return ingest(ws, paths, reading_of(ws), ws.today()) if paths else None


def _read(
    paths: Sequence[Path], reading: Reading, report: IngestReport
) -> tuple[pd.DataFrame, list[str]]:
    """Rows of all files, numbered by file, and the files' names."""
    frames: list[pd.DataFrame] = []
    names: list[str] = []
    for delivery in read_all(list_files(paths), reading):
        if delivery.rows is None:
            report.problems.append(f"{delivery.path.name}: {delivery.problem}")
            continue
        if delivery.note:
            report.notes.append(f"{delivery.path.name}: {delivery.note}")
        delivery.rows["file"] = np.full(len(delivery.rows), len(names), np.int32)
        frames.append(delivery.rows)
        names.append(str(delivery.path))
    if not frames:
        raise SourceError("\n".join(["Nothing could be read:", *report.problems]))
    return (pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]), names


def _store(
    con: Connection, ws: Workspace, validated: Validated, names: list[str], report: IngestReport
) -> None:
    batch_id = price_batch_id(con) + 1
    prices = validated.prices
    report.n_symbols = len(pc.unique(prices["symbol"]))
    report.n_rejected = {k: n for k, n in validated.counts.items() if n}
    report.examples = _examples(validated.rejected)
    n_stored = _store_rejected(con, validated.rejected, names, batch_id)
    if len(prices):
        decision = decide_sessions(con, ws, [prices])
        changed = mark_late(con, _merge(con, ws, prices, report), decision)
        _count_outside_sessions(prices, changed, decision, report)
        if not len(changed) and not decision.is_changed.any() and not n_stored:
            return
        report.batch_id = batch_id
        before = read_first_bars(con)
        store_sessions(con, decision, batch_id)
        store_versions(con, changed, batch_id)
        sessions = decision.ts[decision.is_session]
        report.newest_session = sessions[-1].item() if len(sessions) else None
        report.n_new_sessions = int((decision.is_flipped & decision.is_session).sum())
        report.n_late = pc.sum(pc.equal(changed["change"], "late")).as_py() or 0
        was_session = decision.is_session ^ decision.is_flipped
        shown = decision.ts[decision.is_session | was_session]
        dates = np.intersect1d(days(changed["ts"]), shown)
        flipped = decision.ts[decision.is_flipped]
        note_changes(con, ws, [*dates.tolist(), *flipped.tolist()], batch_id, report)
        add_changes(con, moved_first_bars(before, read_first_bars(con)), batch_id, "ages")
        report.missed_sessions = _not_missed_before(con, decision.missed.tolist())
        add_changes(con, report.missed_sessions, batch_id, "missed")
    elif n_stored:
        report.batch_id = batch_id


def _examples(rejected: pd.DataFrame) -> dict[str, str]:
    """The first row of each reason, as it was delivered."""
    first = rejected.drop_duplicates("reason")
    found = {}
    for row in first.to_dict("records"):
        values = [str(row[name])[:40] for name in PRICE_SCHEMA.names if not pd.isna(row[name])]
        found[str(row["reason"])] = ", ".join(values)[:120]
    return found


def moved_first_bars(before: dict[str, date], now: dict[str, date]) -> list[date]:
    """Where symbols began before: their age counts from another session now."""
    return [first for symbol, first in before.items() if now.get(symbol) != first]


def _not_missed_before(con: Connection, dates: Sequence[date]) -> list[date]:
    """Dates that would be sessions, had their window not been sealed, told only once."""
    rows = con.execute("SELECT ts FROM price_changes WHERE kind = 'missed'").fetchall()
    known = {ts for (ts,) in rows}
    return [ts for ts in dates if ts not in known]


def _count_outside_sessions(
    prices: pa.Table, changed: pa.Table, decision: Decision, report: IngestReport
) -> None:
    """Count delivered bars on dates that are no session as rejected, and not as anything else."""
    is_outside = ~decision.holds(days(prices["ts"]))
    if not is_outside.any():
        return
    outside = prices.filter(pa.array(is_outside)).select(["symbol", "ts"])
    found = outside.join(changed.select(["symbol", "ts", "change"]), ["symbol", "ts"])
    counts = Counter(found["change"].to_pylist())
    n_new, n_restated = counts["new"] + counts["late"], counts["restated"]
    report.n_new -= n_new
    report.n_restated -= n_restated
    report.n_unchanged -= len(outside) - n_new - n_restated
    report.n_rejected["no_session"] = len(outside)


def mark_late(con: Connection, changed: pa.Table, decision: Decision | None = None) -> pa.Table:
    """Versions to add, new bars of sessions in sealed windows being "late"."""
    frozen = frozen_range(con)
    if frozen is None or not len(changed):
        return changed
    ts = days(changed["ts"])
    is_late = (ts >= np.datetime64(frozen[0])) & (ts <= np.datetime64(frozen[1]))
    if decision is not None:
        is_late &= decision.holds(ts)
    is_late &= changed["change"].to_numpy(zero_copy_only=False) == "new"
    change = pc.if_else(pa.array(is_late), "late", changed["change"])
    return changed.set_column(changed.column_names.index("change"), "change", change)


def note_changes(
    con: Connection,
    ws: Workspace,
    changed: Sequence[date],
    batch_id: int,
    report: IngestReport,
    kind: str = "prices",
) -> None:
    """Store which dates a batch changed: what was made from them before is stale."""
    found = sorted(set(changed))
    if found:
        report.first_changed, report.last_changed = found[0], found[-1]
        report.changed_keys = list(dict.fromkeys(ws.grid.key(d) for d in found))
        add_changes(con, found, batch_id, kind)
    rows = query(
        con,
        "SELECT symbol, ts, old_close, close, old_volume, volume, index_change "
        "FROM prices_restated WHERE batch_id = ? AND change = 'restated' "
        f"ORDER BY symbol, ts LIMIT {SHOWN_RESTATED}",
        [batch_id],
    )
    report.restated = rows.to_pylist()


def add_changes(con: Connection, dates: Sequence[date], batch_id: int, kind: str) -> None:
    """Store dates that a batch changed.

    `kind` is "prices" (or sessions), "memberships", "ages" (where symbols began before), or
    "missed" (a session that a sealed window never had).
    """
    found = sorted(set(dates))
    insert(con, "price_changes", pa.table({
        "batch_id": pa.array(np.full(len(found), batch_id)), "ts": pa.array(found, pa.date32()),
        "kind": pa.array([kind] * len(found), pa.string()),
    }))  # fmt: skip


def record_batch(ws: Workspace, writing: Writing, kind: str, report: IngestReport) -> None:
    """Note a batch with its counts, once all of its rows are there, also in the registry."""
    counts = {k: v for k, v in vars(report).items() if k.startswith("n_")}
    writing.con.execute(
        "INSERT INTO price_batches VALUES (?, ?, ?, ?, ?, ?, ?)",
        [report.batch_id, utc_now(), kind, report.source, report.first_changed,
         report.last_changed, json.dumps(counts)],
    )  # fmt: skip
    record_stored(ws, writing, "price_batches", str(report.batch_id))


def _store_rejected(
    con: Connection, rejected: pd.DataFrame, names: list[str], batch_id: int
) -> int:
    """Store rejected rows, but for those that an earlier delivery of the same text left."""
    if not len(rejected):
        return 0
    text = [*PRICE_SCHEMA.names, "reason"]
    columns = {
        c: pa.array([None if pd.isna(v) else str(v) for v in rejected[c]], pa.string())
        for c in text
    }
    files = rejected["file"].to_numpy()
    columns["source"] = pa.array([names[i] if i >= 0 else "" for i in files], pa.string())
    columns["batch_id"] = pa.array(np.full(len(rejected), batch_id))
    same = " AND ".join(f"o.{c} IS NOT DISTINCT FROM n.{c}" for c in text)
    with registered(con, "all_rejected", pa.table(columns)):
        new = query(
            con,
            f"SELECT * FROM all_rejected n WHERE NOT EXISTS (FROM rows_rejected o WHERE {same})",
        )
    insert(con, "rows_rejected", new)
    return len(new)


# --- Versions


def _merge(con: Connection, ws: Workspace, prices: pa.Table, report: IngestReport) -> pa.Table:
    """Versions to add, as a table without batch_id; counts go into the report."""
    stored = _stored_bars(con, prices)
    pieces: list[tuple[str, Merged]] = []
    for symbol, given in split_bars(prices, "adj_close").items():
        merged = merge_delivery(stored.get(symbol, NO_BARS), given, ws.settings.ingest.tolerance)
        report.n_new += merged.n_new
        report.n_restated += merged.n_restated
        report.n_relinked += merged.n_relinked
        report.n_unchanged += merged.n_unchanged
        report.n_rebased += merged.n_rebased
        report.n_tied_by_close += merged.is_tied_by_close
        if len(merged.bars.ts):
            pieces.append((symbol, merged))
    return to_versions(pieces)


def to_versions(pieces: Sequence[tuple[str, Merged]]) -> pa.Table:
    """Bars to store of several symbols as one table (symbol, ts, change, prices, adj_index)."""
    sizes = [len(m.bars.ts) for _, m in pieces]
    codes = np.repeat(np.arange(len(pieces), dtype=np.int32), sizes)
    names = pa.array([s for s, _ in pieces], pa.string())
    ts = np.concatenate([m.bars.ts for _, m in pieces] or [np.empty(0, np.int64)])
    change = np.concatenate([m.change for _, m in pieces] or [np.empty(0, object)])
    columns = {
        "symbol": pa.DictionaryArray.from_arrays(pa.array(codes), names).cast(pa.string()),
        "ts": pa.array(ts.astype(np.int32), pa.int32()).cast(pa.date32()),
        "change": pa.array(change, pa.string()),
    }
    for name in (*PRICES, "index"):
        values = [getattr(m.bars, name) for _, m in pieces] or [np.empty(0)]
        columns["adj_index" if name == "index" else name] = pa.array(np.concatenate(values))
    return pa.table(columns)


def store_versions(
    con: Connection, rows: pa.Table, batch_id: int, *, deleted: bool = False
) -> None:
    """Append versions, and note which ones they take the place of."""
    if not len(rows):
        return
    rows = rows.append_column("batch_id", pa.array(np.full(len(rows), batch_id)))
    rows = rows.append_column("deleted", pa.array(np.full(len(rows), deleted)))
    span = pc.min_max(rows["ts"]).as_py()
    with registered(con, "new_versions", rows):
        con.execute(
            "INSERT INTO price_superseded "
            "SELECT v.symbol, v.ts, v.batch_id, ? FROM price_versions v "
            "SEMI JOIN new_versions USING (symbol, ts) "
            "ANTI JOIN price_superseded s USING (symbol, ts, batch_id) "
            "WHERE v.ts BETWEEN ? AND ?",
            [batch_id, span["min"], span["max"]],
        )
    insert(con, "price_versions", rows)


_EMPTY = np.empty(0)
NO_BARS = Bars(np.empty(0, np.int64), _EMPTY, _EMPTY, _EMPTY, _EMPTY, _EMPTY, _EMPTY)


def _stored_bars(con: Connection, prices: pa.Table) -> dict[str, Bars]:
    """Stored bars of delivered symbols from their first delivered date on, and the one before."""
    with registered(con, "spans", prices.group_by("symbol").aggregate([("ts", "min")])):
        table = query(
            con,
            "WITH before AS (SELECT b.symbol, max(b.ts) AS ts FROM bars b "
            "JOIN spans s USING (symbol) WHERE b.ts < s.ts_min GROUP BY b.symbol) "
            "SELECT b.symbol, b.ts, open, high, low, close, volume, adj_index FROM bars b "
            "JOIN spans s USING (symbol) LEFT JOIN before ON before.symbol = b.symbol "
            "WHERE b.ts >= coalesce(before.ts, s.ts_min) ORDER BY b.symbol, b.ts",
        )
    return split_bars(table, "adj_index")


def split_bars(table: pa.Table, index_column: str) -> dict[str, Bars]:
    """Bars by symbol from a table sorted by symbol, ts."""
    if not len(table):
        return {}
    symbol = table["symbol"].combine_chunks().dictionary_encode()
    codes = symbol.indices.to_numpy()
    names = symbol.dictionary.to_pylist()
    day = days(table["ts"]).astype(np.int64)
    cuts = [0, *(np.flatnonzero(codes[1:] != codes[:-1]) + 1).tolist(), len(codes)]
    columns = [table[c].to_numpy().astype(np.float64) for c in (*PRICES, index_column)]
    return {names[codes[a]]: Bars(day[a:b], *(c[a:b] for c in columns)) for a, b in pairwise(cuts)}
