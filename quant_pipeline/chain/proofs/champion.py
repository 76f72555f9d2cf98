"""Who served: decided again from the registry as it was, with every later model made up."""

from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import numpy as np
from sqlmodel import SQLModel, select

from quant_pipeline.chain.champions import decide
from quant_pipeline.chain.proofs.result import Finding, Outcome, Proof
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.settings import Task
from quant_pipeline.stores.meta import Champion, MetaStore, Model, Order, Refusal

N_SHINING = 400  # sessions that a made-up model was tested on, each with a RankIC of 0.9
A_YEAR = timedelta(days=366)


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

    The models that were registered when the champion was frozen stay as they are; all of later
    as-ofs, and two more, shine in their tests. Nothing of them may count.
    """
    if frozen.from_ts != ws.grid.window(frozen.partition_key)[0]:
        words = f"{frozen.model_id[:12]} serves from {frozen.from_ts} on by order of a person"
        return Proof("champion", "holds", words, asof, task.task_id)
    registry = MetaStore(made.home.models / f"champions of {task.task_id}.sqlite")
    n_later = _copy_registry(ws, registry, frozen, rng)
    chosen = decide(replace(made, meta=registry), frozen.partition_key, task)
    words = (
        f"{frozen.model_id[:12]} was chosen again for {frozen.partition_key}, though {n_later} "
        "models of later as-ofs shine"
    )
    finding = None
    if chosen.model_id != frozen.model_id:
        words = f"the champion of {frozen.partition_key} is another one in hindsight"
        finding = Finding(
            "champion", "champions", "", frozen.from_ts, "model_id", frozen.model_id[:12],
            (chosen.model_id or chosen.why)[:60],
        )  # fmt: skip
    numbers = {"partition": frozen.partition_key, "later_models": n_later}
    outcome: Outcome = "fails" if finding else "holds"
    return Proof("champion", outcome, words, asof, task.task_id, finding, numbers)


def _copy_registry(
    ws: Workspace, target: MetaStore, frozen: Champion, rng: np.random.Generator
) -> int:
    """What the registry said before a champion was frozen; gives how many models shine."""
    start = frozen.from_ts
    models, champions, orders, refusals = (
        _rows(ws, kind) for kind in (Model, Champion, Order, Refusal)
    )
    kept = [m for m in models if m["asof"] < start and _is_by(m["created_at"], frozen)]
    later = [m for m in models if m["asof"] >= start]
    for i in range(2):
        later.append(kept[-1] | {"model_id": f"{i}" * 64, "asof": start + A_YEAR * (i + 1)})
    shining = [_shine(m, start, rng) for m in later]
    rows: list[SQLModel] = [Model(**m | {"seq": seq}) for seq, m in enumerate([*kept, *shining], 1)]
    ids = {m["model_id"] for m in [*kept, *shining]}
    rows += [Champion(**c) for c in champions if c["from_ts"] < start and c["model_id"] in ids]
    rows += [
        Order(**o) for o in orders
        if o["from_ts"] <= start and (o["model_id"] is None or o["model_id"] in ids)
    ]  # fmt: skip
    rows += [Refusal(**r) for r in refusals if r["asof"] < start]
    with target.writing() as session:
        for row in rows:
            session.add(row)
            session.flush()
    return len(shining)


def _rows(ws: Workspace, kind: type[SQLModel]) -> list[dict[str, Any]]:
    with ws.meta.reading() as session:
        rows = [row.model_dump() for row in session.exec(select(kind))]
    return sorted(rows, key=lambda row: row.get("seq") or row.get("id") or 0)


def _is_by(created_at: Any, frozen: Champion) -> bool:
    return bool(created_at.timestamp() <= frozen.decided_at.timestamp())


def _shine(model: dict[str, Any], start: date, rng: np.random.Generator) -> dict[str, Any]:
    """A model of a later as-of that did marvellously, before and after."""
    days = [start + timedelta(days=n - N_SHINING) for n in range(2 * N_SHINING)]
    rank_ic = (0.9 + 0.01 * rng.standard_normal(len(days))).round(5).tolist()
    series = {"ts": [str(day) for day in days], "rank_ic": rank_ic, "top_minus_bottom": rank_ic}
    return model | {"test_series": series, "status": "ready"}
