"""What commands share: options, and how they open the home."""

from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer

from quant_pipeline.errors import SettingsError
from quant_pipeline.faces.output import parse_day

if TYPE_CHECKING:
    from quant_pipeline.chain.workspace import Workspace
    from quant_pipeline.settings import Task

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Day = Annotated[date | None, typer.Option(parser=parse_day, metavar="DATE")]
TaskId = Annotated[str | None, typer.Option("--task", help="Only this task.")]


def open_workspace() -> "Workspace":
    """The home that QUANT_HOME names, which must have been made by `quant init`."""
    from quant_pipeline.chain.workspace import Workspace
    from quant_pipeline.settings import Home

    home = Home.from_environment()
    if not home.settings_file.exists():
        raise SettingsError(
            f"{home.root} has no quant.toml, so it is no home of quant_pipeline. "
            "Run `quant init` there, or set QUANT_HOME."
        )
    return Workspace.open(home)


def chosen(ws: "Workspace", task_id: str | None) -> list["Task"]:
    """The named task, or all."""
    return ws.tasks([task_id] if task_id else [])
