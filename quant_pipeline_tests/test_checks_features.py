"""Checks of features: silent on a sane home, and each seen failing on bad values."""

import numpy as np
import pytest

from quant_pipeline.chain.checks.features import check_features
from quant_pipeline.chain.checks.result import CHECKS, Checked
from quant_pipeline.errors import DegenerateData
from quant_pipeline.ml.drift import population_stability
from quant_pipeline_tests.homes import SmallHome

KEY = "2016-06"
KEYS = ["2016-04", "2016-05", KEY, "2016-07"]
IN_JUNE = "ts BETWEEN '2016-06-01' AND '2016-06-30'"


def check(home: SmallHome, key: str = KEY) -> dict[str, Checked]:
    return {c.name: c for c in check_features(home.workspace, [key])}


def test_sane_features_pass_every_check_in_every_partition(finished):
    ws = finished.workspace
    keys = ws.grid.keys("2015-06", "2016-08")
    found = check_features(ws, keys)
    assert {c.name for c in found} == set(CHECKS["features_daily"])
    assert [(c.key, c.words) for c in found if not c.passed] == []
    assert len(found) == 3 * len(keys)


def test_a_range_of_partitions_tells_what_each_alone_tells(finished):
    together = {(c.name, c.key): c for c in check_features(finished.workspace, KEYS)}
    for key in KEYS:
        for name, alone in check(finished, key).items():
            mine = together[name, key]
            assert (mine.passed, mine.words) == (alone.passed, alone.words)
            for number, value in alone.numbers.items():
                if "psi" not in number and number != "drifted_share":  # another fine grid
                    assert mine.numbers[number] == value
            if name == "features_have_not_drifted":
                assert mine.numbers["median_psi"] == pytest.approx(
                    alone.numbers["median_psi"], abs=0.05
                )


def test_an_infinite_value_is_an_error(used):
    used.change_series(
        f"UPDATE features_daily SET KMID = 'inf' WHERE symbol = 'S001' AND {IN_JUNE}"
    )
    found = check(used)["features_are_finite"]
    assert (found.passed, found.severity) == (False, "ERROR")
    n = used.rows(f"SELECT count(*) FROM features_daily WHERE isinf(KMID) AND {IN_JUNE}")[0][0]
    assert found.numbers["infinite_values"] == n > 10
    assert "KMID" in found.words
    assert check(used, "2016-07")["features_are_finite"].passed


def test_scoring_raises_on_an_infinite_value_whatever_the_check_said(used):
    used.change_series(f"DELETE FROM predictions WHERE {IN_JUNE}")
    used.change_series("UPDATE features_daily SET KMID = 'inf' WHERE ts = '2016-06-15'")
    with pytest.raises(DegenerateData, match="KMID is infinite"):
        used.run(["predictions"], KEY)
    assert used.rows(f"SELECT count(*) FROM predictions WHERE {IN_JUNE}") == [(0,)]


@pytest.mark.parametrize("nothing", ["'nan'", "NULL"])
def test_a_feature_that_is_mostly_missing_is_a_warning(used, nothing):
    used.change_series(
        f"UPDATE features_daily SET RSV20 = {nothing} WHERE {IN_JUNE} AND ts > '2016-06-10'"
    )
    found = check(used)["features_are_filled"]
    assert (found.passed, found.severity) == (False, "WARN")
    assert found.numbers["features_with_too_few"] == 1
    assert found.numbers["largest_null_share"] > 0.5
    assert "RSV20 (6" in found.words


def test_one_feature_of_another_meaning_has_drifted(used):
    assert check(used)["features_have_not_drifted"].passed
    used.change_series(f"UPDATE features_daily SET KMID = KMID + 10 WHERE {IN_JUNE}")
    found = check(used)["features_have_not_drifted"]
    assert not found.passed
    assert found.numbers["largest_psi_of"] == "KMID"
    assert found.numbers["largest_psi"] > 4


def test_a_source_that_changed_makes_most_features_drift(used):
    names = [name for name, *_ in used.rows("DESCRIBE features_daily")
             if name not in ("symbol", "ts", "in_universe", "lacks_history")]  # fmt: skip
    sums = ", ".join(f'"{n}" = 3 * "{n}" + 0.5' for n in names)
    used.change_series(f"UPDATE features_daily SET {sums} WHERE {IN_JUNE}")
    found = check(used)["features_have_not_drifted"]
    assert not found.passed
    assert found.numbers["drifted_share"] > 0.75


def test_the_index_of_a_feature_is_that_of_its_sampled_rows(finished):
    """Against exact quantiles of the same sessions, read apart."""
    found = check(finished)["features_have_not_drifted"]
    name = found.numbers["largest_psi_of"]
    sessions = [d for (d,) in finished.rows("SELECT ts FROM sessions WHERE is_session ORDER BY ts")]
    june = [i for i, d in enumerate(sessions) if (d.year, d.month) == (2016, 6)]
    window = range(max(june[0] - 250, 0), june[-1] + 1)
    chosen = {sessions[i] for i in window if i % 5 == 0} | {sessions[june[-1]]}  # the newest, too
    rows = finished.rows(f'SELECT ts, "{name}" FROM features_daily WHERE in_universe')
    old = np.array([v for d, v in rows if d in chosen and d < sessions[june[0]]])
    new = np.array([v for d, v in rows if d in chosen and sessions[june[0]] <= d])
    assert (len(old), len(new)) == (found.numbers["rows_before"], found.numbers["rows"])
    exact = population_stability(old, new)
    assert found.numbers["largest_psi"] == pytest.approx(exact, rel=0.25)
