"""`quant report`: what scores were worth, as one HTML file that needs nothing else, for mailing."""

import html
import re
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert

from quant_pipeline.chain import shown
from quant_pipeline.chain.shown_stats import (
    in_sample,
    mean_with_error,
    out_of_sample,
    settings_warning,
)
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData, SettingsError
from quant_pipeline.faces import charts
from quant_pipeline.faces.charts import number
from quant_pipeline.settings import Task
from quant_pipeline.stores.durable import write_durably

WIDTH = 560
LOOK: dict[str, Any] = {
    "font": "sans-serif",
    "background": "white",
    "view": {"stroke": None},
    "axis": {"gridColor": "#e6e8eb", "domain": False, "ticks": False, "labelPadding": 6,
             "titleFontWeight": "normal", "titlePadding": 14},
    "legend": {"titleFontWeight": "normal", "titlePadding": 10},
}  # fmt: skip
STYLE = """
body{font:16px/1.5 sans-serif;color:#24292f;max-width:1200px;margin:2rem auto;padding:0 1rem}
h1{margin-bottom:0}h2{margin-top:2.5rem;border-bottom:1px solid #d8dee4}
h3{font-size:1rem;margin:0 0 .5rem}table{margin-bottom:2rem}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:2rem}
figure{margin:0}svg{width:100%;height:auto}p.note{color:#57606a}
table{border-collapse:collapse}td,th{padding:.2rem .9rem .2rem 0;text-align:right}
td:first-child,th:first-child{text-align:left}.warn{background:#fff3d6;padding:.5rem 1rem}
"""
# A column of judged sessions, its name, what chance gives, as a share or not.
ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("rank_ic", "RankIC", "0", "+.4f"),
    ("ic", "IC", "0", "+.4f"),
    ("accuracy", "accuracy", "", ".4f"),
    ("auc", "AUC", "0.5", ".4f"),
    ("spread", "top minus bottom fifth, gross", "0", "+.3%"),
    ("gross", "top-k tranche, gross", "", "+.3%"),
    ("net", "top-k tranche, net of costs", "", "+.3%"),
    ("turnover", "turnover of the top fifth, a session", "", ".1%"),
    ("rank_autocorrelation", "rank autocorrelation, a session", "", ".3f"),
)


def write_report(
    ws: Workspace, task: Task, first: date | None, last: date | None, target: Path
) -> dict[str, Any]:
    """Write the report of a task's judged sessions in a range; gives what it holds."""
    if not target.parent.is_dir():
        raise SettingsError(f"There is no folder {target.parent}: make it, or name another file.")
    judged = shown.read_judged(ws, task)
    if first is not None:
        judged = judged[judged["ts"] >= pd.Timestamp(first)]
    if last is not None:
        judged = judged[judged["ts"] <= pd.Timestamp(last)]
    if judged.empty:
        raise NoData(f"No session of {task.task_id} in that range has a known outcome yet.")
    text = make_report(ws, task, judged, ws.home.root.name, datetime.now().astimezone())
    write_durably(target, text.encode())
    return {
        "path": str(target), "task": task.task_id, "sessions": int(judged["ts"].nunique()),
        "first_ts": judged["ts"].min().date(), "last_ts": judged["ts"].max().date(),
    }  # fmt: skip


def make_report(
    ws: Workspace, task: Task, judged: pd.DataFrame, home: str, made_at: datetime
) -> str:
    """The page; live scores and those of backfills each have their part."""
    sessions = shown.read_stored_shown(ws).sessions
    top = max(int(name[-1]) for name in judged.columns if name.startswith("quantile_"))
    judged = judged.assign(spread=judged[f"quantile_{top}"] - judged["quantile_1"])
    parts = [
        _group(ws, task, judged[judged["origin"] == origin].reset_index(drop=True), sessions, words)
        for origin, words in (
            ("live", "Live: scored on their day"), ("backfill", "Backfill: scored later"),
        ) if (judged["origin"] == origin).any()
    ]  # fmt: skip
    title = f"{task.task_id}: out-of-sample scores and what followed"
    span = f"{judged['ts'].min():%Y-%m-%d} to {judged['ts'].max():%Y-%m-%d}"
    about = (
        f"{task.kind}, {task.horizon} sessions ahead. Home {home}, made {made_at:%Y-%m-%d %H:%M %Z}"
        " by quant_pipeline. Research software, not investment advice."
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>"
        f'<p class="note">{html.escape(span)}. {html.escape(about)}</p>{"".join(parts)}</html>'
    )


def _group(
    ws: Workspace, task: Task, every: pd.DataFrame, sessions: Sequence[date], words: str
) -> str:
    """Of sessions after the settings were chosen, if there are any."""
    judged = out_of_sample(every)
    notes = _notes(ws, task, every, judged)
    drawn = charts.of_outcomes(judged, sessions, task.horizon).values()
    figures = "".join(_figure(chart) for chart in drawn)
    return f'<h2>{words}</h2>{notes}{_table(judged, task.horizon)}<div class="grid">{figures}</div>'


def _notes(ws: Workspace, task: Task, every: pd.DataFrame, judged: pd.DataFrame) -> str:
    """What a reader must know of the sessions that are told of."""
    n_left_out = len(every) - len(judged)
    told = [
        f"{n_left_out} of {len(every)} sessions are left out: they may have led the choice of the "
        "settings. The page has them, too (Outcomes, All)." if n_left_out else "",
        in_sample(judged), settings_warning(judged, ws.settings.metrics),
        "Too few sessions for these standard errors: under ten horizons."
        if mean_with_error(judged["rank_ic"], task.horizon)["is_short"] else "",
    ]  # fmt: skip
    return "".join(f'<p class="warn">{_with_commands(words)}</p>' for words in told if words)


def _with_commands(words: str) -> str:
    """Text with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(words))


def _table(judged: pd.DataFrame, horizon: int) -> str:
    """Means of sessions with Newey-West errors, beside chance."""
    lines = []
    for column, name, chance, form in ROWS:
        if column in judged and judged[column].notna().any():
            found = mean_with_error(judged[column], horizon)
            base = _accuracy_base(judged) if column == "accuracy" else chance
            cells = [name, format(found["mean"], form), number(found["se"], form.lstrip("+")),
                     base, f"{found['n']:,}"]  # fmt: skip
            lines.append("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>")
    heads = ("a session", "mean", "± s.e.", "chance", "sessions")
    head = "<tr>" + "".join(f"<th>{h}</th>" for h in heads) + "</tr>"
    return f"<table>{head}{''.join(lines)}</table>"


def _accuracy_base(judged: pd.DataFrame) -> str:
    """What always naming the commoner class reaches, as the mean of the same sessions."""
    share = judged["base_rate"].mean() if "base_rate" in judged else float("nan")
    return number(max(share, 1 - share), ".4f")


def _figure(chart: charts.Chart) -> str:
    """A chart as SVG, with its words for who cannot see it."""
    title, words = str(chart.title), str(chart.description)
    spec = chart.to_dict(validate=False)
    spec.pop("title", None)
    spec["width"], spec["config"] = WIDTH, LOOK
    svg = vl_convert.vegalite_to_svg(spec)
    name = html.escape(words, quote=True)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
    return f"<figure><h3>{html.escape(title)}</h3>{svg}</figure>"
