"""The page in a real browser: every tab with data, empty, beside a writer; wide, narrow, dark.

With QUANT_SCREENSHOTS=FOLDER the pages are kept there as PNG files: those of docs/ are made so.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from quant_pipeline_tests.browser import MARKS, Page, open_page
from quant_pipeline_tests.homes import SmallHome, own_environment
from quant_pipeline_tests.servers import free_port, kill_all_of, listening
from quant_pipeline_tests.test_shown import HOLD

pytestmark = MARKS
QUANT = str(Path(sys.executable).with_name("quant"))
TABS = ("Overview", "Predictions", "Models", "Outcomes", "Data")
# The title of the page is there, and its script has run to its end.
READY = """(title => {
    const app = document.querySelector('[data-testid="stApp"]');
    const head = document.querySelector('h1');
    const isBusy = document.querySelector('[data-testid="stSkeleton"], [data-testid="stSpinner"]');
    return app && app.dataset.testScriptState == 'notRunning' && !isBusy
        && head && head.innerText.trim() == title;
})(%s)"""
LINK = "[...document.querySelectorAll('[data-testid=\"stSidebarNavLink\"]')].find(e => %s)"
CHARTS = "document.querySelectorAll('[data-testid=\"stVegaLiteChart\"]').length"
DRAWN = (
    "[...document.querySelectorAll('[data-testid=\"stVegaLiteChart\"]')]"
    ".every(e => e.querySelector('canvas, svg'))"
)


@contextmanager
def page_of(home: SmallHome, folder: Path) -> Iterator[str]:
    """`quant web` of a home; gives its address."""
    port, log = free_port(), folder / "web.log"
    environment = {**os.environ, "QUANT_HOME": str(home.root)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [QUANT, "web", "--port", str(port)], env=environment, cwd=home.root, stdout=output,
            stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(address, process, log)
        assert listening(home) == {f"127.0.0.1:{port}"}
        yield address
    finally:
        kill_all_of(home, process)
    said = log.read_text()
    assert "Traceback" not in said, said


def _wait_for(
    address: str, process: "subprocess.Popen[bytes]", log: Path, path: str = "/_stcore/health"
) -> None:
    """Until a server answers."""
    deadline = time.monotonic() + 90
    while not _answers(address + path):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)  # between two polls of another process


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def address(finished, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    with own_environment(folder), page_of(finished.copy(folder / "home"), folder) as found:
        yield found


@pytest.fixture
def page(tmp_path) -> Iterator[Page]:
    with open_page(tmp_path) as page:
        page.do("Log.enable")
        page.resize(1280, 900)
        yield page


def go(page: Page, address: str, tab: str) -> None:
    """Click to a tab, from the first one, and wait until it is drawn."""
    if not page.wait_for("location.href").startswith(address):
        page.open(address)
        page.wait_for(READY % json.dumps("Overview"))
    if tab != "Overview":
        page.click(LINK % f"e.innerText.includes({json.dumps(tab)})")
    page.wait_for(READY % json.dumps(tab))
    page.wait_for(DRAWN)


# Opened by the address of a tab, Streamlit looks for its server below that, too, before above.
LOOKED_FOR = re.compile(
    r"Failed to load resource: the server responded with a status of 404 \(Not Found\) "
    r"http://127\.0\.0\.1:\d+/(predictions|models|outcomes|data)/_stcore/(health|host-config)"
)


def complaints(page: Page) -> list[str]:
    """Errors of the console and of scripts, as far as the page told, but for LOOKED_FOR."""
    page.wait_for("true")  # what came before is told by now
    found = []
    for event in page.events:
        given = event["params"]
        if event["method"] == "Runtime.exceptionThrown":
            found.append(str(given["exceptionDetails"]))
        if event["method"] == "Log.entryAdded" and given["entry"]["level"] == "error":
            found.append(f"{given['entry']['text']} {given['entry'].get('url')}")
        if event["method"] == "Runtime.consoleAPICalled" and given["type"] == "error":
            found.append(json.dumps(given["args"])[:300])
    return [words for words in found if not LOOKED_FOR.fullmatch(words)]


def open_tab(page: Page, address: str, tab: str) -> None:
    """Open a tab by its address and wait until it is drawn."""
    page.open(f"{address}/{'' if tab == 'Overview' else tab.lower()}")
    page.wait_for(READY % json.dumps(tab))
    page.wait_for(DRAWN)


def keep(page: Page, folder: Path, name: str, width: int = 1280) -> None:
    """A picture of the whole page, kept where QUANT_SCREENSHOTS says."""
    kept = os.environ.get("QUANT_SCREENSHOTS")
    height = "document.querySelector('[data-testid=\"stMainBlockContainer\"]').scrollHeight"
    page.resize(width, int(page.wait_for(height)) + 40)
    page.keep((Path(kept) if kept else folder) / f"page-{name.lower()}.png")


def test_every_tab_is_drawn_without_a_complaint(page, address, tmp_path) -> None:
    least = {"Overview": 0, "Predictions": 3, "Models": 3, "Outcomes": 9, "Data": 3}
    for tab in TABS:
        go(page, address, tab)
        assert page.wait_for(f"{CHARTS} + 1") - 1 >= least[tab], tab
        text = page.wait_for("document.body.innerText")
        assert "Traceback" not in text
        assert "KeyError" not in text
        keep(page, tmp_path, tab)
        page.resize(1280, 900)
    assert complaints(page) == []


@pytest.mark.parametrize("tab", TABS)
def test_nothing_is_cut_off_on_a_telephone(page, address, tab, tmp_path) -> None:
    page.resize(390, 844)
    open_tab(page, address, tab)
    main = "document.querySelector('[data-testid=\"stMain\"]')"
    assert page.wait_for(f"{main}.scrollWidth <= {main}.clientWidth + 1 ? 'fits' : 'cut'") == "fits"
    keep(page, tmp_path, f"{tab}-390", 390)
    assert complaints(page) == []


@pytest.mark.parametrize(
    "tab", [TABS[0], *(pytest.param(tab, marks=pytest.mark.long) for tab in TABS[1:])]
)
def test_a_dark_browser_gets_a_dark_page(page, address, tab, tmp_path) -> None:
    shade = "getComputedStyle(document.querySelector('[data-testid=\"stApp\"]')).backgroundColor"
    shades = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.do("Emulation.setEmulatedMedia", features=[feature])
        open_tab(page, address, tab)
        numbers = re.findall(r"\d+", page.wait_for(shade))
        shades[scheme] = sum(int(n) for n in numbers[:3]) / 3
    assert shades["light"] > 200
    assert shades["dark"] < 60
    keep(page, tmp_path, f"{tab}-dark")
    assert complaints(page) == []


def test_a_missing_model_file_is_told_and_the_rest_is_drawn(page, used, tmp_path) -> None:
    for file in (used.root / "models").glob("*.joblib"):
        file.unlink()
    told = {
        "Overview": "has no file with its sha256",
        "Predictions": "is missing, but the registry",
        "Models": "is missing, but the registry",
        "Outcomes": "RankIC",
        "Data": "Coverage",
    }
    with page_of(used, tmp_path) as address:
        for tab in TABS:
            go(page, address, tab)
            page.wait_for_text(told[tab])
            assert "Traceback" not in page.wait_for("document.body.innerText")
        assert complaints(page) == []


def test_scores_are_downloaded_as_they_are_stored(page, address, finished, tmp_path) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    page.do("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    go(page, address, "Predictions")
    page.click("document.querySelector('[data-testid=\"stDownloadButton\"] button')")
    deadline = time.monotonic() + 60
    while not (files := list(folder.glob("*.csv"))):
        assert time.monotonic() < deadline
        time.sleep(0.05)  # between two looks at what the browser writes
    rows = pd.read_csv(files[0])
    day = rows["ts"].iloc[0]
    assert files[0].name == f"up_5d_{day}.csv"
    stored = finished.rows(
        "SELECT symbol, score FROM predictions WHERE ts = CAST(? AS DATE) AND task_id = 'up_5d' "
        "ORDER BY score DESC, symbol", day,
    )  # fmt: skip
    found = list(zip(rows["symbol"], rows["score"], strict=True))
    assert [s for s, _ in found] == [s for s, _ in stored]
    assert [v for _, v in found] == pytest.approx([v for _, v in stored], abs=0)


def test_a_page_beside_a_writer_does_not_wait(page, used, tmp_path) -> None:
    lock = used.root / "data" / "quant.duckdb.lock"
    with (
        page_of(used, tmp_path) as address,
        subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE) as writer,
    ):  # fmt: skip
        assert writer.stdout is not None
        writer.stdout.readline()
        for tab in TABS:
            go(page, address, tab)
            page.wait_for_text("Being written by process")
        assert complaints(page) == []
        writer.communicate()


def test_an_empty_home_says_what_to_do_on_every_tab(page, workspace, tmp_path) -> None:
    with page_of(SmallHome(workspace.home.root), tmp_path) as address:
        for tab in TABS:
            go(page, address, tab)
            page.wait_for_text("quant ")
        assert complaints(page) == []


def test_quant_ui_serves_the_page_beside_dagster_and_ends_both(page, used, tmp_path) -> None:
    port, page_port = free_port(), free_port()
    command = [QUANT, "ui", "--port", str(port), "--page-port", str(page_port)]
    log = tmp_path / "ui.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, "QUANT_HOME": str(used.root)}, cwd=used.root,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        _wait_for(f"http://127.0.0.1:{page_port}", process, log)
        go(page, f"http://127.0.0.1:{page_port}", "Overview")
        links = page.wait_for("[...document.querySelectorAll('a')].map(e => e.href)")
        assert f"http://127.0.0.1:{port}/runs" in links
        _wait_for(f"http://127.0.0.1:{port}", process, log, "/server_info")
        here = {f"127.0.0.1:{port}", f"127.0.0.1:{page_port}"}
        assert here <= listening(used)
        os.kill(process.pid, signal.SIGINT)
        process.wait(60)
        assert listening(used) == set()
    finally:
        kill_all_of(used, process)


@pytest.mark.parametrize("site", ["127.0.0.1", "evil.example"])
def test_another_sites_page_gets_nothing(address, site) -> None:
    """A name that was made to lead to this machine is turned away; the page's own is not."""
    port = int(address.rsplit(":", 1)[1])
    place, origin = f"{site}:{port}", f"http://{site}:{port}"

    def ask() -> None:
        with (
            socket.create_connection(("127.0.0.1", port)) as there,
            connect(f"ws://{place}/_stcore/stream", sock=there, origin=origin, proxy=None),  # type: ignore[arg-type]
        ):
            pass

    if site == "127.0.0.1":
        ask()
    else:
        with pytest.raises(InvalidStatus, match="403"):
            ask()
