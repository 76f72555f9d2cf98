"""Who served: decided again from the registry as it was, with every later model made up."""

from dataclasses import replace
from datetime import date, timedelta
from itertools import product
from typing import Any

import numpy as np
from sqlmodel import SQLModel, select

from quant_pipeline.chain.champions import decide
from quant_pipeline.chain.proofs.result import Finding, Proof
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import GateError
from quant_pipeline.ml.champions import Decision
from quant_pipeline.settings import ChampionSettings, Task
from quant_pipeline.stores.meta import Champion, MetaStore, Model, Order, Refusal

N_TESTED = 400  # sessions before and after that a made-up model was tested on
A_YEAR = timedelta(days=366)
SHINES, FAILS = 0.9, -0.9  # RankIC in the tests of a made-up model
Row = dict[str, Any]


def frozen_after(ws: Workspace, task: Task, asof: date) -> Champion | None:
    """The first champion that was frozen after an as-of."""
    return next((c for c in ws.meta.champions(task.task_id) if c.from_ts > asof), None)


def prove_champion(
    ws: Workspace,
    made: Workspace,
    task: Task,
    frozen: Champion,
    asof: date,
    rng: np.random.Generator,
) -> Proof:
    """Decide anew who serves a partition, in a home in which every later as-of is made up.

    Three times, by the [champion] that was recorded with the decision: from the models that were
    registered when the champion was frozen; with all models of later as-ofs added, made up ones of
    the task's recipes among them, as of the first day that is served, of the end of the window,
    and later, and all shine in their tests; and with those that shine but for the recipe that was
    chosen, which fails. The same model has to be chosen each time.

    It has to be the frozen one, too. Where the rule of then was not recorded (before layout 3 of
    the registry) and today's gives another one, the decision of then is unproven.
    """
    proof = Proof("champion", "holds", "", asof, task.task_id)
    if frozen.from_ts != ws.grid.window(frozen.partition_key)[0] or _is_ordered(ws, frozen):
        words = f"{frozen.model_id[:12]} serves from {frozen.from_ts} on by order of a person"
        return replace(proof, words=words)
    known, later = _split_registry(ws, frozen)
    if frozen.rule:
        rule = ChampionSettings.model_validate_json(frozen.rule)
        made = replace(made, settings=made.settings.model_copy(update={"champion": rule}))
    plain = _decide(made, "plain", known, [], frozen, task)
    if plain.model_id is None:  # it waits for made-up sessions that lie between: take real ones
        made = replace(made, series=ws.series)
        plain = _decide(made, "plain", known, [], frozen, task)
    recipe = next((m["recipe"] for m in known[Model] if m["model_id"] == plain.model_id), "")
    chosen = plain
    for name, mean in (("all shine", SHINES), ("others shine", FAILS)):
        is_alone = {m["recipe"] for m in later} == {recipe}
        if chosen.model_id == plain.model_id and (mean == SHINES or not is_alone):
            means = [mean if m["recipe"] == recipe else SHINES for m in later]
            tested = _test_anew(later, means, frozen, rng)
            chosen = _decide(made, name, known, tested, frozen, task)
    numbers = {"partition": frozen.partition_key, "later_models": len(later)}
    if chosen.model_id != plain.model_id:
        words = f"the champion of {frozen.partition_key} is another one in hindsight"
        found = _finding(frozen, plain, chosen)
        return replace(proof, outcome="fails", words=words, finding=found, numbers=numbers)
    if plain.model_id == frozen.model_id:
        words = (
            f"{frozen.model_id[:12]} was chosen again for {frozen.partition_key}, though "
            f"{len(later)} models of later as-ofs shine"
        )
        return replace(proof, words=words, numbers=numbers)
    words = (
        f"{frozen.model_id[:12]} was frozen for {frozen.partition_key}, but it does not come out "
        "of the models of then"
    )
    if not frozen.rule:
        words += " by today's [champion], and that of then was not recorded"
        return replace(proof, outcome="unproven", words=words, numbers=numbers)
    found = _finding(frozen, Decision(frozen.model_id, frozen.why), plain)
    return replace(proof, outcome="fails", words=words, finding=found, numbers=numbers)


def _finding(frozen: Champion, expected: Decision, found: Decision) -> Finding:
    was, became = ((d.model_id or "")[:12] or d.why[:60] for d in (expected, found))
    return Finding("champion", "champions", "", frozen.from_ts, "model_id", was, became)


def _is_ordered(ws: Workspace, frozen: Champion) -> bool:
    """Whether a person let just this model serve from the start of its window on."""
    return any(
        (o.from_ts, o.model_id) == (frozen.from_ts, frozen.model_id)
        and o.action in ("promote", "rollback")
        for o in ws.meta.orders(frozen.task_id)
    )


def _decide(
    made: Workspace,
    name: str,
    known: dict[type[SQLModel], list[Row]],
    later: list[Row],
    frozen: Champion,
    task: Task,
) -> Decision:
    """The decision from a registry of its own with these rows."""
    registry = MetaStore(made.home.models / f"{name} {task.task_id} {frozen.partition_key}.sqlite")
    if not registry.path.exists():
        models = [Model(**m | {"seq": n}) for n, m in enumerate([*known[Model], *later], 1)]
        others = [kind(**row) for kind in (Champion, Order, Refusal) for row in known[kind]]
        with registry.writing() as session:
            for row in (*models, *others):
                session.add(row)
                session.flush()
    try:
        return decide(replace(made, meta=registry), frozen.partition_key, task)
    except GateError as error:  # a window before that has sessions, but no model
        return Decision(None, str(error))


def _split_registry(
    ws: Workspace, frozen: Champion
) -> tuple[dict[type[SQLModel], list[Row]], list[Row]]:
    """What the registry said before a champion was frozen, and models of later as-ofs.

    Of each recipe of the task, three of these are made up.
    """
    start = frozen.from_ts
    models = _rows(ws, Model)
    kept = [m for m in models if m["asof"] < start and _is_by(m["created_at"], frozen)]
    ids = {m["model_id"] for m in kept}
    known: dict[type[SQLModel], list[Row]] = {
        Model: kept,
        Champion: [
            c for c in _rows(ws, Champion) if c["from_ts"] < start and c["model_id"] in ids
        ],
        Order: [
            o for o in _rows(ws, Order)
            if o["from_ts"] <= start and (o["model_id"] is None or o["model_id"] in ids)
        ],
        Refusal: [r for r in _rows(ws, Refusal) if r["asof"] < start],
    }  # fmt: skip
    later = [m for m in models if m["asof"] >= start]
    newest = {m["recipe"]: m for m in models if m["task_id"] == frozen.task_id}
    asofs = (start, ws.grid.asof(frozen.partition_key), start + A_YEAR)
    for i, (model, asof) in enumerate(product(newest.values(), asofs)):
        later.append(model | {"model_id": f"{i:064d}", "asof": asof, "status": "ready"})
    return known, later


def _rows(ws: Workspace, kind: type[SQLModel]) -> list[Row]:
    with ws.meta.reading() as session:
        rows = [row.model_dump() for row in session.exec(select(kind))]
    return sorted(rows, key=lambda row: row.get("seq") or row.get("id") or 0)


def _is_by(created_at: Any, frozen: Champion) -> bool:
    return bool(created_at.timestamp() <= frozen.decided_at.timestamp())


def _test_anew(
    models: list[Row], means: list[float], frozen: Champion, rng: np.random.Generator
) -> list[Row]:
    """Models with made-up tests, before and after a champion was chosen."""
    n = np.arange(-N_TESTED, N_TESTED)
    days = [str(frozen.from_ts + timedelta(days=int(day))) for day in n]
    found = []
    for model, mean in zip(models, means, strict=True):
        rank_ic = (mean + 0.01 * rng.standard_normal(len(n))).round(5).tolist()
        series = {"ts": days, "rank_ic": rank_ic, "top_minus_bottom": rank_ic}
        found.append(model | {"test_series": series, "status": "ready"})
    return found
