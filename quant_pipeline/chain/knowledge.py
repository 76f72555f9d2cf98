"""What came too late: models and scores made before something they depend on was restated."""

from datetime import date
from typing import Any

import pyarrow as pa

from quant_pipeline.chain.stale import Stored, reach_of
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.stores.series import Connection, query, registered

_OUTDATED_SCORES = """
    WITH numbered AS (
        SELECT ts, sum(is_session::INT) OVER (ORDER BY ts) AS n FROM sessions),
    scored AS (
        SELECT p.*, numbered.n FROM predictions p JOIN numbered USING (ts)),
    changed AS (
        SELECT v.symbol, v.ts, v.batch_id, v.change, numbered.n
        FROM price_versions v JOIN numbered USING (ts)
        WHERE v.batch_id > (SELECT min(price_batch_id) FROM predictions)),
    flipped AS (
        SELECT ts, batch_id, n FROM session_versions JOIN numbered USING (ts)
        QUALIFY is_session <> lag(is_session, 1, false) OVER (PARTITION BY ts ORDER BY batch_id)),
    found AS (
        SELECT s.symbol, s.ts, s.task_id, s.model_id, c.ts AS changed_ts, c.batch_id, c.change
        FROM scored s JOIN changed c ON c.symbol = s.symbol AND c.batch_id > s.price_batch_id
            AND c.n BETWEEN s.n - $reach AND s.n
        UNION ALL
        SELECT s.symbol, s.ts, s.task_id, s.model_id, f.ts, f.batch_id, 'session'
        FROM scored s JOIN flipped f ON f.batch_id > s.price_batch_id
            AND f.n BETWEEN s.n - $reach AND s.n)
    FROM found QUALIFY row_number() OVER (
        PARTITION BY symbol, ts, task_id, model_id
        ORDER BY batch_id, change <> 'session', changed_ts, change) = 1
    ORDER BY ts, task_id, symbol
"""


def models_that_knew_less(ws: Workspace, stored: Stored) -> list[dict[str, Any]]:
    """Models whose training data were restated later: they stay, the next as-of knows more.

    Gives for each the first date that changed within its reach, and the batch that changed it.
    """
    reach = max(reach_of(ws).values())
    found = []
    for model in ws.meta.models():
        first = _sessions_before(stored.sessions, model.first_ts, reach)
        change = stored.feature_changes.first_after(model.price_batch_id, first, model.asof)
        if change is not None:
            found.append(
                {
                    "model_id": model.model_id, "task_id": model.task_id,
                    "asof": model.asof, "made_in_batch": model.price_batch_id,
                    "changed_ts": change[1], "batch_id": change[0],
                }
            )  # fmt: skip
    return found


def scores_that_knew_less(ws: Workspace, stored: Stored) -> list[dict[str, Any]]:
    """Stored scores that could come out different today, each with its first reason.

    `change` is what happened: a bar within the reach of the features was "restated",
    "relinked" or "deleted", or came after its session: "late" if its window was sealed by then,
    else "new"; a date became a "session"; or the "model" learned from data that were restated.
    """
    late = {m["model_id"]: m for m in models_that_knew_less(ws, stored)}
    with ws.series.reading("knowledge") as con:
        rows = _outdated_scores(ws, con)
        with registered(con, "late_models", pa.table({"model_id": sorted(late)}, _MODELS)):
            by_model = query(
                con,
                "SELECT symbol, ts, task_id, model_id FROM predictions "
                "SEMI JOIN late_models USING (model_id) ORDER BY ts, task_id, symbol",
            ).to_pylist()
    seen = {(r["symbol"], r["ts"], r["task_id"], r["model_id"]) for r in rows}
    for row in by_model:
        if (row["symbol"], row["ts"], row["task_id"], row["model_id"]) not in seen:
            why = late[row["model_id"]]
            rows.append(row | {k: why[k] for k in ("changed_ts", "batch_id")} | {"change": "model"})
    return rows


_MODELS = pa.schema([("model_id", pa.string())])


def _outdated_scores(ws: Workspace, con: Connection) -> list[dict[str, Any]]:
    reach = reach_of(ws)["features_daily"]
    rows = con.sql(_OUTDATED_SCORES, params={"reach": reach}).to_arrow_table()
    found: list[dict[str, Any]] = rows.to_pylist()
    return found


def _sessions_before(sessions: list[date], day: date, n: int) -> date:
    at = next((i for i, s in enumerate(sessions) if s >= day), len(sessions))
    return sessions[max(at - n, 0)] if sessions else day
