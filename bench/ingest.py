"""How long ingest takes: 1.8M rows at once, and one more session, as JSON lines.

Each stage is a `quant ingest` of its own process in a home made for it, so its time holds the
start of Python; `start` is that start alone (the same imports and nothing else), to be taken off.
`floor` is DuckDB reading the same Parquet file into a table of its own: no check, no version.

    python bench/ingest.py [PARQUET]      default: ../shared/data/us_large_yahoo_2002_2022.parquet
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd

from quant_pipeline.defs.instance import template
from quant_pipeline.market.synthetic import make_market

ROOT = Path(__file__).resolve().parents[1]
US = ROOT.parent / "shared" / "data" / "us_large_yahoo_2002_2022.parquet"
QUANT = [sys.executable, "-m", "quant_pipeline.faces.cli"]
START = "import quant_pipeline.faces.ingesting, quant_pipeline.faces.cli"
REPEATS = 5


def run(home: Path, *command: str) -> dict[str, Any]:
    """Wall and CPU seconds and peak memory of one command."""
    environment = {**os.environ, "QUANT_HOME": str(home)}
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed; run it by hand with QUANT_HOME={home}")
    return {
        "wall_seconds": time.perf_counter() - began,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
        "out": out,
    }


def tell(stage: str, runs: list[dict[str, Any]], **facts: Any) -> dict[str, Any]:
    """One JSON line: medians of some runs."""
    names = ("wall_seconds", "cpu_seconds", "peak_mib")
    line = {"bench": "ingest", "stage": stage, "runs": len(runs)}
    line |= {n: round(statistics.median(r[n] for r in runs), 3) for n in names if n in runs[0]}
    print(json.dumps(line | facts), flush=True)
    return line


def new_home(folder: Path, start: str, zone: str) -> Path:
    """A home with a grid that holds the data."""
    folder.mkdir(parents=True)
    text = template("quant.toml").replace("start = 2010-01-01", f"start = {start}")
    (folder / "quant.toml").write_text(text.replace("Asia/Manila", zone))
    return folder


def floor(path: Path, folder: Path) -> dict[str, Any]:
    """DuckDB alone: the file into a table."""
    began, cpu = time.perf_counter(), time.process_time()
    with duckdb.connect(str(folder / "floor.duckdb")) as con:
        con.execute(f"CREATE TABLE prices AS SELECT * FROM read_parquet('{path}')")
        con.execute("CHECKPOINT")
    return {"wall_seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}


def one_more(bars: pd.DataFrame, home: Path, start: dict[str, Any]) -> None:
    """Ingest all sessions but the last few, then these one at a time."""
    days = sorted(bars["ts"].unique())
    files = []
    for i, day in enumerate([None, *days[-REPEATS:]]):
        part = bars[bars["ts"] < days[-REPEATS]] if day is None else bars[bars["ts"] == day]
        files.append(home / f"{i}.parquet")
        part.to_parquet(files[-1], index=False)
    run(home, *QUANT, "ingest", str(files[0]))
    runs = [run(home, *QUANT, "ingest", str(file), "--json") for file in files[1:]]
    counts = [json.loads(r["out"])["n_new"] for r in runs]
    beyond = statistics.median(r["wall_seconds"] for r in runs) - start["wall_seconds"]
    tell("one_session", runs, symbols=counts[-1], sessions=len(days),
         beyond_start_seconds=round(beyond, 3))  # fmt: skip


def main(path: Path) -> None:
    """All stages."""
    if not path.exists():
        raise SystemExit(f"{path} is missing: nothing was measured.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = [run(folder, sys.executable, "-c", START) for _ in range(REPEATS)]
        start = tell("start", started)
        rows = len(pd.read_parquet(path, columns=["ts"]))
        base = tell("floor", [floor(path, folder)], rows=rows)
        home = new_home(folder / "bulk", "2002-01-01", "America/New_York")
        bulk = run(home, *QUANT, "ingest", str(path), "--json")
        report = json.loads(bulk["out"])
        assert report["n_new"] == rows == report["n_read"]
        of_floor = round(bulk["wall_seconds"] / base["wall_seconds"], 1)
        tell("bulk", [bulk], rows=rows, partitions=len(report["changed_keys"]),
             times_floor=of_floor)  # fmt: skip
        again = run(home, *QUANT, "ingest", str(path), "--json")
        tell("again", [again], rows=rows, unchanged=json.loads(again["out"])["n_unchanged"])
        bars = make_market(n_symbols=500, n_sessions=1260)
        first = (bars["ts"].min() - timedelta(days=1)).date().isoformat()
        one_more(bars, new_home(folder / "small", first, "America/New_York"), start)
        us = pd.read_parquet(path)
        one_more(us, new_home(folder / "large", "2002-01-01", "America/New_York"), start)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else US)
