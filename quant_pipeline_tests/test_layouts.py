"""Stores of older layouts: brought up to date at first use, as a whole or not at all."""

import sqlite3
from contextlib import closing
from pathlib import Path

import duckdb
import pytest

from quant_pipeline.errors import StoreError
from quant_pipeline.stores import registry_schema, schema
from quant_pipeline.stores.copies import SAID
from quant_pipeline.stores.meta import MetaStore
from quant_pipeline.stores.records import HomeFact
from quant_pipeline.stores.series import SeriesStore, fetch_row
from quant_pipeline_tests.test_meta import model

LAYOUTS = Path(__file__).with_name("layouts")


def columns(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Each table's columns by name: type, whether it may be null, primary key."""
    with closing(sqlite3.connect(path)) as con:
        tables = con.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {
            name: sorted(
                row[1:4] + row[5:] for row in con.execute(f"PRAGMA table_info('{name}')").fetchall()
            )
            for (name,) in tables
        }


@pytest.fixture
def old_registry(tmp_path) -> Path:
    """A registry of the first layout with a model in it."""
    path = tmp_path / "models" / "registry.sqlite"
    new = MetaStore(tmp_path / "new" / "registry.sqlite")
    new.add_model(model("a" * 64))
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as con:
        con.executescript((LAYOUTS / "registry_1.sql").read_text())
        con.execute("ATTACH ? AS new", [str(new.path)])
        names = ", ".join(row[1] for row in con.execute("PRAGMA main.table_info('models')"))
        con.execute(f"INSERT INTO main.models ({names}) SELECT {names} FROM new.models")
        con.commit()
    return path


def test_a_registry_of_the_first_layout_is_brought_up_to_date(old_registry, tmp_path):
    meta = MetaStore(old_registry)
    (found,) = meta.models()
    assert found.row_digest == model("a" * 64, seq=1).digest()
    assert meta.damages() == []
    assert columns(old_registry) == columns(tmp_path / "new" / "registry.sqlite")
    meta.add_model(model("b" * 64))
    assert MetaStore(old_registry).damages() == []
    with meta.reading() as session:
        assert session.get(HomeFact, registry_schema.FACT).value == str(registry_schema.VERSION)


def test_a_registry_whose_change_fails_stays_as_it_was(old_registry, monkeypatch):
    def fails(_: object) -> None:
        raise RuntimeError("in the middle")

    before = old_registry.read_bytes(), columns(old_registry)
    monkeypatch.setattr(registry_schema, "MIGRATIONS", (*registry_schema.MIGRATIONS, fails))
    with pytest.raises(RuntimeError, match="in the middle"):
        MetaStore(old_registry).models()
    assert columns(old_registry) == before[1]
    monkeypatch.undo()
    assert len(MetaStore(old_registry).models()) == 1


def test_a_registry_of_a_later_version_is_refused(old_registry):
    meta = MetaStore(old_registry)
    meta.models()
    with meta.writing() as session:
        session.merge(HomeFact(name=registry_schema.FACT, value="99"))
    with pytest.raises(StoreError, match=r"has layout 99, but this version .* knows layouts"):
        MetaStore(old_registry).models()


@pytest.fixture
def old_series(tmp_path) -> SeriesStore:
    """A series store of the first layout with a session in it."""
    store = SeriesStore(tmp_path / "data" / "quant.duckdb")
    store.path.parent.mkdir()
    with duckdb.connect(store.path) as con:
        con.execute((LAYOUTS / "series_5.sql").read_text())
        con.execute("INSERT INTO session_versions VALUES ('2020-01-02', 1, 7, true, 'bars')")
    return store


def said(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with duckdb.connect(path, read_only=True) as con:
        (name,) = con.execute("SELECT current_database()").fetchall()[0]
        return {kind: con.execute(sql, [name]).fetchall() for kind, sql in SAID.items()}


def test_tables_of_the_first_layout_are_those_of_a_new_store_once_they_are_used(
    old_series, tmp_path
):
    assert old_series.query("SELECT n_bars FROM sessions").to_pylist() == [{"n_bars": 7}]
    new = SeriesStore(tmp_path / "new" / "quant.duckdb")
    with new.writing("one"):
        pass
    assert said(old_series.path) == said(new.path)


STEPS = ("ALTER TABLE seals ADD COLUMN note VARCHAR", "CREATE TABLE more (a BIGINT)")


def test_steps_are_taken_in_order_by_the_first_that_reads(old_series, monkeypatch):
    monkeypatch.setattr(schema, "MIGRATIONS", STEPS)
    monkeypatch.setattr(schema, "VERSION", schema.FIRST_VERSION + 2)
    with old_series.reading() as con:
        assert fetch_row(con, "SELECT version FROM store_version") == (schema.VERSION,)
        assert fetch_row(con, "SELECT count(note), (SELECT count(*) FROM more) FROM seals") == (
            0,
            0,
        )
    with old_series.reading() as con:
        assert fetch_row(con, "SELECT n_bars FROM sessions") == (7,)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="has tables of layout 7, but this version"):
        old_series.query("SELECT 1")


def test_steps_of_which_one_fails_change_nothing(old_series, monkeypatch):
    before = said(old_series.path)
    monkeypatch.setattr(schema, "MIGRATIONS", (STEPS[0], "CREATE TABLE seals (a BIGINT)"))
    monkeypatch.setattr(schema, "VERSION", schema.FIRST_VERSION + 2)
    with pytest.raises(duckdb.CatalogException):
        old_series.query("SELECT 1")
    monkeypatch.undo()
    assert said(old_series.path) == before
    assert len(old_series.query("SELECT * FROM sessions")) == 1
