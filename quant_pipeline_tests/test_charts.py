"""Every chart: words for who cannot see it, at most three series, an SVG that is not empty."""

import numpy as np
import pandas as pd
import pytest
import vl_convert

from quant_pipeline.faces import charts, model_charts

N = 120


@pytest.fixture(scope="module")
def judged() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    names = ("ic", "rank_ic", "turnover", "gross", "net")
    return pd.DataFrame(
        {"ts": pd.bdate_range("2020-01-01", periods=N), "settings_known_before": np.arange(N) > 40}
        | {name: rng.normal(0.02, 0.1, N) for name in names}
    )


ROWS = pd.DataFrame({"quantile": [1, 2, 3], "mean": [-0.01, 0.0, 0.02], "se": [0.01, 0.01, 0.01],
                     "n": [5, 5, 5]})  # fmt: skip
MONTHS = pd.DataFrame({"year": [2020, 2020, 2021], "month": [1, 2, 1], "mean": [0.1, -0.2, 0.0],
                       "n": [20, 20, 3]})  # fmt: skip
FOLD = {"fold": 1, "train_start": "2018-01-02", "train_end": "2019-05-14", "n_purged": 70,
        "stop_start": "2019-05-15", "stop_end": "2019-08-14", "test_start": "2019-08-15",
        "test_end": "2019-11-06", "train_kept_end": "2019-05-06",
        "stop_kept_end": "2019-08-06"}  # fmt: skip
SHARES = {"A": 0.6, "B": 0.4}
IMPORTANCE = {"gain": SHARES, "fold_gain": SHARES, "fold_gain_std": {"A": 0.1, "B": 0.2}}
BINS = [{"low": 0.4, "high": 0.5, "n": 10, "mean_score": 0.45, "share_of_ones": 0.5}]
SCORE = {"symbol": "AC", "ts": "2021-01-04", "score": 0.51,
         "contributions": [{"feature": "A", "value": None, "adds": 0.1}]}  # fmt: skip
CHAMPIONS = pd.DataFrame({"task": ["up_5d"], "model": ["ab"], "why": ["first"],
                          "kind": ["same recipe"], "from": pd.to_datetime(["2020-01-01"]),
                          "to": pd.to_datetime(["2020-02-01"])})  # fmt: skip


def every(judged: pd.DataFrame) -> dict[str, charts.Chart]:
    """One of each kind."""
    money = pd.DataFrame({"ts": judged["ts"], "gross": 1.0, "net": 0.9, "drawdown": -0.1})
    symbol = pd.DataFrame({"ts": judged["ts"], "score_percentile": 0.5, "fwd_return": 0.01})
    series = pd.DataFrame({"ts": judged["ts"], "rank_ic": 0.1, "model": "ab"})
    coverage = pd.DataFrame({"ts": judged["ts"], "n_bars": 20, "is_session": np.arange(N) > 3})
    parts = pd.DataFrame({"partition": ["2020-01", "2020-02"], "a": [0.1, 0.2], "b": [1.0, None]})
    return {
        "by_session": charts.by_session(judged, "rank_ic", "RankIC", "RankIC"),
        "cumulative": charts.cumulative(judged, "sum"),
        "heat_map": charts.heat_map(MONTHS, "months"),
        "with_errors": charts.with_errors(ROWS, "quantile", "fifth", "return", "fifths"),
        "capital_lines": charts.capital_lines(money, "capital"),
        "drawdown": charts.drawdown(money, "drawdown"),
        "timeline_of_folds": model_charts.timeline_of_folds([FOLD]),
        "importance_bars": model_charts.importance_bars(IMPORTANCE),
        "calibration": model_charts.calibration(BINS, "calibration"),
        "champions_line": model_charts.champions_line(CHAMPIONS),
        "symbol_scores": model_charts.symbol_scores(symbol, "AC"),
        "symbol_returns": model_charts.symbol_returns(symbol, "AC", 5),
        "contributions": model_charts.contributions(SCORE),
        "two_models": model_charts.two_models(series),
        "coverage_line": model_charts.coverage_line(coverage),
        "counted": model_charts.counted(
            pd.DataFrame({"reason": ["x"], "n": [3]}), "reason", "by reason"
        ),
        "by_partition": model_charts.by_partition(parts, {"a": "A", "b": "B"}, "y", "parts"),
    }


def test_no_chart_is_left_out_here(judged):
    made = {
        name for module in (charts, model_charts) for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
        and not name.startswith("_")
    }  # fmt: skip
    assert made - {"titled", "time_axis", "zero", "thinned"} == set(every(judged))


def test_every_chart_has_words_and_draws_something(judged):
    for name, chart in every(judged).items():
        spec = chart.to_dict()
        assert len(spec["description"]) > 12, name
        svg = vl_convert.vegalite_to_svg(spec)
        assert svg.count("<path") > 3, name


@pytest.mark.parametrize("n", [10, 800, 801, 5000])
def test_long_series_are_thinned_and_keep_their_ends(n):
    rows = pd.DataFrame({"ts": pd.bdate_range("2000-01-03", periods=n), "x": np.arange(n) / n})
    rows["low"] = -rows["x"]
    found = charts.thinned(rows, x="last", low="min")
    assert len(found) == n if n <= 800 else 400 < len(found) <= 800
    assert found["ts"].is_monotonic_increasing
    assert found["ts"].iloc[-1] == rows["ts"].iloc[-1]
    assert found["x"].iloc[-1] == rows["x"].iloc[-1]
    assert found["low"].min() == rows["low"].min()


def test_colours_of_months_are_centred_on_0(judged):
    spec = charts.heat_map(MONTHS, "months").to_dict()
    low, high = spec["encoding"]["color"]["scale"]["domain"]
    assert low == -high


def test_the_settings_own_sample_is_shaded_and_only_that(judged):
    def shaded(rows: pd.DataFrame) -> int:
        layers = charts.by_session(rows, "rank_ic", "RankIC", "RankIC").to_dict()["layer"]
        return sum(layer["mark"]["type"] == "rect" for layer in layers)

    assert shaded(judged) == 1
    assert shaded(judged.assign(settings_known_before=True)) == 0


def test_purged_sessions_stand_between_what_learns_and_what_is_judged():
    parts = dict((p, (a, b)) for p, a, b in model_charts._parts(FOLD) if p != "purged")
    assert parts["train"][1] == "2019-05-06"
    assert parts["early stop"] == ("2019-05-15", "2019-08-06")
    assert [p for p, *_ in model_charts._parts(FOLD)].count("purged") == 2
