"""A home in a notebook: frames out, nothing written, no Dagster."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import quant_pipeline as qp
from quant_pipeline.errors import NoData, SettingsError, StoreError
from quant_pipeline_tests.homes import SmallHome


@pytest.fixture
def opened(finished: SmallHome):
    return qp.open(finished.root)


def test_predictions_are_those_that_are_stored(finished, opened):
    rows = opened.predictions(task="up_5d")
    stored = finished.rows("SELECT count(*), sum(score) FROM predictions WHERE task_id = 'up_5d'")
    assert (len(rows), rows["score"].sum()) == (stored[0][0], pytest.approx(stored[0][1]))
    assert rows["ts"].dtype.kind == "M"
    some = opened.predictions("up_5d", start="2016-06-01", end="2016-06-30", symbol="S001")
    assert set(some["symbol"]) == {"S001"}
    assert some["ts"].between("2016-06-01", "2016-06-30").all()
    first, last = pd.Timestamp("2016-06-01"), np.datetime64("2016-06-30")
    again = opened.predictions("up_5d", first, last, symbol=" s001")
    pd.testing.assert_frame_equal(again, some)
    assert opened.predictions(arrow=True).num_rows == 2 * len(rows)


def test_a_model_scores_a_frame_as_it_scored_then(opened):
    rows = opened.predictions("ret_5d")
    newest = rows[rows["ts"] == rows["ts"].max()].sort_values("symbol")
    model = opened.load_model(newest["model_id"].iloc[0][:16])
    names = ", ".join(f'"{name}"' for name in model.features)
    frame = opened.sql(
        f"SELECT symbol, {names} FROM features_daily WHERE ts = ? AND in_universe ORDER BY symbol",
        newest["ts"].iloc[0].date(),
    )
    shuffled = frame[["symbol", *reversed(model.features)]].set_index("symbol")
    found = model.score(shuffled)
    assert found.index.to_list() == newest["symbol"].to_list()
    assert found.to_numpy() == pytest.approx(newest["score"].to_numpy(), abs=0)
    with pytest.raises(StoreError, match="lacks 1 of"):
        model.score(shuffled.drop(columns=model.features[3]))


def test_examples_are_those_that_became_known(opened):
    frame = opened.training_frame("up_5d", start="2016-05-01", end="2016-05-31")
    assert frame["known_at"].between("2016-05-01", "2016-05-31").all()
    assert (frame["ts"] < frame["known_at"]).all()
    feature = opened.load_model(opened.models()["model_id"][0]).features[0]
    few = opened.training_frame("up_5d", "2016-05-01", "2016-05-31", columns=["label", feature])
    assert list(few.columns) == ["symbol", "ts", "known_at", "label", feature]
    pd.testing.assert_series_equal(few[feature], frame[feature])


def test_models_and_outcomes_are_frames(opened):
    models = opened.models("up_5d")
    assert list(models["asof"]) == sorted(models["asof"])
    assert {"rank_ic", "rank_ic_se", "accuracy_base"} <= set(models.columns)
    judged = opened.outcomes("up_5d")
    returns = opened.returns("up_5d")
    one = returns[returns["ts"] == returns["ts"].iloc[0]]
    expected = one["score"].corr(one["fwd_return"], method="spearman")
    mine = judged.set_index("ts").loc[pd.Timestamp(returns["ts"].iloc[0]), "rank_ic"]
    assert float(mine) == pytest.approx(expected)
    assert np.isfinite(returns["fwd_return"]).all()


def test_what_is_not_there_is_told(opened, tmp_path, workspace):
    with pytest.raises(SettingsError, match="quant init"):
        qp.open(tmp_path / "nothing")
    with pytest.raises(SettingsError, match="Did you mean up_5d"):
        opened.predictions(task="up_5")
    with pytest.raises(NoData, match=r"No score of S0O4.*Did you mean S0"):
        opened.predictions(task="up_5d", symbol="s0o4")
    for day in ("2020-13-01", "05/06/2016 at noon", "2016", 5.5j, np.datetime64("NaT")):
        with pytest.raises(SettingsError, match=r"is no date\. Write it like 2021-11-30"):
            opened.predictions(start=day)
    with pytest.raises(
        SettingsError, match=r"No column of training_frame labl\. Did you mean label"
    ):
        opened.training_frame("up_5d", columns=["labl"])
    empty = qp.open(workspace.home.root)
    for ask in (empty.predictions, lambda: empty.training_frame("up_5d")):
        with pytest.raises(NoData, match="quant"):
            ask()
    assert empty.models().empty


def test_no_dagster_is_imported_and_nothing_is_written(finished):
    files = {p: p.stat().st_mtime_ns for p in finished.root.rglob("*.parquet")}
    code = (
        "import sys, quant_pipeline as qp\n"
        f"home = qp.open({str(finished.root)!r})\n"
        "home.predictions('up_5d'); home.models(); home.outcomes('ret_5d')\n"
        "home.training_frame('up_5d', columns=['label'])\n"
        "slow = {'dagster', 'streamlit', 'altair', 'typer'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert files == {p: p.stat().st_mtime_ns for p in finished.root.rglob("*.parquet")}
