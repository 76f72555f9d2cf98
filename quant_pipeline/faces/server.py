"""`quant ui`: Dagster's webserver and daemon on this home, on the loopback address only."""

import os
import signal
import socket
import subprocess
import sys
from importlib.resources import files

from quant_pipeline.defs.instance import bury_dead_runs, open_instance, prepare
from quant_pipeline.errors import StoreBusy
from quant_pipeline.faces.output import say
from quant_pipeline.settings import Home
from quant_pipeline.stores.locks import held

HOST = "127.0.0.1"


def serve(home: Home, port: int) -> None:
    """Serve until stopped; a second server on one home is refused."""
    _require_free(port)
    advice = "use its page, or stop it first"
    with held(home.data / "ui.lock", f"quant ui on port {port}", 0, advice=advice):
        # `dagster dev` advises a tool for deployments that this one does not need.
        quiet = "ignore:Function `dev_command` is superseded"
        environment = {"PYTHONWARNINGS": quiet, **os.environ, **prepare(home)}
        with open_instance(home) as instance:  # before several processes of the server do at once
            bury_dead_runs(instance, home)
        say(f"Dagster on http://{HOST}:{port} (Ctrl-C stops it).")
        workspace = str(files("quant_pipeline") / "templates" / "workspace.yaml")
        command = [sys.executable, "-m", "dagster", "dev", "-w", workspace,
                   "-h", HOST, "-p", str(port)]  # fmt: skip
        process = subprocess.Popen(command, env=environment, cwd=home.root)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise StoreBusy(
                f"Port {port} of {HOST} is taken. Choose another one: `quant ui --port {port + 1}`."
            ) from None
