"""What Dagster costs: 60 monthly as-ofs of everything but the model, as one JSON line.

`quant backfill` over the last five years of the 100 large US stocks of 1990 to 2018: features,
labels and frame in one run, folds one run an as-of; the ten years before are there already.
`computing` is what the assets say they took, storing included, `checks` what the steps of their
checks took; `beyond` is the rest of the command: its start, the planning, runs and events.

    python bench/backfill.py [PARQUET]    default: ../shared/data/us_wiki100_1990_2018.parquet
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from quant_pipeline.defs.instance import open_instance
from quant_pipeline.defs.meter import SECONDS
from quant_pipeline.settings import Home

ROOT = Path(__file__).resolve().parents[1]
US = ROOT.parent / "shared" / "data" / "us_wiki100_1990_2018.parquet"
QUANT = [sys.executable, "-m", "quant_pipeline.faces.cli"]
BEFORE, FIRST, LAST = "2003-01-01", "2013-04-01", "2018-03-27"
DATA = "features_daily,labels,training_frame"


def seconds(home: Path, *words: str) -> float:
    """Wall seconds of a command."""
    began = time.perf_counter()
    environment = {**os.environ, "QUANT_HOME": str(home)}
    subprocess.run([*QUANT, *words], env=environment, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Make a home, ingest, backfill, and add up what its steps say."""
    prices = sys.argv[1] if len(sys.argv) > 1 else str(US)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        seconds(home, "init")
        toml = home / "quant.toml"
        text = toml.read_text().replace("Asia/Manila", "America/New_York")
        toml.write_text(text.replace("start = 2010-01-01", "start = 1990-01-01"))
        ingest = seconds(home, "ingest", prices)
        seconds(home, "backfill", "--from", BEFORE, "--to", FIRST, "--select", DATA)
        began = time.time()
        chosen = f"{DATA},walkforward_folds"
        wall = seconds(home, "backfill", "--from", FIRST, "--to", LAST, "--select", chosen)
        spent = {"computing": 0.0, "checks": 0.0}
        with open_instance(Home(home)) as instance:
            after = datetime.fromtimestamp(began, UTC)
            runs = instance.get_runs(dg.RunsFilter(created_after=after))
            for run in runs:
                for step in instance.get_run_step_stats(run.run_id):
                    if step.step_key.startswith("check_") and step.start_time and step.end_time:
                        spent["checks"] += step.end_time - step.start_time
            ids = {run.run_id for run in runs}
            for asset in chosen.split(","):
                found = instance.fetch_materializations(dg.AssetKey(asset), limit=2000).records
                for record in found:
                    made = record.asset_materialization
                    if record.run_id in ids and made is not None:
                        spent["computing"] += float(made.metadata[SECONDS].value)
        line = {
            "bench": "backfill",
            "runs": len(runs),
            "ingest_seconds": ingest,
            "wall_seconds": wall,
            **spent,
            "beyond": wall - sum(spent.values()),
        }
        print(json.dumps({k: round(v, 1) if isinstance(v, float) else v for k, v in line.items()}))


if __name__ == "__main__":
    main()
