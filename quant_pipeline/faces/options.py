"""What commands share: options, and how they open the home."""

from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quant_pipeline.errors import QuantError, SettingsError
from quant_pipeline.faces.output import parse_day

if TYPE_CHECKING:
    from quant_pipeline.chain.workspace import Workspace
    from quant_pipeline.settings import Home, Task

Csv = Annotated[bool, typer.Option("--csv", help="Print CSV for programs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def day_option(text: str, *names: str) -> Any:
    """An option that takes a date; its name is the parameter's if none is given."""
    return typer.Option(*names, parser=parse_day, metavar="DATE", help=text)


Day = Annotated[date | None, day_option("A date like 2021-11-30.")]
From = Annotated[date | None, day_option("The first session; a date like 2021-11-30.", "--from")]
To = Annotated[date | None, day_option("The last session.")]
Session = Annotated[date | None, day_option("Of one session; a date like 2021-11-30.")]
OneSession = Annotated[date, day_option("The session, like 2021-11-30.")]


def task_ids() -> list[str]:
    """The tasks of the home, for the shell's completion."""
    from quant_pipeline.settings import Home, load_settings

    try:
        return [task.task_id for task in load_settings(Home.from_environment()).tasks]
    except QuantError:
        return []


def model_ids() -> list[tuple[str, str]]:
    """The models of the home with what they are, newest first, for the shell's completion."""
    from quant_pipeline.settings import Home

    if not Home.from_environment().settings_file.exists():
        return []
    try:
        models = open_workspace().read_only().meta.models()
    except QuantError:
        return []
    return [(m.model_id[:12], f"{m.task_id} as of {m.asof}") for m in reversed(models)]


TaskId = Annotated[
    str | None, typer.Option("--task", help="Only this task.", autocompletion=task_ids)
]
OneTask = Annotated[str, typer.Option("--task", help="The task.", autocompletion=task_ids)]
ModelId = Annotated[
    str,
    typer.Argument(help="An id or a unique beginning of one.", autocompletion=model_ids),
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
