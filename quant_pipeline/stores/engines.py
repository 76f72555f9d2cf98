"""Connections to the registry: in SQLite at a path, or in a schema of a PostgreSQL database."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, event, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool
from sqlmodel import create_engine

from quant_pipeline.errors import NoData, SettingsError, StoreBusy, StoreError
from quant_pipeline.stores.locks import held
from quant_pipeline.stores.registry_schema import bring_up_to_date, require_up_to_date

SCHEMA = "quant_registry"  # beside what Dagster keeps in the same database
WAIT_SECONDS = 60


def open_registry(path: Path, postgres: str) -> dict[str, Engine]:
    """Engines for `reading` and for `writing`, which takes turns; makes the tables.

    Raises SettingsError where there is a registry of the other kind, StoreError if the server
    cannot be reached.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("reading", "writing")
    if postgres:
        engines = {name: _postgres_engine(postgres) for name in names}
    else:
        engines = {name: _sqlite_engine(path) for name in names}
    event.listen(engines["writing"], "begin", _lock_postgres if postgres else _begin_immediate)
    with held(path.with_name(path.name + ".lock"), "creating the registry", WAIT_SECONDS):
        _require_same_kind(path, postgres)
        if postgres:
            _create_schema(postgres)
            _mark(path).touch()
        bring_up_to_date(engines["writing"])
    return engines


def open_to_read(path: Path, postgres: str) -> Engine:
    """An engine that writes nothing; raises NoData without a registry, StoreError of an old one."""
    if postgres:
        engine = _postgres_engine(postgres, " -c default_transaction_read_only=on")
    elif path.exists():
        url = URL.create(
            "sqlite", database=path.absolute().as_uri(), query={"uri": "true", "mode": "ro"}
        )
        engine = create_engine(url, connect_args={"timeout": WAIT_SECONDS}, poolclass=NullPool)
    else:
        raise NoData("No model has been trained yet. Run `quant train`, or `quant demo`.")
    require_up_to_date(engine)
    return engine


@contextmanager
def busy_is_told() -> Iterator[None]:
    """Another process that writes for too long is StoreBusy; other errors stay what they are."""
    try:
        yield
    except OperationalError as error:
        if "locked" in str(error.orig) or "lock timeout" in str(error.orig):
            raise StoreBusy(
                f"The registry is in use by another process. Waited {WAIT_SECONDS} s; try again."
            ) from None
        raise


def with_driver(address: str) -> URL:
    """An address of PostgreSQL with the driver that Dagster brings: SQLAlchemy has another one."""
    return make_url(address).set(drivername="postgresql+psycopg2")


def _mark(path: Path) -> Path:
    return path.with_suffix(".postgres")


def _require_same_kind(path: Path, postgres: str) -> None:
    if postgres and path.exists():
        raise SettingsError(
            f"This home has a registry, {path.name}, and store.postgres would begin an empty one. "
            'Set it back to "", or start a new home.'
        )
    if not postgres and _mark(path).exists():
        raise SettingsError(
            f"The registry of this home is in PostgreSQL ({_mark(path).name} says so), but "
            "store.postgres is empty. Set it back, or start a new home."
        )


def _sqlite_engine(path: Path) -> Engine:
    # No pool: a connection is closed with its session, not some time later.
    url = URL.create("sqlite", database=str(path))  # a path may hold ? and %
    engine = create_engine(url, connect_args={"timeout": WAIT_SECONDS}, poolclass=NullPool)
    event.listen(engine, "connect", _configure)
    return engine


def _configure(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's own BEGIN would be deferred
    wait = f"busy_timeout={WAIT_SECONDS * 1000}"
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", wait):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _postgres_engine(address: str, more: str = "") -> Engine:
    options = f"-c timezone=UTC -c search_path={SCHEMA} -c lock_timeout={WAIT_SECONDS}s{more}"
    spec = {"options": options}
    return create_engine(with_driver(address), connect_args=spec, poolclass=NullPool)


def _lock_postgres(connection: Any) -> None:
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock(hashtext('{SCHEMA}'))")


def _create_schema(address: str) -> None:
    engine = create_engine(with_driver(address), poolclass=NullPool)
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    except (OperationalError, ModuleNotFoundError) as error:
        where = make_url(address).render_as_string(hide_password=True)
        raise StoreError(
            f"The registry in {where} (store.postgres) cannot be opened: {error.args[0]}"
        ) from None
