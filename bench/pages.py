"""How long each tab of the page takes on a home, in a real browser, as one JSON line.

    python bench/pages.py HOME        medians of three visits: from the click to the last chart

`first_s` is the first visit of all, which imports everything; `cold_s` each tab's first one. A line
before it has the commands that only read.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.dataset as ds

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quant_pipeline_tests.browser import Page, open_page
from quant_pipeline_tests.homes import SmallHome
from quant_pipeline_tests.test_page_browser import DRAWN, LINK, READY, TABS, page_of

VISITS = 3


def visit(page: Page, tab: str) -> float:
    """Seconds from the click on a tab until all of it is drawn."""
    began = time.perf_counter()
    page.click(LINK % f"e.innerText.includes({json.dumps(tab)})")
    page.wait_for(READY % json.dumps(tab))
    page.wait_for(DRAWN)
    return time.perf_counter() - began


def main(home: SmallHome) -> None:
    seconds: dict[str, list[float]] = {tab: [] for tab in TABS}
    with (
        tempfile.TemporaryDirectory() as folder,
        page_of(home, Path(folder)) as address,
        open_page(Path(folder)) as page,
    ):
        page.resize(1280, 900)
        began = time.perf_counter()
        page.open(address)
        page.wait_for(READY % json.dumps("Overview"))
        first = time.perf_counter() - began
        for _ in range(VISITS):
            for tab in (*TABS[1:], TABS[0]):
                seconds[tab].append(visit(page, tab))
    scores = ds.dataset(home.root / "data" / "published" / "predictions").count_rows()
    line = {
        "scores": scores, "first_s": round(first, 2),
        "cold_s": {tab: round(found[0], 2) for tab, found in seconds.items()},
        "median_s": {tab: round(statistics.median(found), 2) for tab, found in seconds.items()},
    }  # fmt: skip
    print(json.dumps(line))


def commands(root: Path) -> None:
    """Seconds of commands that only read, medians of five."""
    quant = str(Path(sys.executable).with_name("quant"))
    found = {}
    for words in (["--help"], ["predictions", "--top", "5"], ["models", "list"]):
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run([quant, *words], env={**os.environ, "QUANT_HOME": str(root)},
                           stdout=subprocess.DEVNULL, check=True)  # fmt: skip
            taken.append(time.perf_counter() - began)
        found["quant " + " ".join(words)] = round(statistics.median(taken), 2)
    print(json.dumps(found))


if __name__ == "__main__":
    given = Path(sys.argv[1]).resolve()
    commands(given)
    main(SmallHome(given))
