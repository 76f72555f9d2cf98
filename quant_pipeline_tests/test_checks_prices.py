"""Checks of prices: silent on sane bars, and each seen failing on bad ones."""

from datetime import date

import numpy as np
import pandas as pd
import pytest

from quant_pipeline.chain.checks.prices import check_prices
from quant_pipeline.chain.checks.result import CHECKS, Checked
from quant_pipeline_tests.homes import sample_market

KEY = "2015-09"
DAY = pd.Timestamp(2015, 9, 15)
XNYS = {'timezone = "America/New_York"': 'timezone = "America/New_York"\n[sessions]\n'
        'calendar = "XNYS"'}  # fmt: skip


@pytest.fixture
def bars() -> pd.DataFrame:
    """100 sessions from 2015-06-01 on, 11 symbols; S003 would list later."""
    return sample_market(n_symbols=12, n_sessions=100)


def check(home, bars: pd.DataFrame, key: str = KEY, changes=None) -> dict[str, Checked]:
    made = home("h", changes)
    made.ingest(bars)
    return {c.name: c for c in check_prices(made.workspace, [key])}


def test_sane_bars_pass_every_check_in_every_partition(home, bars):
    made = home()
    made.ingest(bars)
    keys = made.workspace.grid.keys("2015-06", "2015-09")
    found = check_prices(made.workspace, keys)
    assert {c.name for c in found} == set(CHECKS["prices_daily"])
    assert [c for c in found if not c.passed] == []
    together = {(c.name, c.key): c for c in found}
    for key in keys:
        assert all(together[c.name, key] == c for c in check_prices(made.workspace, [key]))


def test_a_gap_of_sessions_is_seen_in_each_partition_that_it_touches(home, bars):
    gone = bars["ts"].between(pd.Timestamp(2015, 8, 27), pd.Timestamp(2015, 9, 7))
    found = check(home, bars[~gone])["no_session_is_missing"]
    assert (found.passed, found.numbers["longest_gap_days"]) == (False, 13)
    assert "between 2015-08-26 and 2015-09-08, 13 days" in found.words


def test_a_partition_without_any_session_between_others_is_a_gap(home, bars):
    made = home()
    made.ingest(bars[bars["ts"].dt.month != 8])
    found = {c.key: c for c in check_prices(made.workspace, ["2015-06", "2015-07", "2015-08",
             "2015-09"]) if c.name == "no_session_is_missing"}  # fmt: skip
    assert {key: c.passed for key, c in found.items()} == {
        "2015-06": True, "2015-07": False, "2015-08": False, "2015-09": False
    }  # fmt: skip
    assert found["2015-08"].numbers["sessions"] == 0


def test_a_date_of_the_calendar_without_a_bar_is_missing(home, bars):
    bars = bars[~bars["ts"].isin(pd.to_datetime(["2015-07-03", "2015-09-07"]))]  # holidays
    found = check(home, bars[bars["ts"] != DAY], changes=XNYS)["no_session_is_missing"]
    assert (found.passed, found.severity, found.numbers) == (
        False, "ERROR", {"missing_sessions": 1}
    )  # fmt: skip
    assert "sessions of XNYS have no bar: 2015-09-15" in found.words


def test_a_source_that_stands_still_is_seen(home, bars):
    bars = bars.copy()
    columns = ["open", "high", "low", "close", "volume"]
    columns += ["adj_close"] if "adj_close" in bars else []
    days = sorted(bars["ts"].unique())
    before = days[days.index(DAY) - 1]
    old = bars[bars["ts"] == before].set_index("symbol")[columns]
    is_day = bars["ts"] == DAY
    bars.loc[is_day, columns] = old.loc[bars.loc[is_day, "symbol"]].to_numpy()
    found = check(home, bars)["bars_are_not_stale"]
    assert not found.passed
    assert found.numbers["stale_bars"] == 11
    assert found.numbers["stale_share"] == pytest.approx(11 / found.numbers["bars"])
    assert "S000 2015-09-15" in found.words


def scaled(bars: pd.DataFrame, symbol: str, chosen: pd.Series, factor: float) -> pd.DataFrame:
    bars = bars.copy()
    prices = [c for c in ("open", "high", "low", "close", "adj_close") if c in bars]
    bars.loc[(bars["symbol"] == symbol) & chosen, prices] *= factor
    return bars


def test_a_price_beyond_belief_is_an_error(home, bars):
    found = check(home, scaled(bars, "S004", bars["ts"] == DAY, 7.3))["moves_are_plausible"]
    assert (found.passed, found.severity) == (False, "ERROR")
    assert "S004 2015-09-15" in found.words
    assert found.numbers["wild_moves"] >= 1
    assert found.numbers["largest_log_move"] == pytest.approx(np.log(7.3), abs=0.3)


def test_a_split_that_the_source_did_not_adjust_is_a_warning(home, bars):
    after = bars["ts"] >= DAY
    split = scaled(bars, "S004", after, 0.5)
    split["volume"] = np.where(after & (bars["symbol"] == "S004"), 2 * bars["volume"],
                               bars["volume"]).astype(np.int64)  # fmt: skip
    # A session with hardly a range, as a split has: the move was overnight.
    rows = (split["symbol"] == "S004") & (split["ts"] == DAY)
    close = 0.5 * bars.loc[(bars["symbol"] == "S004") & (bars["ts"] < DAY), "close"].iloc[-1]
    split.loc[rows, ["open", "close"]] = close
    split.loc[rows, "high"], split.loc[rows, "low"] = 1.01 * close, 0.99 * close
    if "adj_close" in split:
        split = split.drop(columns="adj_close")
    found = check(home, split)["moves_are_plausible"]
    assert (found.passed, found.severity, found.numbers["flagged_jumps"]) == (False, "WARN", 1)
    assert "look like splits" in found.words


def test_a_session_with_few_of_its_bars_is_seen(home, bars):
    is_gone = (bars["ts"] == DAY) & bars["symbol"].isin([f"S{i:03d}" for i in (0, 1, 2)])
    found = check(home, bars[~is_gone])["sessions_are_covered"]
    assert not found.passed
    assert found.numbers == {"lowest_coverage": pytest.approx(8 / 11), "thin_sessions": 1}
    assert "2015-09-15 (8 of 11)" in found.words


def test_late_prices_are_seen_in_the_window_that_they_should_be_in(home, bars):
    bars = bars[bars["ts"] <= pd.Timestamp(2015, 9, 10)]
    found = check(home, bars)["prices_are_recent"]
    assert (found.passed, found.numbers["late_sessions"]) == (False, 14)
    assert "The newest bar is of 2015-09-10; 14 weekdays" in found.words


def test_late_prices_are_counted_by_the_calendar(home, bars):
    bars = bars[(bars["ts"] <= pd.Timestamp(2015, 9, 3)) & (bars["ts"] != "2015-07-03")]
    found = check(home, bars, changes=XNYS)["prices_are_recent"]
    days = np.busday_count(date(2015, 9, 4), date(2015, 10, 1)) - 1  # Labor Day
    assert (found.passed, found.numbers["late_sessions"]) == (False, days)


def test_a_threshold_decides_what_passes(home, bars):
    gone = bars["ts"].between(pd.Timestamp(2015, 8, 27), pd.Timestamp(2015, 9, 7))
    looser = {"threads = 1": "threads = 1\n[checks]\nmax_gap_days = 13"}
    assert check(home, bars[~gone], changes=looser)["no_session_is_missing"].passed
