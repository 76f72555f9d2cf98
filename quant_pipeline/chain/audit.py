"""The look-ahead audit: proofs, on a user's own data, that no model and no score saw the future."""

from collections.abc import Sequence
from datetime import date
from itertools import groupby

import numpy as np

from quant_pipeline.chain.making import why_impossible
from quant_pipeline.chain.proofs.champion import frozen_after, prove_champion
from quant_pipeline.chain.proofs.future import prove_models
from quant_pipeline.chain.proofs.prices import prove_prices
from quant_pipeline.chain.proofs.recipes import prove_recipes
from quant_pipeline.chain.proofs.result import Proof
from quant_pipeline.chain.proofs.scores import prove_scores
from quant_pipeline.chain.proofs.structure import prove_sealed, prove_served, prove_structure
from quant_pipeline.chain.proofs.windows import prove_windows
from quant_pipeline.chain.rebuild import compute_data, learn, present_of
from quant_pipeline.chain.scratch import scratch_home, settings_of
from quant_pipeline.chain.verified import Tell
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData
from quant_pipeline.settings import Settings, Task, digest
from quant_pipeline.stores.meta import Model
from quant_pipeline.stores.series import query, read_sessions

IMPORTED = "imported"  # learned elsewhere, from other data


def audit(
    ws: Workspace,
    asofs: Sequence[date],
    tasks: Sequence[Task],
    tell: Tell = lambda _what, _done, _all: None,
    seed: int = 0,
) -> list[Proof]:
    """Prove the models of some as-ofs, the scores that came of them, and what is stored at large.

    The home is only read; everything is computed again in temporary folders. Raises NoData if an
    as-of has no model.
    """
    proofs: list[Proof] = []
    steps = []
    for asof in asofs:
        models = models_as_of(ws, asof, tasks)
        for model in models:
            if why := why_impossible(ws, model):
                words = f"model {model.model_id[:12]} cannot be trained again: {why}"
                proofs.append(Proof("future", "unproven", words, asof, model.task_id))
        steps += _groups(ws, [m for m in models if not why_impossible(ws, m)])
    for i, (settings, models) in enumerate(steps):
        tell(f"auditing {', '.join(m.task_id for m in models)} as of {models[0].asof}", i,
             len(steps) + 1)  # fmt: skip
        proofs += _prove_asof(ws, settings, models, np.random.default_rng([seed, i]))
    tell("auditing stored scores and settings", len(steps), len(steps) + 1)
    return [*proofs, *prove_served(ws), prove_sealed(ws), *prove_recipes(ws)]


def choose_asofs(ws: Workspace, tasks: Sequence[Task], n: int) -> list[date]:
    """As-ofs to audit: the newest with a model, and others spread evenly before it."""
    found = _asofs(ws, tasks)
    places = np.linspace(len(found) - 1, 0, min(n, len(found))).round().astype(int)
    return [found[i] for i in places]


def newest_asof(ws: Workspace, tasks: Sequence[Task], day: date) -> date:
    """The newest as-of with a model that a date names; raises NoData if there is none.

    A date names the as-ofs on or before it, and the one whose last session it is.
    """
    asofs = _asofs(ws, tasks)
    found = [asof for asof in asofs if asof <= day]
    for asof in asofs[len(found) : len(found) + 1]:
        last = _last_session(ws, asof)
        found += [asof] if last is not None and last <= day else []
    if not found:
        raise NoData(f"No model is as of {day} or earlier. See `quant models list`.")
    return found[-1]


def _last_session(ws: Workspace, asof: date) -> date | None:
    with ws.series.reading("an audit") as con:
        start = ws.grid.window(ws.grid.key(asof))[0]
        sessions: list[date] = read_sessions(con, start, asof)["ts"].to_pylist()
    return sessions[-1] if sessions else None


def _asofs(ws: Workspace, tasks: Sequence[Task]) -> list[date]:
    wanted = {task.task_id for task in tasks}
    found = {m.asof for m in ws.meta.trained() if m.task_id in wanted and m.status != IMPORTED}
    if not found:
        raise NoData("No model has been trained yet. Run `quant train`, or `quant demo`.")
    return sorted(found)


def models_as_of(ws: Workspace, asof: date, tasks: Sequence[Task]) -> list[Model]:
    """The models as of a date that scored, and the newest of each task; NoData if there is none."""
    wanted = {task.task_id for task in tasks}
    mine = [
        m for m in ws.meta.models()
        if m.asof == asof and m.status != IMPORTED and m.task_id in wanted
    ]  # fmt: skip
    if not mine:
        raise NoData(f"No model is as of {asof}. See `quant models list`.")
    newest = {m.task_id: m.model_id for m in mine}
    ids = [m.model_id for m in mine]
    scored = ws.series.query(
        "SELECT DISTINCT model_id FROM predictions WHERE list_contains(?, model_id)", [ids]
    )["model_id"].to_pylist()
    return [m for m in mine if m.model_id in {*scored, *newest.values()}]


def _groups(ws: Workspace, models: Sequence[Model]) -> list[tuple[Settings, list[Model]]]:
    """Models that were made with the same settings from the same prices: computed together."""

    def alike(model: Model) -> tuple[str, int]:
        shared = {name: value for name, value in model.settings.items() if name != "task"}
        return digest(shared), model.price_batch_id

    found = []
    for _, group in groupby(sorted(models, key=alike), alike):
        mine = list(group)
        settings = settings_of(ws, mine[0])
        of_all = [settings_of(ws, model).tasks[0] for model in mine]
        found.append((settings.model_copy(update={"tasks": tuple(of_all)}), mine))
    return found


def _prove_asof(
    ws: Workspace, settings: Settings, models: Sequence[Model], rng: np.random.Generator
) -> list[Proof]:
    key, asof = models[0].partition_key, models[0].asof
    present = present_of(ws, settings, key, models[0].price_batch_id)
    proofs = [prove_prices(ws, present, rng)]
    with scratch_home(ws, settings, present, rng) as (made, rewritten):
        assert rewritten is not None
        compute_data(made, key)
        rebuilt = learn(made, key)
        proofs += prove_models(ws, models, present, made, rebuilt, rewritten)
        proofs += prove_windows(made, key, rebuilt, rng)
        proofs += prove_structure(made, models)
        for model in models:
            frozen = frozen_after(ws, settings.task(model.task_id), asof)
            if frozen is not None:
                task = settings.task(model.task_id)
                proofs.append(prove_champion(ws, made, task, frozen, asof, rng))
    for model in models:
        session = scored_session(ws, model)
        if session is not None:
            proofs.append(prove_scores(ws, model, session, rng))
    return proofs


def scored_session(ws: Workspace, model: Model) -> date | None:
    """A session in the middle of those that a model scored; None if it never served."""
    with ws.series.reading("an audit") as con:
        rows = query(
            con,
            "SELECT DISTINCT ts FROM predictions WHERE task_id = ? AND model_id = ? ORDER BY ts",
            [model.task_id, model.model_id],
        )["ts"].to_pylist()
    return rows[len(rows) // 2] if rows else None
