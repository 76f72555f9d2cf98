"""A lock on a separate file: one writer at a time, or several readers, across processes."""

import fcntl
import json
import logging
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from quant_pipeline.errors import StoreBusy

log = logging.getLogger(__name__)
FIRST_TOLD, TOLD_EVERY = 2.0, 15.0  # seconds of waiting


@contextmanager
def held(
    path: Path,
    what: str,
    wait_seconds: float,
    *,
    shared: bool = False,
    advice: str = "try again, or raise store.lock_wait_seconds",
) -> Iterator[None]:
    """Hold the lock file while the block runs; an exclusive holder writes its name into it.

    The file is never the database itself: opening and closing that one would drop DuckDB's own
    lock. Waits with jitter, and logs that it does, then raises StoreBusy with the name of the
    holder; readers, of whom there may be many, wipe the name of the writer before them and leave
    none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        _acquire(handle, path, wait_seconds, kind, advice)
        os.ftruncate(handle, 0)
        if not shared:
            os.pwrite(handle, json.dumps(_holder(what)).encode(), 0)
        yield
    finally:
        os.close(handle)


def _acquire(handle: int, path: Path, wait_seconds: float, kind: int, advice: str) -> None:
    began = time.monotonic()
    deadline, tell_at = began + wait_seconds, began + FIRST_TOLD
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StoreBusy(
                    f"{path.name.removesuffix('.lock')} is in use by {holder_of(path)}. Waited "
                    f"{wait_seconds:g} s; {advice}."
                ) from None
            if time.monotonic() >= tell_at:
                tell_at += TOLD_EVERY
                log.info(
                    "Waiting for %s, in use by %s: %.0f of at most %g s.",
                    path.name.removesuffix(".lock"), holder_of(path), time.monotonic() - began,
                    wait_seconds,
                )  # fmt: skip
            time.sleep(random.uniform(0.01, 0.1))


def _holder(what: str) -> dict[str, str | int]:
    return {"pid": os.getpid(), "what": what, "since": datetime.now().strftime("%H:%M:%S")}


def holder_of(path: Path) -> str:
    """Who holds a lock file, as far as it says so."""
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} ({holder['what']}, since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def writer_of(path: Path) -> str | None:
    """Who holds a lock file alone right now; None if nobody does. Never waits."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return holder_of(path)
    finally:
        os.close(handle)
