"""prices_daily: stored bars of a range of partitions, re-validated, described, published."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import pyarrow as pa

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import StoreError
from quant_pipeline.stores.series import query

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
    windows = [
        {"key": key, "first": w[0], "after": w[1]} for key in keys for w in [ws.grid.window(key)]
    ]
    with ws.series.reading("describing prices") as con:
        con.register("windows", pa.Table.from_pylist(windows))
        rows = query(
            con,
            "SELECT key, count(*) AS rows, count(DISTINCT symbol) AS symbols, "
            "count(DISTINCT ts) AS sessions FROM prices_daily JOIN windows "
            "ON ts >= windows.first AND ts < windows.after GROUP BY key",
        ).to_pylist()
    found = {row.pop("key"): row for row in rows}
    return {key: found.get(key, {"rows": 0, "symbols": 0, "sessions": 0}) for key in keys}


def publish_coverage(ws: Workspace) -> None:
    """Put bars per date, and whether it is a session, where readers find them."""
    rows = ws.series.query("SELECT ts, n_bars, is_session FROM sessions ORDER BY ts")
    ws.published.write("coverage", "all", rows)
