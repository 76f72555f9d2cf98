"""One DuckDB instance of this process, to which a file is attached while somebody reads it.

To make an instance takes about 14 ms, since DuckDB 2.0 fills a catalogue of 3,200 functions each
time; to attach a file to one takes about 2. A backfill reads some twenty times an as-of.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from quant_pipeline.errors import StoreError

Connection = duckdb.DuckDBPyConnection
ALIAS = "quant"
LOGS = (".wal", ".wal.checkpoint", ".wal.recovery")  # that DuckDB looks for beside a file

LOCKED_DOWN: dict[str, Any] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,
}


@dataclass
class _Instance:
    """An instance that may read one file, and how many do so at present."""

    path: Path
    memory_gib: float
    con: Connection
    n_readers: int = 0


class _Instances:
    """The instance used last: it is kept open, its file is not."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._newest: _Instance | None = None

    @contextmanager
    def reading(self, path: Path, memory_gib: float) -> Iterator[Connection]:
        with self._guard:
            instance = self._entered(path, memory_gib)
            con = instance.con.cursor()
        try:
            con.execute(f"USE {ALIAS}")
            yield con
        except duckdb.Error:
            self._forget(instance)  # whether it works on after an error, only DuckDB knows
            raise
        finally:
            con.close()
            with self._guard:
                self._left(instance)

    def _entered(self, path: Path, memory_gib: float) -> _Instance:
        instance = self._newest
        if instance is None or (instance.path, instance.memory_gib) != (path, memory_gib):
            if instance is not None and not instance.n_readers:
                instance.con.close()
            self._newest = None
            instance = _Instance(path, memory_gib, _made(path, memory_gib))
        if not instance.n_readers:
            try:
                with others_are_named(path):
                    instance.con.execute(f"ATTACH {_quoted(path)} AS {ALIAS} (READ_ONLY)")
            except BaseException:
                self._newest = None
                instance.con.close()
                raise
        instance.n_readers += 1
        self._newest = instance
        return instance

    def _left(self, instance: _Instance) -> None:
        instance.n_readers -= 1
        if instance.n_readers:
            return
        if self._newest is not instance:
            instance.con.close()
            return
        try:
            instance.con.execute(f"DETACH {ALIAS}")
        except BaseException:
            self._newest = None
            instance.con.close()
            raise

    def _forget(self, instance: _Instance) -> None:
        with self._guard:
            if self._newest is instance:
                self._newest = None


def _made(path: Path, memory_gib: float) -> Connection:
    """An empty instance in memory that may open a file and its logs, and nothing else."""
    config = {
        **LOCKED_DOWN,
        "memory_limit": f"{memory_gib}GiB",
        "temp_directory": f"{path}.tmp",
    }
    con = duckdb.connect(config=config)
    allowed = ", ".join(_quoted(p) for p in [path, *(f"{path}{end}" for end in LOGS)])
    con.execute(f"SET allowed_paths = [{allowed}]")
    con.execute("SET enable_external_access = false")
    lock_down(con)
    return con


def lock_down(con: Connection) -> None:
    """What holds for every connection of an instance from here on."""
    con.execute("SET GLOBAL TimeZone='UTC'")
    # On stdout, where DuckDB takes a process without a script (a spawned one) for a notebook.
    con.execute("SET enable_progress_bar=false")
    con.execute("SET lock_configuration=true")


def _quoted(path: object) -> str:
    text = str(path).replace("'", "''")
    return f"'{text}'"


@contextmanager
def others_are_named(path: Path) -> Iterator[None]:
    """Opening a file that another program has open raises StoreError, which names it."""
    try:
        yield
    except duckdb.IOException as error:
        if "set lock" not in str(error):
            raise
        raise StoreError(
            f"{path.name} cannot be opened: {error}. If another program has it open, close it "
            "there; read data/published/*.parquet instead of the database."
        ) from error


_instances = _Instances()


def attached(path: Path, memory_gib: float) -> AbstractContextManager[Connection]:
    """A read-only connection whose tables are those of a file, closed again at the end.

    The caller sees to it that nobody in this process has the file open for writing meanwhile.
    """
    return _instances.reading(path.absolute(), memory_gib)
