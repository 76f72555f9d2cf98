"""Pictures for Dagster's UI: SVG in Markdown, one restrained look, small enough for an event.

The UI shows a data: address in Markdown as an image, whether PNG or SVG, and no HTML. SVG is
the smaller one by far and sharp at every size.
"""

import base64
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from quant_pipeline.chain.pictures_data import (
    Judged,
    by_month,
    judge_outcomes,
    judge_tests,
    rank_ic_of_a_year,
)
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.settings import Task

if TYPE_CHECKING:
    import altair as alt

    from quant_pipeline.ml.train import TrainedModel

PICTURES, NOT_DRAWN = "pictures", "not drawn"
WIDTH = 520
BLUE, RED, GREY, INK = "#35618f", "#b5523b", "#8b949e", "#24292f"
N_FEATURES = 15
MAX_POINTS = 150
LOOK: dict[str, Any] = {
    "aria": False,
    "background": "white",
    "font": "sans-serif",
    "view": {"stroke": None},
    "title": {
        "anchor": "start", "fontSize": 14, "color": INK, "subtitleFontSize": 11,
        "subtitleColor": "#57606a", "offset": 10,
    },
    "axis": {
        "labelColor": INK, "titleColor": INK, "labelFontSize": 11, "titleFontSize": 11,
        "titleFontWeight": "normal", "gridColor": "#e6e8eb", "domain": False, "ticks": False,
        "labelPadding": 6,
    },
    "axisX": {"grid": False},
}  # fmt: skip
UNSEEN = re.compile(
    r' (?:class|role|aria-[a-z]+|pointer-events|version|xmlns:xlink)="[^"]*"'
    r'| (?:opacity|stroke-width)="1"| font-family="sans-serif"'
    r'|<path(?: [a-z-]+="[^"]*")*? d=""[^>]*/>|<path[^>]* d="M0,0h0v0h0Z"[^>]*/>'
)
ROUNDED = re.compile(r'(?:\bd|transform|[xy][12]?)="[^"]*"')


class Pictures:
    """The pictures of one step, as metadata; whatever goes wrong with them costs the step nothing.

    Of outcomes only the newest partition of a run gets any: that one is looked at.
    """

    def __init__(self, context: dg.AssetExecutionContext, workspace: Workspace) -> None:
        self.context = context
        self.workspace = workspace
        self.tests: dict[str, Judged] = {}

    def note_tests(self, task: Task, trained: "TrainedModel") -> None:
        """Keep what pictures show of the folds' scores, which the registry does not hold."""

        def judge() -> str:
            least = self.workspace.settings.metrics.min_names
            self.tests[task.task_id] = judge_tests(task, trained, least)
            return ""

        self._try(task.task_id, judge)

    def of_model(self, model: Any) -> dict[str, Any]:
        """RankIC through time, quantile returns, calibration and importance of a model."""
        task = self.workspace.settings.task(model.task_id)
        judged = self.tests.get(model.task_id)
        return self._try(model.task_id, lambda: model_pictures(model, task.horizon, judged))

    def of_outcomes(self, task: Task, key: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """RankIC and quantile returns of stored scores; `rows` are all outcomes of the run."""
        ws = self.workspace
        newest = ws.grid.key(max(row["known_at"] for row in rows))
        if key != newest:
            why = f"drawn for the newest partition of the run only, {newest}"
            return {f"{task.task_id}/{PICTURES}": why}

        def draw() -> str:
            found = sorted({row["origin"] for row in rows if ws.grid.key(row["known_at"]) == key})
            return "\n\n".join(
                outcome_pictures(
                    origin,
                    *rank_ic_of_a_year(ws, task, key, origin),
                    task.horizon,
                    judge_outcomes(ws, task, key, origin),
                )
                for origin in found
            )

        return self._try(task.task_id, draw)

    def _try(self, task_id: str, draw: Callable[[], str]) -> dict[str, Any]:
        name = f"{task_id}/{PICTURES}"
        try:
            markdown = draw()
        except Exception as error:  # what was computed is worth more than its picture
            self.context.log.exception(f"{name} could not be drawn.")
            return {name: f"{NOT_DRAWN}: {type(error).__name__}: {error}"}
        return {name: dg.MetadataValue.md(markdown)} if markdown else {}


def model_pictures(model: Any, horizon: int, judged: Judged | None) -> str:
    """A model's folds: RankIC through time, quantile returns, calibration, importance.

    Without what training alone knows (`judged`), RankIC and importance.
    """
    import numpy as np

    series = model.test_series
    ts = np.array(series["ts"], "datetime64[D]")
    rank_ic = np.array(series["rank_ic"], np.float64)  # None becomes NaN
    parts = [_rank_ic("RankIC of the folds' test sessions", ts, rank_ic)]
    if judged is not None:
        parts += _judged("folds' test sessions", horizon, judged)
    parts.append(_importance(model.importance))
    return "\n\n".join(part for part in parts if part)


def outcome_pictures(origin: str, ts: Any, rank_ic: Any, horizon: int, judged: Judged) -> str:
    """Stored scores of an origin: RankIC of the trailing year; the partition's quantile returns."""
    parts = [_rank_ic(f"RankIC of {origin} scores, trailing year", ts, rank_ic)]
    parts += _judged(f"{origin} scores whose labels became known here", horizon, judged)
    nothing = f"no session of {origin} scores has a known outcome"
    return "\n\n".join(part for part in parts if part) or nothing


def _judged(what: str, horizon: int, judged: Judged) -> list[str]:
    return [_quantiles(what, horizon, judged.quantiles), _calibration(what, judged.calibration)]


def _rank_ic(title: str, ts: Any, rank_ic: Any) -> str:
    """Monthly means as bars over the running sum as a line."""
    import altair as alt
    import numpy as np

    months = by_month(ts, rank_ic)
    if not months:
        return ""
    values = rank_ic[np.isfinite(rank_ic)]
    total = np.cumsum(values)
    at = np.unique(np.linspace(0, len(total) - 1, MAX_POINTS).astype(int))
    sums = [{"ts": str(ts[np.isfinite(rank_ic)][i]), "sum": round(float(total[i]), 4)} for i in at]
    bars = (
        alt.Chart(_rows(months))
        .mark_bar(width={"band": 0.7})
        .encode(
            alt.X("month:O").title(None).axis(values=_labelled(months), labelAngle=0),
            alt.Y("mean:Q").title("mean of the month").axis(tickCount=5),
            color=alt.condition("datum.mean < 0", alt.value(RED), alt.value(BLUE)),
        )
        .properties(width=WIDTH, height=130)
    )
    line = (
        alt.Chart(_rows(sums))
        .mark_line(color=BLUE, strokeWidth=1.5)
        .encode(
            alt.X("ts:T").title(None).scale(type="utc").axis(format="%Y-%m-%d", tickCount=5),
            alt.Y("sum:Q").title("running sum").axis(tickCount=4),
        )
        .properties(width=WIDTH, height=90)
    )
    mean = float(values.mean())
    subtitle = f"{len(values)} sessions, mean {mean:+.3f}; by calendar month, and summed up"
    return _image(title, subtitle, alt.vconcat(bars, line, spacing=14))


def _quantiles(what: str, horizon: int, rows: Sequence[dict[str, float]]) -> str:
    """Mean forward return of each fifth of the scores, ± 1 standard error."""
    import altair as alt

    if not rows:
        return ""
    names = {1: "1 (lowest)", len(rows): f"{len(rows)} (highest)"}
    shown = [
        {
            "fifth": names.get(int(r["quantile"]), str(int(r["quantile"]))),
            "mean": r["mean"], "low": r["mean"] - r["se"], "high": r["mean"] + r["se"],
        }
        for r in rows
    ]  # fmt: skip
    base = alt.Chart(_rows(shown)).encode(
        alt.X("fifth:O").title("fifth of the session's scores").axis(labelAngle=0)
    )
    y = alt.Y("mean:Q").title(f"{horizon}-session return").axis(format="+.2%", tickCount=5)
    bars = base.mark_bar(width={"band": 0.55}).encode(
        y, color=alt.condition("datum.mean < 0", alt.value(RED), alt.value(BLUE))
    )
    errors = base.mark_rule(color=INK).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    return _image(
        f"Mean {horizon}-session return by fifth of the score, gross",
        f"{what}; line: ± 1 standard error (Newey-West)",
        (bars + errors).properties(width=WIDTH, height=150),
    )


def _calibration(what: str, rows: Sequence[dict[str, float]]) -> str:
    """How often a probability came true, beside the diagonal of a calibrated one."""
    import altair as alt

    if not rows:
        return ""
    low = min(min(r["mean_score"], r["share_of_ones"]) for r in rows)
    high = max(max(r["mean_score"], r["share_of_ones"]) for r in rows)
    scale = alt.Scale(domain=[max(0.0, low - 0.02), min(1.0, high + 0.02)], nice=False, zero=False)
    ends = alt.Chart(_rows([{"p": p} for p in scale.domain]))
    diagonal = ends.mark_line(color=GREY, strokeDash=[4, 3], strokeWidth=1).encode(
        alt.X("p:Q").scale(scale), alt.Y("p:Q").scale(scale)
    )
    base = alt.Chart(_rows(rows)).encode(
        alt.X("mean_score:Q").scale(scale).title("mean score").axis(format=".0%", grid=True),
        alt.Y("share_of_ones:Q").scale(scale).title("share that came true").axis(format=".0%"),
    )
    points = base.mark_point(filled=True, color=BLUE, opacity=1).encode(
        alt.Size("n:Q").scale(range=[20, 220]).legend(None)
    )
    n = sum(int(r["n"]) for r in rows)
    return _image(
        "Calibration: scores as probabilities",
        f"{what}, {n:,} rows; size: rows of a bin, dashed: calibrated",
        (diagonal + points).properties(width=WIDTH, height=190),
    )


def _importance(importance: dict[str, dict[str, float]]) -> str:
    """The features with the largest share of gain, beside the folds' mean and spread."""
    import altair as alt

    gain, mean, std = (importance[k] for k in ("gain", "fold_gain", "fold_gain_std"))
    best = sorted(gain, key=lambda name: (-gain[name], name))[:N_FEATURES]
    shown = [
        {
            "feature": n, "gain": gain[n], "mean": mean[n], "low": max(0.0, mean[n] - std[n]),
            "high": mean[n] + std[n],
        }
        for n in best
    ]  # fmt: skip
    y = alt.Y("feature:N").sort(best).title(None)
    base = alt.Chart(_rows(shown)).encode(y)
    bars = base.mark_bar(color=BLUE, opacity=0.75, height={"band": 0.65}).encode(
        alt.X("gain:Q").title("share of the gain").axis(format=".0%", grid=True, tickCount=5)
    )
    spread = base.mark_rule(color=INK).encode(alt.X("low:Q"), alt.X2("high:Q"))
    dots = base.mark_point(filled=True, color=INK, size=18, opacity=1).encode(alt.X("mean:Q"))
    return _image(
        f"Importance: the {len(best)} features of most gain",
        "bar: final model; dot and line: mean of the folds ± 1 standard deviation",
        (bars + spread + dots).properties(width=WIDTH, height=15 * len(best)),
    )


def _labelled(months: Sequence[dict[str, Any]]) -> list[str]:
    """As many months as have room for their name."""
    return [row["month"] for row in months[:: -(-len(months) // 10)]]


def _rows(rows: Sequence[dict[str, Any]]) -> Any:
    import altair as alt

    return alt.InlineData(values=[*rows])


def _image(title: str, subtitle: str, chart: "alt.TopLevelMixin") -> str:
    """A chart as Markdown."""
    import vl_convert

    spec = chart.to_dict(validate=False)
    spec["title"] = {"text": title, "subtitle": subtitle}
    spec["config"] = LOOK
    return embed(title, vl_convert.vegalite_to_svg(spec))


def embed(title: str, svg: str) -> str:
    """An SVG as Markdown, without what nobody sees, to a tenth of a pixel."""
    small = UNSEEN.sub("", svg).replace("<svg ", '<svg font-family="sans-serif" ', 1)
    small = ROUNDED.sub(lambda found: re.sub(r"(\.\d)\d+", r"\1", found.group()), small)
    return f"![{title}](data:image/svg+xml;base64,{base64.b64encode(small.encode()).decode()})"
