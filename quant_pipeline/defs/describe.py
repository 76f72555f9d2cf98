"""What assets tell people: metadata for each partition, tables, and words for the log."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.chain.features import FeatureRows
from quant_pipeline.chain.ingest import IngestReport
from quant_pipeline.chain.predict import Scored, describe
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
    """Rows, symbols and sessions of each partition, and what is left out later, by reason."""
    counted = found.rows.select(["symbol", "ts", "in_universe", "lacks_history"])
    counted = counted.append_column("is_jump", pa.array(found.is_jump))
    counted = counted.append_column("spans_jump", pa.array(found.spans_jump))
    names = {
        "in_universe": "in_universe", "short_history": "lacks_history", "flagged_jumps": "is_jump",
        "rows_that_span_a_jump": "spans_jump",
    }  # fmt: skip
    described = {}
    for key, part in split(workspace, counted, "ts", keys):
        numbers = {name: pc.sum(part[column]).as_py() or 0 for name, column in names.items()}
        n_outside = len(part) - numbers["in_universe"] - numbers["short_history"]
        described[key] = {
            "rows": len(part), ROW_COUNT: len(part), "symbols": len(pc.unique(part["symbol"])),
            "sessions": len(pc.unique(part["ts"])), **numbers, "outside_universe": n_outside,
        }  # fmt: skip
    return described


def describe_labels(rows: pa.Table) -> dict[str, Any]:
    """Labels of each task, their mean, and the bars without one by reason."""
    described: dict[str, Any] = {ROW_COUNT: len(rows)}
    for task_id in sorted(pc.unique(rows["task_id"]).to_pylist()):
        mine = rows.filter(pc.equal(rows["task_id"], task_id))
        mean_label = pc.mean(mine["label"]).as_py()
        reasons = mine["reason"]
        described |= {
            f"{task_id}/rows": reasons.null_count,
            f"{task_id}/symbols": len(pc.unique(mine["symbol"])),
            f"{task_id}/mean_label": float("nan") if mean_label is None else mean_label,
            **{
                f"{task_id}/without_label/{reason}": pc.sum(pc.equal(reasons, reason)).as_py() or 0
                for reason in REASONS
            },
        }
    return described


def describe_manifests(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Trainable rows of each partition and task, those dropped by reason, and fingerprints."""
    described: dict[str, dict[str, Any]] = {}
    for row in rows:
        task = row["task_id"]
        mine = described.setdefault(row["partition_key"], {ROW_COUNT: 0})
        mine[ROW_COUNT] += row["n_rows"]
        mine |= {f"{task}/rows": row["n_rows"], f"{task}/symbols": row["n_symbols"]}
        mine |= {f"{task}/dropped/{why}": row[f"n_{why}"] for why in DROPPED}
        mine[f"{task}/fingerprint"] = row["fingerprint"]
    return described


DROPPED = (
    "outside_universe", "short_history", "without_features", "no_entry_bar", "no_exit_bar",
    "suspect_jump",
)  # fmt: skip


def describe_folds(folds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The windows as a table, and how many folds, rows and purged rows there are."""
    purged = sum(v for fold in folds for name, v in fold.items() if name.endswith(" n_purged"))
    return {"windows": markdown(folds), "folds": len(folds), "purged": purged}


def describe_scored(scored: Scored) -> dict[str, Any]:
    """What scoring a task did, with the champion and why it serves."""
    return {f"{scored.task_id}/{name}": value for name, value in describe(scored).items()}


OUTCOME_METRICS = ("rank_ic", "ic", "hit_rate", "base_rate", "top_minus_bottom")


def describe_outcomes(task_id: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sessions, scores and mean metrics of a task's outcomes; of each origin for itself."""
    described: dict[str, Any] = {f"{task_id}/sessions": len(rows)}
    for origin in sorted({r["origin"] for r in rows}):
        mine = [r for r in rows if r["origin"] == origin]
        described[f"{task_id}/{origin}/rows"] = sum(r["n"] for r in mine)
        for name in OUTCOME_METRICS:
            described[f"{task_id}/{origin}/{name}"] = mean(r[name] for r in mine)
    return described


def with_row_count(described: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same with the number of rows under the name that Dagster shows them by."""
    return {
        key: {**row, ROW_COUNT: sum(v for name, v in row.items() if name.split("/")[-1] == "rows")}
        for key, row in described.items()
    }


def for_each_partition(
    context: dg.AssetExecutionContext, described: dict[str, dict[str, Any]]
) -> None:
    """Metadata for each partition of a run that fills several."""
    for key, metadata in described.items():
        context.add_asset_metadata(known(metadata), partition_key=key)


def known(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What is known, to six digits; GraphQL has no NaN: the web UI would show an error."""
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in metadata.items() if value == value  # not NaN
    }  # fmt: skip


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
        lines.append("| " + " | ".join(_cell(value) for value in row.values()) + " |")
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:g}" if value.is_integer() else f"{value:.4f}"
    return str(value)


# As many as the page has room for; the other windows are in walkforward_folds.
FOLD_COLUMNS = (
    "fold", "test_start", "test_end", "n_train", "n_purged", "rounds", "rank_ic",
    "rank_ic_se", "auc", "r2",
)  # fmt: skip
MODEL_METRICS = (
    "rank_ic", "rank_ic_se", "ic", "icir", "top_minus_bottom", "top_minus_bottom_se", "base_rate",
    "accuracy", "accuracy_base", "precision", "recall", "auc", "average_precision", "log_loss",
    "log_loss_base", "mse", "mse_base", "r2", "ndcg_at_k", "ndcg_at_k_base",
)  # fmt: skip


def describe_model(model: Any) -> dict[str, Any]:
    """Metadata of a model for people, by task: first how it did, then what it is."""
    task = model.task_id
    folds = [{k: fold[k] for k in FOLD_COLUMNS if k in fold} for fold in model.fold_metrics]
    metrics = {f"{task}/{k}": v for k in MODEL_METRICS if _is_number(v := model.metrics.get(k))}
    return {
        f"{task}/folds": markdown(folds),
        **known(metrics),
        f"{task}/rows": model.n_rows,
        f"{task}/sessions": model.n_sessions,
        f"{task}/symbols": model.n_symbols,
        f"{task}/rounds": model.rounds,
        f"{task}/training_seconds": round(model.seconds, 2),
        f"{task}/file_bytes": model.file_bytes,
        f"{task}/model_id": model.model_id,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, float)


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
