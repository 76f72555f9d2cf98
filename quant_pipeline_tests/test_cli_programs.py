"""What programs rely on: words of the help, exit codes, keys of JSON, CSV, quiet, completion.

With QUANT_PIN=1 this file's tests write anew what is pinned, pinned.json and help.txt: look at the
difference before it is committed.
"""

import contextlib
import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from quant_pipeline.faces import output
from quant_pipeline.faces.cli import app
from quant_pipeline_tests.homes import SmallHome, own_environment
from quant_pipeline_tests.test_cli import Answer, call

PINNED = Path(__file__).parent / "pinned.json"
HELP = PINNED.with_name("help.txt")
QUANT = str(Path(sys.executable).with_name("quant"))
# Commands that only read, and print JSON of a home as it is. OLD and NEW are models.
READS = {
    "predictions": "--top 2",
    "predictions report": "--task up_5d",
    "predictions explain": "--symbol S004 --ts 2016-07-15",
    "models list": "",
    "models champions": "",
    "models show": "NEW",
    "models explain": "NEW",
    "models compare": "OLD OTHER",
    "prices history": "--symbol S004 --ts 2016-07-15",
    "prices restated": "--reach",
    "features list": "",
    "features show": "KMID --symbol S004",
    "status": "",
    "trials": "",
    "doctor": "",
    "reconcile": "--dry-run",
    "report": "--task up_5d -o report.html",
    "backfill": "--from 2016-07-01 --to 2016-07-31 --dry-run",
    "audit": "--asof 2016-04-30 --task up_5d",
    "verify": "--ts 2016-07-15 --task up_5d --symbol S004",
    "diff": "--ts 2016-07-15 --task up_5d --symbol S004",
}
# Commands that change a home, in an order in which they can follow each other.
CHANGES = {
    "ingest": "corrected.parquet",
    "prices restated": "--reach",
    "train": "--asof 2016-04-30 --task up_5d",
    "backfill": "--from 2016-05-01 --to 2016-05-31",
    "score": "--task up_5d",
    "score --model": "OLD",
    "tune": "--task up_5d --asof 2016-06-30 --trials 1",
    "run daily": "",
    "run retrain": "",
    "run housekeeping": "",
    "models hold": "--task up_5d --reason why",
    "models release": "--task up_5d --reason why",
    "models promote": "OLD --reason why",
    "models rollback": "--task up_5d --reason why",
    "models retire": "NEW --reason why",
    "models prune": "--keep 1",
    "models export": "OLD exported",
    "init": "other",
    "models import": "../exported/OLD.joblib",  # into the other home
    "backup": "copied",
    "restore": "copied again",
    "upgrade": "",
}
# These download or take minutes, and have tests of their own.
ELSEWHERE = {"fetch", "demo", "run proofs"}
# Servers print no data.
NO_JSON = {"ui", "web"}
NAMED = (
    "numbers",
    "rejected",
    "n_rejected",
    "examples",
    "left_out",
    "environment",
    "changes",
    "impossible",
    "refused",
)
ROWS = (
    "predictions", "models list", "models champions", "models explain", "prices history",
    "features list",
)  # fmt: skip
# Commands whose CSV is a part of their JSON, and some of its columns.
PARTS = {
    "status": ("task", "newest_asof", "scores"),
    "trials": ("task", "recipe", "sharpe"),
    "features show": ("ts", "close", "value"),
    "predictions explain": ("task", "symbol", "feature", "adds"),
    "predictions report": ("task", "origin", "metrics.rank_ic", "portfolio.net_sharpe"),
}


@pytest.fixture(scope="module")
def home(finished: SmallHome, tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("programs")
    with own_environment(folder):
        yield finished.copy(folder / "home").root


@pytest.fixture(scope="module")
def models(finished: SmallHome) -> dict[str, str]:
    """Ids of models by what READS and CHANGES call them."""
    ids = [model.model_id for model in finished.workspace.meta.models("up_5d")]
    return {
        "OLD": ids[0],
        "NEW": ids[-1],
        "OTHER": finished.workspace.meta.models("ret_5d")[-1].model_id,
    }


def ask(home: Path, models: dict[str, str], name: str, options: str, *more: str) -> Answer:
    """What a command of READS or CHANGES answers."""
    text = f"{name} {options}"
    for called, model_id in models.items():
        text = text.replace(called, model_id)
    answer = call(home / "other" if name == "models import" else home, *text.split(), *more)
    assert answer.code == 0, answer.err
    return answer


def commands() -> Iterator[tuple[str, Any]]:
    for name, command in sorted(get_command(app).commands.items()):  # type: ignore[attr-defined]
        yield name, command
        for inner, sub in sorted(getattr(command, "commands", {}).items()):
            yield f"{name} {inner}", sub


def words_of(command: Any) -> list[str]:
    """Options with all their names, arguments by theirs."""
    return sorted("/".join([*p.opts, *p.secondary_opts]) for p in command.params)


def help_of(name: str, command: Any) -> str:
    """What `quant NAME --help` prints on a terminal of a hundred columns."""
    context = command.context_class(command, info_name=name, terminal_width=100)
    return f"{'=' * 100}\n{command.get_help(context)}\n"


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
    if set(value) & {"by_reason", "KMID"} or any(key[:4].isdigit() for key in value):
        return "by name"
    return {
        name: "by name" if name in NAMED else keys_of(inner)
        for name, inner in sorted(value.items())
    }


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


def test_the_whole_help_is_as_it_was():
    groups = {"": get_command(app), **dict(commands())}
    found = "\n".join(help_of(f"quant {name}".strip(), group) for name, group in groups.items())
    if os.environ.get("QUANT_PIN"):
        HELP.write_text(found)
    assert found == HELP.read_text()


def test_every_option_and_argument_says_what_it_is():
    silent = [
        f"quant {name} {p.opts[-1]}"
        for name, command in commands()
        for p in command.params
        if not getattr(p, "help", None)
    ]
    assert not silent


def test_keys_of_json_are_as_they_were(home, models):
    found = {
        name: keys_of(ask(home, models, name, more, "--json").json) for name, more in READS.items()
    }
    assert found == pinned("keys", found)


def test_keys_of_json_of_what_changes_a_home_are_as_they_were(home, models, market, tmp_path):
    changed = SmallHome(home).copy(tmp_path / "changed")
    one = market[(market["symbol"] == "S004") & (market["ts"] == "2016-08-05")].copy()
    one[["open", "high", "low", "close", "adj_close"]] *= 1.05
    one.to_parquet(changed.root / "corrected.parquet", index=False)
    found = {
        name: keys_of(ask(changed.root, models, name, more, "--json").json)
        for name, more in CHANGES.items()
    }
    assert found == pinned("keys of changes", found)


def test_every_command_prints_json_and_its_keys_are_pinned():
    found = {name for name, command in commands() if hasattr(command, "callback")}
    with_json = {name for name, command in commands() if "--json" in words_of(command)}
    groups = {name.split()[0] for name in found if " " in name} - {"predictions"}
    assert found - groups - with_json == NO_JSON
    assert with_json == {name.split(" --")[0] for name in [*READS, *CHANGES]} | ELSEWHERE


@pytest.mark.parametrize("name", PARTS)
def test_csv_has_the_rows_of_commands_that_tell_more(home, models, name):
    text = ask(home, models, name, READS[name], "--csv").out
    rows = list(csv.DictReader(io.StringIO(text)))
    assert set(PARTS[name]) <= set(rows[0])


@pytest.mark.parametrize("name", ROWS)
def test_csv_has_the_rows_of_json(home, models, name):
    rows = ask(home, models, name, READS[name], "--json").json
    text = ask(home, models, name, READS[name], "--csv").out
    found = list(csv.DictReader(io.StringIO(text)))
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
    of_symbol = (
        ["predictions"],
        ["predictions", "explain", "--ts", "2016-07-15"],
        ["prices", "history", "--ts", "2016-07-15"],
        ["prices", "restated"],
        ["features", "show", "KMID"],
    )
    for words in of_symbol:
        answer = call(home, *words, "--symbol", "so04")
        assert (answer.code, answer.out) == (1, ""), words
        assert "SO04. Did you mean S0" in answer.err, words
        assert call(home, *words, "--symbol", " s004").code == 0, words
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


def test_a_swallowed_ctrl_c_ends_the_next_step():
    """As one within a callback that LightGBM calls is."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with output.progress() as tell:
            tell("trial", 0, 2)
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                tell("trial", 1, 2)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_page_ends_quietly_while_it_still_starts(home):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    web = subprocess.Popen(
        [QUANT, "web", "--port", str(port)],
        env={**os.environ, "QUANT_HOME": str(home)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert web.stderr is not None
    said = web.stderr.readline()
    time.sleep(0.7)  # its child is importing
    web.send_signal(signal.SIGINT)
    said += web.communicate(timeout=60)[1]
    assert said.splitlines() == [
        f"The page on http://127.0.0.1:{port} (Ctrl-C stops it). It only reads."
    ]


def test_the_shell_completes_commands_tasks_and_models(home, models):
    def completed(*words: str) -> set[str]:
        environment = {
            **os.environ, "QUANT_HOME": str(home), "_QUANT_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["quant", *words]), "COMP_CWORD": str(len(words)),
        }  # fmt: skip
        found = subprocess.run([QUANT], env=environment, capture_output=True, text=True, timeout=60)
        return set(found.stdout.split())

    assert {"predictions", "prices"} <= completed("pr")
    assert completed("train", "--task", "u") == {"up_5d"}
    assert completed("models", "hold", "--task", "u") == {"up_5d"}
    assert completed("models", "show", models["OLD"][:4]) == {models["OLD"][:12]}
