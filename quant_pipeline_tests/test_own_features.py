"""Modules of a home: their features are stored and trained on, in blocks, and never mixed."""

from collections.abc import Callable, Iterator, Sequence
from datetime import date
from hashlib import sha256
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sqlmodel import select

from quant_pipeline.chain import blocks as chain_blocks
from quant_pipeline.chain import learn as chain_learn
from quant_pipeline.chain import predict as chain_predict
from quant_pipeline.chain import workspace as chain_workspace
from quant_pipeline.chain.features import features_between, features_in_blocks
from quant_pipeline.chain.own_features import load_own_features
from quant_pipeline.chain.predict import score_partition, score_shadow
from quant_pipeline.chain.stale import read_stored, stale_data
from quant_pipeline.defs.grid import make_partitions
from quant_pipeline.defs.io_manager import Blocks, SeriesIOManager
from quant_pipeline.defs.jobs import Runner
from quant_pipeline.defs.location import make_definitions
from quant_pipeline.defs.meter import PEAK_MEMORY, SECONDS
from quant_pipeline.errors import FeatureError, GateError, SettingsError
from quant_pipeline.market.features import FEATURE_SETS
from quant_pipeline.settings import Home
from quant_pipeline.stores.meta import Batch, Champion, utc_now
from quant_pipeline.stores.series import digest_rows, query
from quant_pipeline_tests.homes import (
    DATA,
    LEARNING,
    SmallHome,
    new_home,
    own_environment,
    sample_market,
)

MODULE = """
from quant_pipeline.market import rolling
from quant_pipeline.market.features import CrossSection, Feature


def pull(close):
    return close / rolling.mean(close, 10) - 1


PULL = Feature("MY_PULL", ("close",), 9, pull, "c/mean(c,10)-1")
FEATURES = [PULL, CrossSection("MY_RANK", PULL, "rank")]
"""
OTHER = """
from quant_pipeline.market.features import Feature
FEATURES = (Feature("OTHER", ("high", "low"), 0, lambda high, low: high - low),)
"""
SETTINGS = {
    "[features]\nexclude = []\nmin_sessions = 1":
    '[features]\nset = "core"\nexclude = []\nmodules = ["my_features"]\nmin_sessions = 40'
}  # fmt: skip
KEYS = [f"2015-{month:02}" for month in range(6, 13)] + [
    f"2016-{month:02}" for month in range(1, 9)
]
LISTED = {"S001": date(2016, 6, 1), "S002": date(2016, 7, 1), "S003": date(2015, 9, 1)}


def late_market() -> pd.DataFrame:
    """Three symbols begin later: S001 has 40 sessions by the end, S002 has 26."""
    bars = sample_market()
    for symbol, day in LISTED.items():
        bars = bars[(bars["symbol"] != symbol) | (bars["ts"] >= pd.Timestamp(day))]
    return bars.reset_index(drop=True)


def write_module(made: SmallHome, text: str = MODULE, name: str = "my_features") -> None:
    (made.root / f"{name}.py").write_text(text)


@pytest.fixture(scope="module")
def delivered(tmp_path_factory) -> Iterator[SmallHome]:
    """A home with a module and prices, nothing computed; only to be copied."""
    folder = tmp_path_factory.mktemp("delivered")
    with own_environment(folder):
        made = new_home(folder / "home", SETTINGS)
        write_module(made)
        made.ingest(late_market())
    return made


@pytest.fixture(scope="module")
def trained(delivered, tmp_path_factory) -> SmallHome:
    """The same, with models as of July 2016 and scores of August; only to be read."""
    folder = tmp_path_factory.mktemp("trained")
    with own_environment(folder):
        made = delivered.copy(folder / "home")
        made.backfill(date(2016, 8, 1))
    return made


@pytest.fixture
def fresh(delivered, tmp_path) -> Iterator[SmallHome]:
    """A copy of the delivered home that a test may change."""
    with own_environment(tmp_path):
        yield delivered.copy(tmp_path / "fresh")


@pytest.fixture
def mine(trained, tmp_path) -> Iterator[SmallHome]:
    """A copy of the trained home that a test may change."""
    with own_environment(tmp_path):
        yield trained.copy(tmp_path / "mine")


# --- loading


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"names my_features, but .*my_features\.py is no file\. Make it, with a list"),
        ("def f(:\n", r"my_features\.py: SyntaxError: .*line 1"),
        ("1 / 0\n", r"my_features\.py, line 1: ZeroDivisionError"),
        ("import no_such_module\n", r"my_features\.py, line 1: ModuleNotFoundError: .*no_such_mod"),
        ("x = 1\n", r"my_features\.py has no list FEATURES"),
        ("FEATURES = 5\n", r"my_features\.py has no list FEATURES"),
        ("FEATURES = {'A': 1}\n", r"my_features\.py has no list FEATURES"),
        ("FEATURES = ['KMID']\n", r"FEATURES of .*my_features\.py holds 'KMID', which is neither"),
        (MODULE + "FEATURES.append(pull)\n", r"FEATURES of .*my_features\.py holds <function pull"),
        (
            MODULE + "FEATURES.append(Feature('1a', ('close',), 0, pull))\n",
            r"my_features\.py, line \d+: '1a' is no feature name",
        ),
        (
            MODULE + "FEATURES.append(Feature('SHORT', ('close',), 3, pull))\n",
            r"Feature SHORT is refused\. .*more than its window of 3 sessions",
        ),
    ],
    ids=["missing", "syntax", "raises", "import", "none", "number", "table", "names", "function",
         "name", "dishonest"],
)  # fmt: skip
def test_a_module_that_cannot_be_used_says_why(tmp_path, text, message) -> None:
    if text is not None:
        (tmp_path / "my_features.py").write_text(text)
    with pytest.raises(FeatureError, match=message):
        load_own_features(Home(tmp_path), ["my_features"])


def test_modules_give_their_features_in_order_with_the_hashes_of_their_files(tmp_path) -> None:
    for name, text in (("my_features", MODULE), ("other", OTHER)):
        (tmp_path / f"{name}.py").write_text(text)
    found = load_own_features(Home(tmp_path), ["other", "my_features"])
    assert [f.name for f in found.features] == ["OTHER", "MY_PULL", "MY_RANK"]
    hashes = {"other": OTHER, "my_features": MODULE}
    assert found.sha256 == tuple(
        (name, sha256(text.encode()).hexdigest()) for name, text in hashes.items()
    )
    assert load_own_features(Home(tmp_path), []).features == ()
    assert not list(tmp_path.rglob("__pycache__")), "what runs is what was hashed"


def test_a_module_may_use_dataclasses_and_later_annotations(tmp_path) -> None:
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n" + MODULE
    text += "\n\n@dataclass\nclass Window:\n    sessions: int = 5\n"
    (tmp_path / "my_features.py").write_text(text)
    assert len(load_own_features(Home(tmp_path), ["my_features"]).features) == 2


@pytest.mark.parametrize("name", ["../x", "a.b", "/etc/x", "a/b", "", "1a", "x.py", "a b"])
def test_a_module_name_that_is_no_name_is_refused_by_the_settings(home, name) -> None:
    made = home(changes={"exclude = []": f'exclude = []\nmodules = ["{name}"]'})
    with pytest.raises(SettingsError, match=r"features\.modules"):
        made.workspace  # noqa: B018


def features_of(made: SmallHome) -> list[str]:
    return [f.name for f in made.workspace.features]


def test_the_set_comes_first_and_own_names_can_be_included_and_excluded(fresh) -> None:
    core = list(FEATURE_SETS["core"])
    assert features_of(fresh) == [*core, "MY_PULL", "MY_RANK"]
    write_module(fresh, OTHER, "other")
    fresh.change_settings('["my_features"]', '["other", "my_features"]')
    assert features_of(fresh) == [*core, "OTHER", "MY_PULL", "MY_RANK"]
    fresh.change_settings("exclude = []", 'exclude = ["MY_PULL", "KMID"]')
    assert features_of(fresh) == [*core[1:], "OTHER", "MY_RANK"]
    fresh.change_settings("exclude = [", 'include = ["OTHER", "MY_PULL", "ROC5"]\nexclude = [')
    assert features_of(fresh) == ["ROC5", "OTHER"]
    fresh.change_settings('"OTHER", "MY_PULL", "ROC5"', '"MY_PUL"')
    with pytest.raises(SettingsError, match=r"No feature MY_PUL\. Did you mean MY_PULL\b"):
        fresh.workspace.features  # noqa: B018


@pytest.mark.parametrize("name", ["KMID", "mom_12_1", "MY_PULL", "my_rank", "Label", "TS"])
def test_a_name_that_is_taken_is_refused(fresh, name) -> None:
    write_module(fresh, OTHER.replace("OTHER", name), "other")
    fresh.change_settings('["my_features"]', '["my_features", "other"]')
    with pytest.raises(SettingsError, match=name):
        fresh.workspace.features  # noqa: B018


def test_any_edit_of_a_module_is_another_feature_set(fresh) -> None:
    ids = [fresh.workspace.feature_set_id]
    assert fresh.workspace.feature_set_id == ids[0]
    for text in (MODULE + "# a comment\n", MODULE.replace("10)", "9)"), MODULE + "\n"):
        write_module(fresh, text)
        ids.append(fresh.workspace.feature_set_id)
    assert len(set(ids)) == 4
    write_module(fresh, MODULE)
    assert fresh.workspace.feature_set_id == ids[0]
    fresh.change_settings("min_sessions = 40", "min_sessions = 41")
    assert fresh.workspace.feature_set_id not in ids


# --- a home with a module


def test_features_of_a_module_are_stored_and_trained_on(trained) -> None:
    found = trained.rows("SELECT MY_PULL, MY_RANK, in_universe FROM features_daily")
    pull, rank, is_member = (np.array(x, np.float64) for x in zip(*found, strict=True))
    assert np.isfinite(pull).mean() > 0.95
    assert np.isnan(rank[is_member == 0]).all()
    assert np.nanmin(rank) > 0
    assert np.nanmax(rank) == 1
    models = trained.workspace.meta.models()
    assert {(m.task_id, m.partition_key) for m in models} == {
        ("up_5d", "2016-07"), ("ret_5d", "2016-07")}  # fmt: skip
    for model in models:
        assert model.features == [*FEATURE_SETS["core"], "MY_PULL", "MY_RANK"]
    assert len(trained.scores()) > 100


def test_stored_values_are_those_of_the_formula(trained) -> None:
    found = trained.rows("SELECT ts, MY_PULL FROM features_daily WHERE symbol = 'S007' ORDER BY ts")
    prices = trained.rows(
        "SELECT ts, adj_index FROM prices_daily WHERE symbol = 'S007' ORDER BY ts"
    )
    sessions = trained.rows("SELECT ts FROM sessions WHERE is_session ORDER BY ts")
    close = pd.Series(dict(prices), dtype=np.float64).reindex([ts for (ts,) in sessions])
    expected = close / close.rolling(10, min_periods=1).mean() - 1
    np.testing.assert_allclose(
        [v for _, v in found], expected.loc[[ts for ts, _ in found]], rtol=1e-5, atol=1e-7
    )


@pytest.mark.long
def test_after_an_edit_nothing_is_mixed_and_a_backfill_starts_anew(
    mine, delivered, tmp_path, monkeypatch
) -> None:
    was = mine.state()
    other = delivered.copy(tmp_path / "other")
    for made in (mine, other):
        write_module(made, MODULE.replace("10", "8").replace("9,", "7,"))
        made.change_settings("exclude = []", 'exclude = ["KMID"]')
    ws = mine.workspace
    stale = stale_data(ws, read_stored(ws))
    assert stale["features_daily"] == dict.fromkeys(KEYS, "settings changed")
    for asset in LEARNING:
        with pytest.raises(GateError, match="other features or another universe"):
            mine.run([asset], "2016-07")
    assert mine.state() == was
    run_features(other, KEYS)
    monkeypatch.setattr(chain_blocks, "BLOCK_VALUES", 30_000)
    done = mine.backfill(date(2016, 8, 1))
    assert done.data["features_daily"] == KEYS
    assert table_of(mine) == table_of(other)
    assert registry_of(mine) == registry_of(other)
    models = mine.workspace.meta.models()
    assert len(models) == 4
    assert models[-1].features == [*list(FEATURE_SETS["core"])[1:], "MY_PULL", "MY_RANK"]
    assert stale_data(mine.workspace, read_stored(mine.workspace))["features_daily"] == {}


def test_a_comment_in_a_module_makes_its_features_stale(mine) -> None:
    write_module(mine, MODULE + "# a comment\n")
    ws = mine.workspace
    stale = stale_data(ws, read_stored(ws))
    assert stale["features_daily"] == dict.fromkeys(KEYS, "settings changed")
    with pytest.raises(GateError, match="other features or another universe"):
        mine.run(["lgbm_model"], "2016-07")


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda made: write_module(made, MODULE.replace("- 1", "- 2")), "its module was changed"),
        (
            lambda made: made.change_settings("min_sessions = 40", "min_sessions = 30"),
            "MY_RANK ranks among another universe",
        ),
        (lambda made: made.change_settings("exclude = []", 'exclude = ["KMID"]'), "no feature"),
        (
            lambda made: made.change_settings("[folds]", "[jumps]\nmin_move = 0.6\n\n[folds]"),
            r"[jumps] of quant.toml was changed",
        ),
    ],
    ids=["formula", "universe", "excluded", "jumps"],
)
def test_a_frozen_model_scores_nothing_on_other_features_than_it_learned_from(
    mine, edit, why
) -> None:
    """The window keeps its model, and the model its features, by meaning and not by name alone."""
    text = (mine.root / "quant.toml").read_text()
    n_scores = len(mine.scores())
    mine.change_series("DELETE FROM predictions WHERE ts = '2016-08-05'")
    kept = mine.scores()
    assert 0 < len(kept) < n_scores
    edit(mine)
    run_features(mine, KEYS)
    for task in mine.workspace.tasks():
        scored = score_partition(mine.workspace, "2016-08", task)
        assert scored.n_new == scored.n_different == 0
        assert why in scored.why
    assert mine.scores() == kept
    write_module(mine)
    (mine.root / "quant.toml").write_text(text)
    run_features(mine, KEYS)
    for task in mine.workspace.tasks():
        assert score_partition(mine.workspace, "2016-08", task).n_new > 0
    assert len(mine.scores()) == n_scores


def test_a_frozen_model_scores_nothing_on_values_of_another_version(mine, monkeypatch) -> None:
    was = mine.workspace.feature_set_id
    for module in (chain_workspace, chain_learn, chain_predict):
        monkeypatch.setattr(module, "FEATURE_VALUES", 2)
    assert mine.workspace.feature_set_id != was
    kept = mine.scores()
    run_features(mine, KEYS)
    for task in mine.workspace.tasks():
        scored = score_partition(mine.workspace, "2016-08", task)
        assert "other values in this version" in scored.why
    assert mine.scores() == kept


@pytest.mark.long
def test_a_window_that_nobody_serves_yet_waits_for_a_model_of_todays_features(mine) -> None:
    """Refused or not trained yet is no error of the scores: they say why there are none."""
    mine.change_series("DELETE FROM predictions")
    with mine.workspace.meta.writing() as session:
        for champion in session.exec(select(Champion)):
            session.delete(champion)
    write_module(mine, MODULE.replace("- 1", "- 2"))
    run_features(mine, KEYS)
    for task in mine.workspace.tasks():
        scored = score_partition(mine.workspace, "2016-08", task)
        assert scored.model_id is None
        assert "scores nothing: MY_PULL may be another one: its module was changed" in scored.why
        assert mine.workspace.meta.champions(task.task_id, "2016-08") == []
    assert mine.scores() == []
    (model,) = [m for m in mine.workspace.meta.models() if m.task_id == "up_5d"]
    with pytest.raises(GateError, match="MY_PULL may be another one"):
        score_shadow(mine.workspace, model, date(2016, 8, 1), date(2016, 8, 5))
    mine.backfill(date(2016, 8, 1))
    assert len(mine.scores()) > 0


@pytest.mark.parametrize("change", ["prices", "killed"])
def test_stale_features_are_not_scored(mine, change) -> None:
    """Each is what a run of the predictions alone, from the web UI, could meet."""
    mine.change_series("DELETE FROM predictions WHERE ts = '2016-08-05'")
    kept = mine.scores()
    if change == "prices":
        bars = late_market()
        day = bars[bars["ts"] == pd.Timestamp(2016, 7, 20)].copy()
        day["close"] = day["high"]
        mine.ingest(day)
        why = "prices of 2016-07-20 changed in batch 2"
    else:
        pending = Batch(
            table_name="features_daily", partition_key="2016-08", task_id="", n_rows=0, digest="",
            price_batch_id=1, spec_id="", status="pending", run_id="", written_at=utc_now(),
        )  # fmt: skip
        mine.workspace.meta.begin_batches([pending])
        why = "missing"
    ws = mine.workspace
    (model,) = [m for m in ws.meta.models() if m.task_id == "up_5d"]
    message = f"features_daily of 2016-08 is stale: {why}"
    for action in (
        lambda: score_partition(ws, "2016-08", ws.settings.task("up_5d")),
        lambda: mine.run(["predictions"], "2016-08"),
        lambda: score_shadow(ws, model, date(2016, 8, 1), date(2016, 8, 5)),
    ):
        with pytest.raises(GateError, match=message):
            action()
    assert mine.scores() == kept
    mine.backfill(date(2016, 8, 1))
    assert len(mine.scores()) > len(kept)


def test_rows_are_recorded_as_of_the_settings_that_they_were_made_with(fresh) -> None:
    """The store opens the home once more: settings may have changed while features were made."""
    ws = fresh.workspace

    @dg.asset(partitions_def=make_partitions(ws.settings), metadata={"partition_expr": "ts"})
    def features_daily() -> pa.Table:
        window = ws.grid.window(KEYS[0])
        found = features_between(ws, *window).rows
        write_module(fresh, MODULE.replace("- 1", "- 2"))
        return found

    before = ws.feature_set_id
    manager = SeriesIOManager.of(ws.home)
    dg.materialize([features_daily], partition_key=KEYS[0], resources={"io_manager": manager})
    (batch,) = ws.meta.batches("features_daily")
    assert batch.spec_id == before != fresh.workspace.feature_set_id
    stale = stale_data(fresh.workspace, read_stored(fresh.workspace))["features_daily"]
    assert stale[KEYS[0]] == "settings changed"


@pytest.mark.parametrize("text", [None, "1 / 0\n"], ids=["lost", "broken"])
def test_a_module_that_is_lost_or_broken_changes_nothing(mine, text) -> None:
    was = mine.state()
    if text is None:
        (mine.root / "my_features.py").unlink()
    else:
        write_module(mine, text)
    for action in (
        lambda: mine.run(["features_daily"], "2016-07"),
        lambda: mine.run(["lgbm_model"], "2016-07"),
        lambda: mine.backfill(date(2016, 8, 1)),
    ):
        with pytest.raises(FeatureError, match="my_features"):
            action()
    assert mine.state() == was


# --- features.min_sessions


AGES = """
    SELECT b.symbol, b.ts, count(*) AS age FROM prices_daily b
    JOIN (SELECT symbol, min(ts) AS first FROM prices_daily GROUP BY symbol) f USING (symbol)
    JOIN sessions s ON s.is_session AND s.ts BETWEEN f.first AND b.ts
    GROUP BY b.symbol, b.ts
"""


def test_rows_of_young_symbols_are_neither_trained_on_nor_scored(trained) -> None:
    for table in ("training_frame", "predictions"):
        found = trained.rows(
            f"SELECT min(age), count(*) FROM {table} JOIN ({AGES}) USING (symbol, ts)"
        )
        assert found[0][0] >= 40, table
        assert found[0][1] > 100, table
    scored = {s for (s,) in trained.rows("SELECT DISTINCT symbol FROM predictions")}
    assert "S001" in scored
    assert "S002" not in scored
    young = "SELECT count(*) FROM features_daily WHERE symbol = 'S002' AND lacks_history"
    assert trained.rows(young)[0][0] > 0


def test_young_rows_are_those_of_too_few_sessions_and_in_no_universe(trained) -> None:
    """The universe wants 20 sessions, the features 40."""
    found = trained.rows(
        f"SELECT age, in_universe, lacks_history FROM features_daily "
        f"JOIN ({AGES}) USING (symbol, ts)"
    )
    age, is_member, lacks = (np.array(x) for x in zip(*found, strict=True))
    assert not (is_member & lacks).any()
    assert set(age[lacks]) == set(range(1, 40))
    assert not lacks[age >= 40].any()
    assert age[is_member].min() == 40
    ws = trained.workspace
    window = ws.grid.window(KEYS[0])[0], ws.grid.window(KEYS[-1])[1]
    (n_rows,) = trained.rows("SELECT count(*) FROM features_daily")[0]
    assert len(features_between(ws, *window).rows) == n_rows


def test_young_rows_are_counted_and_the_counts_add_up_to_the_labels(trained) -> None:
    sql = f"""
        WITH counted AS (
            SELECT strftime(known_at, '%Y-%m') AS partition_key, task_id, count(label) AS n_labels,
                count(*) FILTER (reason IS NULL AND age < 40) AS n_short, count(*) AS n
            FROM labels LEFT JOIN ({AGES}) USING (symbol, ts) GROUP BY ALL)
        SELECT m.partition_key, m.n_labels, c.n_labels, n_short_history, n_short,
            n_rows + n_outside_universe + n_short_history + n_without_features,
            m.n_labels + n_no_entry_bar + n_no_exit_bar + n_suspect_jump, c.n,
            least(n_rows, n_outside_universe, n_short_history, n_without_features)
        FROM training_manifest m JOIN counted c USING (partition_key, task_id) ORDER BY ALL
    """
    found = trained.rows(sql)
    assert [row[0] for row in found] == sorted(KEYS * 2)
    for key, n_labels, of_table, n_short, of_ages, of_parts, n_bars, n_rows, least in found:
        assert n_labels == of_table == of_parts, key
        assert n_bars == n_rows, key
        assert n_short == of_ages, key
        assert least >= 0, key
    assert sum(row[3] for row in found) > 500


def test_without_a_longer_history_nobody_is_young(fresh) -> None:
    fresh.change_settings("min_sessions = 40", "min_sessions = 1")
    fresh.run(["features_daily"], KEYS[0], KEYS[-1])
    assert fresh.rows("SELECT count(*) FROM features_daily WHERE lacks_history") == [(0,)]


# --- blocks


def blocks_of(made: SmallHome, keys: Sequence[str]) -> list[tuple[list[str], pa.Table]]:
    return [(part, found.rows) for part, found in features_in_blocks(made.workspace, keys)]


@pytest.mark.parametrize("most", [1, 30_000, 70_000])
def test_blocks_have_the_rows_of_one_bit_for_bit(delivered, monkeypatch, most) -> None:
    ((keys, whole),) = blocks_of(delivered, KEYS)
    assert keys == KEYS
    monkeypatch.setattr(chain_blocks, "BLOCK_VALUES", most)
    blocks = blocks_of(delivered, KEYS)
    assert [key for part, _ in blocks for key in part] == KEYS
    assert len(blocks) == len(KEYS) if most == 1 else 1 < len(blocks) < len(KEYS)
    for part, rows in blocks:
        assert len(part) == 1 or len(rows) * len(features_of(delivered)) <= most
        start, end = (delivered.workspace.grid.window(k) for k in (part[0], part[-1]))
        assert start[0] <= min(rows["ts"].to_pylist())
        assert max(rows["ts"].to_pylist()) < end[1]
        assert rows.schema.metadata == whole.schema.metadata
    assert digest_rows(pa.concat_tables(rows for _, rows in blocks)) == digest_rows(whole)


def test_partitions_without_a_bar_are_in_a_block_too(delivered, monkeypatch) -> None:
    keys = ["2015-05", *KEYS, "2016-09", "2016-10"]
    monkeypatch.setattr(chain_blocks, "BLOCK_VALUES", 1)
    blocks = blocks_of(delivered, keys)
    assert [key for part, _ in blocks for key in part] == keys


def test_all_blocks_are_made_from_the_prices_that_the_first_one_knew(fresh, monkeypatch) -> None:
    monkeypatch.setattr(chain_blocks, "BLOCK_VALUES", 30_000)
    expected = blocks_of(fresh, KEYS)
    blocks = features_in_blocks(fresh.workspace, KEYS)
    found = [next(blocks)]
    bars = late_market()
    restated = bars[(bars["symbol"] == "S007") & (bars["ts"] >= pd.Timestamp(2016, 1, 1))].copy()
    restated["low"] *= 0.9
    assert fresh.ingest(restated).n_restated == len(restated)
    found += list(blocks)
    for (keys, table), (part, made) in zip(expected, found, strict=True):
        assert keys == part
        assert digest_rows(table) == digest_rows(made.rows)
    assert digest_rows(blocks_of(fresh, KEYS)[-1][1]) != digest_rows(expected[-1][1])


def run_features(made: SmallHome, keys: Sequence[str]) -> None:
    run_some(made, ["features_daily"], keys)


def run_some(
    made: SmallHome, assets: Sequence[str], keys: Sequence[str]
) -> dict[tuple[str, str], dict[str, int]]:
    """One run; gives the numbers that Dagster has of each asset and partition, but its cost."""
    ws = made.workspace
    job = make_definitions(ws).resolve_implicit_global_asset_job_def()
    found = {}
    with dg.DagsterInstance.ephemeral() as instance:
        Runner(ws, instance, job).materialize(assets, keys[0], keys[-1])
        for asset in assets:
            for record in instance.fetch_materializations(dg.AssetKey(asset), limit=99).records:
                values = record.asset_materialization.metadata.items()
                cost = (SECONDS, PEAK_MEMORY)
                numbers = {
                    k: v.value
                    for k, v in values if isinstance(v.value, int | float) and k not in cost
                }  # fmt: skip
                found[asset, record.partition_key] = numbers
    return found


def table_of(made: SmallHome) -> str:
    with made.workspace.series.reading("test") as con:
        return digest_rows(query(con, "SELECT * FROM features_daily ORDER BY ts, symbol"))


def registry_of(made: SmallHome, table: str = "features_daily") -> dict[Any, tuple[Any, ...]]:
    """The newest record of each partition and task of a table."""
    rows = sorted(made.registry(Batch), key=lambda row: row["id"])
    return {
        (row["partition_key"], row["task_id"]): (row["n_rows"], row["digest"], row["spec_id"])
        for row in rows
        if row["table_name"] == table
    }


@pytest.mark.long
def test_stored_in_blocks_is_stored_at_once(fresh, delivered, tmp_path, monkeypatch) -> None:
    other = delivered.copy(tmp_path / "other")
    at_once = run_some(fresh, DATA, KEYS)
    monkeypatch.setattr(chain_blocks, "BLOCK_VALUES", 30_000)
    in_blocks = run_some(other, DATA, KEYS)
    assert sorted(at_once) == sorted((asset, key) for asset in DATA for key in KEYS)
    assert in_blocks == at_once
    of_features = [numbers for (asset, _), numbers in in_blocks.items() if asset == DATA[0]]
    n_rows = fresh.rows("SELECT count(*) FROM features_daily")[0][0]
    assert sum(numbers["rows"] for numbers in of_features) == n_rows
    assert sum(numbers["short_history"] for numbers in of_features) > 0
    for sql in (
        "SELECT * FROM features_daily ORDER BY ts, symbol",
        "SELECT * FROM labels ORDER BY task_id, ts, symbol",
        "SELECT * FROM training_manifest ORDER BY task_id, partition_key",
    ):
        with fresh.workspace.series.reading("test") as con:
            expected = digest_rows(query(con, sql))
        with other.workspace.series.reading("test") as con:
            assert digest_rows(query(con, sql)) == expected
    for table in DATA:
        assert registry_of(other, table) == registry_of(fresh, table)
    assert sorted(key for key, _ in registry_of(fresh)) == KEYS


def store_some(made: SmallHome, keys: Sequence[str], n_blocks: int) -> list[str]:
    """Store features in blocks until the power is cut; gives the partitions that were stored."""
    ws = made.workspace
    done: list[str] = []

    def until_the_cut() -> Iterator[tuple[list[str], pa.Table]]:
        for i, (part, found) in enumerate(features_in_blocks(ws, keys)):
            if i == n_blocks:
                raise RuntimeError("power cut")
            done.extend(part)
            yield part, found.rows

    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral() as instance:
        patch.setattr(chain_blocks, "BLOCK_VALUES", 30_000)

        @dg.asset(
            partitions_def=make_partitions(ws.settings),
            metadata={"partition_expr": "ts", "key": ["symbol", "ts"]},
            backfill_policy=dg.BackfillPolicy.single_run(),
        )
        def features_daily() -> Blocks:
            return Blocks(until_the_cut())

        tags = {"start": keys[0], "end": keys[-1]}
        with pytest.raises(RuntimeError, match="power cut"):
            dg.materialize(
                [features_daily],
                instance=instance,
                resources={"io_manager": SeriesIOManager.of(ws.home)},
                tags={f"dagster/asset_partition_range_{k}": v for k, v in tags.items()},
            )
    return done


def month_rows(made: SmallHome, keys: Sequence[str]) -> list[tuple[Any, ...]]:
    marks = ", ".join("?" for _ in keys)
    sql = (
        f"SELECT * FROM features_daily WHERE strftime(ts, '%Y-%m') IN ({marks}) ORDER BY ts, symbol"
    )
    return [tuple(map(repr, row)) for row in made.rows(sql, *keys)]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
def test_a_failure_in_the_second_block_keeps_the_first_and_the_old_rows_of_the_rest(
    fresh, delivered, tmp_path
) -> None:
    run_features(fresh, KEYS)
    old = {key: month_rows(fresh, [key]) for key in KEYS}
    other = delivered.copy(tmp_path / "other")
    for made in (fresh, other):
        made.change_settings("min_sessions = 40", "min_sessions = 30")
    run_features(other, KEYS)
    done = store_some(fresh, KEYS, 2)
    rest = [key for key in KEYS if key not in done]
    assert 1 < len(done) < len(KEYS)
    assert done == KEYS[: len(done)]
    assert month_rows(fresh, done) == month_rows(other, done)
    assert all(month_rows(fresh, [key]) == old[key] for key in rest)
    assert any(month_rows(fresh, [key]) != old[key] for key in done)
    stale = stale_data(fresh.workspace, read_stored(fresh.workspace))["features_daily"]
    assert stale == dict.fromkeys(rest, "settings changed")
    run_features(fresh, rest)
    assert table_of(fresh) == table_of(other)
    assert registry_of(fresh) == registry_of(other)
    assert stale_data(fresh.workspace, read_stored(fresh.workspace))["features_daily"] == {}


def exclude_some(made: SmallHome) -> None:
    made.change_settings("exclude = []", 'exclude = ["MY_RANK", "KMID"]')


def add_to_module(made: SmallHome) -> None:
    write_module(made, MODULE + "FEATURES.append(Feature('MORE', ('open',), 0, lambda x: x))\n")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
@pytest.mark.parametrize(("change", "n_blocks"), [(exclude_some, 1), (add_to_module, 2)])
def test_a_rebuild_of_other_features_that_is_cut_off_ends_right_when_it_is_run_again(
    trained, delivered, tmp_path, change: Callable[[SmallHome], None], n_blocks
) -> None:
    with own_environment(tmp_path):
        cut, other = trained.copy(tmp_path / "cut"), delivered.copy(tmp_path / "other")
        change(cut)
        change(other)
        run_features(other, KEYS)
        done = store_some(cut, KEYS, n_blocks)
        rest = [key for key in KEYS if key not in done]
        assert month_rows(cut, KEYS) == month_rows(other, done), "nothing old is left"
        found, expected = registry_of(cut), registry_of(other)
        assert {key: found[key, ""] for key in done} == {key: expected[key, ""] for key in done}
        assert {key: found[key, ""] for key in rest} == dict.fromkeys(rest, (0, "", ""))
        stale = stale_data(cut.workspace, read_stored(cut.workspace))["features_daily"]
        assert stale == dict.fromkeys(rest, "settings changed")
        for asset in LEARNING:
            with pytest.raises(GateError):
                cut.run([asset], "2016-07")
        cut.run(DATA, rest[0], rest[-1])
        assert table_of(cut) == table_of(other)
        assert registry_of(cut) == expected
