"""Rules of lists on real stores: who was a member when, and which ticker was which company."""

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_pipeline.chain.features import features_between, labels_between
from quant_pipeline.chain.ingest import IngestReport, ingest
from quant_pipeline.chain.ingest_lists import ingest_memberships, ingest_renames
from quant_pipeline.errors import NoData, SourceError
from quant_pipeline.stores.sources import Reading
from quant_pipeline_tests.homes import TODAY, SmallHome
from quant_pipeline_tests.test_ingest import (
    answers,
    daily,
    dates_of,
    everything,
    fresh,
    make_bars,
    of,
    on,
    quick,
    require_counts_add_up,
    require_equal,
)

Home = Callable[..., SmallHome]
Interval = tuple[str, date, date | None]
MESSY = Path(__file__).parents[2] / "shared" / "data" / "raw_in_nifty_messy.csv"
IN_LISTS = {
    "min_sessions = 20": "min_sessions = 1",
    "min_median_value = 1000.0": "min_median_value = 0.0\nmemberships = true",
}


def members(made: SmallHome, *rows: Interval) -> IngestReport:
    return take(made, ingest_memberships, "symbol,first,last", rows)


def renames(made: SmallHome, *rows: tuple[Any, ...]) -> IngestReport:
    return take(made, ingest_renames, "ticker,symbol,first,last", rows)


def take(made: SmallHome, how: Callable[..., IngestReport], header: str, rows: Any) -> IngestReport:
    file = made.root / "list.csv"
    lines = [",".join("" if v is None else str(v) for v in row) for row in rows]
    file.write_text("\n".join([header, *lines]) + "\n")
    return how(made.workspace, file, Reading())


def day(bars: pd.DataFrame, i: int) -> date:
    found: date = dates_of(bars)[i].date()
    return found


def features(made: SmallHome) -> pd.DataFrame:
    rows = features_between(made.workspace, date(2015, 5, 1), date(2020, 1, 1)).rows
    return rows.to_pandas().set_index(["symbol", "ts"]).sort_index()


# --- Memberships


def test_a_missing_list_of_members_is_an_error_that_says_what_to_do(home):
    made = fresh(home, IN_LISTS)
    made.ingest(make_bars(10))
    with pytest.raises(NoData, match="quant ingest FILE --as memberships"):
        features(made)


@quick(3)
@given(seed=st.integers(0, 2**16))
def test_lists_are_versions_and_exactly_what_they_change_is_changed(home, seed):
    rng = np.random.default_rng(seed)
    bars = make_bars(12, "ABCD", seed)
    made = fresh(home, IN_LISTS)
    made.ingest(bars)
    sessions = [d.date() for d in dates_of(bars)]
    seen: dict[int, set[tuple[str, date]]] = {}
    before: set[tuple[str, date]] = set()
    for _ in range(3):
        rows: list[Interval] = []
        for name in "ABCDZ":
            for _ in range(int(rng.integers(0, 3))):
                first = sessions[0] + timedelta(int(rng.integers(-3, 17)))
                last = first + timedelta(int(rng.integers(0, 9)))
                rows.append((name, first, last if rng.random() < 0.8 else None))
        if not rows:
            continue
        report = members(made, *rows)
        inside = {
            (name, ts) for name, first, last in rows for ts in sessions
            if first <= ts and (last is None or ts <= last)
        }  # fmt: skip
        changed = sorted({ts for _, ts in inside ^ before})
        if report.batch_id is None:
            assert not changed
        else:
            found = made.rows(
                "SELECT ts FROM price_changes WHERE batch_id = ? AND kind <> 'ages'",
                report.batch_id,
            )
            assert sorted(ts for (ts,) in found) == changed
            seen[report.batch_id] = inside
        before = inside
        found = features(made)["in_universe"]
        stored = {(name, ts) for name, ts in inside if name != "Z"}
        assert {(name, ts) for (name, ts), is_in in found.items() if is_in} == stored
        again = everything(made)
        assert members(made, *rng.permutation(np.array(rows, object)).tolist()).batch_id is None
        assert everything(made) == again
    for batch_id, inside in seen.items():
        rows = made.rows(f"SELECT symbol, first, last FROM memberships_as_of({batch_id})")
        for name, ts in ((n, t) for n in "ABCDZ" for t in sessions):
            is_in = any(n == name and a <= ts and (b is None or ts <= b) for n, a, b in rows)
            assert is_in == ((name, ts) in inside)
        as_of = features_between(
            made.workspace, date(2015, 5, 1), date(2020, 1, 1), batch_id
        ).rows.to_pandas()
        was_in = as_of[as_of["in_universe"]]
        expected = {(name, ts) for name, ts in inside if name != "Z"}
        assert set(zip(was_in["symbol"], was_in["ts"], strict=True)) == expected


def test_a_list_changes_no_price_and_no_label(home):
    bars = make_bars(20)
    made = fresh(home, IN_LISTS)
    made.ingest(bars)
    old = (daily(made), answers(made), labels_between(made.workspace, day(bars, 0), TODAY))
    report = members(made, ("A", day(bars, 3), None))
    assert report.batch_id == 2
    new = (daily(made), answers(made), labels_between(made.workspace, day(bars, 0), TODAY))
    assert (new[0], new[1]) == (old[0], old[1])
    assert new[2].equals(old[2])


def test_a_list_that_cannot_be_read_leaves_nothing(home):
    bars = make_bars(5)
    made = fresh(home, IN_LISTS)
    made.ingest(bars)
    members(made, ("A", day(bars, 0), None))
    before = everything(made)
    with pytest.raises(SourceError):
        members(made, ("A", day(bars, 4), day(bars, 0)))
    with pytest.raises(SourceError):
        take(made, ingest_memberships, "who,when", [("A", "2015-06-01")])
    assert everything(made) == before


# --- Renames: one company under two tickers


def renamed_market(n: int = 40) -> tuple[pd.DataFrame, pd.DataFrame, date]:
    """Bars of NEW and others under one symbol, the same with OLD before a day, and that day."""
    bars = make_bars(n, "ABC")
    bars["symbol"] = bars["symbol"].replace({"A": "NEW"})
    switch = dates_of(bars)[n // 2]
    is_before = (bars["symbol"] == "NEW") & (bars["ts"] < switch)
    split = bars.assign(symbol=bars["symbol"].mask(is_before, "OLD"))
    return bars, split, switch.date()


def test_a_map_given_before_the_prices_makes_one_symbol_bit_for_bit(home):
    bars, split, switch = renamed_market()
    whole, made = fresh(home), fresh(home)
    whole.ingest(bars)
    renames(made, ("OLD", "NEW", None, switch - timedelta(1)))
    require_counts_add_up(made.ingest(split))
    assert daily(made) == daily(whole)
    assert answers(made) == answers(whole)
    pd.testing.assert_frame_equal(features(made), features(whole), check_exact=True)


def test_a_rename_between_two_deliveries_keeps_the_returns(home):
    bars, split, switch = renamed_market()
    whole, made = fresh(home), fresh(home)
    whole.ingest(bars)
    renames(made, ("OLD", "NEW", None, switch - timedelta(1)))
    made.ingest(split[split["ts"].dt.date < switch])
    made.ingest(split[split["ts"].dt.date >= switch - timedelta(7)])
    require_equal(daily(made), daily(whole))


def test_a_map_given_after_the_prices_moves_bars_and_keeps_versions(home):
    bars, split, switch = renamed_market()
    split["adj_close"] = bars["adj_close"] = np.nan  # a dividend on the day itself is not known
    whole, made = fresh(home), fresh(home)
    whole.ingest(bars)
    made.ingest(split)
    before = daily(made)
    assert {row[0] for row in before} == {"B", "C", "NEW", "OLD"}
    report = renames(made, ("OLD", "NEW", None, switch - timedelta(1)))
    assert (report.batch_id, report.n_new) == (2, 1)
    assert not made.rows("SELECT * FROM bars WHERE symbol = 'OLD'")
    assert daily(made, 1) == before
    assert [row[:7] for row in daily(made)] == [row[:7] for row in daily(whole)]
    for one, other in zip(features(made).items(), features(whole).items(), strict=True):
        np.testing.assert_allclose(
            one[1].astype(float), other[1].astype(float), rtol=1e-4, atol=1e-5, err_msg=one[0]
        )
    moved = {row[1] for row in before if row[0] == "OLD"}
    listed = {
        ts
        for (ts,) in made.rows("SELECT ts FROM price_changes WHERE batch_id = 2 AND kind <> 'ages'")
    }
    old, new = (dict((r[:2], r) for r in daily(made, b)) for b in (1, 2))
    keys = old.keys() | new.keys()
    assert listed == {key[1] for key in keys if old.get(key) != new.get(key)} >= moved
    again = everything(made)
    assert renames(made, ("OLD", "NEW", None, switch - timedelta(1))).batch_id is None
    assert made.ingest(split).batch_id is None
    assert everything(made) == again


def test_one_ticker_of_two_companies_becomes_two_symbols(home):
    first = make_bars(40, "AB")
    days = dates_of(first)
    is_gap = first["ts"].isin(days[15:25])
    reused = first[~((first["symbol"] == "A") & is_gap)].reset_index(drop=True)
    lines = (("A", "A.OLD", None, day(first, 14)), ("A", "A.NEW", day(first, 15), None))
    made = fresh(home)
    renames(made, *lines)
    made.ingest(reused)
    found = made.rows("SELECT symbol, count(*) FROM prices_daily GROUP BY symbol ORDER BY symbol")
    assert found == [("A.NEW", 15), ("A.OLD", 15), ("B", 40)]
    alone = fresh(home)
    alone.ingest(reused[(reused["symbol"] != "A") | (reused["ts"] >= days[25])])
    mine, other = features(made).loc["A.NEW"], features(alone).loc["A"]
    pd.testing.assert_frame_equal(mine, other, check_exact=True)
    after = fresh(home)
    after.ingest(reused)
    renames(after, *lines)
    assert [row[:7] for row in daily(after)] == [row[:7] for row in daily(made)]
    assert not after.rows("SELECT * FROM bars WHERE symbol = 'A'")


MAPS = {
    "a rename": [("A", "B", None, 9)],
    # Facebook became META on the day when another company had given that ticker back
    "a new name that another one had": [("A", "B", None, 9), ("B", "OTHER", None, 9)],
    "two that swap": [("A", "B", None, 9), ("B", "A", None, 9)],
    "a chain": [("A", "B", None, 4), ("B", "C2", None, 9)],
    "an id that is also a ticker": [("A", "B", 0, 9), ("B", "X", 10, None)],
    "several into one": [("A", "X", None, 4), ("B", "X", 5, 9)],
}


@pytest.mark.parametrize("name", MAPS)
def test_a_map_means_the_same_before_the_prices_and_after(home, name):
    bars = make_bars(20, "ABCD")
    bars["adj_close"] = np.nan
    spans = {"a rename": {"A": (0, 10), "B": (10, 20)},
             "a new name that another one had": {"A": (0, 10), "B": (0, 20)},
             "two that swap": {"A": (0, 20), "B": (0, 20)},
             "a chain": {"A": (0, 5), "B": (5, 20)},
             "an id that is also a ticker": {"A": (0, 10), "B": (10, 20)},
             "several into one": {"A": (0, 5), "B": (5, 10)}}[name]  # fmt: skip
    days = dates_of(bars)
    for ticker, (a, b) in spans.items():
        bars = bars[(bars["symbol"] != ticker) | bars["ts"].isin(days[a:b])]
    lines = [
        (t, s, None if a is None else days[a].date(), None if b is None else days[b].date())
        for t, s, a, b in MAPS[name]
    ]
    first, after = fresh(home), fresh(home)
    renames(first, *lines)
    first.ingest(bars)
    after.ingest(bars)
    renames(after, *lines)
    assert [row[:7] for row in daily(after)] == [row[:7] for row in daily(first)]


def test_a_permanent_id_that_later_lines_name_as_a_ticker_keeps_its_bars(home):
    """B holds A's bars since the first map; a second line about B is not about those."""
    bars = make_bars(20, "ACD")
    made, first = fresh(home), fresh(home)
    one, two = ("A", "B", None, None), ("B", "X", None, day(bars, 9))
    renames(made, one)
    made.ingest(bars)
    before = everything(made)
    try:
        renames(made, one, two)
    except SourceError:  # that bars of A and of B are not known apart any more is an answer too
        assert everything(made) == before
        return
    renames(first, one, two)
    first.ingest(bars)
    assert [row[:7] for row in daily(made)] == [row[:7] for row in daily(first)]


def test_a_bar_that_waits_for_its_session_is_renamed_too(home):
    bars = make_bars(12, "ABCD")
    last = dates_of(bars)[-1]
    made = fresh(home)
    made.ingest(bars[bars["ts"] < last])
    made.ingest(of(on(bars, last), "A"))  # too few for a session
    renames(made, ("A", "X", None, None))
    made.ingest(of(on(bars, last), "B", "C", "D"))
    assert not made.rows("SELECT * FROM bars WHERE symbol = 'A'")
    assert made.rows("SELECT count(*) FROM prices_daily WHERE symbol = 'X'") == [(12,)]


def test_a_rename_of_two_that_traded_on_one_day_is_refused(home):
    bars = make_bars(12, "AB")
    made = fresh(home)
    made.ingest(bars)
    before = everything(made)
    with pytest.raises(SourceError, match="12 dates between"):
        renames(made, ("A", "B", None, None))
    with pytest.raises(SourceError, match="overlap"):
        renames(made, ("A", "X", None, day(bars, 5)), ("A", "Y", day(bars, 5), None))
    assert everything(made) == before


def test_a_map_that_drops_a_used_line_is_refused_and_an_unused_one_is_not(home):
    bars, split, switch = renamed_market()
    made = fresh(home)
    used, unused = ("OLD", "NEW", None, switch - timedelta(1)), ("Q", "R", None, None)
    renames(made, used, unused)
    made.ingest(split)
    before = everything(made)
    for lines in ((unused,), (("OLD", "NEW", None, day(bars, 3)), unused)):
        with pytest.raises(SourceError, match="Keep the line"):
            renames(made, *lines)
        assert everything(made) == before
    assert renames(made, used).batch_id is not None
    wider = ("OLD", "NEW", None, switch)
    assert renames(made, wider).batch_id is not None
    assert made.rows("SELECT count(*) FROM renames_as_of(1)") == [(2,)]


@pytest.mark.parametrize("map_first", [True, False])
def test_a_member_list_speaks_of_permanent_ids(home, map_first):
    bars, split, switch = renamed_market()
    made = fresh(home, IN_LISTS)
    steps = [
        lambda: renames(made, ("OLD", "NEW", None, switch - timedelta(1))),
        lambda: made.ingest(split),
    ]
    for step in steps if map_first else reversed(steps):
        step()
    members(made, ("NEW", day(bars, 2), None))
    found = features(made)["in_universe"]
    assert found.groupby("symbol").sum().to_dict() == {"NEW": 38, "B": 0, "C": 0}


INDIAN_RENAMES = (
    ("HINDALC0", "HINDALCO", None, date(2007, 8, 26)),
    ("INFOSYSTCH", "INFY", None, date(2011, 6, 28)),
    ("KOTAKMAH", "KOTAKBANK", None, date(2003, 4, 20)),
    ("SESAGOA", "VEDL", None, date(2013, 10, 3)),
    ("SSLT", "VEDL", date(2013, 10, 4), date(2015, 5, 6)),
)


def test_the_messy_indian_file_has_seven_continuous_symbols_with_a_map(home):
    if not MESSY.exists():
        pytest.skip(f"{MESSY} is missing: renames are not tested on real tickers")
    zone = {
        'timezone = "America/New_York"': 'timezone = "Asia/Kolkata"', "2015-05-01": "2000-01-01"
    }  # fmt: skip
    first, after = fresh(home, zone), fresh(home, zone)
    renames(first, *INDIAN_RENAMES)
    for made in (first, after):
        report = ingest(made.workspace, [MESSY], Reading(), date(2024, 1, 1))
        require_counts_add_up(report)
        assert (report.n_read, report.n_new) == (36_494, 36_494)
    spans = "SELECT symbol, count(*) FROM prices_daily GROUP BY symbol ORDER BY symbol"
    names = ["EICHERMOT", "GAIL", "HINDALCO", "INFY", "KOTAKBANK", "M&M", "VEDL"]
    assert [name for name, _ in first.rows(spans)] == names
    assert len(after.rows(spans)) == 12
    report = renames(after, *INDIAN_RENAMES)
    assert report.n_moved == 1919 + 2870 + 502 + 3435 + 388
    assert after.rows(spans) == first.rows(spans)
    assert after.rows("SELECT count(*) FROM prices_as_of(1)") == [(36_494,)]
    # No gap at a rename: the return over it is that of the closes, as there is no adj_close.
    one, other = daily(first), daily(after)
    assert [row[:7] for row in one] == [row[:7] for row in other]
    for rows in (one, other):
        at = {(row[0], row[1]): i for i, row in enumerate(rows)}
        for _, name, _, last in INDIAN_RENAMES:
            i = min(i for (s, ts), i in at.items() if s == name and ts > last)
            assert rows[i - 1][0] == name
            assert rows[i][7] / rows[i - 1][7] == pytest.approx(rows[i][5] / rows[i - 1][5])
