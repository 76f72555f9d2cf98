"""The web UI as a person sees it, in a headless Chromium: graph, partitions, a run's pictures.

With QUANT_SCREENSHOTS=FOLDER the pages are kept there as PNG files: those of docs/ are made so.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quant_pipeline_tests.browser import MARKS, Page, open_page
from quant_pipeline_tests.homes import EVERY, own_environment
from quant_pipeline_tests.servers import Server, serving

pytestmark = MARKS
KEY = "2016-07"
Area = tuple[float, float, float, float] | None
Keep = Callable[..., None]
# Elements without children whose text is something.
SAYING = "[...document.querySelectorAll('*')].filter(e => !e.children.length && %s)"
SHOWS = (
    "((name, text) => text == name || text.includes('…') "
    "&& name.startsWith(text.split('…')[0]) && name.endsWith(text.split('…')[1]))"
)
LEFT = "getBoundingClientRect().left"
# The area of the graph with a margin, once its nodes are loaded and all of them are to be seen.
GRAPH = """(() => {
    const boxes = [...document.querySelectorAll('foreignObject')].map(
        e => e.getBoundingClientRect());
    const least = side => Math.min(...boxes.map(b => b[side]));
    const most = side => Math.max(...boxes.map(b => b[side]));
    const [left, top, right, end] = [least('left'), least('top'), most('right'), most('bottom')];
    const text = document.body.innerText;
    const isWhole = boxes.length > 10 && right < innerWidth && text.includes('%');
    return isWhole && !text.includes('Loading')
        && [left - 20, top - 20, right - left + 40, end - top + 40];
})()"""
LINKS = SAYING % "e.textContent == '[Show Markdown]'"
IMAGES = "[...document.querySelectorAll('img[alt]')].filter(e => e.src.startsWith('data:image/'))"
DRAWN = f"{IMAGES}.filter(e => e.complete && e.naturalWidth > 0)"
ADDRESS_OF_A_RUN = (
    "[...document.querySelectorAll('a')].map(a => a.href).find(h => /runs.[0-9a-f]{8}-/.test(h))"
)


@pytest.fixture
def page(tmp_path) -> Iterator[Page]:
    with open_page(tmp_path) as page:
        yield page


@pytest.fixture(scope="module")
def server(finished, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("browser")
    home = finished.copy(folder / "home")
    with own_environment(folder):
        with home.runner(recorded=True) as runner:  # its prices came by an ingest of a test
            runner.materialize(["prices_daily"], "2015-06", "2016-08")
        with serving(home, folder) as found:
            yield found


@pytest.fixture
def keep(page) -> Keep:
    """Keeps what the page shows, if a folder for it is named."""
    folder = os.environ.get("QUANT_SCREENSHOTS")

    def save(name: str, area: Area = None) -> None:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.keep(Path(folder) / f"{name}.png", area)

    return save


def test_the_asset_graph_reads_from_left_to_right(server, page, keep) -> None:
    page.resize(2700, 760)
    page.open(f"{server.address}/asset-groups")
    page.wait_for_text("Materialize all")
    page.press("e", "KeyE", alt=True)  # expands the groups
    left = {}
    for name in EVERY:
        # A long name is shortened in the middle; a group may have the name of an asset.
        said = SAYING % f"e.closest('foreignObject') && {SHOWS}('{name}', e.textContent)"
        left[name] = page.wait_for(f"Math.max(0, ...{said}.map(e => e.{LEFT}))")
    area = page.wait_for(GRAPH)
    keep("asset-graph", area)
    order = ["prices_daily", "features_daily", "training_frame", "walkforward_folds",
             "lgbm_model", "predictions", "prediction_outcomes"]  # fmt: skip
    assert sorted(order, key=lambda name: left[name]) == order, left
    assert abs(left["labels"] - left["features_daily"]) < 100


def test_a_partition_shows_its_numbers_and_tables(server, page, keep) -> None:
    page.open(f"{server.address}/assets/lgbm_model?view=partitions&partition={KEY}")
    for text in ("up_5d/rank_ic", "ret_5d/rank_ic", "seconds", "peak_memory_mb", "test_start"):
        page.wait_for_text(text)
    keep("partition")


def test_a_run_shows_its_pictures(server, page, keep) -> None:
    page.open(f"{server.address}/assets/lgbm_model?view=partitions&partition={KEY}")
    page.open(page.wait_for(ADDRESS_OF_A_RUN))
    page.wait_for_text("ASSET_MATERIALI")
    page.resize(1440, 1500)
    page.click(f"{LINKS}[0]")
    page.wait_for(f"{DRAWN}.length == 4")
    titles = page.wait_for(f"{IMAGES}.map(e => e.alt)")
    assert "RankIC" in titles[0]
    assert "return" in titles[1]
    assert "Calibration" in titles[2]
    assert "Importance" in titles[3]
    assert page.wait_for(f"Math.min(...{DRAWN}.map(e => e.naturalWidth))") > 400
    box = "document.querySelector('img[alt*=RankIC]').closest('[class*=ialog]')"
    area = f"(r => [r.left, r.top, r.width, r.height])({box}.getBoundingClientRect())"
    keep("run-pictures", page.wait_for(area))


def test_an_image_that_cannot_be_shown_is_noticed(page, tmp_path) -> None:
    """What the test above waits for is not there for a broken picture."""
    file = tmp_path / "broken.html"
    image = '<img alt="%s" src="data:image/svg+xml;base64,%s">'
    good = "PHN2ZyB4bWxucz0iaHR0cDovL3d3dy53My5vcmcvMjAwMC9zdmciIHdpZHRoPSI1IiBoZWlnaHQ9IjUiLz4="
    file.write_text(image % ("broken", good[:40]) + image % ("good", good))
    page.open(file.as_uri())
    page.wait_for("document.readyState == 'complete'")
    assert page.wait_for(f"{IMAGES}.map(e => e.alt)") == ["broken", "good"]
    assert page.wait_for(f"{DRAWN}.map(e => e.alt)") == ["good"]
