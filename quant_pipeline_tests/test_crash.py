"""Killed, without room or a working disk at any write: what is stored stays, a re-run ends it.

A library preloaded into a process (crash.c, built with gcc) counts its writes, syncs, renames,
cuts and deletions below a folder, and kills the process at the n-th one, or lets it and all later
ones fail. Calls of one kind on one file in a row are one place. Every QUANT_CRASH_EVERY-th place is
tried here, and with 1 (`make test-crash`) each single call.
"""

import re
import shutil
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from quant_pipeline.chain.prices import publish_prices
from quant_pipeline.settings import digest
from quant_pipeline.stores.meta import Batch
from quant_pipeline_tests.crash_host import ACTIONS, KEY
from quant_pipeline_tests.crashing import EVERY, GCC, Host, essence, look
from quant_pipeline_tests.homes import DATA, LEARNING, SmallHome, new_home, own_environment

FEW = 1 + 60 // EVERY  # places at which the disk is full or fails, of each action
pytestmark = [
    pytest.mark.skipif(
        GCC is None,
        reason="NO CRASH TEST: there is no gcc. Debian or Ubuntu: apt-get install gcc",
    ),
]
FULL = "No space left on device|database or disk is full|disk I/O error"
FAILING = "Input/output error|disk I/O error|fsync failed"
SMALL = {"exclude = []": 'exclude = []\nset = "core"', "max_rounds = 30": "max_rounds = 3"}
ALWAYS = ("init", "ingest", "lgbm_model", "predictions")
DISTURBED = [
    pytest.param(name, marks=[] if name in ALWAYS else [pytest.mark.long])
    for name in ACTIONS if name not in ("probe", "read_published")
]  # fmt: skip
AFTER_A_MODEL = ("order", "compaction", "reconcile", "backup")


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Iterator[Host]:
    found = Host(tmp_path_factory.mktemp("crash"))
    yield found
    found.end()


@pytest.fixture(scope="module")
def bases(market: pd.DataFrame, tmp_path_factory) -> Iterator[dict[str, SmallHome]]:
    """A home before each action."""
    folder = tmp_path_factory.mktemp("bases")
    found: dict[str, SmallHome] = {}
    with own_environment(folder):
        made = new_home(folder / "home", SMALL)
        found["init"] = SmallHome(folder / "init")
        found["init"].root.mkdir()
        made.ingest(market[market["ts"] < "2016-06-20"])
        market[market["ts"] >= "2016-06-17"].to_parquet(made.root / "next.parquet", index=False)
        found["ingest"] = made.copy(folder / "ingest")
        made.ingest(market[market["ts"] >= "2016-06-17"])
        publish_prices(made.workspace)
        made.run(DATA, "2015-06", "2016-06")
        made.run(LEARNING, "2016-06")
        found["backfill"] = found["recorded"] = made.copy(folder / "backfill")
        for asset in (*DATA, *LEARNING, "predictions", "prediction_outcomes"):
            found[asset] = made.copy(folder / asset)
            made.run([asset], KEY)
        for action in AFTER_A_MODEL:
            found[action] = made.copy(folder / action)
        found["compaction"].change_series("CREATE TABLE ballast AS FROM range(500000)")
        found["compaction"].change_series("DROP TABLE ballast")
        shutil.rmtree(found["reconcile"].root / "data" / "published")
        yield found


def situation(made: SmallHome) -> str:
    """All that a re-run begins with: what is stored, and what is recorded of it."""
    batches = [
        (b["table_name"], b["partition_key"], b["task_id"], b["digest"], b["status"])
        for b in made.registry(Batch)
    ]  # fmt: skip
    return digest(essence(made), batches, look(made))


def places(calls: list[str]) -> list[int]:
    """Numbers of the calls to try, from 1."""
    if EVERY == 1:
        return list(range(1, len(calls) + 1))
    numbered = groupby(enumerate(calls, 1), key=lambda pair: pair[1])
    firsts = [next(run)[0] for _, run in numbered]
    step = EVERY * (1 + len(firsts) // 600)  # a backfill repeats what its assets do
    return firsts[len(firsts) % 7 :: step]


class Trial:
    """An action on copies of its base, and what it comes to undisturbed."""

    def __init__(self, host: Host, base: SmallHome, action: str, folder: Path) -> None:
        self.host, self.base, self.action, self.folder = host, base, action, folder
        undisturbed = base.copy(folder / "undisturbed" / "home")
        done = host.do(action, undisturbed)
        assert done["code"] == 0, done["said"]
        self.calls: list[str] = done["calls"]
        assert len(self.calls) >= 4, "or else nothing was written"
        assert look(undisturbed) == []
        self.expected = essence(undisturbed)
        self.seen: set[str] = set()

    def disturb(self, at: int, how: str) -> dict[str, Any]:
        """The action disturbed once: the stores agree; then again: it ends as if nothing was."""
        made = self.base.copy(self.folder / f"{at}{how}" / "home")
        where = f"{self.action}, {how} at call {at} of {len(self.calls)}: {self.calls[at - 1]}"
        found = self.host.do(self.action, made, at, how)
        assert look(made) == [], where
        left = situation(made)
        if left not in self.seen:
            shutil.rmtree(made.root.parent / "b", ignore_errors=True)  # a backup that was finished
            again = self.host.do(self.action, made)
            assert again["code"] == 0, f"{where}; again: {again['said']}"
            assert essence(made) == self.expected, where
            assert look(made) == [], where
            self.seen.add(left)
        shutil.rmtree(made.root.parent)
        return found


def last_line(done: dict[str, Any]) -> str:
    """An error in one line."""
    return str(done["said"].strip().rpartition("\n")[2])


@pytest.fixture(scope="module")
def trial(host, bases, request, tmp_path_factory) -> Iterator[Trial]:
    folder = tmp_path_factory.mktemp(request.param)
    with own_environment(folder):
        yield Trial(host, bases[request.param], request.param, folder)


@pytest.mark.parametrize("trial", DISTURBED, indirect=True)
def test_killed_at_any_write_it_can_be_done_again(trial):
    """Nothing differs between a kill after one call and one before the next."""
    for i, at in enumerate(places(trial.calls)):
        hows = ("after", "half") if EVERY == 1 else (("before", "after", "half")[i % 3],)
        for how in hows:
            if how == "half" and not trial.calls[at - 1].startswith("write"):
                continue
            done = trial.disturb(at, how)
            # DuckDB does not write in the same number of pieces each time.
            assert done["code"] == -9 or (done["code"] == 0 and len(done["calls"]) < at)


@pytest.mark.parametrize("trial", DISTURBED, indirect=True)
def test_on_a_full_disk_nothing_is_lost_and_with_room_it_goes_on(trial):
    found = [at for at in places(trial.calls) if trial.calls[at - 1].startswith("write")]
    for at in found if EVERY == 1 else found[:: max(1, len(found) // FEW)]:
        done = trial.disturb(at, "full")
        where = f"call {at}: {trial.calls[at - 1]}: {done['code']} {last_line(done)}"
        if done["code"] == 0:  # nothing more to write, or SQLite closes: its log stays
            kind, _, path = "".join(done["calls"][at - 1 : at]).partition(" ")
            assert kind != "write" or path.endswith((".sqlite", ".db")), where
        else:
            assert re.search(FULL, done["said"]), where


@pytest.mark.parametrize("trial", DISTURBED, indirect=True)
def test_a_sync_that_fails_is_an_error_and_is_not_tried_again(trial):
    """A second one would succeed, though the pages that it should have written are gone."""
    syncs = [i for i, call in enumerate(trial.calls, 1) if call.startswith("sync")]
    for at in syncs if EVERY == 1 else syncs[:: max(1, len(syncs) // FEW)]:
        done = trial.disturb(at, "fails")
        calls = done["calls"][at - 1 :]
        failed = next((i for i, call in enumerate(calls) if call.startswith("sync")), None)
        if failed is None:  # DuckDB does not write in the same number of pieces each time
            continue
        path, later = calls[failed].partition(" ")[2], calls[failed + 1 :]
        where = f"call {at}: sync of {path}: {done['code']} {last_line(done)}"
        if done["code"]:
            assert re.search(FAILING, done["said"]), where
        else:
            assert may_wait(path, calls[failed - 1] if failed else trial.calls[at - 2], later), (
                where
            )


def may_wait(path: str, before: str, later: list[str]) -> bool:
    """Whether a sync may fail without an error, as what it is for is in a synced log.

    A database that is closed takes its log in; if that fails, the log has to stay. Of the folder of
    a log SQLite never tells.
    """
    if before.startswith("sync") and before.endswith(("-wal", "-journal")):
        return True
    database = path.removesuffix("-wal")
    gone = later.index(f"unlink {database}-wal") if f"unlink {database}-wal" in later else 0
    is_database = database.endswith((".sqlite", ".db"))
    return is_database and (not gone or f"write {database}" in later[:gone])


def test_the_host_kills_where_it_is_told(host, bases, tmp_path):
    """Or else the tests above show nothing."""
    for at, how in ((1, "before"), (2, "after"), (3, "half")):
        made = bases["labels"].copy(tmp_path / f"{at}" / "home")
        done = host.do("labels", made, at, how)
        assert done["code"] == -9
        assert len(done["calls"]) == at
