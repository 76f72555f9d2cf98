"""What the registry's tables hold, and the short forms of their rows."""

import json
from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Any, ClassVar, NamedTuple

from sqlalchemy import JSON, Column, UniqueConstraint
from sqlmodel import Field, SQLModel


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
    test_series: dict[str, list[Any]] = Field(sa_column=Column(JSON, nullable=False))
    importance: dict[str, dict[str, float]] = Field(sa_column=Column(JSON, nullable=False))
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
    chosen_asof: date
    settings: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    environment: dict[str, str] = Field(sa_column=Column(JSON, nullable=False))
    code_version: str
    file_bytes: int
    seconds: float
    run_id: str
    created_at: datetime
    row_digest: str = ""

    def digest(self) -> str:
        """A sha256 over all that is recorded but for what may change: status, environment."""
        values = self.model_dump(mode="json", exclude={"status", "environment", "row_digest"})
        values["created_at"] = self.created_at.astimezone(UTC).timestamp()
        return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


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


class Trial(SQLModel, table=True):
    """A recipe that was ever judged, since when its settings are known, and a study's series."""

    __tablename__: ClassVar[Any] = "trials"
    recipe: str = Field(primary_key=True)
    task_id: str = Field(index=True)
    chosen_asof: date
    chosen_by: str
    asof: date
    settings: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    series: dict[str, list[Any]] | None = Field(default=None, sa_column=Column(JSON))
    tried_at: datetime


class Champion(SQLModel, table=True):
    """The model that serves a task in one partition from a date on: decided once, never changed."""

    __tablename__: ClassVar[Any] = "champions"
    task_id: str = Field(primary_key=True)
    partition_key: str = Field(primary_key=True)
    from_ts: date = Field(primary_key=True)
    model_id: str = Field(foreign_key="models.model_id")
    why: str
    decided_at: datetime
    rule: str = ""  # [champion] of then as JSON; nothing in rows of layout 2


class Order(SQLModel, table=True):
    """What a person decided about a task's champion, and why; only ever added to."""

    __tablename__: ClassVar[Any] = "orders"
    id: int | None = Field(default=None, primary_key=True)
    task_id: str = Field(index=True)
    action: str
    model_id: str | None = Field(default=None, foreign_key="models.model_id")
    reason: str
    from_ts: date
    ordered_at: datetime


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
    made_with: str = ""  # code and environment; nothing in slices of layout 2


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
    seq: int
    task_id: str
    partition_key: str
    asof: date
    status: str
    recipe: str
    price_batch_id: int
    first_ts: date


class CheckResult(SQLModel, table=True):
    """What one check said of one partition (and task); only ever added to."""

    __tablename__: ClassVar[Any] = "check_results"
    id: int | None = Field(default=None, primary_key=True)
    asset: str = Field(index=True)
    name: str
    partition_key: str = Field(index=True)
    task_id: str
    passed: bool
    severity: str
    numbers: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    words: str
    run_id: str
    checked_at: datetime


class DailyRun(SQLModel, table=True):
    """What the daily job found and did: one row a run, append-only."""

    __tablename__: ClassVar[Any] = "daily_runs"
    id: int | None = Field(default=None, primary_key=True)
    state: str  # scored, nothing_new, late, given_up
    expected: date
    newest_session: date | None
    words: str
    run_id: str
    ran_at: datetime


class HomeFact(SQLModel, table=True):
    """A setting that a used home may not change."""

    __tablename__: ClassVar[Any] = "home_facts"
    name: str = Field(primary_key=True)
    value: str


def merged_series(
    old: dict[str, list[Any]] | None, new: dict[str, list[Any]]
) -> dict[str, list[Any]]:
    """Two series by session `ts`; where both have one, the newer counts."""
    if not old:
        return new
    names = [name for name in new if name != "ts"]
    rows = {
        day: values
        for part in (old, new)
        for day, *values in zip(part["ts"], *(part[name] for name in names), strict=True)
    }
    days = sorted(rows)
    columns = {name: [rows[day][i] for day in days] for i, name in enumerate(names)}
    return {"ts": days, **columns}
