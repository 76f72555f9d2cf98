"""Partitions in blocks that fit into memory, however long the history is."""

from collections.abc import Iterator, Sequence

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.stores.series import count_bars

# Values that are held at once: 158 features of 500 symbols over five years.
BLOCK_VALUES = 100_000_000


def in_blocks(
    ws: Workspace, keys: Sequence[str], values_a_bar: int, batch_id: int | None = None
) -> Iterator[list[str]]:
    """Consecutive partitions, at least one and at most BLOCK_VALUES values at a time."""
    first, before = ws.grid.window(keys[0])[0], ws.grid.window(keys[-1])[1]
    with ws.series.reading("planning") as con:
        n_bars = count_bars(con, first, before, batch_id)
    n_by_key = dict.fromkeys(keys, 0)
    for ts, n in n_bars.items():
        n_by_key[ws.grid.key(ts)] += n
    block: list[str] = []
    n_values = 0
    for key, n in n_by_key.items():
        if block and n_values + n * values_a_bar > BLOCK_VALUES:
            yield block
            block, n_values = [], 0
        block.append(key)
        n_values += n * values_a_bar
    yield block
