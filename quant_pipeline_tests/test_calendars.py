"""Rules of exchange calendars: which dates are regular sessions, and what a wrong name meets."""

from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.errors import SettingsError
from quant_pipeline.market.calendars import closed_sessions, listed_sessions

YEAR_2022 = date(2022, 1, 1), date(2022, 12, 31)
HOLIDAYS_2022 = {
    "2022-01-17", "2022-02-21", "2022-04-15", "2022-05-30", "2022-06-20", "2022-07-04",
    "2022-09-05", "2022-11-24", "2022-12-26",
}  # fmt: skip


def listed(name: str, first: str, last: str) -> list[str]:
    found = listed_sessions(name, date.fromisoformat(first), date.fromisoformat(last))
    assert found.dtype == np.dtype("datetime64[D]")
    return found.astype(str).tolist()


def test_new_york_has_its_weekdays_but_for_its_holidays() -> None:
    days = np.arange(YEAR_2022[0], YEAR_2022[1] + timedelta(days=1), dtype="datetime64[D]")
    weekdays = set(days[np.is_busday(days)].astype(str))
    assert set(listed("XNYS", "2022-01-01", "2022-12-31")) == weekdays - HOLIDAYS_2022


def test_closures_that_no_rule_foretold_are_in_it() -> None:
    assert listed("XNYS", "2001-09-07", "2001-09-18") == [
        "2001-09-07", "2001-09-10", "2001-09-17", "2001-09-18",
    ]  # fmt: skip
    assert listed("XNYS", "2012-10-26", "2012-10-31") == ["2012-10-26", "2012-10-31"]


def test_a_new_holiday_counts_from_its_first_year_on() -> None:
    """Juneteenth; the 19th of June 2022 is a Sunday, so the Monday after it is free."""
    assert listed("XNYS", "2022-06-17", "2022-06-21") == ["2022-06-17", "2022-06-21"]
    assert listed("XNYS", "2021-06-18", "2021-06-21") == ["2021-06-18", "2021-06-21"]
    assert listed("XNYS", "2023-06-19", "2023-06-19") == []


def test_half_days_are_sessions() -> None:
    for day in ("2022-11-25", "2019-07-03", "2019-12-24"):
        assert listed("XNYS", day, day) == [day]


def test_a_market_that_never_closes_lists_every_day() -> None:
    found = listed("24/7", "2020-02-27", "2020-03-02")
    assert found == ["2020-02-27", "2020-02-28", "2020-02-29", "2020-03-01", "2020-03-02"]


days = st.dates(date(2018, 12, 20), date(2022, 1, 10))


@settings(deadline=None)  # the first use of a calendar builds it
@given(days, days, st.sampled_from(["XNYS", "XBOM", "XPHS", "24/7"]))
def test_a_stretch_has_the_sessions_of_the_whole_within_both_dates(
    first: date, last: date, name: str
) -> None:
    """Rising and each once, whatever years are asked for."""
    whole = listed_sessions(name, date(2018, 1, 1), date(2022, 12, 31))
    assert (np.diff(whole) > np.timedelta64(0)).all()
    wanted = [d for d in whole.tolist() if first <= d <= last]
    assert listed_sessions(name, first, last).tolist() == wanted


@settings(deadline=None)
@given(days, st.integers(1, 400))
def test_dates_in_the_wrong_order_hold_no_session(first: date, n: int) -> None:
    found = listed_sessions("XNYS", first, first - timedelta(days=n))
    assert found.dtype == np.dtype("datetime64[D]")
    assert not len(found)


# --- sessions that are over


def test_a_session_is_over_when_its_date_is() -> None:
    friday, monday = date(2022, 6, 17), date(2022, 6, 20)
    tuesday = date(2022, 6, 21)
    assert closed_sessions("XNYS", friday, friday) == []
    assert closed_sessions("XNYS", friday, friday + timedelta(days=1)) == [friday]
    assert closed_sessions("XNYS", friday, monday) == closed_sessions("XNYS", friday, tuesday)
    assert closed_sessions("XNYS", friday, date(2022, 6, 22)) == [friday, tuesday]
    assert closed_sessions("XNYS", tuesday, friday) == []


@given(days, days)
def test_closed_sessions_are_listed_ones_before_today(first: date, today: date) -> None:
    found = closed_sessions("XNYS", first, today)
    assert found == [d for d in listed_sessions("XNYS", first, today).tolist() if d < today]
    assert all(type(d) is date for d in found)


# --- what is refused


@pytest.mark.parametrize(
    ("name", "meant"),
    [("XNYSE", "XNYS"), ("XBOMB", "XBOM"), ("24/77", "24/7"), ("NASDAK", "NASDAQ")],
)
def test_an_unknown_name_gets_a_suggestion(name: str, meant: str) -> None:
    with pytest.raises(SettingsError) as error:
        listed_sessions(name, *YEAR_2022)
    text = str(error.value)
    begin = f"sessions.calendar: No exchange calendar {name}. Did you mean {meant}? Known: "
    assert text.startswith(begin)
    assert ", XNYS, " in text


@pytest.mark.parametrize(
    ("name", "first", "last", "limit"),
    [
        ("XBOM", date(1995, 1, 2), date(1995, 1, 3), "1997"),
        ("XBOM", date(1995, 1, 2), date(2020, 1, 3), "1997"),
        ("XKRX", date(2020, 1, 2), date(2051, 1, 3), "2050"),
        ("XNYS", date(2020, 1, 2), date(2300, 1, 3), "2262"),
    ],
)
def test_years_that_a_calendar_does_not_cover_are_an_error_that_says_what_to_do(
    name: str, first: date, last: date, limit: str
) -> None:
    """Else dates before its first year would be no sessions, without a word."""
    with pytest.raises(SettingsError) as error:
        listed_sessions(name, first, last)
    text = str(error.value)
    assert text.startswith("sessions.calendar: ")
    assert limit in text
    assert "set grid.start in a new home to years that it covers" in text
    assert 'leave sessions.calendar empty ("")' in text
