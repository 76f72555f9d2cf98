"""The command line as a person meets it: one home, made and used by commands alone."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
import typer
from typer.main import get_command

from quant_pipeline.faces.cli import app, main
from quant_pipeline.faces.output import parse_day, print_table
from quant_pipeline.market.synthetic import make_market
from quant_pipeline.stores.sources import LIMITS

README = Path(__file__).parent.parent / "README.md"
SETTINGS = """
[grid]
start = 2015-01-01
timezone = "America/New_York"
[universe]
min_sessions = 20
[folds]
n_folds = 2
min_train_sessions = 120
stop_sessions = 30
test_sessions = 30
[train]
window_sessions = 300
min_rows = 500
max_rounds = 10
min_data_in_leaf = 50
threads = 1
"""


@dataclass(frozen=True)
class Answer:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        return json.loads(self.out)


def call(home: Path, *words: str) -> Answer:
    """Run `quant` as its console script does, in this process: Dagster is imported only once."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        patch.dict(os.environ, {"QUANT_HOME": str(home)}),
        patch.object(sys, "argv", ["quant", *words]),
        contextlib.chdir(home),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    if isinstance(code, str):  # what Python itself prints for sys.exit("text")
        err.write(f"{code}\n")
        code = 1
    assert isinstance(code, int | None)
    return Answer(code or 0, out.getvalue(), err.getvalue())


def succeed(home: Path, *words: str) -> Answer:
    answer = call(home, *words)
    assert answer.code == 0, answer.err
    return answer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with 420 sessions ingested and three months of 2016 walked forward."""
    folder = tmp_path_factory.mktemp("home")
    succeed(folder, "init")
    (folder / "quant.toml").write_text(SETTINGS)
    market = make_market(n_symbols=22, n_sessions=460)
    (folder / "prices").mkdir()
    market.rename(columns={"close": "px_last"}).to_csv(folder / "prices" / "all.csv", index=False)
    succeed(folder, "ingest", "prices", "--column", "close=px_last")
    succeed(folder, "backfill", "--from", "2016-06-01", "--to", "2016-08-31", "--task", "up_5d")
    return folder


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """A home of one's own to change: homes may be moved."""
    return Path(shutil.copytree(home, tmp_path / "copy"))


def commands() -> Iterator[tuple[tuple[str, ...], str]]:
    """Every command's words and help text."""
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        for inner, sub in getattr(command, "commands", {}).items():
            yield (name, inner), sub.help or ""
        if not hasattr(command, "commands"):
            yield (name,), command.help or ""


def test_every_command_is_documented_with_an_example_and_stands_in_the_readme() -> None:
    readme = README.read_text()
    for words, text in commands():
        assert f"Example: quant {' '.join(words)}" in text
        assert f"`quant {' '.join(words)}" in readme


def test_init_keeps_what_is_there(tmp_path: Path) -> None:
    assert "Made" in succeed(tmp_path, "init").out
    (tmp_path / "quant.toml").write_text("[train]\nseed = 5\n")
    assert "Kept" in succeed(tmp_path, "init").out
    assert "seed = 5" in (tmp_path / "quant.toml").read_text()


def test_a_command_outside_a_home_says_how_to_make_one(tmp_path: Path) -> None:
    answer = call(tmp_path, "status")
    assert answer.code == 1
    assert "quant init" in answer.err
    assert "Traceback" not in answer.err
    assert list(tmp_path.iterdir()) == []


def test_status_tells_what_is_there_and_what_to_type(home: Path) -> None:
    text = succeed(home, "status").out
    assert "22 symbols on 460 sessions" in text
    assert "from 1 batch." in text
    assert re.search(r"The newest session, 2016-\d\d-\d\d, is \d+ years old\.", text)
    found = succeed(home, "status", "--json").json
    assert isinstance(found, dict)
    assert set(found) == {
        "home", "prices", "windows", "late", "stale", "models_that_knew_less", "tasks", "next",
    }  # fmt: skip
    assert found["prices"]["sessions"] == 460
    by_task = {row["task"]: row for row in found["tasks"]}
    assert by_task["up_5d"]["models"] > 0
    assert by_task["ret_5d"]["models"] == 0


def test_the_help_of_ingest_states_its_limits() -> None:
    (text,) = (text for words, text in commands() if words == ("ingest",))
    assert LIMITS in " ".join(text.split())


def test_a_corrected_bar_is_listed_with_its_history_and_its_reach(copy: Path) -> None:
    bars = pd.read_csv(copy / "prices" / "all.csv")
    one = bars[(bars["symbol"] == "S001") & (bars["ts"] == "2016-05-17")].copy()
    for name in ("open", "high", "low", "px_last", "adj_close"):
        one[name] *= 1.05
    one.to_csv(copy / "corrected.csv", index=False)
    answer = succeed(copy, "ingest", "corrected.csv", "--column", "close=px_last")
    assert "1 restated" in answer.out
    assert "restated: S001 2016-05-17 close" in answer.out
    found = succeed(copy, "prices", "restated", "--reach", "--json").json
    assert isinstance(found, dict)
    assert [(r["symbol"], r["ts"], r["change"]) for r in found["restated"]] == [
        ("S001", "2016-05-17", "restated")
    ]
    late = {m["asof"] for m in found["models"]}
    assert late == {"2016-05-31", "2016-06-30", "2016-07-31", "2016-08-31"}
    assert found["scores"]
    text = succeed(copy, "prices", "restated", "--reach").out
    assert "as of 2016-06-30 was trained on batch 1; 2016-05-17 changed in batch 2" in text
    history = succeed(copy, "prices", "history", "--symbol", "s001", "--ts", "2016-05-17", "--json")
    assert [(r["batch_id"], r["change"], r["superseded_by"]) for r in history.json] == [  # type: ignore[attr-defined]
        (1, "new", 2),
        (2, "restated", None),
    ]
    assert "Stale: " in succeed(copy, "status").out
    nothing = call(copy, "prices", "history", "--symbol", "S001", "--ts", "2016-05-15")
    assert nothing.code == 1
    assert "No version of S001 on 2016-05-15" in nothing.err


def test_lists_of_members_and_renames_are_ingested_as_such(copy: Path) -> None:
    (copy / "members.csv").write_text("symbol,start,end\nS001,2015-01-01,\nS002,2016-01-01,\n")
    answer = succeed(copy, "ingest", "members.csv", "--as", "memberships")
    assert "Read 2 memberships: 2 of them new." in answer.out
    (copy / "renames.csv").write_text("old,new,from,to\nS001,FIRST,,\n")
    answer = succeed(copy, "ingest", "renames.csv", "--as", "renames")
    assert "bars that moved to their permanent id: " in answer.out
    assert call(copy, "prices", "history", "--symbol", "FIRST", "--ts", "2016-05-17").code == 0
    assert call(copy, "ingest", "renames.csv", "--as", "rename").code == 2
    assert "takes one file" in call(copy, "ingest", ".", "--as", "renames").err


def test_prices_daily_ingests_the_sources_that_quant_toml_names(copy: Path) -> None:
    """Materializing it, as in the web UI, is an ingest of the configured files."""
    settings = (copy / "quant.toml").read_text()
    source = '[ingest]\nsources = ["more"]\ncolumns = { close = "px_last" }\n'
    (copy / "quant.toml").write_text(source + settings)
    (copy / "more").mkdir()
    bars = make_market(n_symbols=22, n_sessions=461).rename(columns={"close": "px_last"})
    newest = bars["ts"].max()
    bars[bars["ts"] >= newest - pd.Timedelta(days=5)].to_csv(copy / "more" / "new.csv", index=False)
    day = newest.date().isoformat()
    succeed(copy, "backfill", "--from", day[:8] + "01", "--to", day, "--select", "prices_daily")
    found = succeed(copy, "status", "--json").json
    assert found["prices"]["last_session"] == day  # type: ignore[index, call-overload]


def test_ingesting_again_changes_nothing(copy: Path) -> None:
    answer = succeed(copy, "ingest", "prices", "--column", "close=px_last", "--json").json
    assert isinstance(answer, dict)
    assert answer["batch_id"] is None
    assert answer["n_new"] == answer["n_restated"] == 0
    assert answer["n_read"] == answer["n_unchanged"] + sum(answer["n_rejected"].values())


def test_a_file_that_is_no_table_is_named_and_the_rest_is_read(copy: Path) -> None:
    (copy / "prices" / "bad.csv").write_text('{"error": "rate limit"}')
    answer = call(copy, "ingest", "prices", "--column", "close=px_last")
    assert answer.code == 1
    assert "bad.csv" in answer.err
    assert "Read " in answer.out


def test_predictions_are_of_the_newest_session_best_first(home: Path) -> None:
    rows = succeed(home, "predictions", "--json").json
    assert isinstance(rows, list)
    assert list(rows[0])[:6] == ["symbol", "ts", "model_id", "task_id", "score", "generated_at"]
    assert {row["ts"] for row in rows} == {"2016-08-31"}
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert all(row["asof"] < row["ts"] for row in rows)
    assert len(succeed(home, "predictions", "--top", "3").out.splitlines()) == 4


def test_predictions_can_be_chosen_by_symbol_and_date(home: Path) -> None:
    rows = succeed(
        home, "predictions", "--symbol", "s001", "--from", "2016-08-01", "--to", "2016-08-05",
        "--json",
    ).json  # fmt: skip
    assert isinstance(rows, list)
    assert {row["symbol"] for row in rows} == {"S001"}
    assert all("2016-08-01" <= row["ts"] <= "2016-08-05" for row in rows)


def test_a_unique_beginning_of_an_id_is_enough(home: Path) -> None:
    models = succeed(home, "models", "list", "--json").json
    assert isinstance(models, list)
    assert len(models) == 4  # as of the ends of May to August
    found = succeed(home, "models", "show", models[0]["model_id"][:10], "--json").json
    assert isinstance(found, dict)
    assert found["model_id"] == models[0]["model_id"]
    assert {"parameters", "metrics", "fold_metrics", "features", "data_fingerprint"} <= set(found)
    for name in ("accuracy", "accuracy_base", "precision", "auc", "ic", "rank_ic", "rank_ic_se"):
        assert name in found["metrics"]
    assert "Folds, and RankIC" in succeed(home, "models", "show", models[0]["model_id"]).out
    assert "quant models list" in call(home, "models", "show", "zzz").err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("train", "--task", "up_5"), 1, "Did you mean up_5d?"),
        (("predictions", "--task", "up5d"), 1, "Did you mean up_5d?"),
        (("fetch", "psi"), 1, "Did you mean pse?"),
        (("train", "--asof", "2015-03-31"), 1, "sessions"),
        (("train", "--asof", "31.12.2015"), 2, "write it as"),
        (("backfill", "--from", "2016-01-01"), 2, "--to"),
        (("backfill", "--from", "2030-01-01", "--to", "2030-02-01"), 1, "prices run from"),
        (("ingest", "nowhere"), 1, "nowhere"),
        (("ingest", "prices", "--column", "close"), 2, "close=px_last"),
        (("score", "--asof", "2016-08-01", "--from", "2016-08-01"), 2, "not both"),
        (("score", "--from", "2029-01-01"), 1, "No session is stored"),
        (("nonsense",), 2, "No such command"),
    ],
)
def test_errors_say_what_is_wrong_and_what_to_do(
    home: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    answer = call(home, *words)
    assert answer.code == code
    assert message in answer.err
    assert "Traceback" not in answer.err
    assert answer.out == ""


def test_backfill_tells_beforehand_and_then_goes_on_where_it_was(copy: Path) -> None:
    words = ("backfill", "--from", "2016-08-01", "--to", "2016-09-30", "--task", "up_5d")
    plan = succeed(copy, *words, "--dry-run", "--json").json
    assert isinstance(plan, dict)
    assert plan["models"] == ["2016-09"]
    assert plan["scores"] == ["2016-09"]
    assert (plan["estimate"]["runs"], plan["estimate"]["partitions"]) == (2, 1)
    assert plan["estimate"]["minutes"] >= 0
    assert plan["estimate"]["mib"] > 0
    assert "About 2 runs over 1 partition, " in succeed(copy, *words, "--dry-run").out
    assert succeed(copy, *words, "--dry-run", "--json").json == plan
    assert "models of 1 as-of, " in succeed(copy, *words).out
    assert "Nothing to do" in succeed(copy, *words).out


def test_score_closes_the_windows_before_and_takes_each_partitions_champion(copy: Path) -> None:
    rows = succeed(copy, "score", "--asof", "2016-08-31", "--task", "up_5d", "--json").json
    assert isinstance(rows, list)
    assert rows[0]["sessions"] > 20
    scores = succeed(copy, "predictions", "--from", "2016-09-01", "--task", "up_5d", "--json").json
    assert isinstance(scores, list)
    asofs = {(row["ts"][:7], row["asof"]) for row in scores}
    expected = {("2016-09", "2016-08-31"), ("2016-10", "2016-09-30")}
    assert expected & asofs == {e for e in expected if e[0] in {a[0] for a in asofs}}
    assert len(asofs) == len({month for month, _ in asofs})


def test_a_model_named_by_hand_scores_apart_and_only_after_its_asof(copy: Path) -> None:
    models = succeed(copy, "models", "list", "--json").json
    assert isinstance(models, list)
    oldest = models[0]["model_id"]
    before = succeed(copy, "predictions", "--from", "2016-01-01", "--json").json
    rows = succeed(copy, "score", "--model", oldest[:12], "--json").json
    assert isinstance(rows, list)
    assert rows[0]["stored in"] == "predictions_shadow"
    assert succeed(copy, "predictions", "--from", "2016-01-01", "--json").json == before
    answer = call(copy, "score", "--model", oldest[:12], "--from", "2016-05-02")
    assert answer.code == 1
    assert "may have seen" in answer.err


def test_commands_that_only_read_import_no_dagster_nor_anything_slow(home: Path) -> None:
    script = (
        "import sys; from quant_pipeline.faces import cli\n"
        "assert not {'pyarrow', 'numpy', 'pydantic'} & set(sys.modules), 'the help is slow'\n"
        "cli.app(['predictions', '--task', 'up_5d', '--json'], standalone_mode=False)\n"
        "assert not {'pandas', 'duckdb', 'sqlmodel'} & set(sys.modules), 'predictions are slow'\n"
        "for words in (['predictions'], ['models', 'list']):\n"
        "    cli.app(words, standalone_mode=False)\n"
        "loaded = {'dagster', 'numba', 'lightgbm'} & set(sys.modules)\n"
        "cli.app(['status'], standalone_mode=False)\n"
        "sys.exit(str(loaded or {'dagster'} & set(sys.modules) or ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "QUANT_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr.strip() == "", done.stderr


def readme_commands() -> list[str]:
    """Lines of the README's sh blocks that are `quant` commands."""
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("quant ")]


def test_the_readmes_commands_run_as_they_stand(tmp_path: Path, home: Path) -> None:
    lines = readme_commands()
    own = lines[lines.index("quant init") :]
    assert len(own) >= 6
    for line in own:
        succeed(tmp_path, *line.split()[1:])
        if line == "quant init":
            (tmp_path / "quant.toml").write_text(SETTINGS)
            shutil.copytree(home / "prices", tmp_path / "prices", ignore=_ignore_bad)
    for line in lines[: lines.index("quant init")]:
        if line != "quant ui":  # test_server.py has it
            succeed(tmp_path, *line.split()[1:])


def _ignore_bad(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("bad")]


def test_the_demo_refuses_a_home_with_other_prices(home: Path) -> None:
    answer = call(home, "demo")
    assert answer.code == 1
    assert "QUANT_HOME" in answer.err


def test_dates_are_read_as_people_write_them() -> None:
    assert parse_day("2021-12-15") == date(2021, 12, 15)
    with pytest.raises(typer.BadParameter):
        parse_day("15.12.2021")


def test_missing_numbers_are_a_dash_never_zero(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"a": 1, "b": None}, {"a": 22222, "b": float("nan")}, {"a": 3, "b": 0.5}])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["     a       b", "     1       –", "22,222       –", "     3  0.5000"]
