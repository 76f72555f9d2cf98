"""What assets get from Dagster: the opened home."""

from collections.abc import Iterator

import dagster as dg

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.instance import alive, bury_dead_runs, process_tags
from quant_pipeline.defs.io_manager import SeriesIOManager


def make_resources(workspace: Workspace) -> dict[str, object]:
    """Resources by the names that assets ask for."""

    @dg.resource
    def opened(context: dg.InitResourceContext) -> Iterator[Workspace]:
        """The home, if its grid is still the one it was made with."""
        workspace.require_same_grid()
        if context.run is None or context.instance is None:  # built by hand, outside a run
            yield workspace
            return
        bury_dead_runs(context.instance, workspace.home)
        context.instance.add_run_tags(context.run.run_id, process_tags())
        with alive(workspace.home, context.run.run_id):
            yield workspace

    return {"workspace": opened, "io_manager": SeriesIOManager.of(workspace.home)}
