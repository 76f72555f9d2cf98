"""Runs that `quant` starts: the same assets, on the home's Dagster instance, in this process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARENT_RUN_ID_TAG,
    ROOT_RUN_ID_TAG,
)

from quant_pipeline.chain.estimate import estimate_backfill
from quant_pipeline.chain.learn import refusals_of
from quant_pipeline.chain.plan import (
    missing_models,
    missing_scores,
    outdated_scores,
    unjudged_after,
)
from quant_pipeline.chain.seal import partition_before
from quant_pipeline.chain.stale import DATA_ASSETS, Stored, read_stored, stale_data
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.instance import bury_dead_runs, open_instance
from quant_pipeline.defs.location import make_definitions
from quant_pipeline.defs.reporting import Progress
from quant_pipeline.defs.retries import STARTED_BY
from quant_pipeline.errors import DegenerateData, NoData, NotEnoughHistory, QuantError
from quant_pipeline.settings import Task

QUIET: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
Tell = Callable[[str], None]
CONFIGURABLE = ("walkforward_folds", "lgbm_model", "predictions", "prediction_outcomes")


def quiet(_what: str, _done: int, _total: int) -> None:
    """Tell nobody."""


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C within a run is Ctrl-C, and not an error of Dagster's."""
    try:
        yield
    except DagsterExecutionInterruptedError:
        raise KeyboardInterrupt from None


@dataclass
class Runner:
    """Materializes assets of one home; `progress` is told what is being done."""

    workspace: Workspace
    instance: dg.DagsterInstance
    job: Any
    progress: Progress = quiet
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(cls, workspace: Workspace, progress: Progress = quiet) -> Iterator["Runner"]:
        """A runner on the home's instance."""
        with open_instance(workspace.home) as instance:
            workspace.require_same_grid()
            bury_dead_runs(instance, workspace.home)
            definitions = make_definitions(workspace)
            job = definitions.resolve_implicit_global_asset_job_def()
            yield cls(workspace, instance, job, progress)

    @classmethod
    def nested(
        cls, workspace: Workspace, instance: dg.DagsterInstance, run_id: str, tell: Tell
    ) -> "Runner":
        """A runner within a step of another run, which its own runs name as their parent."""
        job = make_definitions(workspace).resolve_implicit_global_asset_job_def()
        tags = {PARENT_RUN_ID_TAG: run_id, ROOT_RUN_ID_TAG: run_id}
        return cls(workspace, instance, job, lambda what, *_: tell(what), tags)

    def materialize(
        self, assets: Sequence[str], first: str, last: str, task_ids: Sequence[str] = ()
    ) -> None:
        """One run of some assets over the partitions from `first` to `last`."""
        ops = {a: {"config": {"task_ids": list(task_ids)}} for a in assets if a in CONFIGURABLE}
        one = {"partition_key": first} if first == last else {}
        tags = {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}
        with _interruptible():
            self.job.execute_in_process(
                run_config=QUIET | ({"ops": ops} if ops else {}),
                instance=self.instance,
                asset_selection=[dg.AssetKey(a) for a in assets],
                tags={STARTED_BY: "quant", **self.tags, **({} if one else tags)},
                **one,
            )


def run_job(workspace: Workspace, name: str, progress: Progress) -> Exception | None:
    """One run of a job as its schedule starts it, here; gives what it failed with."""
    with open_instance(workspace.home) as instance:
        bury_dead_runs(instance, workspace.home)
        progress(name, 0, 1)
        job = make_definitions(workspace).resolve_job_def(name)
        try:
            with _interruptible():
                job.execute_in_process(
                    run_config=QUIET, instance=instance, tags={STARTED_BY: "quant"}
                )
        except QuantError as error:
            return error
    progress(name, 1, 1)
    return None


@dataclass
class Backfilled:
    """What a backfill did, or would do."""

    data: dict[str, list[str]] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    scores: list[str] = field(default_factory=list)
    impossible: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    estimate: dict[str, Any] = field(default_factory=dict)


def fill_data(runner: Runner, stored: Stored) -> dict[str, list[str]]:
    """Compute missing or stale partitions of the data assets, from the first price on."""
    stale = {a: list(why) for a, why in stale_data(runner.workspace, stored).items() if why}
    if stale:
        grid = runner.workspace.grid
        keys = {key for found in stale.values() for key in found}
        pieces = stretches(runner.workspace, list(keys))
        for i, (first, last) in enumerate(pieces):
            runner.progress(f"features, labels and frame of {first} to {last}", i, len(pieces))
            within = set(grid.keys(first, last))
            assets = [a for a in DATA_ASSETS if within.intersection(stale.get(a, ()))]
            runner.materialize(assets, first, last)
        runner.progress("features, labels and frame", len(pieces), len(pieces))
    return stale


def train(runner: Runner, wanted: Mapping[str, Sequence[Task]], n_jobs: int = 1) -> dict[str, str]:
    """Train tasks' models of partitions, one run each; gives why some could not be trained.

    With `n_jobs` as many at a time, each in a process of its own, with the same models: a model is
    made from data alone.
    """
    if n_jobs > 1 and len(wanted) > 1:
        from quant_pipeline.defs.side_by_side import train_side_by_side

        return train_side_by_side(runner, wanted, n_jobs)
    refused = {}
    for i, (key, tasks) in enumerate(wanted.items()):
        runner.progress(f"model as of {runner.workspace.grid.asof(key)}", i, len(wanted))
        try:
            runner.materialize(
                ["walkforward_folds", "lgbm_model"], key, key, [t.task_id for t in tasks]
            )
        except (DegenerateData, NotEnoughHistory) as error:
            refused[key] = str(error)  # the incumbent serves; the reason is in the registry
        else:
            reasons = refusals_of(runner.workspace, key, tasks)
            if reasons:
                refused[key] = " ".join(reasons.values())
    if wanted:
        runner.progress("models", len(wanted), len(wanted))
    return refused


def score(runner: Runner, keys: Sequence[str], tasks: Sequence[Task]) -> None:
    """Score partitions and judge what became known in them, in one run for each gapless stretch."""
    for first, last in stretches(runner.workspace, keys):
        runner.progress(f"scores and outcomes of {first} to {last}", 0, 1)
        runner.materialize(
            ["predictions", "prediction_outcomes"], first, last, [t.task_id for t in tasks]
        )
    if keys:
        runner.progress("scores and outcomes", 1, 1)


def close_and_score(runner: Runner, first: date, last: date, tasks: Sequence[Task]) -> list[str]:
    """What a day asks for: fill what is stale, close complete windows, score a range of sessions.

    Earlier partitions get the scores of bars that came late. Closing the window before a
    partition (seal, train) comes before its first score, so that day by day gives what one
    backfill gives. Raises NoData if no session lies in the range.
    """
    ws = runner.workspace
    stored = read_stored(ws)
    if first > last:
        raise NoData(
            f"No session is stored after {first - timedelta(days=1)}; the newest is {last}."
        )
    keys = ws.grid.keys(ws.grid.key(first), ws.grid.key(last))
    fill_data(runner, stored)
    undecided = [k for k in keys if any(not ws.meta.champions(t.task_id, k) for t in tasks)]
    before = dict.fromkeys(partition_before(ws.grid, stored.sessions, key) for key in undecided)
    train(runner, missing_models(ws, stored, [k for k in before if k], tasks)[0])
    score(runner, [*outdated_scores(ws, keys[0], tasks), *keys], tasks)
    return keys


def stretches(ws: Workspace, keys: Sequence[str]) -> list[tuple[str, str]]:
    """First and last key of each run of consecutive partitions."""
    found: list[tuple[str, str]] = []
    for key in sorted(keys, key=lambda k: ws.grid.window(k)[0]):
        if found and ws.grid.shift(found[-1][1], 1) == key:
            found[-1] = (found[-1][0], key)
        else:
            found.append((key, key))
    return found


def plan_backfill(
    ws: Workspace, first: date, last: date, tasks: Sequence[Task], stored: Stored
) -> Backfilled:
    """What a backfill of the partitions from `first` to `last` has to do."""
    keys = _keys_between(ws, first, last, stored)
    data = {a: list(why) for a, why in stale_data(ws, stored).items() if why}
    model_keys = _model_keys(ws, keys, stored)
    models, impossible = missing_models(ws, stored, model_keys, tasks)
    scores = sorted({*missing_scores(ws, keys, tasks), *_served_by(ws, keys, list(models))})
    found = Backfilled(data, list(models), scores, impossible)
    computed = {key for stale in data.values() for key in stale}
    n_stretches = len(stretches(ws, list(computed))) + len(stretches(ws, scores))
    found.estimate = estimate_backfill(ws, data, found.models, scores, tasks, n_stretches)
    return found


def backfill(
    runner: Runner,
    first: date,
    last: date,
    tasks: Sequence[Task],
    select: Sequence[str] = (),
    *,
    dry_run: bool = False,
    n_jobs: int = 1,
) -> Backfilled:
    """Fill history, train the missing models, score: what is done and unchanged is skipped."""
    ws = runner.workspace
    stored = read_stored(ws)
    keys = _keys_between(ws, first, last, stored)
    if select:
        for asset in () if dry_run else select:
            _materialize_selected(runner, asset, keys, tasks)
        return Backfilled(data={asset: keys for asset in select})
    done = Backfilled(data=fill_data(runner, stored))
    wanted, done.impossible = missing_models(ws, stored, _model_keys(ws, keys, stored), tasks)
    done.models = list(wanted)
    done.refused = train(runner, wanted, n_jobs)
    done.scores = missing_scores(ws, keys, tasks)
    score(runner, done.scores, tasks)
    for earliest, latest in stretches(ws, unjudged_after(ws, keys[-1], tasks)):
        ids = [t.task_id for t in tasks]
        runner.materialize(["prediction_outcomes"], earliest, latest, ids)
    return done


def _materialize_selected(
    runner: Runner, asset: str, keys: Sequence[str], tasks: Sequence[Task]
) -> None:
    ids = [t.task_id for t in tasks]
    if asset in ("walkforward_folds", "lgbm_model"):
        for i, key in enumerate(keys):
            runner.progress(f"{asset} {key}", i, len(keys))
            runner.materialize([asset], key, key, ids)
    else:
        runner.progress(f"{asset} {keys[0]} to {keys[-1]}", 0, 1)
        runner.materialize([asset], keys[0], keys[-1], ids)
    runner.progress(asset, 1, 1)


def _keys_between(ws: Workspace, first: date, last: date, stored: Stored) -> list[str]:
    start, end = max(first, stored.first_session), min(last, stored.last_session)
    if end < start:
        raise NoData(
            f"No session is stored between {first} and {last}: prices run from "
            f"{stored.first_session} to {stored.last_session}."
        )
    return ws.grid.keys(ws.grid.key(start), ws.grid.key(end))


def _served_by(ws: Workspace, keys: Sequence[str], models: Sequence[str]) -> list[str]:
    """Partitions that models still to be trained will serve."""
    return [key for key in keys if ws.grid.shift(key, -1) in models]


def _model_keys(ws: Workspace, keys: Sequence[str], stored: Stored) -> list[str]:
    """The as-ofs of a backfill: the one before its first partition, and each of its partitions."""
    before = partition_before(ws.grid, stored.sessions, keys[0])
    return [*([before] if before else []), *keys]
