"""The grid of as-of partitions as Dagster sees it."""

import dagster as dg

from quant_pipeline.market.grid import Grid
from quant_pipeline.settings import Settings


def make_partitions(settings: Settings) -> dg.TimeWindowPartitionsDefinition:
    """The one partitions definition of all assets; its last window is the open one."""
    grid = settings.grid
    first = Grid(grid.cadence, grid.start)
    start = first.key(first.start)
    if grid.cadence == "monthly":
        return dg.MonthlyPartitionsDefinition(
            start_date=start, fmt="%Y-%m", timezone=grid.timezone, end_offset=1
        )
    if grid.cadence == "weekly":
        return dg.WeeklyPartitionsDefinition(
            start_date=start, day_offset=1, timezone=grid.timezone, end_offset=1
        )
    return dg.DailyPartitionsDefinition(start_date=start, timezone=grid.timezone, end_offset=1)
