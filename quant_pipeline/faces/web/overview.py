"""Overview: how far data reach, who is champion, how scores do, what needs attention."""

from typing import Any
from urllib.parse import quote, urlencode

import pandas as pd
import streamlit as st

from quant_pipeline.chain import shown
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData
from quant_pipeline.faces.output import count
from quant_pipeline.faces.web.shared import (
    NOTHING,
    TOO_FEW,
    begin,
    dagster_address,
    dagster_link,
    of,
    plus_minus,
    remembered,
    section,
    workspace,
)
from quant_pipeline.settings import Task

MOST = 12  # lines of what needs attention


def page() -> None:
    """Show the state of the home in one screen."""
    begin("Overview", "What is there, what it was worth lately, and what needs a person.")
    with section():
        _numbers(remembered(_coverage))
    for task in workspace().settings.tasks:
        with section(task.task_id):
            _task(task)
    with section("Needs attention"):
        _attention(remembered(shown.find_attention))
    left, middle, _ = st.columns(3)
    with left:
        dagster_link("Runs and schedules in Dagster", "runs")
    with middle:
        dagster_link("The asset graph", "asset-groups")


def _coverage(ws: Workspace) -> dict[str, Any]:
    stored = shown.read_stored_shown(ws)
    symbols = ws.published.read("coverage_by_symbol")
    return {
        "last": stored.last_session, "first": stored.first_session,
        "sessions": len(stored.sessions), "symbols": 0 if symbols is None else len(symbols),
        "models": len(ws.meta.trained()),
    }  # fmt: skip


def _numbers(found: dict[str, Any]) -> None:
    cells = st.columns(4)
    cells[0].metric("Data through session", found["last"].isoformat())
    cells[1].metric("Sessions", f"{found['sessions']:,}", help=f"From {found['first']} on.")
    cells[2].metric("Symbols", f"{found['symbols']:,}")
    cells[3].metric("Models", f"{found['models']:,}")


def _task(task: Task) -> None:
    champion = remembered(_champion, of(task))
    cells = st.columns(4)
    cells[0].metric("Champion", champion["model"], help=champion["why"])
    cells[1].metric("As of", champion["asof"])
    if champion["later"]:
        cells[0].caption(champion["later"])
    newest = remembered(shown.newest_session, of(task))
    cells[2].metric("Scored through", newest.isoformat() if newest else NOTHING)
    try:
        recent = remembered(shown.recent_rank_ic, of(task))
    except NoData as error:
        cells[3].metric("RankIC, 12 months", NOTHING, help=str(error))
        return
    live_first = sorted(recent, key=lambda row: row["origin"] != "live")
    row = live_first[0]
    cells[3].metric(
        f"RankIC, 12 months, {row['origin']}",
        plus_minus(row["mean"], row["se"], ".3f"),
        help=f"Mean of {count(row['n'], 'session')} ± Newey-West standard error; chance is 0.",
    )
    for caveat in _caveats(row):
        cells[3].caption(caveat)
    for other in live_first[1:]:
        told = [count(other["n"], "session"), *_caveats(other)]
        cells[3].caption(
            f"{other['origin']}: {plus_minus(other['mean'], other['se'], '.3f')} "
            f"({', '.join(told)})"
        )


def _caveats(row: dict[str, Any]) -> list[str]:
    return [
        *(["in sample for the settings"] if row["is_in_sample"] else []),
        *([TOO_FEW] if row["is_short"] else []),
    ]


def _champion(ws: Workspace, task: Task) -> dict[str, str]:
    """Who serves the newest session, and who is to serve later."""
    found = ws.meta.champions(task.task_id)
    if not found:
        why = "No partition has been scored yet: run `quant score`."
        return {"model": NOTHING, "asof": NOTHING, "why": why, "later": ""}
    last = shown.read_stored_shown(ws).last_session
    serving = [c for c in found if c.from_ts <= last]
    newest = (serving or found)[-1]
    later = [f"{c.model_id[:8]} from {c.from_ts} on: {c.why}" for c in found if c.from_ts > last]
    model = ws.meta.model(newest.model_id)
    why = f"{newest.why}; serves from {newest.from_ts} on."
    return {"model": newest.model_id[:8], "asof": model.asof.isoformat(), "why": why,
            "later": "; ".join(later)}  # fmt: skip


def _attention(found: list[shown.Attention]) -> None:
    if not found:
        st.success("Nothing: checks passed, partitions are fresh, data are complete.",
                   icon=":material/check_circle:")  # fmt: skip
        return
    rows = [
        {"": "error" if a.severity == "ERROR" else "warning", "what": a.what, "next": _next(a)}
        for a in found[:MOST]
    ]
    st.table(pd.DataFrame(rows).set_index(""))
    if len(found) > MOST:
        st.caption(f"And {len(found) - MOST} more: `quant status`.")


def _next(one: shown.Attention) -> str:
    """What to do, and a link to the partition in Dagster, if that runs beside the page."""
    address = dagster_address()
    if not address or not one.asset:
        return one.next_step
    query = urlencode({"view": "partitions", "partition": one.partition_key})
    link = f"{address}/assets/{quote(one.asset)}?{query}"
    return f"{one.next_step} [{one.asset}, {one.partition_key}]({link})"
