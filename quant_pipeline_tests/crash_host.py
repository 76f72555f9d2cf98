"""A process that does things in forks of itself, each killed at one of its writes.

Started with crash.c preloaded. It imports everything once; a line of JSON on its input asks for one
action, a line on its output tells how the fork ended and how many writes it came to.
"""

import ctypes
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import IO, Any

import pandas as pd

from quant_pipeline.chain.backup import back_up
from quant_pipeline.chain.champions import promote
from quant_pipeline.chain.prices import publish_prices
from quant_pipeline.chain.reconcile import reconcile
from quant_pipeline.faces.cli import init as run_init
from quant_pipeline.settings import digest
from quant_pipeline.stores.compaction import compact
from quant_pipeline.stores.series import digest_rows
from quant_pipeline_tests.crashing import essence
from quant_pipeline_tests.homes import SmallHome

KEY = "2016-07"


def ingest(made: SmallHome) -> None:
    made.ingest(pd.read_parquet(made.root / "next.parquet"))
    publish_prices(made.workspace)


def asset(name: str) -> Callable[[SmallHome], None]:
    return lambda made: made.run([name], KEY)


def order(made: SmallHome) -> None:
    """Make the newest model the champion by hand."""
    ws = made.workspace
    promote(ws, ws.meta.models("up_5d")[-1].model_id, "a test")


def init(made: SmallHome) -> None:
    run_init(made.root)


def recorded(made: SmallHome) -> None:
    """A partition of an asset with Dagster's own storage on the same disk."""
    with made.runner(recorded=True) as runner:
        runner.materialize(["features_daily"], KEY, KEY)


def probe(made: SmallHome) -> dict[str, Any]:
    """Everything that is stored, read, and whether it agrees; nothing is repaired."""
    problems = reconcile(made.workspace, lambda *_: None, dry_run=True)
    return {"stored": digest(essence(made)), "problems": sorted(p.invariant for p in problems)}


def read_published(made: SmallHome) -> dict[str, str]:
    """What readers read, digested by table."""
    published = made.workspace.published
    tables = sorted(p.name for p in published.folder.iterdir())
    return {table: digest_rows(published.read(table)) for table in tables}


ACTIONS: dict[str, Callable[[SmallHome], Any]] = {
    "probe": probe,
    "read_published": read_published,
    "init": init,
    "ingest": ingest,
    **{name: asset(name) for name in (
        "features_daily", "labels", "training_frame", "walkforward_folds", "lgbm_model",
        "predictions", "prediction_outcomes")},
    "order": order,
    "recorded": recorded,
    "backfill": lambda made: [None, made.backfill(date(2016, 7, 1))][0],
    "reconcile": lambda made: [None, reconcile(made.workspace, print, dry_run=False)][0],
    "compaction": lambda made: [None, compact(made.workspace.series)][0],
    "backup": lambda made: [None, back_up(made.workspace, made.root.parent / "b", print)][0],
}  # fmt: skip


def do(action: str, root: str, at: int, how: str, library: ctypes.CDLL) -> dict[str, Any]:
    """One action in a fork: exit code, negative for a signal, its answer or error, its writes."""
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as listed:
        code = _in_a_fork(action, root, at, how, library, said, listed.fileno())
        said.seek(0)
        listed.seek(0)
        return {"code": code, "said": said.read(), "calls": listed.read().splitlines()}


def _in_a_fork(
    action: str, root: str, at: int, how: str, library: ctypes.CDLL, said: IO[str], listed: int
) -> int:
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.alarm(300)  # or else what hangs would hang the tests
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            library.crash_arm(str(Path(root).parent).encode(), at, how.encode(), listed)
            found = ACTIONS[action](SmallHome(Path(root)))
            said.write(json.dumps(found, default=str))
            said.flush()
            code = 0
        except BaseException:
            said.write(traceback.format_exc())
            said.flush()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Answer one request a line."""
    library = ctypes.CDLL(sys.argv[1] if len(sys.argv) > 1 else None)
    library.crash_arm.argtypes = [
        ctypes.c_char_p, ctypes.c_long, ctypes.c_char_p, ctypes.c_int,
    ]  # fmt: skip
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        print(json.dumps(do(**json.loads(line), library=library)), flush=True)


if __name__ == "__main__":
    main()
