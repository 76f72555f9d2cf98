"""A process that does things in forks of itself, each killed at one of its writes.

Started with crash.c preloaded. It imports everything once; a line of JSON on its input asks for one
action, a line on its output tells how the fork ended and how many writes it came to.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pandas as pd

from quant_pipeline.chain.backup import back_up
from quant_pipeline.chain.prices import publish_prices
from quant_pipeline.chain.reconcile import reconcile
from quant_pipeline.stores.compaction import compact
from quant_pipeline_tests.homes import SmallHome

KEY = "2016-07"


def ingest(made: SmallHome) -> None:
    made.ingest(pd.read_parquet(made.root / "next.parquet"))
    publish_prices(made.workspace)


def asset(name: str) -> Callable[[SmallHome], None]:
    return lambda made: made.run([name], KEY)


ACTIONS: dict[str, Callable[[SmallHome], None]] = {
    "ingest": ingest,
    **{name: asset(name) for name in (
        "features_daily", "labels", "training_frame", "walkforward_folds", "lgbm_model",
        "predictions", "prediction_outcomes")},
    "backfill": lambda made: [None, made.backfill(date(2016, 7, 1))][0],
    "reconcile": lambda made: [None, reconcile(made.workspace, print, dry_run=False)][0],
    "compaction": lambda made: [None, compact(made.workspace.series)][0],
    "backup": lambda made: [None, back_up(made.workspace, made.root.parent / "b", print)][0],
}  # fmt: skip


def do(action: str, root: str, at: int, how: str, library: ctypes.CDLL) -> dict[str, int]:
    """One action in a fork; gives its exit code, negative for a signal, and its writes."""
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            library.crash_arm(str(Path(root).parent).encode(), at, how.encode())
            ACTIONS[action](SmallHome(Path(root)))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os.write(tell, str(library.crash_calls()).encode())
            os._exit(code)
    os.close(tell)
    with os.fdopen(told) as pipe:
        calls = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"code": code, "calls": int(calls or 0)}


def main() -> None:
    """Answer one request a line."""
    library = ctypes.CDLL(sys.argv[1])
    library.crash_calls.restype = ctypes.c_long
    library.crash_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_char_p]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        print(json.dumps(do(**json.loads(line), library=library)), flush=True)


if __name__ == "__main__":
    main()
