"""Whether the day's prices came: from dates and a clock alone."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Literal

from quant_pipeline.market.calendars import closed_sessions
from quant_pipeline.settings import ScheduleSettings

State = Literal["new", "nothing_new", "late"]


@dataclass(frozen=True)
class Arrival:
    """What there is to do for the daily job, and why."""

    state: State
    expected: date
    words: str


def expected_session(now: datetime, spec: ScheduleSettings, calendar: str) -> date:
    """The newest session whose prices should be there at a moment of the exchange's clock.

    A date's prices are expected from `daily_at` on. Without a calendar every date on which the job
    runs counts as a session.
    """
    is_over = now.strftime("%H:%M") >= spec.daily_at
    day = now.date() if is_over else now.date() - timedelta(days=1)
    if calendar:
        listed = closed_sessions(calendar, day - timedelta(days=30), day + timedelta(days=1))
        return listed[-1] if listed else day
    while spec.days == "weekdays" and day.weekday() > 4:
        day -= timedelta(days=1)
    return day


def judge_arrival(
    newest: date | None, is_done: bool, now: datetime, spec: ScheduleSettings, calendar: str
) -> Arrival:
    """Tell new prices from a holiday and from late data.

    `newest` is the newest stored session, `is_done` whether all stored sessions are scored and
    judged. Without a calendar a holiday looks like late data: it ends as "nothing_new", and the
    words say that nobody can know.
    """
    expected = expected_session(now, spec, calendar)
    is_missing = newest is None or newest < expected
    if not is_done and newest is not None:
        still = f"; prices of {expected} are still missing" if is_missing else ""
        return Arrival("new", expected, f"sessions up to {newest} are to be scored{still}")
    if not is_missing:
        return Arrival("nothing_new", expected, f"{newest} is stored and scored; none is missing")
    have = f"the newest stored session is {newest}" if newest else "no session is stored"
    if calendar or newest is None:
        return Arrival("late", expected, f"prices of {expected} are missing; {have}")
    unknown = f"whether {expected} is a holiday or late cannot be known: sessions.calendar is empty"
    return Arrival("nothing_new", expected, f"{have}; {unknown}")
