"""Prices: that adjustment and sessions up to a date come out alike, whatever is delivered later."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from quant_pipeline.chain.ingest import ingest
from quant_pipeline.chain.proofs.result import Finding, Outcome, Proof, first_difference
from quant_pipeline.chain.scratch import (
    DAYS_AFTER,
    Present,
    empty_home,
    read_copied,
    with_another_future,
)
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.stores.series import query, read_sessions
from quant_pipeline.stores.sources import Reading

# As many sessions before the cut are delivered again: adjustment is a running product.
N_SESSIONS = 120
_KNOWN = {
    "price_versions": "SELECT symbol, ts, open, high, low, close, adj_index, volume FROM bars "
    "WHERE ts <= ? ORDER BY ts, symbol",
    "session_versions": "SELECT ts, n_bars, is_session FROM sessions WHERE ts <= ? ORDER BY ts",
}


def prove_prices(ws: Workspace, present: Present, rng: np.random.Generator) -> Proof:
    """Deliver known bars once alone, once with a made-up future, and compare what is stored.

    The real ingest is given the stored bars as a vendor would deliver them. Bars, their adjusted
    index and which dates are sessions have to come out alike up to the cut.
    """
    with ws.series.reading("an audit") as con:
        sessions = read_sessions(con, None, present.cut, present.batch_id)["ts"].to_pylist()
        first = sessions[max(len(sessions) - N_SESSIONS, 0)]
        tables = read_copied(con, Present(present.batch_id, present.cut, first))
    near = pc.greater_equal(tables["bars"]["ts"], pa.scalar(first, pa.date32()))
    tables["bars"] = tables["bars"].filter(near)
    known = tables["bars"].filter(_until(tables["bars"]["ts"], present.cut))
    both, _ = with_another_future(tables, present, rng)
    alone, followed = (_ingested(ws, bars, present.cut) for bars in (known, both["bars"]))
    finding: Finding | None = None
    for table in _KNOWN:
        keys = ("symbol", "ts") if table == "price_versions" else ("ts",)
        finding = finding or first_difference("prices", table, alone[table], followed[table], keys)
    n_later = len(both["bars"]) - len(known)
    words = f"{len(known):,} bars stored alike with and without {n_later:,} made-up later ones"
    numbers = {"bars": len(known), "later": n_later}
    outcome: Outcome = "fails" if finding else "holds"
    return Proof("prices", outcome, words, present.cut, "", finding, numbers)


def _until(ts: pa.ChunkedArray, cut: date) -> pa.ChunkedArray:
    return pc.less_equal(ts, pa.scalar(cut, pa.date32()))


def _ingested(ws: Workspace, bars: pa.Table, cut: date) -> dict[str, pa.Table]:
    """What the store knows by the cut, once bars were delivered to a home that has none."""
    with empty_home(ws, ws.settings) as made:
        path = Path(made.home.root) / "delivered.parquet"
        names = ["adj_close" if name == "adj_index" else name for name in bars.column_names]
        pq.write_table(bars.rename_columns(names), path)
        ingest(made, [path], Reading(), cut + timedelta(days=DAYS_AFTER + 1))
        with made.series.reading("an audit") as con:
            return {table: query(con, sql, [cut]) for table, sql in _KNOWN.items()}
