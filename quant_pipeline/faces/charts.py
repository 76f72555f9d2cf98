"""Charts of outcomes: frames in, Altair out; for the page and for reports.

Colours are legible on white and on black; text takes its colour from whoever shows the chart.
"""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from quant_pipeline.chain.shown_stats import smoothed

BLUE, RED, GREY, GREEN = "#4a86c5", "#cf6a4c", "#8b949e", "#5a9e6f"
Chart = alt.Chart | alt.LayerChart
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
HEIGHT = 260
MOST_POINTS = 800

alt.data_transformers.disable_max_rows()


def time_axis(name: str = "ts:T") -> alt.X:
    """Months along the horizontal axis."""
    return alt.X(name).title(None).axis(format="%Y-%m", tickCount=6, grid=False)


def titled(chart: Any, title: str, words: str, height: int = HEIGHT) -> Chart:
    """A chart with its title and height in all, and with `words` for who cannot see it."""
    found: Chart = chart.properties(
        title=title, height=height, description=words,
        autosize=alt.AutoSizeParams(type="fit", contains="padding"),
    )  # fmt: skip
    return found


def thinned(rows: pd.DataFrame, **how: str) -> pd.DataFrame:
    """At most MOST_POINTS rows: of so many consecutive ones, `how` of each column ("mean", "last").

    ``ts`` is the last one's. More points than pixels only take time.
    """
    each = -(-len(rows) // MOST_POINTS)
    if each <= 1:
        return rows
    found = rows.groupby(np.arange(len(rows)) // each).agg({"ts": "last"} | how)
    return found.reset_index(drop=True)


def by_session(
    judged: pd.DataFrame, column: str, name: str, title: str, *, percent: bool = False
) -> Chart:
    """A metric of each session, faint, under its mean of 63 sessions; 0 is marked.

    Sessions that may have led the choice of the settings are shaded.
    """
    smooth = judged.assign(smooth=smoothed(judged, column))[["ts", column, "smooth"]]
    shown = thinned(smooth, **{column: "mean", "smooth": "last"})
    y = alt.Y(f"{column}:Q").title(name).axis(format="+.0%" if percent else ".2f", tickCount=5)
    base = alt.Chart(shown).encode(time_axis())
    raw = base.mark_line(color=GREY, opacity=0.35, strokeWidth=0.7).encode(y)
    line = base.mark_line(color=BLUE, strokeWidth=2).encode(
        alt.Y("smooth:Q"),
        tooltip=[
            alt.Tooltip("ts:T", title="session"),
            alt.Tooltip(f"{column}:Q", title=name, format=".4f"),
            alt.Tooltip("smooth:Q", title="63 sessions", format=".4f"),
        ],
    )
    layers = [*_shade(judged), zero(), raw, line]
    mean = judged[column].mean()
    words = f"{title}: {len(judged)} sessions, mean {mean:.4f}, with their mean of 63 sessions."
    return titled(alt.layer(*layers), title, words)


def zero() -> alt.Chart:
    """A dashed line at 0."""
    line = alt.Chart(pd.DataFrame({"y": [0.0]})).mark_rule(color=GREY, strokeDash=[3, 3])
    found: alt.Chart = line.encode(alt.Y("y:Q"))
    return found


def _shade(judged: pd.DataFrame) -> list[alt.Chart]:
    """The sessions that are in sample for the settings."""
    inside = judged.loc[~judged["settings_known_before"].astype(bool), "ts"]
    if inside.empty:
        return []
    span = pd.DataFrame(
        {"from": [inside.min()], "to": [inside.max()], "what": ["in sample for the settings"]}
    )
    return [
        alt.Chart(span)
        .mark_rect(color=GREY, opacity=0.15)
        .encode(alt.X("from:T"), alt.X2("to:T"), tooltip=alt.Tooltip("what:N", title=" "))
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
            time_axis(),
            alt.Y("sum:Q").title("running sum").axis(tickCount=5),
            alt.Color("metric:N")
            .title(None)
            .scale(domain=["RankIC", "IC"], range=[BLUE, GREY])
            .legend(orient="top"),
            tooltip=["ts:T", "metric:N", alt.Tooltip("sum:Q", format=".2f")],
        )
    )
    last = sums.iloc[-1]
    words = f"{title}: RankIC sums up to {last['rank_ic']:.2f}, IC to {last['ic']:.2f}."
    return titled(alt.layer(*_shade(judged), lines), title, words)


def heat_map(months: pd.DataFrame, title: str) -> Chart:
    """Means by month and year; colours are centred on 0."""
    shown = months.assign(
        month=[MONTHS[m - 1] for m in months["month"]], year=months["year"].astype(str)
    )
    limit = float(np.nanmax(np.abs(months["mean"]))) if len(months) else 1.0
    cells = (
        alt.Chart(shown)
        .mark_rect(cornerRadius=2)
        .encode(
            alt.X("month:O")
            .sort(list(MONTHS))
            .title(None)
            .axis(labelAngle=0, grid=False, labelOverlap=False, labelFontSize=10),
            alt.Y("year:O").title(None).axis(grid=False, labelOverlap=False),
            alt.Color("mean:Q")
            .title("mean")
            .scale(scheme="redblue", domain=[-limit, limit])
            .legend(format="+.2f"),
            tooltip=[
                "year", "month", alt.Tooltip("mean:Q", format="+.4f"),
                alt.Tooltip("n:Q", title="sessions"),
            ],
        )
    )  # fmt: skip
    n_up = int((months["mean"] > 0).sum())
    words = f"{title}: {n_up} of {len(months)} months are above 0."
    return titled(cells, title, words, height=24 * shown["year"].nunique() + 60)


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
        alt.Y("mean:Q").title(y).axis(format=form, tickCount=5),
        color=alt.condition("datum.mean < 0", alt.value(RED), alt.value(BLUE)),
        tooltip=[column, alt.Tooltip("mean:Q", format=form), alt.Tooltip("se:Q", format=form),
                 alt.Tooltip("n:Q", title="sessions")],
    )  # fmt: skip
    errors = base.mark_rule(color=GREY, strokeWidth=2).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    told = ", ".join(
        f"{row[column]}: {row['mean']:.4f} ± {row['se']:.4f}" for row in rows.to_dict("records")
    )
    return titled(bars + errors, title, f"{title}. {told}.")


def capital_lines(found: pd.DataFrame, title: str) -> Chart:
    """What 1 became, gross and net of costs."""
    shown = thinned(found, gross="last", net="last")
    long = shown.rename(columns={"net": "net of costs"}).melt(
        "ts", ["gross", "net of costs"], "which", "capital"
    )
    lines = (
        alt.Chart(long)
        .mark_line(strokeWidth=1.8)
        .encode(
            time_axis(),
            alt.Y("capital:Q").title("capital, 1 at the start").scale(zero=False).axis(tickCount=5),
            alt.Color("which:N")
            .title(None)
            .scale(domain=["net of costs", "gross"], range=[BLUE, GREY])
            .legend(orient="top"),
            tooltip=["ts:T", "which:N", alt.Tooltip("capital:Q", format=".3f")],
        )
    )
    last = found.iloc[-1]
    words = f"{title}: 1 became {last['gross']:.2f} gross and {last['net']:.2f} net of costs."
    return titled(lines, title, words)


def drawdown(found: pd.DataFrame, title: str) -> Chart:
    """How far the capital was below its highest value so far."""
    area = (
        alt.Chart(thinned(found, drawdown="min"))
        .mark_area(color=RED, opacity=0.5, line={"color": RED, "strokeWidth": 1})
        .encode(
            time_axis(),
            alt.Y("drawdown:Q").title("below the highest").axis(format=".0%", tickCount=4),
            tooltip=["ts:T", alt.Tooltip("drawdown:Q", format=".1%")],
        )
    )
    words = f"{title}: {found['drawdown'].min():.1%} at worst."
    return titled(area, title, words, height=170)
