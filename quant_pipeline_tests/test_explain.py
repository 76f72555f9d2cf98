"""A score taken apart adds up to itself, and the planted reason is found."""

import numpy as np
import pandas as pd
import pytest

from quant_pipeline.chain.explain import explain_model, explain_prediction
from quant_pipeline.errors import GateError, NoData
from quant_pipeline.ml.score import explain_rows, score_rows
from quant_pipeline_tests.homes import sample_market


def test_contributions_and_base_add_up_to_the_raw_score(finished) -> None:
    ws = finished.workspace
    rows = finished.rows("SELECT task_id, symbol, ts, score FROM predictions ORDER BY ALL")
    for task_id, symbol, ts, score in rows[:: len(rows) // 7]:
        found = explain_prediction(ws, ws.settings.task(task_id), symbol, ts)
        raw = found["base"] + sum(c["adds"] for c in found["contributions"])
        assert raw == pytest.approx(found["raw"])
        usual = 1 / (1 + np.exp(-raw)) if task_id == "up_5d" else raw
        assert usual == pytest.approx(score, abs=1e-9)
        assert found["score"] == found["score_now"] == score
        sizes = [abs(c["adds"]) for c in found["contributions"]]
        assert sizes == sorted(sizes, reverse=True)
        assert len(sizes) == 158


def test_values_are_those_of_the_features(finished) -> None:
    ws = finished.workspace
    task_id, symbol, ts = finished.rows("SELECT task_id, symbol, ts FROM predictions LIMIT 1")[0]
    found = explain_prediction(ws, ws.settings.task(task_id), symbol, ts)
    for row in found["contributions"][:5]:
        stored = finished.rows(
            f'SELECT "{row["feature"]}" FROM features_daily WHERE symbol = ? AND ts = ?', symbol, ts
        )
        assert stored == [(row["value"],)]


def test_a_restated_price_is_told(used) -> None:
    bars = sample_market()
    task_id, symbol, ts = used.rows(
        "SELECT task_id, symbol, ts FROM predictions WHERE task_id = 'ret_5d' "
        "ORDER BY ts DESC, symbol LIMIT 1"
    )[0]
    day = bars[(bars["symbol"] == symbol) & (bars["ts"] == pd.Timestamp(ts))].copy()
    for name in ("close", "adj_close", "high"):
        day[name] *= 1.2
    used.ingest(day)
    with pytest.raises(GateError, match="features_daily of 2016-08 is stale"):
        explain_prediction(used.workspace, used.workspace.settings.task(task_id), symbol, ts)
    used.run(["features_daily"], "2016-08")
    found = explain_prediction(used.workspace, used.workspace.settings.task(task_id), symbol, ts)
    assert found["score"] != found["score_now"]


def test_a_score_that_is_not_there_is_an_error_that_says_where_to_look(finished) -> None:
    ws = finished.workspace
    with pytest.raises(NoData, match=r"NOPE has no score of up_5d on .*quant predictions --task"):
        explain_prediction(ws, ws.settings.task("up_5d"), "NOPE", ws.last_session())


def test_a_model_is_explained_by_what_moves_its_scores(finished) -> None:
    ws = finished.workspace
    model = ws.meta.models("ret_5d")[-1]
    rows = explain_model(ws, model)
    assert len(rows) == 158
    shap = [row["mean_shap"] for row in rows]
    assert shap == sorted(shap, reverse=True)
    assert shap[0] > 0
    for kind in ("gain", "split", "fold_gain", "fold_split"):
        assert sum(row[kind] for row in rows) == pytest.approx(1.0)
    by_gain = sorted(rows, key=lambda row: -row["gain"])
    assert rows[0]["feature"] in {row["feature"] for row in by_gain[:5]}


def test_explained_rows_of_several_boosters_are_their_mean(finished) -> None:
    ws = finished.workspace
    models = ws.meta.models("ret_5d")[:2]
    texts = [ws.files.read(m.model_id)["boosters"][0] for m in models]
    names = tuple(models[0].features)
    x = np.random.default_rng(0).standard_normal((20, 158)).astype(np.float32)
    both = explain_rows(texts, x, names, names)
    np.testing.assert_allclose(
        both, np.mean([explain_rows([t], x, names, names) for t in texts], axis=0), rtol=1e-12
    )
    np.testing.assert_allclose(both.sum(axis=1), score_rows(texts, x, names, names), rtol=1e-9)
    assert explain_rows(texts, x[:0], names, names).shape == (0, 159)
