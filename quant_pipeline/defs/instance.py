"""The home's Dagster instance: the same one for `quant` and for the web UI."""

import os
from importlib.resources import files
from typing import TYPE_CHECKING

from quant_pipeline.settings import Home
from quant_pipeline.stores.locks import held
from quant_pipeline.stores.model_files import write_durably

if TYPE_CHECKING:
    from dagster import DagsterInstance


def template(name: str) -> str:
    """The text of a packaged template."""
    return (files("quant_pipeline") / "templates" / name).read_text()


def prepare(home: Home) -> dict[str, str]:
    """Make the instance's folder if there is none; gives the environment that points to it."""
    target = home.dagster / "dagster.yaml"
    if not target.exists():
        with held(home.data / "dagster.lock", "preparing Dagster", 60):
            if not target.exists():
                home.dagster.mkdir(parents=True, exist_ok=True)
                write_durably(target, template("dagster.yaml").encode())
    return {
        "QUANT_HOME": str(home.root),
        "DAGSTER_HOME": str(home.dagster),
        "QUANT_COMPUTE_LOGS": str(home.dagster / "logs"),
    }


def open_instance(home: Home) -> "DagsterInstance":
    """The instance of a home; first starts take turns, as two at once would crash."""
    os.environ.update(prepare(home))
    from dagster import DagsterInstance

    with held(home.data / "dagster.lock", "opening Dagster", 60):
        return DagsterInstance.get()
