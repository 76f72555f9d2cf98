"""data/inbox: price files that are ingested and put away, the bad ones with their reason."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quant_pipeline.chain.ingest import IngestReport, ingest, reading_of
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import QuantError, StoreBusy
from quant_pipeline.settings import Home

# A file that changed less long ago may still be written.
SETTLED_SECONDS = 5.0
UNFINISHED = (".part", ".tmp", ".crdownload", ".reason.txt")


@dataclass(frozen=True)
class Taken:
    """What became of one file; without a report it was moved aside for its reason."""

    name: str
    report: IngestReport | None
    reason: str = ""


def waiting_files(home: Home, now: float | None = None) -> list[Path]:
    """Files of the inbox that are complete, by name; hidden and unfinished ones are left alone."""
    if not home.inbox.is_dir():
        return []
    latest = (time.time() if now is None else now) - SETTLED_SECONDS
    return sorted(
        path for path in home.inbox.iterdir()
        if path.is_file()
        and not path.name.startswith(".")
        and not path.name.endswith(UNFINISHED)
        and path.stat().st_mtime <= latest
    )  # fmt: skip


def take_inbox(ws: Workspace, tell: Callable[[str], None]) -> list[Taken]:
    """Ingest each waiting file; move it to `done`, or to `failed` with the reason beside it.

    A file is moved once its rows are stored: after a crash in between it is read again, which
    changes nothing. Raises StoreBusy, and leaves the files, if another process writes.
    """
    found = []
    for path in waiting_files(ws.home):
        tell(f"reading {path.name}")
        try:
            report = ingest(ws, [path], reading_of(ws), ws.today())
        except StoreBusy:
            raise
        except QuantError as error:
            found.append(_put_aside(path, str(error)))
            continue
        if report.n_read and report.n_read == sum(report.n_rejected.values()):
            reasons = ", ".join(f"{reason}: {n}" for reason, n in report.n_rejected.items())
            found.append(_put_aside(path, f"No row could be stored as a price ({reasons})."))
            continue
        _move(path, "done")
        found.append(Taken(path.name, report))
    return found


def _put_aside(path: Path, reason: str) -> Taken:
    moved = _move(path, "failed")
    moved.with_name(moved.name + ".reason.txt").write_text(reason + "\n")
    return Taken(path.name, None, reason)


def _move(path: Path, folder: str) -> Path:
    """Move a file into a folder beside it; one of that name that is there stays."""
    target = path.parent / folder / path.name
    target.parent.mkdir(exist_ok=True)
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{path.stem}.{number}{path.suffix}")
    os.rename(path, target)
    return target
