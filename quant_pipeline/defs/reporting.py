"""What happened outside of a run, told to Dagster: an ingest is a materialization, too."""

from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg

from quant_pipeline.chain.checks.result import Checked, some
from quant_pipeline.chain.ingest import IngestReport
from quant_pipeline.chain.prices import describe_prices, publish_prices
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.checks import check_without_run
from quant_pipeline.defs.instance import open_instance

Progress = Callable[[str, int, int], None]


def report_prices(ws: Workspace, report: IngestReport, tell: Progress) -> None:
    """Publish what readers need, record every partition of prices_daily that changed, check it.

    What checks do not pass is added to the report's notes, one a check.
    """
    tell("publishing coverage", 0, 1)
    publish_prices(ws)
    keys = report.changed_keys
    described = describe_prices(ws, keys)
    tell(f"telling Dagster of {len(keys)} changed partitions", 0, 1)
    with open_instance(ws.home) as instance:
        for key in keys:
            metadata: dict[str, Any] = {**described[key], "batch_id": report.batch_id}
            instance.report_runless_asset_event(
                dg.AssetMaterialization("prices_daily", partition=key, metadata=metadata)
            )
        tell(f"checking {len(keys)} changed partitions", 0, 1)
        report.notes += _in_words(check_without_run(instance, ws, "prices_daily", keys))


def _in_words(found: Sequence[Checked]) -> list[str]:
    bad: dict[str, list[Checked]] = {}
    for one in found:
        if not one.passed:
            bad.setdefault(one.name, []).append(one)
    return [
        f"check {name} did not pass in {some([one.key for one in failed])}; "
        f"{failed[-1].key}: {failed[-1].words}"
        for name, failed in bad.items()
    ]
