"""Tuning: Optuna proposes settings of [train], the folds of one as-of judge them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import optuna

from quant_pipeline.chain.folds import cut_folds, read_folds
from quant_pipeline.chain.learn import plain_series
from quant_pipeline.chain.training_data import read_examples
from quant_pipeline.chain.trials import note_trial, recipe_id
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.ml.train import Recipe, Validation, validate
from quant_pipeline.settings import Settings, Task

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Tuned:
    """What a study came to: its best settings, and the settings of quant.toml in the same folds."""

    study: str
    asof: date
    n_trials: int
    best: dict[str, Any]
    best_value: float
    best_se: float
    usual_value: float
    usual_se: float


def tune(ws: Workspace, key: str, task: Task, n_trials: int, tell: Tell, run_id: str = "") -> Tuned:
    """Try `n_trials` more settings on the folds of a model as of the end of a closed partition.

    The study is stored (models/studies.sqlite) and goes on where it was stopped; the first trial
    is quant.toml as it is. Each is judged by its mean RankIC over the test windows, and recorded
    in the ledger with its out-of-sample series: chosen as of that date.
    """
    cut_folds(ws, key, task, run_id)
    with ws.series.reading("tuning") as con:
        examples, labels, digests = read_examples(ws, con, key, [task])
        folds = read_folds(con, key, task.task_id)
    # Other data, features or fixed settings are another study.
    name = f"{task.task_id} {key} {recipe_id(ws, task)} {digests[task.task_id][:8]}"
    study = _open_study(ws, name)
    asked: list[optuna.Trial] = []

    def recipes() -> Iterator[Recipe]:
        for _ in range(n_trials):
            trial = study.ask()
            asked.append(trial)
            yield _recipe(_proposed(ws.settings, trial))

    results = validate(examples, labels[task.task_id], folds, task, recipes())
    for i in range(n_trials):
        tell(f"trial {len(study.trials) + 1} of study {name}", i, n_trials)
        found = next(results)
        trial = asked[-1]
        settings = _proposed(ws.settings, trial)
        _tell_study(study, trial, found)
        series = plain_series(found.test_series())
        asof = ws.grid.asof(key)
        note_trial(ws, task, asof, settings=settings, study=name, series=series)
    tell("trials", n_trials, n_trials)
    return _summarize(study, name, ws.grid.asof(key))


def _recipe(s: Settings) -> Recipe:
    return Recipe(s.train, s.folds, s.metrics)


def _open_study(ws: Workspace, name: str) -> optuna.Study:
    ws.home.models.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{ws.home.models / 'studies.sqlite'}",
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        # Seeded by what is there: a study that goes on proposes something new.
        sampler=optuna.samplers.TPESampler(seed=ws.settings.train.seed),
    )
    done = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    study.sampler = optuna.samplers.TPESampler(seed=ws.settings.train.seed + len(done))
    if not study.trials:
        t = ws.settings.train
        study.enqueue_trial({name: getattr(t, name) for name in _SPACE})
    return study


_SPACE: dict[str, Callable[[optuna.Trial], Any]] = {
    "learning_rate": lambda t: t.suggest_float("learning_rate", 0.005, 0.3, log=True),
    "num_leaves": lambda t: t.suggest_int("num_leaves", 4, 255, log=True),
    "min_data_in_leaf": lambda t: t.suggest_int("min_data_in_leaf", 20, 5000, log=True),
    "feature_fraction": lambda t: t.suggest_float("feature_fraction", 0.05, 1.0),
    "bagging_fraction": lambda t: t.suggest_float("bagging_fraction", 0.2, 1.0),
    "lambda_l2": lambda t: t.suggest_float("lambda_l2", 1e-3, 1e4, log=True),
}


def _proposed(settings: Settings, trial: optuna.Trial) -> Settings:
    """The settings with a trial's proposal in [train]."""
    proposal = {name: suggest(trial) for name, suggest in _SPACE.items()}
    rounded = {n: round(v, 6) if isinstance(v, float) else v for n, v in proposal.items()}
    return settings.model_copy(update={"train": settings.train.model_copy(update=rounded)})


def _tell_study(study: optuna.Study, trial: optuna.Trial, found: Validation) -> None:
    value, se = found.metrics["rank_ic"], found.metrics["rank_ic_se"]
    trial.set_user_attr("rank_ic_se", se)
    if value == value:
        study.tell(trial, value)
    else:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _summarize(study: optuna.Study, name: str, asof: date) -> Tuned:
    done = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    best, usual = study.best_trial, done[0]
    assert best.value is not None
    assert usual.value is not None
    return Tuned(
        study=name,
        asof=asof,
        n_trials=len(done),
        best={k: round(v, 6) if isinstance(v, float) else v for k, v in best.params.items()},
        best_value=best.value,
        best_se=best.user_attrs["rank_ic_se"],
        usual_value=usual.value,
        usual_se=usual.user_attrs["rank_ic_se"],
    )
