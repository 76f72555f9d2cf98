"""The command line: thin, lazy, plain; every command says with an example what it does."""

import logging
import signal
import sys
import threading
from datetime import date, timedelta
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from quant_pipeline.errors import QuantError, SettingsError
from quant_pipeline.faces.care import backup, doctor, reconcile, restore, upgrade
from quant_pipeline.faces.champion_commands import models_app
from quant_pipeline.faces.feature_commands import features_app
from quant_pipeline.faces.model_commands import model_row, print_models
from quant_pipeline.faces.options import (
    Csv,
    From,
    Json,
    TaskId,
    To,
    chosen,
    day_option,
    model_ids,
    open_workspace,
)
from quant_pipeline.faces.output import (
    QUIET,
    advise,
    emit,
    print_table,
    printable,
    progress,
    say,
    strange_word,
)
from quant_pipeline.faces.page_commands import report, ui, web
from quant_pipeline.faces.prediction_commands import predictions_app
from quant_pipeline.faces.price_commands import prices_app
from quant_pipeline.faces.proof_commands import audit, diff, verify
from quant_pipeline.faces.run_commands import run_app
from quant_pipeline.faces.trial_commands import trials, tune
from quant_pipeline.stores.failures import explain_any

app = typer.Typer(
    help="Daily prices in, daily out-of-sample stock scores out. Works in QUANT_HOME (default: "
    "the current folder).",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
)


@app.callback()
def everywhere(
    quiet: Annotated[
        bool, typer.Option(QUIET, help="Tell no progress; may stand after any command, too.")
    ] = False,
) -> None:
    """Say what holds for every command; `main` looks after it."""


app.add_typer(models_app, name="models")
app.add_typer(features_app, name="features")
app.add_typer(predictions_app, name="predictions")
app.add_typer(run_app, name="run")
app.add_typer(prices_app, name="prices")


CTRL_C = 130  # how typer ends then


def main() -> None:
    """Run a command; an error that the user can mend is one message and exit code 1."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)
    waiting = logging.StreamHandler()  # on stderr: who is waited for
    logger = logging.getLogger("quant_pipeline")
    logger.addHandler(waiting)
    logger.setLevel(logging.INFO)
    for word in sys.argv[1:]:
        if problem := strange_word(word):
            say(f"Error: {problem}")
            sys.exit(2)
    words = sys.argv[1:]
    try:
        app(args=[w for w in words if w != QUIET], prog_name="quant")
    except QuantError as error:
        sys.exit(f"Error: {printable(str(error))}")
    except SystemExit as end:
        if end.code == CTRL_C:
            say("Stopped. What was finished is kept; the same command goes on from there.")
        raise
    except Exception as error:  # Dagster wraps some errors of ours
        mine = _own_cause(error) or explain_any(error, "this home")
        if mine is None and isinstance(error, OSError) and error.filename:
            mine = f"{str(error.filename)[:200]}: {error.strerror}."
        if mine is None:
            raise
        sys.exit(f"Error: {printable(str(mine))}")


def _end(number: int, _frame: FrameType | None) -> None:
    """End as after an error, so that temporary folders are removed."""
    sys.exit(128 + number)


def _own_cause(error: BaseException) -> QuantError | None:
    cause = error.__cause__ or error.__context__
    while cause is not None:
        if isinstance(cause, QuantError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


@app.command()
def init(
    folder: Annotated[Path | None, typer.Argument(help="The folder; QUANT_HOME if none.")] = None,
    as_json: Json = False,
) -> None:
    """Make a home: quant.toml with every setting explained, data/ and models/.

    Example: quant init ~/research/us
    """
    from quant_pipeline.defs.instance import prepare, template
    from quant_pipeline.settings import Home
    from quant_pipeline.stores.durable import write_durably

    home = Home(folder.resolve()) if folder else Home.from_environment()
    home.data.mkdir(parents=True, exist_ok=True)
    home.models.mkdir(exist_ok=True)
    is_new = not home.settings_file.exists()
    if is_new:
        write_durably(home.settings_file, template("quant.toml").encode())
    prepare(home)
    found = {"home": str(home.root), "settings": str(home.settings_file), "is_new": is_new}
    words = (
        f"{'Made' if is_new else 'Kept'} {home.settings_file}\n"
        "Next: set grid.start and grid.timezone in it, then `quant ingest PATH`."
    )
    emit(found, as_json, lambda: typer.echo(words))


@app.command()
def fetch(
    source: Annotated[str, typer.Argument(help="What to download: pse.")],
    as_json: Json = False,
) -> None:
    """Download sample data: pse is the Philippine market, 257 stocks from 2010 to 2021.

    Example: quant fetch pse
    """
    import pyarrow.parquet as pq

    from quant_pipeline.errors import unknown_name
    from quant_pipeline.settings import Home
    from quant_pipeline.stores.pse import fetch_pse

    if source != "pse":
        raise SettingsError(unknown_name("source", source, ["pse"]))
    path = fetch_pse(Home.from_environment().raw)
    n_rows = pq.ParquetFile(path).metadata.num_rows
    found = {"path": str(path), "rows": n_rows}
    emit(found, as_json, lambda: typer.echo(f"{n_rows:,} rows in {path}"))


@app.command()
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="CSV, CSV.gz or Parquet files, or folders.")],
    column: Annotated[
        list[str] | None, typer.Option(help="Name a column of the files, like close=px_last.")
    ] = None,
    symbol_from_name: Annotated[
        bool, typer.Option("--symbol-from-name", help="The file's name is the symbol.")
    ] = False,
    date_format: Annotated[
        str, typer.Option(metavar="FORMAT", help="Like %d/%m/%Y, unix or unix_ms.")
    ] = "",
    decimal: Annotated[
        str, typer.Option(metavar="MARK", help="Decimal mark of numbers: . or a comma.")
    ] = "",
    header: Annotated[
        str, typer.Option(metavar="NAMES", help="Columns of files without a header, like a,b,c.")
    ] = "",
    kind: Annotated[
        str, typer.Option("--as", help="What the files hold: prices, memberships or renames.")
    ] = "prices",
    as_json: Json = False,
) -> None:
    """Store daily prices: new and restated rows; the rest is counted or rejected by reason.

    Every row that was read is stored or kept in prices_rejected with its reason, and a file
    that is no table is named and left out. A file of --as memberships (symbol, first, last) or
    --as renames (ticker, symbol, first, last) is the whole list from then on. Limits of a file:
    ingest.max_file_mib, packed and unpacked; gzip unpacks to at most 200 times its size; 2000
    columns; 64 KiB a line, the header too; the header within the first 50 lines.

    Example: quant ingest prices/ --column close=px_last --date-format %d/%m/%Y
    """
    from quant_pipeline.chain.ingest import reading_of
    from quant_pipeline.faces.ingesting import ingest_and_report, show_report

    ws = open_workspace()
    pairs = [text.partition("=") for text in column or []]
    for name, _, given in pairs:
        if not given:
            raise typer.BadParameter(f"--column {name}: write it as close=px_last")
    if kind not in ("prices", "memberships", "renames"):
        raise typer.BadParameter(f"--as {kind}: prices, memberships or renames")
    if decimal not in ("", ".", ","):
        raise typer.BadParameter(f"--decimal {decimal}: . or a comma")
    reading = reading_of(
        ws, columns={name: given for name, _, given in pairs}, symbol_from_name=symbol_from_name,
        date_format=date_format, decimal=decimal, header=tuple(h for h in header.split(",") if h),
    )  # fmt: skip
    with progress() as tell:
        report = ingest_and_report(ws, paths, reading, kind, tell)  # type: ignore[arg-type]
    emit(vars(report), as_json, lambda: show_report(report, kind))  # type: ignore[arg-type]
    is_in_vain = report.n_read > 0 and report.n_read == sum(report.n_rejected.values())
    if is_in_vain:
        say("No row of this delivery could be stored as a price.")
    if report.problems or is_in_vain:
        raise typer.Exit(1)


@app.command()
def status(as_json: Json = False, as_csv: Csv = False) -> None:
    """Tell what is stored, what is stale and why, and what to type next; --csv: the tasks alone.

    Example: quant status
    """
    from quant_pipeline.faces.status import find_status, show_status

    found = find_status(open_workspace())
    emit(found["tasks"] if as_csv else found, as_json, lambda: show_status(found), as_csv)


@app.command()
def train(
    asof: Annotated[
        date | None, day_option("The newest complete window by then, like 2021-11-30.")
    ] = None,
    task: TaskId = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Train the models of one as-of date (default: the newest complete window).

    Fills missing or stale features, labels and frames first.

    Example: quant train --asof 2021-10-31 --task up_5d
    """
    from quant_pipeline.chain.plan import newest_closed
    from quant_pipeline.chain.stale import read_stored
    from quant_pipeline.defs.jobs import Runner, fill_data
    from quant_pipeline.defs.jobs import train as train_keys
    from quant_pipeline.errors import NotEnoughHistory

    ws = open_workspace()
    tasks = chosen(ws, task)
    stored = read_stored(ws)
    key = newest_closed(ws, stored, asof)
    say(f"As-of partition {key}, as of {ws.grid.asof(key)}.")
    with progress() as tell, Runner.open(ws, tell) as runner:
        fill_data(runner, stored)
        refused = train_keys(runner, {key: tasks})
    ids = {t.task_id for t in tasks}
    rows = [model_row(m) for m in ws.meta.models() if m.partition_key == key and m.task_id in ids]
    if refused and not rows:
        raise NotEnoughHistory(refused[key])
    for reason in refused.values():
        say(f"Not trained: {reason}")
    emit(rows, as_json, lambda: print_models(rows), as_csv)
    if not (as_json or as_csv):
        advise("quant score · quant models list")


@app.command()
def score(
    asof: Annotated[date | None, day_option("Sessions after this date.")] = None,
    from_: From = None,
    to: To = None,
    task: TaskId = None,
    model: Annotated[
        str | None,
        typer.Option(help="This model, kept apart as shadow.", autocompletion=model_ids),
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Score sessions with the champion of their partition (default: the newest partition).

    --asof D scores every stored session after D. Models of windows that were completed meanwhile
    are trained first, as the daily job does. A model named with --model scores only sessions
    after its own as-of date, apart from the predictions.

    Example: quant score --from 2021-12-01 --to 2021-12-15
    """
    from quant_pipeline.faces.scoring import score_sessions, score_with_model

    ws = open_workspace()
    tasks = chosen(ws, task)
    if asof is not None:
        if from_ is not None:
            raise typer.BadParameter("give --asof or --from, not both")
        from_ = asof + timedelta(days=1)
    with progress() as tell:
        if model:
            rows = [score_with_model(ws, model, from_, to, tell)]
        else:
            rows = score_sessions(ws, from_, to, tasks, tell)
    emit(rows, as_json, lambda: print_table(rows), as_csv)
    if not (as_json or as_csv):
        advise("quant predictions --top 5 · quant ui")


@app.command()
def backfill(
    from_: Annotated[date, day_option("The first session, like 2020-01-01.", "--from")],
    to: Annotated[date, day_option("The last session.")],
    task: TaskId = None,
    select: Annotated[str | None, typer.Option(help="Only these assets, comma-separated.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what is to do.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Models to train at a time.")] = 1,
    as_json: Json = False,
) -> None:
    """Walk forward over a range: fill history, train each as-of, score each partition.

    What is done and unchanged is skipped, so the same command goes on where it was stopped.

    Example: quant backfill --from 2020-01-01 --to 2021-12-15
    """
    from quant_pipeline.faces.scoring import run_backfill, show_backfill

    ws = open_workspace()
    assets = [a for a in (select or "").split(",") if a]
    with progress() as tell:
        found = run_backfill(ws, from_, to, chosen(ws, task), assets, dry_run, jobs, tell)
    emit(vars(found), as_json, lambda: show_backfill(found, dry_run))
    if not as_json:
        advise("the same without --dry-run" if dry_run else "quant predictions report · quant ui")


@app.command()
def demo(
    synthetic: Annotated[
        bool,
        typer.Option("--synthetic", help="A made-up market instead, no download."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Walk the Philippine market forward and compare the scores with chance and trivial ones.

    Example: quant demo
    """
    from quant_pipeline.faces.demo import run_demo, show_demo

    if synthetic:
        from quant_pipeline.faces.synthetic import run_synthetic, show_synthetic

        with progress() as tell:
            made = run_synthetic(tell)
        emit(made, as_json, lambda: show_synthetic(made))
        return
    with progress() as tell:
        found = run_demo(tell)
    emit(found, as_json, lambda: show_demo(found))


for command in (
    report, web, ui, audit, verify, diff, tune, trials, doctor, reconcile, backup, restore, upgrade
):  # fmt: skip
    app.command()(command)


if __name__ == "__main__":
    main()
