"""MetaStore: the SQLite registry of models, champions, refusals and written batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from sqlalchemy import JSON, URL, Column, Engine, UniqueConstraint, event, func
from sqlalchemy.pool import NullPool
from sqlmodel import Field, Session, SQLModel, col, create_engine, select

from quant_pipeline.errors import NoData, SettingsError
from quant_pipeline.stores.locks import held


def utc_now() -> datetime:
    """The present in UTC."""
    return datetime.now(UTC)


class Model(SQLModel, table=True):
    """One trained model."""

    __tablename__: ClassVar[Any] = "models"
    model_id: str = Field(primary_key=True)
    seq: int = Field(index=True, unique=True)
    task_id: str = Field(index=True)
    partition_key: str
    asof: date = Field(index=True)
    status: str
    parameters: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    metrics: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    fold_metrics: list[dict[str, Any]] = Field(sa_column=Column(JSON, nullable=False))
    importance: dict[str, float] = Field(sa_column=Column(JSON, nullable=False))
    features: list[str] = Field(sa_column=Column(JSON, nullable=False))
    feature_type: str
    feature_set_id: str
    n_rows: int
    n_sessions: int
    n_symbols: int
    first_ts: date
    last_ts: date
    rounds: int
    price_batch_id: int
    data_fingerprint: str
    recipe: str
    settings: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    environment: dict[str, str] = Field(sa_column=Column(JSON, nullable=False))
    code_version: str
    file_bytes: int
    seconds: float
    run_id: str
    created_at: datetime


class Refusal(SQLModel, table=True):
    """An as-of for which no model could be trained, and why."""

    __tablename__: ClassVar[Any] = "refusals"
    id: int | None = Field(default=None, primary_key=True)
    task_id: str = Field(index=True)
    partition_key: str
    asof: date
    reason: str
    inputs: str
    run_id: str
    created_at: datetime


class Champion(SQLModel, table=True):
    """The model that serves one partition of a task: decided once, never changed."""

    __tablename__: ClassVar[Any] = "champions"
    task_id: str = Field(primary_key=True)
    partition_key: str = Field(primary_key=True)
    model_id: str = Field(foreign_key="models.model_id")
    why: str
    decided_at: datetime


class Batch(SQLModel, table=True):
    """One written slice of a series table."""

    __tablename__: ClassVar[Any] = "batches"
    __table_args__ = (UniqueConstraint("id"),)
    id: int | None = Field(default=None, primary_key=True)
    table_name: str = Field(index=True)
    partition_key: str = Field(index=True)
    task_id: str
    n_rows: int
    digest: str
    price_batch_id: int
    spec_id: str
    status: str
    run_id: str
    written_at: datetime


class Written(NamedTuple):
    """What later steps need to know of a written slice."""

    id: int
    table_name: str
    partition_key: str
    task_id: str
    n_rows: int
    digest: str
    price_batch_id: int
    spec_id: str


class Trained(NamedTuple):
    """What a choice of models needs to know of each."""

    model_id: str
    task_id: str
    partition_key: str
    asof: date
    status: str
    recipe: str
    price_batch_id: int
    first_ts: date


class HomeFact(SQLModel, table=True):
    """A setting that a used home may not change."""

    __tablename__: ClassVar[Any] = "home_facts"
    name: str = Field(primary_key=True)
    value: str


@dataclass(frozen=True)
class MetaStore:
    """The registry; WAL, foreign keys on, writers take turns with BEGIN IMMEDIATE."""

    path: Path
    _engines: dict[str, Engine] = field(default_factory=dict, repr=False, compare=False)

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction."""
        engine = self._engine("writing")
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that only reads."""
        with Session(self._engine("reading"), expire_on_commit=False) as session:
            yield session

    def _engine(self, kind: Literal["reading", "writing"]) -> Engine:
        if kind not in self._engines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            url = URL.create("sqlite", database=str(self.path))  # a path may hold ? and %
            engines = {}
            for name in ("reading", "writing"):
                # No pool: a connection is closed with its session, not some time later.
                engines[name] = create_engine(url, connect_args={"timeout": 60}, poolclass=NullPool)
                event.listen(engines[name], "connect", _configure)
            event.listen(engines["writing"], "begin", _begin_immediate)
            with held(self.path.with_name(self.path.name + ".lock"), "creating the registry", 60):
                SQLModel.metadata.create_all(engines["writing"])
            self._engines.update(engines)  # last: another thread sees them only when all is there
        return self._engines[kind]

    def models(self, task_id: str | None = None) -> list[Model]:
        """All model rows, oldest as-of first, in the order of training within one."""
        wanted = select(Model).order_by(col(Model.asof), col(Model.task_id), col(Model.seq))
        if task_id is not None:
            wanted = wanted.where(Model.task_id == task_id)
        with self.reading() as session:
            return list(session.exec(wanted))

    def model(self, prefix: str) -> Model:
        """The one model whose id starts with a prefix."""
        with self.reading() as session:
            wanted = select(Model).where(col(Model.model_id).startswith(prefix, autoescape=True))
            found = list(session.exec(wanted))
        if len(found) == 1:
            return found[0]
        if not found:
            raise NoData(
                f"No model has an id that starts with {prefix!r}. See `quant models list`."
            )
        ids = ", ".join(m.model_id[:12] for m in found[:5])
        raise NoData(
            f"{len(found)} models have an id that starts with {prefix!r}: {ids}. Give more of it."
        )

    def add_model(self, model: Model) -> Model:
        """Register a model; a row that is there already stays as it is and is returned."""
        with self.writing() as session:
            found = session.get(Model, model.model_id)
            if found is not None:
                return found
            newest = session.exec(select(Model.seq).order_by(col(Model.seq).desc())).first()
            model.seq = (newest or 0) + 1
            session.add(model)
            return model

    def trained(self, task_id: str | None = None) -> list[Trained]:
        """Models in the order of `models`, without their metrics and settings."""
        columns = [getattr(Model, name) for name in Trained._fields]
        wanted = select(*columns).order_by(col(Model.asof), col(Model.seq))
        if task_id is not None:
            wanted = wanted.where(Model.task_id == task_id)
        with self.reading() as session:
            return [Trained(*row) for row in session.exec(wanted)]

    def refusals(self, task_id: str | None = None) -> list[Refusal]:
        """As-ofs without a model, oldest first."""
        wanted = select(Refusal).order_by(col(Refusal.asof), col(Refusal.id))
        if task_id is not None:
            wanted = wanted.where(Refusal.task_id == task_id)
        with self.reading() as session:
            return list(session.exec(wanted))

    def add_refusal(self, refusal: Refusal) -> None:
        """Record why an as-of has no model; the same reason and inputs not twice."""
        with self.writing() as session:
            same = select(Refusal).where(
                Refusal.task_id == refusal.task_id,
                Refusal.partition_key == refusal.partition_key,
                Refusal.reason == refusal.reason,
                Refusal.inputs == refusal.inputs,
            )
            if session.exec(same).first() is None:
                session.add(refusal)

    def champions(self) -> dict[tuple[str, str], Champion]:
        """Frozen decisions by (task_id, partition)."""
        with self.reading() as session:
            return {(c.task_id, c.partition_key): c for c in session.exec(select(Champion))}

    def champion(self, task_id: str, key: str) -> Champion | None:
        """The frozen decision of one partition and task, None if there is none yet."""
        with self.reading() as session:
            return session.get(Champion, (task_id, key))

    def freeze_champion(self, champion: Champion) -> Champion:
        """Store a decision unless there is one already, and return the one that counts."""
        with self.writing() as session:
            key = (champion.task_id, champion.partition_key)
            found = session.get(Champion, key)
            if found is None:
                session.add(champion)
            return found or champion

    def begin_batches(self, batches: Sequence[Batch]) -> list[int]:
        """Record slices as pending, before they are committed to the series store."""
        with self.writing() as session:
            session.add_all(batches)
            session.flush()
            return [batch.id for batch in batches if batch.id is not None]

    def commit_batches(self, ids: Sequence[int]) -> None:
        """Record that pending slices are stored."""
        with self.writing() as session:
            for first in range(0, len(ids), 10_000):  # SQLite takes 32,766 variables
                part = list(ids[first : first + 10_000])
                for batch in session.exec(select(Batch).where(col(Batch.id).in_(part))):
                    batch.status = "committed"
                    session.add(batch)

    def batches(
        self, table: str | None = None, keys: tuple[str, str] | None = None
    ) -> list[Written]:
        """The newest batch of each (table, partition, task), oldest first.

        Of one table, or of partitions from the first to the last of `keys`, if they are given.
        A slice whose newest batch is pending is left out: whoever wrote it was killed, or is
        about to commit, and what is stored is not known.
        """
        newest = select(func.max(Batch.id))
        if table is not None:
            newest = newest.where(Batch.table_name == table)
        if keys is not None:  # ISO dates sort like time
            newest = newest.where(col(Batch.partition_key).between(*keys))
        newest = newest.group_by(Batch.table_name, Batch.partition_key, Batch.task_id)
        columns = [getattr(Batch, name) for name in Written._fields]
        wanted = select(*columns).where(col(Batch.id).in_(newest), Batch.status == "committed")
        with self.reading() as session:
            return [Written(*row) for row in session.exec(wanted.order_by(col(Batch.id)))]

    def digests(
        self, table: str, keys: tuple[str, str]
    ) -> dict[tuple[str, str, str], list[tuple[int, str]]]:
        """Number and digest of every batch of a slice of a table, oldest first.

        Of partitions from the first to the last of `keys`; a pending batch has no digest.
        """
        wanted = select(Batch).where(Batch.table_name == table)
        wanted = wanted.where(col(Batch.partition_key).between(*keys)).order_by(col(Batch.id))
        found: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
        with self.reading() as session:
            for b in session.exec(wanted):
                slice_ = (b.table_name, b.partition_key, b.task_id)
                digest = b.digest if b.status == "committed" else ""
                found.setdefault(slice_, []).append((b.id or 0, digest))
        return found

    def require_fact(self, name: str, value: str, *, keep: bool = True) -> None:
        """Remember a fact of this home at first use, if `keep`; refuse another value later."""
        with self.writing() if keep else self.reading() as session:
            found = session.get(HomeFact, name)
            if found is None and keep:
                session.add(HomeFact(name=name, value=value))
            elif found is not None and found.value != value:
                raise SettingsError(
                    f"This home was made with {name} = {found.value}, but quant.toml now says "
                    f"{value}. Set it back, or start a new home: `quant init` in an empty folder."
                )


def _configure(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's own BEGIN would be deferred
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=60000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
