"""One code for every cadence, time zone and calendar: day by day gives what a backfill gives."""

from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from quant_pipeline.defs.jobs import close_and_score
from quant_pipeline.market.calendars import listed_sessions
from quant_pipeline.market.grid import Grid
from quant_pipeline_tests.homes import sample_market

SMALL = {
    "n_folds = 2": "n_folds = 1",
    "min_train_sessions = 60": "min_train_sessions = 20",
    "stop_sessions = 20": "stop_sessions = 5",
    "test_sessions = 30": "test_sessions = 5",
    "window_sessions = 250": "window_sessions = 100",
    "min_rows = 500": "min_rows = 100",
    "min_data_in_leaf = 50": "min_data_in_leaf = 5",
    "max_rounds = 30": "max_rounds = 3",
    "threads = 1\n": "threads = 1\n\n[[tasks]]\ntask_id = 'ret_2d'\nkind = 'regression'\n"
    "horizon = 2\n",
}
LIVED = 4  # sessions that the second home sees one by one, two of each of two windows
CASES = {
    "weekly in New York by its calendar": ("weekly", "America/New_York", "XNYS"),
    "daily in India, found from prices": ("daily", "Asia/Kolkata", ""),
    "daily by the New York calendar": ("daily", "America/New_York", "XNYS"),
    "weekly round the clock": ("weekly", "UTC", "24/7"),
    "monthly round the clock, found from prices": ("monthly", "Pacific/Kiritimati", ""),
}


def bars_on(calendar: str, *, every_day: bool) -> pd.DataFrame:
    """The market on the dates of a calendar: the same bars, in their order."""
    bars = sample_market(n_symbols=12, n_sessions=150)
    days = np.sort(bars["ts"].unique())
    first = pd.Timestamp(days[0]).date()
    if every_day:
        dates = pd.date_range(first, periods=len(days)).to_numpy()
    elif calendar:
        dates = listed_sessions(calendar, first, first + timedelta(400))[: len(days)]
    else:
        dates = days
    return bars.assign(ts=dates[np.searchsorted(days, bars["ts"])].astype("datetime64[s]"))


def until_second_of_a_window(bars: pd.DataFrame, grid: Grid) -> list[date]:
    """Sessions, up to the newest that is the second one of its partition (daily: any)."""
    sessions = [pd.Timestamp(ts).date() for ts in sorted(bars["ts"].unique())]
    while grid.cadence != "daily" and (
        grid.key(sessions[-1]) != grid.key(sessions[-2])
        or grid.key(sessions[-2]) == grid.key(sessions[-3])
    ):
        sessions.pop()
    return sessions


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_day_by_day_gives_what_one_backfill_gives(home: Any, case: str) -> None:
    cadence, zone, calendar = CASES[case]
    changes = SMALL | {
        'cadence = "monthly"': f'cadence = "{cadence}"',
        'timezone = "America/New_York"': f'timezone = "{zone}"\n\n[sessions]\n'
        f'calendar = "{calendar}"',
    }
    bars = bars_on(calendar, every_day="clock" in case)
    at_once, lived = home("at_once", changes), home("lived", changes)
    sessions = until_second_of_a_window(bars, at_once.workspace.grid)
    bars = bars[bars["ts"] <= pd.Timestamp(sessions[-1])]
    at_once.ingest(bars)
    at_once.backfill(sessions[-LIVED])
    lived.ingest(bars[bars["ts"] < pd.Timestamp(sessions[-LIVED])])
    for i in range(len(sessions) - LIVED, len(sessions)):
        day = sessions[i]
        recent = [pd.Timestamp(ts) for ts in sessions[i - 2 : i + 1]]  # so that splits are seen
        lived.ingest(bars[bars["ts"].isin(recent)])
        with lived.runner() as runner:
            start = runner.workspace.grid.window(runner.workspace.grid.key(day))[0]
            close_and_score(runner, start, day, runner.workspace.tasks())
    stored = [ts for (ts,) in at_once.rows("SELECT ts FROM sessions WHERE is_session ORDER BY ts")]
    assert stored == sessions
    recent = [row for row in lived.scores() if row[0] >= sessions[-LIVED]]
    expected = [row for row in at_once.scores() if row[0] >= sessions[-LIVED]]
    assert recent == expected
    assert {row[0] for row in expected} == set(sessions[-LIVED:])
    for table in ("features_daily", "labels", "training_manifest"):
        sql = f"SELECT * FROM {table} ORDER BY ALL"
        assert repr(lived.rows(sql)) == repr(at_once.rows(sql)), table
    no_score_saw_its_own_window(at_once)


def no_score_saw_its_own_window(made: Any) -> None:
    """The model of every score is as of the newest window with sessions before its own."""
    ws = made.workspace
    sessions = [ts for (ts,) in made.rows("SELECT ts FROM sessions WHERE is_session ORDER BY ts")]
    scored = made.rows('SELECT DISTINCT ts, "asof", model_id FROM predictions')
    assert scored
    for ts, asof, model_id in scored:
        start = ws.grid.window(ws.grid.key(ts))[0]
        newest = max(day for day in sessions if day < start)
        assert asof == ws.grid.asof(ws.grid.key(newest)) < ts
        model = ws.meta.model(model_id)
        assert model.asof == asof
        assert model.last_ts < newest


def test_windows_tile_time_whatever_the_zone(home: Any) -> None:
    """The exchange's date, not the machine's, decides which day it is."""
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
        made = home(zone.split("/")[1], {'"America/New_York"': f'"{zone}"'})
        today = made.workspace.today()
        assert abs((today - date.today()).days) <= 1
    tomorrow = home("k", {'"America/New_York"': '"Pacific/Kiritimati"'}).workspace.today()
    today = home("p", {'"America/New_York"': '"Pacific/Pago_Pago"'}).workspace.today()
    assert (tomorrow - today).days in (1, 2)
