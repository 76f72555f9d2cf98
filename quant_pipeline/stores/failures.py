"""What a database or a disk says when it fails, in words that tell what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from quant_pipeline.errors import StoreError

NO_ROOM = ("no space left on device", "database or disk is full", "disk quota exceeded")
NO_DISK = ("input/output error", "disk i/o error", "fsync failed")
DAMAGED = (
    "corrupt", "checksum", "not a valid duckdb database", "failed to deserialize", "malformed",
    "file is not a database", "failure while replaying wal", "could not decode to utf",
    "serialization error", "jsondecodeerror", "invalid isoformat",
)  # fmt: skip


@contextmanager
def failures_are_told(name: str, *kinds: type[Exception]) -> Iterator[None]:
    """Errors of such kinds, if a store is full, damaged or without a disk, become StoreError."""
    try:
        yield
    except kinds as error:
        words = explain(error, name)
        if words is None:
            raise
        raise StoreError(words) from error


def explain(error: BaseException, name: str) -> str | None:
    """What happened to a store and what to do, None for an error of another kind."""
    number = error.errno if isinstance(error, OSError) else None
    said = str(error).strip().split("\n")[0][:300]
    text = f"{type(error).__name__}: {error}".lower()
    if number in (errno.ENOSPC, errno.EDQUOT) or any(sign in text for sign in NO_ROOM):
        return (
            f"There is no room left to write {name} ({said}). What was stored before stays. Free "
            "some space, then run the same command again."
        )
    if number == errno.EIO or any(sign in text for sign in NO_DISK):
        return (
            f"The disk failed, or is full, while {name} was used ({said}). Nothing was tried "
            "again. Look at the disk, then at `quant reconcile`, which tells what is stored."
        )
    if any(sign in text for sign in DAMAGED):
        return (
            f"{name} is damaged ({said}). Restore a backup: `quant restore BACKUP FOLDER`. Without "
            "one, move the file away and make what it held anew; `quant reconcile` tells what is "
            "missing then."
        )
    return None


def explain_any(error: BaseException, name: str) -> str | None:
    """The same of an error or of what caused it."""
    seen: BaseException | None = error
    while seen is not None:
        if words := explain(seen, name):
            return words
        seen = seen.__cause__ or seen.__context__
    return None
