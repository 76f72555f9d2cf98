"""features_daily and labels: rows of a range of partitions, computed from stored bars."""

from datetime import date

import numpy as np
import pyarrow as pa

from quant_pipeline.chain.panel import Panel, read_panel
from quant_pipeline.chain.workspace import Workspace, price_batch_id
from quant_pipeline.market.features import compute_matrix, look_back
from quant_pipeline.market.labels import make_labels
from quant_pipeline.market.universe import find_members


def features_between(ws: Workspace, first: date, before: date) -> pa.Table:
    """Features of every bar on a session in ``[first, before)``, known at its close.

    Columns symbol, ts, the features (float32) and in_universe, sorted by ts, symbol.
    """
    features = ws.features
    with ws.series.reading("features") as con:
        needed = max(look_back(features), ws.settings.universe.value_sessions)
        panel, batch_id = read_panel(con, first, before, needed), price_batch_id(con)
    values = compute_matrix(panel.symbol, panel.session, panel.columns, features)
    keep = panel.sessions[panel.session] >= np.datetime64(first)
    members = find_members(
        panel.symbol,
        panel.session,
        panel.traded_value,
        panel.first_session,
        ws.settings.universe,
    )[keep]
    order = np.lexsort((panel.symbol[keep], panel.session[keep]))
    columns = _keys(panel, np.flatnonzero(keep)[order])
    kept = values[keep][order]
    for j, feature in enumerate(features):
        columns[feature.name] = pa.array(kept[:, j], pa.float32())
    columns["in_universe"] = pa.array(members[order])
    return _made_from(batch_id, pa.table(columns))


def _keys(panel: Panel, rows: np.ndarray) -> dict[str, pa.Array]:
    return {
        "symbol": pa.array(panel.symbols[panel.symbol[rows]], pa.string()),
        "ts": pa.array(panel.sessions[panel.session[rows]], pa.date32()),
    }


def labels_between(
    ws: Workspace, first: date, before: date
) -> tuple[pa.Table, dict[str, dict[str, int]]]:
    """Labels of all tasks that became known in ``[first, before)``, and what was dropped why.

    Columns symbol, ts, task_id, label, fwd_return, entry_ts, exit_ts, known_at; sorted by
    task_id, ts, symbol.
    """
    span = max(task.label_span for task in ws.settings.tasks)
    with ws.series.reading("labels") as con:
        panel, batch_id = read_panel(con, first, before, span), price_batch_id(con)
    start = int(panel.session.min()) if len(panel.session) else 0
    close = np.full((len(panel.sessions) - start, len(panel.symbols)), np.nan)
    close[panel.session - start, panel.symbol] = panel.columns["close"]
    tables, dropped = [], {}
    for task in sorted(ws.settings.tasks, key=lambda t: t.task_id):
        found = make_labels(
            close,
            panel.sessions[start:],
            task,
            np.datetime64(first),
            np.datetime64(before),
            ws.settings.label.missing_exit,
        )
        dropped[task.task_id] = found.n_dropped
        tables.append(
            pa.table(
                {
                    "symbol": pa.array(panel.symbols[found.symbol], pa.string()),
                    "ts": pa.array(found.ts, pa.date32()),
                    "task_id": pa.array([task.task_id] * len(found.ts), pa.string()),
                    "label": pa.array(found.label),
                    "fwd_return": pa.array(found.fwd_return),
                    "entry_ts": pa.array(found.entry_ts, pa.date32()),
                    "exit_ts": pa.array(found.exit_ts, pa.date32()),
                    "known_at": pa.array(found.known_at, pa.date32()),
                }
            )
        )
    return _made_from(batch_id, pa.concat_tables(tables)), dropped


def _made_from(batch_id: int, rows: pa.Table) -> pa.Table:
    """Rows that know their newest price batch: an ingest may come before they are stored."""
    return rows.replace_schema_metadata({"price_batch_id": str(batch_id)})
