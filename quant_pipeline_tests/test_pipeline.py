"""What must hold of whole runs: no score saw the future, and nothing depends on how it was run."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import date, timedelta
from hashlib import sha256

import duckdb
import numpy as np
import pandas as pd
import pytest
from sqlmodel import select

from quant_pipeline.chain.champions import find_champions
from quant_pipeline.chain.features import features_between, labels_between
from quant_pipeline.chain.knowledge import models_that_knew_less
from quant_pipeline.chain.learn import DECISIVE, train_tasks, write_folds
from quant_pipeline.chain.predict import score_partition, score_shadow
from quant_pipeline.chain.stale import read_stored
from quant_pipeline.errors import GateError
from quant_pipeline.settings import Settings
from quant_pipeline.stores.meta import Champion
from quant_pipeline.stores.series import digest_rows
from quant_pipeline_tests.homes import DATA, EVERY, LEARNING, SCORES, WALK_FROM, sample_market

ASOF = date(2016, 6, 30)


def before(bars: pd.DataFrame, day: date) -> pd.DataFrame:
    return bars[bars["ts"] < pd.Timestamp(day)]


def since(bars: pd.DataFrame, day: date) -> pd.DataFrame:
    return bars[bars["ts"] >= pd.Timestamp(day)]


def rewrite_after(bars: pd.DataFrame, asof: date, seed: int = 1) -> pd.DataFrame:
    """Other prices, volumes and returns after a date, a third of rows gone, three symbols more."""
    rng = np.random.default_rng(seed)
    future = since(bars, asof + timedelta(days=1))
    extra = future[future["symbol"].isin(["S000", "S001", "S002"])]
    extra = extra.assign(symbol=extra["symbol"].str.replace("S", "NEW"))
    future = pd.concat([future, extra]).sample(frac=0.7, random_state=seed)
    level = np.exp(rng.normal(0.0, 0.5, len(future)))
    for name in ("open", "high", "low", "close"):
        future[name] *= level
    future["adj_close"] = np.exp(rng.normal(3.0, 0.1, len(future)))
    future["volume"] = rng.integers(1, 10**6, len(future)).astype(float)
    return pd.concat([before(bars, asof + timedelta(days=1)), future], ignore_index=True)


def rank_ic_and_noise(made, task_id: str) -> tuple[float, float]:
    """Mean RankIC of all judged sessions, and twice what chance alone spreads it by.

    Returns over five sessions overlap: only every fifth session counts as another draw.
    """
    found = made.rows("SELECT rank_ic, n FROM prediction_outcomes WHERE task_id = ?", task_id)
    rank_ic, n = (np.array(column, np.float64) for column in zip(*found, strict=True))
    return float(rank_ic.mean()), float(2.0 / np.sqrt(n.sum() / 5.0))


# --- No score saw the future


def test_no_label_known_after_the_asof_reaches_a_model(finished):
    models = finished.workspace.meta.models()
    assert len(models) == 8
    for model in models:
        (found,) = finished.rows(
            """
            WITH known AS (SELECT * FROM labels
                           WHERE reason IS NULL AND task_id = $1 AND known_at <= $2),
            window_sessions AS (SELECT DISTINCT ts FROM known ORDER BY ts DESC LIMIT 250),
            used AS (SELECT known.* FROM known SEMI JOIN window_sessions USING (ts)
                     JOIN features_daily f ON f.symbol = known.symbol AND f.ts = known.ts
                     WHERE f.in_universe)
            SELECT count(*), min(ts), max(ts), count(DISTINCT symbol), count(DISTINCT ts),
                   max(known_at) FROM used
            """,
            model.task_id,
            model.asof,
        )
        recorded = (model.n_rows, model.first_ts, model.last_ts, model.n_symbols, model.n_sessions)
        assert found[:5] == recorded
        assert found[5] <= model.asof
        # nothing known by then was left out either: the last session's labels are in
        last = "SELECT max(ts) FROM sessions WHERE is_session AND ts <= ?"
        assert finished.rows(last, model.asof) == [(found[5],)]


def test_no_label_of_an_earlier_window_of_a_fold_ends_in_or_after_a_later_one(finished):
    folds = finished.rows(
        """
        SELECT partition_key, task_id, min(start_ts) FILTER (part = 'train'),
            min(start_ts) FILTER (part = 'stop'), min(start_ts) FILTER (part = 'test'),
            max(end_ts) FILTER (part = 'test'), sum(n_rows) FILTER (part = 'train'),
            sum(n_rows) FILTER (part = 'stop'), sum(n_rows) FILTER (part = 'test')
        FROM walkforward_folds GROUP BY partition_key, task_id, fold ORDER BY ALL
        """
    )
    assert len(folds) == 2 * len(finished.workspace.meta.models())
    for key, task_id, train_start, stop_start, test_start, test_end, *counts in folds:
        asof = finished.workspace.grid.asof(key)
        assert train_start < stop_start < test_start < test_end < asof
        # A row of an earlier window may be used if no session of a later one saw its label.
        found = finished.rows(
            """
            WITH used AS (SELECT l.* FROM labels l JOIN features_daily f USING (symbol, ts)
                          WHERE l.reason IS NULL AND f.in_universe
                          AND l.task_id = $1 AND l.known_at <= $2)
            SELECT count(*) FILTER (ts >= $3 AND ts < $4 AND known_at < $4),
                   count(*) FILTER (ts >= $4 AND ts < $5 AND known_at < $5),
                   count(*) FILTER (ts >= $5 AND ts <= $6) FROM used
            """,
            task_id, asof, train_start, stop_start, test_start, test_end,
        )  # fmt: skip
        assert found == [tuple(counts)]


def test_folds_that_are_stored_are_those_that_the_model_was_judged_on(finished):
    stored = finished.rows(
        """
        SELECT partition_key, task_id, fold, sum(n_rows) FILTER (part = 'train'),
            sum(n_rows) FILTER (part = 'stop'), sum(n_rows) FILTER (part = 'test'),
            min(start_ts::VARCHAR) FILTER (part = 'test'),
            max(end_ts::VARCHAR) FILTER (part = 'test')
        FROM walkforward_folds GROUP BY partition_key, task_id, fold ORDER BY ALL
        """
    )
    names = ("fold", "n_train", "n_stop", "n_test", "test_start", "test_end")
    used = [
        (model.partition_key, model.task_id, *(fold[name] for name in names))
        for model in finished.workspace.meta.models()
        for fold in model.fold_metrics
    ]
    assert sorted(used) == stored


def test_scores_of_a_partition_come_from_the_model_as_of_before_it(finished):
    ws = finished.workspace
    models = {m.model_id: m for m in ws.meta.models()}
    found = finished.rows('SELECT DISTINCT ts, task_id, model_id, "asof" FROM predictions')
    sessions = "SELECT count(*) FROM sessions WHERE is_session AND ts >= ?"
    assert len(found) == 2 * finished.rows(sessions, WALK_FROM)[0][0]
    for ts, task_id, model_id, asof in found:
        model = models[model_id]
        assert model.task_id == task_id
        assert model.asof == asof < ws.grid.window(ws.grid.key(ts))[0] <= ts
        assert model.partition_key == ws.grid.shift(ws.grid.key(ts), -1)
        assert model.last_ts < ts


def test_exactly_the_universe_of_a_session_is_scored(finished):
    extra = finished.rows(
        """
        WITH tasks(task_id) AS (VALUES ('up_5d'), ('ret_5d')),
        wanted AS (SELECT symbol, ts, task_id FROM features_daily, tasks
                   WHERE in_universe AND ts >= ?)
        SELECT * FROM wanted ANTI JOIN predictions USING (symbol, ts, task_id)
        UNION ALL
        SELECT symbol, ts, task_id FROM predictions ANTI JOIN wanted USING (symbol, ts, task_id)
        """,
        WALK_FROM,
    )
    assert extra == []
    gone = "SELECT count(*) FROM predictions WHERE symbol = 'S005' AND ts >= DATE '2016-06-10'"
    assert finished.rows(gone) == [(0,)]


def test_in_sample_scores_are_refused_by_the_table_itself(used):
    for table in ("predictions", "predictions_shadow"):
        seen = '"asof" AS ts'  # the last session that the model knew
        row = f"INSERT INTO {table} SELECT * REPLACE ({seen}) FROM predictions LIMIT 1"
        with pytest.raises(duckdb.ConstraintException, match="CHECK"):
            used.change_series(row)


def test_no_model_scores_sessions_that_it_may_have_seen(finished):
    ws = finished.workspace
    for model in ws.meta.models():
        with pytest.raises(GateError, match=r"may have seen"):
            score_shadow(ws, model, model.asof, date(2016, 8, 5))


def test_a_champion_is_never_of_another_task_nor_of_after_the_session(used):
    """Newer models of the other task and of later as-ofs are there: none of them serves."""
    ws = used.workspace
    for task in ws.settings.tasks:
        for key in ("2016-05", "2016-06", "2016-07", "2016-08"):
            (service,) = find_champions(ws, key, task).services
            model = ws.meta.model(service.model_id)
            assert (model.task_id, model.partition_key) == (task.task_id, ws.grid.shift(key, -1))
    with ws.meta.writing() as session:  # decided anew, with all models of all as-ofs at hand
        for champion in session.exec(select(Champion)):
            session.delete(champion)
    for task in ws.settings.tasks:
        (service,) = find_champions(ws, "2016-06", task).services
        assert ws.meta.model(service.model_id).partition_key == "2016-05"
        assert ws.meta.model(service.model_id).task_id == task.task_id


def test_everything_after_an_asof_rewritten_changes_nothing_up_to_it(home, finished, market):
    made = home()
    made.ingest(rewrite_after(market, ASOF))
    first, after = date(2016, 6, 1), ASOF + timedelta(days=1)
    made.backfill(first)
    ours, theirs = made.model_ids(), finished.model_ids()
    assert {partition for partition, _ in ours} == {"2016-05", "2016-06", "2016-07"}
    for partition, task_id in ours:
        same = ours[partition, task_id] == theirs[partition, task_id]
        assert same == (partition <= "2016-06"), f"{task_id} as of {partition}"
    assert made.scores(after) == [row for row in finished.scores(after) if row[0] >= first]
    assert len(made.scores(after)) > 900
    for sql in (
        "SELECT * FROM features_daily WHERE ts < ? ORDER BY ALL",
        "SELECT * FROM labels WHERE known_at < ? ORDER BY ALL",
        "SELECT * FROM prediction_outcomes WHERE known_at < ? AND ts >= '2016-06-01' ORDER BY ALL",
        "SELECT * FROM training_manifest WHERE partition_key < strftime(?, '%Y-%m') ORDER BY ALL",
    ):
        assert repr(made.rows(sql, after)) == repr(finished.rows(sql, after))
    # ... and after it, everything is another story
    pairs = {(row[0], row[1], row[2]): row[4] for row in finished.scores()}
    common = [(row[4], pairs[row[:3]]) for row in made.scores()
              if row[0] >= after and row[:3] in pairs]  # fmt: skip
    assert len(common) > 500
    assert np.mean([mine == theirs for mine, theirs in common]) < 0.2


def test_a_restatement_leaves_earlier_models_and_all_stored_scores_alone(used, market):
    was, scores = used.state(), used.scores()
    report = used.ingest(rewrite_after(market, ASOF))
    assert report.n_restated > 100
    used.backfill(WALK_FROM)
    is_now = used.state()
    assert is_now["price_versions"] != was["price_versions"]
    assert set(scores) <= set(used.scores())
    assert is_now["Champion"] == was["Champion"]
    assert is_now["Model"] == was["Model"]
    assert is_now["walkforward_folds"] == was["walkforward_folds"]
    late = models_that_knew_less(used.workspace, read_stored(used.workspace))
    assert {m["asof"] for m in late} == {date(2016, 7, 31)}
    assert {m["batch_id"] for m in late} == {report.batch_id}
    used.run(LEARNING, "2016-07")  # nor does the web UI
    assert used.state()["Model"] == was["Model"]


def test_rows_as_of_an_earlier_batch_are_what_they_were(used, market):
    """Features and labels of any earlier state of knowledge can be made again, bit for bit."""
    ws, window = used.workspace, (date(2016, 6, 1), date(2016, 8, 1))

    def made(**known_by: int) -> tuple[str, str]:
        features = features_between(ws, *window, **known_by).rows
        return digest_rows(features), digest_rows(labels_between(ws, *window, **known_by))

    before = made()
    used.ingest(rewrite_after(market, date(2016, 5, 31)))
    used.ingest(redelivered(313))
    assert all(now != then for now, then in zip(made(), before, strict=True))
    assert made(batch_id=1) == before


# --- Nothing depends on how it was run


@pytest.mark.long
def test_running_any_partition_of_any_asset_again_changes_nothing(used):
    was = used.state()
    with used.runner() as runner:
        for asset in EVERY:
            runner.materialize([asset], "2016-06", "2016-06")
            assert used.state() == was, f"{asset} of one partition"
        runner.materialize(["prices_daily", *DATA], "2015-06", "2016-08")
        runner.materialize(SCORES, "2015-06", "2016-08")
    assert used.state() == was


def test_a_second_backfill_does_nothing(used):
    was = used.state()
    done = used.backfill(WALK_FROM)
    assert (done.data, done.models, done.scores, done.refused) == ({}, [], [], {})
    assert used.state() == was


def test_rows_and_symbols_in_any_order_give_the_same_models_and_scores(home, finished, market):
    made = home()
    shuffled = market.sample(frac=1.0, random_state=7)
    made.ingest(shuffled.iloc[3000:], shuffled.iloc[:3000])
    made.backfill(date(2016, 8, 1))
    models = made.model_ids()
    assert {key for key, _ in models} == {"2016-07"}
    assert models.items() <= finished.model_ids().items()
    theirs = [row for row in finished.scores() if row[0] >= date(2016, 8, 1)]
    assert len(theirs) > 200
    assert made.scores() == theirs


@pytest.mark.long
def test_day_by_day_gives_the_scores_of_one_backfill(home, finished, market):
    """The last two sessions of July and the first two of August, one at a time."""
    made, first, end = home(), date(2016, 7, 1), date(2016, 8, 3)
    days = pd.bdate_range("2016-07-28", end, inclusive="left")
    made.ingest(before(market, days[0]))
    made.backfill(first)
    assert {key for key, _ in made.model_ids()} == {"2016-06"}
    for day in days:
        made.ingest(market[market["ts"] == day])
        made.backfill(day.date())
    assert made.model_ids().items() <= finished.model_ids().items()
    assert {key for key, _ in made.model_ids()} == {"2016-06", "2016-07"}
    assert made.scores() == [row for row in finished.scores(end) if row[0] >= first]
    judged = "SELECT * FROM prediction_outcomes WHERE ts >= ? AND known_at < ? ORDER BY ALL"
    assert made.rows(judged, first, end) == finished.rows(judged, first, end)


BACKFILL = """
import sys
from datetime import date
from pathlib import Path
from quant_pipeline_tests.homes import SmallHome
SmallHome(Path(sys.argv[1])).backfill(date.fromisoformat(sys.argv[2]), recorded=True)
"""


def kill_backfill_when(made, first: date, is_reached) -> None:
    """Start a backfill in a process of its own and kill it when a state is reached."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("QUANT_", "DAGSTER_"))}
    command = [sys.executable, "-c", BACKFILL, str(made.root), first.isoformat()]
    process = subprocess.Popen(command, env=environment, cwd=made.root.parent)
    deadline = time.monotonic() + 90
    try:
        while not is_reached():
            assert process.poll() is None, "the backfill ended before it could be killed"
            assert time.monotonic() < deadline, "the backfill did not get there"
            time.sleep(0.002)  # between two polls: the core belongs to the backfill
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.long
def test_a_killed_backfill_goes_on_where_it_was(home, finished, market):
    """Killed while it writes labels, after its first model, and while it scores."""
    made, first = home(), date(2016, 8, 1)
    made.ingest(market)
    lock = made.root / "data" / "quant.duckdb.lock"
    kill_backfill_when(made, first, lambda: '"what": "labels"' in lock.read_text())
    kill_backfill_when(made, first, lambda: any((made.root / "models").glob("*.joblib")))
    kill_backfill_when(made, first, lambda: '"what": "predictions"' in lock.read_text())
    made.backfill(first, recorded=True)
    assert made.model_ids().items() <= finished.model_ids().items()
    assert made.scores() == [row for row in finished.scores() if row[0] >= first]
    judged = "SELECT * FROM prediction_outcomes WHERE ts >= ? ORDER BY ALL"
    assert made.rows(judged, first) == finished.rows(judged, first)
    state, theirs = made.state(), finished.state()
    same = ("session_versions", "price_versions", "features_daily", "labels", "training_manifest")
    for table in same:
        assert state[table] == theirs[table], table
    done = made.backfill(first)
    assert (done.data, done.models, done.scores) == ({}, [], [])
    assert made.state() == state


def test_earlier_partitions_filled_later_are_judged_in_the_partition_that_knows(used):
    """Labels of late April are known in May: judged there, though only April was asked for."""
    used.backfill(date(2016, 4, 1), date(2016, 4, 30))
    judged = "SELECT count(DISTINCT ts) FROM prediction_outcomes WHERE ts < DATE '2016-05-01'"
    april = "SELECT count(*) FROM sessions WHERE ts BETWEEN DATE '2016-04-01' AND DATE '2016-04-30'"
    assert used.rows(judged) == used.rows(april)


# --- Prices


def test_a_split_is_no_return_where_there_is_an_adjusted_close(finished, market):
    adjusted = market.set_index(["symbol", "ts"])["adj_close"]
    close = market.set_index(["symbol", "ts"])["close"]
    labels = pd.DataFrame(
        finished.rows(
            "SELECT symbol, entry_ts, exit_ts, fwd_return FROM labels WHERE task_id = 'ret_5d'"
        ),
        columns=["symbol", "entry", "exit", "fwd_return"],
    )
    at = [
        pd.MultiIndex.from_arrays([labels["symbol"], pd.to_datetime(labels[c])])
        for c in ("entry", "exit")
    ]
    expected = adjusted.reindex(at[1]).to_numpy() / adjusted.reindex(at[0]).to_numpy() - 1.0
    unadjusted = close.reindex(at[1]).to_numpy() / close.reindex(at[0]).to_numpy() - 1.0
    has_exit = ~np.isnan(expected)
    assert has_exit.mean() > 0.95
    np.testing.assert_allclose(
        labels["fwd_return"][has_exit], expected[has_exit], rtol=1e-9, atol=1e-12
    )
    over_split = has_exit & (unadjusted < -0.35)
    listed_later = {"S003"}  # than the session before its split
    assert set(labels["symbol"][over_split]) == set(market["symbol"]) - listed_later
    assert labels["fwd_return"][over_split].min() > -0.35


def redelivered(n_sessions: int) -> pd.DataFrame:
    """The market with sessions added, as a vendor sends it after dividends and splits."""
    bars = sample_market(n_sessions=n_sessions)
    paid = bars["symbol"].isin(["S001", "S002", "S003", "S020"])
    bars.loc[paid, "adj_close"] = (bars.loc[paid, "adj_close"] * 0.9731).round(6)
    split = bars["symbol"].isin(["S003", "S010"])
    for name in ("open", "high", "low", "close", "adj_close"):
        bars.loc[split, name] /= 2.0
    bars.loc[split, "volume"] *= 2.0
    return bars


def test_a_later_dividend_or_split_leaves_the_past_byte_identical(used):
    was = used.state()
    before_august = "SELECT * FROM {} WHERE {} < DATE '2016-08-06' ORDER BY ALL"
    queries = [
        before_august.format("features_daily", "ts"),
        before_august.format("labels", "known_at"),
        "SELECT * FROM training_manifest WHERE partition_key < '2016-08' ORDER BY ALL",
    ]
    past = [repr(used.rows(sql)) for sql in queries]
    scores = used.scores()
    report = used.ingest(redelivered(313))
    assert (report.n_restated, report.n_relinked) == (0, 0)
    assert report.n_new == len(since(redelivered(313), date(2016, 8, 6)))
    used.backfill(WALK_FROM)
    assert [repr(used.rows(sql)) for sql in queries] == past
    now = used.state()
    assert now["Model"] == was["Model"]
    assert now["files"] == was["files"]
    assert used.scores(date(2016, 8, 6)) == scores
    assert len(used.scores()) > len(scores)


# --- Models


def test_model_ids_are_the_sha256_of_their_files_and_never_collide(finished):
    models = finished.workspace.meta.models()
    assert len({m.model_id for m in models}) == len({(m.task_id, m.asof) for m in models}) == 8
    files = finished.state()["files"]
    assert files == {f"{m.model_id}.joblib": m.model_id for m in models}


OTHERWISE = """
[metrics]
quantile = 0.1
[checks]
score_psi = 9.0
[champion]
z = 3.0
[schedule]
daily = true
[alerts]
command = ["true"]
[housekeeping]
weekly = true
[proofs]
sessions = 9
"""


def test_how_a_model_is_judged_checked_or_scheduled_does_not_change_it(used):
    was = used.model_ids()
    with (used.root / "quant.toml").open("a") as file:
        file.write(OTHERWISE)
    used.run(["walkforward_folds", "lgbm_model"], "2016-07")
    assert used.model_ids() == was
    decisive = set(Settings.model_fields) - DECISIVE
    assert decisive == {
        "ingest", "tasks", "metrics", "checks", "champion", "schedule", "alerts", "housekeeping",
        "proofs", "store",
    }  # fmt: skip


def test_a_planted_signal_is_found_beyond_two_standard_errors(finished):
    for task_id in ("up_5d", "ret_5d"):
        mean, noise = rank_ic_and_noise(finished, task_id)
        assert mean > noise > 0, task_id


@pytest.mark.long
def test_a_market_without_signal_gives_no_rank_ic(home):
    made = home()
    made.ingest(sample_market(signal=0.0))
    made.backfill(WALK_FROM)
    for task_id in ("up_5d", "ret_5d"):
        mean, noise = rank_ic_and_noise(made, task_id)
        assert abs(mean) < noise, task_id


# --- Storage


@pytest.mark.long
def test_sixty_asofs_cost_no_more_than_the_series_of_one_and_a_fifth(home):
    """One as-of whose model scores every later session, against sixty that share these sessions."""
    one_task = '\n[[tasks]]\ntask_id = "up_1d"\nkind = "classification"\nhorizon = 1\n'
    made = home(changes={
        'cadence = "monthly"': 'cadence = "weekly"',
        "n_folds = 2": "n_folds = 1",
        "min_train_sessions = 60": "min_train_sessions = 20",
        "stop_sessions = 20": "stop_sessions = 5",
        "test_sessions = 30": "test_sessions = 5",
        "window_sessions = 250": "window_sessions = 100",
        "min_rows = 500": "min_rows = 100",
        "min_data_in_leaf = 50": "min_data_in_leaf = 5",
        "max_rounds = 30": "max_rounds = 1",
        "threads = 1\n": f"threads = 1\n{one_task}",
    })  # fmt: skip
    made.ingest(sample_market(n_symbols=12, n_sessions=370))
    ws = made.workspace
    keys = ws.grid.keys("2015-06-01", ws.grid.key(ws.last_session()))
    made.run(DATA, keys[0], keys[-1])
    (task,) = ws.settings.tasks
    asofs = keys[-61:-1]

    def walk(key):
        write_folds(ws, key, task)
        train_tasks(ws, key, [task])

    walk(asofs[0])
    first = ws.grid.window(asofs[1])[0]
    score_shadow(ws, ws.meta.models()[0], first, ws.last_session())
    cells_of_one = count_cells(made, shadow=True)
    for asof, key in zip(asofs, keys[-60:], strict=True):
        if asof != asofs[0]:
            walk(asof)
        score_partition(ws, key, task)
    assert len(ws.meta.models()) == 60
    scored = "SELECT count(DISTINCT model_id), count(*) FROM predictions"
    n_shadow = made.rows("SELECT count(*) FROM predictions_shadow")[0][0]
    assert made.rows(scored) == [(60, n_shadow)]
    cells_of_sixty = count_cells(made, shadow=False)
    assert cells_of_sixty["features_daily"] == cells_of_one["features_daily"]
    assert cells_of_sixty["labels"] == cells_of_one["labels"]
    assert sum(cells_of_sixty.values()) <= 1.2 * sum(cells_of_one.values())


def count_cells(made, *, shadow: bool) -> Counter:
    """Rows times columns of every table but those of prices; one kind of predictions."""
    skip = {"price_versions", "price_batches", "prices_rejected", "sessions"}
    skip.add("predictions" if shadow else "predictions_shadow")
    found = made.rows(
        "SELECT t.table_name, count(*) FROM information_schema.tables t "
        "JOIN information_schema.columns c USING (table_schema, table_name) "
        "WHERE t.table_type = 'BASE TABLE' GROUP BY t.table_name"
    )
    return Counter({
        table: n_columns * made.rows(f"SELECT count(*) FROM {table}")[0][0]
        for table, n_columns in found
        if table not in skip
    })  # fmt: skip


def test_model_files_are_named_by_their_bytes(finished):
    for path in (finished.root / "models").glob("*.joblib"):
        assert sha256(path.read_bytes()).hexdigest() == path.stem
