"""Dagster's webserver with a guard around it: run as a module, by `quant ui`.

Its names come in QUANT_UI_NAMES, separated by commas; "*" stands for any IP address.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

from dagster._cli import dev
from dagster_webserver import cli

from quant_pipeline.faces.guard import LOOPBACK, NAMES, Guard

UNGUARDED = "dagster_webserver"  # the module that `dagster dev` starts


def start_services() -> None:
    """`dagster dev`, but its webserver is this module's."""
    start = dev.open_ipc_subprocess  # type: ignore[attr-defined]

    def start_guarded(parts: Sequence[str], **options: Any) -> Any:
        return start([__spec__.name if p == UNGUARDED else p for p in parts], **options)

    dev.open_ipc_subprocess = start_guarded  # type: ignore[attr-defined]
    dev.dev_command()


def serve() -> None:
    """`dagster-webserver`, guarded."""
    names = {name.lower() for name in os.environ.get(NAMES, "").split(",") if name}
    make = cli.create_app_from_workspace_process_context  # type: ignore[attr-defined]

    def make_guarded(*args: Any, **options: Any) -> Any:
        return Guard(make(*args, **options), LOOPBACK | names - {"*"}, "*" in names)

    cli.create_app_from_workspace_process_context = make_guarded  # type: ignore[attr-defined]
    cli.dagster_webserver()


if __name__ == "__main__":
    if sys.argv[1:2] == ["dev"]:
        del sys.argv[1]
        start_services()
    else:
        serve()
