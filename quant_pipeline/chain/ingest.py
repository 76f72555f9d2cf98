"""Ingest: the only writer of price rows; one command is one batch and one transaction."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.chain.workspace import Workspace, price_batch_id
from quant_pipeline.errors import SourceError
from quant_pipeline.market.adjust import Bars, Merged, merge_delivery
from quant_pipeline.market.sessions import find_sessions
from quant_pipeline.market.validate import Validated, validate_rows
from quant_pipeline.stores.meta import utc_now
from quant_pipeline.stores.series import Connection, columns_of, insert, query, registered
from quant_pipeline.stores.sources import list_files, read_all

PRICES = ("open", "high", "low", "close", "volume")


@dataclass
class IngestReport:
    """What became of every row that was read; the counts add up to `n_read`."""

    source: str
    batch_id: int | None = None
    n_read: int = 0
    n_new: int = 0
    n_restated: int = 0
    n_unchanged: int = 0
    n_rejected: dict[str, int] = field(default_factory=dict)
    n_relinked: int = 0
    n_rebased: int = 0
    n_no_session: int = 0
    n_symbols: int = 0
    first_changed: date | None = None
    last_changed: date | None = None
    problems: list[str] = field(default_factory=list)


def ingest(
    ws: Workspace, paths: Sequence[Path], columns: Mapping[str, str], today: date
) -> IngestReport:
    """Read files, store what is new or differs, reject the rest by reason.

    A file that is no table is named in `problems` and the others are read. Ingesting the same
    rows again changes nothing and records no batch. Raises SourceError if no file can be read.
    """
    ws.require_same_grid()
    report = IngestReport(source=", ".join(str(p) for p in paths))
    frames = []
    limit = ws.settings.ingest.max_file_mib << 20
    for delivery in read_all(list_files(paths), columns, limit):
        if delivery.rows is None:
            report.problems.append(f"{delivery.path.name}: {delivery.problem}")
        else:
            frames.append(delivery.rows)
    if not frames:
        raise SourceError("\n".join(["Nothing could be read:", *report.problems]))
    rows = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
    validated = validate_rows(rows, today=today, first_date=ws.grid.start)
    report.n_read = len(rows)
    report.n_rejected = {k: n for k, n in validated.counts.items() if n}
    with ws.series.writing("ingest") as con:
        _store(con, ws, validated, report)
    return report


def _store(con: Connection, ws: Workspace, validated: Validated, report: IngestReport) -> None:
    prices = validated.prices
    report.n_symbols = len(pc.unique(prices["symbol"]))
    changed = _merge(con, prices, ws.settings.ingest.tolerance, report)
    if not len(changed):
        report.n_no_session = _count_outside_sessions(con, prices)
        return
    report.batch_id = batch_id = price_batch_id(con) + 1
    changed = changed.append_column("batch_id", pa.array(np.full(len(changed), batch_id)))
    insert(con, "price_versions", changed)
    flipped = _update_sessions(con, ws)
    days = [*changed["ts"].to_pylist(), *flipped]
    report.first_changed, report.last_changed = min(days), max(days)
    report.n_no_session = _count_outside_sessions(con, prices)
    if len(validated.rejected):
        _store_rejected(con, validated.rejected, batch_id, report.source)
    counts = {k: v for k, v in vars(report).items() if k.startswith("n_")}
    con.execute(
        "INSERT INTO price_batches VALUES (?, ?, ?, ?, ?, ?)",
        [batch_id, utc_now(), report.source, report.first_changed, report.last_changed,
         json.dumps(counts)],
    )  # fmt: skip


def _merge(con: Connection, prices: pa.Table, tolerance: float, report: IngestReport) -> pa.Table:
    """Versions to add, as a table without batch_id; counts go into the report."""
    stored = _stored_bars(con, prices)
    pieces: list[tuple[str, Merged]] = []
    for symbol, given in _split(prices, "adj_close").items():
        merged = merge_delivery(stored.get(symbol, _NO_BARS), given, tolerance)
        report.n_new += merged.n_new
        report.n_restated += merged.n_restated
        report.n_relinked += merged.n_relinked
        report.n_unchanged += merged.n_unchanged
        report.n_rebased += merged.n_rebased
        if len(merged.bars.ts):
            pieces.append((symbol, merged))
    ts = np.concatenate([m.bars.ts for _, m in pieces] or [np.empty(0, np.int64)])
    columns = {
        "symbol": pa.array(
            np.repeat(
                np.array([s for s, _ in pieces], object), [len(m.bars.ts) for _, m in pieces]
            ),
            pa.string(),
        ),
        "ts": pa.array(ts.astype(np.int32), pa.int32()).cast(pa.date32()),
    }
    for name in (*PRICES, "index"):
        values = [getattr(m.bars, name) for _, m in pieces] or [np.empty(0)]
        columns["adj_index" if name == "index" else name] = pa.array(np.concatenate(values))
    return pa.table(columns)


_EMPTY = np.empty(0)
_NO_BARS = Bars(np.empty(0, np.int64), _EMPTY, _EMPTY, _EMPTY, _EMPTY, _EMPTY, _EMPTY)


def _stored_bars(con: Connection, prices: pa.Table) -> dict[str, Bars]:
    """Stored bars of delivered symbols from their first delivered date on, and the one before."""
    with registered(con, "spans", prices.group_by("symbol").aggregate([("ts", "min")])):
        table = query(
            con,
            "WITH mine AS (SELECT b.*, s.ts_min FROM bars b JOIN spans s USING (symbol)) "
            "SELECT symbol, ts, open, high, low, close, volume, adj_index FROM mine "
            "WHERE ts >= ts_min UNION ALL "
            "SELECT symbol, ts, open, high, low, close, volume, adj_index FROM mine "
            "WHERE ts < ts_min "
            "QUALIFY row_number() OVER (PARTITION BY symbol ORDER BY ts DESC) = 1 "
            "ORDER BY symbol, ts",
        )
    return _split(table, "adj_index")


def _split(table: pa.Table, index_column: str) -> dict[str, Bars]:
    """Bars by symbol from a table sorted by symbol, ts."""
    if not len(table):
        return {}
    symbol = table["symbol"].to_numpy()
    day = table["ts"].to_numpy().astype("datetime64[D]").astype(np.int64)
    cuts = [0, *(np.flatnonzero(symbol[1:] != symbol[:-1]) + 1).tolist(), len(symbol)]
    columns = [table[c].to_numpy().astype(np.float64) for c in (*PRICES, index_column)]
    return {symbol[a]: Bars(day[a:b], *(c[a:b] for c in columns)) for a, b in pairwise(cuts)}


def _update_sessions(con: Connection, ws: Workspace) -> list[date]:
    """Decide anew which dates are sessions; gives known dates whose answer changed."""
    before = dict(con.execute("SELECT ts, is_session FROM sessions").fetchall())
    bars = query(con, "SELECT ts, symbol FROM bars")
    days, day = np.unique(bars["ts"].to_numpy(), return_inverse=True)
    symbol = bars["symbol"].combine_chunks().dictionary_encode().indices.to_numpy()
    spec = ws.settings.sessions
    is_session = find_sessions(
        day.astype(np.int64),
        symbol.astype(np.int64),
        min_share=spec.min_share,
        active_dates=spec.active_dates,
    )
    con.execute("DELETE FROM sessions")
    insert(con, "sessions", pa.table({
        "ts": pa.array(days.astype("datetime64[D]"), pa.date32()),
        "n_bars": pa.array(np.bincount(day, minlength=len(days)).astype(np.int64)),
        "is_session": pa.array(is_session),
    }))  # fmt: skip
    after = zip(days.astype("datetime64[D]").tolist(), is_session.tolist(), strict=True)
    return [d for d, answer in after if before.get(d, answer) != answer]


def _count_outside_sessions(con: Connection, prices: pa.Table) -> int:
    """Delivered bars on dates that are no session: stored, but not part of prices_daily."""
    rows = con.execute("SELECT ts FROM sessions WHERE NOT is_session").fetchall()
    closed = np.array([d for (d,) in rows], "datetime64[D]")
    return int(np.isin(prices["ts"].to_numpy().astype("datetime64[D]"), closed).sum())


def _store_rejected(con: Connection, rejected: pd.DataFrame, batch_id: int, source: str) -> None:
    names = [c for c in columns_of(con, "prices_rejected") if c not in ("batch_id", "source")]
    columns = {
        c: pa.array([None if pd.isna(v) else str(v) for v in rejected[c]], pa.string())
        if c in rejected
        else pa.nulls(len(rejected), pa.string())
        for c in names
    }
    columns["batch_id"] = pa.array(np.full(len(rejected), batch_id))
    columns["source"] = pa.array([source] * len(rejected), pa.string())
    insert(con, "prices_rejected", pa.table(columns))
