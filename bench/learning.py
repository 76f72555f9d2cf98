"""What training through this project costs beside bare LightGBM, as JSON lines.

The examples are made up: 363,585 rows x 158 float32 features with a weak signal, in time order.
Three ways do the same: five expanding folds of 60 rounds each, scores of each test window, and a
final fit on all rows in bins of its own. Each way is a process of its own, run several times in
turn; figures are medians.

- `ours`: `train_model`, with its checks, purge, metrics per session and importances.
- `bare`: a script that bins the folds' rows once and takes folds by position.
- `rebuild`: a script that makes a new Dataset for each fold.

`ratio_bare` and `ratio_rebuild` are CPU seconds of ours over theirs; `peak_ratio` is the memory
that ours takes beyond the imported libraries, the matrix included, over the matrix.

    python bench/learning.py              three sets of parameters, about 8 minutes
    python bench/learning.py --quick      a quarter of the rows, about 2 minutes
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import lightgbm as lgb
import numpy as np

from quant_pipeline.ml.examples import Examples
from quant_pipeline.ml.splits import Fold, fold_rows, make_folds
from quant_pipeline.ml.train import Recipe, train_model
from quant_pipeline.settings import FoldSettings, MetricSettings, Task, TrainSettings

REPEATS = 3
N_SYMBOLS, N_FEATURES, ROUNDS = 410, 158, 60
TASK = Task(task_id="ret_5d", kind="regression", horizon=5)
PARAMETERS: dict[str, dict[str, Any]] = {
    "210 leaves, 255 bins": {"num_leaves": 210, "max_bin": 255, "bin_sample_rows": 200_000},
    "210 leaves, 255 bins, shipped sample": {"num_leaves": 210, "max_bin": 255},
    "shipped": {},
}


def make_examples(n_rows: int) -> Examples:
    """Rows of consecutive sessions, the last of which is not full."""
    rng = np.random.default_rng(363_585)
    session = np.arange(n_rows) // N_SYMBOLS
    days = np.busday_offset("2010-01-04", np.arange(session[-1] + 7), roll="forward")
    x = rng.standard_normal((n_rows, N_FEATURES), np.float32)
    x[::37, ::5] = np.nan
    signal = np.nan_to_num(x[:, 1]) + np.nan_to_num(x[:, 2]) * np.nan_to_num(x[:, 3])
    fwd_return = 0.03 * (0.05 * signal + rng.standard_normal(n_rows))
    names = np.array([f"S{i:03d}" for i in range(N_SYMBOLS)], object)
    return Examples(
        symbol=names[np.arange(n_rows) % N_SYMBOLS],
        ts=days[session],
        entry_ts=days[session + 1],
        known_at=days[session + 6],
        x=x,
        fwd_return=fwd_return,
        feature_names=tuple(f"f{j}" for j in range(N_FEATURES)),
    )


def recipe(parameters: dict[str, Any], n_sessions: int) -> Recipe:
    """60 rounds a fold: early stopping watches, and never comes to stop."""
    train = TrainSettings(max_rounds=ROUNDS, early_stopping_rounds=ROUNDS, **parameters)
    tenth = n_sessions // 10
    folds = FoldSettings(
        n_folds=5, min_train_sessions=tenth, stop_sessions=tenth // 2, test_sessions=tenth
    )
    return Recipe(train, folds, MetricSettings())


def ours(e: Examples, folds: list[Fold], how: Recipe) -> None:
    """Through the project."""
    train_model(e, e.fwd_return, folds, TASK, how)


def bare(e: Examples, folds: list[Fold], how: Recipe) -> None:
    """By hand, binning once."""
    parameters = plain(how.train)
    rows = [fold_rows(fold, e.ts, e.known_at) for fold in folds]
    first = lgb.Dataset(e.x[: rows[0].train[-1] + 1], e.fwd_return[: rows[0].train[-1] + 1],
                        params=parameters)  # fmt: skip
    binned = lgb.Dataset(e.x, e.fwd_return, reference=first, params=parameters).construct()
    for part in rows:
        booster = lgb.train(
            parameters,
            binned.subset(part.train.tolist()),
            ROUNDS,
            valid_sets=[binned.subset(part.stop.tolist())],
        )
        booster.predict(e.x[part.test[0] : part.test[-1] + 1])
    del binned, first
    lgb.train(parameters, lgb.Dataset(e.x, e.fwd_return, params=parameters), ROUNDS)


def rebuild(e: Examples, folds: list[Fold], how: Recipe) -> None:
    """By hand, with a new Dataset for each fold."""
    parameters = plain(how.train)
    for part in [fold_rows(fold, e.ts, e.known_at) for fold in folds]:
        train = lgb.Dataset(e.x[part.train], e.fwd_return[part.train], params=parameters)
        stop = train.create_valid(e.x[part.stop], e.fwd_return[part.stop])
        booster = lgb.train(parameters, train, ROUNDS, valid_sets=[stop])
        booster.predict(e.x[part.test[0] : part.test[-1] + 1])
    lgb.train(parameters, lgb.Dataset(e.x, e.fwd_return, params=parameters), ROUNDS)


def plain(spec: TrainSettings) -> dict[str, Any]:
    """The same parameters, written down anew."""
    return {
        "objective": "regression", "metric": "l2", "learning_rate": spec.learning_rate,
        "num_leaves": spec.num_leaves, "min_data_in_leaf": spec.min_data_in_leaf,
        "feature_fraction": spec.feature_fraction, "bagging_fraction": spec.bagging_fraction,
        "bagging_freq": 1, "lambda_l2": spec.lambda_l2, "max_bin": spec.max_bin,
        "bin_construct_sample_cnt": spec.bin_sample_rows, "feature_pre_filter": False,
        "deterministic": True, "force_row_wise": True, "seed": spec.seed,
        "num_threads": spec.threads, "verbosity": -1,
    }  # fmt: skip


def peak_mib() -> float:
    """The most memory that this process had at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(way: str, which: str, n_rows: int) -> dict[str, float]:
    """Wall and CPU seconds and memory of one way."""
    imported = peak_mib()
    e = make_examples(n_rows)
    n_sessions = len(np.unique(e.ts))
    how = recipe(PARAMETERS[which], n_sessions)
    folds = make_folds(np.unique(e.ts), how.folds, TASK.label_span)
    wall, cpu = time.perf_counter(), time.process_time()
    {"ours": ours, "bare": bare, "rebuild": rebuild}[way](e, folds, how)
    return {
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mib": peak_mib(),
        "peak_ratio": (peak_mib() - imported) / (e.x.nbytes / 2**20),
    }


def main() -> None:
    """Run all ways in turn, or the one that is named."""
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
        return
    n_rows = 363_585 // (4 if "--quick" in sys.argv else 1)
    for which in PARAMETERS:
        runs: dict[str, list[dict[str, float]]] = {"bare": [], "ours": [], "rebuild": []}
        for _ in range(REPEATS):
            for way, found in runs.items():
                command = [sys.executable, __file__, "--measure", way, which, str(n_rows)]
                found.append(json.loads(subprocess.check_output(command)))
        middle = {
            way: {k: round(statistics.median(r[k] for r in found), 3) for k in found[0]}
            for way, found in runs.items()
        }
        cpu = {way: m["cpu_seconds"] for way, m in middle.items()}
        line = {
            "bench": "learning", "parameters": which, "rows": n_rows, "runs": REPEATS,
            "ratio_bare": round(cpu["ours"] / cpu["bare"], 3),
            "ratio_rebuild": round(cpu["ours"] / cpu["rebuild"], 3),
            "peak_ratio": middle["ours"]["peak_ratio"],
        }  # fmt: skip
        print(json.dumps(line | middle), flush=True)


if __name__ == "__main__":
    main()
