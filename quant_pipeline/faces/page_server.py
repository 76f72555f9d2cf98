"""The page's server: Streamlit on this home, on the loopback address by default; it only reads."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from quant_pipeline.faces.guard import LOOPBACK
from quant_pipeline.faces.output import say
from quant_pipeline.settings import Home

DAGSTER = "QUANT_DAGSTER_URL"
SETTINGS = {
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "server.runOnSave": "false",
    "server.enableStaticServing": "false",
    "server.showEmailPrompt": "false",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "type",
    "runner.magicEnabled": "false",
    "theme.light.primaryColor": "#4a86c5",
    "theme.dark.primaryColor": "#4a86c5",
    "theme.metricValueFontSize": "1.35rem",
    "theme.paddingTop": "2.5rem",
    "logger.hideWelcomeMessage": "true",
    "logger.level": "warning",
}


def start_page(
    home: Home, host: str, port: int, names: Sequence[str] = (), dagster: str = ""
) -> subprocess.Popen[bytes]:
    """Start the page of a home, in a group of its own; it links to `dagster`, if that is given.

    Browsers reach it as the loopback address, and beyond it by `names` and `host`.
    """
    known = [*sorted(LOOPBACK), *names, *([] if host in LOOPBACK else [host])]
    anyone = host in ("0.0.0.0", "::")
    chosen = SETTINGS | {"server.address": host, "server.port": str(port)}
    options = [f"--{name}={value}" for name, value in chosen.items()]
    options += [f"--server.allowedHosts={name}" for name in (["*"] if anyone else known)]
    command = [sys.executable, "-m", "quant_pipeline.faces.web", *options]
    environment = {**os.environ, "QUANT_HOME": str(home.root), DAGSTER: dagster}
    return subprocess.Popen(command, env=environment, cwd=home.root, start_new_session=True)


def serve_page(home: Home, host: str, port: int, names: Sequence[str] = ()) -> None:
    """Serve the page until stopped."""
    from quant_pipeline.faces.server import end, require_free

    require_free(host, port, f"quant web --port {port + 1}")
    say(f"The page on http://{host}:{port} (Ctrl-C stops it). It only reads.")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    process = start_page(home, host, port, names)
    try:
        process.wait()
    except KeyboardInterrupt:
        end(process, signal.SIGTERM)  # by SIGINT, one that still imports would show where it was
