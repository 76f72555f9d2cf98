"""Predictions: the newest session ranked, one symbol through time, why a score is what it is."""

from datetime import date

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


def page() -> None:
    """Show ranked scores with filters, then one symbol."""
    begin("Predictions", "Out-of-sample scores: each by a model from before its session.")
    with section():
        filters = st.columns([2, 2, 2, 3])
        task = choose_task(filters[0])
        sessions = remembered(shown.scored_sessions, of(task))
        if not sessions:
            raise NoData(shown.NO_PREDICTIONS)
        day = filters[1].selectbox("Session", sessions, format_func=date.isoformat)
        rows = remembered(_ranked, of(task), day)
        models = ["all", *sorted(rows["model"].unique())]
        model = filters[2].selectbox("Model", models)
        symbols = filters[3].multiselect("Symbols", sorted(rows["symbol"]), placeholder="all")
        chosen = rows
        if model != "all":
            chosen = chosen[chosen["model"] == model]
        if symbols:
            chosen = chosen[chosen["symbol"].isin(symbols)]
        _table(task, day, chosen)
        st.divider()
        symbol = st.selectbox(
            "One symbol through time", sorted(rows["symbol"]),
            index=int(rows["symbol"].sort_values().reset_index(drop=True).eq(
                symbols[0] if symbols else rows["symbol"].iloc[0]).idxmax()),
        )  # fmt: skip
        _symbol(task, symbol)


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


def _symbol(task: Task, symbol: str) -> None:
    left, right = st.columns([3, 2])
    with left, section():
        history = remembered(shown.read_symbol, of(task), symbol)
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
