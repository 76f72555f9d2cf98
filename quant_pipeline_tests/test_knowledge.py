"""What a later batch reaches: stale partitions, and models and scores that knew less."""

from collections.abc import Callable
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest

from quant_pipeline.chain.features import features_between, labels_between
from quant_pipeline.chain.ingest_lists import ingest_memberships, ingest_renames
from quant_pipeline.chain.knowledge import models_that_knew_less, scores_that_knew_less
from quant_pipeline.chain.stale import reach_of_features, read_stored, stale_data
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import QuantError
from quant_pipeline.ml.score import score_rows
from quant_pipeline.stores.sources import Reading
from quant_pipeline_tests.homes import DATA, LEARNING, SmallHome, sample_market

FRIDAY = date(2016, 8, 5)
Change = Callable[[SmallHome, pd.DataFrame], None]
Made = dict[tuple[str, str], pd.DataFrame]


def at(bars: pd.DataFrame, symbol: str, day: str) -> pd.Series:
    found = (bars["symbol"] == symbol) & (bars["ts"] == pd.Timestamp(day))
    assert found.sum() == 1
    return found


def made_from(ws: Workspace, batch_id: int) -> Made:
    """Features and labels of every partition, computed anew from prices of a batch."""
    found: Made = {}
    for key in read_stored(ws).keys:
        window = ws.grid.window(key)
        for asset, table in (
            ("features_daily", features_between(ws, *window, batch_id).rows),
            ("labels", labels_between(ws, *window, batch_id)),
        ):
            found[asset, key] = table.to_pandas()
    return found


def differing(before: Made, after: Made) -> set[tuple[str, str]]:
    assert before.keys() <= after.keys()
    return {k for k, rows in after.items() if k not in before or not rows.equals(before[k])}


def stale(ws: Workspace) -> set[tuple[str, str]]:
    found = stale_data(ws, read_stored(ws))
    return {(asset, key) for asset, keys in found.items() for key in keys}


@pytest.fixture(scope="module")
def untouched(finished) -> Made:
    return made_from(finished.workspace, 1)


# --- What a batch changes


def triple_a_volume(made: SmallHome, market: pd.DataFrame) -> None:
    bars = market.copy()
    bars.loc[at(bars, "S001", "2015-12-15"), "volume"] *= 3.0
    assert made.ingest(bars).n_restated == 1


def correct_a_close(made: SmallHome, market: pd.DataFrame) -> None:
    bars = market.copy()
    bars.loc[at(bars, "S002", "2016-01-29"), ["close", "high", "adj_close"]] *= 1.04
    assert made.ingest(bars).n_restated == 1


def tell_a_dividend_late(made: SmallHome, market: pd.DataFrame) -> None:
    bars = market.copy()
    day = pd.Timestamp("2016-02-10")
    bars.loc[(bars["symbol"] == "S004") & (bars["ts"] >= day), "adj_close"] *= 1.02
    assert made.ingest(bars).n_relinked > 50


def bring_a_late_bar(made: SmallHome, market: pd.DataFrame) -> None:
    sessions = set(market["ts"])
    mine = market[market["symbol"] == "S001"]
    day = min(sessions - set(mine["ts"]))
    near = mine[mine["ts"] > day].head(1).assign(ts=day, adj_close=np.nan)
    assert made.ingest(near).n_late == 1


def bring_a_bar_long_before_the_first(made: SmallHome, market: pd.DataFrame) -> None:
    """S003 lists at session 120: a bar at session 10 makes it 110 sessions older."""
    first = market[market["symbol"] == "S003"].sort_values("ts").head(1)
    day = sorted(market["ts"].unique())[10]
    assert made.ingest(first.assign(ts=day, adj_close=np.nan)).n_new == 1


def take_a_session_away(made: SmallHome, market: pd.DataFrame) -> None:
    made.ingest(newcomers(market))
    stay = made.rows("SELECT is_session FROM sessions WHERE ts = ?", FRIDAY)
    assert stay == [(False,)]


def rename_one(made: SmallHome, market: pd.DataFrame) -> None:
    file = made.root / "renames.csv"
    file.write_text("ticker,symbol,first,last\nS006,RENAMED,,2016-03-10\n")
    assert ingest_renames(made.workspace, file, Reading()).batch_id == 2


def newcomers(market: pd.DataFrame) -> pd.DataFrame:
    """40 symbols with bars of the open window but for its last day: 24 are too few then."""
    recent = market[(market["symbol"] == "S001") & (market["ts"] >= "2016-08-01")]
    recent = recent[recent["ts"] < pd.Timestamp(FRIDAY)]
    return pd.concat([recent.assign(symbol=f"N{i:02d}") for i in range(40)])


CHANGES = [
    triple_a_volume, correct_a_close, tell_a_dividend_late, bring_a_late_bar,
    bring_a_bar_long_before_the_first, take_a_session_away, rename_one,
]  # fmt: skip


def test_nothing_is_stale_and_nobody_knew_less_where_nothing_came(finished):
    ws = finished.workspace
    stored = read_stored(ws)
    assert stale(ws) == set()
    assert models_that_knew_less(ws, stored) == []
    assert scores_that_knew_less(ws, stored) == []


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_every_partition_that_would_come_out_different_is_stale(used, market, untouched, change):
    ws = used.workspace
    change(used, market)
    differs = differing(untouched, made_from(ws, 2))
    assert differs
    found = stale(ws)
    assert differs <= found
    assert {("training_frame", key) for _, key in differs} <= found
    require_a_change_within_reach(used, found)


def require_a_change_within_reach(made: SmallHome, found: set[tuple[str, str]]) -> None:
    """A stale partition has a changed date in it or so many sessions before it.

    A frame is as stale as the partitions of the sessions whose labels became known in it.
    """
    ws = made.workspace
    stored = read_stored(ws)
    changed = [t for (t,) in made.rows("SELECT ts FROM price_changes WHERE batch_id > 1")]
    for asset, key in found:
        start, end = ws.grid.window(key)
        span = max(task.label_span for task in ws.settings.tasks)
        before = [ts for ts in stored.sessions if ts < start]
        if asset == "training_frame" and before:
            start = ws.grid.window(ws.grid.key(before[-span:][0]))[0]
        before = [ts for ts in stored.sessions if ts < start][-reach_of_features(ws) :]
        first = before[0] if before else start
        assert any(first <= ts < end for ts in changed)


def test_a_batch_without_a_material_change_makes_nothing_stale(used, market):
    bars = market.assign(adj_close=market["adj_close"] * 0.5)
    bars["close"] *= 1 + 1e-6
    report = used.ingest(bars)
    assert report.n_unchanged == len(bars)
    assert stale(used.workspace) == set()


def test_partitions_are_fresh_again_once_they_are_made_again(used, market, untouched):
    correct_a_close(used, market)
    keys = sorted({key for _, key in stale(used.workspace)})
    used.run(DATA, keys[0], keys[-1])
    assert stale(used.workspace) == set()
    after = made_from(used.workspace, 2)
    for key in keys:
        window = used.workspace.grid.window(key)
        rows = used.workspace.series.query(
            "SELECT * FROM features_daily WHERE ts >= ? AND ts < ? ORDER BY ts, symbol", window
        ).to_pandas()
        assert rows[list(after["features_daily", key])].equals(after["features_daily", key])


def test_a_list_of_members_that_nothing_uses_makes_nothing_stale(used):
    assert not used.workspace.settings.universe.memberships
    file = used.root / "members.csv"
    file.write_text("symbol,first,last\nS001,2015-06-01,\n")
    ingest_memberships(used.workspace, file, Reading())
    stored = read_stored(used.workspace)
    assert stale(used.workspace) == set()
    assert models_that_knew_less(used.workspace, stored) == []


def test_a_bar_before_the_first_one_reaches_as_far_as_the_age_that_it_gives(home, market):
    """Age counts from the first bar ever, however far that lies before a session."""
    made = home(
        "young", {"exclude = []": 'exclude = ["MOM_12_1", "ROC60", "MA60", "STD60", "RSV60"]'}
    )
    made.ingest(market)
    ws = made.workspace
    assert reach_of_features(ws) < 100
    keys = read_stored(ws).keys
    made.run(DATA, keys[0], keys[-1])
    assert stale(ws) == set()
    before = made_from(ws, 1)
    bring_a_bar_long_before_the_first(made, market)
    differs = differing(before, made_from(ws, 2))
    assert differs <= stale(ws)


def test_a_partition_that_lost_its_only_session_is_stale(home):
    """Rows of a date that is no session any more would stay."""
    bars = sample_market(n_symbols=6, n_sessions=23)  # one session of July
    july = bars["ts"].max()
    assert july == pd.Timestamp("2015-07-01")
    made = home("ended")
    some = bars["symbol"].isin(["S000", "S001"])
    made.ingest(bars[some])
    made.run(DATA, "2015-06", "2015-07")
    assert stale(made.workspace) == set()
    made.ingest(bars[~some & (bars["ts"] < july)])
    assert made.rows("SELECT is_session FROM sessions WHERE ts = ?", july.date()) == [(False,)]
    stored = made.rows("SELECT count(*) FROM features_daily WHERE ts = ?", july.date())
    assert stored == [(2,)]
    assert ("features_daily", "2015-07") in stale(made.workspace)


# --- Scores that would come out different today


def rescored(made: SmallHome) -> set[tuple[str, date, str, str]]:
    """Stored scores that today's prices would not give again: other, or none at all."""
    ws = made.workspace
    stored = made.rows("SELECT symbol, ts, task_id, model_id, score FROM predictions")
    days = [row[1] for row in stored]
    first = ws.grid.window(ws.grid.key(min(days)))[0]
    rows = []
    for key in ws.grid.keys(ws.grid.key(first), ws.grid.key(max(days))):
        rows.append(features_between(ws, *ws.grid.window(key)).rows.to_pandas())
    frame = pd.concat(rows)
    frame = frame[frame["in_universe"]].set_index(["symbol", "ts"])
    now: dict[tuple[str, date, str, str], float] = {}
    for task_id, model_id in {row[2:4] for row in stored}:
        content = ws.files.read(model_id)
        names = tuple(content["features"])
        x = np.ascontiguousarray(frame[list(names)].to_numpy(np.float32))
        scores = score_rows(content["boosters"], x, names, names)
        for (symbol, ts), score in zip(frame.index, scores.tolist(), strict=True):
            now[symbol, ts, task_id, model_id] = score
    return {row[:4] for row in stored if now.get(row[:4]) != row[4]}


def listed(made: SmallHome) -> dict[tuple[str, date, str, str], dict]:
    rows = scores_that_knew_less(made.workspace, read_stored(made.workspace))
    found = {(r["symbol"], r["ts"], r["task_id"], r["model_id"]): r for r in rows}
    assert len(found) == len(rows)
    return found


def test_todays_prices_give_every_stored_score_again(finished):
    assert rescored(finished) == set()


def restate_a_scored_bar(made: SmallHome, market: pd.DataFrame) -> None:
    bars = market.copy()
    bars.loc[at(bars, "S001", "2016-06-15"), ["close", "high", "adj_close"]] *= 1.05
    assert made.ingest(bars).n_restated == 1


def restate_the_newest_bar(made: SmallHome, market: pd.DataFrame) -> None:
    bars = market.copy()
    bars.loc[at(bars, "S001", str(FRIDAY)), ["close", "high", "adj_close"]] *= 1.05
    assert made.ingest(bars).n_restated == 1


def rename_a_scored_one(made: SmallHome, market: pd.DataFrame) -> None:
    file = made.root / "renames.csv"
    file.write_text("ticker,symbol,first,last\nS006,RENAMED,,2016-07-10\n")
    assert ingest_renames(made.workspace, file, Reading()).batch_id == 2


SCORED = [
    restate_a_scored_bar, restate_the_newest_bar, tell_a_dividend_late, bring_a_late_bar,
    rename_a_scored_one, take_a_session_away, bring_a_bar_long_before_the_first,
]  # fmt: skip


@pytest.mark.parametrize("change", SCORED, ids=lambda c: c.__name__)
def test_every_score_that_would_come_out_different_is_listed_with_its_reason(used, market, change):
    ws = used.workspace
    change(used, market)
    found = listed(used)
    own = {key for key, row in found.items() if row["change"] != "model"}  # models stay
    missing = rescored(used) - own
    assert not missing, f"{len(missing)} are not listed, first {min(missing)}"
    changed = {
        (s, t): c
        for s, t, c in used.rows("SELECT symbol, ts, change FROM price_versions WHERE batch_id > 1")
    }
    late_models = {m["model_id"] for m in models_that_knew_less(ws, read_stored(ws))}
    for (symbol, ts, _, model_id), row in found.items():
        assert row["batch_id"] == 2
        if row["change"] == "model":
            assert model_id in late_models
        elif row["change"] != "session":
            assert changed[symbol, row["changed_ts"]] == row["change"]
            assert row["changed_ts"] <= ts


def test_only_models_that_could_know_a_restated_bar_are_listed(used, market):
    restate_a_scored_bar(used, market)
    ws = used.workspace
    found = models_that_knew_less(ws, read_stored(ws))
    day = date(2016, 6, 15)
    assert {m["model_id"] for m in found} == {m.model_id for m in ws.meta.models() if m.asof >= day}
    assert {(m["changed_ts"], m["batch_id"]) for m in found} == {(day, 2)}
    for (symbol, ts, *_), row in listed(used).items():
        assert ts >= day
        assert symbol == "S001" or row["change"] == "model"


def test_a_new_session_lists_the_later_scores_of_all_symbols(used):
    longer = sample_market(n_sessions=311)
    monday = longer["ts"].max()
    used.ingest(longer)
    used.run([*DATA, "predictions"], "2016-08")
    scored = used.rows("SELECT symbol, task_id FROM predictions WHERE ts = ?", monday.date())
    assert len(scored) > 30
    assert listed(used) == {}
    saturday = longer[longer["ts"] == monday].assign(
        ts=pd.Timestamp("2016-08-06"), adj_close=np.nan
    )
    report = used.ingest(saturday)
    assert report.n_new_sessions == 1
    found = listed(used)
    mine = {(s, task) for (s, ts, task, _), row in found.items() if ts == monday.date()}
    assert mine == set(scored)
    assert {ts for _, ts, _, _ in found} == {monday.date()}
    assert rescored(used) <= found.keys()


def test_a_model_made_from_older_rows_than_the_newest_prices_knew_less(used, market):
    """Trained by hand in the web page, after an ingest and before its features were made again."""
    (first,) = used.rows('SELECT min("asof") FROM predictions')
    key = used.workspace.grid.key(first[0].replace(day=1) - timedelta(days=1))
    assert not [m for m in used.workspace.meta.models() if m.partition_key == key]
    bars = market.copy()
    bars.loc[at(bars, "S001", "2016-02-15"), ["close", "high", "adj_close"]] *= 1.05
    assert used.ingest(bars).n_restated == 1
    try:
        used.run(LEARNING, key)
    except QuantError:  # refused is right too
        return
    ws = used.workspace
    mine = {m.model_id for m in ws.meta.models() if m.partition_key == key}
    assert mine
    late = {m["model_id"] for m in models_that_knew_less(ws, read_stored(ws))}
    assert mine <= late
