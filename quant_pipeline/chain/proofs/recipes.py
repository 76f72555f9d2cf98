"""Since when settings are known: what reports call out of sample for them must come after that."""

from datetime import date, timedelta

from sqlmodel import col, select

from quant_pipeline.chain.proofs.result import Finding, Proof
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.settings import SHIPPED_CHOSEN_ASOF, Settings
from quant_pipeline.stores.meta import Batch, Trial


def prove_recipes(ws: Workspace) -> list[Proof]:
    """Compare the date of every recipe that has a model with what was known when it was tried.

    Reports count sessions up to that date as in-sample for the settings. It must not be older than
    the study that proposed them, or than the outcomes that were stored when a hand first used them.
    """
    trials = {trial.recipe: trial for trial in ws.meta.trials()}
    models = ws.meta.models()
    for model in models:
        trial = trials.get(model.recipe)
        earliest = _earliest(ws, trial) if trial else None
        if trial is None or earliest is None or model.chosen_asof >= earliest:
            if trial is not None:
                continue
            expected, found = "a trial", "none"
        else:
            expected, found = f"{earliest} or later", str(model.chosen_asof)
        finding = Finding(
            "recipes", "trials", "", model.asof, f"chosen_asof of {model.recipe[:12]}", expected,
            found,
        )  # fmt: skip
        words = "reports would call sessions out of sample that the settings have seen"
        return [Proof("recipes", "fails", words, None, model.task_id, finding)]
    n = len({model.recipe for model in models})
    words = f"settings of {n} recipes are known since the dates that reports split by"
    return [Proof("recipes", "holds", words, None, "", None, {"recipes": n})]


def _earliest(ws: Workspace, trial: Trial) -> date | None:
    """The earliest date that may be given for the settings of a trial; None if any may."""
    if trial.chosen_by == "shipped settings":
        return SHIPPED_CHOSEN_ASOF if _are_shipped(trial) else _newest_known(ws, trial)
    if trial.chosen_by.startswith("study "):
        return max(trial.asof, date.fromisoformat(trial.settings["fixed_asof"]))
    return _newest_known(ws, trial)


def _are_shipped(trial: Trial) -> bool:
    shipped = Settings.model_construct()
    sections = {
        name: getattr(shipped, name).model_dump(mode="json") for name in ("label", "folds", "train")
    }
    tasks = [task.model_dump(mode="json") for task in shipped.tasks]
    same = all(trial.settings.get(name) == values for name, values in sections.items())
    return same and trial.settings.get("task") in tasks


def _newest_known(ws: Workspace, trial: Trial) -> date | None:
    """The last day before the newest window with outcomes that was stored when it was tried."""
    wanted = select(Batch.partition_key).where(
        Batch.table_name == "labels", Batch.task_id == trial.task_id, Batch.n_rows > 0,
        Batch.written_at <= trial.tried_at,
    )  # fmt: skip
    with ws.meta.reading() as session:
        key = session.exec(wanted.order_by(col(Batch.partition_key).desc())).first()
    return ws.grid.window(key)[0] - timedelta(days=1) if key else None
