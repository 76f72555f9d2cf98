"""Charts of models, of single scores and of data: frames in, Altair out."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from quant_pipeline.faces.charts import (
    ABOVE,
    AMBER,
    APART,
    BLUE,
    GREEN,
    GREY,
    RED,
    WHEN,
    ZERO,
    Chart,
    number,
    percent_of,
    signed_axis,
    time_axis,
    titled,
    zero,
)

N_FEATURES = 15
_ENDS = [alt.Tooltip(f"{name}:T", format="%Y-%m-%d") for name in ("from", "to")]


def timeline_of_folds(folds: Sequence[Mapping[str, Any]]) -> Chart:
    """Train, purge, early stopping and test of each fold on a time line."""
    rows = [
        {"fold": f"fold {fold['fold']}", "part": part, "from": start, "to": end}
        for fold in folds for part, start, end in _parts(fold)
    ]  # fmt: skip
    parts = ["train", "purged", "early stop", "test"]
    shown = pd.DataFrame(rows).astype({"from": "datetime64[ns]", "to": "datetime64[ns]"})
    shown["place"] = shown["fold"].str.removeprefix("fold ").astype(int)
    bars = (
        alt.Chart(shown)
        .mark_bar(height=14)
        .encode(
            time_axis(pd.concat([shown["from"], shown["to"]]), "from:T"),
            alt.X2("to:T"),
            alt.Y("fold:O")
            .sort(field="place")
            .title(None)
            .axis(labelOverlap=False, labelFlush=False),
            alt.Color("part:N")
            .title(None)
            .scale(domain=parts, range=[BLUE, RED, GREY, GREEN])
            .legend(ABOVE),
            tooltip=["fold", "part", *_ENDS],
        )
    )
    n_purged = sum(int(fold["n_purged"]) for fold in folds)
    title = "Folds: what learned, what stopped, what was tested"
    words = f"{len(folds)} folds in time order; {n_purged:,} examples were purged between them."
    return titled(bars, title, words, height=24 * len(folds))


def _parts(fold: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Windows of a fold as recorded; what is kept of them ends before what is purged."""
    found = [
        ("train", fold["train_start"], fold.get("train_kept_end") or fold["train_end"]),
        ("early stop", fold["stop_start"], fold.get("stop_kept_end") or fold["stop_end"]),
        ("test", fold["test_start"], fold["test_end"]),
    ]
    for window in ("train", "stop"):
        kept = fold.get(f"{window}_kept_end")
        if kept and kept < fold[f"{window}_end"]:
            found.append(("purged", kept, fold[f"{window}_end"]))
    return found


def importance_bars(importance: Mapping[str, Mapping[str, float]]) -> Chart:
    """The features of most gain, beside the folds' mean and standard deviation."""
    gain, mean, std = (importance[k] for k in ("gain", "fold_gain", "fold_gain_std"))
    best = sorted(gain, key=lambda name: (-gain[name], name))[:N_FEATURES]
    shown = pd.DataFrame(
        {
            "feature": best, "gain": [gain[n] for n in best], "mean": [mean[n] for n in best],
            "low": [max(0.0, mean[n] - std[n]) for n in best],
            "high": [mean[n] + std[n] for n in best],
        }
    )  # fmt: skip
    base = alt.Chart(shown).encode(
        alt.Y("feature:N").sort(best).title(None).axis(labelOverlap=False, labelFlush=False)
    )
    bars = base.mark_bar(color=BLUE, opacity=0.75, height={"band": 0.65}).encode(
        alt.X("gain:Q").title("share of the gain").axis(format=".0%", tickCount=5),
        tooltip=[
            "feature",
            alt.Tooltip("gain:Q", format=".1%"),
            alt.Tooltip("mean:Q", format=".1%"),
        ],
    )
    spread = base.mark_rule(color=AMBER, strokeWidth=2).encode(alt.X("low:Q"), alt.X2("high:Q"))
    dots = base.mark_point(filled=True, color=AMBER, opacity=1).encode(alt.X("mean:Q"))
    title = "Importance; orange: mean of the folds ± 1 standard deviation"
    words = "Features of most gain: " + ", ".join(f"{n} {gain[n]:.1%}" for n in best[:5]) + "."
    return titled(bars + spread + dots, title, words, height=20 * len(best))


def calibration(rows: Sequence[Mapping[str, float]], title: str) -> Chart:
    """How often scores came true, beside the diagonal of calibrated ones; size: rows."""
    shown = pd.DataFrame([dict(row) for row in rows if row["n"]])
    values = shown[["mean_score", "share_of_ones"]].to_numpy()
    low, high = max(float(values.min()) - 0.02, 0.0), min(float(values.max()) + 0.02, 1.0)
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    ends = alt.Chart(pd.DataFrame({"p": [low, high]}))
    diagonal = ends.mark_line(color=GREY, strokeDash=[4, 3]).encode(
        alt.X("p:Q").scale(scale), alt.Y("p:Q").scale(scale)
    )
    points = (
        alt.Chart(shown)
        .mark_point(filled=True, color=BLUE, opacity=1)
        .encode(
            alt.X("mean_score:Q").scale(scale).title("mean score").axis(format=".0%"),
            alt.Y("share_of_ones:Q").scale(scale).title("share that came true").axis(format=".0%"),
            alt.Size("n:Q").scale(range=[20, 220]).legend(None),
            tooltip=[
                alt.Tooltip("mean_score:Q", format=".1%"),
                alt.Tooltip("share_of_ones:Q", format=".1%"), alt.Tooltip("n:Q", title="rows"),
            ],
        )
    )  # fmt: skip
    words = f"{title}: {int(shown['n'].sum()):,} scores in {len(shown)} bins."
    return titled(diagonal + points, title, words)


def champions_line(rows: pd.DataFrame) -> Chart:
    """Which model served when: task, model, from, to, why; a thin line where it changed."""
    y = alt.Y("task:N").title(None).axis(labelOverlap=False, labelFlush=False)
    bars = (
        alt.Chart(rows)
        .mark_bar(height=16)
        .encode(
            time_axis(pd.concat([rows["from"], rows["to"]]), "from:T"),
            alt.X2("to:T"),
            y,
            alt.Color("kind:N")
            .title(None)
            .scale(domain=["same recipe", "another recipe"], range=[BLUE, RED])
            .legend(ABOVE),
            tooltip=["task", "model", *_ENDS, "why"],
        )
    )
    later = rows[rows["from"] > rows.groupby("task")["from"].transform("min")]
    changes = alt.Chart(later).mark_tick(color="white", thickness=1, size=16)
    words = f"{len(rows)} decisions about which model serves, {rows['from'].min():%Y-%m} on."
    height = 30 * rows["task"].nunique()
    bars = bars + changes.encode(alt.X("from:T"), y)
    return titled(bars, "Champions: which model served when", words, height)


def symbol_scores(rows: pd.DataFrame, symbol: str) -> Chart:
    """The percentile of a symbol's score by session, faint, under its mean of 21 sessions."""
    shown = rows.assign(smooth=rows["score_percentile"].rolling(21, min_periods=3).mean())
    base = alt.Chart(shown).encode(time_axis(rows["ts"]))
    y = alt.Y("score_percentile:Q").title("percentile").scale(domain=[0, 1]).axis(format=".0%")
    raw = base.mark_line(color=GREY, opacity=0.4, strokeWidth=0.8).encode(y)
    line = base.mark_line(color=BLUE, strokeWidth=2).encode(
        alt.Y("smooth:Q"), tooltip=[WHEN, alt.Tooltip("score_percentile:Q", format=".0%")]
    )
    title = f"{symbol}: its score among all others, and the mean of 21 sessions"
    return titled(raw + line, title, f"{title}: {len(rows)} sessions.", height=140)


def symbol_returns(rows: pd.DataFrame, symbol: str, horizon: int) -> Chart:
    """What happened after each session, as far as it is known."""
    known = rows.dropna(subset=["fwd_return"])
    bars = (
        alt.Chart(known)
        .mark_bar()
        .encode(
            time_axis(known["ts"]),
            alt.Y("fwd_return:Q")
            .title(f"{horizon}-session return")
            .axis(signed_axis("+" + percent_of(known["fwd_return"].abs().max()))),
            color=alt.condition("datum.fwd_return < 0", alt.value(RED), alt.value(BLUE)),
            tooltip=[
                WHEN, alt.Tooltip("fwd_return:Q", format="+.2%"),
                alt.Tooltip("score_percentile:Q", format=".0%"),
            ],
        )
    )  # fmt: skip
    title = f"{symbol}: the {horizon}-session return after each session"
    return titled(bars, title, f"{title}: {len(known)} are known.", height=120)


def contributions(found: Mapping[str, Any], *, log_odds: bool, n: int = 12) -> Chart:
    """What the base and each feature added to a score, the largest first.

    The bars add up to the score, or of a classification to its `log_odds`.
    """
    best = found["contributions"][:n]
    rest = [row["adds"] for row in found["contributions"][n:]]
    rows = [{"feature": "(base)", "adds": found["base"], "value": ""}]
    rows += [
        {"feature": r["feature"], "adds": r["adds"], "value": number(r["value"], ".4g")}
        for r in best
    ]
    if rest:
        rows.append({"feature": "(all others)", "adds": sum(rest), "value": ""})
    order = [row["feature"] for row in rows]
    what = "log-odds" if log_odds else "score"
    bars = (
        alt.Chart(pd.DataFrame(rows))
        .mark_bar(height={"band": 0.65})
        .encode(
            alt.Y("feature:N").sort(order).title(None).axis(labelOverlap=False, labelFlush=False),
            alt.X("adds:Q").title(f"adds to the {what}").axis(
                format="+.3~f", tickCount=4, labelExpr=ZERO, labelOverlap=False),
            color=alt.condition("datum.adds < 0", alt.value(RED), alt.value(BLUE)),
            tooltip=["feature", "value", alt.Tooltip("adds:Q", format="+.5f")],
        )
    )  # fmt: skip
    line = alt.Chart(pd.DataFrame({"x": [0.0]})).mark_rule(color=GREY).encode(alt.X("x:Q"))
    score = f"{found['symbol']} has {found['score']:.4f} on {found['ts']}"
    title = f"Why {score}: the bars add up to {found['raw']:+.4f}{' log-odds' * log_odds}"
    told = ", ".join(f"{r['feature']} {r['adds']:+.4f}" for r in (rows[0], *best[:5]))
    return titled(bars + line, title, f"{title}: {told}.", height=20 * len(rows))


def two_models(rows: pd.DataFrame) -> Chart:
    """RankIC of the test sessions of two models: ts, model, rank_ic; means of 63 sessions."""
    names = list(dict.fromkeys(rows["model"]))
    lines = (
        alt.Chart(rows)
        .mark_line(strokeWidth=1.8)
        .encode(
            time_axis(rows["ts"]),
            alt.Y("rank_ic:Q").title("RankIC, 63 sessions").axis(tickCount=5),
            alt.Color("model:N")
            .title(None)
            .scale(domain=names, range=[BLUE, RED][: len(names)])
            .legend(ABOVE),
            tooltip=[WHEN, "model", alt.Tooltip("rank_ic:Q", format=".4f")],
        )
    )
    title = "RankIC of the folds' test sessions, mean of 63"
    return titled(zero() + lines, title, f"{title}, of {' and '.join(names)}.")


def coverage_line(coverage: pd.DataFrame) -> Chart:
    """Bars of each session; dates that are none are marked."""
    base = alt.Chart(coverage).encode(time_axis(coverage["ts"]))
    line = (
        base.transform_filter("datum.is_session")
        .mark_line(color=BLUE, strokeWidth=1)
        .encode(alt.Y("n_bars:Q").title("bars"), tooltip=[WHEN, "n_bars:Q"])
    )
    marks = (
        base.transform_filter("!datum.is_session")
        .mark_point(color=RED, size=25)
        .encode(alt.Y("n_bars:Q"), tooltip=[WHEN, "n_bars:Q"])
    )
    n = int(coverage["is_session"].sum())
    title = "Bars by session; red: dates that are no session"
    return titled(line + marks, title, f"{title}. {n:,} sessions, {len(coverage) - n:,} others.")


def counted(rows: pd.DataFrame, column: str, title: str) -> Chart:
    """How often each kind of something came, the most frequent first."""
    bars = (
        alt.Chart(rows)
        .mark_bar(color=BLUE, height={"band": 0.65})
        .encode(
            alt.Y(f"{column}:N").sort("-x").title(None).axis(labelOverlap=False, labelLimit=260),
            alt.X("n:Q").title("rows").axis(format=",d", tickCount=5),
            tooltip=[column, alt.Tooltip("n:Q", format=",d")],
        )
    )
    told = ", ".join(f"{r[column]} {r['n']:,}" for r in rows.to_dict("records"))
    return titled(bars, title, f"{title}: {told}.", height=28 * len(rows))


def by_feature(rows: pd.DataFrame, axis: str, title: str, form: str) -> Chart:
    """A value of some features as bars, in their order."""
    order = rows["feature"].to_list()
    bars = (
        alt.Chart(rows)
        .mark_bar(color=BLUE, height={"band": 0.65})
        .encode(
            alt.Y("feature:N").sort(order).title(None).axis(labelOverlap=False, labelFlush=False),
            alt.X("value:Q").title(axis).axis(format=form, tickCount=5),
            tooltip=["feature", alt.Tooltip("value:Q", format=form)],
        )
    )
    told = ", ".join(f"{r['feature']} {r['value']:{form}}" for r in rows.to_dict("records")[:5])
    return titled(bars, title, f"{title}: {told}.", height=20 * len(rows))


def by_partition(
    rows: pd.DataFrame, columns: Mapping[str, str], y: str, title: str, form: str = ".2f"
) -> Chart:
    """At most three numbers of each partition as lines; `columns` maps them to their names."""
    long = rows.rename(columns=dict(columns)).melt(
        "partition", list(columns.values()), "what", "value"
    )
    lines = (
        alt.Chart(long)
        .mark_line(strokeWidth=1.6, point={"size": 14})
        .encode(
            alt.X("partition:O").title(None).axis(labelAngle=0, grid=False, **APART),
            alt.Y("value:Q").title(y).axis(format=form, tickCount=5),
            alt.Color("what:N")
            .title(None)
            .scale(domain=list(columns.values()), range=[BLUE, RED, GREY][: len(columns)])
            .legend(ABOVE),
            tooltip=["partition", "what", alt.Tooltip("value:Q", format=form)],
        )
    )
    return titled(lines, title, f"{title}, of {len(rows)} partitions.")
