"""What the documents show is there, and what they let you type works."""

import re
import shlex
import shutil
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from _pytest.mark import ParameterSet

from quant_pipeline_tests.conftest import loud_skips
from quant_pipeline_tests.homes import SmallHome
from quant_pipeline_tests.test_cli import succeed

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "bench").glob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)]+))?\)")


# The documents speak of the demo; the small home of the tests has these instead.
STAND_INS = {
    "ALI": "S004", "2021-12-14": "2016-07-15", "2019-12-31": "2016-06-30",
    "2021-03-14": "2016-07-14", "--trials 20": "--trials 1",
}  # fmt: skip


def blocks_of(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page, of all languages if none is given."""
    wanted = "|".join(languages) or r"\w+"
    return re.findall(rf"```(?:{wanted})\n(.*?)```", page.read_text(), re.DOTALL)


def blocks(*languages: str) -> list[ParameterSet]:
    """Every block of some languages in any page, named by its page and number."""
    return [
        pytest.param(block, id=f"{page.name} {i}")
        for page in PAGES
        for i, block in enumerate(blocks_of(page, *languages), 1)
    ]


def typed(block: str) -> list[str]:
    """The commands of a block, without remarks."""
    lines = [line.split("#")[0].removeprefix("$ ").strip() for line in block.splitlines()]
    return [line for line in lines if line]


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


@pytest.mark.parametrize("block", blocks("python"))
def test_python_of_the_documents_runs_in_a_home(block, finished: SmallHome, tmp_path, monkeypatch):
    needed = re.findall(r"^import (\w+)", block, re.MULTILINE)
    missing = [name for name in needed if find_spec(name) is None]
    if missing:  # no dependency of ours
        pytest.skip(f"NOT RUN: a block of docs/reading.md needs {missing[0]}")
    home = tmp_path / "home"
    shutil.copytree(finished.root, home)
    monkeypatch.chdir(home)
    bars = pd.read_parquet(home / "delivered" / "0.parquet").assign(vwap=lambda b: b["close"])
    exec(compile(block, "document", "exec"), {"bars": bars})


@pytest.mark.parametrize("block", blocks("r"))
def test_r_of_the_documents_runs(block):
    pytest.skip("NOT RUN: a block of docs/reading.md is in R")


@pytest.mark.parametrize("page", ["docs/features.md", "docs/learning.md"])
def test_commands_of_the_documents_run_in_a_home(page, used: SmallHome):
    ids = [model.model_id for model in used.workspace.meta.models("ret_5d")]
    instead = STAND_INS | {"3f9a": ids[0], "77b0": ids[1]}
    lines = [line for block in blocks_of(ROOT / page, "sh") for line in typed(block)]
    assert len(lines) >= 2
    for line in lines:
        for old, new in instead.items():
            line = line.replace(old, new)
        succeed(used.root, *shlex.split(line)[1:])


@pytest.mark.parametrize("block", blocks("toml"))
def test_settings_of_the_documents_are_valid(block, home):
    made = home()
    module = next(b for b in blocks_of(ROOT / "docs/features.md", "python") if "FEATURES" in b)
    (made.root / "my_features.py").write_text(module)
    usual = (made.root / "quant.toml").read_text().replace("[features]\nexclude = []\n", "")
    head = "" if "[features]" in block else "[features]\n"
    assert "min_sessions = 1\n\n[folds]" in usual  # what was the rest of [features]
    text = usual.replace("min_sessions = 1\n\n[folds]", f"{head}{block}\n[folds]", 1)
    (made.root / "quant.toml").write_text(text)
    settings = made.workspace.settings
    for name, section in tomllib.loads(block).items():
        if name == "tasks":
            assert settings.task(section[0]["task_id"]).kind == section[0]["kind"]
        else:
            found = getattr(settings, name).model_dump(mode="json")
            assert section.items() <= {k: v for k, v in found.items()}.items()


def test_the_korean_readme_has_what_the_english_one_has():
    english, korean = ROOT / "README.md", ROOT / "README.ko.md"
    assert [typed(b) for b in blocks_of(korean, "sh", "console")] == [
        typed(b) for b in blocks_of(english, "sh", "console")
    ]
    assert blocks_of(korean, "text", "python") == blocks_of(english, "text", "python")
    sections = [re.findall(r"^## ", page.read_text(), re.MULTILINE) for page in (english, korean)]
    assert len(sections[1]) == len(sections[0])
    rows = [re.findall(r"^\| (`quant .*?) \| ", page.read_text(), re.MULTILINE)
            for page in (english, korean)]  # fmt: skip
    assert rows[1] == rows[0]
    assert len(rows[0]) > 8
    links = [set(re.findall(r"\]\(([^)]*)\)", p.read_text())) for p in (english, korean)]
    assert links[1] - {"README.md"} >= links[0] - {"README.ko.md"}


def test_what_is_not_run_is_said_aloud():
    reports = [SimpleNamespace(longrepr=("f.py", 1, f"Skipped: {reason}")) for reason in
               ("NO BROWSER TEST: there is no chromium", "NO BROWSER TEST: there is no chromium",
                "needs a terminal", "NOT RUN: R")]  # fmt: skip
    assert loud_skips(reports) == [
        "NO BROWSER TEST: there is no chromium (2 skipped)",
        "NOT RUN: R (1 skipped)",
    ]
