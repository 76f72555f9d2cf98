"""The ledger of trials: every distinct recipe that was ever judged, and how it did."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.ml.significance import deflated_sharpe, probability_of_overfitting
from quant_pipeline.settings import SHIPPED_CHOSEN_ASOF, Settings, Task, digest
from quant_pipeline.stores.meta import Trial, utc_now
from quant_pipeline.stores.series import fetch_row

# Sections that make a recipe, besides the task and what features and universe are.
SECTIONS = ("label", "folds", "train")


def recipe_id(ws: Workspace, task: Task, settings: Settings | None = None) -> str:
    """Identifies task, features, universe and settings; refits on new data are one recipe."""
    s = settings or ws.settings
    return digest(task, ws.feature_set_id, *(getattr(s, name) for name in SECTIONS))


def note_trial(
    ws: Workspace,
    task: Task,
    asof: date,
    *,
    settings: Settings | None = None,
    study: str = "",
    series: dict[str, list[Any]] | None = None,
) -> Trial:
    """Record a recipe when it is first tried, and with it since when its settings are known.

    `chosen_asof`: the as-of date of the study that proposed it; the date that the shipped settings
    declare; else, a hand may have been led by all outcomes that were known when it was first used.
    """
    s = settings or ws.settings
    if study:
        chosen_asof, by = asof, f"study {study}"
    elif _is_shipped(s, task):
        chosen_asof, by = SHIPPED_CHOSEN_ASOF, "shipped settings"
    else:
        chosen_asof, by = _newest_outcome(ws, task), "hand"
    return ws.meta.add_trial(
        Trial(
            recipe=recipe_id(ws, task, s), task_id=task.task_id, chosen_asof=chosen_asof,
            chosen_by=by, asof=asof, series=series, tried_at=utc_now(),
            settings={"task": task.model_dump(mode="json")}
            | {name: getattr(s, name).model_dump(mode="json") for name in SECTIONS},
        )
    )  # fmt: skip


def _is_shipped(s: Settings, task: Task) -> bool:
    """Whether settings that decide a model are those that the project ships with."""
    shipped = Settings.model_construct()
    names = (*SECTIONS, "features", "universe")
    same = all(getattr(s, name) == getattr(shipped, name) for name in names)
    return same and task in shipped.tasks


def _newest_outcome(ws: Workspace, task: Task) -> date:
    with ws.series.reading("trials") as con:
        (known,) = fetch_row(
            con, "SELECT max(known_at) FROM labels WHERE task_id = ?", [task.task_id]
        )
    newest: date = known or ws.last_session()
    return newest


def collect_series(ws: Workspace, task: Task) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Out-of-sample top minus bottom by session of every recipe of a task.

    Of refits on later data, a session has the value of the earliest one that tested it.
    """
    found: dict[str, dict[str, float]] = {}
    for model in ws.meta.models(task.task_id):  # oldest as-of first
        _fill(found.setdefault(model.recipe, {}), model.test_series)
    for trial in ws.meta.trials(task.task_id):
        if trial.series:
            _fill(found.setdefault(trial.recipe, {}), trial.series)
    return {
        recipe: (np.array(sorted(by_day), "datetime64[D]"),
                 np.array([by_day[day] for day in sorted(by_day)], np.float64))
        for recipe, by_day in found.items()
    }  # fmt: skip


def _fill(by_day: dict[str, float], series: dict[str, list[Any]]) -> None:
    for day, value in zip(series["ts"], series["top_minus_bottom"], strict=True):
        by_day.setdefault(day, np.nan if value is None else value)


def judge_trials(ws: Workspace, task: Task) -> dict[str, Any]:
    """What the best of all recipes of a task is worth, given how many were tried.

    Sharpe ratios are those of the spread per `horizon` sessions, from every horizon-th session, on
    the sessions that every recipe was tested on; their variance is over recipes with a series, the
    number of trials counts all. `deflated_sharpe` is the probability that the
    best one's true ratio is above what the best of so many trials without any skill would show;
    `overfitting` the probability that it is below the median out of sample (PBO).
    """
    trials = ws.meta.trials(task.task_id)
    series = collect_series(ws, task)
    rows = [_trial_row(t, series.get(t.recipe), task) for t in trials]
    found: dict[str, Any] = {"task": task.task_id, "n_trials": len(trials), "trials": rows}
    shared = _common(series)
    if shared is None or not series:
        return found
    recipes, sessions, matrix = shared
    thinned = matrix[:: task.horizon]
    sharpe = _sharpe(thinned)
    best = int(np.nanargmax(sharpe)) if np.isfinite(sharpe).any() else None
    found |= {"n_sessions": len(sessions), "best": recipes[best] if best is not None else None}
    if best is None:
        return found
    found["sharpe"] = float(sharpe[best])
    if len(recipes) > 1:
        variance = float(np.nanvar(sharpe, ddof=1))
        deflated = deflated_sharpe(thinned[:, best], len(trials), variance)
        found["deflated_sharpe"] = _or_none(deflated)
        risks = probability_of_overfitting(thinned)
        found["overfitting"] = {name: _or_none(value) for name, value in risks.items()}
    return found


def _trial_row(
    trial: Trial, series: tuple[np.ndarray, np.ndarray] | None, task: Task
) -> dict[str, Any]:
    values = np.empty(0) if series is None else series[1][np.isfinite(series[1])]
    return {
        "recipe": trial.recipe,
        "chosen_by": trial.chosen_by,
        "chosen_asof": trial.chosen_asof,
        "first_asof": trial.asof,
        "sessions": len(values),
        "top_minus_bottom": float(values.mean()) if len(values) else None,
        "sharpe": _or_none(float(_sharpe(values[:: task.horizon][:, None])[0])),
    }


def _sharpe(columns: np.ndarray) -> np.ndarray:
    """Mean over standard deviation (ddof 1) of each column; NaN with fewer than 3 values."""
    if len(columns) < 3:
        return np.full(columns.shape[1], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = columns.mean(axis=0) / columns.std(axis=0, ddof=1)
    return np.where(np.isfinite(found), found, np.nan)


def _common(
    series: dict[str, tuple[np.ndarray, np.ndarray]],
) -> tuple[list[str], np.ndarray, np.ndarray] | None:
    """Recipes, the sessions on which all of them have a value, and sessions x recipes."""
    days: np.ndarray | None = None
    for ts, values in series.values():
        mine = ts[np.isfinite(values)]
        days = mine if days is None else np.intersect1d(days, mine)
    if days is None or not len(days):
        return None
    columns = [values[np.searchsorted(ts, days)] for ts, values in series.values()]
    return list(series), days, np.column_stack(columns)


def _or_none(value: float) -> float | None:
    return None if value != value else value


def chosen_asofs(ws: Workspace, recipes: Sequence[str]) -> dict[str, date]:
    """Since when the settings of recipes are known."""
    return {t.recipe: t.chosen_asof for t in ws.meta.trials() if t.recipe in recipes}
