"""The home's Dagster instance: the same one for `quant` and for the web UI."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from quant_pipeline.errors import SettingsError
from quant_pipeline.settings import Home, load_settings
from quant_pipeline.stores.durable import write_durably
from quant_pipeline.stores.locks import held

if TYPE_CHECKING:
    from dagster import DagsterInstance


SQLITE = """storage:
  sqlite:
    base_dir:
      env: DAGSTER_HOME
"""
POSTGRES = """storage:
  postgres:
    postgres_url:
      env: DAGSTER_POSTGRES_URL
"""


def template(name: str) -> str:
    """The text of a packaged template."""
    return (files("quant_pipeline") / "templates" / name).read_text()


def prepare(home: Home) -> dict[str, str]:
    """Configure the instance's folder; gives the environment that points to it.

    A dagster.yaml beside quant.toml counts instead of the packaged one.
    """
    own, target = home.root / "dagster.yaml", home.dagster / "dagster.yaml"
    wanted = own.read_text() if own.exists() else template("dagster.yaml")
    postgres = load_settings(home).store.postgres
    address = ""
    if postgres:
        from quant_pipeline.stores.engines import with_driver

        address = with_driver(postgres).render_as_string(hide_password=False)
        if SQLITE not in wanted:
            raise SettingsError(
                f"store.postgres is set, but {own} has a storage of its own. Delete one of them."
            )
        wanted = wanted.replace(SQLITE, POSTGRES)
    if not target.exists() or target.read_text() != wanted:
        with held(home.data / "dagster.lock", "preparing Dagster", 60):
            home.dagster.mkdir(parents=True, exist_ok=True)
            write_durably(target, wanted.encode())
    return {
        "QUANT_HOME": str(home.root),
        "DAGSTER_HOME": str(home.dagster),
        "QUANT_COMPUTE_LOGS": str(home.dagster / "logs"),
        "DAGSTER_POSTGRES_URL": address,
    }


def open_instance(home: Home) -> "DagsterInstance":
    """The instance of a home; first starts take turns, as two at once would crash."""
    os.environ.update(prepare(home))
    from dagster import DagsterInstance

    with held(home.data / "dagster.lock", "opening Dagster", 60):
        return DagsterInstance.get()


def process_tags() -> dict[str, str]:
    """Tags that tell which process a run is: host, boot, process id and when it started."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    started = Path(f"/proc/{os.getpid()}")
    return {
        "quant/host": socket.gethostname(),
        "quant/boot_id": boot.read_text().strip() if boot.exists() else "",
        "quant/pid": str(os.getpid()),
        "quant/process_started": (
            datetime.fromtimestamp(started.stat().st_ctime, UTC).isoformat(timespec="seconds")
            if started.exists()
            else ""
        ),
    }


@contextmanager
def alive(home: Home, run_id: str) -> Iterator[None]:
    """Hold a lock named like a run while it lasts; a killed process leaves the file unlocked."""
    folder = home.dagster / "alive"
    folder.mkdir(parents=True, exist_ok=True)
    path, new = folder / run_id, folder / f".{run_id}"
    handle = os.open(new, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        new.rename(path)  # under its name it is never seen unlocked
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def bury_dead_runs(instance: "DagsterInstance", home: Home) -> list[str]:
    """Report runs whose process was killed as failed, and free the pools that they hold.

    Dagster does neither for runs outside its launcher: the next run would wait for ever.
    """
    dead = []
    for path in sorted((home.dagster / "alive").glob("[!.]*")):
        try:
            handle = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue  # it ended just now
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            run = instance.get_run_by_id(path.name)
            if run is not None and not run.is_finished:
                instance.report_run_failed(run, "The process of this run was killed.")
            instance.event_log_storage.free_concurrency_slots_for_run(path.name)
            path.unlink(missing_ok=True)
            dead.append(path.name)
        finally:
            os.close(handle)
    return dead
