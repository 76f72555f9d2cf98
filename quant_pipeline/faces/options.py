"""What commands share: options, and how they open the home."""

from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer

from quant_pipeline.errors import QuantError, SettingsError
from quant_pipeline.faces.output import parse_day

if TYPE_CHECKING:
    from quant_pipeline.chain.workspace import Workspace
    from quant_pipeline.settings import Home, Task

Csv = Annotated[bool, typer.Option("--csv", help="Print CSV for programs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Day = Annotated[date | None, typer.Option(parser=parse_day, metavar="DATE")]


def task_ids() -> list[str]:
    """The tasks of the home, for the shell's completion."""
    from quant_pipeline.settings import Home, load_settings

    try:
        return [task.task_id for task in load_settings(Home.from_environment()).tasks]
    except QuantError:
        return []


TaskId = Annotated[
    str | None, typer.Option("--task", help="Only this task.", autocompletion=task_ids)
]


def open_workspace() -> "Workspace":
    """The home that QUANT_HOME names, opened with its stores."""
    from quant_pipeline.chain.workspace import Workspace

    return Workspace.open(find_home())


def find_home() -> "Home":
    """The home that QUANT_HOME names, which must have been made by `quant init`."""
    from quant_pipeline.settings import Home

    home = Home.from_environment()
    if not home.settings_file.exists():
        raise SettingsError(
            f"{home.root} has no quant.toml, so it is no home of quant_pipeline. "
            "Run `quant init` there, or set QUANT_HOME."
        )
    return home


def chosen(ws: "Workspace", task_id: str | None) -> list["Task"]:
    """The named task, or all."""
    return ws.tasks([task_id] if task_id else [])
