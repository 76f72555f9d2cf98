"""The ledger of trials: every distinct recipe that was ever judged, and how it did."""

from collections.abc import Collection, Mapping, Sequence
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
# What studies vary, of [train].
VARIED = (
    "learning_rate", "num_leaves", "min_data_in_leaf", "feature_fraction", "bagging_fraction",
    "lambda_l2",
)  # fmt: skip
# Sessions, a horizon apart, that recipes should have in common to be compared.
FEWEST = 8
Series = tuple[np.ndarray, np.ndarray]


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
    refused: str = "",
) -> Trial:
    """Record a recipe that is tried, and with it since when its settings are known.

    `chosen_asof`: of settings as shipped, the date that they declare; else, a hand may have been
    led by all outcomes that were known when it was first used. A study's proposal is known since
    the study's as-of or, if that is later, since its fixed part (all but what studies vary) is, by
    the same rule. Each study that proposes a recipe may move its date on, until a model has been
    trained with it. `series` are sessions that it was tested on, added to those that are there.
    """
    s = settings or ws.settings
    fixed = _fixed_part(ws, task, s)
    same = [t.settings for t in ws.meta.trials(task.task_id) if t.settings.get("fixed") == fixed]
    fixed_asof = _known(ws, s, task, VARIED)
    if same:
        fixed_asof = date.fromisoformat(same[0]["fixed_asof"])
    if study:
        chosen_asof, by = max(asof, fixed_asof), f"study {study}"
    else:
        chosen_asof = _known(ws, s, task)
        by = "shipped settings" if _is_shipped(s, task) else "hand"
    facts = {"fixed": fixed, "fixed_asof": fixed_asof.isoformat(), "refused": refused}
    return ws.meta.add_trial(
        Trial(
            recipe=recipe_id(ws, task, s), task_id=task.task_id, chosen_asof=chosen_asof,
            chosen_by=by, asof=asof, series=series, tried_at=utc_now(),
            settings={"task": task.model_dump(mode="json")}
            | {name: getattr(s, name).model_dump(mode="json") for name in SECTIONS} | facts,
        ),
        is_proposal=bool(study),
    )  # fmt: skip


def _fixed_part(ws: Workspace, task: Task, s: Settings) -> str:
    """Identifies what a study does not vary."""
    return digest(
        task, ws.feature_set_id, s.label, s.folds, s.train.model_dump_json(exclude=set(VARIED))
    )


def _known(ws: Workspace, s: Settings, task: Task, besides: Collection[str] = ()) -> date:
    """Since when settings are known that were not proposed by a study, some of [train] aside."""
    return SHIPPED_CHOSEN_ASOF if _is_shipped(s, task, besides) else _newest_outcome(ws, task)


def _is_shipped(s: Settings, task: Task, besides: Collection[str] = ()) -> bool:
    """Whether settings that decide a model are those that the project ships with.

    [sessions] says which market it is, not what is learned there.
    """
    shipped = Settings.model_construct()
    names = ("label", "folds", "features", "universe", "jumps")
    same = all(getattr(s, name) == getattr(shipped, name) for name in names)
    train, usual = (x.train.model_dump(exclude=set(besides)) for x in (s, shipped))
    return same and train == usual and task in shipped.tasks


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
    sessions that all compared recipes were tested on (`choose_comparable`); their variance is over
    these recipes, the number of trials counts all. `deflated_sharpe` is the probability that
    the best one's true ratio is above what the best of so many trials without any skill would show;
    `overfitting` the probability that it is below the median out of sample (PBO). `left_out` and
    `missing` tell what could not be compared, and why.
    """
    trials = ws.meta.trials(task.task_id)
    series = collect_series(ws, task)
    rows = [_trial_row(t, series.get(t.recipe), task) for t in trials]
    found: dict[str, Any] = {"task": task.task_id, "n_trials": len(trials), "trials": rows}
    alike, left_out = _alike(ws, task, trials, series)
    recipes, sessions, matrix = choose_comparable(alike, FEWEST * task.horizon)
    tested_elsewhere = "tested on other sessions than most"
    left_out |= {recipe: tested_elsewhere for recipe in alike if recipe not in recipes}
    found |= {"left_out": left_out, "n_sessions": len(sessions)}
    thinned = matrix[:: task.horizon]
    sharpe = _sharpe(thinned)
    if not np.isfinite(sharpe).any():
        return found | {"missing": "no recipe has enough sessions for a Sharpe ratio"}
    best = int(np.nanargmax(sharpe))
    found |= {"best": recipes[best], "sharpe": float(sharpe[best])}
    if len(recipes) < 2:
        return found | {"missing": "one recipe cannot be compared: nothing else was tried there"}
    variance = float(np.nanvar(sharpe, ddof=1))
    found["deflated_sharpe"] = _or_none(deflated_sharpe(thinned[:, best], len(trials), variance))
    n_blocks = min(16, len(thinned) // 4 * 2)
    if n_blocks < 2:
        return found | {"missing": f"{len(thinned)} sessions apart are too few for PBO"}
    risks = probability_of_overfitting(thinned, n_blocks)
    found["overfitting"] = {name: _or_none(value) for name, value in risks.items()}
    return found


def _alike(
    ws: Workspace, task: Task, trials: Sequence[Trial], series: Mapping[str, Series]
) -> tuple[dict[str, Series], dict[str, str]]:
    """Series of recipes with the present horizon, entry lag and protocol, and why others are not.

    Returns over other horizons, and tests of models that learned from later data, are unlike.
    """
    wanted = (task.horizon, task.entry_lag, ws.settings.folds.protocol)
    found, left_out = {}, {}
    for trial in trials:
        is_of, folds = trial.settings["task"], trial.settings["folds"]
        if (is_of["horizon"], is_of["entry_lag"], folds["protocol"]) != wanted:
            left_out[trial.recipe] = "another horizon, entry lag or protocol"
        elif trial.recipe not in series:
            left_out[trial.recipe] = trial.settings.get("refused") or "no test series"
        else:
            found[trial.recipe] = series[trial.recipe]
    return found, left_out


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


def choose_comparable(
    series: Mapping[str, Series], fewest: int
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The most recipes with common sessions: these, the sessions, and sessions x recipes.

    Of the sets of recipes that have a session to themselves, the largest with at least `fewest`
    common sessions is taken, the one with the newest session of several; without one, the largest.
    """
    if not series:
        return [], np.empty(0, "datetime64[D]"), np.empty((0, 0))
    days = np.unique(np.concatenate([ts for ts, _ in series.values()]))
    matrix = np.full((len(days), len(series)), np.nan)
    for j, (ts, values) in enumerate(series.values()):
        matrix[np.searchsorted(days, ts), j] = values
    has = np.isfinite(matrix)
    best, best_rank = np.zeros(len(series), bool), (False, 0, -1)
    for pattern in np.unique(has, axis=0):
        common = np.flatnonzero(has[:, pattern].all(axis=1))
        if pattern.any() and len(common):
            rank = (len(common) >= fewest, int(pattern.sum()), int(common[-1]))
            best, best_rank = (pattern, rank) if rank > best_rank else (best, best_rank)
    rows = has[:, best].all(axis=1) & best.any()
    recipes = [recipe for recipe, is_in in zip(series, best, strict=True) if is_in]
    return recipes, days[rows], matrix[rows][:, best]


def _or_none(value: float) -> float | None:
    return None if value != value else value


def chosen_asofs(ws: Workspace, recipes: Sequence[str]) -> dict[str, date]:
    """Since when the settings of recipes are known."""
    return {t.recipe: t.chosen_asof for t in ws.meta.trials() if t.recipe in recipes}
