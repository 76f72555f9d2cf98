"""Outcomes: what scores were worth once their labels were known; unlike ones are never pooled."""

from datetime import date

import pandas as pd
import streamlit as st

from quant_pipeline.chain import shown
from quant_pipeline.chain.shown_stats import (
    in_sample,
    is_after,
    mean_with_error,
    settings_in_words,
    settings_warning,
)
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.faces import charts
from quant_pipeline.faces.charts import number
from quant_pipeline.faces.web.shared import (
    ORIGINS,
    TOO_FEW,
    begin,
    choose_period,
    choose_task,
    of,
    plus_minus,
    remembered,
    section,
    show,
    workspace,
)
from quant_pipeline.settings import Task

ROWS = (("rank_ic", "sums"), ("months",), ("ic", "decay"), ("quantiles", "spread"),
        ("capital", "drawdown"), ("turnover",))  # fmt: skip
WHICH = {"after": "After the settings were chosen", "all": "All"}


def page() -> None:
    """Choose a task, an origin and a period; show what its scores were worth."""
    begin("Outcomes", "Scores against the returns that followed, by session; chance is 0.")
    with section():
        filters = st.columns([2, 2, 3])
        task = choose_task(filters[0])
        everything = remembered(shown.read_judged, of(task))
        origins = [o for o in ORIGINS if (everything["origin"] == o).any()]
        origin = filters[1].segmented_control(
            "Origin", origins, default=origins[0], format_func=ORIGINS.__getitem__,
            help="Live scores were made on their day, those of a backfill later.",
        ) or origins[0]  # fmt: skip
        mine = _choose_sample(everything[everything["origin"] == origin])
        first, last = choose_period(mine["ts"].min().date(), mine["ts"].max().date(), filters[2])
        between = (mine["ts"] >= pd.Timestamp(first)) & (mine["ts"] <= pd.Timestamp(last))
        chosen = mine[between].reset_index(drop=True)
        if chosen.empty:
            st.info("No judged session lies in that range.")
            return
        _summary(task, chosen)
        _charts(task, chosen)


def _choose_sample(judged: pd.DataFrame) -> pd.DataFrame:
    """Sessions after the settings were chosen, or all; no choice where there is one kind."""
    after = is_after(judged)
    if after.all() or not after.any():
        return judged
    which = st.segmented_control(
        "Sessions for the settings", list(WHICH), default="after", format_func=WHICH.__getitem__,
        help=f"{(~after).sum()} of {len(judged)} sessions may have led the choice of the "
        "settings: they are in sample for those, and left out unless all are asked for.",
    ) or "after"  # fmt: skip
    return judged if which == "all" else judged[after]


def _summary(task: Task, judged: pd.DataFrame) -> None:
    rank_ic = mean_with_error(judged["rank_ic"], task.horizon)
    net = mean_with_error(judged["net"], task.horizon)
    turnover = mean_with_error(judged["turnover"], task.horizon)
    cells = st.columns(4)
    cells[0].metric("RankIC", plus_minus(rank_ic["mean"], rank_ic["se"], ".3f"),
                    help="Mean over sessions ± Newey-West standard error.")  # fmt: skip
    cells[1].metric(
        "Sessions", f"{len(judged):,}",
        help=f"{rank_ic['n']:,} of them have a RankIC: enough names with a score and an outcome.",
    )  # fmt: skip
    cells[2].metric(
        f"Top {settings_in_words(judged, 'top_k', 'k')}, {task.horizon} sessions, net",
        f"{number(net['mean'], '+.2%')} ± {number(net['se'], '.2%')}",
        help="Mean return of a tranche of the top-k portfolio, net of costs.",
    )
    cells[3].metric("Turnover of the top fifth", number(turnover["mean"], ".0%"),
                    help="Share of names that were not in it a session before.")  # fmt: skip
    if rank_ic["is_short"]:
        st.caption(f"{TOO_FEW.capitalize()}: under ten horizons.")
    for words in (settings_warning(judged, workspace().settings.metrics), in_sample(judged)):
        if words:
            st.warning(words, icon=":material/warning:")


def _charts(task: Task, judged: pd.DataFrame) -> None:
    drawn = charts.of_outcomes(judged, remembered(_sessions), task.horizon)
    for names in ROWS:
        if len(names) == 1:
            show(drawn[names[0]])
        else:
            _beside(*(drawn[name] for name in names))


def _beside(*pair: charts.Chart) -> None:
    """Two charts side by side, or one below the other on a telephone."""
    for place, chart in zip(st.columns(2), pair, strict=True):
        with place:
            show(chart)


def _sessions(ws: Workspace) -> list[date]:
    return shown.read_stored_shown(ws).sessions
