"""Dagster's own storage of an old home: whether it has to be brought up to date, and doing so."""

import shutil
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from quant_pipeline.errors import StoreError
from quant_pipeline.settings import Home
from quant_pipeline.stores.copies import copy_sqlite
from quant_pipeline.stores.locks import held

if TYPE_CHECKING:
    from dagster import DagsterInstance


def outdated(instance: "DagsterInstance") -> list[str]:
    """Parts of Dagster's storage whose layout is not that of the installed version."""
    parts = {
        "runs": instance.run_storage, "events": instance.event_log_storage,
        "schedules": instance.schedule_storage,
    }  # fmt: skip
    found = []
    for name, storage in parts.items():
        version = storage.alembic_version() if storage is not None else None
        if version is not None and version[0] != version[1]:
            found.append(name)
    return found


def upgrade(instance: "DagsterInstance", home: Home) -> Path | None:
    """Bring Dagster's storage up to date; gives the folder with a copy of it from before.

    Nothing is done, and None given, if it is so already. Nobody may use the home meanwhile. A
    storage in PostgreSQL is the user's to copy before. If a step fails, the copy is put back.
    """
    if not outdated(instance):
        return None
    with held(home.data / "ui.lock", "quant upgrade", 0, advice="stop it first"):
        databases = sorted(p for p in home.dagster.rglob("*.db") if "before" not in p.parts)
        kept = home.dagster / "before" / datetime.now().strftime("%Y-%m-%d-%H%M%S")
        for path in databases:
            copy = kept / path.relative_to(home.dagster)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy_sqlite(path, copy)
        try:
            instance.upgrade()
        except Exception as error:
            instance.dispose()
            for path in databases:
                for log in ("-wal", "-shm"):
                    path.with_name(path.name + log).unlink(missing_ok=True)
                shutil.copy2(kept / path.relative_to(home.dagster), path)
            raise StoreError(
                f"Dagster's storage could not be brought up to date: {error}. It was put back as "
                f"it was from {kept}. Use the version of dagster that wrote it."
            ) from error
    return kept
