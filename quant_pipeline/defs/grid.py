"""The grid of as-of partitions as Dagster sees it."""

import dagster as dg

from quant_pipeline.settings import Settings

FORMATS = {"monthly": "%Y-%m", "weekly": "%Y-%m-%d", "daily": "%Y-%m-%d"}


def make_partitions(settings: Settings) -> dg.TimeWindowPartitionsDefinition:
    """The one partitions definition of all assets; its last window is the open one."""
    grid = settings.grid
    fmt = FORMATS[grid.cadence]
    common = {"timezone": grid.timezone, "end_offset": 1}
    if grid.cadence == "monthly":
        return dg.MonthlyPartitionsDefinition(
            start_date=grid.start.replace(day=1).strftime(fmt), fmt=fmt, **common
        )
    if grid.cadence == "weekly":
        from quant_pipeline.market.grid import Grid

        start = Grid("weekly", grid.start).start
        return dg.WeeklyPartitionsDefinition(start_date=start.strftime(fmt), day_offset=1, **common)
    return dg.DailyPartitionsDefinition(start_date=grid.start.strftime(fmt), **common)
