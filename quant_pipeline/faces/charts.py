"""Charts of outcomes: frames in, Altair out; for the page and for reports.

Colours are legible on white and on black; text takes its colour from whoever shows the chart.
"""

from collections.abc import Sequence
from datetime import date
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from quant_pipeline.chain.shown_stats import (
    by_age,
    by_month,
    by_quantile,
    capital,
    portfolio_title,
    smoothed,
)

BLUE, RED, GREY, GREEN = "#4a86c5", "#cf6a4c", "#8b949e", "#5a9e6f"
AMBER = "#e0a030"  # errors and spreads: to be seen on bars, on white and on black
Chart = alt.Chart | alt.LayerChart
HEIGHT = 190
MOST_POINTS = 800
WHEN = alt.Tooltip("ts:T", title="session", format="%Y-%m-%d")
KNOWN = alt.Tooltip("ts:T", title="known on", format="%Y-%m-%d")
ABOVE = alt.Legend(orient="top", offset=4)
APART: dict[str, Any] = {"labelOverlap": True, "labelSeparation": 12}
ZERO = "datum.value == 0 ? '0' : datum.label"

alt.data_transformers.disable_max_rows()


def number(value: float | None, form: str = "+.4f") -> str:
    """A number for people; a missing one is a dash."""
    return "–" if value is None or value != value else format(value, form)


def time_axis(days: "pd.Series[Any]", name: str = "ts:T") -> alt.X:
    """Time along the horizontal axis; no two ticks of it have the same label."""
    span = (days.max() - days.min()).days if len(days) else 0
    ticks: Any = 6
    if span > 5 * 366:
        form = "%Y"
    elif span > 100:  # so many that ticks are a month apart at least
        form = "%Y-%m"
    else:
        form = "%Y-%m-%d"
        step = next((n for n in (1, 2) if span <= 5 * n), 7 if span <= 35 else 14)
        ticks = {"interval": "day", "step": step} if step < 7 else {
            "interval": "week", "step": step // 7}  # fmt: skip
    return alt.X(name).title(None).axis(format=form, tickCount=ticks, grid=False, **APART)


def signed_axis(form: str, ticks: int = 5) -> alt.Axis:
    """An axis of numbers with their sign, but for 0."""
    return alt.Axis(format=form, tickCount=ticks, labelExpr=ZERO)


def percent_of(largest: float) -> str:
    """The format of shares up to a size, with so many digits that an axis tells them apart."""
    return ".0%" if not 0 < largest < 0.05 else ".1%" if largest >= 0.005 else ".2%"


def titled(chart: Any, title: str, words: str, height: int = HEIGHT) -> Chart:
    """A chart with its title, the height of what is drawn, and `words` for who cannot see it.

    Always of layers: over the legend of one that has none Streamlit leaves a gap.
    """
    layered: Any = chart if isinstance(chart, alt.LayerChart) else alt.layer(chart)
    found: Chart = layered.properties(
        title=title, height=height, description=words,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
    )  # fmt: skip
    return found


def per_point(n_rows: int) -> int:
    """How many consecutive rows are one point of a chart."""
    return max(1, -(-n_rows // MOST_POINTS))


def thinned(rows: pd.DataFrame, **how: str) -> pd.DataFrame:
    """At most MOST_POINTS rows: of so many consecutive ones, `how` of each column ("mean", "last").

    ``ts`` is the last one's. More points than pixels only take time.
    """
    each = per_point(len(rows))
    if each <= 1:
        return rows
    found = rows.groupby(np.arange(len(rows)) // each).agg({"ts": "last"} | how)
    return found.reset_index(drop=True)


def by_session(
    judged: pd.DataFrame, column: str, name: str, title: str, form: str = ".2f"
) -> Chart:
    """A metric of each session, faint, under its mean of 63 sessions; 0 is marked.

    Sessions that may have led the choice of the settings are shaded. In a long history a faint
    point is the mean of some sessions, and says of how many.
    """
    smooth = judged.assign(smooth=smoothed(judged, column))[["ts", column, "smooth"]]
    shown = thinned(smooth, **{column: "mean", "smooth": "last"})
    each = per_point(len(judged))
    faint = name if each == 1 else f"{name}, mean of {each} sessions"
    y = alt.Y(f"{column}:Q").title(faint).axis(signed_axis(form))
    base = alt.Chart(shown).encode(time_axis(judged["ts"]))
    raw = base.mark_line(color=GREY, opacity=0.45, strokeWidth=0.8).encode(y)
    digits = ".2%" if "%" in form else ".4f"
    line = base.mark_line(color=BLUE, strokeWidth=2).encode(
        alt.Y("smooth:Q"),
        tooltip=[
            WHEN if each == 1 else alt.Tooltip("ts:T", title="up to", format="%Y-%m-%d"),
            alt.Tooltip(f"{column}:Q", title=faint, format=digits),
            alt.Tooltip("smooth:Q", title="mean of 63", format=digits),
        ],
    )
    layers = [*_shade(judged), zero(), raw, line]
    mean = number(judged[column].mean(), digits)
    words = f"{title}: {len(judged)} sessions, mean {mean}, with their mean of 63 sessions."
    return titled(alt.layer(*layers), title, words)


def zero() -> alt.Chart:
    """A dashed line at 0."""
    line = alt.Chart(pd.DataFrame({"y": [0.0]})).mark_rule(color=GREY, strokeDash=[3, 3])
    found: alt.Chart = line.encode(alt.Y("y:Q"))
    return found


def _shade(judged: pd.DataFrame) -> list[alt.Chart]:
    """Each run of sessions that are in sample for the settings, up to the session after it."""
    is_inside = ~judged["settings_known_before"].astype(bool).to_numpy()
    if not is_inside.any():
        return []
    edges = np.diff(np.concatenate(([0], is_inside.astype(int), [0])))
    ts = judged["ts"].to_numpy()
    ends = np.append(ts, ts[-1] + np.timedelta64(1, "D"))
    spans = pd.DataFrame({"from": ts[edges[:-1] == 1], "to": ends[edges == -1]})
    shaded = alt.Chart(spans.assign(what="in sample for the settings"))
    return [
        shaded.mark_rect(color=GREY, opacity=0.15).encode(
            alt.X("from:T"), alt.X2("to:T"), tooltip=alt.Tooltip("what:N", title=" ")
        )
    ]


def cumulative(judged: pd.DataFrame, title: str) -> Chart:
    """The running sums of IC and RankIC."""
    sums = judged[["ts", "ic", "rank_ic"]].copy()
    sums[["ic", "rank_ic"]] = sums[["ic", "rank_ic"]].fillna(0.0).cumsum()
    sums = thinned(sums, ic="last", rank_ic="last")
    long = sums.rename(columns={"ic": "IC", "rank_ic": "RankIC"}).melt(
        "ts", var_name="metric", value_name="sum"
    )
    lines = (
        alt.Chart(long)
        .mark_line(strokeWidth=1.8)
        .encode(
            time_axis(judged["ts"]),
            alt.Y("sum:Q").title("running sum").axis(tickCount=5),
            alt.Color("metric:N")
            .title(None)
            .scale(domain=["RankIC", "IC"], range=[BLUE, GREY])
            .legend(ABOVE),
            tooltip=[WHEN, "metric:N", alt.Tooltip("sum:Q", format=".2f")],
        )
    )
    last = sums.iloc[-1]
    words = f"{title}: RankIC sums up to {last['rank_ic']:.2f}, IC to {last['ic']:.2f}."
    return titled(alt.layer(*_shade(judged), lines), title, words)


def heat_map(months: pd.DataFrame, title: str) -> Chart:
    """Means by month, 1 to 12, and year; colours are centred on 0."""
    limit = float(np.nanmax(np.abs(months["mean"]))) if len(months) else 1.0
    cells = (
        alt.Chart(months.assign(year=months["year"].astype(str)))
        .mark_rect(cornerRadius=2)
        .encode(
            alt.X("month:O").title("month").axis(labelAngle=0, grid=False, labelOverlap=False),
            alt.Y("year:O").title(None).axis(grid=False, labelOverlap=False),
            alt.Color("mean:Q")
            .title("mean")
            .scale(scheme="redblue", domain=[-limit, limit])
            .legend(
                orient="top", direction="horizontal", offset=4, gradientLength=160,
                gradientThickness=10, titleOrient="left", tickCount=3, format="+.2f",
                labelExpr=ZERO,
            ),
            tooltip=[
                "year", "month", alt.Tooltip("mean:Q", format="+.4f"),
                alt.Tooltip("n:Q", title="sessions"),
            ],
        )
    )  # fmt: skip
    n_up = int((months["mean"] > 0).sum())
    words = f"{title}: {n_up} of {len(months)} months are above 0."
    return titled(cells, title, words, height=26 * months["year"].nunique())


def with_errors(
    rows: pd.DataFrame, column: str, heading: str, y: str, title: str, *, percent: bool = False
) -> Chart:
    """Means as bars with ± 1 standard error, in the order of `column`."""
    form = "+.2%" if percent else "+.3f"
    shown = rows.assign(low=rows["mean"] - rows["se"], high=rows["mean"] + rows["se"])
    base = alt.Chart(shown).encode(
        alt.X(f"{column}:O").title(heading).axis(labelAngle=0, grid=False)
    )
    bars = base.mark_bar(width={"band": 0.6}).encode(
        alt.Y("mean:Q").title(y).axis(signed_axis(form)),
        color=alt.condition("datum.mean < 0", alt.value(RED), alt.value(BLUE)),
        tooltip=[column, alt.Tooltip("mean:Q", format=form), alt.Tooltip("se:Q", format=form),
                 alt.Tooltip("n:Q", title="sessions")],
    )  # fmt: skip
    errors = base.mark_rule(color=AMBER, strokeWidth=2).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    told = ", ".join(
        f"{row[column]}: {number(row['mean'])} ± {number(row['se'], '.4f')}"
        for row in rows.to_dict("records")
    )
    return titled(bars + errors, title, f"{title}. {told}.")


def capital_lines(found: pd.DataFrame, title: str) -> Chart:
    """What 1 became, gross and net of costs, by when it was known."""
    shown = thinned(found, gross="last", net="last")
    long = shown.rename(columns={"net": "net of costs"}).melt(
        "ts", ["gross", "net of costs"], "which", "capital"
    )
    lines = (
        alt.Chart(long)
        .mark_line(strokeWidth=1.8)
        .encode(
            time_axis(found["ts"]),
            alt.Y("capital:Q").title("capital, 1 at the start").scale(zero=False).axis(tickCount=5),
            alt.Color("which:N")
            .title(None)
            .scale(domain=["net of costs", "gross"], range=[BLUE, GREY])
            .legend(ABOVE),
            tooltip=[KNOWN, "which:N", alt.Tooltip("capital:Q", format=".3f")],
        )
    )
    last = found.iloc[-1]
    words = f"{title}: 1 became {last['gross']:.2f} gross and {last['net']:.2f} net of costs."
    return titled(lines, title, words)


def drawdown(found: pd.DataFrame, title: str) -> Chart:
    """How far the capital was below its highest value so far."""
    worst = -float(found["drawdown"].min())
    area = (
        alt.Chart(thinned(found, drawdown="min"))
        .mark_area(color=RED, opacity=0.5, line={"color": RED, "strokeWidth": 1})
        .encode(
            time_axis(found["ts"]),
            alt.Y("drawdown:Q")
            .title("below the highest")
            .axis(format=percent_of(worst), tickCount=4, labelExpr=ZERO),
            tooltip=[KNOWN, alt.Tooltip("drawdown:Q", format=".2%")],
        )
    )
    words = f"{title}: {number(-worst, '.1%')} at worst."
    return titled(area, title, words, height=110)


def of_outcomes(judged: pd.DataFrame, sessions: Sequence[date], horizon: int) -> dict[str, Chart]:
    """Every chart of what scores were worth, by name, for the page and for the report alike."""
    returns = f"{horizon}-session return"
    money = capital(judged, sessions, horizon)
    top = max(int(name[-1]) for name in judged.columns if name.startswith("quantile_"))
    judged = judged.assign(spread=judged[f"quantile_{top}"] - judged["quantile_1"])
    return {
        "rank_ic": by_session(judged, "rank_ic", "RankIC", "RankIC by session, and mean of 63"),
        "sums": cumulative(judged, "Running sum of RankIC and IC"),
        "months": heat_map(by_month(judged, "rank_ic"), "Mean RankIC by month"),
        "ic": by_session(judged, "ic", "IC", "IC by session, and mean of 63"),
        "decay": with_errors(
            by_age(judged, horizon), "age", "age of the score in sessions", "RankIC",
            "Decay: RankIC by age of the score",
        ),
        "quantiles": with_errors(
            by_quantile(judged, horizon), "quantile", "fifth of the score, 5 is the highest",
            returns, f"{returns} by fifth of the score, gross", percent=True,
        ),
        "spread": by_session(
            judged, "spread", "return", f"Top minus bottom fifth, {returns}, gross", "+.1%"
        ),
        "capital": capital_lines(money, portfolio_title(judged, horizon)),
        "drawdown": drawdown(money, "Drawdown of the top-k portfolio, net of costs"),
        "turnover": by_session(
            judged, "turnover", "share", "Turnover of the top fifth, a session", ".0%"
        ),
    }  # fmt: skip
