"""Asset checks: the gates that consuming steps call and raise from, shown in the web UI."""

from collections.abc import Callable, Sequence

import dagster as dg

from quant_pipeline.chain.folds import count_overlaps
from quant_pipeline.chain.training_data import read_examples
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import QuantError
from quant_pipeline.ml.gate import require_usable
from quant_pipeline.settings import alike

WorkspaceParam = dg.ResourceParam[Workspace]


def make_checks(
    grid: dg.TimeWindowPartitionsDefinition,
) -> Sequence[dg.AssetChecksDefinition]:
    """All checks, partitioned like their assets."""

    @dg.asset_check(asset="training_frame", partitions_def=grid)
    def examples_are_as_recorded(
        context: dg.AssetCheckExecutionContext, workspace: WorkspaceParam
    ) -> dg.AssetCheckResult:
        """Every increment of the training window is there and has its recorded fingerprint."""
        key = newest_key(context)

        def gate() -> None:
            with workspace.series.reading("check") as con:
                for tasks in alike(workspace.settings.tasks):
                    read_examples(workspace, con, key, tasks)

        return outcome(gate)

    @dg.asset_check(asset="walkforward_folds", partitions_def=grid)
    def windows_do_not_overlap(
        context: dg.AssetCheckExecutionContext, workspace: WorkspaceParam
    ) -> dg.AssetCheckResult:
        """No example of a window has an outcome where another window of its fold has examples.

        Counted in SQL from the stored windows, with nothing of the code that cut them; the
        windows hold exactly the rows that they are said to have kept.
        """
        key = newest_key(context)
        asof = workspace.grid.asof(key)
        with workspace.series.reading("check") as con:
            tasks = workspace.settings.tasks
            found = [count_overlaps(con, key, task, asof) for task in tasks]
        n_overlaps, n_said, n_there = (sum(numbers) for numbers in zip(*found, strict=True))
        return dg.AssetCheckResult(
            passed=n_overlaps == 0 and n_said == n_there,
            metadata={"overlaps": n_overlaps, "rows_kept": n_said, "rows_there": n_there},
        )

    @dg.asset_check(asset="lgbm_model", partitions_def=grid)
    def model_is_usable(
        context: dg.AssetCheckExecutionContext, workspace: WorkspaceParam
    ) -> dg.AssetCheckResult:
        """Each model of the partition has splits and finite out-of-sample metrics, and its file."""
        key = newest_key(context)

        def gate() -> None:
            for model in workspace.meta.models():
                if model.partition_key == key:
                    require_usable(model.model_id[:12], model.metrics, model.rounds)
                    workspace.files.read(model.model_id)

        return outcome(gate)

    @dg.asset_check(asset="predictions", partitions_def=grid)
    def scores_come_from_earlier_models(
        context: dg.AssetCheckExecutionContext, workspace: WorkspaceParam
    ) -> dg.AssetCheckResult:
        """Every score of the partition is by a model of its task, as of before its session."""
        keys = context.op_execution_context.partition_keys
        start, end = workspace.grid.window(keys[0])[0], workspace.grid.window(keys[-1])[1]
        models = {m.model_id: m for m in workspace.meta.models()}
        pairs = workspace.series.query(
            'SELECT DISTINCT model_id, task_id, "asof", min(ts) AS first_ts FROM predictions '
            "WHERE ts >= ? AND ts < ? GROUP BY ALL",
            [start, end],
        ).to_pylist()
        bad = [
            p for p in pairs
            if p["model_id"] not in models
            or models[p["model_id"]].task_id != p["task_id"]
            or models[p["model_id"]].asof >= p["first_ts"]
            or models[p["model_id"]].asof != p["asof"]
        ]  # fmt: skip
        return dg.AssetCheckResult(passed=not bad, metadata={"models": len(pairs), "bad": len(bad)})

    return [
        examples_are_as_recorded,
        windows_do_not_overlap,
        model_is_usable,
        scores_come_from_earlier_models,
    ]


def newest_key(context: dg.AssetCheckExecutionContext) -> str:
    """The newest partition of a run, whose window holds those of the others."""
    return str(context.op_execution_context.partition_keys[-1])


def outcome(gate: Callable[[], None]) -> dg.AssetCheckResult:
    """Passed, or failed with the words of the gate."""
    try:
        gate()
    except QuantError as error:
        return dg.AssetCheckResult(passed=False, description=str(error))
    return dg.AssetCheckResult(passed=True)
