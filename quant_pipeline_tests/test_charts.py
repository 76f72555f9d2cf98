"""Every chart: words for who cannot see it, at most three series, an SVG that is not empty."""

import re

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
SCORE = {"symbol": "AC", "ts": "2021-01-04", "score": 0.51, "base": -0.06, "raw": 0.04,
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
        "contributions": model_charts.contributions(SCORE, log_odds=True),
        "two_models": model_charts.two_models(series),
        "coverage_line": model_charts.coverage_line(coverage),
        "counted": model_charts.counted(
            pd.DataFrame({"reason": ["x"], "n": [3]}), "reason", "by reason"
        ),
        "by_feature": model_charts.by_feature(
            pd.DataFrame({"feature": ["A", "B"], "value": [0.2, 0.1]}), "share", "worst", ".1%"
        ),
        "by_partition": model_charts.by_partition(parts, {"a": "A", "b": "B"}, "y", "parts"),
    }


def test_no_chart_is_left_out_here(judged):
    made = {
        name for module in (charts, model_charts) for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
        and not name.startswith("_")
    }  # fmt: skip
    parts = {"titled", "time_axis", "zero", "thinned", "per_point", "number", "signed_axis",
             "percent_of", "of_outcomes"}  # fmt: skip
    assert made - parts == set(every(judged))


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
    low, high = spec["layer"][0]["encoding"]["color"]["scale"]["domain"]
    assert low == -high


def test_each_run_of_the_settings_own_sample_is_shaded_and_only_that(judged):
    def shaded(is_after: object) -> list[tuple[str, str]]:
        rows = judged.assign(settings_known_before=is_after)
        spec = charts.by_session(rows, "rank_ic", "RankIC", "RankIC").to_dict()
        layers = [la for la in spec["layer"] if la["mark"]["type"] == "rect"]
        spans = [row for la in layers for row in spec["datasets"][la["data"]["name"]]]
        return [(row["from"][:10], row["to"][:10]) for row in spans]

    day = judged["ts"].dt.strftime("%Y-%m-%d").to_list()
    assert shaded(True) == []
    assert shaded(np.arange(N) > 40) == [(day[0], day[41])]
    at = np.arange(N)
    last = str((judged["ts"].iloc[-1] + pd.Timedelta(days=1)).date())
    outside = ~((at == 3) | ((at >= 50) & (at < 60)) | (at >= N - 2))
    assert shaded(outside) == [(day[3], day[4]), (day[50], day[60]), (day[N - 2], last)]


def test_a_point_of_a_long_history_says_of_how_many_sessions_it_is():
    def tooltips(n: int) -> list[str]:
        rows = pd.DataFrame({"ts": pd.bdate_range("2000-01-03", periods=n), "rank_ic": 0.1,
                             "settings_known_before": True})  # fmt: skip
        spec = charts.by_session(rows, "rank_ic", "RankIC", "RankIC").to_dict()
        (line,) = [la for la in spec["layer"] if "tooltip" in la["encoding"]]
        return [given["title"] for given in line["encoding"]["tooltip"]]

    assert tooltips(800) == ["session", "RankIC", "mean of 63"]
    assert tooltips(5000) == ["up to", "RankIC, mean of 7 sessions", "mean of 63"]


def labels(svg: str) -> list[str]:
    return re.findall(r">(\d{4}[-\d]*)</text>", svg)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 20, 50, 69, 75, 200, 700, 1200, 1500, 2500, 5000])
def test_no_two_ticks_of_time_have_the_same_label(n):
    money = pd.DataFrame({"ts": pd.bdate_range("2001-03-02", periods=n), "gross": 1.0, "net": 0.9})
    money["net"] += np.arange(n) / n
    for width in (270, 560):
        spec = charts.capital_lines(money, "capital").to_dict() | {"width": width}
        found = labels(vl_convert.vegalite_to_svg(spec))
        assert len(found) == len(set(found)), found
        assert 1 <= len(found) <= 12 or n > 2500


def test_a_small_drawdown_has_an_axis_that_tells_its_values_apart(judged):
    for worst in (0.003, 0.012, 0.3):
        rows = pd.DataFrame({"ts": judged["ts"], "drawdown": np.linspace(-worst, 0, N)})
        svg = vl_convert.vegalite_to_svg(charts.drawdown(rows, "drawdown").to_dict())
        found = re.findall(r">(\S+%|0)</text>", svg)
        assert len(found) == len(set(found)) > 1, found


@pytest.mark.parametrize(("log_odds", "what"), [(True, "log-odds"), (False, "score")])
def test_the_bars_of_contributions_add_up_to_what_the_title_says(log_odds, what):
    many = [{"feature": f"F{i}", "value": 1.0, "adds": 0.01 * i} for i in range(20)]
    given = SCORE | {"contributions": many, "raw": -0.06 + 0.01 * sum(range(20))}
    chart = model_charts.contributions(given, log_odds=log_odds)
    spec = chart.to_dict()
    (bars,) = [la for la in spec["layer"] if la["mark"]["type"] == "bar"]
    rows = spec["datasets"][bars["data"]["name"]]
    assert rows[0]["feature"] == "(base)"
    assert sum(row["adds"] for row in rows) == pytest.approx(given["raw"])
    assert f"add up to {given['raw']:+.4f}" in spec["title"]
    assert ("log-odds" in spec["title"]) == log_odds
    assert bars["encoding"]["x"]["title"] == f"adds to the {what}"
    assert ">0</text>" in vl_convert.vegalite_to_svg(spec)


def test_one_session_has_no_error_and_no_chart_says_nan(judged):
    one = judged.head(1)
    rows = ROWS.assign(se=np.nan)
    for chart in (
        charts.with_errors(rows, "quantile", "fifth", "return", "fifths"),
        charts.by_session(one.assign(rank_ic=np.nan), "rank_ic", "RankIC", "RankIC"),
    ):
        words = chart.to_dict()["description"]
        assert "nan" not in words
        assert "–" in words
        vl_convert.vegalite_to_svg(chart.to_dict())


def test_many_folds_are_in_order(judged):
    folds = [FOLD | {"fold": i} for i in range(1, 13)]
    svg = vl_convert.vegalite_to_svg(model_charts.timeline_of_folds(folds).to_dict())
    assert re.findall(r">fold (\d+)</text>", svg) == [str(i) for i in range(1, 13)]


def test_no_mark_is_white_where_a_page_may_be_dark(judged):
    for name, chart in every(judged).items():
        assert "'stroke': 'white'" not in str(chart.to_dict()), name


def test_purged_sessions_stand_between_what_learns_and_what_is_judged():
    parts = dict((p, (a, b)) for p, a, b in model_charts._parts(FOLD) if p != "purged")
    assert parts["train"][1] == "2019-05-06"
    assert parts["early stop"] == ("2019-05-15", "2019-08-06")
    assert [p for p, *_ in model_charts._parts(FOLD)].count("purged") == 2
