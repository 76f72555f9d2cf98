"""Checks of scores and outcomes: each seen failing on what was damaged."""

import numpy as np
import pandas as pd
import pytest

from quant_pipeline.chain.checks.result import CHECKS, Checked
from quant_pipeline.chain.checks.scores import check_outcomes, check_predictions
from quant_pipeline.chain.proving import PROVED
from quant_pipeline_tests.homes import SCORES

KEY = "2016-06"
KEYS = ["2016-05", "2016-06", "2016-07"]
IN_JUNE = "ts BETWEEN '2016-06-01' AND '2016-06-30'"
LAST = "ts = '2016-06-30'"


def bad(home, keys=KEYS) -> dict[tuple[str, str, str], Checked]:
    found = check_predictions(home.workspace, keys)
    return {(c.name, c.key, c.task_id): c for c in found if not c.passed}


def test_a_finished_home_passes_every_check(finished):
    ws = finished.workspace
    keys = ws.grid.keys("2015-06", "2016-09")
    found = check_predictions(ws, keys)
    assert [(c.key, c.name, c.words) for c in found if not c.passed] == []
    assert {c.name for c in found} == set(CHECKS["predictions"]) - set(PROVED.values())
    assert {c.key for c in found} == set(keys)
    by_name = {(c.name, c.key, c.task_id): c for c in found}
    for key in KEYS:
        alone = check_predictions(ws, [key])
        assert [c for c in alone if by_name[c.name, c.key, c.task_id] != c] == []
    assert by_name["scores_are_reproduced", KEY, "up_5d"].numbers["scores"] > 15
    outcomes = check_outcomes(ws, keys)
    assert {c.name for c in outcomes} == set(CHECKS["prediction_outcomes"])
    assert all(c.passed for c in outcomes)


def test_a_score_by_a_model_that_knew_its_session_is_an_error(used):
    later = used.model_ids()["2016-07", "up_5d"][0]
    used.change_series(
        f"UPDATE predictions SET model_id = '{later}' WHERE task_id = 'up_5d' AND {LAST}"
    )
    found = bad(used)["scores_come_from_earlier_models", KEY, ""]
    assert (found.severity, found.numbers["bad"]) == ("ERROR", 1)
    assert f"2016-06-30 {later[:12]}" in found.words


def test_a_score_by_a_model_that_nobody_knows_is_an_error(used):
    used.change_series(f"UPDATE predictions SET model_id = 'feed' WHERE symbol = 'S001' AND {LAST}")
    found = check_predictions(used.workspace, ["2016-05", "2016-06"])
    names = {c.name for c in found if not c.passed and c.key == KEY}
    assert "scores_come_from_earlier_models" in names


def test_members_without_a_score_are_an_error(used):
    used.change_series(
        "DELETE FROM predictions WHERE ts = '2016-06-14' AND symbol < 'S005' AND task_id = 'up_5d'"
    )
    found = bad(used)
    assert set(found) == {("universe_is_scored", KEY, "up_5d")}
    (one,) = found.values()
    assert one.numbers["lowest_scored_share"] < 0.9
    assert "quant score --from 2016-06-14 --to 2016-06-14" in one.words


def test_a_served_partition_without_any_score_is_an_error(used):
    used.change_series(f"DELETE FROM predictions WHERE {IN_JUNE} AND task_id = 'ret_5d'")
    found = bad(used)["universe_is_scored", KEY, "ret_5d"]
    assert "has a champion" in found.words


def test_scores_that_are_all_alike_are_a_warning(used):
    used.change_series(
        "UPDATE predictions SET score = 0.5 WHERE ts = '2016-06-14' AND task_id = 'up_5d'"
    )
    found = bad(used)
    assert set(found) == {("scores_are_spread", KEY, "up_5d")}
    (one,) = found.values()
    assert (one.severity, one.numbers["lowest_distinct_share"] < 0.06) == ("WARN", True)


def test_a_symbol_scored_twice_by_two_models_is_an_error(used):
    other = used.model_ids()["2016-04", "up_5d"][0]
    used.change_series(
        f"INSERT INTO predictions SELECT * REPLACE ('{other}' AS model_id, "
        "DATE '2016-04-30' AS \"asof\") FROM predictions WHERE ts = '2016-06-14' "
        "AND symbol IN ('S001', 'S002') AND task_id = 'up_5d'"
    )
    found = bad(used)
    assert set(found) == {("scores_are_unique", KEY, "up_5d")}
    (one,) = found.values()
    assert (one.severity, one.numbers["duplicates"]) == ("ERROR", 2)
    assert "S001 2016-06-14" in one.words


def test_scores_of_another_size_have_drifted(used):
    used.change_series(
        f"UPDATE predictions SET score = score + 100 WHERE {IN_JUNE} AND task_id = 'ret_5d' "
        f"AND NOT ({LAST})"
    )
    found = bad(used)
    assert set(found) == {
        ("scores_have_not_drifted", KEY, "ret_5d"), ("scores_have_not_drifted", "2016-07", "ret_5d")
    }  # fmt: skip
    assert {c.severity for c in found.values()} == {"WARN"}


def test_a_score_that_differs_in_its_last_bit_is_an_error(used):
    ((score,),) = used.rows(
        f"SELECT score FROM predictions WHERE symbol = 'S001' AND task_id = 'up_5d' AND {LAST}"
    )
    used.change_series(
        f"UPDATE predictions SET score = ? WHERE symbol = 'S001' AND task_id = 'up_5d' AND {LAST}",
        float(np.nextafter(score, 1)),
    )
    found = bad(used)
    assert set(found) == {("scores_are_reproduced", KEY, "up_5d")}
    (one,) = found.values()
    assert (one.severity, one.numbers["different"]) == ("ERROR", 1)
    assert "from the same prices" in one.words


def test_scores_of_prices_restated_since_are_a_warning(used, market):
    restated = market[market["ts"] == pd.Timestamp(2016, 6, 30)].copy()
    restated["low"] *= 0.9
    used.ingest(restated)
    used.run(["features_daily"], "2016-06", "2016-07")
    found = bad(used, [KEY])["scores_are_reproduced", KEY, "up_5d"]
    assert found.severity == "WARN"
    assert "restated since, in batch 2" in found.words


def test_a_lost_feature_leaves_nothing_to_make_anew(used):
    used.change_settings("exclude = []", 'exclude = ["KMID"]')
    used.run(["features_daily"], "2015-06", "2016-08")
    found = {c.task_id: c for c in check_predictions(used.workspace, [KEY])
             if c.name == "scores_are_reproduced"}  # fmt: skip
    assert found["up_5d"].passed
    assert found["up_5d"].words.startswith("Cannot be made anew: KMID")


def test_rank_ic_far_under_its_history_is_a_warning(used):
    used.change_settings("threads = 1", "threads = 1\n[checks]\nmin_history = 2")
    found = {(c.key, c.task_id): c for c in check_outcomes(used.workspace, ["2016-07", "2016-08"])}
    assert all(c.passed for c in found.values())
    used.change_series(
        "UPDATE prediction_outcomes SET rank_ic = -0.9 WHERE task_id = 'up_5d' "
        "AND known_at >= '2016-08-01'"
    )
    (one,) = [c for c in check_outcomes(used.workspace, ["2016-07", "2016-08"]) if not c.passed]
    assert (one.key, one.task_id, one.severity) == ("2016-08", "up_5d", "WARN")
    assert one.numbers["rank_ic"] == pytest.approx(-0.9)
    assert one.numbers["earlier_partitions"] == 3


def test_a_run_of_scores_records_its_checks(used):
    used.run(SCORES, KEY)
    stored = used.workspace.meta.check_results("predictions", KEY)
    assert {r.name for r in stored} == set(CHECKS["predictions"]) - set(PROVED.values())
