"""Runs and the registry in a real PostgreSQL server: the same scores as with SQLite."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from quant_pipeline.defs.housekeeping import keep_house, needed_runs
from quant_pipeline.defs.instance import open_instance
from quant_pipeline.errors import SettingsError, StoreError
from quant_pipeline.stores.engines import with_driver
from quant_pipeline.stores.meta import Champion, MetaStore, Model, utc_now
from quant_pipeline_tests.homes import WALK_FROM, SmallHome
from quant_pipeline_tests.servers import free_port


def find_server() -> Path | None:
    """The folder with the newest server's programs."""
    found = [Path(p).parent for p in (shutil.which("initdb"), shutil.which("postgres")) if p]
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    folders = [*sorted(debian, key=lambda p: int(p.parent.name), reverse=True), *found]
    return next((p for p in folders if (p / "initdb").exists() and (p / "postgres").exists()), None)


PROGRAMS = find_server()
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        PROGRAMS is None,
        reason="NO POSTGRES TEST: there is no server. Debian or Ubuntu: apt-get install postgresql",
    ),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server on the loopback address, without its database."""
    assert PROGRAMS is not None
    # Its own user, as the server refuses root's; a folder which that user can reach.
    user = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="quant-postgres-"))
    if user:
        shutil.chown(folder, user)
    port = free_port()
    data = folder / "data"
    initdb = [PROGRAMS / "initdb", "-D", data, "-U", "quant", "-A", "trust", "-E", "UTF8", "-N"]
    subprocess.run(initdb, user=user, cwd=folder, check=True, capture_output=True)
    command = [PROGRAMS / "postgres", "-D", data, "-p", str(port), "-k", folder,
               "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, user=user, cwd=folder, stdout=log, stderr=log)
    try:
        ready = [PROGRAMS / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q"]
        deadline = time.monotonic() + 60
        while subprocess.run(ready, check=False).returncode:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)  # between two polls of another process
        yield f"postgresql://quant@127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture
def database(server, request) -> str:
    """An empty database of its own."""
    name = f"db_{abs(hash(request.node.name))}"
    engine = create_engine(with_driver(f"{server}/postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{server}/{name}"


def settings(address: str) -> dict[str, str]:
    return {"[universe]": f'[store]\npostgres = "{address}"\n\n[universe]'}


def tables(address: str, schema: str) -> set[str]:
    engine = create_engine(with_driver(address))
    with engine.connect() as connection:
        found = connection.execute(
            text("SELECT table_name FROM information_schema.tables WHERE table_schema = :schema"),
            {"schema": schema},
        )
        names = {name for (name,) in found}
    engine.dispose()
    return names


@pytest.mark.long
def test_a_backfill_ends_with_the_same_models_scores_and_champions(
    home, database, finished, market
):
    made: SmallHome = home(changes=settings(database))
    made.ingest(market)
    made.backfill(WALK_FROM, recorded=True)
    assert made.scores() == finished.scores()
    assert made.model_ids() == finished.model_ids()
    chosen = [(c["task_id"], c["partition_key"], c["model_id"]) for c in made.registry(Champion)]
    assert chosen == [
        (c["task_id"], c["partition_key"], c["model_id"]) for c in finished.registry(Champion)
    ]
    assert not list(made.root.rglob("*.sqlite")), "nothing of it is in the home"
    assert not list((made.root / "data" / "dagster").rglob("*.db"))
    assert "models" in tables(database, "quant_registry")
    assert "event_logs" in tables(database, "public")
    (model, *_) = made.workspace.meta.models()
    assert abs(datetime.now(UTC) - model.created_at) < timedelta(hours=1)
    with open_instance(made.workspace.home) as instance:
        ids = {run.run_id for run in instance.get_runs()}
        kept = needed_runs(instance) & ids
        later = datetime.now(UTC) + timedelta(days=400)
        done = keep_house(made.workspace, instance, later, lambda *_: None, dry_run=False)
        assert done.runs_deleted == len(ids - kept)
        assert {run.run_id for run in instance.get_runs()} == kept
    with made.runner(recorded=True) as runner:
        was = made.state()
        runner.materialize(["features_daily", "labels", "training_frame"], "2016-06", "2016-07")
        assert made.state() == was


def test_eight_writers_take_turns(tmp_path, database):
    meta = MetaStore(tmp_path / "registry.sqlite", database)
    meta.require_fact("a", "b")

    def add(i: int) -> None:
        own = MetaStore(tmp_path / "registry.sqlite", database)
        for j in range(5):
            own.add_model(model(f"{i}{j}" + "0" * 62))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert sorted(m.seq for m in meta.models()) == list(range(1, 41))


def model(model_id: str) -> Model:
    day = date(2016, 6, 30)
    return Model(
        model_id=model_id, seq=0, task_id="t", partition_key="2016-06", asof=day, status="ready",
        parameters={}, metrics={}, fold_metrics=[], test_series={}, importance={}, features=[],
        feature_type="float32", feature_set_id="", n_rows=1, n_sessions=1, n_symbols=1,
        first_ts=day, last_ts=day, rounds=1, price_batch_id=1, data_fingerprint="", recipe="",
        chosen_asof=day, settings={}, environment={}, code_version="", file_bytes=1, seconds=1.0,
        run_id="", created_at=utc_now(),
    )  # fmt: skip


def test_a_used_home_cannot_change_where_its_registry_is(home, used, database):
    used.change_settings("[universe]", settings(database)["[universe]"])
    with pytest.raises(SettingsError, match=r"registry\.sqlite, and store\.postgres would begin"):
        used.workspace.meta.models()
    made = home(changes=settings(database))
    made.workspace.meta.require_fact("a", "b")
    made.change_settings(f'postgres = "{database}"', 'postgres = ""')
    with pytest.raises(SettingsError, match="is in PostgreSQL"):
        made.workspace.meta.models()


def test_a_server_that_is_not_there_is_one_error_without_the_password(home, monkeypatch):
    address = f"postgresql://quant:secret@127.0.0.1:{free_port()}/x"
    made = home()
    monkeypatch.setenv("QUANT_STORE__POSTGRES", address)
    with pytest.raises(StoreError, match=r"cannot be opened.*refused") as raised:
        made.workspace.meta.models()
    assert "secret" not in str(raised.value)


def test_a_dagster_yaml_with_another_storage_is_refused(home, database):
    made = home(changes=settings(database))
    (made.root / "dagster.yaml").write_text("storage:\n  postgres: {}\n")
    with (
        pytest.raises(SettingsError, match="has a storage of its own"),
        open_instance(made.workspace.home),
    ):
        pass
