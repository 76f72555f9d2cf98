"""A home copied while it is used, proved to agree with itself, and put back."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from quant_pipeline.chain.checks.result import some
from quant_pipeline.chain.reconcile import Problem, publish_everything, reconcile
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import SettingsError, StoreError
from quant_pipeline.settings import Home
from quant_pipeline.stores.copies import copy_duckdb, copy_sqlite
from quant_pipeline.stores.durable import sync

Tell = Callable[[str, int, int], None]
UNFINISHED = ".restoring"  # is in a folder until its restore has ended


def back_up(ws: Workspace, target: Path, tell: Tell) -> int:
    """Copy a home to a folder that is not there yet; gives the bytes written.

    Prices, tables, registry and models are those of one moment; writers wait while they are
    copied. Dagster's runs are those of a moment soon after, each by itself. The folder appears
    under its name once the copy is proved; StoreError if the home does not agree with itself.
    """
    if ws.settings.store.postgres:
        raise SettingsError(
            "The registry and Dagster's runs are in PostgreSQL (store.postgres): back them up with "
            "pg_dump, and data/ and models/ while nothing writes."
        )
    _require_absent(target)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _copy(ws, partial, tell)
        tell("checking the copy", 3, 4)
        _require_agreement(partial, tell)
        _forget_locks(partial)
        os.rename(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(target.parent)
    return sum(p.stat().st_size for p in target.rglob("*") if p.is_file())


def restore(source: Path, root: Path, tell: Tell) -> Workspace:
    """Make a home from a backup in a folder without one; the backup stays as it is.

    quant.toml comes last: until then no command takes it for a home. One that was killed is begun
    again by the same command.
    """
    if not (source / "quant.toml").is_file() or not (source / "data" / "quant.duckdb").is_file():
        raise StoreError(f"{source} is no backup: it lacks quant.toml or data/quant.duckdb.")
    there = [n for n in ("quant.toml", "data/quant.duckdb", "models/registry.sqlite")
             if (root / n).exists()]  # fmt: skip
    if there and not (root / UNFINISHED).exists():
        raise StoreError(
            f"{root} has a home ({', '.join(there)}): restoring would mix two. Name an empty "
            "folder: `quant restore BACKUP FOLDER`."
        )
    _require_agreement(source, tell)
    _forget_locks(source)
    tell("copying", 1, 3)
    root.mkdir(parents=True, exist_ok=True)
    (root / UNFINISHED).touch()
    files = sorted(p for p in source.rglob("*") if p.is_file())
    for path in sorted(files, key=lambda p: p.name == "quant.toml"):
        copied = root / path.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copied)
        sync(copied)
    _forget_locks(root)
    ws = Workspace.open(Home(root))
    tell("publishing", 2, 3)
    publish_everything(ws)
    (root / UNFINISHED).unlink()
    return ws


def _copy(ws: Workspace, to: Path, tell: Tell) -> None:
    home = ws.home
    for folder in ("data", "models"):
        (to / folder).mkdir(parents=True)
    tell("copying prices, tables and the registry", 0, 4)
    copy = Home(to)
    with ws.series.locked("a backup", shared=True):
        copy_duckdb(home.database, copy.database, ws.series.memory_gib, read_only=True)
        copy_sqlite(home.registry, copy.registry)
    tell("copying models", 1, 4)
    for path in sorted(home.models.glob("*.joblib")):
        shutil.copy2(path, copy.models / path.name)
        sync(copy.models / path.name)
    tell("copying runs and settings", 2, 4)
    for path in sorted([*home.dagster.rglob("*.db"), *home.models.glob("studies.sqlite")]):
        copy_sqlite(path, to / path.relative_to(home.root))
    modules = [home.root / f"{name}.py" for name in ws.settings.features.modules]
    for path in (home.settings_file, home.root / "dagster.yaml", *modules):
        if path.exists():
            shutil.copy2(path, to / path.name)
            sync(to / path.name)


def _require_agreement(root: Path, tell: Tell) -> None:
    """Everything but what is published has to hold."""
    found = reconcile(Workspace.open(Home(root)), tell, dry_run=True)
    wrong = [p for p in found if p.invariant not in ("I7", "leftover") and not _is_pending(p)]
    if wrong:
        named = some([f"{p.invariant}: {p.what}" for p in wrong])
        raise StoreError(f"{root} is not whole: {named}. See `quant reconcile`.")


def _is_pending(problem: Problem) -> bool:
    """What was about to be recorded when the copy was made settles itself."""
    return problem.invariant == "I5" and problem.repair is not None


def _forget_locks(root: Path) -> None:
    for path in root.rglob("*.lock"):
        path.unlink()


def _require_absent(target: Path) -> None:
    if target.exists():
        raise StoreError(f"{target} is there already. Name a folder that is not.")
    if not target.parent.is_dir():
        raise StoreError(f"{target.parent} is no folder. Make it first.")
