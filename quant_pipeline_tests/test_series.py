"""Rules of the series store: all or nothing, readers at rest, one configuration, no way out."""

import os
import signal
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from quant_pipeline.errors import NoData, StoreBusy, StoreError
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


def sessions(*days: int, is_session: bool = True) -> pa.Table:
    return pa.table(
        {
            "ts": pa.array([date(2020, 1, d) for d in days], pa.date32()),
            "n_bars": pa.array([1] * len(days), pa.int64()),
            "is_session": pa.array([is_session] * len(days)),
        }
    )


def stored(store: SeriesStore) -> list[int]:
    return [d.day for d in store.query("SELECT ts FROM sessions ORDER BY ts")["ts"].to_pylist()]


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
        insert(con, "sessions", sessions(2, 3))
    with pytest.raises(error), store.writing("two") as con:  # noqa: PT012
        con.execute("DELETE FROM sessions")
        insert(con, "sessions", sessions(6))
        con.execute("CREATE TABLE other (a INT)")
        if error is duckdb.ConstraintException:
            insert(con, "sessions", sessions(6))
        raise error
    assert stored(store) == [2, 3]
    with store.reading() as con:
        assert columns_of(con, "other") == []


def test_a_failed_first_block_leaves_an_empty_store(store: SeriesStore) -> None:
    with pytest.raises(ValueError, match="no"), store.writing("one") as con:  # noqa: PT012
        insert(con, "sessions", sessions(2))
        raise ValueError("no")
    assert stored(store) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from quant_pipeline.stores.series import SeriesStore
with SeriesStore(Path(sys.argv[1]), 0).writing("one") as con:
    con.execute("DELETE FROM sessions")
    con.execute("INSERT INTO sessions VALUES ('2020-01-06', 1, true)")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_state_and_no_lock(store: SeriesStore) -> None:
    with store.writing("one") as con:
        insert(con, "sessions", sessions(2, 3))
    done = subprocess.run([sys.executable, "-c", KILLED, str(store.path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert stored(store) == [2, 3]
    with store.writing("two") as con:
        insert(con, "sessions", sessions(7))
    assert stored(store) == [2, 3, 7]


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
        insert(con, "sessions", sessions(2))
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
        with pytest.raises(StoreError, match=r"quant\.duckdb cannot be opened"):
            use("one").__enter__()


# --- one writer or many readers


READER = """
import sys
from pathlib import Path
from quant_pipeline.stores.series import SeriesStore
with SeriesStore(Path(sys.argv[1]), 0).reading() as con:
    print(con.execute("SELECT count(*) FROM sessions").fetchone()[0], flush=True)
    sys.stdin.readline()
"""


def test_readers_of_two_processes_share_and_a_writer_waits_for_them(store: SeriesStore) -> None:
    with store.writing("one") as con:
        insert(con, "sessions", sessions(2, 3))
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
        insert(con, "sessions", sessions(6))


def test_a_reader_waits_for_a_writer(store: SeriesStore) -> None:
    with store.writing("backfill"), pytest.raises(StoreBusy, match=rf"{os.getpid()} \(backfill"):
        store.query("SELECT 1")


def test_a_reader_cannot_write(store: SeriesStore) -> None:
    with store.writing("one"):
        pass
    with store.reading() as con, pytest.raises(duckdb.InvalidInputException, match="read-only"):
        con.execute("DELETE FROM sessions")


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
        right.rename_columns(["ts", "n_bars", "is_open"]),
        right.append_column("ts", right["ts"]),
    )
    with store.writing("one") as con:
        for rows in wrong:
            with pytest.raises(
                StoreError, match=r"Rows for sessions have columns .*it has ts, n_b"
            ):
                insert(con, "sessions", rows)
        insert(con, "sessions", right.select(["is_session", "ts", "n_bars"]))
    assert store.query("SELECT * FROM sessions").to_pylist() == right.to_pylist()


def test_a_slice_is_replaced_and_nothing_else(store: SeriesStore) -> None:
    with store.writing("one") as con:
        insert(con, "sessions", sessions(2, 3, 6))
        replace(con, "sessions", sessions(7), "ts < ?", [date(2020, 1, 4)])
    assert stored(store) == [6, 7]
    with store.writing("two") as con:
        replace(con, "sessions", sessions(), "ts > ?", [date(2020, 1, 6)])
    assert stored(store) == [6]


def test_queries_take_parameters_and_half_read_results_block_nothing(store: SeriesStore) -> None:
    with store.writing("one") as con:
        insert(con, "sessions", sessions(2, 3, 6))
        assert fetch_row(con, "SELECT count(*) FROM sessions WHERE ts > ?", [date(2020, 1, 2)]) == (
            2,
        )
        assert len(query(con, "SELECT * FROM sessions")) == 3
        with pytest.raises(ValueError, match="unpack"):
            fetch_row(con, "SELECT ts FROM sessions")


def test_sessions_are_read_within_both_dates(store: SeriesStore) -> None:
    with store.writing("one") as con:
        insert(con, "sessions", sessions(2, 3, 6, 7))
        insert(con, "sessions", sessions(4, is_session=False))

        def days(*between: date | None) -> list[int]:
            return [d.day for d in read_sessions(con, *between)["ts"].to_pylist()]

        assert days() == days(None, None) == [2, 3, 6, 7]
        assert days(date(2020, 1, 3), date(2020, 1, 6)) == [3, 6]
        assert days(date(2020, 1, 4)) == [6, 7]


def test_prices_are_the_newest_version_of_bars_on_sessions(store: SeriesStore) -> None:
    def bar(symbol: str, day: int, batch: int, price: float) -> dict[str, object]:
        columns = ("open", "high", "low", "close", "adj_index", "volume")
        key = {"symbol": symbol, "ts": date(2020, 1, day), "batch_id": batch}
        return {**key, **dict.fromkeys(columns, price)}

    bars = [bar("B", 2, 1, 1.0), bar("A", 3, 1, 1.0), bar("B", 2, 3, 5.0), bar("B", 2, 2, 9.0)]
    with store.writing("one") as con:
        insert(con, "sessions", sessions(2, 3))
        insert(con, "sessions", sessions(4, is_session=False))
        rows = pa.Table.from_pylist([*bars, bar("A", 4, 1, 1.0)])
        insert(con, "price_versions", rows.select(columns_of(con, "price_versions")))
        found = read_prices(con, date(2020, 1, 1), date(2020, 1, 31)).to_pylist()
        assert [(r["symbol"], r["ts"].day, r["close"]) for r in found] == [
            ("A", 3, 1.0),
            ("B", 2, 5.0),
        ]
        assert read_first_bars(con) == {"A": date(2020, 1, 3), "B": date(2020, 1, 2)}


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
