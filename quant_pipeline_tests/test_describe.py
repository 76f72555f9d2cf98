"""What every partition tells of itself: numbers that the UI plots, reasons, cost, and pictures."""

import base64
import math
import re
import xml.etree.ElementTree as ET
from typing import Any

import dagster as dg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_pipeline.chain import pictures_data
from quant_pipeline.chain.pictures_data import by_month
from quant_pipeline.defs import pictures
from quant_pipeline.defs.instance import open_instance
from quant_pipeline.defs.meter import PEAK_MEMORY, SECONDS, Meter
from quant_pipeline.settings import Home
from quant_pipeline_tests.homes import DATA, LEARNING, SCORES, SmallHome

KEY, NEWEST = "2016-07", "2016-08"
RECORDED = [*DATA, *LEARNING, *SCORES]
IMAGE = re.compile(r"!\[([^\]]+)\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)")
Told = dict[tuple[str, str], dict[str, Any]]


def told_by(instance: dg.DagsterInstance, assets: list[str]) -> Told:
    """The metadata of each asset's newest materialization of each partition."""
    found: Told = {}
    for asset in assets:
        for record in instance.fetch_materializations(dg.AssetKey(asset), limit=500).records:
            metadata = record.asset_materialization.metadata
            values = {name: entry.value for name, entry in metadata.items()}
            found.setdefault((asset, str(record.partition_key)), values)
    return found


def images(markdown: str) -> dict[str, str]:
    """Pictures by their titles."""
    return {title: base64.b64decode(data).decode() for title, data in IMAGE.findall(markdown)}


def words(svg: str) -> str:
    return " ".join(node.text or "" for node in ET.fromstring(svg).iter() if node.text)


@pytest.fixture(scope="module")
def told(finished) -> Told:
    with open_instance(Home(finished.root)) as instance:
        return told_by(instance, RECORDED)


def test_every_partition_tells_its_rows_seconds_and_memory(told) -> None:
    assert {asset for asset, _ in told} == set(RECORDED)
    for place, metadata in told.items():
        assert metadata[SECONDS] >= 0, place
        assert 50 < metadata[PEAK_MEMORY] < 20_000, place
        names = [name for name in metadata if name.split("/")[-1] in ("rows", "row_count")]
        if place[0] != "prediction_outcomes":
            assert names, place
        assert all(isinstance(metadata[name], int) for name in names), place


def test_no_picture_failed_and_no_number_is_missing(told) -> None:
    for place, metadata in told.items():
        for name, value in metadata.items():
            assert not str(value).startswith(pictures.NOT_DRAWN), (place, name, value)
            assert not (isinstance(value, float) and not math.isfinite(value)), (place, name)


def test_numbers_have_the_same_names_in_every_partition(told) -> None:
    """So the UI plots them by partition."""
    for asset in ("features_daily", "training_frame", "predictions"):
        found = {
            tuple(sorted(n for n, v in metadata.items() if isinstance(v, int | float)))
            for (name, _), metadata in told.items() if name == asset
        }  # fmt: skip
        assert len(found) == 1, asset


def test_dropped_rows_and_trainable_ones_add_up_to_the_labels(finished, told) -> None:
    for task in finished.workspace.tasks():
        rows = finished.rows(
            "SELECT strftime(known_at, '%Y-%m') AS key, count(*) FROM labels WHERE task_id = ? "
            "GROUP BY key",
            task.task_id,
        )
        for key, n in rows:
            metadata = told["training_frame", key]
            dropped = [v for k, v in metadata.items() if k.startswith(f"{task.task_id}/dropped/")]
            assert len(dropped) == 6
            assert metadata[f"{task.task_id}/rows"] + sum(dropped) == n


def test_labels_tell_of_each_task_for_itself(finished, told) -> None:
    for task in finished.workspace.tasks():
        ((n, mean),) = finished.rows(
            "SELECT count(label), avg(label) FROM labels WHERE task_id = ? "
            "AND strftime(known_at, '%Y-%m') = ?",
            task.task_id, KEY,
        )  # fmt: skip
        metadata = told["labels", KEY]
        assert metadata[f"{task.task_id}/rows"] == n
        assert metadata[f"{task.task_id}/mean_label"] == pytest.approx(mean, rel=1e-5)


def test_a_model_has_pictures_with_titles_axes_and_units(told) -> None:
    for task_id, is_class in (("up_5d", True), ("ret_5d", False)):
        found = images(told["lgbm_model", KEY][f"{task_id}/pictures"])
        titles = " | ".join(found)
        assert len(found) == 3 + is_class
        assert ("Calibration" in titles) == is_class
        for title in ("RankIC", "5-session return by fifth of the score, gross", "Importance"):
            assert title in titles
        for title, svg in found.items():
            assert title in words(svg)
            assert len(svg) < 22_000, "30 KB as base64"
        returns = next(svg for title, svg in found.items() if "return" in title)
        assert "%" in words(returns)
        assert "standard error" in words(returns)


def test_the_folds_of_a_model_are_a_table(told) -> None:
    table = told["lgbm_model", KEY]["up_5d/folds"].splitlines()
    assert table[0].startswith("| fold | test_start | test_end | n_train |")
    assert len(table) == 2 + 2, "two folds"


def test_outcomes_of_the_newest_partition_of_a_run_have_pictures(told) -> None:
    found = images(told["prediction_outcomes", NEWEST]["up_5d/pictures"])
    assert any("trailing year" in title for title in found)
    assert "newest partition" in told["prediction_outcomes", KEY]["up_5d/pictures"]


def test_live_and_backfilled_scores_have_pictures_of_their_own(finished: SmallHome, tmp_path):
    home = finished.copy(tmp_path / "home")
    home.change_series("UPDATE predictions SET origin = 'live' WHERE ts >= DATE '2016-07-27'")
    with home.runner() as runner:
        runner.materialize(["prediction_outcomes"], NEWEST, NEWEST)
        told = told_by(runner.instance, ["prediction_outcomes"])
    titles = list(images(told["prediction_outcomes", NEWEST]["up_5d/pictures"]))
    for origin in ("backfill", "live"):
        assert sum(f"RankIC of {origin} scores" in title for title in titles) == 1


def test_a_picture_that_fails_costs_the_step_nothing(used: SmallHome, monkeypatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("no picture today")

    for name in ("judge_tests", "_importance", "judge_outcomes"):
        monkeypatch.setattr(pictures, name, broken)
    was = used.state()
    with used.runner() as runner:
        runner.materialize(["lgbm_model"], KEY, KEY)
        runner.materialize(["prediction_outcomes"], NEWEST, NEWEST)
        told = told_by(runner.instance, ["lgbm_model", "prediction_outcomes"])
    for place in (("lgbm_model", KEY), ("prediction_outcomes", NEWEST)):
        why = told[place]["up_5d/pictures"]
        assert why == "not drawn: ZeroDivisionError: no picture today"
    assert used.state() == was


def test_quantile_returns_are_those_of_the_stored_scores(finished) -> None:
    ws = finished.workspace
    for task in ws.tasks():
        judged = pictures_data.judge_outcomes(ws, task, KEY, "backfill")
        expected = finished.rows(
            "SELECT q, avg(m) FROM (SELECT ts, q, avg(fwd_return) AS m FROM ("
            "SELECT ts, fwd_return, floor((2 * first + n_tied - 2) * 5 / (2 * n)) + 1 AS q "
            "FROM (SELECT p.ts, fwd_return, "
            "rank() OVER (PARTITION BY p.ts ORDER BY score) AS first, "
            "count(*) OVER (PARTITION BY p.ts, score) AS n_tied, "
            "count(*) OVER (PARTITION BY p.ts) AS n FROM predictions p JOIN labels l "
            "USING (symbol, ts, task_id) WHERE task_id = ? AND origin = 'backfill' "
            "AND l.reason IS NULL AND strftime(known_at, '%Y-%m') = ?)) GROUP BY ts, q) "
            "GROUP BY q ORDER BY q",
            task.task_id, KEY,
        )  # fmt: skip
        assert [r["quantile"] for r in judged.quantiles] == [q for q, _ in expected]
        means = [r["mean"] for r in judged.quantiles]
        assert means == pytest.approx([m for _, m in expected])
        assert bool(judged.calibration) == (task.kind == "classification")


@given(st.lists(st.one_of(st.floats(-1, 1), st.just(math.nan)), max_size=300))
def test_months_hold_every_defined_session_once(values) -> None:
    ts = np.datetime64("2015-12-20") + np.arange(len(values))
    found = np.array(values, np.float64)
    rows = by_month(ts, found)
    defined = found[np.isfinite(found)]
    assert sum(row["n"] for row in rows) == len(defined)
    assert sum(row["mean"] * row["n"] for row in rows) == pytest.approx(defined.sum(), abs=1e-9)
    if rows:
        assert rows[-1]["sum"] == pytest.approx(defined.sum(), abs=1e-9)
    assert [row["month"] for row in rows] == sorted({row["month"] for row in rows})


def test_peak_memory_is_that_of_the_step_and_seconds_are_shared() -> None:
    meter = Meter()
    before = meter.read()[PEAK_MEMORY]
    held = np.ones(40_000_000)  # 305 MiB
    del held
    after = meter.read(2)
    assert after[PEAK_MEMORY] > before + 250
    assert after[SECONDS] <= meter.read()[SECONDS]


def test_a_picture_without_anything_to_show_is_left_out() -> None:
    nothing = pictures_data.Judged([], [])
    empty = np.array([], "datetime64[D]"), np.array([])
    said = pictures.outcome_pictures("live", *empty, 5, nothing)
    assert said == "no session of live scores has a known outcome"
    alone = np.array(["2016-01-04"], "datetime64[D]"), np.array([0.1])
    assert len(images(pictures.outcome_pictures("live", *alone, 5, nothing))) == 1
