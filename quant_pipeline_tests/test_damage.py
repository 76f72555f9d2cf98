"""Cut logs and flipped bits: what was stored, an error that tells what to do, or a report.

Never another answer without a word, and never the end of the interpreter. Everything is opened in
forks of a process of its own. QUANT_CRASH_EVERY=1 (`make test-crash`) cuts the log at every byte.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from quant_pipeline.chain.prices import publish_prices
from quant_pipeline_tests.crashing import EVERY, GCC, Host
from quant_pipeline_tests.homes import DATA, LEARNING, SmallHome, new_home, own_environment
from quant_pipeline_tests.test_crash import SMALL

pytestmark = pytest.mark.skipif(
    GCC is None, reason="NO DAMAGE TEST: there is no gcc. Debian or Ubuntu: apt-get install gcc"
)
N_FLIPS = 250 if EVERY == 1 else 4
ADVICE = ("Restore a backup", "`quant reconcile`", "`quant restore")


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Iterator[Host]:
    found = Host(tmp_path_factory.mktemp("damage"))
    yield found
    found.end()


def answer(host: Host, made: SmallHome, action: str = "probe") -> dict[str, Any]:
    """What is read: an answer, or an error of ours in one line."""
    done = host.do(action, made)
    assert done["code"] in (0, 1), f"the interpreter ended with {done['code']}"
    if done["code"] == 0:
        return dict(json.loads(done["said"]))
    error = done["said"].strip().split("\n")[-1]
    assert error.startswith("quant_pipeline.errors."), done["said"]
    assert any(advice in error for advice in ADVICE), error
    return {"error": error}


class Logged:
    """A home with a batch of prices in the log alone, though the registry has recorded it."""

    def __init__(self, host: Host, market: pd.DataFrame, folder: Path) -> None:
        few = market[market["symbol"].isin(["S000", "S001", "S002"])]
        dates = sorted(few["ts"].unique())[:40]
        before = new_home(folder / "before" / "home")
        before.ingest(few[few["ts"].isin(dates[:-1])])
        few[few["ts"].isin(dates)].to_parquet(before.root / "next.parquet", index=False)
        after = before.copy(folder / "after" / "home")
        calls = host.do("ingest", after)["calls"]
        killed = before.copy(folder / "killed" / "home")
        synced = calls.index("sync /home/data/quant.duckdb.wal") + 1
        assert host.do("ingest", killed, synced, "after")["code"] == -9
        shutil.copytree(after.root / "models", killed.root / "models", dirs_exist_ok=True)
        shutil.rmtree(killed.root / "data" / "published", ignore_errors=True)
        self.home, self.log = killed, killed.root / "data" / "quant.duckdb.wal"
        self.whole = self.log.read_bytes()
        self.stored = {
            name: answer(host, made)["stored"] for name, made in (("old", before), ("new", after))
        }

    def read(self, host: Host, log: bytes, folder: Path) -> str:
        """What comes of a log: the new state, the old one with a report, or an error."""
        made = self.home.copy(folder / "home")
        (made.root / "data" / "quant.duckdb.wal").write_bytes(log)
        found = answer(host, made)
        shutil.rmtree(folder)
        if "error" in found:
            return "error"
        lost = "I5" in found["problems"]
        if found["stored"] == self.stored["new"]:
            assert not lost
            return "new"
        assert found["stored"] == self.stored["old"], "neither the old state nor the new one"
        assert lost, "the loss of a recorded batch is told"
        return "old"


@pytest.fixture(scope="module")
def logged(host, market, tmp_path_factory) -> Iterator[Logged]:
    folder = tmp_path_factory.mktemp("logged")
    with own_environment(folder):
        yield Logged(host, market, folder)


def test_a_log_cut_at_any_byte_is_told_or_read_as_a_whole(host, logged, tmp_path):
    n = len(logged.whole)
    cuts = [*range(0, n, max(1, EVERY * n // 2000)), n - 1]
    found = Counter(logged.read(host, logged.whole[:cut], tmp_path / f"{cut}") for cut in cuts)
    assert found["new"] == 0, "the last byte belongs to the commit"
    assert found["old"] + found["error"] == len(cuts)
    assert logged.read(host, logged.whole, tmp_path / "whole") == "new"


def test_a_flipped_bit_of_a_log_is_told_or_changes_nothing(host, logged, tmp_path):
    for i, damaged in enumerate(flips(logged.whole, N_FLIPS)):
        logged.read(host, damaged, tmp_path / f"{i}")


def flips(raw: bytes, n: int, within: int = 0) -> Iterator[bytes]:
    """Bytes with one bit flipped, half of them near the beginning."""
    draw = random.Random(len(raw))
    for i in range(n):
        flipped = bytearray(raw)
        end = min(len(raw), within) if within and i % 2 else len(raw)
        flipped[draw.randrange(end)] ^= 1 << draw.randrange(8)
        yield bytes(flipped)


@pytest.fixture(scope="module")
def learned(market: pd.DataFrame, tmp_path_factory) -> Iterator[SmallHome]:
    """A home with models, scores and published tables."""
    folder = tmp_path_factory.mktemp("learned")
    with own_environment(folder):
        made = new_home(folder / "home", SMALL)
        made.ingest(market)
        publish_prices(made.workspace)
        made.run(DATA, "2015-06", "2016-07")
        made.run(LEARNING, "2016-06")
        made.run(["predictions", "prediction_outcomes"], "2016-07")
        yield made


Choose = Callable[[SmallHome], Path]
FILES: dict[str, Choose] = {
    "database": lambda made: made.root / "data" / "quant.duckdb",
    "registry": lambda made: made.root / "models" / "registry.sqlite",
}


@pytest.mark.parametrize("kind", FILES)
def test_a_flipped_bit_of_a_database_is_told_or_changes_nothing(host, learned, kind, tmp_path):
    whole = answer(host, learned)
    assert whole["problems"] == []
    raw = FILES[kind](learned).read_bytes()
    told = 0
    for i, damaged in enumerate(flips(raw, N_FLIPS, 3 * 4096)):
        made = learned.copy(tmp_path / f"{i}" / "home")
        FILES[kind](made).write_bytes(damaged)
        found = answer(host, made)
        assert "error" in found or found["problems"] or found == whole
        told += found != whole
        shutil.rmtree(made.root.parent)
    assert told or kind == "registry", "of a registry most bytes are those of words"


def test_a_flipped_bit_of_a_published_file_is_told_and_mended(host, learned, tmp_path):
    whole = answer(host, learned, "read_published")
    files = sorted((learned.root / "data" / "published").rglob("*.parquet"))
    for i in range(N_FLIPS // 3):
        made = learned.copy(tmp_path / f"{i}" / "home")
        file = made.root / files[i % len(files)].relative_to(learned.root)
        (damaged,) = flips(file.read_bytes() + bytes(i), 1)  # another place each time
        file.write_bytes(damaged[: -i or None])
        if damaged[: -i or None] == files[i % len(files)].read_bytes():
            continue
        assert answer(host, made)["problems"] == ["I7"]
        found = answer(host, made, "read_published")
        assert "error" in found or found == whole
        host.do("reconcile", made)
        assert answer(host, made, "read_published") == whole
        shutil.rmtree(made.root.parent)
