"""What should be stored by now and is not."""

from collections.abc import Sequence
from datetime import date, timedelta

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import SettingsError
from quant_pipeline.market.calendars import closed_sessions
from quant_pipeline.market.closing import Session, judge_coverage

OLD_DAYS = 5


def find_late(
    ws: Workspace, counts: Sequence[Session], others: Sequence[tuple[date, int]]
) -> list[str]:
    """What should be there by now and is not, in words.

    From the stored sessions with their bars, and the dates with bars that are no sessions.
    """
    late: list[str] = []
    today, last = ws.today(), counts[-1].ts
    name = ws.settings.sessions.calendar
    if name:
        late += _missing_sessions(name, last, today)
    elif (today - last).days > OLD_DAYS:
        late.append(
            f"The newest session, {last}, is {_age((today - last).days)} old. "
            "(Set sessions.calendar in a new home to know which sessions are missing.)"
        )
    last_counted, usual = judge_coverage(counts)
    if last_counted.n_bars < ws.settings.seal.coverage * usual:
        late.append(f"{last} has {last_counted.n_bars} of {usual:g} usual bars so far.")
    for ts, n_bars in [o for o in others if o[0] > last][-3:]:
        late.append(f"{ts} has {n_bars} of {usual:g} usual bars: no session yet.")
    empty = [s.ts for s in counts if not s.n_bars]
    if empty:
        late.append(f"Without any bar are these sessions of {name}: {_some_days(empty[::-1])}.")
    return late


def _missing_sessions(name: str, last: date, today: date) -> list[str]:
    try:
        missing = closed_sessions(name, last + timedelta(days=1), today)
    except SettingsError as error:  # the calendar ends before today
        return [str(error)]
    if not missing:
        return []
    return [
        f"{name} had {len(missing)} sessions after {last}, the newest stored: "
        f"{_some_days(missing)}."
    ]


def _some_days(days: list[date]) -> str:
    shown = ", ".join(str(d) for d in days[:5])
    return f"{shown} and {len(days) - 5} more" if len(days) > 5 else shown


def _age(days: int) -> str:
    """How long that is, for people.

    >>> _age(7), _age(90), _age(3707)
    ('7 days', '3 months', '10 years')
    """
    if days < 60:
        return f"{days} days"
    return f"{days / 30.44:.0f} months" if days < 730 else f"{days / 365.25:.0f} years"
