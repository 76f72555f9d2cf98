"""MetaStore: the registry of models, champions, refusals and batches, in SQLite or PostgreSQL."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

from sqlalchemy import Engine, func
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col, select

from quant_pipeline.errors import NoData, SettingsError, StoreError
from quant_pipeline.stores.engines import busy_is_told, open_registry, open_to_read
from quant_pipeline.stores.failures import failures_are_told
from quant_pipeline.stores.records import (
    Batch,
    Champion,
    CheckResult,
    DailyRun,
    HomeFact,
    Model,
    Order,
    Refusal,
    Trained,
    Trial,
    Written,
    merged_series,
    utc_now,
)

ID_LENGTH = 64
__all__ = [
    "Batch",
    "Champion",
    "CheckResult",
    "DailyRun",
    "MetaStore",
    "Model",
    "Order",
    "Refusal",
    "Trained",
    "Trial",
    "Written",
    "utc_now",
]


@dataclass(frozen=True)
class MetaStore:
    """The registry; writers take turns, foreign keys are checked.

    In SQLite at a path: WAL, BEGIN IMMEDIATE. With the address of a PostgreSQL database in that, in
    a schema of its own, and an advisory lock; the path then only names the lock of its creation.
    """

    path: Path
    postgres: str = ""
    is_read_only: bool = False
    _engines: dict[str, Engine] = field(default_factory=dict, repr=False, compare=False)

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction."""
        if self.is_read_only:
            raise StoreError("The registry was opened to be read, not to be written.")
        engine = self._engine("writing")
        with (
            _failures_are_told(),
            busy_is_told(),
            Session(engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that only reads."""
        engine = self._engine("reading")
        with _failures_are_told(), Session(engine, expire_on_commit=False) as session:
            yield session

    def _engine(self, kind: Literal["reading", "writing"]) -> Engine:
        if kind not in self._engines:
            with _failures_are_told():
                self._engines.update(self._opened())
        return self._engines[kind]

    def _opened(self) -> dict[str, Engine]:
        if self.is_read_only:
            return {"reading": open_to_read(self.path, self.postgres)}
        return open_registry(self.path, self.postgres)

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
            whole = prefix[:ID_LENGTH]  # SQLite takes no longer pattern than some thousands
            wanted = select(Model).where(col(Model.model_id).startswith(whole, autoescape=True))
            found = list(session.exec(wanted)) if whole == prefix else []
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
        """Register a model; a row that is there already stays as it is and is returned.

        Only its environment becomes the one that has just made the same bytes.
        """
        with self.writing() as session:
            found = session.get(Model, model.model_id)
            if found is not None:
                if found.status == "pruned":  # its file is back
                    found.status = "ready"
                found.environment = model.environment
                session.add(found)
                return found
            newest = session.exec(select(Model.seq).order_by(col(Model.seq).desc())).first()
            model.seq = (newest or 0) + 1
            model.row_digest = model.digest()
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

    def damages(self) -> list[str]:
        """What of the registry is not as it was written, in words.

        SQLite keeps no checksums: its structure, references and each model's row are looked at.
        """
        with self.reading() as session:
            connection = session.connection()
            found = []
            if not self.postgres:
                rows = connection.exec_driver_sql("PRAGMA integrity_check(5)").all()
                found += [str(row[0])[:200] for row in rows if row[0] != "ok"]
                rows = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
                found += [f"a row of {row[0]} refers to no row of {row[2]}" for row in rows[:5]]
            changed = [m for m in session.exec(select(Model)) if m.digest() != m.row_digest]
        return found + [
            f"the row of model {m.model_id[:12]} is not as it was recorded" for m in changed
        ]

    def model_with_features(self, feature_set_id: str) -> Model | None:
        """The newest model that learned from features of an id, if there is one."""
        wanted = select(Model).where(Model.feature_set_id == feature_set_id)
        with self.reading() as session:
            return session.exec(wanted.order_by(col(Model.seq).desc())).first()

    def mark_pruned(self, model_ids: Sequence[str]) -> None:
        """Note that the files of some models are deleted; a retired one stays retired."""
        with self.writing() as session:
            for model_id in model_ids:
                model = session.get(Model, model_id)
                if model is not None and model.status == "ready":
                    model.status = "pruned"
                    session.add(model)

    def trials(self, task_id: str | None = None) -> list[Trial]:
        """Recipes that were ever judged, in the order in which they were first tried."""
        wanted = select(Trial).order_by(col(Trial.tried_at), Trial.recipe)
        if task_id is not None:
            wanted = wanted.where(Trial.task_id == task_id)
        with self.reading() as session:
            return list(session.exec(wanted))

    def add_trial(self, trial: Trial, *, is_proposal: bool = False) -> Trial:
        """Record a recipe; of one that was tried before, only what is new is added.

        Sessions that it was tested on join those that are there, and a proposal of a later study
        moves `chosen_asof` on while no model has been trained with the recipe.
        """
        with self.writing() as session:
            found = session.get(Trial, trial.recipe)
            if found is None:
                session.add(trial)
                return trial
            is_used = session.exec(select(Model).where(Model.recipe == trial.recipe)).first()
            if is_proposal and not is_used and trial.chosen_asof > found.chosen_asof:
                found.chosen_asof, found.chosen_by = trial.chosen_asof, trial.chosen_by
            if trial.series:
                found.series = merged_series(found.series, trial.series)
            session.add(found)
            return found

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

    def daily_runs(self) -> list[DailyRun]:
        """What the daily job did, oldest first."""
        with self.reading() as session:
            return list(session.exec(select(DailyRun).order_by(col(DailyRun.id))))

    def add_daily_run(self, run: DailyRun) -> DailyRun:
        """Record a run of the daily job."""
        with self.writing() as session:
            session.add(run)
        return run

    def champions(self, task_id: str | None = None, key: str | None = None) -> list[Champion]:
        """Frozen decisions by task and date, of one task or partition if it is given."""
        wanted = select(Champion).order_by(Champion.task_id, col(Champion.from_ts))
        if task_id is not None:
            wanted = wanted.where(Champion.task_id == task_id)
        if key is not None:
            wanted = wanted.where(Champion.partition_key == key)
        with self.reading() as session:
            return list(session.exec(wanted))

    def champion_before(self, task_id: str, day: date) -> Champion | None:
        """The newest frozen decision that took effect before a date."""
        wanted = select(Champion).where(Champion.task_id == task_id, col(Champion.from_ts) < day)
        with self.reading() as session:
            return session.exec(wanted.order_by(col(Champion.from_ts).desc())).first()

    def freeze_champion(self, champion: Champion) -> Champion:
        """Store a decision unless there is one already, and return the one that counts."""
        with self.writing() as session:
            key = (champion.task_id, champion.partition_key, champion.from_ts)
            found = session.get(Champion, key)
            if found is None:
                session.add(champion)
            return found or champion

    def orders(self, task_id: str) -> list[Order]:
        """What people decided about a task's champion, oldest first."""
        wanted = select(Order).where(Order.task_id == task_id).order_by(col(Order.id))
        with self.reading() as session:
            return list(session.exec(wanted))

    def add_order(self, order: Order, champion: Champion | None, status: str | None) -> None:
        """Record a person's decision with the champion and the model's status that it makes.

        A champion from the same date on, ordered before, makes way.
        """
        with self.writing() as session:
            session.add(order)
            if champion is not None:
                session.merge(champion)
            model = session.get(Model, order.model_id) if status else None
            if model is not None and status:
                model.status = status
                session.add(model)

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

    def history(self, table: str, key: str) -> list[Batch]:
        """Every time that slices of a partition of a table were written, oldest first."""
        wanted = select(Batch).where(Batch.table_name == table, Batch.partition_key == key)
        wanted = wanted.where(Batch.status == "committed").order_by(col(Batch.id))
        with self.reading() as session:
            return list(session.exec(wanted))

    def unsettled_batches(self, table: str) -> list[list[tuple[Written, bool]]]:
        """Of each slice of a table its newest batches, newest first, and whether each is pending.

        The last one of a slice is its newest committed one, if it has any.
        """
        wanted = select(Batch).where(Batch.table_name == table).order_by(col(Batch.id).desc())
        found: dict[tuple[str, str], list[tuple[Written, bool]]] = {}
        settled = set()
        with self.reading() as session:
            for b in session.exec(wanted):
                slice_ = (b.partition_key, b.task_id)
                if slice_ not in settled:
                    row = Written(*(getattr(b, name) for name in Written._fields))
                    found.setdefault(slice_, []).append((row, b.status == "pending"))
                if b.status == "committed":
                    settled.add(slice_)
        return [found[slice_] for slice_ in sorted(found)]

    def drop_pending(self, batch_id: int) -> None:
        """Forget a slice that was never stored; one that is committed meanwhile stays."""
        with self.writing() as session:
            batch = session.get(Batch, batch_id)
            if batch is not None and batch.status == "pending":
                session.delete(batch)

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

    def add_check_results(self, results: Sequence[CheckResult]) -> None:
        """Append what checks said."""
        with self.writing() as session:
            session.add_all(results)

    def check_results(
        self, asset: str | None = None, key: str | None = None, after: int = 0
    ) -> list[CheckResult]:
        """What checks said after a number, oldest first, of one asset or partition if given."""
        wanted = (
            select(CheckResult).order_by(col(CheckResult.id)).where(col(CheckResult.id) > after)
        )
        if asset is not None:
            wanted = wanted.where(CheckResult.asset == asset)
        if key is not None:
            wanted = wanted.where(CheckResult.partition_key == key)
        with self.reading() as session:
            return list(session.exec(wanted.order_by(col(CheckResult.id))))

    def newest_id(self, kind: type[CheckResult] | type[DailyRun]) -> int:
        """The highest number of a row of a kind, 0 if there is none."""
        with self.reading() as session:
            return session.exec(select(func.max(kind.id))).one() or 0

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


def _failures_are_told() -> AbstractContextManager[None]:
    """What a registry's bytes may come to: errors of the database, or of JSON and dates in it."""
    return failures_are_told("the registry", SQLAlchemyError, ValueError, OSError)
