"""`quant models`: what was trained, and everything that is recorded of it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from quant_pipeline.faces.options import Csv, Json, ModelId, TaskId, open_workspace
from quant_pipeline.faces.output import advise, emit, print_table

models_app = typer.Typer(help="Trained models.", no_args_is_help=True, rich_markup_mode=None)

MODEL_COLUMNS = {
    "model": "model", "task_id": "task", "asof": "as of", "status": "status", "rows": "rows",
    "rounds": "rounds", "rank_ic": "RankIC", "rank_ic_se": "± s.e.", "accuracy": "accuracy",
    "accuracy_base": "base", "auc": "AUC",
}  # fmt: skip


def model_row(model: Any) -> dict[str, Any]:
    """A model in one line; metrics are of its folds' test windows."""
    names = ("ic", "ic_se", "rank_ic", "rank_ic_se", "accuracy", "accuracy_base", "precision",
             "base_rate", "auc")  # fmt: skip
    return {
        "model": model.model_id[:12], "model_id": model.model_id, "task_id": model.task_id,
        "asof": model.asof.isoformat(), "status": model.status, "rows": model.n_rows,
        "rounds": model.rounds, **{n: model.metrics.get(n) for n in names},
    }  # fmt: skip


def print_models(rows: list[dict[str, Any]]) -> None:
    """Models as a table, without metrics that none of them has."""
    known = {c: name for c, name in MODEL_COLUMNS.items() if any(r[c] is not None for r in rows)}
    print_table(rows, known)


@models_app.command("list")
def list_models(task: TaskId = None, as_json: Json = False, as_csv: Csv = False) -> None:
    """List the trained models, oldest as-of first; metrics are of their test windows.

    Example: quant models list --task up_5d
    """
    ws = open_workspace()
    if task:
        ws.settings.task(task)
    rows = [model_row(m) for m in ws.meta.models(task)]

    def show() -> None:
        print_models(rows)
        if not rows:
            typer.echo("No model has been trained yet. Run `quant train`, or `quant demo`.")
        else:
            advise(f"quant models show {rows[-1]['model']} · quant models explain ID · quant ui")

    emit(rows, as_json, show, as_csv)


@models_app.command("show")
def show_model(
    model_id: ModelId,
    as_json: Json = False,
) -> None:
    """Show everything that is recorded of one model.

    Example: quant models show 3f9a
    """
    from quant_pipeline.faces.model_sheet import show_sheet

    model = open_workspace().meta.model(model_id)
    dumped = model.model_dump(mode="json")
    data = {name: dumped[name] for name in type(model).model_fields}

    emit(data, as_json, lambda: show_sheet(data))


@models_app.command("explain")
def explain(
    model_id: ModelId,
    top: Annotated[int, typer.Option(min=1, help="The K features that matter most.")] = 20,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Tell which features a model works with: SHAP values, gain, splits, and the folds' spread.

    Example: quant models explain 3f9a --top 10
    """
    from quant_pipeline.chain.explain import explain_model

    ws = open_workspace()
    rows = explain_model(ws, ws.meta.model(model_id))
    columns = {
        "feature": "feature", "mean_shap": "mean |SHAP|", "gain": "gain", "split": "splits",
        "fold_gain": "gain in folds", "fold_gain_std": "± s.d.",
    }  # fmt: skip
    emit(rows, as_json, lambda: print_table(rows[:top], columns), as_csv)


@models_app.command("export")
def export(
    model_id: ModelId,
    folder: Annotated[Path, typer.Argument(help="Where to; it is made if it is not there.")],
    as_json: Json = False,
) -> None:
    """Write a model for another home: its file, and its row of the registry as JSON beside it.

    Example: quant models export 3f9a ~/models-for-ada
    """
    from quant_pipeline.chain.exchange import export_model

    ws = open_workspace()
    model = ws.meta.model(model_id)
    path = export_model(ws, model, folder)
    found = {"model_id": model.model_id, "path": str(path), "row": str(path.with_suffix(".json"))}
    emit(found, as_json, lambda: typer.echo(f"Wrote {path} and its .json."))


@models_app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="A .joblib file with its .json beside it.")],
    as_json: Json = False,
) -> None:
    """Take in a model of another home, to look at and to score aside; it never serves.

    Its file is opened in a process of its own, with limits, before this home keeps it.

    Example: quant models import models-for-ada/3f9a.joblib
    """
    from quant_pipeline.chain.exchange import import_model

    model = import_model(open_workspace(), path)
    short = model.model_id[:12]
    words = (
        f"Model {short} of {model.task_id} as of {model.asof}: {model.status}.\n"
        f"Next: `quant models explain {short}`, `quant score --model {short}`."
    )
    emit(model_row(model), as_json, lambda: typer.echo(words))
