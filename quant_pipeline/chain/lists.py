"""Lists that people keep beside prices: memberships of the universe, and renamed tickers."""

from dataclasses import dataclass

import pyarrow as pa

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import StoreBusy
from quant_pipeline.market.renames import Renames
from quant_pipeline.stores.series import Connection, as_of, fetch_row, query


@dataclass(frozen=True)
class StoredRenames:
    """The newest list of renames, None where there is none, and its batch."""

    map: Renames | None
    batch_id: int

    def require_current(self, con: Connection) -> None:
        """Raise StoreBusy if another process stored a newer list meanwhile."""
        if _renames_batch(con) != self.batch_id:
            raise StoreBusy(
                "The list of renames was changed by another process meanwhile, and nothing was "
                "stored. Run the same command again."
            )


def read_renames(ws: Workspace) -> StoredRenames:
    """The list of renames that deliveries are mapped with."""
    if not ws.series.path.exists():
        return StoredRenames(None, 0)
    with ws.series.reading("renames") as con:
        batch_id = _renames_batch(con)
        if not batch_id:
            return StoredRenames(None, 0)
        return StoredRenames(Renames.of(stored_renames(con)), batch_id)


def stored_renames(con: Connection) -> pa.Table:
    """Rows of the newest list of renames: ticker, symbol, first, last."""
    return query(
        con, "FROM renames_as_of(?) ORDER BY ticker, first NULLS FIRST", [_renames_batch(con)]
    )


def read_memberships(con: Connection, batch_id: int | None = None) -> pa.Table:
    """Membership intervals (symbol, first, last) as of a batch or now, both days included."""
    source, given = as_of("memberships", batch_id)
    return query(con, f"FROM {source} ORDER BY symbol, first", given)


def _renames_batch(con: Connection) -> int:
    sql = "SELECT coalesce(max(batch_id), 0) FROM price_batches WHERE kind = 'renames'"
    return int(fetch_row(con, sql)[0])
