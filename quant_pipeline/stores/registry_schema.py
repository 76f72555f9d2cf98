"""The registry's tables through the versions of this package: each change, in order.

Alembic makes the changes, as its operations are the same for SQLite and PostgreSQL. Which changes a
registry has had is a row of its own, so nothing has to be compared.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Column, Engine, String, inspect
from sqlmodel import Session, SQLModel, select

from quant_pipeline.errors import NoData, StoreError
from quant_pipeline.stores.records import Batch, Champion, HomeFact, Model

FACT = "registry.version"


def _add_row_digests(session: Session) -> None:
    """2: each model's row is digested, so that a changed one is seen."""
    column = Column("row_digest", String, nullable=False, server_default="")
    _operations(session).add_column(Model.__tablename__, column)
    for model in session.exec(select(Model)):
        model.row_digest = model.digest()
        session.add(model)
    session.flush()


def _add_made_with(session: Session) -> None:
    """3: each written slice says with what code and environment, each champion by which rule."""
    for table, name in ((Batch.__tablename__, "made_with"), (Champion.__tablename__, "rule")):
        column = Column(name, String, nullable=False, server_default="")
        _operations(session).add_column(table, column)


def _operations(session: Session) -> Any:
    from alembic.migration import MigrationContext  # a tenth of a second, for old homes only
    from alembic.operations import Operations

    return Operations(MigrationContext.configure(session.connection()))


MIGRATIONS: tuple[Callable[[Session], None], ...] = (_add_row_digests, _add_made_with)
VERSION = 1 + len(MIGRATIONS)


def bring_up_to_date(engine: Engine) -> None:
    """Make the tables that are missing, and change old ones; all of it in one transaction.

    The caller holds the lock of the registry. Raises StoreError if a newer version made it.
    """
    with Session(engine) as session, session.begin():
        connection = session.connection()
        is_new = not inspect(connection).has_table(Model.__tablename__)
        SQLModel.metadata.create_all(connection)
        fact = session.get(HomeFact, FACT)
        found = VERSION if is_new else _layout_of(fact)
        for migrate in MIGRATIONS[found - 1 :]:
            migrate(session)
        if fact is None or found < VERSION:
            session.merge(HomeFact(name=FACT, value=str(VERSION)))


def require_up_to_date(engine: Engine) -> None:
    """Refuse a registry of another layout than today's, which a command that writes brings up."""
    with Session(engine) as session:
        if not inspect(session.connection()).has_table(Model.__tablename__):
            raise NoData("No model has been trained yet. Run `quant train`, or `quant demo`.")
        found = _layout_of(session.get(HomeFact, FACT))
    if found < VERSION:
        raise StoreError(
            f"The registry has layout {found}, which was made by an earlier version of "
            "quant_pipeline. `quant status` brings it up to date."
        )


def _layout_of(fact: HomeFact | None) -> int:
    found = int(fact.value) if fact else 1
    if found > VERSION:
        raise StoreError(
            f"The registry has layout {found}, but this version of quant_pipeline knows "
            f"layouts up to {VERSION}. Use the version that wrote it, or a newer one."
        )
    return found
