"""The structure holds: what is stored, joined against itself, with nothing of what made it."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from quant_pipeline.chain.proofs.result import Finding, Proof
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.settings import Settings, Task
from quant_pipeline.stores.meta import Model
from quant_pipeline.stores.series import Connection, columns_of, registered

# Each query gives its first offending row: symbol, ts, column, expected, found; or none.
# A label begins and ends so many market sessions after its own, and is known at its end.
_LABEL_SESSIONS = """
WITH s AS (SELECT ts, row_number() OVER (ORDER BY ts) AS n FROM sessions WHERE is_session)
SELECT l.symbol, l.ts, 'entry_ts, exit_ts, known_at' AS name,
    concat_ws(', ', e.ts, x.ts, x.ts) AS expected,
    concat_ws(', ', l.entry_ts, l.exit_ts, l.known_at) AS found
FROM labels l LEFT JOIN s a ON a.ts = l.ts LEFT JOIN s e ON e.n = a.n + $lag
LEFT JOIN s x ON x.n = a.n + $lag + $horizon
WHERE l.task_id = $task AND l.ts BETWEEN $first AND $last AND l.known_at <= $last
    AND expected <> found
ORDER BY l.ts, l.symbol LIMIT 1
"""
# Its return is that of the prices on these sessions; without a last one, of the last before.
_LABEL_RETURNS = """
WITH l AS (FROM labels WHERE task_id = $task AND ts BETWEEN $first AND $last
        AND known_at <= $last AND reason IS NULL),
    e AS (SELECT l.*, p.adj_index AS entered FROM l LEFT JOIN prices_daily p
        ON p.symbol = l.symbol AND p.ts = l.entry_ts),
    x AS (SELECT e.*, p.adj_index / e.entered - 1 AS expected FROM e ASOF LEFT JOIN prices_daily p
        ON p.symbol = e.symbol AND p.ts <= e.exit_ts)
SELECT symbol, ts, 'fwd_return' AS name, expected, fwd_return AS found FROM x
WHERE expected IS NULL OR abs(expected - fwd_return) > 1e-9 * (1 + abs(expected))
ORDER BY ts, symbol LIMIT 1
"""
# Nothing is said of a symbol on a day on which it had no bar.
_BARS = """
SELECT r.symbol, r.ts, 'bar' AS name, 'a bar' AS expected, 'none' AS found
FROM {table} r ANTI JOIN (FROM price_versions WHERE NOT deleted) v USING (symbol, ts)
ORDER BY r.ts, r.symbol LIMIT 1
"""
_BARS_NOW = """
SELECT r.symbol, r.ts, 'bar' AS name, 'a bar' AS expected, 'none' AS found
FROM {table} r ANTI JOIN prices_daily v USING (symbol, ts)
WHERE r.ts BETWEEN $first AND $last ORDER BY r.ts, r.symbol LIMIT 1
"""
# Who is in the universe, from age, traded value and lists of members as they were on the day.
_UNIVERSE = """
WITH s AS (SELECT ts, row_number() OVER (ORDER BY ts) AS n FROM sessions WHERE is_session),
    looked AS (SELECT ts, n FROM s WHERE ts BETWEEN $first AND $last
        AND (n % $every = 0 OR ts = (SELECT max(ts) FROM s WHERE ts <= $last))),
    firsts AS (SELECT symbol, min(s.n) AS first_n FROM prices_daily JOIN s USING (ts) GROUP BY 1),
    asked AS (SELECT f.symbol, f.ts, f.in_universe, looked.n, firsts.first_n
        FROM features_daily f JOIN looked USING (ts) JOIN firsts USING (symbol)),
    worth AS (SELECT a.symbol, a.ts, median(coalesce(p.volume * p.close, 0)) AS value
        FROM asked a JOIN s ON s.n > a.n - $value_sessions AND s.n <= a.n
        LEFT JOIN prices_daily p ON p.symbol = a.symbol AND p.ts = s.ts GROUP BY ALL),
    judged AS (SELECT a.symbol, a.ts, a.in_universe AS found,
        a.n - a.first_n + 1 >= $min_sessions AND w.value >= $min_value * (1 - 1e-9)
        AND (NOT $uses_members OR EXISTS (FROM memberships m WHERE m.symbol = a.symbol
            AND a.ts BETWEEN m.first AND coalesce(m.last, a.ts))) AS expected,
        abs(w.value - $min_value) <= 1e-9 * $min_value AS is_close
        FROM asked a JOIN worth w USING (symbol, ts))
SELECT symbol, ts, 'in_universe' AS name, expected, found FROM judged
WHERE expected <> found AND NOT is_close ORDER BY ts, symbol LIMIT 1
"""
# Pairs of windows of a fold: an outcome of the one, where examples of the other one are.
_WINDOWS = """
WITH kept AS (SELECT * FROM walkforward_folds
    WHERE partition_key = $key AND task_id = $task AND first_kept IS NOT NULL),
used AS (SELECT k.fold, k.part, f.ts, max(f.known_at) AS known_at, min(f.symbol) AS symbol
    FROM kept k JOIN training_frame f ON f.ts BETWEEN k.first_kept AND k.last_kept
    WHERE f.task_id = $task AND f.known_at <= $last GROUP BY ALL)
SELECT a.symbol, a.ts, 'fold ' || a.fold || ', ' || a.part || ' before ' || b.part AS name,
    'known before ' || b.ts AS expected, 'known ' || a.known_at AS found
FROM used a JOIN used b ON a.fold = b.fold AND a.part <> b.part AND a.ts <= b.ts
    AND (a.known_at >= b.ts)
ORDER BY a.ts, b.ts LIMIT 1
"""
# Sessions of nobody between what the earlier window learned and the first of the later one: in
# folds through time before a stop or test window, in combinations (cpcv) after a test window.
_EMBARGO = """
WITH s AS (SELECT ts, row_number() OVER (ORDER BY ts) AS n FROM sessions WHERE is_session),
kept AS (SELECT * FROM walkforward_folds
    WHERE partition_key = $key AND task_id = $task AND first_kept IS NOT NULL),
ends AS (SELECT k.fold, k.part, k.block, k.first_kept, max(f.known_at) AS known_at
    FROM kept k JOIN training_frame f ON f.ts BETWEEN k.first_kept AND k.last_kept
    WHERE f.task_id = $task AND f.known_at <= $last GROUP BY ALL),
gaps AS (SELECT a.fold, a.part, b.part AS next_part, b.first_kept, n_b.n - n_a.n - 1 AS gap
    FROM ends a JOIN ends b ON a.fold = b.fold AND b.part <> a.part AND a.first_kept < b.first_kept
    JOIN s n_a ON n_a.ts = a.known_at JOIN s n_b ON n_b.ts = b.first_kept
    WHERE CASE $protocol WHEN 'cpcv' THEN a.part = 'test'
        ELSE (a.part, b.part) IN (('train', 'stop'), ('train', 'test'), ('stop', 'test')) END)
SELECT '' AS symbol, first_kept AS ts,
    'fold ' || fold || ', ' || part || ' to ' || next_part AS name,
    $embargo AS expected, gap AS found
FROM gaps WHERE gap < $embargo ORDER BY first_kept LIMIT 1
"""
# What each model was, from the registry, beside every stored score.
_SCORES = """
SELECT p.symbol, p.ts, 'asof' AS name, 'a model from before ' || p.ts AS expected,
    coalesce('model ' || p.model_id[:12] || ' as of ' || m.asof || ', learned from sessions to '
        || m.last_ts, 'no such model') AS found
FROM predictions p LEFT JOIN registry_models m USING (model_id)
WHERE m.model_id IS NULL OR m.task_id <> p.task_id OR m.asof <> p.asof OR m.asof >= p.ts
    OR m.last_ts >= p.ts
ORDER BY p.ts, p.symbol LIMIT 1
"""
_SERVED = """
SELECT p.symbol, p.ts, 'model_id' AS name, c.model_id[:12] AS expected, p.model_id[:12] AS found
FROM predictions p JOIN keys k ON p.ts BETWEEN k.first AND k.last
LEFT JOIN LATERAL (SELECT model_id FROM registry_champions c WHERE c.task_id = p.task_id
    AND c.partition_key = k.key AND c.from_ts <= p.ts ORDER BY c.from_ts DESC LIMIT 1) c ON true
WHERE c.model_id IS DISTINCT FROM p.model_id
ORDER BY p.ts, p.symbol LIMIT 1
"""


def prove_structure(made: Workspace, models: Sequence[Model]) -> list[Proof]:
    """Join labels, universe and windows behind models of one as-of against prices and sessions.

    In the home in which they were rebuilt: so as of the batch that each model was made from.
    """
    proofs = []
    with made.series.reading("an audit") as con:
        for model in models:
            task = made.settings.task(model.task_id)
            proofs.append(_learned(con, model, task, made.settings))
    return proofs


def _learned(con: Connection, model: Model, task: Task, settings: Settings) -> Proof:
    given = {"task": task.task_id, "first": model.first_ts, "last": model.asof}
    spans = given | {"lag": task.entry_lag, "horizon": task.horizon}
    windows = {"task": task.task_id, "key": model.partition_key, "last": model.asof}
    between = {"first": model.first_ts, "last": model.asof}
    universe = settings.universe
    asked = between | {
        "every": 20, "value_sessions": universe.value_sessions,
        "min_sessions": max(universe.min_sessions, settings.features.min_sessions),
        "min_value": universe.min_median_value, "uses_members": universe.memberships,
    }  # fmt: skip
    checks: list[tuple[str, str, str, dict[str, Any]]] = [
        ("labels", "labels", _LABEL_SESSIONS, spans),
        ("labels", "labels", _LABEL_RETURNS, given),
        ("features", "features_daily", _BARS_NOW.format(table="features_daily"), between),
        ("labels", "labels", _BARS_NOW.format(table="labels"), between),
        ("universe", "features_daily", _UNIVERSE, asked),
        ("windows", "walkforward_folds", _WINDOWS, windows),
        ("windows", "walkforward_folds", _EMBARGO,
         windows | {"embargo": settings.folds.embargo_sessions,
                    "protocol": settings.folds.protocol}),
    ]  # fmt: skip
    for stage, table, sql, parameters in checks:
        finding = _first(con, stage, table, sql, parameters)
        if finding is not None:
            words = f"the {stage} behind model {model.model_id[:12]} are not what they should be"
            return Proof("structure", "fails", words, model.asof, model.task_id, finding)
    words = (
        "labels, their returns, bars, universe, windows and embargo agree with prices and sessions"
    )
    return Proof(
        "structure", "holds", words, model.asof, model.task_id, None, {"checks": len(checks)}
    )


def prove_served(ws: Workspace) -> list[Proof]:
    """Every stored score is of a model from before its session, and of the frozen champion."""
    with ws.series.reading("an audit") as con:
        models = [
            {"model_id": m.model_id, "task_id": m.task_id, "asof": m.asof, "last_ts": m.last_ts}
            for m in ws.meta.models()
        ]
        champions = [
            {name: getattr(c, name) for name in _CHAMPIONS.names}
            for c in ws.meta.champions()  # a task that is no longer in quant.toml has scores, too
        ]  # fmt: skip
        (first, last, n) = con.execute(
            "SELECT min(ts), max(ts), count(*) FROM predictions"
        ).fetchall()[0]
        if not n:
            return [Proof("served", "unproven", "no score is stored yet")]
        keys = [
            {"key": key, "first": ws.grid.window(key)[0], "last": ws.grid.asof(key)}
            for key in ws.grid.keys(ws.grid.key(first), ws.grid.key(last))
        ]
        with (
            registered(con, "registry_models", pa.Table.from_pylist(models, _MODELS)),
            registered(con, "registry_champions", pa.Table.from_pylist(champions, _CHAMPIONS)),
            registered(con, "keys", pa.Table.from_pylist(keys, _KEYS)),
        ):
            finding = (
                _first(con, "scores", "predictions", _SCORES, {})
                or _first(con, "scores", "predictions", _SERVED, {})
                or _first(con, "scores", "predictions", _BARS.format(table="predictions"), {})
            )
    if finding is not None:
        words = f"one of {n:,} stored scores is not that of a champion from before its session"
        return [Proof("served", "fails", words, None, "", finding)]
    words = f"all {n:,} stored scores are of the champion frozen before their session"
    return [Proof("served", "holds", words, None, "", None, {"scores": n})]


def prove_sealed(ws: Workspace) -> Proof:
    """A sealed as-of keeps what it learned: one recipe has one fingerprint of its data there."""
    seen: dict[tuple[str, str, str], Model] = {}
    models = [m for m in ws.meta.models() if m.status != "imported"]
    for model in models:
        first = seen.setdefault((model.task_id, model.partition_key, model.recipe), model)
        if model.data_fingerprint != first.data_fingerprint:
            finding = Finding(
                "frame", "models", "", model.asof, "data_fingerprint",
                f"{first.data_fingerprint[:12]} of {first.model_id[:12]}",
                f"{model.data_fingerprint[:12]} of {model.model_id[:12]}, made in batch "
                f"{model.price_batch_id}",
            )  # fmt: skip
            words = "a sealed as-of was trained again on what was restated later"
            return Proof("sealed", "fails", words, None, model.task_id, finding)
    words = f"{len(models)} models: no as-of was trained again on what was restated later"
    return Proof("sealed", "holds", words, None, "", None, {"models": len(models)})


_MODELS = pa.schema(
    [("model_id", pa.string()), ("task_id", pa.string()), ("asof", pa.date32()),
     ("last_ts", pa.date32())]
)  # fmt: skip
_CHAMPIONS = pa.schema(
    [("task_id", pa.string()), ("partition_key", pa.string()), ("from_ts", pa.date32()),
     ("model_id", pa.string())]
)  # fmt: skip
_KEYS = pa.schema([("key", pa.string()), ("first", pa.date32()), ("last", pa.date32())])


def _first(
    con: Connection, stage: str, table: str, sql: str, parameters: dict[str, Any]
) -> Finding | None:
    if "features_daily" in sql and not columns_of(con, "features_daily"):
        return None
    rows = con.execute(sql, parameters).fetchall() if parameters else con.execute(sql).fetchall()
    if not rows:
        return None
    symbol, ts, column, expected, found = rows[0]
    return Finding(stage, table, symbol, ts, column, expected, found)
