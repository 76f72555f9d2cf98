"""Exchange calendars by name (exchange-calendars): which dates are regular sessions."""

from datetime import date, timedelta
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from quant_pipeline.errors import SettingsError, unknown_name

if TYPE_CHECKING:
    from exchange_calendars import ExchangeCalendar


def listed_sessions(name: str, first: date, last: date) -> npt.NDArray[np.datetime64]:
    """Dates of regular sessions of an exchange within dates both included.

    Half days count as any other; special sessions that no calendar lists are missing.
    Raises SettingsError for an unknown calendar, or for years that it does not cover.
    """
    if last < first:
        return np.empty(0, "datetime64[D]")
    sessions = calendar(name, first.year, last.year).sessions.to_numpy().astype("datetime64[D]")
    within = (sessions >= np.datetime64(first)) & (sessions <= np.datetime64(last))
    found: npt.NDArray[np.datetime64] = sessions[within]
    return found


def closed_sessions(name: str, first: date, today: date) -> list[date]:
    """Regular sessions from `first` on that are over: those before `today`."""
    found: list[date] = listed_sessions(name, first, today - timedelta(days=1)).tolist()
    return found


@cache
def calendar(name: str, first_year: int, last_year: int) -> "ExchangeCalendar":
    """The calendar of that name over whole years.

    Names are those of the library: ISO 10383 codes such as XNYS, XBOM or XPHS, and 24/7.
    """
    from exchange_calendars import get_calendar, get_calendar_names  # a second, only if used
    from exchange_calendars.errors import InvalidCalendarName

    try:
        return get_calendar(name, start=f"{first_year}-01-01", end=f"{last_year}-12-31")
    except InvalidCalendarName as error:
        known = unknown_name("exchange calendar", name, get_calendar_names())
        raise SettingsError(f"sessions.calendar: {known}") from error
    except ValueError as error:  # its years are limited
        raise SettingsError(
            f"sessions.calendar: {error} For later years upgrade the package exchange-calendars, "
            "for earlier ones set grid.start in a new home to years that it covers, or leave "
            'sessions.calendar empty (""): sessions are then found from the prices.'
        ) from error
