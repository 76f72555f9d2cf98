"""Compaction: the database written anew, without the room that deleted rows left behind."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from quant_pipeline.errors import StoreError
from quant_pipeline.stores.copies import copy_duckdb
from quant_pipeline.stores.durable import sync
from quant_pipeline.stores.series import SeriesStore, fetch_row


@dataclass(frozen=True)
class Room:
    """Bytes of the database's file, and how many of them hold nothing."""

    total: int
    free: int

    @property
    def free_share(self) -> float:
        return self.free / self.total if self.total else 0.0


def measure(store: SeriesStore) -> Room:
    """The room that a database takes; read-only."""
    with store.reading("measuring") as con:
        block, total, free = fetch_row(
            con,
            "SELECT block_size, total_blocks, free_blocks FROM pragma_database_size() "
            "WHERE database_name = current_database()",  # others may be attached beside it
        )
    return Room(block * total, block * free)


def compact(store: SeriesStore) -> Room:
    """Write the database anew under another name, compare both, and swap them; gives its room.

    Others wait meanwhile, or end with StoreBusy. Killed at any moment it leaves the old file or
    the new one. Raises StoreError, and changes nothing, if the disk has no room for a second file
    or the copy is not the same.
    """
    room = measure(store)
    _require_disk(store.path, room.total - room.free)
    with store.locked("compaction"):
        new = store.path.with_name(store.path.name + ".compact")
        _discard(new)
        try:
            copy_duckdb(store.path, new, store.memory_gib, read_only=False)
            _require_no_log(store.path)
            os.replace(new, store.path)
        except BaseException:
            _discard(new)
            raise
        sync(store.path.parent)
    return measure(store)


def _discard(new: Path) -> None:
    for leftover in (new, new.with_name(new.name + ".wal")):
        leftover.unlink(missing_ok=True)


def _require_no_log(path: Path) -> None:
    """The log of the old file would be taken for the new one's."""
    log = path.with_name(path.name + ".wal")
    if log.exists():
        raise StoreError(f"{log.name} is still there after a checkpoint. Nothing was changed.")


def _require_disk(path: Path, wanted: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < wanted * 1.1:
        raise StoreError(
            f"Compaction writes {path.name} anew and needs {wanted / 2**20:,.0f} MiB beside it; "
            f"the disk has {free / 2**20:,.0f} MiB. Make room first. Nothing was changed."
        )
