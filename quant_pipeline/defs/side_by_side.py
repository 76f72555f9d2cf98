"""Several as-ofs trained at a time, each by a run in a process of its own."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import dagster as dg

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.jobs import Runner, train
from quant_pipeline.settings import Home, Task

POOL = "training"


def train_side_by_side(
    runner: Runner, wanted: Mapping[str, Sequence[Task]], n_jobs: int
) -> dict[str, str]:
    """Train partitions `n_jobs` at a time; gives why some could not be trained, by partition.

    An error that is no refusal ends it: what has begun is finished, the rest is not started.
    """
    root = runner.workspace.home.root
    refused: dict[str, str] = {}
    with (
        _pool_of(runner.instance, n_jobs),
        ProcessPoolExecutor(n_jobs, get_context("spawn")) as workers,
    ):
        runs = [
            workers.submit(_train_one, root, key, [t.task_id for t in tasks])
            for key, tasks in wanted.items()
        ]
        try:
            for done, run in enumerate(as_completed(runs)):
                runner.progress(f"models, {n_jobs} at a time", done, len(runs))
                refused |= run.result()
        except BaseException:
            workers.shutdown(cancel_futures=True)
            raise
    runner.progress("models", len(runs), len(runs))
    return {key: refused[key] for key in wanted if key in refused}


def _train_one(root: Path, key: str, task_ids: Sequence[str]) -> dict[str, str]:
    ws = Workspace.open(Home(root))
    with Runner.open(ws) as runner:
        return train(runner, {key: ws.tasks(task_ids)})


@contextmanager
def _pool_of(instance: dg.DagsterInstance, size: int) -> Iterator[None]:
    """Let more steps of the pool run at once for a while."""
    storage = instance.event_log_storage
    storage.set_concurrency_slots(POOL, size)
    try:
        yield
    finally:
        storage.delete_concurrency_limit(POOL)
