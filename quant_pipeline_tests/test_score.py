"""Scoring: the same row gets the same score, and only columns that the model knows."""

import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quant_pipeline.errors import DegenerateData, ModelFileError
from quant_pipeline.ml.score import score_rows, session_percentile

pytestmark = pytest.mark.filterwarnings("error")

NAMES = ("momentum", "reversal", "volatility")


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((600, 3)).astype(np.float32)
    x[::17, 1] = np.nan
    x.flags.writeable = False
    return x


@pytest.fixture(scope="module")
def booster_text(rows: np.ndarray) -> str:
    parameters = {"objective": "binary", "verbosity": -1, "seed": 1, "num_threads": 1}
    label = (rows[:, 0] > 0).astype(float)
    return lgb.train(
        parameters, lgb.Dataset(rows, label, feature_name=list(NAMES)), 20
    ).model_to_string()


@settings(deadline=None)
@given(data=st.data())
def test_a_row_has_one_score_whatever_it_is_scored_with(rows, booster_text, data):
    chosen = data.draw(st.lists(st.integers(0, 599), max_size=50))
    threads = data.draw(st.sampled_from([1, 2, 3]))
    everything = score_rows([booster_text], rows, NAMES, NAMES)
    some = score_rows([booster_text], rows[chosen], NAMES, NAMES, threads=threads)
    assert some.dtype == np.float64
    np.testing.assert_array_equal(some, everything[chosen])


def test_column_major_rows_have_the_same_scores(rows, booster_text):
    expected = score_rows([booster_text], rows, NAMES, NAMES)
    found = score_rows([booster_text], np.asfortranarray(rows), NAMES, NAMES)
    np.testing.assert_array_equal(found, expected)


def test_scores_are_probabilities_and_nothing_is_printed(rows, booster_text, capfd):
    score = score_rows([booster_text], rows, NAMES, NAMES)
    assert ((score > 0) & (score < 1)).all()
    assert np.corrcoef(score, rows[:, 0] > 0)[0, 1] > 0.9
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (("momentum", "volatility", "reversal"), "Feature 2 is volatility, but .* reversal"),
        (("momentum", "reversal", "Volatility"), "Feature 3 is Volatility, but .* volatility"),
        (("momentum", "reversal"), "Feature 3 is missing, but .* volatility"),
        ((*NAMES, "extra"), "Feature 4 is extra, but .* no such column"),
    ],
)
def test_other_columns_are_refused_with_the_first_difference(rows, booster_text, names, difference):
    with pytest.raises(ModelFileError, match=difference):
        score_rows([booster_text], rows, names, NAMES)


def test_a_text_of_other_features_than_the_registry_says_is_refused(rows, booster_text):
    other = ("a", "b", "c")
    with pytest.raises(ModelFileError, match="Feature 1 is a, but the model text has momentum"):
        score_rows([booster_text], rows, other, other)


def test_a_matrix_of_another_width_is_refused(rows, booster_text):
    with pytest.raises(ModelFileError, match=r"shape \(600, 2\)"):
        score_rows([booster_text], rows[:, :2], NAMES, NAMES)


def test_an_infinite_feature_is_refused_by_name(rows, booster_text):
    spoiled = rows.copy()
    spoiled[5, 2] = np.inf
    with pytest.raises(DegenerateData, match="volatility is infinite"):
        score_rows([booster_text], spoiled, NAMES, NAMES)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3)), max_size=30))
def test_percentiles_are_average_ranks_per_session(rows):
    ts = np.datetime64("2024-01-02") + np.array([day for day, _ in rows], dtype=np.int64)
    score = np.array([value for _, value in rows], dtype=np.float64)
    percentile = session_percentile(ts, score)
    for day in np.unique(ts):
        members = ts == day
        expected = stats.rankdata(score[members], method="average") / members.sum()
        np.testing.assert_array_equal(percentile[members], expected)
    assert ((percentile > 0) & (percentile <= 1)).all()


def test_a_missing_score_has_no_percentile_and_is_not_counted():
    ts = np.array(["2024-01-02"] * 3, dtype="datetime64[D]")
    percentile = session_percentile(ts, np.array([0.2, np.nan, 0.1]))
    np.testing.assert_array_equal(percentile, [1.0, np.nan, 0.5])
