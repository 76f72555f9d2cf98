"""Tuning: Optuna proposes settings of [train], the folds of one as-of judge them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from quant_pipeline.chain.learn import plain_series
from quant_pipeline.chain.seal import require_sealed
from quant_pipeline.chain.training_data import read_examples
from quant_pipeline.chain.trials import VARIED, note_trial, recipe_id
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import DegenerateData
from quant_pipeline.ml.splits import make_folds
from quant_pipeline.ml.train import Recipe, Validation, validate
from quant_pipeline.settings import Settings, Task
from quant_pipeline.stores.locks import held

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
    usual_value: float | None
    usual_se: float | None


def tune(ws: Workspace, key: str, task: Task, n_trials: int, tell: Tell) -> Tuned:
    """Try `n_trials` more settings on the folds of a model as of the end of a closed partition.

    The study is stored (models/studies.sqlite) and goes on where it was stopped; the first trial
    is quant.toml as it is. Each is judged by its mean RankIC over the test windows, and recorded
    in the ledger with its out-of-sample series. Folds are cut anew, and not stored. One study at a
    time: raises StoreBusy; DegenerateData if no settings could be judged.
    """
    require_sealed(ws, key)
    with held(ws.home.data / "tune.lock", f"a study of {task.task_id}", 0):
        return _tune(ws, key, task, n_trials, tell)


def _tune(ws: Workspace, key: str, task: Task, n_trials: int, tell: Tell) -> Tuned:
    with ws.series.reading("tuning") as con:
        examples, labels, digests = read_examples(ws, con, key, [task])
    folds = make_folds(np.unique(examples.ts), ws.settings.folds, task.label_span)
    # Other data, features or fixed settings are another study.
    name = f"{task.task_id} {key} {recipe_id(ws, task)} {digests[task.task_id][:8]}"
    study = _open_study(ws, name)
    asked: list[optuna.Trial] = []

    def recipes() -> Iterator[Recipe]:
        for _ in range(n_trials):
            asked.append(study.ask())
            yield _recipe(_proposed(ws.settings, asked[-1]))

    asof = ws.grid.asof(key)
    results = validate(examples, labels[task.task_id], folds, task, recipes())
    for i in range(n_trials):
        tell(f"trial {len(study.trials) + 1} of study {name}", i, n_trials)
        found = next(results)
        trial = asked[-1]
        settings = _proposed(ws.settings, trial)
        _tell_study(study, trial, found)
        by = "" if USUAL in trial.user_attrs else name
        series = plain_series(found.test_series(ws.settings.metrics))
        note_trial(ws, task, asof, settings=settings, study=by, series=series)
    tell("trials", n_trials, n_trials)
    return _summarize(study, name, asof)


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
    for trial in study.get_trials(states=[TrialState.RUNNING]):  # its process was killed
        study.tell(trial.number, state=TrialState.FAIL)
    done = study.get_trials(states=[TrialState.COMPLETE])
    study.sampler = optuna.samplers.TPESampler(seed=ws.settings.train.seed + len(study.trials))
    waiting = study.get_trials(states=[TrialState.WAITING])
    if not any(USUAL in trial.user_attrs for trial in (*done, *waiting)):
        usual = {name: getattr(ws.settings.train, name) for name in VARIED}
        # The sampler takes what lies outside of its space for the nearest that does not.
        inside = {n: min(max(v, _LOWEST.get(n, v)), _HIGHEST.get(n, v)) for n, v in usual.items()}
        study.enqueue_trial(inside, user_attrs={USUAL: True})
    return study


# Marks the trial of quant.toml as it is.
USUAL = "usual"
_LOWEST = {
    "learning_rate": 0.005, "num_leaves": 4, "min_data_in_leaf": 20, "feature_fraction": 0.05,
    "bagging_fraction": 0.2, "lambda_l2": 1e-3,
}  # fmt: skip
_HIGHEST = {"learning_rate": 0.3, "num_leaves": 255, "min_data_in_leaf": 5000, "lambda_l2": 1e4}
_SPACE: dict[str, Callable[[optuna.Trial], Any]] = {
    "learning_rate": lambda t: t.suggest_float("learning_rate", 0.005, 0.3, log=True),
    "num_leaves": lambda t: t.suggest_int("num_leaves", 4, 255, log=True),
    "min_data_in_leaf": lambda t: t.suggest_int("min_data_in_leaf", 20, 5000, log=True),
    "feature_fraction": lambda t: t.suggest_float("feature_fraction", 0.05, 1.0),
    "bagging_fraction": lambda t: t.suggest_float("bagging_fraction", 0.2, 1.0),
    "lambda_l2": lambda t: t.suggest_float("lambda_l2", 1e-3, 1e4, log=True),
}


def _proposed(settings: Settings, trial: optuna.Trial) -> Settings:
    """The settings with a trial's proposal in [train]; the usual one leaves them as they are."""
    proposal = {name: suggest(trial) for name, suggest in _SPACE.items()}
    if USUAL in trial.user_attrs:
        return settings
    rounded = {n: round(v, 6) if isinstance(v, float) else v for n, v in proposal.items()}
    return settings.model_copy(update={"train": settings.train.model_copy(update=rounded)})


def _tell_study(study: optuna.Study, trial: optuna.Trial, found: Validation) -> None:
    """The mean RankIC, unless there is none, or none where quant.toml's own settings have one.

    Settings that tell the names apart in few folds must not be judged by these alone.
    """
    value, n = found.metrics["rank_ic"], found.metrics["n_ic_sessions"]
    trial.set_user_attr("rank_ic_se", found.metrics["rank_ic_se"])
    trial.set_user_attr("n_sessions", n)
    expected = max((t.user_attrs.get("n_sessions", 0) for t in study.trials), default=0)
    if value == value and n >= MIN_SHARE * expected:
        study.tell(trial, value)
    else:
        study.tell(trial, state=TrialState.FAIL)


MIN_SHARE = 0.95


def _summarize(study: optuna.Study, name: str, asof: date) -> Tuned:
    done = study.get_trials(states=[TrialState.COMPLETE])
    if not done:
        raise DegenerateData(
            f"None of the {len(study.trials)} settings of study {name} gave scores that can be "
            "judged: sessions need metrics.min_names names with unlike scores."
        )
    best = study.best_trial
    usual = next((t for t in done if USUAL in t.user_attrs), None)
    assert best.value is not None
    best_params = {k: round(v, 6) if isinstance(v, float) else v for k, v in best.params.items()}
    return Tuned(
        study=name,
        asof=asof,
        n_trials=len(done),
        best=best_params,
        best_value=best.value,
        best_se=best.user_attrs["rank_ic_se"],
        usual_value=usual.value if usual else None,
        usual_se=usual.user_attrs["rank_ic_se"] if usual else None,
    )
