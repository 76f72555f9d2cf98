"""The eight assets: each takes its inputs, makes one call per task, and describes the result."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa

from quant_pipeline.chain.features import features_in_blocks, labels_in_blocks
from quant_pipeline.chain.folds import summarize
from quant_pipeline.chain.frame import write_manifests
from quant_pipeline.chain.ingest import pull_sources
from quant_pipeline.chain.learn import train_tasks, write_folds
from quant_pipeline.chain.outcomes import publish_outcomes, write_outcomes
from quant_pipeline.chain.predict import publish_predictions, score_challenger, score_partition
from quant_pipeline.chain.prices import describe_prices, publish_prices, revalidate
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.columns import catalogue, named, schema_of_own
from quant_pipeline.defs.describe import (
    describe_features,
    describe_folds,
    describe_labels,
    describe_manifests,
    describe_model,
    describe_outcomes,
    describe_refusals,
    describe_scored,
    for_each_partition,
    is_open,
    raise_or_tell,
    split,
    tell_of_ingest,
    window,
    with_row_count,
)
from quant_pipeline.defs.io_manager import Blocks
from quant_pipeline.defs.meter import Meter
from quant_pipeline.defs.pictures import Pictures
from quant_pipeline.defs.retries import retried
from quant_pipeline.errors import GateError, ModelFileError, NoData, NotEnoughHistory
from quant_pipeline.settings import Settings

BULK = dg.BackfillPolicy.single_run()
ONE_BY_ONE = dg.BackfillPolicy.multi_run(1)
OWNERS = ["team:quant"]
WorkspaceParam = dg.ResourceParam[Workspace]
Grid = dg.TimeWindowPartitionsDefinition
Done = dg.MaterializeResult[None]
Schemas = Mapping[str, Mapping[str, Any]]


class TaskConfig(dg.Config):
    """Which tasks to work on; all of quant.toml's if none is named."""

    task_ids: list[str] = []  # noqa: RUF012 pydantic copies it


def make_assets(grid: Grid, settings: Settings) -> list[dg.AssetsDefinition]:
    """All assets on one grid, mapped one to one; scores use the model of the partition before."""
    schemas = catalogue(settings)
    makers = (_prices, _features, _labels, _frame, _folds, _models, _predictions, _outcomes)
    return [make(grid, schemas) for make in makers]


def _prices(grid: Grid, schemas: Schemas) -> dg.AssetsDefinition:
    @dg.asset(partitions_def=grid, group_name="market", kinds={"csv", "duckdb"}, owners=OWNERS,
              pool="series", backfill_policy=BULK,
              metadata=schemas["prices_daily"])  # fmt: skip
    @retried
    def prices_daily(context: dg.AssetExecutionContext, workspace: WorkspaceParam) -> Done:
        """One symbol's bar on a session of the partition, as last ingested.

        Ingest is the only writer of prices and keeps every earlier version; materializing this
        ingests the configured sources (ingest.sources in quant.toml) and re-validates what is
        stored.
        """
        meter = Meter()
        start, end = window(context)
        pulled = pull_sources(workspace)
        if pulled is not None:
            tell_of_ingest(context, pulled)
        revalidate(workspace, start, end)
        publish_prices(workspace)
        described = describe_prices(workspace, context.partition_keys)
        for_each_partition(context, with_row_count(described))
        meter.tell(context)
        return dg.MaterializeResult()

    return prices_daily


def _features(grid: Grid, schemas: Schemas) -> dg.AssetsDefinition:
    @dg.asset(partitions_def=grid, group_name="market", kinds={"numpy", "duckdb"}, owners=OWNERS,
              pool="series", backfill_policy=BULK, deps=["prices_daily"],
              metadata={"partition_expr": "ts", "key": ["symbol", "ts"],
                        "rows_expected_with_prices": True,
                        **schemas["features_daily"]})  # fmt: skip
    @retried
    def features_daily(context: dg.AssetExecutionContext, workspace: WorkspaceParam) -> Blocks:
        """What was known of a symbol at the close of a session of the partition.

        One float32 column a feature, its formula in the column's description. Look-back reaches
        into earlier partitions, never into later ones.
        """
        meter = Meter()

        def described() -> Iterator[tuple[list[str], pa.Table]]:
            for keys, found in features_in_blocks(workspace, context.partition_keys):
                for_each_partition(context, describe_features(workspace, found, keys))
                yield keys, found.rows
            meter.tell(context)
            context.add_asset_metadata(named("features_daily"))
            newest = schema_of_own(workspace)
            context.add_asset_metadata(newest, partition_key=context.partition_keys[-1])

        return Blocks(described(), context.run)

    return features_daily


def _labels(grid: Grid, schemas: Schemas) -> dg.AssetsDefinition:
    @dg.asset(partitions_def=grid, group_name="market", kinds={"numpy", "duckdb"}, owners=OWNERS,
              pool="series", backfill_policy=BULK, deps=["prices_daily"],
              metadata={"partition_expr": "known_at", "key": ["task_id", "symbol", "ts"],
                        "some_rows_expected_with_prices": True,
                        **schemas["labels"]})  # fmt: skip
    @retried
    def labels(context: dg.AssetExecutionContext, workspace: WorkspaceParam) -> Blocks:
        """An outcome that became known in the partition; its session `ts` is earlier.

        The return from the close at which a score could be traded, over the task's horizon.
        """
        meter = Meter()

        def described() -> Iterator[tuple[list[str], pa.Table]]:
            for keys, rows in labels_in_blocks(workspace, context.partition_keys):
                parts = split(workspace, rows, "known_at", keys)
                for_each_partition(context, {key: describe_labels(part) for key, part in parts})
                yield keys, rows
            meter.tell(context)
            context.add_asset_metadata(named("labels"))

        return Blocks(described(), context.run)

    return labels


def _frame(grid: Grid, schemas: Schemas) -> dg.AssetsDefinition:
    @dg.asset(partitions_def=grid, group_name="learning", kinds={"view", "duckdb"}, owners=OWNERS,
              pool="series", backfill_policy=BULK, deps=["features_daily", "labels"],
              metadata=schemas["training_frame"])  # fmt: skip
    @retried
    def training_frame(context: dg.AssetExecutionContext, workspace: WorkspaceParam) -> Done:
        """An example that became trainable in the partition: features at `ts`, the label known now.

        A view of features and labels, and a stored manifest of each partition and task: rows,
        those dropped by reason, and a fingerprint that training checks first.
        """
        meter = Meter()
        manifests = write_manifests(workspace, context.partition_keys, context.run.run_id)
        for_each_partition(context, describe_manifests(manifests))
        meter.tell(context)
        return dg.MaterializeResult()

    return training_frame


def _folds(grid: Grid, schemas: Schemas) -> dg.AssetsDefinition:
    @dg.asset(partitions_def=grid, group_name="learning", kinds={"duckdb"}, owners=OWNERS,
              pool="series", backfill_policy=ONE_BY_ONE, deps=["training_frame"],
              output_required=False,
              metadata=schemas["walkforward_folds"])  # fmt: skip
    @retried
    def walkforward_folds(
        context: dg.AssetExecutionContext, workspace: WorkspaceParam, config: TaskConfig
    ) -> Iterator[Done]:
        """Folds of the validation protocol for a model as of the end of the partition.

        Whole sessions in time order: train, early stopping, test; no label of an earlier window
        is known on or after the first session of a later one.
        """
        meter = Meter()
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
        described = (
            describe_folds(summarize(rows)) | with_row_count({key: {"rows": len(rows)}})[key]
        )
        for_each_partition(context, {key: described | describe_refusals(refused)})
        meter.tell(context)
        yield dg.MaterializeResult()

    return walkforward_folds


def _models(grid: Grid, schemas: Schemas) -> dg.AssetsDefinition:
    @dg.asset(partitions_def=grid, group_name="learning", kinds={"lightgbm", "sqlite"},
              owners=OWNERS, pool="training", backfill_policy=ONE_BY_ONE,
              deps=["walkforward_folds"], output_required=False,
              metadata=schemas["lgbm_model"])  # fmt: skip
    @retried
    def lgbm_model(
        context: dg.AssetExecutionContext, workspace: WorkspaceParam, config: TaskConfig
    ) -> Iterator[Done]:
        """One trained model a task, from everything known by the as-of date.

        A file named by its own hash, and a row of the registry with metrics of the folds' test
        windows. It serves the next partition at the earliest.
        """
        meter = Meter()
        if is_open(context, workspace):
            return
        refused: dict[str, Exception] = {}
        described: dict[str, Any] = {}
        tasks = workspace.tasks(config.task_ids)
        pictures = Pictures(context, workspace)
        trained = train_tasks(
            workspace, context.partition_key, tasks, context.run.run_id, pictures.note_tests
        )
        for task_id, result in trained.items():
            if isinstance(result, Exception):
                refused[task_id] = result  # must not cost the others their model
            else:
                described |= pictures.of_model(result) | describe_model(result)
        raise_or_tell(context, refused, found=bool(described))
        # As a result's own, Dagster would store it twice: with the output, too.
        for_each_partition(context, {context.partition_key: described | describe_refusals(refused)})
        meter.tell(context)
        yield dg.MaterializeResult()

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


def _predictions(grid: Grid, schemas: Schemas) -> dg.AssetsDefinition:
    one_before = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)

    @dg.asset(partitions_def=grid, group_name="predictions", kinds={"duckdb", "parquet"},
              owners=OWNERS, pool="series", backfill_policy=BULK,
              deps=["features_daily", dg.AssetDep("lgbm_model", partition_mapping=one_before)],
              metadata=schemas["predictions"])  # fmt: skip
    @retried
    def predictions(
        context: dg.AssetExecutionContext, workspace: WorkspaceParam, config: TaskConfig
    ) -> Done:
        """One symbol's score on a session of the partition, by the champion frozen at its start.

        Only ever added to: a stored score never changes. Also published as Parquet.
        """
        meter = Meter()
        described: dict[str, dict[str, Any]] = {key: {} for key in context.partition_keys}
        for key in context.partition_keys:
            for task in workspace.tasks(config.task_ids):
                scored = score_partition(workspace, key, task, context.run.run_id)
                if scored.n_different:
                    context.log.error(
                        f"{scored.n_different} stored scores of {task.task_id} in {key} would come "
                        "out different today. They stay as they are; their inputs were restated."
                    )
                described[key] |= describe_scored(scored)
        publish_predictions(workspace, context.partition_keys)
        score_in_the_shadow(context, workspace, config.task_ids)
        for_each_partition(context, with_row_count(described))
        meter.tell(context)
        return dg.MaterializeResult()

    return predictions


def _outcomes(grid: Grid, schemas: Schemas) -> dg.AssetsDefinition:
    @dg.asset(partitions_def=grid, group_name="predictions", kinds={"duckdb", "parquet"},
              owners=OWNERS, pool="series", backfill_policy=BULK, deps=["labels", "predictions"],
              metadata=schemas["prediction_outcomes"])  # fmt: skip
    @retried
    def prediction_outcomes(
        context: dg.AssetExecutionContext, workspace: WorkspaceParam, config: TaskConfig
    ) -> Done:
        """How scores whose labels became known in the partition turned out, by session and task.

        RankIC, hit rate and top minus bottom of each session; live and backfilled scores are never
        pooled. Also published as Parquet.
        """
        meter = Meter()
        keys = list(context.partition_keys)
        described: dict[str, dict[str, Any]] = {key: {} for key in keys}
        pictures = Pictures(context, workspace)
        for task in workspace.tasks(config.task_ids):
            rows = write_outcomes(workspace, keys, task, context.run.run_id)
            for key in keys:
                mine = [r for r in rows if workspace.grid.key(r["known_at"]) == key]
                shown = pictures.of_outcomes(task, key, rows) if mine else {}
                described[key] |= shown | describe_outcomes(task.task_id, mine)
        publish_outcomes(workspace, keys)
        for_each_partition(context, described)
        meter.tell(context)
        return dg.MaterializeResult()

    return prediction_outcomes
