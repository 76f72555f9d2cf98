"""Rules of sealing: once, in order, when nothing more is to be expected, and never taken back."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from threading import Barrier

import pandas as pd
import pytest

from quant_pipeline.chain.ingest import IngestReport
from quant_pipeline.chain.seal import (
    frozen_range,
    judge_until,
    partition_before,
    read_counts,
    require_sealed,
    seal_until,
    sealed_keys,
)
from quant_pipeline.errors import GateError, NoData
from quant_pipeline.market.closing import Session
from quant_pipeline.market.grid import Grid
from quant_pipeline_tests.homes import SmallHome, sample_market

MakeHome = Callable[..., SmallHome]

# 50 sessions, 2015-06-01 .. 2015-08-07; symbols with a bar on each of them.
BARS = sample_market(n_symbols=48, n_sessions=50)
N_SYMBOLS = 20
STEADY = sorted(BARS.groupby("symbol").size().loc[lambda n: n == 50].index)[:N_SYMBOLS]
BARS = BARS[BARS["symbol"].isin(STEADY)]
WEEKLY = {'cadence = "monthly"': 'cadence = "weekly"'}
DAILY = {'cadence = "monthly"': 'cadence = "daily"'}
SATURDAY, NEXT_SATURDAY = "2015-06-20", "2015-07-04"


def between(first: str, last: str) -> pd.DataFrame:
    return BARS[BARS["ts"].between(pd.Timestamp(first), pd.Timestamp(last))]


def on(day: str, n_symbols: int = N_SYMBOLS, like: str = "2015-06-19") -> pd.DataFrame:
    """Bars of some symbols on a date, with the values of a session."""
    bars = BARS[(BARS["ts"] == pd.Timestamp(like)) & BARS["symbol"].isin(STEADY[:n_symbols])]
    return bars.assign(ts=pd.Timestamp(day))


def with_short_last_day(last: str, n_symbols: int) -> pd.DataFrame:
    """The market up to a session, on which only some symbols have a bar."""
    bars = between("2015-06-01", last)
    is_missing = (bars["ts"] == pd.Timestamp(last)) & bars["symbol"].isin(STEADY[n_symbols:])
    return bars[~is_missing]


def setting(section: str, line: str) -> Mapping[str, str]:
    return {"[universe]\n": f"[{section}]\n{line}\n\n[universe]\n"}


def seals(home: SmallHome) -> list[tuple[object, ...]]:
    return home.rows("SELECT * FROM seals ORDER BY partition_key")


def session_at(home: SmallHome, day: str) -> bool:
    ((is_session,),) = home.rows("SELECT is_session FROM sessions WHERE ts = ?", day)
    return bool(is_session)


def n_bars_at(home: SmallHome, day: str) -> int:
    ((n,),) = home.rows("SELECT count(*) FROM prices_daily WHERE ts = ?", day)
    return int(n)


def test_the_market_of_these_tests_is_as_its_rules_need() -> None:
    assert len(STEADY) == N_SYMBOLS
    assert len(BARS) == 50 * N_SYMBOLS


# --- once


def test_a_seal_tells_what_was_complete_and_from_which_prices(home: MakeHome) -> None:
    one = home()
    one.ingest(between("2015-06-01", "2015-06-15"))
    one.ingest(between("2015-06-16", "2015-07-02"))
    (closing,) = seal_until(one.workspace, "2015-06")
    assert closing.is_sealable
    ((key, asof, _, batch_id, first, last, n_bars, usual, n_later, why),) = seals(one)
    assert (key, asof, batch_id) == ("2015-06", date(2015, 6, 30), 2)
    assert (first, last) == (date(2015, 6, 1), date(2015, 6, 30))
    assert (n_bars, usual, n_later) == (N_SYMBOLS, N_SYMBOLS, 2)
    assert why == closing.why == "2015-06-30 has 20 of 20 usual bars"


def test_a_seal_is_stored_once_and_never_changes(home: MakeHome) -> None:
    one = home()
    one.ingest(between("2015-06-01", "2015-07-02"))
    seal_until(one.workspace, "2015-06")
    before = seals(one)
    june = between("2015-06-22", "2015-06-30")
    steps = (
        between("2015-07-03", "2015-07-10"),
        june.assign(volume=june["volume"] * 3),  # a restatement
        on(SATURDAY),
    )
    for delivery in steps:
        one.ingest(delivery)
        for key in ("2015-06", "2015-07"):
            seal_until(one.workspace, key)
            assert seals(one) == before
    one.ingest(between("2015-07-13", "2015-08-03"))
    seal_until(one.workspace, "2015-07")
    assert seals(one)[:1] == before
    assert [row[0] for row in seals(one)] == ["2015-06", "2015-07"]


def test_a_second_call_judges_only_what_is_not_sealed(home: MakeHome) -> None:
    one = home()
    one.ingest(between("2015-06-01", "2015-07-02"))
    assert [c.key for c in seal_until(one.workspace, "2015-06")] == ["2015-06"]
    assert seal_until(one.workspace, "2015-06") == judge_until(one.workspace, "2015-06") == []
    (july,) = seal_until(one.workspace, "2015-07")
    assert not july.is_sealable
    assert (
        july.why == "open until a session after 2015-07-31 is stored; the newest one is 2015-07-02"
    )
    assert len(seals(one)) == 1


def test_judging_stores_nothing_and_gives_what_sealing_gives(home: MakeHome) -> None:
    one = home(changes=WEEKLY)
    one.ingest(between("2015-06-01", "2015-06-17"))
    judged = judge_until(one.workspace, "2015-06-15")
    assert seals(one) == []
    assert seal_until(one.workspace, "2015-06-15") == judged
    assert [(c.key, c.is_sealable) for c in judged] == [
        ("2015-06-01", True), ("2015-06-08", True), ("2015-06-15", False),
    ]  # fmt: skip


def test_processes_that_seal_at_once_seal_once(home: MakeHome) -> None:
    one = home(changes=WEEKLY)
    one.ingest(between("2015-06-01", "2015-06-30"))
    n = 4
    start = Barrier(n)

    def seal(_: int) -> None:
        workspace = one.workspace
        start.wait()
        seal_until(workspace, "2015-06-22")

    with ThreadPoolExecutor(n) as pool:
        list(pool.map(seal, range(n)))
    found = [row[0] for row in seals(one)]
    assert found == ["2015-06-01", "2015-06-08", "2015-06-15", "2015-06-22"]
    assert len({row[2] for row in seals(one)}) == 1, "more than one call stored seals"


# --- when


def test_a_window_waits_for_the_late_bars_of_its_last_session(home: MakeHome) -> None:
    one = home()
    one.ingest(with_short_last_day("2015-06-30", 15))
    one.ingest(between("2015-07-01", "2015-07-01"))
    why = (
        "waiting for late bars: 2015-06-30 has 15 of 20 usual bars; "
        "sealed after 3 later sessions, 1 so far"
    )
    (closing,) = seal_until(one.workspace, "2015-06")
    assert (closing.is_sealable, closing.why) == (False, why)
    with pytest.raises(GateError) as error:
        require_sealed(one.workspace, "2015-06")
    assert str(error.value) == f"Window 2015-06 is {why}. Only complete windows train."
    assert seals(one) == []
    one.ingest(on("2015-06-30", 16, like="2015-06-30"))
    require_sealed(one.workspace, "2015-06")
    ((*_, n_bars, usual, n_later, found),) = seals(one)
    assert (n_bars, usual, n_later) == (16, 20.0, 1)
    assert found == "2015-06-30 has 16 of 20 usual bars"


def test_a_window_does_not_wait_for_ever_and_says_how_long_it_did(home: MakeHome) -> None:
    one = home()
    one.ingest(with_short_last_day("2015-06-30", 15))
    for day, n_later in (("2015-07-01", 1), ("2015-07-02", 2)):
        one.ingest(between(day, day))
        (closing,) = seal_until(one.workspace, "2015-06")
        assert not closing.is_sealable
        assert closing.why.endswith(f"{n_later} so far")
    one.ingest(between("2015-07-03", "2015-07-03"))
    require_sealed(one.workspace, "2015-06")
    ((*_, n_bars, _, n_later, why),) = seals(one)
    assert (n_bars, n_later) == (15, 3)
    assert why == "2015-06-30 has 15 of 20 usual bars; waited 3 sessions"


@pytest.mark.parametrize(
    ("line", "is_sealed"),
    [("coverage = 0.75", True), ("coverage = 0.76", False), ("max_wait_sessions = 1", True)],
)
def test_settings_decide_how_long_a_window_waits(
    home: MakeHome, line: str, is_sealed: bool
) -> None:
    one = home(changes=setting("seal", line))
    one.ingest(pd.concat([with_short_last_day("2015-06-30", 15), on("2015-07-01")]))
    seal_until(one.workspace, "2015-06")
    assert len(seals(one)) == is_sealed


def test_a_date_that_is_no_session_closes_no_window(home: MakeHome) -> None:
    """A few bars on a Saturday are not the later session that a window waits for."""
    one = home(changes=WEEKLY)
    one.ingest(pd.concat([between("2015-06-01", "2015-07-03"), on("2015-07-12", 3)]))
    assert not seal_until(one.workspace, "2015-06-29")[-1].is_sealable
    one.ingest(between("2015-07-06", "2015-07-06"))
    assert seal_until(one.workspace, "2015-06-29")[-1].is_sealable


def test_windows_are_sealed_in_order(home: MakeHome) -> None:
    """One that waits holds up those after it, complete or not; late bars free them all."""
    one = home(changes={**WEEKLY, **setting("seal", "max_wait_sessions = 30")})
    one.ingest(with_short_last_day("2015-06-12", 15))
    one.ingest(between("2015-06-15", "2015-06-30"))
    looked_at = seal_until(one.workspace, "2015-06-22")
    assert [(c.key, c.is_sealable) for c in looked_at] == [
        ("2015-06-01", True), ("2015-06-08", False),
    ]  # fmt: skip
    with pytest.raises(
        GateError,
        match=r"^Window 2015-06-22 comes after window 2015-06-08, which is waiting for late bars: "
        r"2015-06-12 has 15 of 20 usual bars; sealed after 30 later sessions, 12 so far\. Only",
    ):
        require_sealed(one.workspace, "2015-06-22")
    assert [row[0] for row in seals(one)] == ["2015-06-01"]
    one.ingest(on("2015-06-12", like="2015-06-12"))
    require_sealed(one.workspace, "2015-06-22")
    assert [row[0] for row in seals(one)] == [
        "2015-06-01",
        "2015-06-08",
        "2015-06-15",
        "2015-06-22",
    ]
    assert [row[8] for row in seals(one)] == [17, 12, 7, 2]


def test_sealing_step_by_step_freezes_what_sealing_at_once_does(home: MakeHome) -> None:
    """But for when, from which batch, and how many later sessions were there."""
    at_once, daily = home("at once", WEEKLY), home("daily", WEEKLY)
    bars = between("2015-06-01", "2015-06-17")
    at_once.ingest(bars)
    seal_until(at_once.workspace, "2015-06-15")
    for _, one_day in bars.groupby("ts"):
        daily.ingest(one_day)
        seal_until(daily.workspace, "2015-06-15")
    both = [[(*row[:2], *row[4:8], row[9]) for row in seals(one)] for one in (at_once, daily)]
    assert both[0] == both[1]
    assert len(both[0]) == 2
    assert {row[8] for row in seals(daily)} == {1}


def test_windows_without_a_session_are_sealed_as_such(home: MakeHome) -> None:
    one = home(changes=DAILY)
    one.ingest(between("2015-06-01", "2015-06-08"))
    looked_at = seal_until(one.workspace, "2015-06-08")
    assert [c.key for c in looked_at if not c.is_sealable] == ["2015-06-08"]
    found = {row[0]: (row[5], row[6], row[7], row[9]) for row in seals(one)}
    assert len(found) == 7
    for key in ("2015-06-06", "2015-06-07"):
        assert found[key] == (None, None, None, "no session in it")


def test_nothing_is_sealed_before_the_first_session_or_without_one(home: MakeHome) -> None:
    one = home()
    with pytest.raises(NoData, match="Nothing has been ingested yet"):
        seal_until(one.workspace, "2015-06")
    one.change_series("CREATE TABLE an_empty_store (a INT)")
    assert seal_until(one.workspace, "2015-06") == []
    one.ingest(between("2015-07-01", "2015-08-04"))
    assert seal_until(one.workspace, "2015-06") == []
    assert [c.key for c in seal_until(one.workspace, "2015-07")] == ["2015-07"]


# --- what a seal freezes


def sealed_june(home: MakeHome, *more: pd.DataFrame) -> SmallHome:
    """June is sealed; the newest session is 2015-07-03, a Friday."""
    one = home()
    one.ingest(pd.concat([between("2015-06-01", "2015-07-03"), *more]))
    require_sealed(one.workspace, "2015-06")
    return one


def history(home: SmallHome, before: str) -> list[tuple[object, ...]]:
    """Bars and sessions before a date."""
    bars = home.rows("SELECT * FROM prices_daily WHERE ts < ? ORDER BY symbol, ts", before)
    days = home.rows("SELECT ts FROM sessions WHERE is_session AND ts < ? ORDER BY ts", before)
    return [*bars, *days]


@pytest.mark.parametrize("n_before", [0, 3])
@pytest.mark.parametrize("day", [SATURDAY, "2015-06-28"])
def test_a_date_of_a_sealed_window_never_becomes_a_session(
    home: MakeHome, n_before: int, day: str
) -> None:
    """However many bars arrive for it, and whether it was seen before or not."""
    one = sealed_june(home, on(day, n_before))
    before = history(one, "2015-07-01")
    late = one.ingest(on(day))
    assert late.n_rejected == {"no_session": N_SYMBOLS}
    assert (late.n_new, late.n_new_sessions, late.n_late) == (0, 0, 0)
    assert not session_at(one, day)
    again = one.ingest(pd.concat([on(day), between("2015-07-06", "2015-07-07")]))
    assert again.n_rejected == {"no_session": N_SYMBOLS}
    assert not session_at(one, day)
    assert history(one, "2015-07-01") == before
    with one.workspace.series.reading() as con:
        assert frozen_range(con) == (date(2015, 6, 1), date(2015, 6, 30))


def test_rows_that_waited_for_a_date_are_rejected_for_good_once_it_is_sealed(
    home: MakeHome,
) -> None:
    """Three bars before the seal and all others after it do not add up to a session."""
    one = sealed_june(home, on(SATURDAY, 3))
    others = on(SATURDAY)
    late = one.ingest(others[~others["symbol"].isin(STEADY[:3])])
    assert late.n_rejected == {"no_session": N_SYMBOLS - 3}
    assert not session_at(one, SATURDAY)
    assert n_bars_at(one, SATURDAY) == 0
    waiting = "SELECT count(*) FROM prices_rejected WHERE reason = 'no_session'"
    assert one.rows(waiting) == [(N_SYMBOLS,)]


def test_a_session_of_a_sealed_window_stays_one(home: MakeHome) -> None:
    """A late symbol with a long past makes the market larger, and its sessions no fewer."""
    one = sealed_june(home)
    before = history(one, "2015-07-01")
    crowd = [
        between("2015-06-01", "2015-06-10").assign(symbol=f"N{i}-" + BARS["symbol"])
        for i in range(3)
    ]
    late = one.ingest(*crowd)
    n_crowd = sum(len(frame) for frame in crowd)
    assert (late.n_new, late.n_late) == (n_crowd, n_crowd)
    assert late.n_rejected == {}
    days = [row for row in before if len(row) == 1]
    assert [row for row in history(one, "2015-07-01") if len(row) == 1] == days
    assert session_at(one, "2015-06-11")


def test_a_date_after_the_sealed_stretch_is_decided_anew(home: MakeHome) -> None:
    """The same deliveries as above, a window later: all bars count, those that waited, too."""
    one = sealed_june(home, on(NEXT_SATURDAY, 3))
    assert not session_at(one, NEXT_SATURDAY)
    others = on(NEXT_SATURDAY)
    late = one.ingest(others[~others["symbol"].isin(STEADY[:3])])
    assert late.n_rejected == {}
    assert (late.n_new, late.n_new_sessions) == (N_SYMBOLS - 3, 1)
    assert one.rows("SELECT * FROM prices_rejected") == []
    assert session_at(one, NEXT_SATURDAY)
    assert n_bars_at(one, NEXT_SATURDAY) == N_SYMBOLS


def test_one_delivery_may_reach_into_the_sealed_stretch_and_beyond(home: MakeHome) -> None:
    one = sealed_june(home)
    late: IngestReport = one.ingest(on(SATURDAY), on("2015-06-30"), on(NEXT_SATURDAY))
    assert late.n_rejected == {"no_session": N_SYMBOLS}
    assert late.n_new_sessions == 1
    assert not session_at(one, SATURDAY)
    assert session_at(one, "2015-06-30")
    assert session_at(one, NEXT_SATURDAY)


def test_without_a_seal_the_same_date_becomes_a_session(home: MakeHome) -> None:
    """So it is the seal that the rules above are about."""
    one = home()
    one.ingest(pd.concat([between("2015-06-01", "2015-07-03"), on(SATURDAY, 3)]))
    assert not session_at(one, SATURDAY)
    assert one.ingest(on(SATURDAY)).n_rejected == {}
    assert session_at(one, SATURDAY)


def test_a_late_bar_of_a_sealed_session_is_stored_and_said_to_be_late(home: MakeHome) -> None:
    one = home()
    one.ingest(with_short_last_day("2015-06-30", 18))
    one.ingest(between("2015-07-01", "2015-07-02"))
    require_sealed(one.workspace, "2015-06")
    late = one.ingest(between("2015-06-30", "2015-06-30"))
    assert (late.n_new, late.n_late, late.n_unchanged) == (2, 2, 18)
    assert n_bars_at(one, "2015-06-30") == N_SYMBOLS
    assert one.rows("SELECT DISTINCT change FROM prices_restated") == [("late",)]


def test_windows_before_the_first_one_are_sealed_when_their_prices_come(home: MakeHome) -> None:
    """History that is delivered later is decided anew up to the first sealed window."""
    one = home()
    one.ingest(between("2015-07-01", "2015-08-04"))
    require_sealed(one.workspace, "2015-07")
    july = seals(one)
    before = history(one, "2015-08-01")
    past = one.ingest(between("2015-06-01", "2015-06-30"))
    assert past.n_rejected == {}
    assert past.n_new_sessions == 22
    assert history(one, "2015-08-01")[-23:] == before[-23:]
    assert [c.key for c in seal_until(one.workspace, "2015-07")] == ["2015-06"]
    assert seals(one)[1:] == july
    with one.workspace.series.reading() as con:
        assert frozen_range(con) == (date(2015, 6, 1), date(2015, 7, 31))


# --- what others ask


def test_keys_counts_and_the_frozen_stretch_are_those_that_are_stored(home: MakeHome) -> None:
    one = home(changes=WEEKLY)
    one.ingest(pd.concat([with_short_last_day("2015-06-17", 15), on("2015-06-13", 2)]))
    with one.workspace.series.reading() as con:
        assert sealed_keys(con) == set()
        assert frozen_range(con) is None
    seal_until(one.workspace, "2015-06-15")
    with one.workspace.series.reading() as con:
        assert sealed_keys(con) == {"2015-06-01", "2015-06-08"}
        assert frozen_range(con) == (date(2015, 6, 1), date(2015, 6, 14))
        counts = read_counts(con)
    assert [s.n_bars for s in counts] == [N_SYMBOLS] * 12 + [15]
    assert counts[-1] == Session(date(2015, 6, 17), 15)
    assert date(2015, 6, 13) not in {s.ts for s in counts}


def test_a_partition_is_served_by_the_newest_one_before_it_that_has_a_session() -> None:
    grid = Grid("weekly", date(2015, 6, 1))
    sessions = [date(2015, 6, 2), date(2015, 6, 5), date(2015, 6, 24)]
    wanted = {
        "2015-06-01": None,
        "2015-06-08": "2015-06-01",
        "2015-06-22": "2015-06-01",
        "2015-06-29": "2015-06-22",
        "2015-08-03": "2015-06-22",
    }
    assert {key: partition_before(grid, sessions, key) for key in wanted} == wanted
    assert partition_before(grid, [], "2015-06-08") is None


def test_a_grid_with_other_windows_has_the_same_rules(home: MakeHome) -> None:
    """As many seals as windows that are over, each with the sessions of its own."""
    for name, changes, n in (("d", DAILY, 29), ("w", WEEKLY, 4), ("m", None, 0)):
        one = home(name, changes)
        one.ingest(between("2015-06-01", "2015-06-30"))
        workspace = one.workspace
        last = workspace.grid.key(date(2015, 6, 30))
        (*done, waiting) = seal_until(workspace, last)
        assert (len(done), len(seals(one))) == (n, n)
        assert not waiting.is_sealable
        assert replace(waiting, key="") == replace(judge_until(workspace, last)[0], key="")
        for row in seals(one):
            start, end = workspace.grid.window(str(row[0]))
            assert row[1] == workspace.grid.asof(str(row[0]))
            assert row[5] is None or start <= row[5] < end
