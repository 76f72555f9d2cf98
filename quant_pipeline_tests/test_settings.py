"""Rules of settings: quant.toml, overruled by variables; what is wrong is named by its key."""

import os
import re
import tomllib
from collections.abc import Iterator
from datetime import date
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from quant_pipeline.errors import SettingsError
from quant_pipeline.settings import (
    Home,
    Section,
    Settings,
    Task,
    TrainSettings,
    UniverseSettings,
    digest,
    load_settings,
)

TEMPLATE = files("quant_pipeline") / "templates" / "quant.toml"
SECTIONS = {n: f.annotation for n, f in Settings.model_fields.items() if n != "tasks"}


@pytest.fixture(autouse=True)
def _no_variables_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("QUANT_"):
            monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def load(home: Home, text: str) -> Settings:
    home.settings_file.write_text(text)
    return load_settings(home)


def every_key() -> Iterator[tuple[str, str]]:
    for section, kind in SECTIONS.items():
        assert kind is not None
        yield from ((section, key) for key in kind.model_fields)


# --- where values come from


def test_without_a_file_the_shipped_defaults_count(home: Home) -> None:
    settings = load_settings(home)
    assert settings.model_dump() == Settings().model_dump()
    assert list(home.root.iterdir()) == []


def test_a_variable_beats_the_file_and_the_file_beats_the_default(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "[train]\nseed = 1\nthreads = 4\n"
    monkeypatch.setenv("QUANT_TRAIN__SEED", "2")
    train = load(home, text).train
    assert (train.seed, train.threads, train.max_rounds) == (2, 4, TrainSettings().max_rounds)
    monkeypatch.delenv("QUANT_TRAIN__SEED")
    assert load(home, text).train.seed == 1


def test_a_whole_section_or_the_tasks_may_come_from_one_variable(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANT_TRAIN", '{"seed": 3}')
    monkeypatch.setenv("QUANT_TASKS", '[{"task_id": "a", "kind": "regression", "horizon": 2}]')
    monkeypatch.setenv("quant_grid__cadence", "weekly")
    settings = load(home, "[train]\nthreads = 4\n")
    assert (settings.train.seed, settings.train.threads) == (3, 4)
    assert [t.task_id for t in settings.tasks] == ["a"]
    assert settings.grid.cadence == "weekly"


def test_two_homes_are_read_apart(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        load(Home(tmp_path / name), f"[train]\nseed = {seed}\n")
    assert [load_settings(Home(tmp_path / n)).train.seed for n in "ab"] == [1, 2]


def test_the_home_is_the_named_folder_or_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Home.from_environment() == Home(tmp_path.resolve())
    for name, root in (("", tmp_path), ("sub/..", tmp_path), (str(tmp_path / "x"), tmp_path / "x")):
        monkeypatch.setenv("QUANT_HOME", name)
        assert Home.from_environment().root == root.resolve()


def test_everything_of_a_home_lies_in_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    places = [n for n, v in vars(Home).items() if isinstance(v, property)]
    assert {getattr(home, n).relative_to(tmp_path).parts[0] for n in places} == {
        "quant.toml",
        "data",
        "models",
    }


# --- what is refused


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[train]\nsede = 1\n", r"train\.sede: unknown key \(got 1\)"),
        ("[trian]\nseed = 1\n", r"trian: unknown key"),
        ("seed = 1\n", r"seed: unknown key"),
        ('[grid]\ntimezone = "Mars"\n', r"grid\.timezone: .*no time zone Mars; names look like"),
        ('[grid]\ncadence = "yearly"\n', r"grid\.cadence: .*'monthly', 'weekly' or 'daily'"),
        ("[train]\nseed = 1.5\n", r"train\.seed: "),
        ("[train]\nseed = -1\n", r"train\.seed: .*\(got -1\)"),
        ("[train]\nlearning_rate = nan\n", r"train\.learning_rate: .*finite"),
        ("[train]\nlambda_l2 = inf\n", r"train\.lambda_l2: .*finite"),
        ("[ingest]\ntolerance = 0\n", r"ingest\.tolerance: "),
        ("tasks = []\n", r"tasks: .*at least one task"),
        ("train = 5\n", r"train: "),
        (
            '[[tasks]]\ntask_id = "a b"\nkind = "regression"\nhorizon = 5\n',
            r"tasks\.0\.task_id: ",
        ),
        ('[[tasks]]\ntask_id = "a"\nkind = "regression"\n', r"tasks\.0\.horizon: Field required"),
        (
            '[[tasks]]\ntask_id = "a"\nkind = "regression"\nhorizon = 5\nthreshold = nan\n',
            r"tasks\.0\.threshold: .*finite",
        ),
        (
            '[[tasks]]\ntask_id = "a"\nkind = "regression"\nhorizon = 5\nthreshold = 0.1\n',
            r"tasks\.0: .*threshold is for classification; a is a regression",
        ),
        (
            '[[tasks]]\ntask_id = "a"\nkind = "ranking"\nhorizon = 5\nnormalize = "rank"\n',
            r"tasks\.0: .*normalize is for regression; a is a ranking",
        ),
        ("[folds]\nn_groups = 4\nn_test_groups = 3\n", r"folds: .*n_test_groups is 3 of n_groups"),
        (
            '[[tasks]]\ntask_id = "a"\nkind = "regression"\nhorizon = 5\n' * 2,
            r"tasks: .*each task_id once, has \['a', 'a'\]",
        ),
    ],
)
def test_what_cannot_be_used_is_named_by_its_key(home: Home, text: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why) as error:
        load(home, text)
    assert str(error.value).startswith("quant.toml (or a QUANT_* variable) has settings that")
    assert str(error.value).endswith("explained in the quant.toml that `quant init` writes.")


def test_all_that_is_wrong_is_told_at_once(home: Home) -> None:
    with pytest.raises(SettingsError, match=r"(?s)grid\.a.*train\.b"):
        load(home, "[grid]\na = 1\n[train]\nb = 1\n")


@pytest.mark.parametrize("content", [b"[train\n", b"seed\n", b"a = '\xff'\n", b"[a]\n[a]\n"])
def test_a_file_that_is_no_toml_is_named(home: Home, content: bytes) -> None:
    home.settings_file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"^quant\.toml is not valid TOML: "):
        load_settings(home)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("QUANT_TRAIN__SEED", "x", r"train\.seed: .*\(got 'x'\)"),
        ("QUANT_TRAIN__SEDE", "1", r"train\.sede: unknown key"),
        ("QUANT_TRIAN__SEED", "1", r"QUANT_TRIAN__SEED sets nothing\. .*Did you mean train\?"),
        ("QUANT_TASKS", "[", r"^A QUANT_\* variable cannot be used: .*tasks"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(
    home: Home, monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=why):
        load_settings(home)


def test_variables_that_are_no_settings_do_not_matter(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("QUANT_HOME", "QUANT_COMPUTE_LOGS", "QUANTITY__A", "OTHER__SEED"):
        monkeypatch.setenv(name, "1")
    assert load_settings(home).model_dump() == Settings().model_dump()


# --- frozen, findable, identified


def test_settings_are_frozen() -> None:
    settings = Settings()
    for owner, name in ((settings, "train"), (settings.train, "seed"), (settings.tasks[0], "kind")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(owner, name, getattr(owner, name))
    assert isinstance(settings.tasks, tuple)
    for kind in [*SECTIONS.values(), Task]:
        assert isinstance(kind, type)
        assert issubclass(kind, Section)


def test_a_task_is_found_by_its_id() -> None:
    settings = Settings()
    for task in settings.tasks:
        assert settings.task(task.task_id) is task
        assert task.label_span == task.entry_lag + task.horizon
    with pytest.raises(SettingsError, match=r"No task up_5\. Did you mean up_5d\? Known: ret_5d, "):
        settings.task("up_5")


def changed(one: Section, key: str) -> Section:
    """The same settings but for one key, validated."""
    value = getattr(one, key)
    return type(one)(**one.model_dump() | {key: not value if isinstance(value, bool) else 99})


def test_a_digest_changes_with_each_setting_and_with_nothing_else() -> None:
    one = UniverseSettings()
    assert digest(one, "a", 1) == digest(UniverseSettings(), "a", 1)
    others = [(changed(one, key), "a", 1) for key in UniverseSettings.model_fields]
    assert {type(v) for v in one.model_dump().values()} == {bool, int, float}
    found = {digest(*parts) for parts in [*others, (one, "b", 1), (one, "a", 2), ("a", one, 1)]}
    assert len(found) == len(others) + 3
    assert digest(one, "a", 1) not in found
    assert re.fullmatch(r"[0-9a-f]{16}", digest(one))


# --- the quant.toml that `quant init` writes


@pytest.fixture(scope="module")
def template() -> str:
    if not TEMPLATE.is_file():
        pytest.skip(f"{TEMPLATE} is missing: the shipped quant.toml was NOT tested")
    return TEMPLATE.read_text()


@pytest.mark.parametrize(("section", "key"), list(every_key()))
def test_the_template_holds_each_setting_with_its_default(
    template: str, section: str, key: str
) -> None:
    found = tomllib.loads(template)[section][key]
    default = getattr(getattr(Settings(), section), key)
    assert (tuple(found) if isinstance(found, list) else found) == default
    assert type(found) is type(default) or isinstance(default, tuple | date)


def test_the_template_holds_the_default_tasks_with_every_key(template: str) -> None:
    tasks = tomllib.loads(template)["tasks"]
    assert [Task(**task) for task in tasks] == list(Settings().tasks)
    assert {key for task in tasks for key in task} | {"grades"} == set(Task.model_fields)
    assert "grades = 5" in template
    for task in tasks:  # in the order in which they are documented
        assert list(task) == [key for key in Task.model_fields if key in task]


def test_the_template_holds_nothing_else_and_loads(template: str, home: Home) -> None:
    found = tomllib.loads(template)
    assert set(found) == set(Settings.model_fields)
    kinds: dict[str, Any] = SECTIONS
    for section, kind in kinds.items():
        assert issubclass(kind, BaseModel)
        assert list(found[section]) == list(kind.model_fields)
    assert load(home, template).model_dump() == Settings().model_dump()


def test_each_key_of_the_template_has_a_comment_beside_or_above_it(template: str) -> None:
    for above, line in pairwise(template.splitlines()):
        if re.match(r"\w+ *=", line):
            assert "#" in line or above.startswith("#"), f"no comment: {line}"
