"""Predictions: the newest session ranked, one symbol through time, why a score is what it is."""

from datetime import date, timedelta
from typing import Any

import pandas as pd
import streamlit as st

from quant_pipeline.chain import shown
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData
from quant_pipeline.faces import model_charts as charts
from quant_pipeline.faces.web.shared import (
    begin,
    choose_task,
    csv_of,
    of,
    remembered,
    section,
    show,
)
from quant_pipeline.settings import Task

COLUMNS = {
    "rank": "rank", "symbol": "symbol", "score": "score", "score_percentile": "percentile",
    "model": "model", "asof": "model as of", "origin": "origin", "generated_at": "made at",
}  # fmt: skip


SPANS = {"2 years": 730, "all": None}


def page() -> None:
    """Show ranked scores with filters, then one symbol."""
    begin("Predictions", "Out-of-sample scores: each by a model from before its session.")
    with section():
        filters = st.columns([2, 3, 2, 3])
        task = choose_task(filters[0])
        sessions = remembered(shown.scored_sessions, of(task))
        if not sessions:
            raise NoData(shown.NO_PREDICTIONS)
        days = _of_model(task, sessions, filters[1])
        if not days:
            st.info("That model has not served yet: no session was scored by it.")
            return
        day = filters[2].selectbox("Session", days, format_func=date.isoformat)
        rows = remembered(_ranked, of(task), day)
        symbols = filters[3].multiselect("Symbols", sorted(rows["symbol"]), placeholder="all")
        _table(task, day, rows[rows["symbol"].isin(symbols)] if symbols else rows)
        st.divider()
        left, right = st.columns([3, 1])
        symbol = left.selectbox(
            "One symbol through time", sorted(rows["symbol"]),
            index=int(rows["symbol"].sort_values().reset_index(drop=True).eq(
                symbols[0] if symbols else rows["symbol"].iloc[0]).idxmax()),
        )  # fmt: skip
        span = right.segmented_control("Span", list(SPANS), default="2 years") or "2 years"
        days_back = SPANS[span]
        first = sessions[0] - timedelta(days=days_back) if days_back else None
        _symbol(task, symbol, first)


def _of_model(task: Task, sessions: list[date], place: Any) -> list[date]:
    """The sessions that a chosen model served, newest first; all of them if none is chosen."""
    services = remembered(_services, of(task))
    model = place.selectbox(
        "Model", [None, *services],
        format_func=lambda m: f"{m[:12]}, as of {services[m][0]}" if m else "whichever served",
        help="A session has the scores of one champion: a model is chosen to see its sessions.",
    )  # fmt: skip
    if model is None:
        return sessions
    return [d for d in sessions if any(a <= d < b for a, b in services[model][1])]


def _services(ws: Workspace, task: Task) -> dict[str, tuple[date, list[tuple[date, date]]]]:
    """Each champion's as-of and the spans in which it served, ``[from, before)``; newest first."""
    found = ws.meta.champions(task.task_id)
    asof = {m.model_id: m.asof for m in ws.meta.models(task.task_id)}
    ends = [c.from_ts for c in found[1:]] + [date.max]
    spans: dict[str, tuple[date, list[tuple[date, date]]]] = {}
    for champion, end in reversed(list(zip(found, ends, strict=True))):
        kept = spans.setdefault(champion.model_id, (asof[champion.model_id], []))
        kept[1].append((champion.from_ts, end))
    return spans


def _ranked(ws: Workspace, task: Task, day: date) -> pd.DataFrame:
    rows: pd.DataFrame = shown.read_predictions(ws, task.task_id, day, day).to_pandas()
    rows = rows.sort_values(["score", "symbol"], ascending=[False, True], ignore_index=True)
    return rows.assign(rank=rows.index + 1, model=rows["model_id"].str[:12])


def _table(task: Task, day: date, rows: pd.DataFrame) -> None:
    st.dataframe(
        rows.assign(score_percentile=100 * rows["score_percentile"])[list(COLUMNS)].rename(
            columns=COLUMNS
        ),
        hide_index=True,
        height=360,
        column_config={
            "score": st.column_config.NumberColumn(format="%.4f"),
            "percentile": st.column_config.ProgressColumn(
                format="%.0f %%", min_value=0, max_value=100
            ),
            "made at": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
        },
        alt=f"{len(rows)} scores of {task.task_id} on {day}, best first",
    )
    named = [c for c in rows.columns if c not in ("rank", "model")]
    st.download_button(
        f"Download {len(rows):,} scores as CSV", csv_of(rows[named]),
        f"{task.task_id}_{day}.csv", "text/csv", icon=":material/download:",
    )  # fmt: skip


def _symbol(task: Task, symbol: str, first: date | None) -> None:
    left, right = st.columns([3, 2])
    with left, section():
        history = remembered(shown.read_symbol, of(task), symbol, first)
        show(charts.symbol_scores(history, symbol))
        show(charts.symbol_returns(history, symbol, task.horizon))
    with right, section():
        found = remembered(shown.explain_newest, of(task), symbol)
        show(charts.contributions(found, log_odds=task.kind == "classification"))
        if abs(found["score"] - found["score_now"]) > 1e-12:
            st.caption(
                f"Today's features would give {found['score_now']:.4f}: prices were restated "
                "since. The contributions explain that."
            )
