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
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import IO, Any

import pandas as pd

from quant_pipeline.chain.backup import back_up
from quant_pipeline.chain.champions import promote
from quant_pipeline.chain.learn import train_tasks
from quant_pipeline.chain.prices import publish_prices
from quant_pipeline.chain.reconcile import reconcile
from quant_pipeline.faces.cli import init as run_init
from quant_pipeline.settings import digest
from quant_pipeline.stores.compaction import compact
from quant_pipeline.stores.meta import Batch, Model, utc_now
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


def train(made: SmallHome, _: int) -> str:
    """The model of one as-of."""
    ws = made.workspace
    model = train_tasks(ws, KEY, ws.tasks(["up_5d"]))["up_5d"]
    assert isinstance(model, Model)
    return model.model_id


def write_part(made: SmallHome, number: int) -> str:
    """A partition of its own of two assets."""
    key = f"2016-{number % 6 + 1:02}"
    made.run(["labels" if number < 6 else "features_daily"], key)
    return key


def add_batches(made: SmallHome, number: int) -> int:
    """Rows of the registry, as fast as they go, for QUANT_CROWD_SECONDS."""
    meta, n = made.workspace.meta, 0
    end = time.monotonic() + float(os.environ.get("QUANT_CROWD_SECONDS", "3"))
    while time.monotonic() < end:
        batch = Batch(
            table_name="crowd", partition_key=f"{n}", task_id=f"{number}", n_rows=1, digest="",
            price_batch_id=0, spec_id="", status="pending", run_id="", written_at=utc_now(),
        )  # fmt: skip
        meta.commit_batches(meta.begin_batches([batch]))
        n += 1
    return n


def read_beside_a_writer(made: SmallHome, number: int) -> list[float]:
    """The first writes until the others have read what a page shows; seconds of each reading."""
    ws, done = made.workspace, made.root / "done"
    done.mkdir(exist_ok=True)
    if number == 0:
        with ws.series.writing("a long write") as con:
            con.execute("CREATE TABLE ballast AS FROM range(3000000)")
            (done / "writing").touch()
            while len(list(done.iterdir())) < 8:
                con.execute("SELECT count(*) FROM ballast").fetchall()
        return []
    while not (done / "writing").exists():
        time.sleep(0.01)  # between two looks at another process
    seconds = []
    for _ in range(20):
        began = time.monotonic()
        for table in sorted(p.name for p in ws.published.folder.iterdir()):
            ws.published.read(table)
        ws.meta.trained()
        ws.meta.champions()
        seconds.append(time.monotonic() - began)
    (done / f"{number}").touch()
    return seconds


CROWDS: dict[str, Callable[[SmallHome, int], Any]] = {
    "train": train, "write_part": write_part, "add_batches": add_batches,
    "read_beside_a_writer": read_beside_a_writer,
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One action, disturbed at its at-th write; by `crowd` processes at once, in some time zone."""

    action: str
    root: str
    at: int = 0
    how: str = "before"
    crowd: int = 1
    zone: str = "UTC"
    shift: int = 0


def do(request: Request, library: ctypes.CDLL) -> list[dict[str, Any]]:
    """Of each fork its exit code, negative for a signal, its answer or error, its writes."""
    with ExitStack() as stack:
        files = [
            [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)]
            for _ in range(request.crowd)
        ]
        children = [
            _fork(request, i, library, said, listed.fileno())
            for i, (said, listed) in enumerate(files)
        ]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        for file in (file for pair in files for file in pair):
            file.seek(0)
        return [
            {"code": code, "said": said.read(), "calls": listed.read().splitlines()}
            for code, (said, listed) in zip(codes, files, strict=True)
        ]


def _fork(request: Request, number: int, library: ctypes.CDLL, said: IO[str], listed: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(300)  # or else what hangs would hang the tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.environ["TZ"] = request.zone
        time.tzset()
        library.crash_shift(request.shift)
        folder = str(Path(request.root).parent).encode()
        library.crash_arm(folder, request.at, request.how.encode(), listed)
        made = SmallHome(Path(request.root))
        if request.action in CROWDS:
            found = CROWDS[request.action](made, number)
        else:
            found = ACTIONS[request.action](made)
        said.write(json.dumps(found, default=str))
        said.flush()
        code = 0
    except BaseException:
        said.write(traceback.format_exc())
        said.flush()
    finally:
        os._exit(code)


def main() -> None:
    """Answer one request a line."""
    library = ctypes.CDLL(sys.argv[1] if len(sys.argv) > 1 else None)
    library.crash_arm.argtypes = [
        ctypes.c_char_p, ctypes.c_long, ctypes.c_char_p, ctypes.c_int,
    ]  # fmt: skip
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        print(json.dumps(do(Request(**json.loads(line)), library)), flush=True)


if __name__ == "__main__":
    main()
