"""Which settings of [train] find signal: walk-forward RankIC of candidates, as JSON lines.

    python bench/defaults.py choose [NAME ...]    us_wiki100_1990_2018, scored 1994 to 2011
    python bench/defaults.py judge NAME ...       the same from 2012 on; PSE and NIFTY

For each panel of ../shared/data the project builds training_frame in a scratch home, with the
settings as shipped but for the grid. The sessions of each calendar year are scored by models as of
the end of the year before, with folds, early stopping and labels as shipped; none is judged whose
outcome was known after the period. Candidates have the same rows, labels, folds and features, so
they are compared session by session. Standard errors are Newey-West over twice the horizon.
What was found: docs/defaults.md.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from quant_pipeline.chain.frame import read_rows
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.instance import template
from quant_pipeline.errors import DegenerateData
from quant_pipeline.ml.examples import Examples
from quant_pipeline.ml.metrics import information_coefficient, newey_west_se, top_minus_bottom
from quant_pipeline.ml.score import score_rows
from quant_pipeline.ml.splits import make_folds
from quant_pipeline.ml.train import Recipe, train_models
from quant_pipeline.settings import DEFAULT_TASKS, FoldSettings, Home, MetricSettings, TrainSettings

DATA = Path(__file__).parents[2] / "shared" / "data"
SCRATCH = Path(os.environ.get("BENCH_SCRATCH", Path(tempfile.gettempdir()) / "quant_defaults"))
PANELS = {
    "wiki": ("us_wiki100_1990_2018", "1990-01-01", "America/New_York"),
    "pse": ("ph_pse_2010_2021", "2010-01-01", "Asia/Manila"),
    "nifty": ("in_nifty50_2000_2021", "2000-01-01", "Asia/Kolkata"),
}
LAST = "2021-12-31"
# Panel, first and last calendar year scored.
PERIODS = {
    "choose": [("wiki", 1994, 2011)],
    "judge": [("wiki", 2012, 2018), ("pse", 2013, 2021), ("nifty", 2003, 2021)],
}
# Qlib's LightGBM on Alpha158 for CSI300: https://github.com/microsoft/qlib, examples/benchmarks/
# LightGBM/workflow_config_lightgbm_Alpha158.yaml. There, subsample does nothing without
# subsample_freq; `qlib_bagged` has it work.
QLIB = {
    "learning_rate": 0.2, "num_leaves": 210, "max_depth": 8, "lambda_l1": 205.6999,
    "lambda_l2": 580.9768, "feature_fraction": 0.8879, "bagging_fraction": 1.0, "max_bin": 255,
    "min_data_in_leaf": 20, "max_rounds": 1000, "early_stopping_rounds": 50,
    "bin_sample_rows": 200_000,
}  # fmt: skip
CANDIDATES: dict[str, dict[str, Any]] = {
    "qlib": QLIB,
    "qlib_bagged": QLIB | {"bagging_fraction": 0.8789},
    "before": {
        "window_sessions": 750, "seeds": 1, "max_rounds": 300, "early_stopping_rounds": 30,
        "learning_rate": 0.05, "num_leaves": 31, "min_data_in_leaf": 200, "feature_fraction": 0.5,
        "bagging_fraction": 0.7, "lambda_l1": 0.0, "lambda_l2": 10.0,
    },
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "lr_0.1": {"learning_rate": 0.1},
    "lr_0.02": {"learning_rate": 0.02},
    "leaves_7": {"num_leaves": 7},
    "leaves_15": {"num_leaves": 15},
    "leaves_63": {"num_leaves": 63},
    "leaf_50": {"min_data_in_leaf": 50},
    "leaf_1000": {"min_data_in_leaf": 1000},
    "leaf_2500": {"min_data_in_leaf": 2500},
    "features_0.1": {"feature_fraction": 0.1},
    "features_0.2": {"feature_fraction": 0.2},
    "features_0.9": {"feature_fraction": 0.9},
    "bagging_0.3": {"bagging_fraction": 0.3},
    "bagging_1": {"bagging_fraction": 1.0},
    "l2_0": {"lambda_l2": 0.0},
    "l2_100": {"lambda_l2": 100.0},
    "l2_1000": {"lambda_l2": 1000.0},
    "l1_50": {"lambda_l1": 50.0},
    "seeds_5": {"seeds": 5},
    "stop_100": {"early_stopping_rounds": 100},
    "window_500": {"window_sessions": 500},
    "window_1500": {"window_sessions": 1500},
    "window_all": {"window_sessions": 10_000},
}
CANDIDATES |= {name: CANDIDATES["before"] | change for name, change in CHANGES.items()}
# Second round: all that helped works by averaging more, so together, on longer windows.
STEADY = {"feature_fraction": 0.2, "min_data_in_leaf": 1000, "lambda_l2": 100.0}
LONGER: dict[str, dict[str, Any]] = {
    "w2500": {},
    "w2500_steady": STEADY,
    "w2500_steady_lr_0.02": STEADY | {"learning_rate": 0.02},
    "w2500_steady_leaves_15": STEADY | {"num_leaves": 15},
    "w2500_steady_stop_120": STEADY | {"stop_sessions": 120},
    "w2500_steady_leaves_7": STEADY | {"num_leaves": 7},
    "w2500_steady_leaves_15_stop_120": STEADY | {"num_leaves": 15, "stop_sessions": 120},
}
CANDIDATES |= {
    name: CANDIDATES["before"] | {"window_sessions": 2500} | change
    for name, change in LONGER.items()
}
CANDIDATES["shipped"] = CANDIDATES["w2500_steady_leaves_15"]
CANDIDATES["w2500_qlib"] = QLIB | {"window_sessions": 2500}
CANDIDATES["wall_qlib"] = QLIB | {"window_sessions": 10_000}
CANDIDATES["wall_steady"] = CANDIDATES["window_all"] | STEADY


def home_of(panel: str) -> Path:
    """A scratch home that has training_frame of a panel; built once."""
    name, start, zone = PANELS[panel]
    home = SCRATCH / panel
    if (home / "done").exists():
        return home
    home.mkdir(parents=True)
    text = template("quant.toml").replace("start = 2010-01-01", f"start = {start}")
    (home / "quant.toml").write_text(text.replace("Asia/Manila", zone))
    quant = [sys.executable, "-m", "quant_pipeline.faces.cli"]
    environment = {**os.environ, "QUANT_HOME": str(home)}
    subprocess.run([*quant, "ingest", str(DATA / f"{name}.parquet")], check=True, env=environment)
    chosen = ["--select", "features_daily,labels,training_frame"]
    dates = ["--from", start, "--to", LAST]
    subprocess.run([*quant, "backfill", *dates, *chosen], check=True, env=environment)
    (home / "done").touch()
    return home


@cache
def read_panel(panel: str) -> tuple[Examples, dict[str, np.ndarray]]:
    """All labelled rows of a panel, and each task's labels."""
    ws = Workspace.open(Home(home_of(panel)))
    ids = [task.task_id for task in DEFAULT_TASKS]
    names = [f.name for f in ws.features]
    with ws.series.reading("measuring") as con:
        return read_rows(con, ids, ws.grid.start, date.fromisoformat(LAST), names)


def scored_years(
    panel: str, first: int, last: int, recipe: Recipe
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray, float]]:
    """Task, sessions, scores, returns and rounds of each year, from the year-end before."""
    e, labels = read_panel(panel)
    sessions = np.unique(e.ts)
    train = recipe.train
    for year in range(first, last + 1):
        start, end = np.datetime64(f"{year}-01-01"), np.datetime64(f"{year + 1}-01-01")
        n_known = int(np.searchsorted(e.known_at, start))
        known = sessions[sessions <= e.ts[n_known - 1]][-train.window_sessions :]
        begin = int(np.searchsorted(e.ts, known[0]))
        mine = cut(e, begin, n_known)
        folds = make_folds(known, recipe.folds, DEFAULT_TASKS[0].label_span)
        own = {task_id: label[begin:n_known] for task_id, label in labels.items()}
        models = train_models(mine, own, folds, DEFAULT_TASKS, recipe)
        until = end if year == last else np.datetime64("2100-01-01")
        rows = np.flatnonzero((e.ts >= start) & (e.ts < end) & (e.known_at < until))
        for task_id, model in models.items():
            score, rounds = np.full(len(rows), np.nan), 0.0
            if not isinstance(model, DegenerateData):
                names = e.feature_names
                score = score_rows(model.boosters, e.x[rows], names, names, train.threads)
                rounds = model.rounds
            yield task_id, e.ts[rows], score, e.fwd_return[rows], rounds


def cut(e: Examples, begin: int, end: int) -> Examples:
    """Consecutive rows."""
    part = e.from_row(begin)
    n = end - begin
    columns = {c: getattr(part, c)[:n] for c in ("symbol", "ts", "entry_ts", "known_at")}
    return Examples(
        **columns, x=part.x[:n], fwd_return=part.fwd_return[:n], feature_names=e.feature_names
    )


def measure(panel: str, first: int, last: int, name: str) -> dict[str, Any]:
    """RankIC and top minus bottom of each session of a period, by task."""
    settings = CANDIDATES[name]
    folds = FoldSettings(**{k: v for k, v in settings.items() if k in FoldSettings.model_fields})
    train = {k: v for k, v in settings.items() if k in TrainSettings.model_fields}
    recipe = Recipe(TrainSettings(**train, threads=1), folds, MetricSettings())
    parts: dict[str, list[Any]] = {}
    for task_id, *columns in scored_years(panel, first, last, recipe):
        parts.setdefault(task_id, []).append(columns)
    found: dict[str, Any] = {}
    for task_id, years in parts.items():
        ts, score, outcome = (np.concatenate([y[i] for y in years]) for i in range(3))
        sessions, rank_ic = information_coefficient(ts, score, outcome, rank=True)
        _, spread = top_minus_bottom(ts, score, outcome)
        # A year without a model is a year without skill.
        found[task_id] = {
            "ts": sessions,
            "rank_ic": np.nan_to_num(rank_ic),
            "spread": np.nan_to_num(spread),
            "rounds": [int(y[3]) for y in years],
        }
    return found


def compare(
    results: dict[str, dict[str, Any]], panel: str, period: str
) -> Iterator[dict[str, Any]]:
    """One row a candidate and task: its mean, and the difference to Qlib's parameters."""
    lag = 2 * DEFAULT_TASKS[0].horizon
    for name, by_task in results.items():
        row: dict[str, Any] = {"panel": panel, "period": period, "name": name}
        for task_id, found in by_task.items():
            ic = found["rank_ic"]
            row[task_id] = estimate(ic, lag) | {
                "spread": round(float(found["spread"].mean()), 6),
                "rounds": found["rounds"],
            }
            for other in ("qlib", "before", "w2500_qlib"):
                if other in results and other != name:
                    difference = ic - results[other][task_id]["rank_ic"]
                    row[task_id][f"minus_{other}"] = estimate(difference, lag)
        both = np.mean([found["rank_ic"] for found in by_task.values()], axis=0)
        row["both"] = estimate(both, lag)
        for other in ("qlib", "before", "w2500_qlib"):
            if other in results and other != name:
                others = [found["rank_ic"] for found in results[other].values()]
                row["both"][f"minus_{other}"] = estimate(both - np.mean(others, axis=0), lag)
        yield row


def estimate(series: np.ndarray, lag: int) -> dict[str, float]:
    """A mean and its standard error."""
    return {"mean": round(float(series.mean()), 5), "se": round(newey_west_se(series, lag), 5)}


def main() -> None:
    """Measure the candidates that are named, two at a time."""
    what, *names = sys.argv[1:]
    names = list(dict.fromkeys(names or CANDIDATES))
    for panel, first, last in PERIODS[what]:
        home_of(panel)
        with ProcessPoolExecutor(2, get_context("spawn")) as pool:
            jobs = {n: pool.submit(measure, panel, first, last, n) for n in names}
            results = {}
            for name, job in jobs.items():
                results[name] = job.result()
                print(f"{panel} {name}", file=sys.stderr)
        for row in compare(results, panel, f"{first}-{last}"):
            print(json.dumps(row))


if __name__ == "__main__":
    main()
