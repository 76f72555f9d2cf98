"""Examples in, trained models out: LightGBM over folds, then one final fit for each task.

Same examples, settings and environment, same bytes: rows have one canonical order, every random
choice a seed, and nothing of the clock, the host or the path gets in. A task trained with others
on the same rows has the bytes that it has alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quant_pipeline.errors import DegenerateData, NotEnoughHistory
from quant_pipeline.ml.boosters import (
    Bins,
    FoldFit,
    bin_parameters,
    booster_parameters,
    fit_all,
    fit_fold,
    importances,
    n_splits,
)
from quant_pipeline.ml.cpcv import group_starts, paths
from quant_pipeline.ml.examples import Examples
from quant_pipeline.ml.metrics import evaluate, information_coefficient, top_minus_bottom
from quant_pipeline.ml.sessions import index_sessions, mean_of_defined, session_means
from quant_pipeline.ml.splits import Fold, FoldRows, fold_rows
from quant_pipeline.ml.targets import make_target
from quant_pipeline.settings import FoldSettings, MetricSettings, Task, TrainSettings

if TYPE_CHECKING:
    import lightgbm as lgb

# Rows of all examples whose scores show that a booster tells them apart.
N_TRIED = 10_000


@dataclass(frozen=True)
class Recipe:
    """What training needs to know besides the examples and the task."""

    train: TrainSettings
    folds: FoldSettings
    metrics: MetricSettings


@dataclass(frozen=True, eq=False)
class Validation:
    """How the folds of a task did out of sample.

    ``test_*`` hold one row per row of a fold's test window, scored by that fold's own boosters,
    which saw neither the row nor, in walk-forward folds, anything after it.
    """

    rounds: int
    fold_rounds: tuple[tuple[int, ...], ...]
    fold_digests: tuple[dict[str, str], ...]
    fold_metrics: tuple[dict[str, Any], ...]
    metrics: dict[str, float]
    test_symbol: np.ndarray
    test_ts: np.ndarray
    test_fold: np.ndarray
    test_score: np.ndarray
    test_target: np.ndarray
    test_return: np.ndarray

    def test_series(self, spec: MetricSettings) -> dict[str, np.ndarray]:
        """Sessions of the test windows: RankIC and top minus bottom of each, 5 decimals.

        A session that several folds tested has the mean of theirs.
        """
        found = []
        for fold in np.unique(self.test_fold):
            mine = self.test_fold == fold
            ts, score, outcome = (
                a[mine] for a in (self.test_ts, self.test_score, self.test_return)
            )
            least = spec.min_names
            sessions, rank_ic = information_coefficient(ts, score, outcome, True, least)
            spread = top_minus_bottom(ts, score, outcome, spec.quantile, least)[1]
            found.append((sessions, rank_ic, spread))
        sessions, rank_ic, spread = (np.concatenate(part) for part in zip(*found, strict=True))
        days, at = np.unique(sessions, return_inverse=True)
        columns = {"rank_ic": rank_ic, "top_minus_bottom": spread}
        everyone = len(days)
        means = {
            name: session_means(at, everyone, values, np.isfinite(values))
            for name, values in columns.items()
        }
        return {"ts": days, **{name: values.round(5) for name, values in means.items()}}


@dataclass(frozen=True, eq=False)
class TrainedModel(Validation):
    """Boosters as text, what they were made with, and how the folds did out of sample.

    ``importance`` has each feature's share of gain and splits in the final boosters and, over the
    folds, its mean and standard deviation. ``parameters`` are what LightGBM was given for the
    first booster.
    """

    boosters: tuple[str, ...]
    importance: dict[str, dict[str, float]]
    n_rows: int
    n_splits: int
    parameters: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Work:
    """One task on its way: what it says about the rows, and the folds fitted so far."""

    task: Task
    label: np.ndarray
    target: np.ndarray
    fits: list[FoldFit]


def train_models(
    examples: Examples,
    labels: Mapping[str, np.ndarray],
    folds: Sequence[Fold],
    tasks: Sequence[Task],
    recipe: Recipe,
) -> dict[str, TrainedModel | DegenerateData]:
    """A model of each task from all examples, with out-of-sample scores of every test window.

    ``labels`` are those of each task, row by row. A fold's boosters stop early on the fold's stop
    window, never on its test window. The final boosters are fitted to all rows, binned on them,
    with the median of the folds' best rounds. What one task cannot learn from is its own result,
    and costs the others nothing; what none can raises DegenerateData, and a purged window that is
    empty NotEnoughHistory. Prints and logs nothing.
    """
    examples.check()
    rows = [fold_rows(fold, examples.ts, examples.known_at) for fold in folds]
    if not rows:
        raise NotEnoughHistory("Training needs at least one fold, has none.")
    _require_rows(examples, recipe.train)
    bins = Bins(examples, rows, recipe.folds.protocol == "walk_forward", recipe.train)
    found: dict[str, TrainedModel | DegenerateData] = {}
    works = []
    for task in tasks:
        try:
            works.append(_begin(examples, labels[task.task_id], rows, task))
        except DegenerateData as error:
            found[task.task_id] = error
    for number in range(len(rows)):
        for work in works:
            work.fits.append(fit_fold(bins, number, work.task, work.target))
    for work in works:
        try:
            found[work.task.task_id] = _finish(bins, folds, work, recipe)
        except DegenerateData as error:
            found[work.task.task_id] = error
    return {task.task_id: found[task.task_id] for task in tasks}


def validate(
    examples: Examples,
    label: np.ndarray,
    folds: Sequence[Fold],
    task: Task,
    recipes: Iterable[Recipe],
) -> Iterator[Validation]:
    """How the folds do with each of some recipes, without a final fit; for tuning.

    Recipes that agree on bins share them, so the examples are binned once. Raises DegenerateData
    and NotEnoughHistory like `train_models`.
    """
    examples.check()
    rows = [fold_rows(fold, examples.ts, examples.known_at) for fold in folds]
    bins: Bins | None = None
    for recipe in recipes:
        _require_rows(examples, recipe.train)
        is_shared = recipe.folds.protocol == "walk_forward"
        if bins is None or bin_parameters(bins.spec) != bin_parameters(recipe.train):
            bins = Bins(examples, rows, is_shared, recipe.train)
        bins.spec = recipe.train
        work = _begin(examples, label, rows, task)
        work.fits.extend(fit_fold(bins, number, task, work.target) for number in range(len(rows)))
        yield Validation(**_validated(bins, folds, work, recipe))


def refit_fold(
    examples: Examples,
    labels: Mapping[str, np.ndarray],
    folds: Sequence[Fold],
    number: int,
    tasks: Sequence[Task],
    recipe: Recipe,
) -> tuple[FoldRows, dict[str, FoldFit]]:
    """One fold alone, counted from 0, by the same steps as in `train_models`: its rows and fits."""
    rows = [fold_rows(fold, examples.ts, examples.known_at) for fold in folds]
    bins = Bins(examples, rows, recipe.folds.protocol == "walk_forward", recipe.train)
    works = [_begin(examples, labels[task.task_id], rows, task) for task in tasks]
    fits = {work.task.task_id: fit_fold(bins, number, work.task, work.target) for work in works}
    return rows[number], fits


def train_model(
    examples: Examples, label: np.ndarray, folds: Sequence[Fold], task: Task, recipe: Recipe
) -> TrainedModel:
    """The model of one task; raises DegenerateData if there can be none."""
    found = train_models(examples, {task.task_id: label}, folds, [task], recipe)[task.task_id]
    if isinstance(found, DegenerateData):
        raise found
    return found


def _begin(examples: Examples, label: np.ndarray, rows: Sequence[FoldRows], task: Task) -> _Work:
    if label.shape != examples.fwd_return.shape:
        raise DegenerateData(
            f"Task {task.task_id} has labels of shape {label.shape} for {len(examples.ts)} rows."
        )
    examples.require_finite("label", label)
    target = make_target(task, examples.ts, label, examples.fwd_return)
    windows = [("all examples", target)]
    windows += [(f"training window {n}", target[part.train]) for n, part in enumerate(rows, 1)]
    for where, values in windows:
        if values.min() == values.max():
            raise DegenerateData(
                f"Task {task.task_id} has one label only, {values[0]:g}, in the {len(values)} "
                f"rows of {where}: nothing can be learned from it. Check the task's threshold."
            )
    return _Work(task, label, target, [])


def _validated(bins: Bins, folds: Sequence[Fold], work: _Work, recipe: Recipe) -> dict[str, Any]:
    """The fields of Validation."""
    examples, rows = bins.examples, bins.rows
    test = np.concatenate([part.test for part in rows])
    score = np.concatenate([fit.score for fit in work.fits])
    fold = np.repeat([f.fold for f in folds], [len(part.test) for part in rows])
    judged = [test >= 0]  # every row is tested once
    if recipe.folds.protocol == "cpcv":
        judged = _paths(test, fold, examples, recipe.folds)
    return {
        "rounds": max(1, int(np.median([fit.rounds for fit in work.fits]))),
        "fold_rounds": tuple(fit.rounds for fit in work.fits),
        "fold_digests": tuple(fit.digests for fit in work.fits),
        "fold_metrics": tuple(
            _describe_fold(fold, part, fit, examples, work, recipe)
            for fold, part, fit in zip(folds, rows, work.fits, strict=True)
        ),
        "metrics": _mean_metrics(
            [_evaluate_rows(test[mine], score[mine], examples, work, recipe) for mine in judged]
        ),
        "test_symbol": examples.symbol[test],
        "test_ts": examples.ts[test],
        "test_fold": fold,
        "test_score": score,
        "test_target": work.target[test],
        "test_return": examples.fwd_return[test],
    }


def _paths(
    test: np.ndarray, fold: np.ndarray, examples: Examples, spec: FoldSettings
) -> list[np.ndarray]:
    """Which test rows belong to each path of combinatorial cross-validation: each row once a path.

    Scores of several paths are never pooled: they are of the same sessions.
    """
    sessions, session = index_sessions(examples.ts)
    starts = group_starts(len(sessions), spec.n_groups)
    group = np.searchsorted(starts, session, side="right") - 1
    return [path[group[test]] == fold for path in paths(spec.n_groups, spec.n_test_groups)]


def _mean_metrics(by_path: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each metric's mean over paths, and for more than one the spread of RankIC over them."""
    if len(by_path) == 1:
        return by_path[0]
    found: dict[str, float] = {"n_paths": len(by_path)}
    for name in by_path[0]:
        values = [metrics[name] for metrics in by_path]
        found[name] = mean_of_defined(np.array(values, np.float64))
    rank_ic = np.array([metrics["rank_ic"] for metrics in by_path])
    found["rank_ic_path_std"] = float(np.std(rank_ic, ddof=1))
    found["rank_ic_path_min"] = float(np.min(rank_ic))
    return found


def _finish(bins: Bins, folds: Sequence[Fold], work: _Work, recipe: Recipe) -> TrainedModel:
    task, spec, examples = work.task, recipe.train, bins.examples
    validated = _validated(bins, folds, work, recipe)
    _check_folds(work, spec)
    boosters = fit_all(bins, task, work.target, validated["rounds"])
    _check_boosters(boosters, examples, task, spec)
    return TrainedModel(
        **validated,
        boosters=tuple(booster.model_to_string() for booster in boosters),
        importance=_importance(boosters, work.fits, examples.feature_names),
        n_rows=len(examples.ts),
        n_splits=n_splits(boosters),
        parameters=booster_parameters(task, spec)
        | {
            "max_rounds": spec.max_rounds,
            "early_stopping_rounds": spec.early_stopping_rounds,
            "seeds": spec.seeds,
        },
    )


def _describe_fold(
    fold: Fold,
    rows: FoldRows,
    fit: FoldFit,
    examples: Examples,
    work: _Work,
    recipe: Recipe,
) -> dict[str, Any]:
    windows = {
        f"{name}_{end}": str(getattr(getattr(fold, name)[at], end))
        for name in ("train", "stop", "test") for end, at in (("start", 0), ("end", -1))
    }  # fmt: skip
    return {
        "fold": fold.fold,
        **windows,
        "n_train": len(rows.train),
        "n_stop": len(rows.stop),
        "n_test": len(rows.test),
        "n_purged": rows.n_purged,
        "rounds": float(np.mean(fit.rounds)),
        "stop_metric": fit.stop_metric,
        **_evaluate_rows(rows.test, fit.score, examples, work, recipe),
    }


def _evaluate_rows(
    rows: np.ndarray, score: np.ndarray, examples: Examples, work: _Work, recipe: Recipe
) -> dict[str, float]:
    return evaluate(
        work.task, examples.ts[rows], examples.symbol[rows], score, work.label[rows],
        work.target[rows], examples.fwd_return[rows], recipe.metrics,
    )  # fmt: skip


def _importance(
    boosters: "Sequence[lgb.Booster]", fits: Sequence[FoldFit], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    gain, split = importances(boosters, [None] * len(boosters))
    by_fold = {kind: np.array([getattr(fit, kind) for fit in fits]) for kind in ("gain", "split")}
    columns = {"gain": gain, "split": split}
    for kind, shares in by_fold.items():
        columns[f"fold_{kind}"] = shares.mean(axis=0)
        columns[f"fold_{kind}_std"] = shares.std(axis=0, ddof=1 if len(shares) > 1 else 0)
    return {k: dict(zip(names, v.tolist(), strict=True)) for k, v in columns.items()}


def _require_rows(examples: Examples, spec: TrainSettings) -> None:
    if len(examples.ts) < spec.min_rows:
        raise DegenerateData(
            f"There are {len(examples.ts)} examples; train.min_rows asks for {spec.min_rows}. "
            "Ingest more history or more symbols, or lower train.min_rows."
        )


def _check_folds(work: _Work, spec: TrainSettings) -> None:
    """Refuse what was never tested: no fold's boosters tell its test rows apart."""
    for fit in work.fits:
        score = fit.score
        if fit.split.any() and np.isfinite(score).all() and score.min() < score.max():
            return
    raise DegenerateData(
        f"None of the {len(work.fits)} folds of task {work.task.task_id} tells its test rows apart "
        f"({work.fits[0].rounds[0]} rounds, 0 splits): the model would be untested. "
        f"train.min_data_in_leaf is {spec.min_data_in_leaf}, train.lambda_l2 {spec.lambda_l2:g}."
    )


def _check_boosters(
    boosters: "Sequence[lgb.Booster]", examples: Examples, task: Task, spec: TrainSettings
) -> None:
    """Refuse boosters that give rows the same or no score."""
    every = max(1, len(examples.x) // N_TRIED)
    x = np.ascontiguousarray(examples.x[::every])
    scores = [np.asarray(b.predict(x, num_threads=spec.threads)) for b in boosters]
    score = np.mean(scores, axis=0)
    splits = n_splits(boosters)
    if splits and np.isfinite(score).all() and score.min() < score.max():
        return
    raise DegenerateData(
        f"The model of task {task.task_id} gives {len(score)} of {len(examples.x)} examples the "
        f"same or no score ({boosters[0].num_trees()} rounds, {splits} splits). Features carry no "
        f"signal at these settings: train.min_data_in_leaf is {spec.min_data_in_leaf}, "
        f"train.lambda_l2 {spec.lambda_l2:g}."
    )
