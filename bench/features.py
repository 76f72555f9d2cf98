"""How long the 158 features take, and how much memory, as JSON lines.

Panels are made up and dense (every symbol has a bar on every session), compiled code is warm.
Each stage is a process of its own, run several times; figures are medians, peak_mib is the
whole process.

- `compute`: a pandas frame of bars in, a frame of 158 features out (`compute_features`).
- `newest`: the newest session alone, from 62 sessions in memory (`compute_matrix`).
- `asset`: features_daily of the whole panel in one run: prices read, features stored, every
  partition's event written.
- `baseline`: the same rolling mean, standard deviation and quantile as 15 of the features, by
  pandas: a yardstick that does not change with this project.

    python bench/features.py               the stages above, about two minutes
    python bench/features.py --large       5,000 symbols x 5,000 sessions from Parquet, 20 to 30
                                           minutes, 40 GB of disk (a folder as last argument)
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

REPEATS = 3
INPUTS = ("open", "high", "low", "close", "volume", "vwap")


def make_bars(n_symbols: int, n_sessions: int, first: int = 0, start: str = "2015-01-01") -> Any:
    """Dense adjusted bars from session number `first` on, sorted by symbol, ts."""
    days = pd.bdate_range(start, periods=first + n_sessions)[first:].to_numpy("datetime64[s]")
    rng = np.random.default_rng([n_symbols, first])
    shape = (n_symbols, n_sessions)
    level = 20.0 * (1 + np.arange(n_symbols) % 50)[:, None]
    close = level * np.exp(0.02 * rng.standard_normal(shape).cumsum(1))
    opened = close * np.exp(0.005 * rng.standard_normal(shape))
    high = np.maximum(opened, close) * (1 + 0.005 * rng.random(shape))
    low = np.minimum(opened, close) * (1 - 0.005 * rng.random(shape))
    volume = np.round(1e5 * np.exp(0.5 * rng.standard_normal(shape)))
    names = np.array([f"S{i:04d}" for i in range(n_symbols)])
    frame = pd.DataFrame({"ts": np.tile(days, n_symbols)})
    frame.insert(0, "symbol", pd.Categorical.from_codes(
        np.repeat(np.arange(n_symbols), n_sessions), names))  # fmt: skip
    for name, values in zip(INPUTS[:5], (opened, high, low, close, volume), strict=True):
        frame[name] = values.ravel()
    return frame


def make_inputs(n_symbols: int, n_sessions: int) -> pd.DataFrame:
    """The same with vwap, in float32 as Qlib has it."""
    bars = make_bars(n_symbols, n_sessions)
    bars["vwap"] = (bars["high"] + bars["low"] + bars["close"]) / 3
    return bars.astype(dict.fromkeys(INPUTS, np.float32))


def measure(work: Callable[[], Any]) -> dict[str, float]:
    """Wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def compute(n_symbols: int, n_sessions: int) -> dict[str, Any]:
    """All features of a panel in memory."""
    from quant_pipeline.market.features import compute_features

    bars = make_inputs(n_symbols, n_sessions)
    compute_features(bars.iloc[:10])  # loads the compiled code
    return measure(lambda: compute_features(bars)) | {"rows": len(bars)}


def newest(n_symbols: int, n_sessions: int) -> dict[str, Any]:
    """Features of the last session of a panel."""
    from quant_pipeline.market.features import ALPHA158, compute_matrix

    bars = make_inputs(n_symbols, n_sessions)
    symbol = np.repeat(np.arange(n_symbols), n_sessions)
    session = np.tile(np.arange(n_sessions), n_symbols)
    columns = {name: bars[name].to_numpy() for name in INPUTS}
    features = list(ALPHA158.values())
    is_last = session == n_sessions - 1

    def one() -> None:
        compute_matrix(symbol, session, columns, features, is_wanted=is_last)

    one()
    runs = [measure(one) for _ in range(20)]
    middle = {n: statistics.median(r[n] for r in runs) for n in runs[0]}
    return middle | {"rows": n_symbols}


def baseline(n_symbols: int, n_sessions: int) -> dict[str, Any]:
    """Mean, standard deviation and quantile of five windows, by pandas."""
    bars = make_inputs(n_symbols, n_sessions)[["symbol", "close"]]
    groups = bars.groupby("symbol", observed=True)["close"]

    def work() -> None:
        for window in (5, 10, 20, 30, 60):
            rolling = groups.rolling(window, min_periods=1)
            rolling.mean(), rolling.std(), rolling.quantile(0.8)

    return measure(work) | {"rows": len(bars)}


def asset(n_symbols: int, n_sessions: int) -> dict[str, Any]:
    """Ingest a panel, then materialize features_daily over all of it."""
    from quant_pipeline.chain.stale import read_stored
    from quant_pipeline.defs.jobs import Runner

    with tempfile.TemporaryDirectory() as folder:
        home, path = make_home(Path(folder)), Path(folder) / "bars.parquet"
        make_bars(n_symbols, n_sessions).to_parquet(path, index=False)
        quant(home, "ingest", str(path))
        ws = open_home(home)
        keys = read_stored(ws).keys
        with Runner.open(ws) as runner:
            found = measure(lambda: runner.materialize(["features_daily"], keys[0], keys[-1]))
        rows = ws.series.query("SELECT count(*) AS n FROM features_daily")["n"][0].as_py()
        size = (home / "data" / "quant.duckdb").stat().st_size
        return found | {"rows": rows, "partitions": len(keys), "database_mib": size / 2**20}


def large(root: Path) -> None:
    """25M bars: ingest twenty Parquet files of 250 sessions, then features, labels and frame."""
    home = make_home(root)
    for i in range(20):
        path = root / f"{i:02d}.parquet"
        make_bars(5000, 250, 250 * i, "2000-01-03").to_parquet(path, index=False)
        tell("large ingest of 1.25M rows", [quant(home, "ingest", str(path))], delivery=i)
        path.unlink()
    for name in ("features_daily", "labels", "training_frame"):
        run = child(sys.executable, __file__, "--materialize", str(home), name)
        size = (home / "data" / "quant.duckdb").stat().st_size
        tell(f"large {name}", [run], bars=25_000_000, database_mib=round(size / 2**20))


def materialize(home: str, name: str) -> None:
    """One asset over everything that is stored, in one run."""
    from quant_pipeline.chain.stale import read_stored
    from quant_pipeline.defs.jobs import Runner

    ws = open_home(Path(home))
    keys = read_stored(ws).keys
    with Runner.open(ws) as runner:
        runner.materialize([name], keys[0], keys[-1])


def make_home(folder: Path) -> Path:
    """A home whose grid holds the panels."""
    from quant_pipeline.defs.instance import template

    folder.mkdir(parents=True, exist_ok=True)
    text = template("quant.toml").replace("start = 2010-01-01", f"start = {date(2000, 1, 1)}")
    (folder / "quant.toml").write_text(text.replace("Asia/Manila", "America/New_York"))
    return folder


def open_home(home: Path) -> Any:
    """Its workspace."""
    from quant_pipeline.chain.workspace import Workspace
    from quant_pipeline.settings import Home

    return Workspace.open(Home(home))


def quant(home: Path, *arguments: str) -> dict[str, float]:
    """One command in a process of its own."""
    os.environ["QUANT_HOME"] = str(home)
    return child(sys.executable, "-m", "quant_pipeline.faces.cli", *arguments)


def child(*command: str) -> dict[str, float]:
    """Wall and CPU seconds and peak memory of a process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(errors.decode())
    return {
        "wall_seconds": time.perf_counter() - began,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def tell(stage: str, runs: list[dict[str, Any]], **facts: Any) -> dict[str, Any]:
    """One JSON line: medians of some runs."""
    line: dict[str, Any] = {"bench": "features", "stage": stage, "runs": len(runs)}
    line |= {n: round(statistics.median(r[n] for r in runs), 4) for n in runs[0]}
    print(json.dumps(line | facts), flush=True)
    return line


STAGES = {"compute": compute, "newest": newest, "baseline": baseline, "asset": asset}


def repeat(stage: str, n_symbols: int, n_sessions: int) -> dict[str, Any]:
    """Runs of a stage, each in a process of its own, as one line."""
    command = [sys.executable, __file__, "--stage", stage, str(n_symbols), str(n_sessions)]
    runs = [json.loads(subprocess.check_output(command)) for _ in range(REPEATS)]
    return tell(f"{stage}, {n_symbols} x {n_sessions}", runs)


def main() -> None:
    """Run the stages, or the one that is named."""
    if sys.argv[1:2] == ["--stage"]:
        print(json.dumps(STAGES[sys.argv[2]](*map(int, sys.argv[3:]))))
        return
    if sys.argv[1:2] == ["--materialize"]:
        materialize(*sys.argv[2:])
        return
    if sys.argv[1:2] == ["--large"]:
        with tempfile.TemporaryDirectory() as folder:
            large(Path(sys.argv[2] if len(sys.argv) > 2 else folder) / "large")
        return
    pandas = repeat("baseline", 500, 1260)
    for n_symbols in (500, 3000):
        found = repeat("compute", n_symbols, 1260)
        ratio = found["cpu_seconds"] / found["rows"] / pandas["cpu_seconds"] * pandas["rows"]
        line = {"bench": "features", "stage": found["stage"], "cpu_to_baseline": round(ratio, 2)}
        print(json.dumps(line), flush=True)
    repeat("newest", 500, 62)
    repeat("asset", 500, 1260)


if __name__ == "__main__":
    main()
