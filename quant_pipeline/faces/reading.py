"""What `quant predictions` reads: published Parquet; no database, no registry, no Dagster."""

from datetime import date
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as ds

from quant_pipeline.errors import NoData
from quant_pipeline.faces.symbols import require_scored, spelled
from quant_pipeline.stores.published import Published

NO_PREDICTIONS = (
    "No predictions are stored yet. Run `quant backfill --from D --to D`, or `quant demo`."
)


def read_predictions(
    published: Published,
    *,
    task: str | None,
    first: date | None,
    last: date | None,
    symbol: str | None,
    top: int | None,
) -> list[dict[str, Any]]:
    """Stored scores, newest session first, best first; the newest session if no date is given."""
    where = ds.field("ts").is_valid()
    if task:
        where &= ds.field("task_id") == task
    if first:
        where &= ds.field("ts") >= first
    if last:
        where &= ds.field("ts") <= last
    if symbol:
        symbol = spelled(symbol)
        where &= ds.field("symbol") == symbol
    wants_newest = first is None and last is None and symbol is None
    rows = published.read("predictions", where, newest=1 if wants_newest else None)
    if rows is not None and wants_newest and not len(rows):  # this task is not scored that far
        rows = published.read("predictions", where)
    if rows is None:
        raise NoData(NO_PREDICTIONS)
    if not len(rows):
        if symbol:
            require_scored(published, symbol)
        raise NoData("No stored score matches. `quant status` tells which sessions are scored.")
    if wants_newest:
        rows = rows.filter(pc.equal(rows["ts"], pc.max(rows["ts"])))
    order = [("ts", "descending"), ("task_id", "ascending"), ("score", "descending"),
             ("symbol", "ascending")]  # fmt: skip
    found: list[dict[str, Any]] = rows.sort_by(order).to_pylist()
    if top is None:
        return found
    counts: dict[tuple[Any, Any], int] = {}
    kept = []
    for row in found:
        group = (row["ts"], row["task_id"])
        counts[group] = counts.get(group, 0) + 1
        if counts[group] <= top:
            kept.append(row)
    return kept
