"""`quant ui`: Dagster's webserver and daemon, and the page, on the loopback address by default."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files

from quant_pipeline.defs.instance import bury_dead_runs, open_instance, prepare
from quant_pipeline.errors import SettingsError, StoreBusy
from quant_pipeline.faces.guard import LOOPBACK, NAMES
from quant_pipeline.faces.output import say
from quant_pipeline.faces.page_server import start_page
from quant_pipeline.settings import Home
from quant_pipeline.stores.locks import held

GRACE_SECONDS = 30.0


def serve(
    home: Home, host: str, port: int, names: Sequence[str] = (), page_port: int | None = None
) -> None:
    """Serve Dagster until stopped, and the page at `page_port`; one server on one home.

    Browsers reach it as the loopback address, and beyond it by IP address and by `names`.
    """
    require_free(host, port)
    if page_port is not None:
        require_free(host, page_port, f"quant ui --port {port} --page-port {page_port + 1}")
    advice = "use its page, or stop it first"
    with held(home.data / "ui.lock", f"quant ui on port {port}", 0, advice=advice):
        # `dagster dev` advises a tool for deployments that this one does not need.
        quiet = "ignore:Function `dev_command` is superseded"
        environment = {"PYTHONWARNINGS": quiet, **os.environ, **prepare(home)}
        anywhere = [] if host in LOOPBACK else ["*", host, socket.gethostname(), socket.getfqdn()]
        environment[NAMES] = ",".join([*anywhere, *names])
        with open_instance(home) as instance:  # before several processes of the server do at once
            bury_dead_runs(instance, home)
        say(f"Dagster on http://{host}:{port} (Ctrl-C stops it).")
        if host not in LOOPBACK:
            say(f"Whoever reaches {host} can run jobs here: there is no login.")
        workspace = str(files("quant_pipeline") / "templates" / "workspace.yaml")
        command = [sys.executable, "-m", "quant_pipeline.faces.webserver", "dev",
                   "-w", workspace, "-h", host, "-p", str(port)]  # fmt: skip
        # Started in the background by a script, it ignores SIGINT: so would what it starts.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        process = subprocess.Popen(command, env=environment, cwd=home.root, start_new_session=True)
        page = None
        if page_port is not None:
            say(f"The page on http://{host}:{page_port}. It only reads.")
            page = start_page(home, host, page_port, names, f"http://{host}:{port}")
        try:
            process.wait()
        except KeyboardInterrupt:
            end(process)
        finally:
            if page is not None:
                end(page, signal.SIGTERM)


def end(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGINT) -> None:
    """End a server with all its processes: runs stop their steps, what lingers is killed."""
    deadline = time.monotonic() + GRACE_SECONDS
    with suppress(ProcessLookupError):  # the whole group is gone
        os.killpg(process.pid, how)
        while time.monotonic() < deadline:
            if process.poll() is not None:
                os.killpg(process.pid, 0)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def require_free(host: str, port: int, other: str = "") -> None:
    """Raise StoreBusy if a port is taken, naming `other` or the command with the next one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror:
        raise SettingsError(f"{host} is no address of this machine.") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise SettingsError(f"{host} is no address of this machine.") from None
            advice = other or f"quant ui --port {port + 1}"
            raise StoreBusy(
                f"Port {port} of {host} is taken. Choose another one: `{advice}`."
            ) from None
