"""One home opened: its settings, stores and grid."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import cached_property

from quant_pipeline.chain.own_features import OwnFeatures, load_own_features
from quant_pipeline.chain.provenance import made_with
from quant_pipeline.errors import NoData
from quant_pipeline.market.features import FEATURE_VALUES, AnyFeature, choose_features
from quant_pipeline.market.grid import Grid
from quant_pipeline.settings import Home, Settings, Task, digest, load_settings
from quant_pipeline.stores.meta import Batch, MetaStore, utc_now
from quant_pipeline.stores.model_files import ModelFiles
from quant_pipeline.stores.published import Published
from quant_pipeline.stores.series import Connection, SeriesStore, fetch_row, read_sessions

FIXED = {
    "grid": ("cadence", "start", "timezone"),
    "sessions": ("calendar", "min_share", "active_dates"),
}


@dataclass(frozen=True)
class Workspace:
    """Everything that a step of the chain needs; opening it touches no file but quant.toml."""

    home: Home
    settings: Settings
    series: SeriesStore
    meta: MetaStore
    files: ModelFiles
    published: Published
    grid: Grid
    clock: Callable[[], datetime] = utc_now

    @classmethod
    def open(cls, home: Home) -> "Workspace":
        """Read the settings of a home and point at its stores."""
        settings = load_settings(home)
        return cls(
            home=home,
            settings=settings,
            series=SeriesStore(
                home.database, settings.store.lock_wait_seconds, settings.store.memory_gib
            ),
            meta=MetaStore(home.registry, settings.store.postgres),
            files=ModelFiles(home.models),
            published=Published(home.published),
            grid=Grid(settings.grid.cadence, settings.grid.start),
        )

    def read_only(self) -> "Workspace":
        """The same home; whatever would write its stores, or change their layout, fails."""
        meta = replace(self.meta, is_read_only=True, _engines={})
        return replace(self, series=replace(self.series, is_read_only=True), meta=meta)

    @cached_property
    def features(self) -> tuple[AnyFeature, ...]:
        """The features that quant.toml asks for, those of its modules tried out."""
        return choose_features(self.settings.features, self._own_features.features)

    @cached_property
    def _own_features(self) -> OwnFeatures:
        return load_own_features(self.home, self.settings.features.modules)

    @property
    def feature_modules(self) -> dict[str, str]:
        """The sha256 of each module with features of the user's own."""
        return dict(self._own_features.sha256)

    @property
    def feature_set_id(self) -> str:
        """Identifies the features and the universe that a row of features_daily was made with."""
        features = [(f.name, f.formula, f.window) for f in self.features]
        s = self.settings
        return digest(
            FEATURE_VALUES, features, self.feature_modules, s.features.min_sessions, s.universe,
            s.sessions, s.jumps,
        )  # fmt: skip

    @property
    def label_spec_id(self) -> str:
        """Identifies the tasks and rules that a row of labels was made with."""
        s = self.settings
        return digest([t.meaning for t in s.tasks], s.label, s.sessions, s.jumps)

    def tasks(self, task_ids: Sequence[str] = ()) -> list[Task]:
        """The named tasks, all of them if none is named."""
        return [self.settings.task(t) for t in task_ids] or list(self.settings.tasks)

    def now(self) -> datetime:
        """The present moment by the clock of the exchange."""
        return self.clock().astimezone(self.settings.grid.zone)

    def today(self) -> date:
        """The present date at the exchange."""
        return self.now().date()

    def require_same_grid(self, *, keep: bool = True) -> None:
        """Refuse a used home whose grid or rule of sessions was changed.

        Its partitions and windows would mean something else than those that are stored. From
        the first call with `keep` on, they are what they are.
        """
        for section, names in FIXED.items():
            for name in names:
                value = getattr(getattr(self.settings, section), name)
                self.meta.require_fact(f"{section}.{name}", str(value), keep=keep)

    def last_session(self) -> date:
        """The newest stored market session."""
        with self.series.reading() as con:
            sessions = read_sessions(con)
        if not len(sessions):
            raise NoData("No session is stored yet. Run `quant ingest PATH`, or `quant demo`.")
        newest: date = sessions["ts"][-1].as_py()
        return newest

    @contextmanager
    def writing(self, what: str, run_id: str = "") -> Iterator["Writing"]:
        """One transaction on the series; its slices are pending before it, committed after it."""
        with self.series.writing(what) as con:
            writing = Writing(con, run_id, price_batch_id(con))
            yield writing
            ids = self.meta.begin_batches(writing.batches)
        self.meta.commit_batches(ids)


@dataclass(frozen=True)
class Writing:
    """An open transaction and the slices that it writes."""

    con: Connection
    run_id: str
    price_batch_id: int
    batches: list[Batch] = field(default_factory=list)

    def record(
        self, table: str, key: str, rows: int, digest: str, spec: str, task_id: str = ""
    ) -> None:
        """Note a slice that this transaction writes."""
        self.batches.append(
            Batch(
                table_name=table,
                partition_key=key,
                task_id=task_id,
                n_rows=rows,
                digest=digest,
                price_batch_id=self.price_batch_id,
                spec_id=spec,
                status="pending",
                run_id=self.run_id,
                written_at=utc_now(),
                made_with=made_with(),
            )
        )


def price_batch_id(con: Connection) -> int:
    """The newest batch of prices, 0 if there is none."""
    return int(fetch_row(con, "SELECT coalesce(max(batch_id), 0) FROM price_batches")[0])


def newest_batch_id(ws: Workspace) -> int:
    """The same, of a home that nobody has open."""
    with ws.series.reading("prices") as con:
        return price_batch_id(con)
