"""`quant tune` and `quant trials`: settings proposed, judged, and counted."""

from datetime import date
from typing import Annotated, Any

import typer

from quant_pipeline.faces.options import (
    Csv,
    Json,
    OneTask,
    TaskId,
    chosen,
    day_option,
    open_workspace,
)
from quant_pipeline.faces.output import cell, count, emit, print_table, progress


def tune(
    task: OneTask,
    asof: Annotated[date, day_option("The newest complete window by then, like 2021-11-30.")],
    trials: Annotated[int, typer.Option(min=1, help="How many more settings to try.")] = 20,
    as_json: Json = False,
) -> None:
    """Search settings of [train] on the folds of one as-of; the same command again goes on.

    Example: quant tune --task ret_5d --asof 2019-12-31 --trials 20
    """
    from quant_pipeline.chain.plan import newest_closed
    from quant_pipeline.chain.stale import read_stored
    from quant_pipeline.chain.tune import tune as search

    ws = open_workspace()
    one = ws.settings.task(task)
    key = newest_closed(ws, read_stored(ws), asof)
    with progress() as tell:
        found = search(ws, key, one, trials, tell)

    def show() -> None:
        typer.echo(
            f"{count(found.n_trials, 'trial')} on the folds as of {found.asof}; RankIC over their "
            f"test windows: {found.best_value:+.4f} ± {found.best_se:.4f}, with the settings of "
            "quant.toml " + (
                f"{found.usual_value:+.4f} ± {found.usual_se:.4f}."
                if found.usual_value is not None else "none that can be judged."
            )
        )  # fmt: skip
        typer.echo("The best of many looks better than it is: `quant trials` tells by how much.")
        typer.echo("\n[train]")
        for name, value in found.best.items():
            typer.echo(f"{name} = {value}")

    emit(vars(found), as_json, show)


def trials(task: TaskId = None, as_json: Json = False, as_csv: Csv = False) -> None:
    """List every recipe that was ever judged, and what the best one is worth given how many.

    --csv: the recipes alone.

    Example: quant trials --task ret_5d
    """
    from quant_pipeline.chain.trials import judge_trials

    ws = open_workspace()
    found = [judge_trials(ws, one) for one in chosen(ws, task)]

    def show() -> None:
        for one in found:
            _show(one)

    rows = [{"task": one["task"], **row} for one in found for row in one["trials"]]
    emit(rows if as_csv else found, as_json, show, as_csv)


_TRIAL = {
    "recipe": "recipe", "chosen_by": "chosen by", "chosen_asof": "chosen as of",
    "first_asof": "first model as of", "sessions": "sessions",
    "top_minus_bottom": "top minus bottom, gross", "sharpe": "Sharpe ratio",
}  # fmt: skip


def _show(found: dict[str, Any]) -> None:
    typer.echo(f"{found['task']}: {count(found['n_trials'], 'recipe')} tried")
    print_table(found["trials"], _TRIAL)
    if found.get("deflated_sharpe") is not None:
        typer.echo(
            f"Best on {count(found['n_sessions'], 'session')} that all compared were tested on: "
            f"{found['best']}, Sharpe ratio {found['sharpe']:.3f} a horizon. Probability that it "
            f"is skill, given {count(found['n_trials'], 'trial')}: {found['deflated_sharpe']:.2f} "
            f"(deflated Sharpe ratio)."
        )
    if "overfitting" in found:
        typer.echo(
            f"Probability that it is overfitted: {cell(found['overfitting']['pbo'])} (PBO, "
            f"{found['overfitting']['n_blocks']} blocks)."
        )
    for reason in dict.fromkeys(found["left_out"].values()):
        n = list(found["left_out"].values()).count(reason)
        typer.echo(f"Not compared: {count(n, 'recipe')}, {reason}.")
    if "missing" in found:
        typer.echo(f"Not told: {found['missing']}.")
    typer.echo("")
