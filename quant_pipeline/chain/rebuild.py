"""The chain once more, from prices to model and scores, in a scratch home and without Dagster."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta

import pyarrow as pa

from quant_pipeline.chain.features import features_in_blocks, labels_in_blocks
from quant_pipeline.chain.folds import cut_folds
from quant_pipeline.chain.frame import write_manifests
from quant_pipeline.chain.learn import UnlearnableError, train_tasks
from quant_pipeline.chain.predict import score_shadow
from quant_pipeline.chain.scratch import Present
from quant_pipeline.chain.slices import record_rows
from quant_pipeline.chain.stale import reach_of_features
from quant_pipeline.chain.training_data import training_keys
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.ml.train import TrainedModel
from quant_pipeline.settings import Settings, Task
from quant_pipeline.stores.meta import Model
from quant_pipeline.stores.model_files import ModelFiles
from quant_pipeline.stores.series import insert_or_create, query, read_sessions


@dataclass(frozen=True)
class Rebuilt:
    """What came of training once more, by task: registry rows and how their folds were fitted."""

    models: dict[str, Model | UnlearnableError]
    trained: dict[str, TrainedModel]


def present_of(
    ws: Workspace, settings: Settings, key: str, batch_id: int, cut: date | None = None
) -> Present:
    """What the models of a partition may know: all that they learn from, its look-back included."""
    then = replace(ws, settings=settings)
    with ws.series.reading("an audit") as con:
        sessions: list[date] = read_sessions(con, None, None, batch_id)["ts"].to_pylist()
        whole = min(training_keys(then, con, key, task, batch_id)[2] for task in settings.tasks)
    return Present(batch_id, cut or ws.grid.asof(key), _before(then, sessions, whole))


def present_at(ws: Workspace, settings: Settings, session: date, batch_id: int) -> Present:
    """What a score of a session may know: the look-back of its features."""
    then = replace(ws, settings=settings)
    with ws.series.reading("an audit") as con:
        sessions: list[date] = read_sessions(con, None, session, batch_id)["ts"].to_pylist()
    start = ws.grid.window(ws.grid.key(session))[0]
    return Present(batch_id, session, _before(then, sessions, start))


def _before(ws: Workspace, sessions: Sequence[date], first: date) -> date:
    """The session from which on bars are needed for features of `first` and later."""
    at = bisect_left(sessions, first) - reach_of_features(ws) - 1
    return sessions[max(at, 0)]


def compute_data(made: Workspace, key: str) -> None:
    """Features, labels and manifests that the models of a partition learn from, and the next one's.

    The next partition is computed with them, as in a backfill: were anything to look ahead, it
    would find the future there.
    """
    beyond = made.grid.key(made.grid.window(key)[1])
    spans = []
    with made.series.reading("an audit") as con:
        spans = [training_keys(made, con, key, task) for task in made.settings.tasks]
    first = min((keys[0] for keys, _, _ in spans), key=made.grid.asof)
    whole = made.grid.key(min(span[2] for span in spans))
    earliest = min(whole, first, key=made.grid.asof)
    compute_features(made, made.grid.keys(earliest, beyond))
    compute_labels(made, made.grid.keys(first, beyond))
    write_manifests(made, made.grid.keys(first, key))


def compute_features(made: Workspace, keys: Sequence[str]) -> None:
    """Features of consecutive partitions, stored in a home that has none of them."""
    for part, found in features_in_blocks(made, keys):
        _put(made, part, "features_daily", found.rows, "ts")


def compute_labels(made: Workspace, keys: Sequence[str]) -> None:
    """Labels known in consecutive partitions, stored in a home that has none of them."""
    for part, rows in labels_in_blocks(made, keys):
        _put(made, part, "labels", rows, "known_at")


def _put(made: Workspace, keys: list[str], table: str, rows: pa.Table, column: str) -> None:
    with made.writing(table) as writing:
        insert_or_create(writing.con, table, rows)
        record_rows(made, writing, keys, table, rows, column)


def learn(made: Workspace, key: str) -> Rebuilt:
    """Folds and models of a partition from what `compute_data` stored."""
    trained: dict[str, TrainedModel] = {}

    def see(task: Task, found: TrainedModel) -> None:
        trained[task.task_id] = found

    for task in made.settings.tasks:
        cut_folds(made, key, task)
    models = train_tasks(made, key, made.settings.tasks, seen=see)
    return Rebuilt(models, trained)


def score_again(made: Workspace, files: ModelFiles, model: Model, session: date) -> pa.Table:
    """Scores of one session (symbol, score) by a model, from features made from prices alone.

    The features of the next partition are made with them, as in a backfill: were anything to look
    ahead, it would find the future there.
    """
    key = made.grid.key(session)
    compute_features(made, made.grid.keys(key, made.grid.key(made.grid.window(key)[1])))
    n = made.series.query(
        "SELECT count(*) AS n FROM features_daily WHERE in_universe AND ts = ?", [session]
    )["n"][0].as_py()
    if not n:
        return pa.table({"symbol": pa.array([], pa.string()), "score": pa.array([], pa.float64())})
    score_shadow(replace(made, files=files), model, session, session)
    return made.series.query(
        "SELECT symbol, score FROM predictions_shadow WHERE ts = ? AND task_id = ? ORDER BY symbol",
        [session, model.task_id],
    )


def stored_scores(ws: Workspace, model: Model, session: date) -> pa.Table:
    """What is stored of one session by a model: symbol, score, price_batch_id, generated_at."""
    with ws.series.reading("an audit") as con:
        return query(
            con,
            "SELECT symbol, score, price_batch_id, generated_at FROM predictions "
            "WHERE ts = ? AND task_id = ? AND model_id = ? ORDER BY symbol",
            [session, model.task_id, model.model_id],
        )


def next_session(ws: Workspace, day: date) -> date | None:
    """The first stored session after a date."""
    with ws.series.reading("an audit") as con:
        found = read_sessions(con, day + timedelta(days=1))["ts"]
    return found[0].as_py() if len(found) else None
