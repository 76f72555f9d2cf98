"""Old model files make room; those of champions stay, and every registry row does."""

from collections.abc import Sequence

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.settings import Task


def prune_files(
    ws: Workspace, tasks: Sequence[Task], keep: int, *, dry_run: bool = False
) -> list[str]:
    """Delete files of models that never served and are not among the newest `keep` of their task.

    Their rows stay, with status "pruned" (or "retired"). Training the same as-of on the same data
    makes the same file again. Gives the ids.
    """
    found = []
    for task in tasks:
        served = {c.model_id for c in ws.meta.champions(task.task_id)}
        trained = [m for m in ws.meta.trained(task.task_id) if ws.files.path(m.model_id).exists()]
        old = trained[: max(len(trained) - keep, 0)]
        found += [m.model_id for m in old if m.model_id not in served]
    if not dry_run:
        ws.meta.mark_pruned(found)  # before: a row without a file says so
        for model_id in found:
            ws.files.path(model_id).unlink(missing_ok=True)
    return found
