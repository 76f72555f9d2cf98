"""Rules of the series store: all or nothing, readers at rest, one configuration, no way out."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.chain.ingest import store_versions
from quant_pipeline.errors import NoData, StoreBusy, StoreError
from quant_pipeline.stores import schema
from quant_pipeline.stores.schema import NEWEST
from quant_pipeline.stores.series import (
    SeriesStore,
    columns_of,
    digest_rows,
    fetch_row,
    insert,
    query,
    read_first_bars,
    read_prices,
    read_sessions,
    replace,
)


@pytest.fixture
def store(tmp_path: Path) -> SeriesStore:
    return SeriesStore(tmp_path / "data" / "quant.duckdb", lock_wait_seconds=0)


def sessions(*days: int, is_session: bool = True, batch_id: int = 1, n_bars: int = 1) -> pa.Table:
    """Rows of session_versions, on which the rules of every table are tested."""
    n = len(days)
    return pa.table(
        {
            "ts": pa.array([date(2020, 1, d) for d in days], pa.date32()),
            "batch_id": pa.array([batch_id] * n, pa.int64()),
            "n_bars": pa.array([n_bars] * n, pa.int64()),
            "is_session": pa.array([is_session] * n, pa.bool_()),
            "why": pa.array(["share"] * n, pa.string()),
        }
    )


def stored(store: SeriesStore) -> list[int]:
    rows = store.query("SELECT ts FROM session_versions ORDER BY ts")
    return [d.day for d in rows["ts"].to_pylist()]


def files(store: SeriesStore) -> set[str]:
    return {p.name for p in store.path.parent.iterdir()}


# --- all or nothing


class Stop(BaseException):
    """What no `except Exception` catches."""


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Stop, duckdb.ConstraintException])
def test_a_block_that_fails_leaves_the_old_state(
    store: SeriesStore, error: type[BaseException]
) -> None:
    with store.writing("one") as con:
        insert(con, "session_versions", sessions(2, 3))
    with pytest.raises(error), store.writing("two") as con:  # noqa: PT012
        con.execute("DELETE FROM session_versions")
        insert(con, "session_versions", sessions(6))
        con.execute("CREATE TABLE other (a INT)")
        if error is duckdb.ConstraintException:
            insert(con, "session_versions", sessions(6))
        raise error
    assert stored(store) == [2, 3]
    with store.reading() as con:
        assert columns_of(con, "other") == []


def test_a_failed_first_block_leaves_an_empty_store(store: SeriesStore) -> None:
    with pytest.raises(ValueError, match="no"), store.writing("one") as con:  # noqa: PT012
        insert(con, "session_versions", sessions(2))
        raise ValueError("no")
    assert stored(store) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from quant_pipeline.stores.series import SeriesStore
with SeriesStore(Path(sys.argv[1]), 0).writing("one") as con:
    con.execute("DELETE FROM session_versions")
    con.execute("INSERT INTO session_versions VALUES ('2020-01-06', 1, 1, true, '')")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_state_and_no_lock(store: SeriesStore) -> None:
    with store.writing("one") as con:
        insert(con, "session_versions", sessions(2, 3))
    done = subprocess.run([sys.executable, "-c", KILLED, str(store.path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert stored(store) == [2, 3]
    with store.writing("two") as con:
        insert(con, "session_versions", sessions(7))
    assert stored(store) == [2, 3, 7]


BAR = "SELECT current_setting('enable_progress_bar')"
WITHOUT_A_SCRIPT = f"""
import sys
from pathlib import Path
import duckdb
from quant_pipeline.stores.series import SeriesStore
with SeriesStore(Path(sys.argv[1]), 0).reading("one") as con:
    print(duckdb.connect().execute("{BAR}").fetchall(), con.execute("{BAR}").fetchall())
"""


def test_no_progress_bar_is_printed_where_duckdb_takes_a_process_for_a_notebook(
    store: SeriesStore,
) -> None:
    with store.writing("one") as con:
        insert(con, "session_versions", sessions(2))
    command = [sys.executable, "-c", WITHOUT_A_SCRIPT, str(store.path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["[(True,)]", "[(False,)]"]


# --- creation


def test_reading_nothing_says_what_to_do_and_makes_no_file(store: SeriesStore) -> None:
    with pytest.raises(NoData, match=r"Nothing has been ingested yet\. Run `quant ingest PATH`"):
        store.query("SELECT 1")
    assert not store.path.parent.exists()


HALF_WAY = """
import os, signal, sys, duckdb
con = duckdb.connect(sys.argv[1])
con.execute("CREATE TABLE half (a INT); INSERT INTO half VALUES (1)")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("leftover", ["rubbish", "killed"])
def test_a_creation_killed_half_way_leaves_a_store_that_opens(
    store: SeriesStore, leftover: str
) -> None:
    store.path.parent.mkdir()
    new = store.path.with_name("quant.duckdb.new")
    if leftover == "killed":
        subprocess.run([sys.executable, "-c", HALF_WAY, str(new)], check=False)
        assert "quant.duckdb.new.wal" in files(store)
    else:
        new.write_bytes(b"half")
        new.with_name(new.name + ".wal").write_bytes(b"half")
    with store.writing("one") as con:
        insert(con, "session_versions", sessions(2))
        assert columns_of(con, "half") == []
    assert stored(store) == [2]
    assert files(store) == {"quant.duckdb", "quant.duckdb.lock"}


def test_newest_changes_without_their_file_are_not_lost_without_a_word(store: SeriesStore) -> None:
    store.path.parent.mkdir()
    store.path.with_name("quant.duckdb.wal").write_bytes(b"changes")
    with pytest.raises(StoreError, match=r"Restore quant\.duckdb, or delete quant\.duckdb\.wal"):
        store.writing("one").__enter__()
    assert files(store) == {"quant.duckdb.wal", "quant.duckdb.lock"}


def test_a_file_that_is_no_database_is_named(store: SeriesStore) -> None:
    store.path.parent.mkdir()
    store.path.write_bytes(b"no database" * 1000)
    for use in (store.writing, store.reading):
        with pytest.raises(StoreError, match=r"quant\.duckdb is damaged .*not a valid"):
            use("one").__enter__()


# --- one writer or many readers


READER = """
import sys
from pathlib import Path
from quant_pipeline.stores.series import SeriesStore
with SeriesStore(Path(sys.argv[1]), 0).reading() as con:
    print(con.execute("SELECT count(*) FROM session_versions").fetchone()[0], flush=True)
    sys.stdin.readline()
"""


def test_readers_of_two_processes_share_and_a_writer_waits_for_them(store: SeriesStore) -> None:
    with store.writing("one") as con:
        insert(con, "session_versions", sessions(2, 3))
    command = [sys.executable, "-c", READER, str(store.path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "2\n"
        assert stored(store) == [2, 3]
        with pytest.raises(StoreBusy):
            store.writing("two").__enter__()
        other.communicate("\n")
    with store.writing("two") as con:
        insert(con, "session_versions", sessions(6))


def test_a_reader_waits_for_a_writer(store: SeriesStore) -> None:
    with store.writing("backfill"), pytest.raises(StoreBusy, match=rf"{os.getpid()} \(backfill"):
        store.query("SELECT 1")


def test_a_reader_cannot_write(store: SeriesStore) -> None:
    with store.writing("one"):
        pass
    with store.reading() as con, pytest.raises(duckdb.InvalidInputException, match="read-only"):
        con.execute("DELETE FROM session_versions")


# --- configuration


def test_every_connection_counts_in_utc(
    store: SeriesStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Manila")
    late = datetime(2020, 1, 2, 20, tzinfo=UTC)  # the 3rd in Manila
    with store.writing("one") as con:
        assert fetch_row(con, "SELECT current_setting('TimeZone')") == ("UTC",)
        assert fetch_row(con, "SELECT CAST(? AS TIMESTAMPTZ)::DATE", [late]) == (date(2020, 1, 2),)
    with store.reading() as con:
        assert fetch_row(con, "SELECT current_setting('TimeZone')") == ("UTC",)


def test_no_connection_reaches_files_or_variables_outside(
    store: SeriesStore, tmp_path: Path
) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    frame = pa.table({"a": [1]})
    attempts = (
        f"SELECT * FROM read_csv('{tmp_path}/secret.csv')",
        f"SELECT * FROM '{tmp_path}/secret.csv'",
        f"COPY (SELECT 1) TO '{tmp_path}/out.csv'",
        f"ATTACH '{tmp_path}/other.duckdb'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET allow_community_extensions = true",
        "SET memory_limit = '100TB'",
        "SET lock_configuration = false",
        "RESET lock_configuration",
        "SELECT * FROM frame",
    )
    assert len(frame) == 1
    with store.writing("one"):
        pass
    for mode in (store.writing, store.reading):
        for sql in attempts:
            with pytest.raises(duckdb.Error), mode("one") as con:
                con.execute(sql)
    assert {p.name for p in tmp_path.iterdir()} == {"data", "secret.csv"}


# --- rows in and out


def test_rows_are_stored_by_name_and_wrong_columns_are_refused(store: SeriesStore) -> None:
    right = sessions(2)
    wrong = (
        right.drop_columns(["n_bars"]),
        right.append_column("extra", pa.array([1])),
        right.rename_columns(["ts", "batch_id", "n_bars", "is_open", "why"]),
        right.append_column("ts", right["ts"]),
    )
    with store.writing("one") as con:
        for rows in wrong:
            with pytest.raises(
                StoreError, match=r"Rows for session_versions have columns .*it has ts, batch_id, n"
            ):
                insert(con, "session_versions", rows)
        insert(
            con, "session_versions", right.select(["why", "is_session", "ts", "n_bars", "batch_id"])
        )
    assert store.query("SELECT * FROM session_versions").to_pylist() == right.to_pylist()


def test_a_slice_is_replaced_and_nothing_else(store: SeriesStore) -> None:
    with store.writing("one") as con:
        insert(con, "session_versions", sessions(2, 3, 6))
        replace(con, "session_versions", sessions(7), "ts < ?", [date(2020, 1, 4)])
    assert stored(store) == [6, 7]
    with store.writing("two") as con:
        replace(con, "session_versions", sessions(), "ts > ?", [date(2020, 1, 6)])
    assert stored(store) == [6]


def test_queries_take_parameters_and_half_read_results_block_nothing(store: SeriesStore) -> None:
    with store.writing("one") as con:
        insert(con, "session_versions", sessions(2, 3, 6))
        assert fetch_row(
            con, "SELECT count(*) FROM session_versions WHERE ts > ?", [date(2020, 1, 2)]
        ) == (2,)
        assert len(query(con, "SELECT * FROM session_versions")) == 3
        with pytest.raises(ValueError, match="unpack"):
            fetch_row(con, "SELECT ts FROM session_versions")


def test_sessions_are_read_within_both_dates(store: SeriesStore) -> None:
    with store.writing("one") as con:
        insert(con, "session_versions", sessions(2, 3, 6, 7))
        insert(con, "session_versions", sessions(4, is_session=False))

        def days(*between: date | None) -> list[int]:
            return [d.day for d in read_sessions(con, *between)["ts"].to_pylist()]

        assert days() == days(None, None) == [2, 3, 6, 7]
        assert days(date(2020, 1, 3), date(2020, 1, 6)) == [3, 6]
        assert days(date(2020, 1, 4)) == [6, 7]


def test_a_date_is_a_session_as_its_newest_version_says(store: SeriesStore) -> None:
    with store.writing("one") as con:
        insert(con, "session_versions", sessions(2, 3, 6, batch_id=1))
        insert(con, "session_versions", sessions(6, is_session=False, batch_id=4, n_bars=9))
        insert(con, "session_versions", sessions(3, is_session=False, batch_id=2))
        insert(con, "session_versions", sessions(3, 7, batch_id=3, n_bars=5))

        def days(batch_id: int) -> list[int]:
            return [d.day for d in read_sessions(con, batch_id=batch_id)["ts"].to_pylist()]

        assert [days(b) for b in range(6)] == [
            [], [2, 3, 6], [2, 6], [2, 3, 6, 7], [2, 3, 7], [2, 3, 7],
        ]  # fmt: skip
        newest = query(con, "SELECT day(ts) AS d, n_bars, is_session FROM sessions ORDER BY ts")
        assert [tuple(r.values()) for r in newest.to_pylist()] == [
            (2, 1, True), (3, 5, True), (6, 9, False), (7, 5, True),
        ]  # fmt: skip
        assert query(con, "FROM sessions_as_of(4) ORDER BY ts") == query(
            con, "FROM sessions ORDER BY ts"
        )


# --- versions of prices

PRICES = ("open", "high", "low", "close", "adj_index", "volume")
Key = tuple[str, int]


def versions(prices: Mapping[Key, float | None]) -> pa.Table:
    """Rows as `store_versions` takes them: a price for (symbol, day of January)."""
    keys = list(prices)
    columns: dict[str, pa.Array] = {
        "symbol": pa.array([symbol for symbol, _ in keys], pa.string()),
        "ts": pa.array([date(2020, 1, day) for _, day in keys], pa.date32()),
        "change": pa.array(["new"] * len(keys), pa.string()),
    }
    values = pa.array(list(prices.values()), pa.float64())
    return pa.table(columns | dict.fromkeys(PRICES, values))


def test_prices_are_the_newest_versions_of_bars_on_sessions(store: SeriesStore) -> None:
    with store.writing("one") as con:
        insert(con, "session_versions", sessions(2, 3))
        insert(con, "session_versions", sessions(4, is_session=False))
        store_versions(con, versions({("B", 2): 1.0, ("A", 3): 1.0, ("A", 4): 1.0}), 1)
        store_versions(con, versions({("B", 2): 9.0, ("C", 2): 2.0}), 2)
        store_versions(con, versions({("B", 2): 5.0, ("B", 3): 6.0}), 3)
        store_versions(con, versions({("C", 2): None, ("B", 3): None}), 4, deleted=True)
        insert(con, "session_versions", sessions(4, batch_id=5))

        def prices(batch_id: int = NEWEST) -> list[tuple[Any, ...]]:
            rows = read_prices(con, date(2020, 1, 1), date(2020, 1, 31), batch_id).to_pylist()
            return [(r["symbol"], r["ts"].day, r["close"]) for r in rows]

        assert prices(0) == []
        assert prices(1) == [("A", 3, 1.0), ("B", 2, 1.0)]
        assert prices(2) == [("A", 3, 1.0), ("B", 2, 9.0), ("C", 2, 2.0)]
        assert prices(3) == [("A", 3, 1.0), ("B", 2, 5.0), ("B", 3, 6.0), ("C", 2, 2.0)]
        assert prices(4) == [("A", 3, 1.0), ("B", 2, 5.0)]
        assert prices(5) == prices() == [("A", 3, 1.0), ("A", 4, 1.0), ("B", 2, 5.0)]
        newest = query(con, "FROM prices_daily ORDER BY symbol, ts")
        assert newest == query(con, "FROM prices_as_of(5) ORDER BY symbol, ts")
        assert [r["close"] for r in newest.to_pylist()] == [1.0, 1.0, 5.0]
        january = {day: date(2020, 1, day) for day in (2, 3)}
        assert read_first_bars(con) == {"A": january[3], "B": january[2]}
        assert read_first_bars(con, 2) == {"A": january[3], "B": january[2], "C": january[2]}
        assert read_first_bars(con, 0) == {}


def test_a_version_is_current_until_it_is_superseded(store: SeriesStore) -> None:
    """That a newer one is stored does not matter: views look at price_superseded alone."""
    with store.writing("one") as con:
        insert(con, "session_versions", sessions(2))
        store_versions(con, versions({("A", 2): 1.0}), 1)
        store_versions(con, versions({("A", 2): 2.0}), 7)
        assert query(con, "FROM price_superseded").to_pylist() == [
            {"symbol": "A", "ts": date(2020, 1, 2), "batch_id": 1, "by_batch_id": 7}
        ]
        for batch_id, close in ((1, 1.0), (6, 1.0), (7, 2.0)):
            assert fetch_row(con, "SELECT close FROM bars_as_of(?)", [batch_id]) == (close,)
        assert fetch_row(con, "SELECT close, batch_id FROM bars") == (2.0, 7)
        con.execute("DELETE FROM price_superseded")
        assert fetch_row(con, "SELECT count(*) FROM bars") == (2,)


def test_a_bar_without_a_price_is_refused_and_a_deleted_one_needs_none(store: SeriesStore) -> None:
    with store.writing("one") as con:
        store_versions(con, versions({("A", 2): None}), 1, deleted=True)
        assert fetch_row(con, "SELECT count(*) FROM bars") == (0,)
    for name in PRICES:
        rows = versions({("B", 2): 1.0})
        i = rows.column_names.index(name)
        rows = rows.set_column(i, name, pa.nulls(1, pa.float64()))
        with pytest.raises(duckdb.ConstraintException), store.writing("two") as con:
            store_versions(con, rows, 2)


@dataclass(frozen=True)
class Written:
    """One batch: bars that it deletes, and bars that it stores."""

    batch_id: int
    deleted: frozenset[Key]
    prices: Mapping[Key, float]


@st.composite
def histories(draw: st.DrawFn) -> list[Written]:
    """Batches with rising ids and gaps between them, on 3 symbols x 4 days."""
    keys = st.tuples(st.sampled_from("ABC"), st.integers(2, 5))
    batch_id, found = 0, []
    for _ in range(draw(st.integers(0, 6))):
        batch_id += draw(st.integers(1, 3))
        deleted = draw(st.frozensets(keys, max_size=4))
        stays = keys.filter(lambda key, deleted=deleted: key not in deleted)
        prices = draw(st.dictionaries(stays, st.floats(1, 9), max_size=6))
        found.append(Written(batch_id, deleted, prices))
    return found


def newest_bars(history: list[Written], batch_id: int) -> dict[Key, tuple[int, float]]:
    """The newest batch per (symbol, day), unless it deleted the bar."""
    found: dict[Key, tuple[int, float]] = {}
    for key in {k for one in history for k in (*one.deleted, *one.prices)}:
        touching = [
            one
            for one in history
            if one.batch_id <= batch_id and (key in one.deleted or key in one.prices)
        ]
        if touching:
            newest = max(touching, key=lambda one: one.batch_id)
            if key in newest.prices:
                found[key] = newest.batch_id, newest.prices[key]
    return found


@settings(deadline=None, max_examples=60)
@given(histories())
def test_bars_as_of_a_batch_are_the_newest_up_to_it_unless_deleted(history: list[Written]) -> None:
    with duckdb.connect() as con:
        con.execute(schema.TABLES)
        for one in history:
            gone = versions(dict.fromkeys(sorted(one.deleted)))
            store_versions(con, gone, one.batch_id, deleted=True)
            store_versions(con, versions(one.prices), one.batch_id)

        def bars(source: str) -> dict[Key, tuple[int, float]]:
            sql = f"SELECT symbol, day(ts), batch_id, close, adj_index, volume FROM {source}"
            rows = con.execute(sql).fetchall()
            found = {(symbol, day): (batch_id, close) for symbol, day, batch_id, close, *_ in rows}
            assert len(found) == len(rows), "two versions of one bar are current"
            assert all(close == index == volume for *_, close, index, volume in rows)
            return found

        last = history[-1].batch_id if history else 0
        for batch_id in range(last + 2):
            assert bars(f"bars_as_of({batch_id})") == newest_bars(history, batch_id)
        assert bars("bars") == newest_bars(history, last)
        n_written = sum(len(one.deleted) + len(one.prices) for one in history)
        assert fetch_row(con, "SELECT count(*) FROM price_versions") == (n_written,)
        n_current = len({k for one in history for k in (*one.deleted, *one.prices)})
        assert fetch_row(con, "SELECT count(*) FROM price_superseded") == (n_written - n_current,)


# --- digests


def test_equal_rows_have_equal_digests_whatever_their_chunks_and_column_order() -> None:
    rows = pa.table({"s": ["a", "b"], "x": [1.0, None], "d": pa.array([1, 2], pa.date32())})
    again = pa.concat_tables([rows.slice(0, 1), rows.slice(1)]).select(["d", "x", "s"])
    assert digest_rows(rows) == digest_rows(again)
    for changed in (rows.slice(0, 1), rows.take([1, 0]), rows.rename_columns(["s", "y", "d"])):
        assert digest_rows(changed) != digest_rows(rows)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None]),
        pa.array(["a", "b"], pa.large_string()),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([1, None], pa.decimal128(5, 2)),
        pa.array([[1.0], None]),
        pa.array([True, None]),
        pa.array([datetime(2020, 1, 1, tzinfo=UTC), None], pa.timestamp("us", tz="UTC")),
    ],
)
def test_a_digest_is_of_values_and_not_of_addresses(column: pa.Array) -> None:
    def copy() -> pa.Table:
        return pa.table({"a": pa.array(column.to_pylist(), column.type)})

    one, other = copy(), copy()
    assert digest_rows(one) == digest_rows(other)
    assert digest_rows(one) != digest_rows(pa.table({"a": column.take(pa.array([1, 0]))}))


def test_the_database_keeps_no_more_in_memory_than_it_may(tmp_path: Path) -> None:
    small = SeriesStore(tmp_path / "quant.duckdb", 0, memory_gib=0.5)
    with small.writing("one") as con:
        ((limit,),) = con.execute("SELECT current_setting('memory_limit')").fetchall()
    assert limit == "512.0 MiB"
    with small.reading() as con:
        ((limit,),) = con.execute("SELECT current_setting('memory_limit')").fetchall()
    assert limit == "512.0 MiB"
