"""prices_daily: stored bars of a range of partitions, re-validated, described, published."""

from collections.abc import Sequence
from datetime import date
from typing import Any

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import StoreError
from quant_pipeline.stores.series import Connection, fetch_row

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
    with ws.series.reading("describing prices") as con:
        return {key: _describe(con, *ws.grid.window(key)) for key in keys}


def _describe(con: Connection, start: date, end: date) -> dict[str, Any]:
    row = fetch_row(
        con,
        "SELECT count(*), count(DISTINCT symbol), count(DISTINCT ts) FROM prices_daily "
        "WHERE ts >= ? AND ts < ?",
        [start, end],
    )
    return dict(zip(("rows", "symbols", "sessions"), row, strict=True))


def publish_coverage(ws: Workspace, keys: Sequence[str]) -> None:
    """Put bars per session, and whether it is one, where readers find them."""
    for key in keys:
        rows = ws.series.query(
            "SELECT ts, n_bars, is_session FROM sessions WHERE ts >= ? AND ts < ? ORDER BY ts",
            list(ws.grid.window(key)),
        )
        if len(rows):
            ws.published.write("coverage", key, rows)
