"""What programs rely on: words of the help, exit codes, keys of JSON, CSV, quiet, completion.

QUANT_PIN=1 writes what is pinned anew: look at the difference before it is committed.
"""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from quant_pipeline.faces import output
from quant_pipeline.faces.cli import app
from quant_pipeline_tests.homes import SmallHome, own_environment
from quant_pipeline_tests.test_cli import call

PINNED = Path(__file__).parent / "pinned.json"
QUANT = str(Path(sys.executable).with_name("quant"))
# Commands that only read, and print JSON of a home as it is.
READS = {
    "predictions": ["predictions", "--top", "2"],
    "predictions report": ["predictions", "report", "--task", "up_5d"],
    "predictions explain": ["predictions", "explain", "--symbol", "S004", "--ts", "2016-07-15"],
    "models list": ["models", "list"],
    "models champions": ["models", "champions"],
    "prices history": ["prices", "history", "--symbol", "S004", "--ts", "2016-07-15"],
    "prices restated": ["prices", "restated"],
    "features list": ["features", "list"],
    "features show": ["features", "show", "KMID", "--symbol", "S004"],
    "status": ["status"],
    "trials": ["trials"],
    "doctor": ["doctor"],
    "report": ["report", "--task", "up_5d", "-o", "report.html"],
}
ROWS = ("predictions", "models list", "prices history", "features list")


@pytest.fixture(scope="module")
def home(finished: SmallHome, tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("programs")
    with own_environment(folder):
        yield finished.copy(folder / "home").root


def commands() -> Iterator[tuple[str, Any]]:
    for name, command in sorted(get_command(app).commands.items()):  # type: ignore[attr-defined]
        yield name, command
        for inner, sub in sorted(getattr(command, "commands", {}).items()):
            yield f"{name} {inner}", sub


def words_of(command: Any) -> list[str]:
    """Options with all their names, arguments by theirs."""
    return sorted("/".join([*p.opts, *p.secondary_opts]) for p in command.params)


def keys_of(value: Any) -> Any:
    """The keys of JSON, of a list those of all its rows; values are left out."""
    if isinstance(value, list):
        merged: dict[str, Any] = {}
        for row in value:
            if isinstance(row, dict):
                merged |= row
        return [keys_of(merged)] if merged else []
    if not isinstance(value, dict):
        return "value"
    if set(value) & {"by_reason"} or any(key[:4].isdigit() for key in value):
        return "by name"
    return {name: keys_of(inner) for name, inner in sorted(value.items())}


def pinned(what: str, found: Any) -> Any:
    """What is pinned of something; with QUANT_PIN=1 it becomes what was found."""
    kept = json.loads(PINNED.read_text()) if PINNED.exists() else {}
    if os.environ.get("QUANT_PIN"):
        kept[what] = found
        PINNED.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    return kept[what]


def test_commands_and_their_options_are_as_they_were():
    found = {name: words_of(command) for name, command in commands()}
    assert found == pinned("options", found)


def test_keys_of_json_are_as_they_were(home):
    found = {name: keys_of(call(home, *words, "--json").json) for name, words in READS.items()}
    assert found == pinned("keys", found)


@pytest.mark.parametrize("name", ROWS)
def test_csv_has_the_rows_of_json(home, name):
    rows = call(home, *READS[name], "--json").json
    found = list(csv.DictReader(io.StringIO(call(home, *READS[name], "--csv").out)))
    assert isinstance(rows, list)
    assert len(found) == len(rows) > 0
    for mine, row in zip(found, rows, strict=True):
        for key, value in row.items():
            if isinstance(value, float):
                assert float(mine[key]) == value
            elif isinstance(value, str | int) and not isinstance(value, bool):
                assert mine[key] == str(value)
            elif value is None:
                assert mine[key] == ""


@pytest.mark.parametrize(
    ("words", "code"),
    [(["status"], 0), (["predictions", "--task", "up_5"], 1), (["predictions", "--ts", "x"], 2),
     (["no-such-command"], 2), (["models", "show", "zz"], 1), (["train", "--nothing"], 2)],
)  # fmt: skip
def test_exit_codes_tell_fine_mendable_and_wrong_usage(home, words, code):
    assert call(home, *words).code == code


def test_a_mistyped_name_gets_a_suggestion(home):
    assert "Did you mean up_5d?" in call(home, "predictions", "--task", "up5d").err
    assert "Did you mean S0" in call(home, "predictions", "--symbol", "SO04").err
    assert "predictions" in call(home, "predictons").err


def test_quiet_tells_no_progress_wherever_it_stands(home, tmp_path):
    words = ["backfill", "--from", "2016-07-01", "--to", "2016-07-31"]
    loud = call(home, *words)
    assert loud.code == 0
    for silent in (["--quiet", *words], [*words, "--quiet"]):
        answer = call(home, *silent)
        assert (answer.code, answer.out) == (0, loud.out)
        assert " s] " not in answer.err


def test_progress_tells_how_long_the_rest_may_take(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 31.0, 61.0])
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))
    tell = output._plain_progress()
    for done in range(3):
        tell("model", done, 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[    1 s] model (1 of 4)"
    assert lines[1] == "[   31 s] model (2 of 4), about 90 s left"
    assert lines[2] == "[   61 s] model (3 of 4), about 60 s left"


def test_the_shell_completes_commands_and_tasks(home):
    def completed(*words: str) -> set[str]:
        environment = {
            **os.environ, "QUANT_HOME": str(home), "_QUANT_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["quant", *words]), "COMP_CWORD": str(len(words)),
        }  # fmt: skip
        found = subprocess.run([QUANT], env=environment, capture_output=True, text=True, timeout=60)
        return set(found.stdout.split())

    assert {"predictions", "prices"} <= completed("pr")
    assert completed("train", "--task", "u") == {"up_5d"}
