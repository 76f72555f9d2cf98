"""Compiled kernels: loaded only when needed, compiled once, run without the GIL."""

import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

from quant_pipeline.market import kernels, rolling
from quant_pipeline.market.alpha158 import ALPHA158, KERNELS, WINDOWS
from quant_pipeline.market.feature_kinds import KernelColumn

DISPATCHERS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": function
    for module in (kernels, rolling)
    for name, function in vars(module).items()
    if isinstance(function, Dispatcher)
}


def run(script: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_feature_has_one_column_of_one_kernel() -> None:
    columns = [f.compute for f in ALPHA158.values()]
    assert all(isinstance(c, KernelColumn) for c in columns)
    assert len(set(columns)) == 158
    there = {KernelColumn(kernel, i) for kernel, n in KERNELS.items() for i in range(n)}
    assert set(columns) == there
    assert list(WINDOWS) == sorted(WINDOWS)
    assert {f"kernels.{kernel.name}" for kernel in KERNELS} <= set(DISPATCHERS)


@pytest.mark.parametrize("name", list(DISPATCHERS))
def test_a_kernel_runs_without_the_gil_and_is_kept_in_the_environment(name) -> None:
    function = DISPATCHERS[name]
    assert function.targetoptions["nogil"] is True
    assert function.targetoptions["nopython"] is True
    assert "parallel" not in function.targetoptions
    assert "fastmath" not in function.targetoptions
    assert Path(function.stats.cache_path).is_relative_to(sys.prefix)


IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    if "numba" in sys.modules:
        print(name)
        break
"""


def test_importing_the_program_does_not_import_numba() -> None:
    """It takes longer than most commands."""
    modules = (
        "quant_pipeline.market.features",
        "quant_pipeline.chain.workspace",
        "quant_pipeline.faces.cli",
        "quant_pipeline.definitions",
    )
    assert run(IMPORTS, *modules) == ""


# Every way in which the program calls the kernels, after what installing runs. Tells which
# functions were not in the cache, and which were called as compile_all had not foreseen it.
CALLS = """
import sys
from datetime import date
from pathlib import Path
import numpy as np
from quant_pipeline.market import kernels, rolling
from quant_pipeline_tests.test_kernels import DISPATCHERS
kernels.compile_all()
rolling.compile_all()
before = {name: set(f.signatures) for name, f in DISPATCHERS.items()}

from quant_pipeline.chain.features import features_between
from quant_pipeline.market.feature_matrix import compute_matrix
from quant_pipeline.market.features import KNOWN, Feature, compute_features
from quant_pipeline_tests.homes import SmallHome
from quant_pipeline_tests.test_features import BARS, CODED, INPUTS, NAMES

MINE = [
    Feature(f"MINE_{f.__name__}", ("close",), 4, lambda close, f=f: f(close, 5))
    for f in (rolling.mean, rolling.std, rolling.highest, rolling.lowest)
]
one = BARS[BARS["symbol"] == "S0"]
for bars in (BARS, one, one.iloc[:1]):
    for dtype in (np.float64, np.float32):
        compute_features(bars.astype(dict.fromkeys(INPUTS, dtype)), [*NAMES, *MINE])
for dtype in (np.float64, np.float32):
    columns = {name: values.astype(dtype) for name, values in CODED.columns.items()}
    for values in columns.values():
        values.flags.writeable = False
    for symbols in ([0, 1, 2, 3], [1]):
        rows = np.isin(CODED.symbol, symbols)
        wanted = CODED.session[rows] >= 100
        part = {name: values[rows] for name, values in columns.items()}
        for values in part.values():
            values.flags.writeable = False
        compute_matrix(CODED.symbol[rows], CODED.session[rows], part, [*KNOWN.values(), *MINE],
                       None, CODED.first_session, wanted)
        compute_matrix(CODED.symbol[rows], CODED.session[rows], part, [*KNOWN.values(), *MINE])
ws = SmallHome(Path(sys.argv[1])).workspace
features_between(ws, date(2016, 5, 1), date(2016, 6, 1))
for name, f in DISPATCHERS.items():
    if sum(f.stats.cache_misses.values()):
        print("compiled", name)
    for signature in set(f.signatures) - before[name]:
        print("unforeseen", name, signature)
"""


@pytest.fixture(scope="module")
def told(finished) -> list[str]:
    """What a fresh process says that calls the kernels, in an environment where they are cached."""
    command = [sys.executable, "-m", "quant_pipeline.market.rolling"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return run(CALLS, str(finished.root)).splitlines()


def test_a_fresh_process_compiles_nothing(told) -> None:
    assert [line for line in told if line.startswith("compiled")] == []


def test_everything_is_called_as_it_was_compiled_before(told) -> None:
    """Else the first such call compiles, unless another run has filled the cache already."""
    assert [line for line in told if line.startswith("unforeseen")] == []
