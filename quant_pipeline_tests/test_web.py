"""Each page in Streamlit's own test runner: with data, empty, broken, busy; no database."""

import importlib
import os
from datetime import date

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from quant_pipeline.chain import shown
from quant_pipeline.chain.prices import publish_prices
from quant_pipeline.faces.page_server import DAGSTER
from quant_pipeline.faces.web import data, models, shared
from quant_pipeline.stores.locks import held
from quant_pipeline.stores.meta import Champion, utc_now
from quant_pipeline_tests.homes import SmallHome

PAGES = ("overview", "predictions", "models", "outcomes", "data")
pytestmark = pytest.mark.filterwarnings("ignore")  # the runner's own


def run(page: str, home: SmallHome, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """A page of a home, as a session sees it."""
    monkeypatch.setenv("QUANT_HOME", str(home.root))
    shared._open.clear()
    shared._remember.clear()
    script = f"from quant_pipeline.faces.web import {page}\n{page}.page()"
    found = AppTest.from_string(script, default_timeout=120).run()
    assert not found.exception, found.exception[0].stack_trace
    return found


def words(page: AppTest) -> str:
    """Everything that a page says."""
    kinds = ("title", "subheader", "caption", "info", "error", "warning", "success", "markdown")
    said = [str(e.value) for kind in kinds for e in getattr(page, kind)]
    return "\n".join([*said, *(f"{m.label}: {m.value}" for m in page.metric)])


def test_every_module_of_a_page_has_one():
    for page in PAGES:
        assert importlib.import_module(f"quant_pipeline.faces.web.{page}").page.__doc__


@pytest.mark.parametrize("page", PAGES)
def test_a_page_with_data_shows_them_and_asks_no_database(page, finished, monkeypatch):
    monkeypatch.setattr(
        "quant_pipeline.stores.series.SeriesStore.reading",
        lambda *_: pytest.fail("a page opened the database"),
    )
    found = run(page, finished, monkeypatch)
    assert not found.error
    assert len(found.get("vega_lite_chart")) >= {"overview": 0, "predictions": 3, "models": 3,
                                                 "outcomes": 9, "data": 3}[page]  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_home_is_told_what_to_do(page, workspace, monkeypatch):
    found = run(page, SmallHome(workspace.home.root), monkeypatch)
    assert not found.error
    said = words(found) + " ".join(str(t.value) for t in found.table)
    assert "`quant " in said


def test_the_overview_has_champion_reach_and_rank_ic(finished, monkeypatch):
    found = run("overview", finished, monkeypatch)
    said = words(found)
    assert "Data through session: 2016-08-05" in said
    for task_id in ("up_5d", "ret_5d"):
        champion = finished.workspace.meta.champions(task_id)[-1]
        assert f"Champion: {champion.model_id[:8]}" in said
    assert said.count("RankIC, 12 months, backfill: +0.") == 2


def test_predictions_are_ranked_filtered_and_downloaded(finished, monkeypatch):
    found = run("predictions", finished, monkeypatch)
    table = found.dataframe[0].value
    assert table["score"].is_monotonic_decreasing
    assert table["rank"].to_list() == list(range(1, len(table) + 1))
    some = sorted(table["symbol"])[2:4]
    found.multiselect[0].set_value(some).run()
    assert sorted(found.dataframe[0].value["symbol"]) == some
    found.multiselect[0].set_value([]).run()
    found.selectbox[0].set_value("ret_5d").run()
    newest = found.dataframe[0].value["model as of"].iloc[0]
    found.selectbox[2].set_value(found.selectbox[2].options[-1]).run()
    assert found.dataframe[0].value["model as of"].iloc[0] < newest
    assert not found.exception


def test_a_model_is_chosen_to_see_its_sessions(finished, monkeypatch):
    found = run("predictions", finished, monkeypatch)
    days = {
        model_id: [ts for (ts,) in finished.rows(
            "SELECT DISTINCT ts FROM predictions WHERE task_id = 'up_5d' AND model_id = ? "
            "ORDER BY ts DESC", model_id)]
        for model_id in {c.model_id for c in finished.workspace.meta.champions("up_5d")}
    }  # fmt: skip
    assert len(days) > 2
    assert len(found.selectbox[2].options) == sum(map(len, days.values()))
    for model_id, mine in days.items():
        found.selectbox[1].set_value(model_id).run()
        assert found.selectbox[2].options == [day.isoformat() for day in mine]
        assert set(found.dataframe[0].value["model"]) == {model_id[:12]}
    assert not found.exception


def test_a_model_whose_file_is_gone_is_told_and_the_rest_is_shown(used, monkeypatch):
    for file in (used.root / "models").glob("*.joblib"):
        file.unlink()
    for page in ("models", "predictions"):
        found = run(page, used, monkeypatch)
        assert "is missing, but the registry has it" in found.error[0].value
        assert found.dataframe
        assert len(found.get("vega_lite_chart")) >= 2


def test_folds_are_drawn_with_the_embargo_that_they_were_made_with(used, monkeypatch):
    monkeypatch.setenv("QUANT_HOME", str(used.root))
    task = used.workspace.settings.task("up_5d")
    model = used.workspace.meta.models("up_5d")[0]
    fold = model.fold_metrics[0]
    before = models._with_purge(task, model, fold)
    assert before["train_kept_end"] < fold["train_end"]
    used.change_settings("test_sessions = 30", "test_sessions = 30\nembargo_sessions = 9")
    shared._remember.clear()
    assert models._with_purge(task, model, fold) == before


def test_metrics_of_folds_are_numbers_and_the_important_ones_come_first(finished, monkeypatch):
    found = run("models", finished, monkeypatch)
    table = next(d.value for d in found.dataframe if "fold" in d.value.columns)
    assert table["fold"].to_list() == ["1", "2", "all"]
    first = [name.strip() for name in table.columns[:6]]
    assert first == ["fold", "RankIC", "± s.e.", "accuracy %", "base %", "AUC"]
    assert all(dtype == "float64" for dtype in table.dtypes[1:])
    stored = finished.workspace.meta.models("up_5d")[-1].metrics
    assert table["RankIC"].iloc[-1] == stored["rank_ic"]
    assert table["accuracy %"].iloc[-1] == 100 * stored["accuracy"]


def test_the_worst_features_of_the_newest_partition_are_named(finished, monkeypatch):
    found = run("data", finished, monkeypatch)
    said = words(found)
    checks = {c.name: c for c in shown.newest_checks(finished.workspace, "features_daily")}
    for name, title, what in (
        ("features_have_not_drifted", "Largest drift", "psi"),
        ("features_are_filled", "Most often missing", "null_share"),
    ):
        newest = checks[name]
        named = [v for n, v in newest.numbers.items() if n.startswith(f"{what} of ")]
        if named:
            assert f"**{title}, {newest.partition_key}**" in said
            assert max(named) == pytest.approx(newest.numbers[f"largest_{what}"])
        assert len(named) <= 10
    assert "Largest drift, " in said


def test_an_empty_home_has_nothing_to_be_glad_of(workspace, monkeypatch):
    found = run("data", SmallHome(workspace.home.root), monkeypatch)
    assert not found.success
    assert [info.value for info in found.info].count(data.NO_PRICES) == 3


def test_a_champion_without_its_file_needs_attention(used, monkeypatch):
    champion = used.workspace.meta.champions("up_5d")[-1]
    (used.root / "models" / f"{champion.model_id}.joblib").unlink()
    table = run("overview", used, monkeypatch).table[0].value
    mine = table[table["what"].str.contains(champion.model_id[:12])]
    assert mine.index.to_list() == ["error"]
    assert "`quant train --asof 2016-07-31 --task up_5d`" in mine["next"].iloc[0]
    assert set(table.index) <= {"error", "warning"}


def test_a_champion_of_a_later_date_says_from_when(used, monkeypatch):
    ws = used.workspace
    serving, other = ws.meta.champions("up_5d")[-1], ws.meta.models("up_5d")[0]
    later = Champion(
        task_id="up_5d", partition_key=serving.partition_key, model_id=other.model_id,
        from_ts=date(2016, 8, 9), why="promoted by hand: test", decided_at=utc_now(),
    )  # fmt: skip
    ws.meta.freeze_champion(later)
    said = words(run("overview", used, monkeypatch))
    assert f"Champion: {serving.model_id[:8]}" in said
    assert f"{other.model_id[:8]} from 2016-08-09 on: promoted by hand: test" in said


def test_what_needs_attention_leads_to_the_partition_in_dagster(used, market, monkeypatch):
    used.ingest(market[market["symbol"] == "S003"].tail(40).assign(volume=7_000_000))
    publish_prices(used.workspace)
    monkeypatch.setenv(DAGSTER, "http://0.0.0.0:3000")
    told = run("overview", used, monkeypatch).table[0].value["next"]
    links = [text for text in told if "/assets/features_daily?view=partitions&partition=20" in text]
    assert links
    assert "0.0.0.0" not in "".join(told)


@pytest.mark.parametrize(
    ("address", "page", "expected"),
    [
        ("http://127.0.0.1:3000", "http://127.0.0.1:3001/overview", "http://127.0.0.1:3000"),
        ("http://0.0.0.0:3000", "http://box.example:3001/", "http://box.example:3000"),
        ("http://127.0.0.1:3000", "https://quant.example.com/", "http://quant.example.com:3000"),
        ("http://[::]:3000", "http://[fe80::1]:3001/", "http://[fe80::1]:3000"),
        ("http://0.0.0.0:3000", "", "http://127.0.0.1:3000"),
    ],
)
def test_dagster_is_linked_by_the_name_that_the_browser_uses(address, page, expected):
    assert shared.reachable(address, page) == expected


def test_two_models_are_laid_side_by_side(finished, monkeypatch):
    found = run("models", finished, monkeypatch)
    n = len(found.get("vega_lite_chart"))
    beside = next(box for box in found.selectbox if box.label == "Beside it")
    beside.set_value(finished.workspace.meta.models("up_5d")[0].model_id).run()
    assert not found.exception
    assert len(found.get("vega_lite_chart")) == n + 1
    assert "Side by side" in words(found)


def test_a_damaged_file_is_told_with_what_mends_it(used, monkeypatch):
    for file in (used.root / "data" / "published" / "judged").glob("*.parquet"):
        file.write_bytes(file.read_bytes()[:-30])
    found = run("outcomes", used, monkeypatch)
    assert "quant reconcile" in found.error[0].value


def test_a_writer_is_named_and_nobody_waits(used, monkeypatch):
    with held(used.root / "data" / "quant.duckdb.lock", "backfill", 0):
        for page in PAGES:
            found = run(page, used, monkeypatch)
            assert not found.error
            assert f"process {os.getpid()} (backfill" in words(found)


def test_outcomes_can_be_cut_to_a_period(finished, monkeypatch):
    found = run("outcomes", finished, monkeypatch)

    def n_sessions() -> int:
        return int(next(m.value for m in found.metric if m.label == "Sessions"))

    whole = n_sessions()
    first, _ = found.date_input[0].value
    found.date_input[0].set_value((first, first.replace(day=28))).run()
    assert not found.exception
    assert 0 < n_sessions() < whole


def test_sessions_in_sample_for_the_settings_count_only_if_asked_for(used, monkeypatch):
    task = used.workspace.settings.task("up_5d")
    judged = shown.read_judged(used.workspace, task)
    for file in sorted((used.root / "data" / "published" / "judged").glob("*.parquet")):
        rows = pd.read_parquet(file)
        after = pd.to_datetime(rows["ts"]) >= judged["ts"][30]
        rows.assign(settings_known_before=after).to_parquet(file, index=False)
    found = run("outcomes", used, monkeypatch)
    values = {m.label: m.value for m in found.metric}
    assert values["Sessions"] == str(len(judged) - 30)
    assert values["RankIC"].startswith(f"{judged['rank_ic'].iloc[30:].mean():+.3f}")
    assert "Too few sessions for these standard errors" in words(found)
    assert not found.warning
    found.segmented_control[1].set_value("all").run()
    assert {m.label: m.value for m in found.metric}["Sessions"] == str(len(judged))
    assert f"30 of {len(judged)} sessions, shaded below" in found.warning[0].value
    for file in sorted((used.root / "data" / "published" / "judged").glob("*.parquet")):
        pd.read_parquet(file).assign(settings_known_before=False).to_parquet(file, index=False)
    assert f"{len(judged)} of" in run("outcomes", used, monkeypatch).warning[0].value
    assert "in sample for the settings" in words(run("overview", used, monkeypatch))


def test_nothing_is_written_by_looking(used, monkeypatch):
    def state() -> dict[str, int]:
        files = [p for p in used.root.rglob("*") if p.is_file() and "sqlite" not in p.name]
        return {str(p): p.stat().st_mtime_ns for p in files}

    before = state()
    for page in PAGES:
        run(page, used, monkeypatch)
    assert state() == before
