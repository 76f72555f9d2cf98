"""The eight assets: each takes its inputs, makes one call per task, and describes the result."""

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa

from quant_pipeline.chain.features import features_in_blocks, labels_in_blocks
from quant_pipeline.chain.folds import summarize
from quant_pipeline.chain.frame import write_manifests
from quant_pipeline.chain.ingest import pull_sources
from quant_pipeline.chain.learn import train_tasks, write_folds
from quant_pipeline.chain.outcomes import publish_outcomes, write_outcomes
from quant_pipeline.chain.predict import (
    describe,
    publish_predictions,
    score_challenger,
    score_partition,
)
from quant_pipeline.chain.prices import describe_prices, publish_prices, revalidate
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.describe import (
    describe_features,
    describe_labels,
    describe_model,
    describe_refusals,
    for_each_partition,
    is_open,
    markdown,
    mean,
    raise_or_tell,
    split,
    tell_of_ingest,
    total,
    window,
)
from quant_pipeline.defs.io_manager import Blocks
from quant_pipeline.errors import GateError, ModelFileError, NoData, NotEnoughHistory

BULK = dg.BackfillPolicy.single_run()
ONE_BY_ONE = dg.BackfillPolicy.multi_run(1)
WorkspaceParam = dg.ResourceParam[Workspace]
Grid = dg.TimeWindowPartitionsDefinition
Done = dg.MaterializeResult[None]


class TaskConfig(dg.Config):
    """Which tasks to work on; all of quant.toml's if none is named."""

    task_ids: list[str] = []  # noqa: RUF012 pydantic copies it


def make_assets(grid: Grid) -> list[dg.AssetsDefinition]:
    """All assets on one grid, mapped one to one; scores use the model of the partition before."""
    return [*_market(grid), *_frames(grid), _models(grid), *_predictions(grid)]


def _market(grid: Grid) -> list[dg.AssetsDefinition]:
    @dg.asset(partitions_def=grid, group_name="market", kinds={"duckdb"}, pool="series",
              backfill_policy=BULK)  # fmt: skip
    def prices_daily(context: dg.AssetExecutionContext, workspace: WorkspaceParam) -> Done:
        """One symbol's bar on a session of the partition, as last ingested.

        Ingest is the only writer of prices; materializing this ingests the configured sources
        (ingest.sources in quant.toml) and re-validates what is stored.
        """
        start, end = window(context)
        pulled = pull_sources(workspace)
        if pulled is not None:
            tell_of_ingest(context, pulled)
        revalidate(workspace, start, end)
        publish_prices(workspace)
        described = describe_prices(workspace, context.partition_keys)
        for_each_partition(context, described)
        return dg.MaterializeResult(metadata=total(described))

    @dg.asset(partitions_def=grid, group_name="market", kinds={"duckdb"}, pool="series",
              backfill_policy=BULK, deps=["prices_daily"],
              metadata={"partition_expr": "ts", "key": ["symbol", "ts"],
                        "rows_expected_with_prices": True})  # fmt: skip
    def features_daily(context: dg.AssetExecutionContext, workspace: WorkspaceParam) -> Blocks:
        """What was known of a symbol at the close of a session of the partition."""

        def described() -> Iterator[tuple[list[str], pa.Table]]:
            for keys, found in features_in_blocks(workspace, context.partition_keys):
                for_each_partition(context, describe_features(workspace, found, keys))
                yield keys, found.rows

        return Blocks(described())

    @dg.asset(partitions_def=grid, group_name="market", kinds={"duckdb"}, pool="series",
              backfill_policy=BULK, deps=["prices_daily"],
              metadata={"partition_expr": "known_at", "key": ["task_id", "symbol", "ts"],
                        "some_rows_expected_with_prices": True})  # fmt: skip
    def labels(context: dg.AssetExecutionContext, workspace: WorkspaceParam) -> Blocks:
        """An outcome that became known in the partition; its session `ts` is earlier."""

        def described() -> Iterator[tuple[list[str], pa.Table]]:
            for keys, rows in labels_in_blocks(workspace, context.partition_keys):
                parts = split(workspace, rows, "known_at", keys)
                for_each_partition(context, {key: describe_labels(part) for key, part in parts})
                yield keys, rows

        return Blocks(described())

    return [prices_daily, features_daily, labels]


def _frames(grid: Grid) -> list[dg.AssetsDefinition]:
    @dg.asset(partitions_def=grid, group_name="learning", kinds={"duckdb"}, pool="series",
              backfill_policy=BULK, deps=["features_daily", "labels"])  # fmt: skip
    def training_frame(context: dg.AssetExecutionContext, workspace: WorkspaceParam) -> Done:
        """An example that became trainable in the partition: a view, and one manifest a task."""
        manifests = write_manifests(workspace, context.partition_keys, context.run.run_id)
        described: dict[str, dict[str, Any]] = {}
        for row in manifests:
            described.setdefault(row["partition_key"], {}).update(
                {f"{row['task_id']}/{name}": row[name] for name in
                 ("n_rows", "n_outside_universe", "n_short_history", "n_without_features",
                  "n_no_entry_bar", "n_no_exit_bar", "n_suspect_jump", "fingerprint")}
            )  # fmt: skip
        for_each_partition(context, described)
        return dg.MaterializeResult(metadata={"manifests": len(manifests)})

    @dg.asset(partitions_def=grid, group_name="learning", kinds={"duckdb"}, pool="series",
              backfill_policy=ONE_BY_ONE, deps=["training_frame"],
              output_required=False)  # fmt: skip
    def walkforward_folds(
        context: dg.AssetExecutionContext, workspace: WorkspaceParam, config: TaskConfig
    ) -> Iterator[Done]:
        """Folds of the validation protocol for a model as of the end of the partition."""
        key = context.partition_key
        if is_open(context, workspace):
            return
        refused: dict[str, Exception] = {}
        rows = []
        for task in workspace.tasks(config.task_ids):
            try:
                rows += write_folds(workspace, key, task, context.run.run_id)
            except NotEnoughHistory as error:
                refused[task.task_id] = error  # must not cost the others their folds
        raise_or_tell(context, refused, found=bool(rows))
        folds = summarize(rows)
        described: dict[str, Any] = {"folds": len(folds), "windows": markdown(folds)}
        yield dg.MaterializeResult(metadata=described | describe_refusals(refused))

    return [training_frame, walkforward_folds]


def _models(grid: Grid) -> dg.AssetsDefinition:
    @dg.asset(partitions_def=grid, group_name="learning", kinds={"lightgbm"}, pool="training",
              backfill_policy=ONE_BY_ONE, deps=["walkforward_folds"],
              output_required=False)  # fmt: skip
    def lgbm_model(
        context: dg.AssetExecutionContext, workspace: WorkspaceParam, config: TaskConfig
    ) -> Iterator[Done]:
        """One trained model a task, from everything known by the as-of date."""
        if is_open(context, workspace):
            return
        refused: dict[str, Exception] = {}
        described: dict[str, Any] = {}
        tasks = workspace.tasks(config.task_ids)
        trained = train_tasks(workspace, context.partition_key, tasks, context.run.run_id)
        for task_id, result in trained.items():
            if isinstance(result, Exception):
                refused[task_id] = result  # must not cost the others their model
            else:
                described.update(describe_model(result))
        raise_or_tell(context, refused, found=bool(described))
        yield dg.MaterializeResult(metadata=described | describe_refusals(refused))

    return lgbm_model


def score_in_the_shadow(
    context: dg.AssetExecutionContext, workspace: Workspace, task_ids: Sequence[str]
) -> None:
    """Score each partition's challenger; what it lacks is logged and costs the champion nothing."""
    for key in context.partition_keys:
        for task in workspace.tasks(task_ids):
            try:
                score_challenger(workspace, key, task)
            except (GateError, ModelFileError, NoData) as error:
                context.log.warning(f"No shadow scores of {task.task_id} in {key}: {error}")


def _predictions(grid: Grid) -> list[dg.AssetsDefinition]:
    one_before = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)

    @dg.asset(partitions_def=grid, group_name="predictions", kinds={"duckdb"}, pool="series",
              backfill_policy=BULK,
              deps=["features_daily",
                    dg.AssetDep("lgbm_model", partition_mapping=one_before)])  # fmt: skip
    def predictions(
        context: dg.AssetExecutionContext, workspace: WorkspaceParam, config: TaskConfig
    ) -> Done:
        """One symbol's score on a session of the partition, by the champion frozen at its start."""
        described: dict[str, dict[str, Any]] = {}
        for key in context.partition_keys:
            for task in workspace.tasks(config.task_ids):
                scored = score_partition(workspace, key, task, context.run.run_id)
                if scored.n_different:
                    context.log.error(
                        f"{scored.n_different} stored scores of {task.task_id} in {key} would come "
                        "out different today. They stay as they are; their inputs were restated."
                    )
                described.setdefault(key, {}).update(
                    {f"{task.task_id}/{name}": value for name, value in describe(scored).items()}
                )
        publish_predictions(workspace, context.partition_keys)
        score_in_the_shadow(context, workspace, config.task_ids)
        for_each_partition(context, described)
        return dg.MaterializeResult(metadata={"partitions": len(described)})

    @dg.asset(partitions_def=grid, group_name="predictions", kinds={"duckdb"}, pool="series",
              backfill_policy=BULK, deps=["labels", "predictions"])  # fmt: skip
    def prediction_outcomes(
        context: dg.AssetExecutionContext, workspace: WorkspaceParam, config: TaskConfig
    ) -> Done:
        """How scores whose labels became known in the partition turned out, by session and task."""
        keys = list(context.partition_keys)
        described: dict[str, dict[str, Any]] = {key: {} for key in keys}
        for task in workspace.tasks(config.task_ids):
            rows = write_outcomes(workspace, keys, task, context.run.run_id)
            for key in keys:
                mine = [r for r in rows if workspace.grid.key(r["known_at"]) == key]
                described[key][f"{task.task_id}/sessions"] = len(mine)
                for origin in sorted({r["origin"] for r in mine}):
                    described[key][f"{task.task_id}/mean_rank_ic, {origin}"] = mean(
                        r["rank_ic"] for r in mine if r["origin"] == origin
                    )
        publish_outcomes(workspace, keys)
        for_each_partition(context, described)
        return dg.MaterializeResult(metadata={"partitions": len(keys)})

    return [predictions, prediction_outcomes]
