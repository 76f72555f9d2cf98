"""Small homes with a made-up market, for tests of the whole chain."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from sqlmodel import SQLModel, select

from quant_pipeline.chain.ingest import IngestReport, ingest
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.jobs import Backfilled, Runner, backfill
from quant_pipeline.defs.location import make_definitions
from quant_pipeline.market.synthetic import make_market
from quant_pipeline.settings import Home
from quant_pipeline.stores.meta import Champion, Model, Refusal
from quant_pipeline.stores.series import digest_rows, query
from quant_pipeline.stores.sources import Reading

TODAY = date(2020, 1, 1)
# The market's 310 sessions end on Friday 2016-08-05: the window 2016-08 is open.
FIRST_SESSION = date(2015, 6, 1)
N_SESSIONS = 310
WALK_FROM = date(2016, 5, 1)
QUANT_TOML = """
[grid]
cadence = "monthly"
start = 2015-05-01
timezone = "America/New_York"

[universe]
min_sessions = 20
value_sessions = 20
min_median_value = 1000.0

[features]
exclude = []
min_sessions = 1

[folds]
n_folds = 2
min_train_sessions = 60
stop_sessions = 20
test_sessions = 30

[train]
window_sessions = 250
min_rows = 500
max_rounds = 30
early_stopping_rounds = 5
min_data_in_leaf = 50
num_leaves = 7
learning_rate = 0.1
threads = 1
"""
DATA = ["features_daily", "labels", "training_frame"]
LEARNING = ["walkforward_folds", "lgbm_model"]
SCORES = ["predictions", "prediction_outcomes"]
EVERY = ["prices_daily", *DATA, *LEARNING, *SCORES]
TABLES = (
    "price_versions", "price_superseded", "session_versions", "features_daily", "labels",
    "training_manifest", "walkforward_folds", "predictions", "prediction_outcomes",
)  # fmt: skip


@dataclass(frozen=True)
class SmallHome:
    """A folder with a quant.toml, and what a test does with it."""

    root: Path

    @property
    def workspace(self) -> Workspace:
        """The home opened anew, as by another command."""
        return Workspace.open(Home(self.root))

    def change_settings(self, old: str, new: str) -> None:
        """Replace a piece of quant.toml that stands there once."""
        file = self.root / "quant.toml"
        text = file.read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in quant.toml"
        file.write_text(text.replace(old, new))

    def ingest(self, *frames: pd.DataFrame) -> IngestReport:
        """Deliver frames as Parquet files, in one command."""
        folder = self.root / "delivered"
        folder.mkdir(exist_ok=True)
        paths = []
        for frame in frames:
            paths.append(folder / f"{len(list(folder.iterdir()))}.parquet")
            frame.to_parquet(paths[-1], index=False)
        report = ingest(self.workspace, paths, Reading(), TODAY)
        assert not report.problems
        return report

    @contextmanager
    def runner(self, *, recorded: bool = False) -> Iterator[Runner]:
        """A runner on a Dagster instance in memory, which is fast, or on the home's own."""
        workspace = self.workspace
        if recorded:
            with Runner.open(workspace) as runner:
                yield runner
        else:
            job = make_definitions(workspace).resolve_implicit_global_asset_job_def()
            with dg.DagsterInstance.ephemeral() as instance:
                yield Runner(workspace, instance, job)

    def backfill(self, first: date, last: date = TODAY, *, recorded: bool = False) -> Backfilled:
        """What `quant backfill --from --to` does."""
        with self.runner(recorded=recorded) as runner:
            return backfill(runner, first, last, runner.workspace.tasks())

    def run(self, assets: Sequence[str], first: str, last: str | None = None) -> None:
        """One run of assets over partitions."""
        with self.runner() as runner:
            runner.materialize(assets, first, last or first)

    def copy(self, root: Path) -> "SmallHome":
        """The same home at another place."""
        shutil.copytree(self.root, root)
        return SmallHome(root)

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The answer to a query on the series store."""
        with self.workspace.series.reading("test") as con:
            return con.execute(sql, list(parameters)).fetchall()

    def change_series(self, sql: str, *parameters: Any) -> None:
        """Damage or change what is stored, behind the back of every gate."""
        with self.workspace.series.writing("test") as con:
            con.execute(sql, list(parameters))

    def scores(self, before: date = TODAY) -> list[tuple[Any, ...]]:
        """Stored predictions of sessions before a date, but for when they were made."""
        return self.rows(
            'SELECT ts, symbol, task_id, model_id, score, "asof", origin '
            "FROM predictions WHERE ts < ? ORDER BY ALL",
            before,
        )

    def model_ids(self) -> dict[tuple[str, str], list[str]]:
        """Ids of all models by (partition, task)."""
        found: dict[tuple[str, str], list[str]] = {}
        for model in self.workspace.meta.models():
            found.setdefault((model.partition_key, model.task_id), []).append(model.model_id)
        return found

    def state(self) -> dict[str, Any]:
        """Everything that is stored, to compare: digests of tables, rows of the registry."""
        found: dict[str, Any] = {}
        with self.workspace.series.reading("test") as con:
            for table in TABLES:
                rows = query(con, f"SELECT * FROM {table} ORDER BY ALL")
                found[table] = (len(rows), digest_rows(rows))
        for kind in (Model, Champion, Refusal):
            found[kind.__name__] = self.registry(kind)
        models = sorted((self.root / "models").glob("*.joblib"))
        found["files"] = {p.name: sha256(p.read_bytes()).hexdigest() for p in models}
        return found

    def registry(self, kind: type[SQLModel]) -> list[dict[str, Any]]:
        """All rows of one table of the registry."""
        with self.workspace.meta.reading() as session:
            rows = [row.model_dump() for row in session.exec(select(kind))]
        return sorted(rows, key=repr)


def new_home(root: Path, changes: Mapping[str, str] | None = None) -> SmallHome:
    """A home with a small experiment; `changes` replace pieces of its quant.toml."""
    root.mkdir(parents=True)
    (root / "quant.toml").write_text(QUANT_TOML)
    made = SmallHome(root)
    for old, new in (changes or {}).items():
        made.change_settings(old, new)
    return made


def sample_market(**changes: Any) -> pd.DataFrame:
    """24 symbols with a strong signal; S005 stops trading in June 2016."""
    usual = {"n_symbols": 24, "n_sessions": N_SESSIONS, "start": FIRST_SESSION, "signal": 0.6}
    bars = make_market(**usual | changes)
    is_gone = (bars["symbol"] == "S005") & (bars["ts"] >= pd.Timestamp(2016, 6, 10))
    return bars[~is_gone].reset_index(drop=True)


@contextmanager
def own_environment(folder: Path) -> Iterator[None]:
    """QUANT_HOME and Dagster's variables point nowhere, and are set back at the end."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("QUANT_HOME", "DAGSTER_HOME", "QUANT_COMPUTE_LOGS"):
            patch.setenv(name, str(folder / "nowhere"))
        yield
