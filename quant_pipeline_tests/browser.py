"""A headless Chromium that a test steers over the DevTools protocol, with one page open."""

import base64
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
SIZE = (1440, 900)
MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="NO BROWSER TEST: there is no chromium. Debian or Ubuntu: apt-get install chromium",
    ),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars",
    "--remote-debugging-port=0", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
# Asked of the page again and again, by the page itself, until it gives something.
WAIT = """new Promise((found, failed) => {
    const began = Date.now();
    const look = () => {
        const value = (() => %s)();
        if (value) found(value);
        else if (Date.now() - began > %d) failed(new Error(document.body.innerText.slice(0, 2000)));
        else setTimeout(look, 50);
    };
    look();
})"""


class Page:
    """The one page of a browser."""

    def __init__(self, connection: ClientConnection, seconds: float) -> None:
        self.connection = connection
        self.seconds = seconds
        self.n_sent = 0
        self.events: list[dict[str, Any]] = []

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command of the protocol; what happened meanwhile is kept."""
        self.n_sent += 1
        asked = {"id": self.n_sent, "method": method, "params": parameters}
        self.connection.send(json.dumps(asked))
        while True:
            told = json.loads(self.connection.recv(timeout=self.seconds + 30))
            if told.get("id") == self.n_sent:
                assert "error" not in told, f"{method}: {told['error']}"
                result: dict[str, Any] = told["result"]
                return result
            self.events.append(told)

    def open(self, address: str) -> None:
        """Go to an address."""
        failed = self.do("Page.navigate", url=address).get("errorText")
        assert not failed, f"{address}: {failed}"

    def wait_for(self, expression: str) -> Any:
        """What a JavaScript expression gives, as soon as that is something."""
        found = self.do(
            "Runtime.evaluate",
            expression=WAIT % (expression, self.seconds * 1000),
            awaitPromise=True,
            returnByValue=True,
        )
        problem = found.get("exceptionDetails")
        assert not problem, f"{expression} was never so; the page said:\n{problem}"
        return found["result"]["value"]

    def wait_for_text(self, text: str) -> None:
        """Wait until the page says something."""
        self.wait_for(f"document.body && document.body.innerText.includes({json.dumps(text)})")

    def click(self, expression: str) -> None:
        """Click on the element that a JavaScript expression gives, once it is there."""
        self.wait_for(f"(() => {{ const e = {expression}; if (e) e.click(); return !!e; }})()")

    def press(self, key: str, code: str, *, alt: bool = False) -> None:
        """Press and release a key."""
        for kind in ("rawKeyDown", "keyUp"):
            self.do("Input.dispatchKeyEvent", type=kind, modifiers=int(alt), key=key, code=code)

    def resize(self, width: int, height: int) -> None:
        """Give the window another size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.do("Emulation.setDeviceMetricsOverride", **size)

    def keep(self, path: Path, area: tuple[float, float, float, float] | None = None) -> None:
        """Save what is to be seen, or an area of it (left, top, width, height), as a PNG."""
        clip = {}
        if area:
            names = ("x", "y", "width", "height", "scale")
            clip = {"clip": dict(zip(names, (*area, 1), strict=True))}
        shot = self.do("Page.captureScreenshot", format="png", **clip)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def open_page(folder: Path, seconds: float = 60) -> Iterator[Page]:
    """A fresh browser with an empty page; `seconds` is how long it waits for what it is told."""
    assert CHROMIUM is not None
    profile = folder / "profile"
    profile.mkdir()
    environment = {**os.environ, "HOME": str(folder)}
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", f"--window-size={SIZE[0]},{SIZE[1]}"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        port = _port_of(profile, process, seconds)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as reply:
            targets = [t for t in json.load(reply) if t["type"] == "page"]
        address = targets[0]["webSocketDebuggerUrl"]
        with connect(address, max_size=None, proxy=None, ping_interval=None) as connection:
            page = Page(connection, seconds)
            page.do("Page.enable")
            page.do("Runtime.enable")
            page.resize(*SIZE)
            yield page
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _port_of(profile: Path, process: subprocess.Popen[bytes], seconds: float) -> int:
    """The port that the browser chose, once it has written it down."""
    told = profile / "DevToolsActivePort"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the browser ended with {process.returncode}"
        if told.exists() and "\n" in (text := told.read_text()):
            return int(text.splitlines()[0])
        time.sleep(0.05)  # between two looks at another process
    raise AssertionError(f"the browser did not start in {seconds} s")
