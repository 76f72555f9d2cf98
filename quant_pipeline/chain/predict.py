"""predictions: each session's scores by the champion frozen at the start of its partition."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.chain.champions import Service, find_challenger, find_champions
from quant_pipeline.chain.model_content import read_boosters
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.slices import record_stored
from quant_pipeline.chain.stale import require_fresh_features
from quant_pipeline.chain.workspace import Workspace, Writing
from quant_pipeline.errors import GateError, NoData
from quant_pipeline.market.features import FEATURE_VALUES, KNOWN, CrossSection
from quant_pipeline.ml.gate import require_model_before
from quant_pipeline.ml.score import score_rows, session_percentile
from quant_pipeline.settings import Task
from quant_pipeline.stores.meta import Champion, Model, utc_now
from quant_pipeline.stores.series import (
    Connection,
    columns_of,
    digest_rows,
    fetch_row,
    identifiers,
    insert,
    query,
    read_sessions,
    registered,
)

# A score counts as live if it was made before a later session was stored, and at once.
LIVE_DAYS = 5


@dataclass(frozen=True)
class Scored:
    """What scoring one partition and task did; `n_different` stored scores came out otherwise."""

    task_id: str
    partition_key: str
    model_id: str | None
    why: str
    n_sessions: int = 0
    n_rows: int = 0
    n_new: int = 0
    n_different: int = 0


def score_partition(ws: Workspace, key: str, task: Task, run_id: str = "") -> Scored:
    """Score every session of a partition that has features, and store what is not stored yet.

    Without a champion, or with one that learned from features of another meaning, nothing is
    scored and the reason is told. A stored score never changes: one that would come out different
    is counted. Raises GateError if features_daily of the partition is stale.
    """
    start, end = ws.grid.window(key)
    if not has_session(ws, start, end):  # nobody has to serve where nothing happened yet
        return _store_none(ws, key, task, f"no session of {key} is stored yet", run_id)
    serving = find_champions(ws, key, task)
    models = " ".join(service.model_id for service in serving.services)
    pieces = []
    for service in serving.services:
        scored = _serve(ws, key, task, service, models, run_id)
        if scored is None:  # another process froze another champion meanwhile
            return score_partition(ws, key, task, run_id)
        pieces.append(scored)
    if not pieces:
        return _store_none(ws, key, task, serving.why, run_id)
    if all(piece.model_id is None for piece in pieces):
        with ws.writing("predictions", run_id) as writing:
            _record(ws, writing, key, task.task_id, models)
    last = pieces[-1]
    return replace(
        last, **{n: sum(getattr(p, n) for p in pieces) for n in COUNTS},
        model_id=next((p.model_id for p in reversed(pieces) if p.model_id), None),
    )  # fmt: skip


COUNTS = ("n_sessions", "n_rows", "n_new", "n_different")


def _serve(
    ws: Workspace, key: str, task: Task, service: Service, models: str, run_id: str
) -> Scored | None:
    """Score the sessions of one service; None if another champion was frozen meanwhile.

    `models` are all that serve the partition.
    """
    model, why = ws.meta.model(service.model_id), service.why
    require_model_before(model.asof, service.first)
    with ws.series.reading("scoring") as con:
        lost = lost_features(ws, con, model)
        window = service.first, service.before
        has_scores = len(_stored_scores(con, model, *window)) > 0
        features = None if lost else _read_features(ws, con, model, *window)
        rows = None if features is None else _score(ws, con, model, features)
    if lost and not has_scores:  # a model of today's features may serve, once there is one
        why = f"model {model.model_id[:12]} scores nothing: {in_words(lost)}"
        return Scored(task.task_id, key, None, why)
    if lost:
        why = f"{why}; stored scores stay, none is added: {in_words(lost)}"
    if rows is not None and len(rows) and not service.is_frozen:
        frozen = ws.meta.freeze_champion(
            Champion(
                task_id=task.task_id, partition_key=key, from_ts=service.first,
                model_id=model.model_id, why=why, decided_at=utc_now(),
                rule=ws.settings.champion.model_dump_json(),
            )
        )  # fmt: skip
        if frozen.model_id != model.model_id:
            return None
    return _store(ws, key, model, window, rows, why, models, run_id)


def _store_none(ws: Workspace, key: str, task: Task, why: str, run_id: str) -> Scored:
    """Record that a partition has no scores of a task."""
    with ws.writing("predictions", run_id) as writing:
        writing.record("predictions", key, 0, "", "", task.task_id)
    return Scored(task.task_id, key, None, why)


def _store(
    ws: Workspace,
    key: str,
    model: Model,
    window: tuple[date, date],
    rows: pa.Table | None,
    why: str,
    models: str,
    run_id: str,
) -> Scored:
    """Add what is not stored yet of the sessions ``[first, before)``, and note what is there now.

    Both in one transaction: a crash leaves no score that the registry does not know.
    """
    n_new = n_different = 0
    with ws.writing("predictions", run_id) as writing:
        if rows is not None:
            n_new, n_different = _add(writing.con, "predictions", rows)
        stored = _stored_scores(writing.con, model, *window)
        _record(ws, writing, key, model.task_id, models)
    n_sessions = len(np.unique(days(stored["ts"])))
    return Scored(
        model.task_id, key, model.model_id, why, n_sessions, len(stored), n_new, n_different
    )


def _record(ws: Workspace, writing: Writing, key: str, task_id: str, models: str) -> None:
    """Note what a partition holds now."""
    start, end = ws.grid.window(key)
    stored = query(
        writing.con,
        "SELECT symbol, ts, score FROM predictions WHERE task_id = ? AND ts >= ? AND ts < ? "
        "ORDER BY ts, symbol",
        [task_id, start, end],
    )
    spec = models if len(stored) else ""
    writing.record("predictions", key, len(stored), digest_rows(stored), spec, task_id)


def score_challenger(ws: Workspace, key: str, task: Task) -> Scored | None:
    """Score a partition in the shadow by the newest model, unless it serves."""
    services = find_champions(ws, key, task).services
    model = find_challenger(ws, key, task, services[-1].model_id) if services else None
    start, end = ws.grid.window(key)
    if model is None or not has_session(ws, start, end):
        return None
    with ws.series.reading("scoring") as con:
        if lost_features(ws, con, model):
            return None
    return score_shadow(ws, model, start, end - timedelta(days=1))


def score_shadow(ws: Workspace, model: Model, first: date, last: date) -> Scored:
    """Score sessions with one given model, kept apart in predictions_shadow.

    Only sessions after the model's as-of: earlier ones it was trained on.
    """
    require_model_before(model.asof, first)
    with ws.series.reading("scoring") as con:
        features = _read_features(ws, con, model, first, date.fromordinal(last.toordinal() + 1))
        rows = _score(ws, con, model, features)
    if not len(rows):
        raise NoData(
            f"No session with features lies between {first} and {last}. See `quant status`."
        )
    with ws.writing("shadow scores") as writing:
        n_new, n_different = _add(writing.con, "predictions_shadow", rows)
        for key in ws.grid.keys(ws.grid.key(first), ws.grid.key(last)):
            record_stored(ws, writing, "predictions_shadow", key, model.task_id)
    n_sessions = len(np.unique(days(rows["ts"])))
    return Scored(
        model.task_id, f"{first}..{last}", model.model_id, "named by hand", n_sessions, len(rows),
        n_new, n_different,
    )  # fmt: skip


def _stored_scores(con: Connection, model: Model, start: date, end: date) -> pa.Table:
    return query(
        con,
        "SELECT symbol, ts, score FROM predictions WHERE task_id = ? AND model_id = ? "
        "AND ts >= ? AND ts < ? ORDER BY ts, symbol",
        [model.task_id, model.model_id, start, end],
    )


def lost_features(ws: Workspace, con: Connection, model: Model) -> dict[str, str]:
    """Why features of a model are not those of today: they are gone, or mean something else."""
    stored = columns_of(con, "features_daily")
    lost = {name: "is no feature any more" for name in model.features if name not in stored}
    if model.settings["jumps"] != ws.settings.jumps.model_dump(mode="json"):
        windows = {f.name: f.window for f in ws.features}
        why = "may be NaN elsewhere: [jumps] of quant.toml was changed"
        lost |= {name: why for name in model.features if windows.get(name) and name not in lost}
    if model.settings.get("feature_values", 1) != FEATURE_VALUES:
        why = "may have other values in this version of quant_pipeline"
        lost |= {name: why for name in model.features if name not in lost}
    own = {f.name: f for f in ws.features if f.name in model.features and f.name not in KNOWN}
    if model.settings.get("feature_modules", {}) != ws.feature_modules:
        lost |= {name: "may be another one: its module was changed" for name in own}
    universe = ws.settings.universe.model_dump(mode="json"), ws.settings.features.min_sessions
    then = model.settings["universe"], model.settings["features"].get("min_sessions")
    if universe != then:
        across = [name for name, f in own.items() if isinstance(f, CrossSection)]
        lost |= {name: "ranks among another universe" for name in across if name not in lost}
    return lost


def in_words(lost: dict[str, str]) -> str:
    """The first of lost features, why, and how many there are."""
    name, why = next(iter(lost.items()))
    return f"{name} {why}" + (f" ({len(lost)} features in all)" if len(lost) > 1 else "")


def refuse_lost(model: Model, lost: dict[str, str]) -> None:
    """Refuse to use a model on features that are not those it learned from."""
    if lost:
        raise GateError(
            f"Model {model.model_id[:12]} was trained on {len(model.features)} features, but "
            f"{in_words(lost)}. A partition keeps its model: set the features back as they were "
            "to score it, or score from the next partition on with a model trained on today's "
            "features."
        )


def _read_features(
    ws: Workspace, con: Connection, model: Model, start: date, end: date
) -> pa.Table:
    keys = ws.grid.keys(ws.grid.key(start), ws.grid.key(date.fromordinal(end.toordinal() - 1)))
    refuse_lost(model, lost_features(ws, con, model))
    require_fresh_features(ws, con, keys)
    return query(
        con,
        f"SELECT symbol, ts, {identifiers(model.features)} FROM features_daily "
        "WHERE in_universe AND ts >= ? AND ts < ? ORDER BY ts, symbol",
        [start, end],
    )


def has_session(ws: Workspace, start: date, end: date) -> bool:
    """Whether a market session of ``[start, end)`` is stored."""
    with ws.series.reading("scoring") as con:
        return len(read_sessions(con, start, date.fromordinal(end.toordinal() - 1))) > 0


def _newest_session(con: Connection) -> date | None:
    newest: date | None = fetch_row(con, "SELECT max(ts) FROM sessions WHERE is_session")[0]
    return newest


def _score(ws: Workspace, con: Connection, model: Model, features: pa.Table) -> pa.Table:
    """Rows of predictions for rows of features, in their order."""
    newest = _newest_session(con)
    boosters, names = read_boosters(ws, model), tuple(model.features)
    x = np.empty((len(features), len(names)), np.float32)
    for j, name in enumerate(names):
        x[:, j] = features[name].to_numpy()
    ts = days(features["ts"])
    score = score_rows(boosters, x, names, names)
    now = datetime.now(UTC)
    fresh = ws.today().toordinal() - LIVE_DAYS
    is_live = np.array([d == newest and d.toordinal() >= fresh for d in ts.tolist()], bool)
    n = len(features)
    return pa.table(
        {
            "symbol": features["symbol"],
            "ts": features["ts"],
            "model_id": pa.array([model.model_id] * n, pa.string()),
            "task_id": pa.array([model.task_id] * n, pa.string()),
            "score": pa.array(score, pa.float64()),
            "generated_at": pa.array([now] * n, pa.timestamp("us", tz="UTC")),
            "asof": pa.array([model.asof] * n, pa.date32()),
            "origin": pa.array(np.where(is_live, "live", "backfill").tolist(), pa.string()),
            "price_batch_id": pa.array(_price_batches(ws, ts.tolist()), pa.int64()),
        }
    )


def _price_batches(ws: Workspace, sessions: list[date]) -> list[int]:
    """The batch of prices that each session's features were made from."""
    keys = {ts: ws.grid.key(ts) for ts in set(sessions)}
    made_from = {
        b.partition_key: b.price_batch_id
        for key in set(keys.values()) for b in ws.meta.batches("features_daily", (key, key))
    }  # fmt: skip
    return [made_from.get(keys[ts], 0) for ts in sessions]


def _add(con: Connection, table: str, rows: pa.Table) -> tuple[int, int]:
    """Insert rows whose key is not stored; count them, and stored scores that differ."""
    with registered(con, "scored_rows", rows):
        (n_different,) = fetch_row(
            con,
            f"SELECT count(*) FILTER (p.score <> s.score) FROM scored_rows s "
            f"JOIN {table} p USING (symbol, ts, task_id, model_id)",
        )
        new = query(
            con,
            f"SELECT * FROM scored_rows s ANTI JOIN {table} p "
            "USING (symbol, ts, task_id, model_id)",
        )
    insert(con, table, new)
    return len(new), int(n_different)


def publish_predictions(ws: Workspace, keys: Sequence[str]) -> None:
    """Put the predictions of partitions where readers find them."""
    for key in keys:
        start, end = ws.grid.window(key)
        rows = ws.series.query(
            "SELECT * FROM predictions WHERE ts >= ? AND ts < ? ORDER BY ts, task_id, symbol",
            [start, end],
        )
        if len(rows):
            ws.published.write("predictions", key, _with_percentile(rows))
    _publish_newest_features(ws)


def _publish_newest_features(ws: Workspace) -> None:
    """Put the features of the newest scored session where readers find them, to explain scores."""
    with ws.series.reading("publishing") as con:
        newest = fetch_row(con, "SELECT max(ts) FROM predictions")[0]
        if newest is None:
            return
        rows = query(
            con, "SELECT * FROM features_daily WHERE in_universe AND ts = ? ORDER BY symbol",
            [newest],
        )  # fmt: skip
    ws.published.write("newest_features", "all", rows)


def _with_percentile(rows: pa.Table) -> pa.Table:
    """Scores with their percentile among those of the same session and task, late ones, too."""
    rows = rows.sort_by([("task_id", "ascending"), ("ts", "ascending"), ("symbol", "ascending")])
    found = []
    for task_id in pc.unique(rows["task_id"]).to_pylist():
        mine = rows.filter(pc.equal(rows["task_id"], task_id))
        found.append(session_percentile(days(mine["ts"]), mine["score"].to_numpy()))
    percentile = pa.array(np.concatenate(found), pa.float64())
    return rows.append_column("score_percentile", percentile).sort_by(
        [("ts", "ascending"), ("task_id", "ascending"), ("symbol", "ascending")]
    )


def describe(scored: Scored) -> dict[str, Any]:
    """A result for people: metadata of a materialization."""
    return {
        "model_id": scored.model_id or "none",
        "champion_because": scored.why,
        "sessions": scored.n_sessions,
        "rows": scored.n_rows,
        "new_rows": scored.n_new,
        "different_from_stored": scored.n_different,
    }
