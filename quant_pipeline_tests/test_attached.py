"""Readers of one process share an instance, and never keep a file open."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import duckdb
import pytest

from quant_pipeline.errors import StoreError
from quant_pipeline.stores.attached import attached
from quant_pipeline.stores.series import SeriesStore, query

GIB = 0.5


def make(path, n_rows: int = 10) -> None:
    with duckdb.connect(str(path)) as con:
        con.execute(f"CREATE OR REPLACE TABLE t AS SELECT range AS a FROM range({n_rows})")


@pytest.fixture
def file(tmp_path):
    """A file with a table t of ten rows, below a name that has to be quoted."""
    path = tmp_path / "it's.duckdb"
    make(path)
    return path


def count(con) -> int:
    return con.execute("SELECT count(*) FROM t").fetchone()[0]


def is_open(path) -> bool:
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the listing itself
            continue
    return str(path) in found


def test_a_file_is_open_only_while_somebody_reads(file):
    for n_rows in (10, 20):
        with attached(file, GIB) as con:
            assert is_open(file)
            assert count(con) == n_rows
        assert not is_open(file)
        other = f"import duckdb; duckdb.connect({str(file)!r}).execute('INSERT INTO t FROM t')"
        subprocess.run([sys.executable, "-c", other], check=True)
    make(file, 3)  # a writer of the same process
    with attached(file, GIB) as con:
        assert count(con) == 3


def test_a_transaction_left_open_does_not_keep_it_open(file):
    with attached(file, GIB) as con:
        con.execute("BEGIN")
        assert count(con) == 10
    assert not is_open(file)
    make(file, 5)
    with attached(file, GIB) as con:
        assert count(con) == 5


def test_threads_share_it_and_the_last_one_closes_it(file):
    both = Barrier(2, timeout=60)

    def read(stays: bool) -> bool:
        with attached(file, GIB) as con:
            both.wait()
            assert count(con) == 10
            if stays:
                both.wait()
                assert count(con) == 10
                return is_open(file)
        both.wait()
        return is_open(file)

    with ThreadPoolExecutor(2) as pool:
        assert next(pool.map(read, [True, False]))
    assert not is_open(file)


def test_readers_of_two_files_do_not_meet(file, tmp_path):
    other = tmp_path / "other.duckdb"
    make(other, 4)
    with attached(file, GIB) as con:
        with attached(other, GIB) as con2:
            assert (count(con), count(con2)) == (10, 4)
            with attached(file, GIB) as con3:
                assert count(con3) == 10
        assert not is_open(other)
        assert count(con) == 10
    assert not is_open(file)
    assert not is_open(other)


def test_after_an_error_the_next_one_reads(file):
    for statement in ("SELECT * FROM nothing_like_it", "DETACH quant", "SELECT error('told')"):
        with attached(file, GIB) as con:
            assert count(con) == 10
            with pytest.raises(duckdb.Error), attached(file, GIB) as other:
                other.execute(statement)
            assert count(con) == 10
        assert not is_open(file)


def test_a_damaged_file_is_told_and_a_good_one_in_its_place_read(file):
    good = file.read_bytes()
    file.write_bytes(b"\xff" * len(good))
    with pytest.raises(duckdb.Error, match="not a valid DuckDB"), attached(file, GIB):
        pass
    file.write_bytes(good)
    with attached(file, GIB) as con:
        assert count(con) == 10


def test_another_program_that_has_it_open_is_told(file):
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import duckdb; c = duckdb.connect({str(file)!r});"
         "print('open', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout.readline() == b"open\n"
    with pytest.raises(StoreError, match="another program has it open"), attached(file, GIB):
        pass
    holder.communicate(b"\n")
    with attached(file, GIB) as con:
        assert count(con) == 10


@pytest.mark.parametrize(
    "statement",
    [
        "COPY (SELECT 1) TO '{folder}/stolen.csv'",
        "ATTACH '{folder}/other.duckdb'",
        "SELECT * FROM read_text('{folder}/secret.txt')",
        "SELECT * FROM '{folder}/secret.txt'",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "INSTALL httpfs",
        "INSERT INTO t VALUES (1)",
        "DROP TABLE t",
    ],
)
def test_nothing_else_can_be_opened_and_nothing_written(statement, file, tmp_path):
    make(tmp_path / "other.duckdb")
    (tmp_path / "secret.txt").write_text("secret")
    with pytest.raises(duckdb.Error), attached(file, GIB) as con:
        con.execute(statement.format(folder=tmp_path))
    assert not (tmp_path / "stolen.csv").exists()
    with attached(file, GIB) as con:
        assert count(con) == 10


def test_times_are_utc_and_limits_hold(file):
    for _ in range(2):
        with attached(file, GIB) as con:
            for name, value in (("TimeZone", "UTC"), ("memory_limit", "512.0 MiB"),
                                ("enable_progress_bar", False)):  # fmt: skip
                assert con.execute(f"SELECT current_setting('{name}')").fetchone() == (value,)
            assert con.execute("SELECT current_setting('temp_directory')").fetchone() == (
                f"{file}.tmp",
            )


def test_a_store_is_read_after_each_of_its_writes(tmp_path):
    store = SeriesStore(tmp_path / "quant.duckdb")
    for n in range(3):
        with store.writing("a test") as con:
            con.execute("CREATE TABLE IF NOT EXISTS mine (n INTEGER)")
            con.execute("INSERT INTO mine VALUES (?)", [n])
        with store.reading() as con:
            assert query(con, "SELECT n FROM mine ORDER BY n")["n"].to_pylist() == list(
                range(n + 1)
            )
            assert store.query("SELECT max(n) AS n FROM mine")["n"].to_pylist() == [n]
