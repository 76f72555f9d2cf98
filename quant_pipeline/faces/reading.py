"""What `quant predictions` reads: published Parquet; no database, no registry, no Dagster."""

from datetime import UTC, date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

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
    if first is None and last is None and symbol is None:
        rows = _newest(published, task)
    else:
        symbol = symbol and spelled(symbol)
        rows = _between(published, task, first, last, symbol)
        if symbol and not len(rows):
            require_scored(published, symbol)
    if not len(rows):
        raise NoData("No stored score matches. `quant status` tells which sessions are scored.")
    order = [("ts", "descending"), ("task_id", "ascending"), ("score", "descending"),
             ("symbol", "ascending")]  # fmt: skip
    found = _plain(rows.sort_by(order))
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


def _plain(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows of Python's values; moments with a zone are made here, as pyarrow asks pandas to."""
    moments = rows["generated_at"].cast(pa.timestamp("us")).to_pylist()
    at = rows.schema.get_field_index("generated_at")
    found: list[dict[str, Any]] = rows.set_column(
        at, "generated_at", pa.nulls(len(rows))
    ).to_pylist()
    for row, moment in zip(found, moments, strict=True):
        row["generated_at"] = moment.replace(tzinfo=UTC)
    return found


def _newest(published: Published, task: str | None) -> pa.Table:
    """The newest session of all tasks or of one, found without what pandas has to be imported for.

    That is each comparison with a value of Python's, which is half of the time of the command.
    """
    rows = published.read("predictions", newest=1)
    if rows is None:
        raise NoData(NO_PREDICTIONS)
    if task is not None:
        rows = _of_task(rows, task)
        if not len(rows):  # this task is not scored that far
            rows = _between(published, task, None, None, None)
    return rows.filter(pc.equal(rows["ts"], pc.max(rows["ts"])))


def _of_task(rows: pa.Table, task: str) -> pa.Table:
    tasks = rows["task_id"].unique()
    wanted = next((one for one in tasks if one.as_py() == task), None)
    if wanted is None:
        return rows.slice(0, 0)
    return rows.filter(pc.equal(rows["task_id"], wanted))


def _between(
    published: Published,
    task: str | None,
    first: date | None,
    last: date | None,
    symbol: str | None,
) -> pa.Table:
    import pyarrow.dataset as ds

    where = ds.field("ts").is_valid()
    if task:
        where &= ds.field("task_id") == task
    if first:
        where &= ds.field("ts") >= first
    if last:
        where &= ds.field("ts") <= last
    if symbol:
        where &= ds.field("symbol") == symbol
    rows = published.read("predictions", where)
    if rows is None:
        raise NoData(NO_PREDICTIONS)
    return rows
