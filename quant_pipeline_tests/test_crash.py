"""Killed at any of its writes, whatever it does: the stores agree again, and a re-run ends it.

A library preloaded into a process (crash.c, built with gcc) counts its writes, syncs, renames and
deletions below a folder and kills it at the n-th one. `make test-crash` tries every one of them.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from quant_pipeline.chain.prices import publish_prices
from quant_pipeline.chain.reconcile import not_repaired, reconcile
from quant_pipeline.stores.meta import Champion
from quant_pipeline.stores.series import columns_of, digest_rows, query
from quant_pipeline_tests.crash_host import ACTIONS, KEY
from quant_pipeline_tests.homes import DATA, LEARNING, TABLES, SmallHome, new_home, own_environment

GCC = shutil.which("gcc")
EVERY = int(os.environ.get("QUANT_CRASH_EVERY", "23"))
HOWS = ("before", "after", "half")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        GCC is None,
        reason="NO CRASH TEST: there is no gcc. Debian or Ubuntu: apt-get install gcc",
    ),
]
SMALL = {"exclude = []": 'exclude = []\nset = "core"', "max_rounds = 30": "max_rounds = 3"}


class Host:
    """The process whose forks are killed."""

    def __init__(self, folder: Path) -> None:
        library = folder / "crash.so"
        source = Path(__file__).with_name("crash.c")
        subprocess.run(
            [str(GCC), "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quant_pipeline_tests.crash_host", str(library)],
            env={**os.environ, "LD_PRELOAD": str(library)}, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=Path(__file__).resolve().parent.parent,
        )  # fmt: skip

    def do(self, action: str, made: SmallHome, at: int = 0, how: str = "before") -> dict[str, int]:
        """Do something, killed at its at-th write."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"action": action, "root": str(made.root), "at": at, "how": how}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer: dict[str, int] = json.loads(self.process.stdout.readline())
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


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
        made.ingest(market[market["ts"] < "2016-06-20"])
        market[market["ts"] >= "2016-06-17"].to_parquet(made.root / "next.parquet", index=False)
        found["ingest"] = made.copy(folder / "ingest")
        made.ingest(market[market["ts"] >= "2016-06-17"])
        publish_prices(made.workspace)
        made.run(DATA, "2015-06", "2016-06")
        made.run(LEARNING, "2016-06")
        for action in ACTIONS:
            if action == "backfill":
                found[action] = found["features_daily"]
            elif action == "compaction":
                found[action] = made.copy(folder / action)
                found[action].change_series("CREATE TABLE ballast AS FROM range(500000)")
                found[action].change_series("DROP TABLE ballast")
            elif action == "reconcile":
                found[action] = made.copy(folder / action)
                shutil.rmtree(found[action].root / "data" / "published")
            elif action == "backup":
                found[action] = made.copy(folder / action)
            elif action != "ingest":
                found[action] = made.copy(folder / action)
                made.run([action], KEY)
        yield found


def essence(made: SmallHome) -> dict[str, Any]:
    """All that is stored but for when it was."""
    found: dict[str, Any] = {}
    with made.workspace.series.reading("test") as con:
        for table in TABLES:
            if table != "predictions" and columns_of(con, table):
                found[table] = digest_rows(query(con, f"SELECT * FROM {table} ORDER BY ALL"))
    found["scores"] = made.scores()
    found["models"] = made.model_ids()
    found["champions"] = [
        (c["task_id"], c["partition_key"], c["model_id"]) for c in made.registry(Champion)
    ]
    return found


def look(made: SmallHome) -> list[str]:
    problems = reconcile(made.workspace, lambda *_: None, dry_run=False)
    return [f"{p.invariant}: {p.what}" for p in not_repaired(problems)]


@pytest.mark.parametrize("action", ACTIONS)
def test_killed_at_any_write_it_can_be_done_again(host, bases, action, tmp_path):
    base = bases[action]
    undisturbed = base.copy(tmp_path / "undisturbed" / "home")
    done = host.do(action, undisturbed)
    assert done["code"] == 0
    assert done["calls"] >= 4, "or else nothing was written"
    expected = essence(undisturbed)
    with own_environment(tmp_path):
        assert look(undisturbed) == []
        for i, at in enumerate(range(1, done["calls"] + 1, EVERY)):
            how = HOWS[i % len(HOWS)]
            folder = tmp_path / f"{at}"
            made = base.copy(folder / "home")
            killed = host.do(action, made, at, how)
            where = f"{action} killed {how} write {at} of {done['calls']}"
            assert killed["code"] == -9, where
            assert look(made) == [], where
            shutil.rmtree(folder / "b", ignore_errors=True)  # a backup that was finished
            assert host.do(action, made)["code"] == 0, where
            assert essence(made) == expected, where
            assert look(made) == [], where
            shutil.rmtree(folder)


def test_the_host_kills_where_it_is_told(host, bases, tmp_path):
    """Or else the test above shows nothing."""
    for at, how in ((1, "before"), (2, "after"), (3, "half")):
        made = bases["labels"].copy(tmp_path / f"{at}" / "home")
        assert host.do("labels", made, at, how) == {"code": -9, "calls": 0}
