"""Homes with a made-up market; nothing here touches data/ or models/ of the repository."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import settings

from quant_pipeline.chain.prices import publish_prices
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.stores.locks import held
from quant_pipeline_tests.homes import (
    WALK_FROM,
    SmallHome,
    new_home,
    own_environment,
    sample_market,
)
from quant_pipeline_tests.mutants import build

# Homes are made in memory where there is room: stores sync each commit, thousands in a whole run.
# That they do, and what comes of a sync that fails, test_crash.py counts on any kind of disk.
IN_MEMORY, ROOM = Path("/dev/shm"), 6 << 30
if "TMPDIR" not in os.environ and IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > ROOM:
    os.environ["TMPDIR"] = os.environ["PYTEST_DEBUG_TEMPROOT"] = str(IN_MEMORY)
    tempfile.tempdir = None  # found anew

# How long an example takes on a busy machine says nothing about it.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that mostly wait for servers come first: the other worker has work meanwhile."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say aloud what was skipped that a person should know of, not only by an `s` among dots."""
    for line in loud_skips(terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(line, yellow=True)


def loud_skips(reports: Iterable[Any]) -> list[str]:
    """Reasons of skipped tests that begin in capitals, NO or NOT, with how many tests they hit."""
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports)
    loud = {reason: n for reason, n in reasons.items() if reason.startswith(("NO ", "NOT "))}
    return [f"{reason} ({n} skipped)" for reason, n in sorted(loud.items())]


@pytest.fixture
def home(tmp_path) -> Iterator[Callable[..., SmallHome]]:
    """Makes homes below tmp_path: `home()`, or `home("other", {"old": "new"})` for quant.toml."""
    with own_environment(tmp_path):
        yield lambda name="home", changes=None: new_home(tmp_path / name, changes)


@pytest.fixture
def workspace(home) -> Workspace:
    """An empty home, opened."""
    return home().workspace


@pytest.fixture(scope="session")
def market() -> pd.DataFrame:
    """The prices of the finished home; only to be read."""
    return sample_market()


@pytest.fixture(scope="session")
def finished(tmp_path_factory, market) -> SmallHome:
    """A home walked forward from WALK_FROM in one backfill; only to be read."""

    def make(root: Path) -> None:
        made = new_home(root)
        made.ingest(market)
        publish_prices(made.workspace)
        made.backfill(WALK_FROM, recorded=True)

    return made_once(tmp_path_factory, "finished", make)


@pytest.fixture(scope="session")
def canary_home(tmp_path_factory) -> SmallHome:
    """The home that the proofs are tried on (see mutants.py); only to be read."""
    return made_once(tmp_path_factory, "canaries", build)


@pytest.fixture
def copied(canary_home, tmp_path) -> Iterator[SmallHome]:
    """A copy of that home that a test may change."""
    with own_environment(tmp_path):
        yield canary_home.copy(tmp_path / "home")


def made_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]
) -> SmallHome:
    """A home that the first worker that needs it makes for all; each has a copy of its own."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    home, is_made = folder / "shared" / name, folder / f"{name}.made"
    with held(folder / f"{name}.lock", "making a home", wait_seconds=600):
        if not is_made.exists():
            with own_environment(folder):
                make(home)
            is_made.touch()
        return SmallHome(home).copy(tmp_path_factory.mktemp(name) / "home")


@pytest.fixture
def used(finished, tmp_path) -> Iterator[SmallHome]:
    """A copy of the finished home that a test may change."""
    with own_environment(tmp_path):
        yield finished.copy(tmp_path / "used")
