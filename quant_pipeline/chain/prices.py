"""prices_daily: stored bars of a range of partitions, re-validated, described, published."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import pyarrow as pa

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import StoreError
from quant_pipeline.stores.series import fetch_row, query, read_sessions, registered

_IMPOSSIBLE = """
    SELECT symbol, ts FROM prices_daily WHERE ts >= ? AND ts < ? AND NOT (
        isfinite(open) AND isfinite(high) AND isfinite(low) AND isfinite(close)
        AND isfinite(adj_index) AND isfinite(volume) AND adj_index > 0 AND low > 0 AND volume >= 0
        AND high >= greatest(open, close) * (1 - 1e-6) AND low <= least(open, close) * (1 + 1e-6))
    ORDER BY symbol, ts
"""


def revalidate(ws: Workspace, start: date, end: date) -> None:
    """Raise StoreError if a stored bar of ``[start, end)`` is one that ingest would refuse."""
    bad = ws.series.query(_IMPOSSIBLE, [start, end]).to_pylist()
    if bad:
        first = bad[0]
        raise StoreError(
            f"{len(bad)} stored bars between {start} and {end} are impossible, first "
            f"{first['symbol']} on {first['ts']}. Ingest the right ones with `quant ingest PATH`."
        )


def describe_prices(ws: Workspace, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Bars, symbols and sessions of each partition."""
    wanted = set(keys)
    with ws.series.reading("describing prices") as con:
        sessions = read_sessions(con)["ts"].to_pylist()
        of_key = [{"ts": ts, "key": key} for ts in sessions if (key := ws.grid.key(ts)) in wanted]
        with registered(con, "of_key", pa.Table.from_pylist(of_key, _OF_KEY)):
            rows = query(
                con,
                "SELECT key, count(*) AS rows, count(DISTINCT symbol) AS symbols, "
                "count(DISTINCT ts) AS sessions FROM bars JOIN of_key USING (ts) GROUP BY key",
            ).to_pylist()
    found = {row.pop("key"): row for row in rows}
    return {key: found.get(key, {"rows": 0, "symbols": 0, "sessions": 0}) for key in keys}


_OF_KEY = pa.schema([("ts", pa.date32()), ("key", pa.string())])


def publish_prices(ws: Workspace) -> None:
    """Put coverage by session and symbol, rejects and restatements where readers find them."""
    with ws.series.reading("publishing") as con:
        tables = {name: query(con, sql) for name, sql in _PUBLISHED.items()}
    for name, rows in tables.items():
        ws.published.write(name, "all", rows)


_PUBLISHED = {
    "coverage": "SELECT ts, n_bars, is_session FROM sessions ORDER BY ts",
    "coverage_by_symbol": "SELECT symbol, min(ts) AS first_ts, max(ts) AS last_ts, "
    "count(*) AS n_bars FROM prices_daily GROUP BY symbol ORDER BY symbol",
    "changes": "SELECT * FROM price_changes ORDER BY kind, ts, batch_id",
    "rejected": "SELECT * FROM prices_rejected ORDER BY batch_id, source, symbol, ts, reason",
    "restated": "SELECT * FROM prices_restated ORDER BY batch_id, symbol, ts",
}


def count_prices(ws: Workspace) -> dict[str, Any]:
    """Bars, symbols, batches, rejected rows by reason, restated bars, late bars."""
    with ws.series.reading("status") as con:
        bars, symbols = fetch_row(con, "SELECT count(*), count(DISTINCT symbol) FROM prices_daily")
        batches, newest = fetch_row(con, "SELECT count(*), max(batch_id) FROM price_batches")
        rejected = con.execute(
            "SELECT reason, count(*) FROM prices_rejected GROUP BY reason ORDER BY reason"
        ).fetchall()
        changes = con.execute(
            "SELECT change, count(*) FROM prices_restated GROUP BY change"
        ).fetchall()
    by_change = dict(changes)
    return {
        "symbols": symbols, "bars": bars, "batches": batches, "newest_batch": newest,
        "rejected": dict(rejected), "restated": by_change.get("restated", 0),
        "late": by_change.get("late", 0),
    }  # fmt: skip


def read_history(ws: Workspace, symbol: str, day: date) -> list[dict[str, Any]]:
    """Every version of one bar, oldest first, with its batch and what took its place."""
    rows = ws.series.query(
        "SELECT v.symbol, v.ts, v.batch_id, b.ingested_at, v.change, v.open, v.high, v.low, "
        "v.close, v.volume, v.adj_index, s.by_batch_id AS superseded_by, b.source "
        "FROM price_versions v JOIN price_batches b USING (batch_id) "
        "LEFT JOIN price_superseded s USING (symbol, ts, batch_id) "
        "WHERE v.symbol = ? AND v.ts = ? ORDER BY v.batch_id",
        [symbol, day],
    )
    found: list[dict[str, Any]] = rows.to_pylist()
    return found


def read_restated(
    ws: Workspace, first: date | None, last: date | None, symbol: str | None
) -> list[dict[str, Any]]:
    """Bars that changed after they were stored, or came after their window was sealed."""
    rows = ws.series.query(
        "SELECT r.*, b.ingested_at FROM prices_restated r JOIN price_batches b USING (batch_id) "
        "WHERE r.change <> 'relinked' AND r.ts >= coalesce(?, DATE '0001-01-01') "
        "AND r.ts <= coalesce(?, DATE '9999-12-31') AND r.symbol = coalesce(?, r.symbol) "
        "ORDER BY r.batch_id, r.symbol, r.ts",
        [first, last, symbol],
    )
    found: list[dict[str, Any]] = rows.to_pylist()
    return found
