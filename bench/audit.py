"""Which deliberate leaks the audit catches, and what an audit costs, as JSON lines.

    python bench/audit.py               27 leaks, a home built and audited with each, 4 minutes
    python bench/audit.py --cost HOME   one audit of a home beside its training and features

The last line of the first has `caught`, `total`, `seconds`, `clean` (the proofs that hold where
nothing leaks) and, of each leak, the proof that must catch it and all that do. The second has CPU
seconds: `ratio` is that of the audit over three trainings of its as-of and one pass of features.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quant_pipeline.chain.audit import audit, choose_asofs, models_as_of
from quant_pipeline.chain.frame import write_manifests
from quant_pipeline.chain.rebuild import compute_features, compute_labels, learn, present_of
from quant_pipeline.chain.scratch import scratch_home, settings_of
from quant_pipeline.chain.training_data import training_keys
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.settings import Home
from quant_pipeline_tests.homes import own_environment
from quant_pipeline_tests.mutants import MUTANTS, build, caught, prove

REPEATS = 3


def kill() -> None:
    began = time.perf_counter()
    by: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, own_environment(Path(folder)):
        root = Path(folder)
        clean = prove(build(root / "clean"))
        print(json.dumps({"clean": {p.name: p.outcome for p in clean}}), flush=True)
        for number, mutant in enumerate(MUTANTS):
            found = caught(root / f"{number}", mutant)
            by[mutant.name] = {"must": mutant.caught_by, "did": sorted(found)}
            print(json.dumps({"leak": mutant.name, **by[mutant.name], "first": found}), flush=True)
    n_caught = sum(row["must"] in row["did"] for row in by.values())
    line = {
        "caught": n_caught, "total": len(by), "seconds": round(time.perf_counter() - began, 1),
        "clean": sum(p.outcome == "holds" for p in clean), "failed_where_clean":
        sum(p.failed for p in clean), "by": by,
    }  # fmt: skip
    print(json.dumps(line))


def cost(root: Path) -> None:
    """An audit of the newest as-of beside what it is made of, each some times in turn."""
    ws = Workspace.open(Home(root.resolve()))
    tasks = ws.tasks()
    (asof,) = choose_asofs(ws, tasks, 1)
    seconds: dict[str, list[float]] = {"audit": [], "training": [], "features": [], "wall": []}
    for _ in range(REPEATS):
        began = time.perf_counter()
        seconds["audit"].append(_cpu(lambda: audit(ws, [asof], tasks)))
        seconds["wall"].append(time.perf_counter() - began)
        features, training = _parts(ws, asof)
        seconds["features"].append(features)
        seconds["training"].append(training)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    allowed = 3 * median["training"] + median["features"]
    print(
        json.dumps(
            {
                "asof": asof.isoformat(),
                "tasks": len(tasks),
                **{f"{name}_s": round(value, 2) for name, value in median.items()},
                "ratio": round(median["audit"] / allowed, 3),
            }
        )
    )


def _parts(ws: Workspace, asof: Any) -> tuple[float, float]:
    """CPU seconds of the features and labels, and of the training of an as-of."""
    models = models_as_of(ws, asof, ws.tasks())
    settings = settings_of(ws, models[0]).model_copy(update={"tasks": ws.settings.tasks})
    key = models[0].partition_key
    present = present_of(ws, settings, key, models[0].price_batch_id)
    with scratch_home(ws, settings, present) as (made, _):
        with made.series.reading() as con:
            keys = training_keys(made, con, key, made.settings.tasks[0])[0]
        first = made.grid.shift(keys[0], -1)
        features = _cpu(lambda: compute_features(made, made.grid.keys(first, key)))
        compute_labels(made, keys)
        write_manifests(made, keys)
        return features, _cpu(lambda: learn(made, key))


def _cpu(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    np.seterr(all="ignore")
    if "--cost" in sys.argv:
        cost(Path(sys.argv[sys.argv.index("--cost") + 1]))
    else:
        kill()
