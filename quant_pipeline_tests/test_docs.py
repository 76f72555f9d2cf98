"""What the documents show is there, and what they let you type works."""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from quant_pipeline_tests.homes import SmallHome

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "bench").glob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)]+))?\)")


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(page):
    for target, heading in LINK.findall(page.read_text()):
        if target.startswith("http"):
            continue
        there = page.parent / target
        assert there.exists(), f"{page.name}: {target}"
        if heading:
            heads = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            names = {re.sub(r"[^\w -]", "", h.lower()).strip().replace(" ", "-") for h in heads}
            assert heading in names, f"{page.name}: {target}#{heading}"


def test_the_readme_is_short_and_its_pictures_are_small():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
    for picture in (ROOT / "docs").glob("*.png"):
        assert picture.stat().st_size < 150_000, picture


@pytest.mark.parametrize("page", ["README.md", "README.ko.md", "docs/reading.md"])
def test_python_of_the_documents_runs_in_a_home(page, finished: SmallHome, tmp_path, monkeypatch):
    blocks = blocks_of(ROOT / page)
    assert blocks
    home = tmp_path / "home"
    shutil.copytree(finished.root, home)
    monkeypatch.chdir(home)
    for block in blocks:
        needed = re.findall(r"^import (\w+)", block, re.MULTILINE)
        if "polars" in needed and find_spec("polars") is None:  # no dependency of ours
            continue
        exec(compile(block, page, "exec"), {})


def test_the_korean_readme_has_the_commands_of_the_english_one():
    english, korean = (
        re.findall(r"```(?:sh|console)\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
        for name in ("README.md", "README.ko.md")
    )

    def typed(blocks: list[str]) -> list[str]:
        lines = [line.split("#")[0].removeprefix("$ ").strip() for b in blocks for line in
                 b.splitlines()]  # fmt: skip
        return [line for line in lines if line]

    assert typed(korean) == typed(english)
