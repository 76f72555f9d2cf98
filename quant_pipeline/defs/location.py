"""All definitions of one home, put together."""

import warnings

import dagster as dg
from dagster import BetaWarning, PreviewWarning

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.alerts import make_alert_sensors
from quant_pipeline.defs.assets import make_assets
from quant_pipeline.defs.checks import make_checks
from quant_pipeline.defs.daily import make_inbox_sensor, make_jobs, make_schedules
from quant_pipeline.defs.grid import make_partitions
from quant_pipeline.defs.resources import make_resources
from quant_pipeline.defs.sensors import make_sensors


def make_definitions(workspace: Workspace) -> dg.Definitions:
    """Assets, checks and resources of one home."""
    grid = make_partitions(workspace.settings)
    with warnings.catch_warnings():
        # Backfill policies are "beta" and partitioned checks "preview" in Dagster 1.13; tests
        # cover what is used of them.
        warnings.simplefilter("ignore", BetaWarning)
        warnings.simplefilter("ignore", PreviewWarning)
        assets, checks, jobs = make_assets(grid, workspace.settings), make_checks(grid), make_jobs()
        return dg.Definitions(
            assets=assets,
            asset_checks=checks,
            jobs=jobs,
            schedules=make_schedules(workspace, jobs),
            resources=make_resources(workspace),
            sensors=[
                *make_sensors(workspace.home),
                make_inbox_sensor(workspace),
                *make_alert_sensors(workspace),
            ],
            executor=dg.in_process_executor,
        )
