"""`quant predictions`: stored scores, why one is what it is, and what they were worth."""

from typing import Annotated

import typer

from quant_pipeline.errors import NoData
from quant_pipeline.faces.options import (
    Csv,
    From,
    Json,
    OneSession,
    Session,
    TaskId,
    To,
    chosen,
    find_home,
    model_ids,
    open_workspace,
)
from quant_pipeline.faces.output import advise, emit, print_table, progress
from quant_pipeline.faces.report import flat, show_group

predictions_app = typer.Typer(
    help="Stored scores (see `quant predictions --help`).", rich_markup_mode=None
)
COLUMNS = {
    "ts": "session", "task_id": "task", "symbol": "symbol", "score": "score",
    "score_percentile": "percentile", "asof": "model as of", "model": "model",
    "origin": "origin",
}  # fmt: skip


@predictions_app.callback(invoke_without_command=True)
def predictions(
    context: typer.Context,
    task: TaskId = None,
    ts: Session = None,
    from_: From = None,
    to: To = None,
    symbol: Annotated[str | None, typer.Option(help="Only this symbol.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="The K best of each session.")] = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Show stored scores (default: the newest session), best first.

    Example: quant predictions --task ret_5d --ts 2021-12-15 --top 5
    """
    if context.invoked_subcommand is not None:
        return
    from quant_pipeline.faces.reading import read_predictions
    from quant_pipeline.settings import load_settings
    from quant_pipeline.stores.published import Published

    home = find_home()
    settings = load_settings(home)
    if task:
        settings.task(task)
    days = {"first": ts or from_, "last": ts or to}
    published = Published(home.published)
    rows = read_predictions(published, task=task, symbol=symbol, top=top, **days)
    shown = [{**row, "model": row["model_id"][:12]} for row in rows]

    def show() -> None:
        print_table(shown, COLUMNS)
        one = f"--symbol {rows[0]['symbol']} --ts {rows[0]['ts']} --task {rows[0]['task_id']}"
        advise(f"quant predictions explain {one} · quant predictions report")

    emit(rows, as_json, show, as_csv)


@predictions_app.command()
def explain(
    symbol: Annotated[str, typer.Option(help="The symbol.")],
    ts: OneSession,
    task: TaskId = None,
    top: Annotated[int, typer.Option(min=1, help="The K features that added most.")] = 10,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Tell what each feature added to a stored score (SHAP values).

    Example: quant predictions explain --symbol ALI --ts 2021-12-15 --task ret_5d
    """
    from quant_pipeline.chain.explain import explain_prediction
    from quant_pipeline.faces.symbols import stored_symbol

    ws = open_workspace()
    name = stored_symbol(ws, symbol)
    found = [explain_prediction(ws, one, name, ts) for one in chosen(ws, task)]

    def show() -> None:
        for one in found:
            typer.echo(
                f"{one['symbol']} on {one['ts']}, {one['task']}, model {one['model']}: "
                f"score {one['score']:.4f}"
            )
            if abs(one["score"] - one["score_now"]) > 1e-12:
                typer.echo(
                    f"Today's features would give {one['score_now']:.4f}: prices were restated "
                    "since. What follows explains that."
                )
            rows = one["contributions"][:top]
            rest = sum(row["adds"] for row in one["contributions"][top:])
            lines = [{"feature": "(base)", "value": None, "adds": one["base"]}, *rows]
            lines.append({"feature": "(all others)", "value": None, "adds": rest})
            lines.append({"feature": "(together)", "value": None, "adds": one["raw"]})
            print_table(lines)
            typer.echo("")

    keys = ("task", "symbol", "ts", "model", "score")
    rows = [{k: one[k] for k in keys} | row for one in found for row in one["contributions"]]
    emit(rows if as_csv else found, as_json, show, as_csv)


@predictions_app.command()
def report(
    task: TaskId = None,
    from_: From = None,
    to: To = None,
    permuted: Annotated[
        bool, typer.Option("--permuted", help="Train on permuted labels, too (slow).")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Only this model's, served or in the shadow.", autocompletion=model_ids),
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Judge stored scores whose labels are known: IC, precision, portfolio, decay, turnover.

    Live scores and those of backfills are judged apart, and so are sessions whose outcomes may
    have led the choice of settings. --csv: a group a row, its numbers by their path, like
    metrics.rank_ic.

    Example: quant predictions report --task ret_5d
    """
    from quant_pipeline.chain.judge import judge_predictions

    ws = open_workspace()
    of = ws.meta.model(model) if model else None
    if of is not None and task not in (None, of.task_id):
        raise NoData(f"Model {of.model_id[:12]} is one of {of.task_id}, not of {task}.")
    with progress() as tell:
        found = [
            group
            for one in chosen(ws, of.task_id if of else task)
            for group in judge_predictions(
                ws, one, from_, to, tell if permuted else None, of.model_id if of else None
            )
        ]

    def show() -> None:
        for group in found:
            show_group(group)

    emit([flat(one) for one in found] if as_csv else found, as_json, show, as_csv)
