"""What assets get from Dagster: the opened home."""

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.io_manager import SeriesIOManager


def make_resources(workspace: Workspace) -> dict[str, object]:
    """Resources by the names that assets ask for."""
    return {"workspace": workspace, "io_manager": SeriesIOManager.of(workspace.home)}
