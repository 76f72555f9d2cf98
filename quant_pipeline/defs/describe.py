"""What assets tell people: metadata for each partition, tables, and words for the log."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.chain.features import FeatureRows
from quant_pipeline.chain.ingest import IngestReport
from quant_pipeline.chain.seal import judge_until, waiting_message
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.market.labels import REASONS

ROW_COUNT = "dagster/row_count"


def window(context: dg.AssetExecutionContext) -> tuple[Any, Any]:
    """The dates ``[start, end)`` of the partitions of this run."""
    span = context.partition_time_window
    return span.start.date(), span.end.date()


def is_open(context: dg.AssetExecutionContext, workspace: Workspace) -> bool:
    """Whether the run's partition may get more sessions; says so in the log."""
    key = context.partition_key
    looked_at = judge_until(workspace, key)
    if looked_at and not looked_at[-1].is_sealable:
        context.log.warning(waiting_message(looked_at[-1], key))
        return True
    return False


def split(
    workspace: Workspace, rows: pa.Table, column: str, keys: Sequence[str]
) -> Iterator[tuple[str, pa.Table]]:
    """Rows by partition."""
    days = rows[column]
    for key in keys:
        start, end = workspace.grid.window(key)
        yield key, rows.filter(pc.and_(pc.greater_equal(days, start), pc.less(days, end)))


def tell_of_ingest(context: dg.AssetExecutionContext, report: IngestReport) -> None:
    """Log what an ingest did, and record the partitions it changed that are not the run's own."""
    context.log.info(f"Ingested {report.source}: {report}")
    for problem in report.problems:
        context.log.warning(f"Not read: {problem}")
    for key in set(report.changed_keys) - set(context.partition_keys):
        metadata = {"batch_id": report.batch_id}
        context.instance.report_runless_asset_event(
            dg.AssetMaterialization(context.asset_key, partition=key, metadata=metadata)
        )


def describe_features(
    workspace: Workspace, found: FeatureRows, keys: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Rows, members and jumps of each partition."""
    counted = found.rows.select(["symbol", "ts", "in_universe", "lacks_history"])
    counted = counted.append_column("is_jump", pa.array(found.is_jump))
    counted = counted.append_column("spans_jump", pa.array(found.spans_jump))
    names = {
        "in_universe": "in_universe", "short_history": "lacks_history", "flagged_jumps": "is_jump",
        "rows_that_span_a_jump": "spans_jump",
    }  # fmt: skip
    return {
        key: {"rows": len(part), ROW_COUNT: len(part), "symbols": len(pc.unique(part["symbol"])),
              **{name: pc.sum(part[column]).as_py() or 0 for name, column in names.items()}}
        for key, part in split(workspace, counted, "ts", keys)
    }  # fmt: skip


def describe_labels(rows: pa.Table) -> dict[str, Any]:
    """Labels, their mean, and the bars without one by reason."""
    mean_label = pc.mean(rows["label"]).as_py()
    n_by_reason = {reason: pc.sum(pc.equal(rows["reason"], reason)).as_py() for reason in REASONS}
    return {
        "rows": len(rows) - sum(n or 0 for n in n_by_reason.values()),
        ROW_COUNT: len(rows),
        "mean_label": float("nan") if mean_label is None else mean_label,
        **{f"without_label/{reason}": n or 0 for reason, n in n_by_reason.items()},
    }


def for_each_partition(
    context: dg.AssetExecutionContext, described: dict[str, dict[str, Any]]
) -> None:
    """Metadata for each partition of a run that fills several; what is not known is left out.

    GraphQL has no NaN: the web UI would show an error instead of the partition.
    """
    for key, metadata in described.items():
        known = {k: v for k, v in metadata.items() if v == v}  # not NaN
        context.add_asset_metadata(known, partition_key=key)


def total(described: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Sums over partitions of what can be summed."""
    names = {name for row in described.values() for name, v in row.items() if isinstance(v, int)}
    rows = described.values()
    return {f"{name} in this run": sum(row.get(name, 0) for row in rows) for name in names}


def mean(values: Any) -> float:
    """Mean of what is there, NaN if nothing is."""
    found = [v for v in values if v is not None]
    return sum(found) / len(found) if found else float("nan")


def markdown(rows: Sequence[dict[str, Any]]) -> dg.MetadataValue[Any]:
    """Rows as a table for the web UI."""
    if not rows:
        return dg.MetadataValue.md("none")
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        cells = (f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return dg.MetadataValue.md("\n".join(lines))


FOLD_COLUMNS = (
    "fold", "train_start", "train_end", "stop_start", "stop_end", "test_start", "test_end",
    "n_train", "n_stop", "n_test", "n_purged", "rounds", "rank_ic", "rank_ic_se", "base_rate",
    "accuracy", "accuracy_base", "auc", "log_loss", "log_loss_base", "mse", "mse_base",
    "ndcg_at_k", "ndcg_at_k_base",
)  # fmt: skip
MODEL_METRICS = (
    "rank_ic", "rank_ic_se", "ic", "icir", "top_minus_bottom", "top_minus_bottom_se", "base_rate",
    "accuracy", "accuracy_base", "precision", "recall", "auc", "average_precision", "log_loss",
    "log_loss_base", "mse", "mse_base", "r2", "ndcg_at_k", "ndcg_at_k_base",
)  # fmt: skip


def describe_model(model: Any) -> dict[str, Any]:
    """Metadata of a model for people, by task."""
    task = model.task_id
    folds = [{k: fold[k] for k in FOLD_COLUMNS if k in fold} for fold in model.fold_metrics]
    gain = model.importance["gain"]
    spread = model.importance["fold_gain_std"]
    best = sorted(gain, key=lambda name: -gain[name])[:10]
    return {
        f"{task}/model_id": model.model_id,
        f"{task}/rows": model.n_rows,
        f"{task}/rounds": model.rounds,
        **{f"{task}/{k}": v for k in MODEL_METRICS if isinstance(v := model.metrics.get(k), float)},
        f"{task}/folds": markdown(folds),
        f"{task}/importance": markdown(
            [{"feature": n, "gain": gain[n], "± over folds": spread[n]} for n in best]
        ),
    }


def describe_refusals(refused: Mapping[str, Exception]) -> dict[str, Any]:
    """Metadata of tasks that got no model or folds, and why."""
    return {f"{task_id}/refused": str(error) for task_id, error in refused.items()}


def raise_or_tell(
    context: dg.AssetExecutionContext, refused: Mapping[str, Exception], *, found: bool
) -> None:
    """Fail the step if nothing was found; else log what was refused."""
    if refused and not found:
        raise next(iter(refused.values()))
    for reason in refused.values():
        context.log.error(str(reason))
