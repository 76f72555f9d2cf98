"""Whether a home and the machine are fit: versions, access, room, locks, agreement, in words."""

import fcntl
import os
import platform
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from quant_pipeline.chain.reconcile import not_repaired, reconcile
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import QuantError, StoreError
from quant_pipeline.stores.locks import holder_of
from quant_pipeline.stores.meta import utc_now

State = Literal["ok", "look", "bad"]
PACKAGES = ("quant-pipeline", "dagster", "duckdb", "lightgbm", "pandas", "numpy", "streamlit")
LEAST_FREE = 1 << 30  # bytes
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "afs", "ceph", "glusterfs")


@dataclass(frozen=True)
class Finding:
    """What one look came to: fine, worth a look, or something that has to be mended."""

    what: str
    state: State
    words: str


def examine(ws: Workspace, tell: Callable[[str, int, int], None]) -> list[Finding]:
    """Look at everything; a look that fails is a finding, and nothing is changed."""
    looks: dict[str, Callable[[Workspace], Iterator[Finding]]] = {
        "versions": _versions, "access": _access, "room": _room, "locks": _locks, "clock": _clock,
        "models": _models,
    }  # fmt: skip
    found: list[Finding] = []
    for i, (name, look) in enumerate(looks.items()):
        tell(f"looking at {name}", i, len(looks) + 1)
        try:
            found += look(ws)
        except QuantError as error:
            found.append(Finding(name, "bad", str(error)))
    tell("checking whether everything agrees", len(looks), len(looks) + 1)
    return [*found, _agreement(ws)]


def _versions(_: Workspace) -> Iterator[Finding]:
    names = [f"{name} {version(name)}" for name in PACKAGES if _is_installed(name)]
    yield Finding("versions", "ok", f"Python {platform.python_version()}, " + ", ".join(names))


def _is_installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError

    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _access(ws: Workspace) -> Iterator[Finding]:
    """Whoever can write the registry and the model files decides what is scored."""
    home = ws.home
    for folder in (home.root, home.data, home.models):
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            yield Finding("access", "bad", f"{folder} is not there, or this user cannot write it.")
    files = [home.settings_file, home.database, home.registry, *home.models.glob("*.joblib")]
    open_to = [p for p in (home.data, home.models, *files) if p.exists() and _others_write(p)]
    if open_to:
        names = ", ".join(str(p.relative_to(home.root)) for p in open_to[:3])
        more = f" and {len(open_to) - 3} more" if len(open_to) > 3 else ""
        words = f"Every user of this machine can write {names}{more}: `chmod -R o-w {home.root}`."
        yield Finding("access", "bad", words)
    if kind := _network_kind(home.root):
        words = (
            f"The home is on a network file system ({kind}), whose locks may not hold between "
            "machines: use it from one machine only, better from its own disk."
        )
        yield Finding("access", "look", words)
    if not open_to:
        yield Finding("access", "ok", f"{home.root} is this user's to write, and not everybody's.")


def _others_write(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IWOTH)


def _network_kind(path: Path) -> str:
    """The kind of file system below a path if it is one of a network, of Linux only."""
    mounts = Path("/proc/mounts")
    best, kind = "", ""
    for line in mounts.read_text().splitlines() if mounts.exists() else ():
        _, point, found, *_ = line.split(" ")
        is_below = f"{path.resolve()}/".startswith(f"{point.rstrip('/')}/")
        if is_below and len(point) >= len(best):
            best, kind = point, found
    return kind if kind in NETWORK else ""


def _room(ws: Workspace) -> Iterator[Finding]:
    """A compaction and a backup each write a second database."""
    free = shutil.disk_usage(ws.home.root).free
    used = ws.home.database.stat().st_size if ws.home.database.exists() else 0
    need = max(LEAST_FREE, 2 * used)
    words = f"{free / 2**30:,.1f} GiB are free; the database has {used / 2**30:,.2f} GiB."
    if free < need:
        words += f" Have at least {need / 2**30:,.1f} GiB: a compaction writes it a second time."
    yield Finding("room", "ok" if free >= need else "look", words)


def _locks(ws: Workspace) -> Iterator[Finding]:
    held = [
        f"{path.name.removesuffix('.lock')} by {holder_of(path)}"
        for path in sorted([*ws.home.data.glob("*.lock"), *ws.home.models.glob("*.lock")])
        if _is_held(path)
    ]
    words = f"In use: {'; '.join(held)}." if held else "Nothing is in use by another process."
    yield Finding("locks", "ok", words)


def _is_held(path: Path) -> bool:
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _clock(ws: Workspace) -> Iterator[Finding]:
    """A clock that was set back makes schedules wait; nothing stored depends on it."""
    newest = max((m.created_at for m in ws.meta.models()), default=None)
    if newest is not None and newest > utc_now():
        words = f"The newest model was made at {newest:%Y-%m-%d %H:%M} UTC, which is still to come."
        yield Finding("clock", "look", words + " Set the clock; what is stored is right.")
    else:
        yield Finding("clock", "ok", f"It is {utc_now():%Y-%m-%d %H:%M} UTC, {ws.today()} here.")


def _models(ws: Workspace) -> Iterator[Finding]:
    """Whether today's champions can be scored with what is installed."""
    from quant_pipeline.chain.model_content import read_boosters

    for task in ws.settings.tasks:
        served = ws.meta.champions(task.task_id)
        if not served:
            yield Finding("models", "ok", f"{task.task_id} has no champion yet.")
            continue
        model = ws.meta.model(served[-1].model_id)
        try:
            read_boosters(ws, model)
        except QuantError as error:
            yield Finding("models", "bad", str(error))
        else:
            words = f"The champion of {task.task_id}, {model.model_id[:12]}, can be used."
            yield Finding("models", "ok", words)


def _agreement(ws: Workspace) -> Finding:
    if not ws.home.database.exists():
        return Finding("agreement", "ok", "Nothing is stored yet.")
    try:
        found = reconcile(ws, lambda *_: None, dry_run=True)
    except StoreError as error:
        return Finding("agreement", "bad", str(error))
    left = not_repaired(found)
    if left:
        words = f"{left[0].invariant}: {left[0].what}; {left[0].advice}."
        more = f" And {len(found) - 1} more: `quant reconcile`." if len(found) > 1 else ""
        return Finding("agreement", "bad", words + more)
    if found:
        words = (
            f"{len(found)} of its parts can be repaired: `quant reconcile --dry-run` tells which."
        )
        return Finding("agreement", "look", words)
    return Finding("agreement", "ok", "Files, registry, tables and published data agree.")
