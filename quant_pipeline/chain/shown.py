"""What pages, reports and notebooks read of a home: registry and published files, no database.

So they neither wait for a writer nor block one. What a function gives is as of the newest
publication of its table, which every step of the chain makes right after it has stored.
"""

from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from quant_pipeline.chain.explain import explain_features
from quant_pipeline.chain.lateness import find_late
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.shown_stats import is_after, mean_with_error, out_of_sample
from quant_pipeline.chain.stale import Changes, Stored, stale_data
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData
from quant_pipeline.market.closing import Session
from quant_pipeline.settings import Task
from quant_pipeline.stores.meta import CheckResult, Model

YEAR = timedelta(days=365)
NO_PREDICTIONS = (
    "No score is stored yet. Run `quant backfill --from D --to D`, or `quant demo` for sample data."
)
NO_OUTCOMES = (
    "No score has an outcome yet: one is known after the horizon's sessions. `quant score` adds "
    "those that became known."
)


def stamp(ws: Workspace) -> tuple[date | int | tuple[str, int, int], ...]:
    """What tells whether anything that is read here was written again, or is late by now."""
    registry = ws.home.registry
    files = [registry, registry.with_name(registry.name + "-wal")]
    tables = sorted(p for p in ws.home.published.glob("*") if p.is_dir())
    found = (_facts_of(path) for path in [*files, *tables, ws.home.settings_file])
    # Not the folder's time: readers of the registry change that.
    models = hash(tuple(sorted(p.name for p in ws.home.models.glob("*.joblib"))))
    return ws.today(), models, *found


def _facts_of(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return path.name, 0, 0
    return path.name, found.st_mtime_ns, found.st_size


def read_stored_shown(ws: Workspace) -> Stored:
    """The same as `read_stored`; raises NoData if there is no session."""
    coverage = ws.published.read("coverage")
    if coverage is None or not pc.any(coverage["is_session"]).as_py():
        raise NoData("No session is stored yet. Run `quant ingest PATH`, or `quant demo`.")
    sessions = coverage.filter(coverage["is_session"])["ts"].to_pylist()
    changes = {kind: _changes(ws, kind) for kind in ("prices", "ages", "memberships", "missed")}
    newest = pc.max(coverage["ts"]).as_py()
    return Stored(
        keys=ws.grid.keys(ws.grid.key(sessions[0]), ws.grid.key(newest)),
        sessions=sessions,
        changes=changes["prices"],
        ages=changes["ages"],
        memberships=changes["memberships"] if ws.settings.universe.memberships else None,
        missed=changes["missed"],
        sealed={batch.partition_key for batch in ws.meta.batches("seals")},
    )


def _changes(ws: Workspace, kind: str) -> Changes:
    rows = ws.published.read("changes", ds.field("kind") == kind)
    if rows is None:
        return Changes(kind, np.array([], "datetime64[D]"), np.array([], np.int64))
    return Changes(kind, days(rows["ts"]), rows["batch_id"].to_numpy())


@dataclass(frozen=True)
class Attention:
    """Something that a person should look at, what to do about it, and where Dagster shows it."""

    severity: Literal["ERROR", "WARN"]
    what: str
    next_step: str
    asset: str = ""
    partition_key: str = ""


def find_attention(ws: Workspace) -> list[Attention]:
    """Failed checks, stale or late data, tasks without model, file or scores; worst first."""
    found = _failed_checks(ws)
    try:
        stored = read_stored_shown(ws)
    except NoData as error:
        return [*found, Attention("ERROR", "There are no prices.", str(error))]
    for asset, why in stale_data(ws, stored).items():
        if why:
            key, reason = next(iter(why.items()))
            others = f" and {len(why) - 1} more partitions" if len(why) > 1 else ""
            what = f"{asset} of {key}{others}: {reason}."
            next_step = "`quant score` computes them first."
            found.append(Attention("WARN", what, next_step, asset, key))
    counts = [Session(d, n) for d, n in _counts(ws, is_session=True)]
    late = find_late(ws, counts, _counts(ws, is_session=False))
    found += [Attention("WARN", words, "Ingest what is missing.") for words in late]
    for task in ws.settings.tasks:
        found += [*_lost_champions(ws, task), *_unscored(ws, task, stored.last_session)]
    return sorted(found, key=lambda a: a.severity != "ERROR")


def _failed_checks(ws: Workspace) -> list[Attention]:
    """One line a check, with its newest partition; what others say is in Dagster."""
    by_check: dict[tuple[str, str, str], list[CheckResult]] = {}
    for row in newest_checks(ws):
        if not row.passed:
            by_check.setdefault((row.asset, row.name, row.severity), []).append(row)
    found = []
    for (asset, name, severity), rows in by_check.items():
        newest = max(rows, key=lambda row: row.partition_key)
        others = f" (and {len(rows) - 1} earlier)" if len(rows) > 1 else ""
        what = f"{name} of {asset}, {newest.partition_key}{others}: {newest.words}"
        rank: Literal["ERROR", "WARN"] = "ERROR" if severity == "ERROR" else "WARN"
        next_step = "Its numbers are in Dagster (`quant ui`)."
        found.append(Attention(rank, what, next_step, asset, newest.partition_key))
    return found


def _counts(ws: Workspace, *, is_session: bool) -> list[tuple[date, int]]:
    rows = ws.published.read("coverage", ds.field("is_session") == is_session)
    if rows is None:
        return []
    return list(zip(rows["ts"].to_pylist(), rows["n_bars"].to_pylist(), strict=True))


def _lost_champions(ws: Workspace, task: Task) -> list[Attention]:
    """Of the champions of the newest partition those whose file is gone or is another one."""
    champions = ws.meta.champions(task.task_id)
    newest = {c.model_id for c in champions if c.partition_key == champions[-1].partition_key}
    return [
        Attention(
            "ERROR",
            f"The champion of {task.task_id}, model {model.model_id[:12]}, has no file with its "
            "sha256: nothing can be scored with it, and no score of it explained.",
            f"Restore it, or `quant train --asof {model.asof} --task {task.task_id}`.",
        )
        for model in map(ws.meta.model, sorted(newest))
        if not ws.files.is_intact(model.model_id)
    ]


def _unscored(ws: Workspace, task: Task, last: date) -> list[Attention]:
    if not ws.meta.trained(task.task_id):
        return [Attention("WARN", f"{task.task_id} has no model.", "Run `quant train`.")]
    newest = newest_session(ws, task)
    if newest is None or newest < last:
        through = f"is scored through {newest}" if newest else "has no scores"
        what = f"{task.task_id} {through}, prices reach {last}."
        return [Attention("WARN", what, "Run `quant score`.")]
    return []


def newest_checks(ws: Workspace, asset: str | None = None) -> list[CheckResult]:
    """The newest result of each check, partition and task, in the order of checking."""
    newest = {
        (row.asset, row.name, row.partition_key, row.task_id): row
        for row in ws.meta.check_results(asset)
    }
    return sorted(newest.values(), key=lambda row: row.id or 0)


def scored_sessions(ws: Workspace, task: Task) -> list[date]:
    """Sessions with scores of a task, newest first."""
    found = (_sessions_of(ws, file).get(task.task_id, ()) for file in _newest_first(ws))
    return [day for days_of_file in found for day in days_of_file]


def newest_session(ws: Workspace, task: Task) -> date | None:
    """The newest session with a score of a task."""
    found = (_sessions_of(ws, file).get(task.task_id, ()) for file in _newest_first(ws))
    return next((days_of_file[0] for days_of_file in found if days_of_file), None)


def _newest_first(ws: Workspace) -> list[Path]:
    return sorted((ws.home.published / "predictions").glob("[!.]*.parquet"), reverse=True)


def _sessions_of(ws: Workspace, file: Path) -> dict[str, list[date]]:
    """The sessions of a file of scores by task, newest first; a file is read once."""
    there = file.stat()
    try:
        return _sessions_in(file, there.st_mtime_ns, there.st_size)
    except (pa.ArrowException, OSError):
        ws.published.read("predictions")  # tells what is damaged, and what to do
        raise


@lru_cache(maxsize=20_000)
def _sessions_in(file: Path, _written: int, _size: int) -> dict[str, list[date]]:
    whole = pq.ParquetFile(file, read_dictionary=["task_id"], page_checksum_verification=True)
    rows = whole.read(["task_id", "ts"], use_threads=False)
    known = rows.group_by(["task_id", "ts"], use_threads=False).aggregate([]).to_pydict()
    found: dict[str, list[date]] = {}
    for ts, task_id in sorted(zip(known["ts"], known["task_id"], strict=True), reverse=True):
        found.setdefault(task_id, []).append(ts)
    return found


def read_predictions(
    ws: Workspace,
    task_id: str | None = None,
    first: date | None = None,
    last: date | None = None,
    symbol: str | None = None,
    columns: list[str] | None = None,
) -> pa.Table:
    """Stored scores by session, task and symbol; raises NoData if there are none at all."""
    where = ds.field("ts").is_valid()
    for name, value in (("task_id", task_id), ("symbol", symbol)):
        if value is not None:
            where &= ds.field(name) == value
    if first is not None:
        where &= ds.field("ts") >= first
    if last is not None:
        where &= ds.field("ts") <= last
    since, until = _partition(ws, first), _partition(ws, last)
    rows = ws.published.read("predictions", where, columns, since=since, until=until)
    if rows is None:
        raise NoData(NO_PREDICTIONS)
    return rows


def _partition(ws: Workspace, day: date | None) -> str:
    """The name of a day's partition, empty without a day."""
    return "" if day is None or day < ws.grid.start else ws.grid.key(day)


def read_judged(ws: Workspace, task: Task) -> pd.DataFrame:
    """Judged sessions of a task (see `judge_sessions`), oldest first; NoData if there are none."""
    rows = ws.published.read("judged", ds.field("task_id") == task.task_id)
    if rows is None or not len(rows):
        raise NoData(NO_OUTCOMES)
    found: pd.DataFrame = rows.to_pandas().sort_values(["ts", "origin"], ignore_index=True)
    return found.assign(ts=pd.to_datetime(found["ts"]), known_at=pd.to_datetime(found["known_at"]))


def recent_rank_ic(ws: Workspace, task: Task) -> list[dict[str, Any]]:
    """Mean RankIC of the 12 months before the newest judged session, by origin; ± Newey-West.

    Of sessions after the settings were chosen; where there is none ``is_in_sample`` is true.
    """
    judged = read_judged(ws, task)
    recent = judged[judged["ts"] > judged["ts"].max() - YEAR]
    found = []
    for origin, rows in recent.groupby("origin", sort=False):
        chosen = out_of_sample(rows)
        told = mean_with_error(chosen["rank_ic"], task.horizon)
        found.append({"origin": origin, "is_in_sample": not is_after(chosen).any()} | told)
    return found


def read_symbol(ws: Workspace, task: Task, symbol: str, first: date | None = None) -> pd.DataFrame:
    """Scores of one symbol and what happened: ts, score, score_percentile, model_id, fwd_return.

    From the session `first` on, if it is given. ``fwd_return`` is that of the task's horizon, NaN
    until it is known.
    """
    columns = ["ts", "score", "score_percentile", "model_id"]
    scores: pd.DataFrame = read_predictions(
        ws, task.task_id, first, symbol=symbol, columns=columns
    ).to_pandas()
    where = (ds.field("task_id") == task.task_id) & (ds.field("symbol") == symbol)
    since = _partition(ws, first)  # known later than `first` is what came after it
    known = ws.published.read("returns", where, ["ts", "fwd_return"], since=since)
    if known is None:
        return scores.assign(fwd_return=np.nan)
    return scores.merge(known.to_pandas(), on="ts", how="left")


def explain_newest(ws: Workspace, task: Task, symbol: str) -> dict[str, Any]:
    """A score of the newest scored session taken apart, as `explain_prediction` does.

    Raises NoData if the symbol has none, or ModelChanged and the like if its file is not there.
    """
    features = ws.published.read("newest_features", ds.field("symbol") == symbol)
    if features is None or not len(features):
        raise NoData(
            f"{symbol} has no features of the newest scored session. Of another session: "
            f"`quant predictions explain --symbol {symbol} --ts D`."
        )
    day = features["ts"][0].as_py()
    rows = read_predictions(ws, task.task_id, day, day, symbol)
    if not len(rows):
        raise NoData(f"{symbol} has no score of {task.task_id} on {day}.")
    row = rows.to_pylist()[0]
    model = ws.meta.model(row["model_id"])
    return explain_features(ws, model, features, symbol, day, row["score"])


def scores_with_returns(ws: Workspace, model: Model) -> pd.DataFrame:
    """Stored scores of a model (symbol, ts, score, fwd_return) whose outcome is known."""
    where = (ds.field("task_id") == model.task_id) & (ds.field("model_id") == model.model_id)
    champions = ws.meta.champions(model.task_id)
    keys = [c.partition_key for c in champions if c.model_id == model.model_id]
    scores = None
    if keys:
        columns = ["symbol", "ts", "score"]
        scores = ws.published.read(
            "predictions", where, columns, since=min(keys), until=max(keys)
        )  # fmt: skip
    if scores is None or not len(scores):
        return pd.DataFrame({"symbol": [], "ts": [], "score": [], "fwd_return": []})
    first, last = pc.min(scores["ts"]).as_py(), pc.max(scores["ts"]).as_py()
    within = (ds.field("ts") >= first) & (ds.field("ts") <= last)
    where = within & (ds.field("task_id") == model.task_id)
    columns = ["symbol", "ts", "fwd_return"]
    returns = ws.published.read("returns", where, columns, since=_partition(ws, first))
    frame: pd.DataFrame = scores.to_pandas()
    if returns is None:
        return frame.assign(fwd_return=np.nan).iloc[:0]
    return frame.merge(returns.to_pandas(), on=["symbol", "ts"])


def without_waiting(ws: Workspace) -> Workspace:
    """The same home for readers: whoever would open its database gets an error at once."""
    return replace(ws, series=None)  # type: ignore[arg-type]
