"""The IO manager: a partition is replaced as a whole by checked rows, or stays as it is."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import date

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

from quant_pipeline.defs.grid import make_partitions
from quant_pipeline.defs.io_manager import SeriesIOManager
from quant_pipeline.defs.jobs import Runner
from quant_pipeline.defs.location import make_definitions
from quant_pipeline.errors import GateError, StoreError
from quant_pipeline.stores.series import digest_rows
from quant_pipeline_tests.homes import SmallHome, sample_market

DAYS = [date(2015, 6, day) for day in (1, 2, 3)]
NEXT = date(2015, 7, 1)


@pytest.fixture
def stocked(home) -> SmallHome:
    """A home with sessions in June and July 2015, and three stored rows of `sums`."""
    made = home()
    made.ingest(sample_market(n_sessions=30, n_symbols=4))
    store(made, rows(DAYS))
    return made


def rows(days, values=None, symbols=None) -> pa.Table:
    values = list(range(len(days))) if values is None else values
    columns = {
        "symbol": pa.array(symbols or ["A"] * len(days), pa.string()),
        "ts": pa.array(days, pa.date32()),
        "value": pa.array(values),
    }
    return pa.table(columns)


def store(made: SmallHome, table: pa.Table | Callable[[], pa.Table], key="2015-06", **metadata):
    """Materialize one partition of an asset that stores a table."""

    @dg.asset(
        partitions_def=make_partitions(made.workspace.settings),
        metadata={"partition_expr": "ts", "key": ["symbol", "ts"], **metadata},
    )
    def sums() -> pa.Table:
        return table() if callable(table) else table

    manager = SeriesIOManager.of(made.workspace.home)
    dg.materialize([sums], partition_key=key, resources={"io_manager": manager})


def stored(made: SmallHome) -> list[tuple]:
    return made.rows("SELECT symbol, ts, value FROM sums ORDER BY ALL")


def test_a_partition_is_replaced_and_others_stay(stocked):
    store(stocked, rows([NEXT], [7]), "2015-07")
    store(stocked, rows(DAYS[:1], [9]), "2015-06")
    assert stored(stocked) == [("A", DAYS[0], 9), ("A", NEXT, 7)]
    store(stocked, rows([], []), "2015-06")
    assert stored(stocked) == [("A", NEXT, 7)]


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
def test_a_range_of_partitions_is_replaced_in_one_transaction(stocked):
    was = stocked.workspace.meta.batches()
    grid = make_partitions(stocked.workspace.settings)

    @dg.asset(
        partitions_def=grid,
        metadata={"partition_expr": "ts"},
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def sums() -> pa.Table:
        return rows([DAYS[1], NEXT], [5, 6])

    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize(
            [sums],
            instance=instance,
            resources={"io_manager": SeriesIOManager.of(stocked.workspace.home)},
            tags={
                "dagster/asset_partition_range_start": "2015-06",
                "dagster/asset_partition_range_end": "2015-08",
            },
        )
    assert stored(stocked) == [("A", DAYS[1], 5), ("A", NEXT, 6)]
    new = [b for b in stocked.workspace.meta.batches() if b.id not in {old.id for old in was}]
    counts = [(b.partition_key, b.n_rows) for b in sorted(new, key=lambda b: b.partition_key)]
    assert counts == [("2015-06", 1), ("2015-07", 1), ("2015-08", 0)]


def test_an_insert_that_fails_keeps_the_old_rows(stocked):
    was, batches = stored(stocked), stocked.workspace.meta.batches()
    with pytest.raises(Exception, match="Could not convert"):
        store(stocked, rows(DAYS, ["no", "number", "here"]))
    assert stored(stocked) == was
    assert stocked.workspace.meta.batches() == batches


KILLED = """
import os, signal, sys
from pathlib import Path
from quant_pipeline_tests.homes import SmallHome
from quant_pipeline_tests.test_io_manager import DAYS, rows, store

def kill_before_insert(frame, event, _argument):
    code = frame.f_code
    if event == "call" and code.co_name == "insert" and code.co_filename.endswith("series.py"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.setprofile(kill_before_insert)
store(SmallHome(Path(sys.argv[1])), rows(DAYS, [7, 8, 9]))
"""


def test_a_kill_between_delete_and_insert_keeps_the_old_rows(stocked):
    was, batches = stored(stocked), stocked.workspace.meta.batches()
    command = [sys.executable, "-c", KILLED, str(stocked.root)]
    done = subprocess.run(command, env=dict(os.environ), timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert stored(stocked) == was
    assert stocked.workspace.meta.batches() == batches
    store(stocked, rows(DAYS, [7, 8, 9]))
    assert [value for _, _, value in stored(stocked)] == [7, 8, 9]


def test_columns_are_stored_by_name_in_any_order(stocked):
    table = rows(DAYS, [4, 5, 6])
    store(stocked, table.select(["value", "ts", "symbol"]))
    assert stored(stocked) == [
        ("A", day, value) for day, value in zip(DAYS, [4, 5, 6], strict=True)
    ]


@pytest.mark.parametrize("change", ["missing", "unknown", "renamed"])
def test_other_columns_than_stored_are_refused_where_rows_would_be_mixed(stocked, change):
    store(stocked, rows([NEXT], [7]), "2015-07")
    was = stored(stocked)
    table = rows(DAYS)
    table = {
        "missing": table.drop_columns("value"),
        "unknown": table.append_column("more", table["value"]),
        "renamed": table.rename_columns(["symbol", "ts", "sum"]),
    }[change]
    with pytest.raises(StoreError, match="stored with other columns"):
        store(stocked, table)
    assert stored(stocked) == was


def test_other_columns_replace_a_table_of_which_nothing_else_stays(stocked):
    store(stocked, rows(DAYS).rename_columns(["symbol", "ts", "sum"]))
    assert stocked.rows("SELECT sum FROM sums ORDER BY ts") == [(0,), (1,), (2,)]


@pytest.mark.parametrize("day", [date(2015, 5, 31), date(2015, 7, 1)])
def test_a_row_outside_the_window_is_refused(stocked, day):
    was = stored(stocked)
    with pytest.raises(StoreError, match=r"outside the window 2015-06-01 to 2015-07-01"):
        store(stocked, rows([*DAYS, day]))
    assert stored(stocked) == was


def test_a_row_without_a_date_is_refused(stocked):
    was = stored(stocked)
    with pytest.raises(StoreError, match="1 rows for sums have no ts"):
        store(stocked, rows([*DAYS, None]))
    assert stored(stocked) == was


def test_a_key_that_repeats_is_refused(stocked):
    was = stored(stocked)
    with pytest.raises(StoreError, match=r"repeat 1 of their keys \(symbol, ts\)"):
        store(stocked, rows([*DAYS, DAYS[0]]))
    assert stored(stocked) == was
    store(stocked, rows([*DAYS, DAYS[0]], symbols=["A", "A", "A", "B"]))
    assert len(stored(stocked)) == 4


def test_a_partition_without_rows_is_refused_where_sessions_are_stored(stocked):
    was = stored(stocked)
    with pytest.raises(GateError, match="sums lacks 22 of 22 partitions: 2015-06-01"):
        store(stocked, rows([], []), rows_expected_with_prices=True)
    with pytest.raises(GateError, match="sums lacks 19 of 22"):
        store(stocked, rows(DAYS), rows_expected_with_prices=True)
    assert stored(stocked) == was
    store(stocked, rows([], []), "2015-09", rows_expected_with_prices=True)  # nothing traded there
    assert stored(stocked) == was


def test_a_window_without_any_label_is_refused_but_for_the_first_sessions_of_all(stocked):
    was = stored(stocked)
    with pytest.raises(StoreError, match="would erase what is stored"):
        store(stocked, rows([], []), some_rows_expected_with_prices=True)
    assert stored(stocked) == was
    stocked.change_series(
        "UPDATE session_versions SET is_session = false WHERE ts >= '2015-06-08'"
    )  # five are left
    store(stocked, rows([], []), some_rows_expected_with_prices=True)
    assert stored(stocked) == []


def test_what_was_written_while_prices_came_in_counts_as_made_from_the_older_ones(stocked):
    """An ingest between reading prices and storing features makes those features stale."""
    from quant_pipeline.chain.features import features_between
    from quant_pipeline.chain.stale import read_stored, stale_data

    made = stocked
    with made.runner(recorded=False) as runner:
        runner.materialize(["features_daily", "labels", "training_frame"], "2015-06", "2015-07")
    ws = made.workspace
    assert stale_data(ws, read_stored(ws))["features_daily"] == {}

    def computed_then_restated() -> pa.Table:
        found = features_between(ws, date(2015, 6, 1), date(2015, 7, 1)).rows
        prices = sample_market(n_sessions=30, n_symbols=4)
        day = prices[prices["ts"] == pd.Timestamp(2015, 6, 10)].copy()
        day["low"] *= 0.9
        assert made.ingest(day).n_restated == len(day)
        return found

    @dg.asset(
        partitions_def=make_partitions(ws.settings),
        metadata={"partition_expr": "ts"},
    )
    def features_daily() -> pa.Table:
        return computed_then_restated()

    manager = SeriesIOManager.of(ws.home)
    dg.materialize([features_daily], partition_key="2015-06", resources={"io_manager": manager})
    stale = stale_data(ws, read_stored(ws))["features_daily"]
    why = "prices of 2015-06-10 changed in batch 2"
    assert stale == {"2015-06": why, "2015-07": why}


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
def test_an_asset_of_ones_own_reads_exactly_its_window_and_is_stored(used):
    """Somebody else's downstream asset: it names features_daily and gets an Arrow table."""
    ws = used.workspace
    seen = {}

    @dg.asset(
        partitions_def=make_partitions(ws.settings),
        metadata={"partition_expr": "ts", "key": ["ts"]},
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def breadth(context: dg.AssetExecutionContext, features_daily: pa.Table) -> pa.Table:
        seen[tuple(context.partition_keys)] = features_daily
        return features_daily.group_by("ts").aggregate([("symbol", "count")])

    ours = dg.Definitions(assets=[breadth])
    job = dg.Definitions.merge(make_definitions(ws), ours).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        runner = Runner(ws, instance, job)
        runner.materialize(["breadth"], "2016-03", "2016-03")
        runner.materialize(["breadth"], "2016-04", "2016-05")
    assert seen.keys() == {("2016-03",), ("2016-04", "2016-05")}
    for keys, table in seen.items():
        start, end = ws.grid.window(keys[0])[0], ws.grid.window(keys[-1])[1]
        expected = ws.series.query(
            "SELECT * FROM features_daily WHERE ts >= ? AND ts < ? ORDER BY ts, symbol",
            [start, end],
        )
        found = table.sort_by([("ts", "ascending"), ("symbol", "ascending")])
        assert digest_rows(found) == digest_rows(expected)
    mine = "SELECT ts, symbol_count FROM breadth ORDER BY ts"
    counted = (
        "SELECT ts, count(*) FROM features_daily WHERE ts BETWEEN '2016-03-01' AND '2016-05-31' "
        "GROUP BY ts ORDER BY ts"
    )
    assert used.rows(mine) == used.rows(counted)
