"""`quant doctor` names what is unfit; `quant upgrade` brings Dagster's storage up to date."""

import fcntl
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime

import pytest
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.sql import get_alembic_config, run_alembic_downgrade

from quant_pipeline.chain import doctor
from quant_pipeline.chain.doctor import examine
from quant_pipeline.defs.instance import open_instance
from quant_pipeline.defs.upgrade import outdated, upgrade
from quant_pipeline.errors import StoreBusy, StoreError
from quant_pipeline.stores.locks import held
from quant_pipeline.stores.meta import Model
from quant_pipeline_tests.homes import SmallHome
from quant_pipeline_tests.test_cli import call, succeed

OLD = "63d7a8ec641a"  # a revision of dagster 1.8


def words(made: SmallHome, state: str) -> list[str]:
    found = examine(made.workspace, lambda *_: None)
    return [f"{f.what}: {f.words}" for f in found if f.state == state]


def test_a_home_in_order_is_fit(used):
    said = succeed(used.root, "doctor")
    assert said.out.count("\n") == len(said.out.strip().splitlines()) >= 8
    assert "BAD" not in said.out
    rows = succeed(used.root, "doctor", "--json").json
    assert {row["what"] for row in rows if row["state"] == "ok"} >= {"models", "locks", "dagster"}


def test_a_folder_that_is_not_there_is_named_and_a_new_home_is_fit(home):
    made = home()
    found = words(made, "bad")
    assert found == [
        f"access: {made.root / name} is not there, or this user cannot write it."
        for name in ("data", "models")
    ]
    succeed(made.root, "init", str(made.root))
    assert words(made, "bad") == []


def test_a_model_file_that_others_can_write_is_named(used):
    file = sorted((used.root / "models").glob("*.joblib"))[0]
    file.chmod(0o666)
    (found,) = words(used, "bad")
    assert found.startswith(f"access: Every user of this machine can write models/{file.name}")
    assert "`chmod -R o-w" in found
    assert call(used.root, "doctor").code == 1


def test_a_damaged_champion_is_named(used):
    champion = used.workspace.meta.champions("up_5d")[-1].model_id
    path = used.workspace.files.path(champion)
    path.write_bytes(path.read_bytes()[:-1])
    found = words(used, "bad")
    assert found[0].startswith(f"models: models/{champion}.joblib has sha256")
    assert found[1].startswith("agreement: I1: model")


def test_too_little_room_is_worth_a_look(used, monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_FREE", 1 << 60)
    (found,) = [w for w in words(used, "look") if w.startswith("room")]
    assert "a compaction writes it a second time" in found


def test_who_uses_the_home_is_told(used):
    with held(used.root / "data" / "ui.lock", "quant ui on port 3000", 0):
        (found,) = [w for w in words(used, "ok") if w.startswith("locks")]
    assert found.startswith(f"locks: In use: ui by process {os.getpid()} (quant ui on port 3000")


def test_a_model_of_the_future_tells_of_the_clock(used):
    with used.workspace.meta.writing() as session:
        row = session.get(Model, used.workspace.meta.models()[0].model_id)
        row.created_at = datetime(2999, 1, 1, tzinfo=UTC)
    (found,) = [w for w in words(used, "look") if w.startswith("clock")]
    assert "2999-01-01" in found


@pytest.fixture
def outdated_home(used: SmallHome) -> SmallHome:
    """A home with the Dagster storage of an older version, made by Dagster stepping back."""
    with open_instance(used.workspace.home) as instance:
        config = get_alembic_config(sqlite_run_storage.__file__)
        with instance.run_storage.connect() as connection:
            run_alembic_downgrade(config, connection, OLD)
        assert outdated(instance) == ["runs"]
    return used


def runs_of(made: SmallHome) -> list[str]:
    with closing(sqlite3.connect(made.root / "data" / "dagster" / "history" / "runs.db")) as con:
        return sorted(row[0] for row in con.execute("SELECT run_id FROM runs"))


def test_an_old_storage_is_named_and_brought_up_to_date_with_a_copy_kept(outdated_home):
    runs = runs_of(outdated_home)
    said = call(outdated_home.root, "doctor")
    assert said.code == 1
    assert "BAD  dagster    The storage of runs is of an older dagster: run `quant upgrade`" in (
        said.out
    )
    said = succeed(outdated_home.root, "upgrade")
    assert "was brought up to date; as it was before:" in said.out
    assert runs_of(outdated_home) == runs
    (copy,) = (outdated_home.root / "data" / "dagster" / "before").rglob("history/runs.db")
    with closing(sqlite3.connect(copy)) as con:
        assert con.execute("SELECT version_num FROM alembic_version").fetchall() == [(OLD,)]
    with open_instance(outdated_home.workspace.home) as instance:
        assert outdated(instance) == []
    assert "Dagster's storage is up to date." in succeed(outdated_home.root, "upgrade").out


def test_a_storage_that_cannot_be_upgraded_is_put_back(outdated_home):
    path = outdated_home.root / "data" / "dagster" / "history" / "runs.db"
    with closing(sqlite3.connect(path)) as con:
        con.execute("CREATE TRIGGER refuse BEFORE UPDATE ON alembic_version "
                    "BEGIN SELECT RAISE(ABORT, 'refused'); END")  # fmt: skip
        con.commit()
        before = list(con.iterdump())
    with (
        open_instance(outdated_home.workspace.home) as instance,
        pytest.raises(StoreError, match="was put back as it was"),
    ):
        upgrade(instance, outdated_home.workspace.home)
    with closing(sqlite3.connect(path)) as con:
        assert list(con.iterdump()) == before


def test_nothing_is_upgraded_under_a_running_page(outdated_home):
    lock = outdated_home.root / "data" / "ui.lock"
    handle = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with (
            open_instance(outdated_home.workspace.home) as instance,
            pytest.raises(StoreBusy, match="stop it first"),
        ):
            upgrade(instance, outdated_home.workspace.home)
    finally:
        os.close(handle)
