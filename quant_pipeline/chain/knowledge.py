"""What came too late: models and scores made before something they depend on was restated."""

from bisect import bisect_left
from typing import Any

import pyarrow as pa

from quant_pipeline.chain.stale import Stored, reach_of_features
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.stores.series import Connection, query, registered

# Changed bars of a symbol are joined as stretches: a re-linked history is one of them.
_OUTDATED_SCORES = """
    WITH numbered AS (
        SELECT ts, sum(is_session::INT) OVER (ORDER BY ts) AS n FROM sessions),
    scored AS (
        SELECT p.symbol, p.ts, p.task_id, p.model_id, p.price_batch_id, numbered.n
        FROM predictions p JOIN numbered USING (ts)),
    scored_by AS (
        SELECT b.batch_id, (SELECT max(ts) FROM predictions p WHERE p.price_batch_id < b.batch_id)
            AS last_ts FROM price_batches b),
    changed AS (
        SELECT v.symbol, v.batch_id, v.change, numbered.n, min(v.ts) AS ts
        FROM price_versions v JOIN numbered USING (ts) JOIN scored_by USING (batch_id)
        WHERE v.ts <= scored_by.last_ts GROUP BY ALL),
    islands AS (
        SELECT symbol, batch_id, change, min(ts) AS ts, min(n) AS first_n, max(n) AS last_n
        FROM (SELECT *, n - row_number() OVER (PARTITION BY symbol, batch_id, change ORDER BY n)
            AS island FROM changed)
        GROUP BY symbol, batch_id, change, island),
    flipped AS (
        SELECT ts, batch_id, n FROM session_versions JOIN numbered USING (ts)
        QUALIFY is_session <> lag(is_session, 1, false) OVER (PARTITION BY ts ORDER BY batch_id)),
    missed AS (
        SELECT c.ts, c.batch_id, numbered.n FROM price_changes c JOIN numbered USING (ts)
        WHERE c.kind = 'missed'),
    found AS (
        SELECT s.*, c.ts AS changed_ts, c.batch_id, c.change
        FROM scored s JOIN islands c ON c.symbol = s.symbol AND c.batch_id > s.price_batch_id
            AND c.first_n <= s.n AND c.last_n >= s.n - $reach
        UNION ALL
        SELECT s.*, f.ts, f.batch_id, 'session'
        FROM scored s JOIN flipped f ON f.batch_id > s.price_batch_id
            AND f.n BETWEEN s.n - $reach AND s.n
        UNION ALL
        SELECT s.*, m.ts, m.batch_id, 'missed'
        FROM scored s JOIN missed m ON m.ts <= s.ts AND m.n >= s.n - $reach
        UNION ALL
        SELECT s.*, c.ts, c.batch_id, 'members'
        FROM scored s JOIN price_changes c ON c.ts = s.ts AND c.kind = 'memberships'
            AND c.batch_id > s.price_batch_id
        WHERE $uses_members AND NOT EXISTS (FROM memberships m WHERE m.symbol = s.symbol
            AND s.ts BETWEEN m.first AND coalesce(m.last, s.ts)))
    SELECT symbol, ts, task_id, model_id, changed_ts, batch_id, change
    FROM found QUALIFY row_number() OVER (
        PARTITION BY symbol, ts, task_id, model_id
        ORDER BY batch_id, change NOT IN ('session', 'missed'), changed_ts, change) = 1
    ORDER BY ts, task_id, symbol
"""


def models_that_knew_less(ws: Workspace, stored: Stored) -> list[dict[str, Any]]:
    """Models whose training data were restated later: they stay, the next as-of knows more.

    Gives for each the first date that changed within its reach, and the batch that changed it;
    or a session that it missed, and always will, as its bars came after its window was sealed.
    """
    reach = reach_of_features(ws)
    kinds = [stored.changes, stored.ages, *([stored.memberships] if stored.memberships else [])]
    found = []
    for model in ws.meta.trained():
        at = bisect_left(stored.sessions, model.first_ts)
        first = stored.sessions[max(at - reach, 0)]
        known = [k.first_after(model.price_batch_id, first, model.asof) for k in kinds]
        known.append(stored.missed.first_after(0, first, model.asof))
        changes = [change for change in known if change is not None]
        if changes:
            batch_id, changed_ts = min(changes)
            found.append(
                {
                    "model_id": model.model_id, "task_id": model.task_id,
                    "asof": model.asof, "made_in_batch": model.price_batch_id,
                    "changed_ts": changed_ts, "batch_id": batch_id,
                }
            )  # fmt: skip
    return found


def scores_that_knew_less(ws: Workspace, stored: Stored) -> list[dict[str, Any]]:
    """Stored scores that could come out different today, each with its first reason.

    `change` is what happened: a bar within the reach of the features was "restated",
    "relinked" or "deleted", or came after its session: "late" if its window was sealed by then,
    else "new"; a date became a "session", or stays "missed"; the symbol is none of the "members"
    any more; or the "model" learned from data that were restated.
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
    parameters = {
        "reach": reach_of_features(ws),
        "uses_members": ws.settings.universe.memberships,
    }
    rows = con.sql(_OUTDATED_SCORES, params=parameters).to_arrow_table()
    found: list[dict[str, Any]] = rows.to_pylist()
    return found
