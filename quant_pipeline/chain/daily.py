"""What the daily job has to do, and the record of what it did."""

from collections.abc import Sequence
from datetime import date, datetime

from quant_pipeline.chain.plan import missing_scores
from quant_pipeline.chain.stale import Stored, read_stored, stale_data
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData
from quant_pipeline.market.arrival import Arrival, expected_session, judge_arrival
from quant_pipeline.settings import Task
from quant_pipeline.stores.meta import DailyRun, utc_now


def look_around(ws: Workspace, now: datetime, tasks: Sequence[Task]) -> tuple[Arrival, date | None]:
    """What there is to do at a moment, and the first session to score, if any.

    Days that were missed are part of it: scoring begins in the newest partition that was served.
    """
    spec, calendar = ws.settings.schedule, ws.settings.sessions.calendar
    try:
        stored = read_stored(ws)
    except NoData:
        return judge_arrival(None, False, now, spec, calendar), None
    first = first_to_score(ws, stored, tasks)
    keys = ws.grid.keys(ws.grid.key(first), ws.grid.key(stored.last_session))
    is_done = not any(stale_data(ws, stored).values()) and not missing_scores(ws, keys, tasks)
    return judge_arrival(stored.last_session, is_done, now, spec, calendar), first


def first_to_score(ws: Workspace, stored: Stored, tasks: Sequence[Task]) -> date:
    """The first day of the newest partition that a champion serves, else of the newest one."""
    ids = {task.task_id for task in tasks}
    served = [ws.grid.window(c.partition_key)[0] for c in ws.meta.champions() if c.task_id in ids]
    newest = ws.grid.window(ws.grid.key(stored.last_session))[0]
    return max(min([max(served), newest] if served else [newest]), stored.first_session)


def is_settled(ws: Workspace, now: datetime) -> bool:
    """Whether the daily job has had today's prices, or has given up on them."""
    runs = ws.meta.daily_runs()
    if not runs:
        return False
    expected = expected_session(now, ws.settings.schedule, ws.settings.sessions.calendar)
    newest = runs[-1]
    if newest.state in ("scored", "nothing_new"):
        return newest.newest_session is not None and newest.newest_session >= expected
    return newest.state == "given_up" and newest.expected >= expected


def is_too_late(ws: Workspace, now: datetime, expected: date) -> bool:
    """Whether missing prices are an error by now: of an earlier day, or of today after hours."""
    return expected < now.date() or now.strftime("%H:%M") >= ws.settings.schedule.late_after


def record(
    ws: Workspace, state: str, arrival: Arrival, newest: date | None, words: str, run_id: str
) -> DailyRun:
    """Note what a daily run found and did."""
    return ws.meta.add_daily_run(
        DailyRun(
            state=state, expected=arrival.expected, newest_session=newest, words=words,
            run_id=run_id, ran_at=utc_now(),
        )
    )  # fmt: skip
