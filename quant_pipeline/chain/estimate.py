"""What a backfill will take: runs, minutes and disk, from what earlier ones took."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.settings import Task

# Measured on two cores (bench/README.md); what a home has recorded itself is used first.
SECONDS_PER_ROW = {"features_daily": 10e-6, "labels": 3e-6, "training_frame": 9e-6}
SECONDS_PER_EVENT = 0.03
SECONDS_PER_MODEL_ROW = 35e-6
BYTES_PER_VALUE = 3.2  # of a feature
BYTES_PER_LABEL = 40.0
BYTES_PER_SCORE = 60.0
MODEL_BYTES = 200_000.0


def estimate_backfill(
    ws: Workspace,
    data: Mapping[str, Sequence[str]],
    models: Sequence[str],
    scores: Sequence[str],
    tasks: Sequence[Task],
    n_stretches: int,
) -> dict[str, Any]:
    """Partitions, runs, minutes and MiB of partitions to be computed, trained and scored.

    `n_stretches` are the gapless runs of partitions of data and of scores, one run each.
    """
    n_rows = _bars_by_partition(ws)
    n_tasks = len(tasks)
    seconds, size = 0.0, 0.0
    for asset, keys in data.items():
        rows = sum(n_rows.get(key, 0) for key in keys)
        copies = 1 if asset == "features_daily" else n_tasks
        seconds += rows * copies * SECONDS_PER_ROW.get(asset, 0.0) + len(keys) * SECONDS_PER_EVENT
        if asset == "features_daily":
            size += rows * len(ws.features) * BYTES_PER_VALUE
        elif asset == "labels":
            size += rows * copies * BYTES_PER_LABEL
    recorded = [m for task in tasks for m in ws.meta.models(task.task_id)]
    if recorded:
        each, weight = median(m.seconds for m in recorded), median(m.file_bytes for m in recorded)
    else:
        usual = ws.settings.train.window_sessions * median(n_rows.values() or [0]) / 21
        each, weight = usual * SECONDS_PER_MODEL_ROW, MODEL_BYTES
    seconds += len(models) * (n_tasks * each + 2 * SECONDS_PER_EVENT)
    size += len(models) * n_tasks * weight
    scored = sum(n_rows.get(key, 0) for key in scores) * n_tasks
    seconds += scored * 2e-6 + len(scores) * (2 * SECONDS_PER_EVENT + 0.1)
    size += scored * BYTES_PER_SCORE
    return {
        "partitions": len({key for keys in data.values() for key in keys} | {*models, *scores}),
        "runs": n_stretches + len(models),
        "minutes": round(seconds / 60, 1),
        "mib": round(size / 2**20, 2),
    }


def _bars_by_partition(ws: Workspace) -> dict[str, int]:
    found: dict[str, int] = {}
    rows = ws.series.query("SELECT ts, count(*) AS n FROM prices_daily GROUP BY ts")
    for ts, n in zip(rows["ts"].to_pylist(), rows["n"].to_pylist(), strict=True):
        key = ws.grid.key(ts)
        found[key] = found.get(key, 0) + n
    return found
