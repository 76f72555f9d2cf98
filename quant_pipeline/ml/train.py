"""Examples in, one trained model out: LightGBM over walk-forward folds, then one final fit.

Same examples, settings and environment, same bytes: rows have one canonical order, every random
choice a seed, and nothing of the clock, the host or the path gets in.
"""

import re
from dataclasses import dataclass
from typing import Any

import lightgbm as lgb
import numpy as np

from quant_pipeline.errors import DegenerateData, NotEnoughHistory
from quant_pipeline.ml.metrics import average_ranks, evaluate, index_sessions
from quant_pipeline.ml.splits import Fold, FoldRows, fold_rows
from quant_pipeline.settings import Task, TrainSettings

FEATURE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled rows of one task in canonical order (ts, symbol), each key once.

    ``x`` is float32, row-major, one column per feature name; NaN is a missing value. ``ts`` and
    ``known_at`` are datetime64[D]; ``label`` and ``fwd_return`` are finite float64.
    """

    symbol: np.ndarray
    ts: np.ndarray
    known_at: np.ndarray
    x: np.ndarray
    label: np.ndarray
    fwd_return: np.ndarray
    feature_names: tuple[str, ...]

    def check(self) -> None:
        """Raise DegenerateData with the first thing that no model can be trained on.

        LightGBM takes NaN labels for 0, infinities for large numbers and a newline in a feature
        name for a header of its own, all without a word.
        """
        _check_shapes(self)
        _check_names(self.feature_names)
        _check_order(self)
        for name, values in (("label", self.label), ("fwd_return", self.fwd_return)):
            bad = np.flatnonzero(~np.isfinite(values))
            if len(bad):
                raise DegenerateData(
                    f"{len(bad)} of {len(values)} rows have a {name} that is no finite number, "
                    f"first {_key(self, bad[0])}: {values[bad[0]]}. Recompute labels."
                )


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A booster as text, how its folds did out of sample, and what it was made with.

    ``test_*`` hold one row per row of a fold's test window, scored by that fold's own booster,
    which saw neither the row nor anything after it. ``importance`` is each feature's share of the
    final booster's gain, in feature order. ``parameters`` are what LightGBM was given.
    """

    booster_text: str
    rounds: int
    fold_rounds: tuple[int, ...]
    fold_metrics: tuple[dict[str, float | int | str], ...]
    metrics: dict[str, float]
    importance: dict[str, float]
    test_symbol: np.ndarray
    test_ts: np.ndarray
    test_fold: np.ndarray
    test_score: np.ndarray
    n_rows: int
    n_splits: int
    parameters: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _FoldFit:
    rounds: int
    stop_loss: float
    score: np.ndarray


def make_target(examples: Examples, task: Task) -> np.ndarray:
    """What the booster is fitted to: the label, or its centred rank within the session.

    Classification: the 0/1 label. Regression with ``normalize = "rank"``: (r - 0.5) / n - 0.5 of
    the average rank r among the session's n labels, in (-0.5, 0.5) with mean 0 per session.
    """
    if task.kind == "classification":
        bad = np.flatnonzero(~np.isin(examples.label, (0.0, 1.0)))
        if len(bad):
            raise DegenerateData(
                f"Task {task.task_id} is a classification, but {len(bad)} labels are neither 0 "
                f"nor 1, first {_key(examples, bad[0])}: {examples.label[bad[0]]}."
            )
    if task.kind == "classification" or task.normalize == "none":
        return examples.label.astype(np.float64)
    _, session = index_sessions(examples.ts)
    n = np.bincount(session, minlength=1)[session]
    target: np.ndarray = (average_ranks(session, examples.label) - 0.5) / n - 0.5
    return target


def booster_parameters(task: Task, spec: TrainSettings) -> dict[str, Any]:
    """LightGBM's parameters for a task, always in the same order."""
    is_binary = task.kind == "classification"
    return {
        "objective": "binary" if is_binary else "regression",
        "metric": "binary_logloss" if is_binary else "l2",
        "first_metric_only": True,
        "learning_rate": spec.learning_rate,
        "num_leaves": spec.num_leaves,
        "min_data_in_leaf": spec.min_data_in_leaf,
        "feature_fraction": spec.feature_fraction,
        "bagging_fraction": spec.bagging_fraction,
        "bagging_freq": 1,
        "lambda_l2": spec.lambda_l2,
        "max_bin": spec.max_bin,
        "bin_construct_sample_cnt": spec.bin_sample_rows,
        # Folds share bins: a feature too rare in one fold must not vanish from all of them.
        "feature_pre_filter": False,
        "deterministic": True,
        "force_row_wise": True,
        "seed": spec.seed,
        "num_threads": spec.threads,
        "verbosity": -1,
    }


def train_model(
    examples: Examples, folds: list[Fold], task: Task, spec: TrainSettings
) -> TrainedModel:
    """One model of a task from all examples, with out-of-sample scores of every fold's test window.

    Each fold's booster stops early on the fold's stop window, never on its test window. The final
    booster is fitted to all rows, binned on them, with the median of the folds' best rounds.
    Folds share bins, made from the first training window alone, so no bin edge of a fold has seen
    its stop or test window.

    Raises DegenerateData if no usable score can come of the examples or came of the booster,
    NotEnoughHistory if a purged window is empty. Prints and logs nothing.
    """
    examples.check()
    target = make_target(examples, task)
    rows = [fold_rows(fold, examples.ts, examples.known_at) for fold in folds]
    _check_trainable(examples, target, rows, task, spec)
    parameters = booster_parameters(task, spec)
    binned = _bin_rows(examples, target, rows[0].train, parameters)
    fits = [_fit_fold(binned, examples.x, part, parameters, spec) for part in rows]
    rounds = max(1, int(np.median([fit.rounds for fit in fits])))
    booster = lgb.train(parameters, _dataset(examples, target, parameters), rounds)
    _check_booster(booster, examples, task, spec)
    test = np.concatenate([part.test for part in rows])
    score = np.concatenate([fit.score for fit in fits])
    return TrainedModel(
        booster_text=booster.model_to_string(),
        rounds=rounds,
        fold_rounds=tuple(fit.rounds for fit in fits),
        fold_metrics=tuple(
            _describe_fold(fold, part, fit, examples, target, task)
            for fold, part, fit in zip(folds, rows, fits, strict=True)
        ),
        metrics=_evaluate_rows(test, score, examples, target, task),
        importance=_gain_shares(booster, examples.feature_names),
        test_symbol=examples.symbol[test],
        test_ts=examples.ts[test],
        test_fold=np.repeat([fold.fold for fold in folds], [len(part.test) for part in rows]),
        test_score=score,
        n_rows=len(examples.label),
        n_splits=_n_splits(booster),
        parameters=parameters
        | {"max_rounds": spec.max_rounds, "early_stopping_rounds": spec.early_stopping_rounds},
    )


def _dataset(
    examples: Examples,
    target: np.ndarray,
    parameters: dict[str, Any],
    rows: np.ndarray | None = None,
    bins_of: lgb.Dataset | None = None,
) -> lgb.Dataset:
    return lgb.Dataset(
        examples.x if rows is None else examples.x[rows],
        label=target if rows is None else target[rows],
        reference=bins_of,
        feature_name=list(examples.feature_names),
        params=parameters,
    )


def _bin_rows(
    examples: Examples, target: np.ndarray, first_train: np.ndarray, parameters: dict[str, Any]
) -> lgb.Dataset:
    """All rows in the bins of the first training window, to take folds from by position."""
    bins = _dataset(examples, target, parameters, rows=first_train).construct()
    return _dataset(examples, target, parameters, bins_of=bins).construct()


def _fit_fold(
    binned: lgb.Dataset,
    x: np.ndarray,
    rows: FoldRows,
    parameters: dict[str, Any],
    spec: TrainSettings,
) -> _FoldFit:
    booster = lgb.train(
        parameters,
        binned.subset(rows.train.tolist()),
        spec.max_rounds,
        valid_sets=[binned.subset(rows.stop.tolist())],
        valid_names=["stop"],
        callbacks=[lgb.early_stopping(spec.early_stopping_rounds, verbose=False)],
    )
    rounds = max(1, booster.best_iteration)
    score = booster.predict(x[rows.test], num_iteration=rounds, num_threads=spec.threads)
    stop_loss = float(booster.best_score["stop"][parameters["metric"]])
    return _FoldFit(rounds, stop_loss, np.asarray(score, dtype=np.float64))


def _describe_fold(
    fold: Fold,
    rows: FoldRows,
    fit: _FoldFit,
    examples: Examples,
    target: np.ndarray,
    task: Task,
) -> dict[str, float | int | str]:
    return {
        "fold": fold.fold,
        "train_start": str(fold.train_start),
        "train_end": str(fold.train_end),
        "stop_start": str(fold.stop_start),
        "stop_end": str(fold.stop_end),
        "test_start": str(fold.test_start),
        "test_end": str(fold.test_end),
        "n_train": len(rows.train),
        "n_stop": len(rows.stop),
        "n_test": len(rows.test),
        "n_purged": rows.n_purged,
        "rounds": fit.rounds,
        "stop_loss": fit.stop_loss,
        **_evaluate_rows(rows.test, fit.score, examples, target, task),
    }


def _evaluate_rows(
    rows: np.ndarray, score: np.ndarray, examples: Examples, target: np.ndarray, task: Task
) -> dict[str, float]:
    lag = 2 * task.horizon
    return evaluate(task, examples.ts[rows], score, target[rows], examples.fwd_return[rows], lag)


def _gain_shares(booster: lgb.Booster, feature_names: tuple[str, ...]) -> dict[str, float]:
    gain = booster.feature_importance("gain")
    return dict(zip(feature_names, (gain / gain.sum()).tolist(), strict=True))


def _n_splits(booster: lgb.Booster) -> int:
    return int(booster.feature_importance("split").sum())


def _key(examples: Examples, row: int) -> str:
    return f"{examples.symbol[row]} {examples.ts[row]}"


def _check_shapes(examples: Examples) -> None:
    n, n_features = len(examples.label), len(examples.feature_names)
    x = examples.x
    if x.shape != (n, n_features) or x.dtype != np.float32 or not x.flags.c_contiguous:
        raise DegenerateData(
            f"The feature matrix is {x.dtype} {x.shape}; {n} labels and {n_features} feature "
            f"names need a row-major float32 matrix of shape ({n}, {n_features})."
        )
    for name in ("symbol", "ts", "known_at", "fwd_return"):
        shape = getattr(examples, name).shape
        if shape != (n,):
            raise DegenerateData(f"Column {name} has shape {shape}, but there are {n} labels.")


def _check_names(names: tuple[str, ...]) -> None:
    for name in names:
        if not FEATURE_NAME.fullmatch(name):
            raise DegenerateData(
                f"Feature name {name!r} cannot be stored in a model: use a letter, then at most "
                "62 letters, digits or underscores."
            )
    twice = sorted(name for name in set(names) if names.count(name) > 1)
    if twice:
        raise DegenerateData(f"Feature names must differ, but these repeat: {', '.join(twice)}.")


def _check_order(examples: Examples) -> None:
    ts, symbol = examples.ts, examples.symbol
    bad = np.flatnonzero(np.isnat(ts) | np.isnat(examples.known_at) | (examples.known_at <= ts))
    if len(bad):
        raise DegenerateData(
            f"{len(bad)} rows have no date or a label known no later than its own session, first "
            f"{_key(examples, bad[0])}: known at {examples.known_at[bad[0]]}. Recompute labels."
        )
    same_day = ts[1:] == ts[:-1]
    in_order = (ts[1:] > ts[:-1]) | (same_day & (symbol[1:] > symbol[:-1]))
    if in_order.all():
        return
    row = int(np.flatnonzero(~in_order)[0])
    is_twice = same_day[row] and symbol[row + 1] == symbol[row]
    what = "appears twice" if is_twice else f"is followed by {_key(examples, row + 1)}"
    raise DegenerateData(
        f"Examples must be in order of ts, then symbol, each key once, but row {row} "
        f"({_key(examples, row)}) {what}. Another row order would train another model."
    )


def _check_trainable(
    examples: Examples,
    target: np.ndarray,
    rows: list[FoldRows],
    task: Task,
    spec: TrainSettings,
) -> None:
    if not rows:
        raise NotEnoughHistory(f"Task {task.task_id} needs at least one fold to train, has none.")
    if len(target) < spec.min_rows:
        raise DegenerateData(
            f"Task {task.task_id} has {len(target)} examples; train.min_rows asks for "
            f"{spec.min_rows}. Ingest more history or more symbols, or lower train.min_rows."
        )
    windows = [("all examples", target)]
    windows += [(f"training window {n}", target[part.train]) for n, part in enumerate(rows, 1)]
    for where, values in windows:
        if values.min() == values.max():
            raise DegenerateData(
                f"Task {task.task_id} has one label only, {values[0]:g}, in the {len(values)} "
                f"rows of {where}: nothing can be learned from it. Check the task's threshold."
            )
    _check_features(examples, task)


def _check_features(examples: Examples, task: Task) -> None:
    highest = np.fmax.reduce(examples.x, axis=0)
    lowest = np.fmin.reduce(examples.x, axis=0)
    infinite = np.flatnonzero(np.isinf(highest) | np.isinf(lowest))
    if len(infinite):
        column = examples.x[:, infinite[0]]
        bad = np.flatnonzero(np.isinf(column))
        raise DegenerateData(
            f"Feature {examples.feature_names[infinite[0]]} is infinite in {len(bad)} of "
            f"{len(column)} rows, first {_key(examples, bad[0])}. Features are finite numbers or "
            "NaN; recompute features_daily."
        )
    if not (highest > lowest).any():
        raise DegenerateData(
            f"All {len(examples.feature_names)} features of task {task.task_id} are constant or "
            f"missing in {len(examples.x)} rows: nothing can be learned from them."
        )


def _check_booster(
    booster: lgb.Booster, examples: Examples, task: Task, spec: TrainSettings
) -> None:
    n_splits = _n_splits(booster)
    score = np.asarray(booster.predict(examples.x, num_threads=spec.threads))
    if n_splits and np.isfinite(score).all() and score.min() < score.max():
        return
    raise DegenerateData(
        f"The model of task {task.task_id} gives all {len(score)} examples the same or no score "
        f"({booster.num_trees()} rounds, {n_splits} splits). Features carry no signal at these "
        f"settings: train.min_data_in_leaf is {spec.min_data_in_leaf}, "
        f"train.lambda_l2 {spec.lambda_l2:g}."
    )
