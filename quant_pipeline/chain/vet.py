"""A foreign model file tried out where it can do no harm: run as a module, its bytes on stdin.

LightGBM may end the process or never come back on a damaged text, and no sha256 vouches for a
foreign one. So a process of its own, with limits, parses and uses it before anything else does.
"""

import json
import subprocess
import sys
from typing import Any

from quant_pipeline.errors import ModelFileError

SECONDS = 60  # of its processor; twice as many on the clock
MEMORY = 4 << 30  # bytes of addresses
PROBES = 64  # rows that are scored, some values missing


def vet(raw: bytes, name: str) -> dict[str, Any]:
    """What a model file's bytes hold, once another process has parsed them and scored with them.

    Gives the names of its features and the number of its trees. Raises ModelFileError.
    """
    command = [sys.executable, "-I", "-m", __name__]
    try:
        done = subprocess.run(
            command, input=raw, capture_output=True, timeout=2 * SECONDS, env={}, check=False
        )
    except subprocess.TimeoutExpired:
        why = f"it took over {2 * SECONDS} s"
    else:
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(done.stdout)
            return found
        said = done.stderr.decode(errors="replace").strip().splitlines()
        ended = f"the process that tried was ended by signal {-done.returncode}"
        why = ended if done.returncode < 0 else (said[-1] if said else "it failed")[:300]
    raise ModelFileError(f"{name} was not imported: {why}.")


def _try_out() -> None:
    """Parse and use the bytes on stdin under limits; tell what they hold."""
    import resource

    import lightgbm as lgb
    import numpy as np

    from quant_pipeline.stores.model_files import from_bytes

    for what, limit in (
        (resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_NOFILE, 64),
    ):  # fmt: skip
        resource.setrlimit(what, (limit, limit))
    content = from_bytes(sys.stdin.buffer.read())
    boosters, names = content.get("boosters"), content.get("features")
    if not isinstance(boosters, list) or not boosters or not isinstance(names, list):
        raise ModelFileError("A model file lacks boosters or features.")
    x = np.random.default_rng(0).normal(size=(PROBES, len(names))).astype(np.float32)
    x[:, :: max(1, len(names) // 7)][::3] = np.nan
    n_trees = 0
    for text in boosters:
        booster = lgb.Booster(model_str=text)
        if booster.feature_name() != names:
            raise ModelFileError("The features of a booster are not those that its file names.")
        if not np.isfinite(booster.predict(x, num_threads=1)).all():
            raise ModelFileError("A booster gives scores that are no finite numbers.")
        n_trees += booster.num_trees()
    print(json.dumps({"features": names, "n_trees": n_trees}))


if __name__ == "__main__":
    try:
        _try_out()
    except Exception as error:
        sys.exit(f"{error}")
