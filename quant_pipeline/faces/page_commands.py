"""`quant ui`, `quant web` and `quant report`: what people look at."""

from pathlib import Path
from typing import Annotated

import typer

from quant_pipeline.faces.options import From, Json, OneTask, To, open_workspace
from quant_pipeline.faces.output import emit

Names = Annotated[
    list[str] | None,
    typer.Option("--name", help="Another name under which browsers reach it, as behind a proxy."),
]


def ui(
    port: Annotated[int, typer.Option(min=1, max=65534, help="Port to listen on.")] = 3000,
    page_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of the page; the next one if none is given."),
    ] = None,
    page: Annotated[bool, typer.Option(help="Also serve the page, as `quant web` does.")] = True,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. With any other one, whoever reaches it can run jobs: "
            "there is no login."
        ),
    ] = "127.0.0.1",
    names: Names = None,
) -> None:
    """Open the Dagster web UI and the page of this home, with the daemon that runs schedules.

    Example: quant ui --port 3100
    """
    from quant_pipeline.faces.server import serve

    chosen = (page_port or port + 1) if page else None
    serve(open_workspace().home, host, port, names or (), chosen)


def report(
    task: OneTask,
    from_: From = None,
    to: To = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path(
        "report.html"
    ),
    as_json: Json = False,
) -> None:
    """Write what a task's scores were worth as one HTML file with charts, for mailing.

    Example: quant report --task ret_5d -o ret_5d.html
    """
    from quant_pipeline.faces.html_report import write_report

    ws = open_workspace()
    found = write_report(ws, ws.settings.task(task), from_, to, output)
    span = f"{found['first_ts']} to {found['last_ts']}"
    text = f"Wrote {found['path']}: {found['sessions']:,} judged sessions, {span}."
    emit(found, as_json, lambda: typer.echo(text))


def web(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 3001,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. With any other one, whoever reaches it can read "
            "everything: there is no login."
        ),
    ] = "127.0.0.1",
    names: Names = None,
) -> None:
    """Open the page alone: scores, models and what they were worth. It only reads.

    Example: quant web --port 8501
    """
    from quant_pipeline.faces.page_server import serve_page

    serve_page(open_workspace().home, host, port, names or ())
