"""LightGBM: examples binned once for all folds, tasks and seeds, and boosters fitted to them.

Sharing changes no byte: bins come from features alone, and a fold's rows are handed to LightGBM
with the label, weight and query of one task at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from quant_pipeline.ml.examples import Examples
from quant_pipeline.ml.sessions import index_sessions
from quant_pipeline.ml.splits import FoldRows
from quant_pipeline.ml.targets import row_weights
from quant_pipeline.settings import Task, TrainSettings

if TYPE_CHECKING:
    import lightgbm as lgb  # takes a second and a half: imported by what uses it

# Names of a session that early stopping of a ranking looks at.
NDCG_AT = 20
_OBJECTIVES = {
    "classification": ("binary", "binary_logloss"),
    "regression": ("regression", "l2"),
    "ranking": ("lambdarank", "ndcg"),
}


def bin_parameters(spec: TrainSettings) -> dict[str, Any]:
    """What decides the bins, always in the same order; the same for every task and seed."""
    return {
        "max_bin": spec.max_bin,
        "bin_construct_sample_cnt": spec.bin_sample_rows,
        "data_random_seed": spec.seed,
        # Folds share bins: a feature too rare in one fold must not vanish from all of them.
        "feature_pre_filter": False,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": spec.threads,
        "verbosity": -1,
    }


def booster_parameters(task: Task, spec: TrainSettings, number: int = 0) -> dict[str, Any]:
    """LightGBM's parameters for the booster of that number, always in the same order."""
    objective, metric = _OBJECTIVES[task.kind]
    return {
        "objective": objective,
        "metric": metric,
        "eval_at": [NDCG_AT],
        "first_metric_only": True,
        "learning_rate": spec.learning_rate,
        "num_leaves": spec.num_leaves,
        "max_depth": spec.max_depth,
        "min_data_in_leaf": spec.min_data_in_leaf,
        "feature_fraction": spec.feature_fraction,
        "bagging_fraction": spec.bagging_fraction,
        "bagging_freq": 1,
        "lambda_l1": spec.lambda_l1,
        "lambda_l2": spec.lambda_l2,
        "seed": spec.seed + number,
        **bin_parameters(spec),
    }


@dataclass(eq=False)
class Bins:
    """Examples as LightGBM's integers, made when they are first asked for.

    Walk-forward folds share the bins of the first training window, which ends before any stop or
    test window begins. Where training windows lie on both sides of a test window, each fold has
    bins of its own.
    """

    examples: Examples
    rows: Sequence[FoldRows]
    is_shared: bool
    spec: TrainSettings
    _binned: "lgb.Dataset | None" = field(default=None, init=False)
    _fold: "tuple[int, lgb.Dataset, lgb.Dataset] | None" = field(default=None, init=False)
    _all: "lgb.Dataset | None" = field(default=None, init=False)

    def fold(self, number: int) -> "tuple[lgb.Dataset, lgb.Dataset]":
        """Training and early-stopping rows of a fold, without anything of a task."""
        if self._fold is None or self._fold[0] != number:
            self._fold = None
            rows = self.rows[number]
            if self._binned is None or not self.is_shared:
                self._binned = None
                first = self.rows[0] if self.is_shared else rows
                edges = self._dataset(_slice(first.train)).construct()
                self._binned = self._dataset(slice(None), edges).construct()
            train, stop = (_subset(self._binned, part) for part in (rows.train, rows.stop))
            self._fold = (number, train, stop)
        return self._fold[1], self._fold[2]

    def all_rows(self) -> "lgb.Dataset":
        """Every row, in bins of all rows; those of the folds are let go."""
        if self._all is None:
            self._fold = self._binned = None
            self._all = self._dataset(slice(None)).construct()
        return self._all

    def _dataset(
        self, rows: slice | np.ndarray, reference: "lgb.Dataset | None" = None
    ) -> "lgb.Dataset":
        import lightgbm as lgb

        x = self.examples.x[rows]
        return lgb.Dataset(
            x,
            label=np.zeros(len(x), np.float32),
            reference=reference,
            feature_name=list(self.examples.feature_names),
            params=bin_parameters(self.spec),
        )


def _subset(binned: "lgb.Dataset", rows: np.ndarray) -> "lgb.Dataset":
    """Rows of binned ones, in their order; an array, which `subset` would make two lists of."""
    part = binned.subset([])
    part.used_indices = rows.astype(np.int32)  # type: ignore[assignment]
    return part.construct()


def _slice(rows: np.ndarray) -> slice | np.ndarray:
    """Consecutive rows as a slice, which copies nothing."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def dress(
    dataset: "lgb.Dataset",
    task: Task,
    target: np.ndarray,
    examples: Examples,
    rows: np.ndarray,
    *,
    weigh: bool,
) -> "lgb.Dataset":
    """Give binned rows the target of a task, and with `weigh` its weights.

    All fields are set: another task's may be there.
    """
    weight = row_weights(task, examples, rows) if weigh else None
    is_ranking = task.kind == "ranking"
    group = np.bincount(index_sessions(examples.ts[rows])[1]) if is_ranking else None
    dataset.set_field("label", target[rows].astype(np.float32))
    dataset.set_field("weight", None if weight is None else weight.astype(np.float32))
    dataset.set_field("group", None if group is None else group.astype(np.int32))
    return dataset


@dataclass(frozen=True, eq=False)
class FoldFit:
    """What the boosters of one fold came to: their test scores are averaged.

    ``digests`` has a sha256 of each of bins (of every feature's range), settings and trees up to
    the best round.
    """

    rounds: tuple[int, ...]
    stop_metric: float
    score: np.ndarray
    gain: np.ndarray
    split: np.ndarray
    digests: dict[str, str]


def fit_fold(bins: Bins, number: int, task: Task, target: np.ndarray) -> FoldFit:
    """Boosters of one fold, one a seed, each stopped early on the fold's stop window."""
    import lightgbm as lgb

    spec, rows, examples = bins.spec, bins.rows[number], bins.examples
    train, stop = bins.fold(number)
    dress(train, task, target, examples, rows.train, weigh=True)
    dress(stop, task, target, examples, rows.stop, weigh=False)
    x = examples.x[_slice(rows.test)]
    rounds, losses, boosters = [], [], []
    score = np.zeros(len(rows.test))
    for seed in range(spec.seeds):
        booster = lgb.train(
            booster_parameters(task, spec, seed),
            train,
            spec.max_rounds,
            valid_sets=[stop],
            valid_names=["stop"],
            callbacks=[lgb.early_stopping(spec.early_stopping_rounds, verbose=False)],
        )
        rounds.append(max(1, booster.best_iteration))
        (loss,) = booster.best_score["stop"].values()
        losses.append(float(loss))
        score += np.asarray(booster.predict(x, num_iteration=rounds[-1], num_threads=spec.threads))
        boosters.append(booster)
    gain, split = importances(boosters, rounds)
    texts = [b.model_to_string(num_iteration=n) for b, n in zip(boosters, rounds, strict=True)]
    loss, score = float(np.mean(losses)), score / spec.seeds
    return FoldFit(tuple(rounds), loss, score, gain, split, _digests(texts))


def _digests(texts: Sequence[str]) -> dict[str, str]:
    """A sha256 of each kind of what the texts of boosters hold: every line is of one of them."""
    parts: dict[str, list[str]] = {"bins": [], "settings": [], "trees": []}
    for text in texts:
        head, body = text.split("\n\n", 1)
        trees, settings = body.split("\nparameters:\n", 1)
        for line in head.splitlines():
            kind = {"feature_infos": "bins", "tree_sizes": "trees"}.get(line.partition("=")[0])
            parts[kind or "settings"].append(line)
        parts["trees"].append(trees)
        parts["settings"].append(settings)
    return {kind: sha256("\n".join(found).encode()).hexdigest() for kind, found in parts.items()}


def fit_all(bins: Bins, task: Task, target: np.ndarray, rounds: int) -> "list[lgb.Booster]":
    """The final boosters, one a seed, from all rows in bins of their own."""
    import lightgbm as lgb

    spec, dataset, examples = bins.spec, bins.all_rows(), bins.examples
    dress(dataset, task, target, examples, np.arange(len(examples.ts)), weigh=True)
    return [
        lgb.train(booster_parameters(task, spec, seed), dataset, rounds)
        for seed in range(spec.seeds)
    ]


def importances(
    boosters: "Sequence[lgb.Booster]", rounds: Sequence[int | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Each feature's share of the gain and of the splits, over boosters; zeros if there is none."""
    shares = []
    for kind in ("gain", "split"):
        found = sum(
            booster.feature_importance(kind, iteration=n).astype(np.float64)
            for booster, n in zip(boosters, rounds, strict=True)
        )
        total = float(np.sum(found))
        shares.append(np.asarray(found) / total if total else np.asarray(found))
    return shares[0], shares[1]


def n_splits(boosters: "Sequence[lgb.Booster]") -> int:
    """Splits of all trees together."""
    return sum(int(booster.feature_importance("split").sum()) for booster in boosters)
