"""Who serves a task: decided once for each partition, from the registry alone, or by a person."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from typing import NamedTuple

import numpy as np

from quant_pipeline.chain.seal import judge_until, partition_before
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import GateError, NoData, SettingsError
from quant_pipeline.ml.champions import Contender, Decision, Evidence, Tested, replay
from quant_pipeline.ml.sessions import session_means
from quant_pipeline.settings import Task
from quant_pipeline.stores.meta import Champion, Model, Order, Trained, utc_now
from quant_pipeline.stores.series import read_sessions


class Service(NamedTuple):
    """A model that serves the sessions ``[first, before)`` of a partition, and why."""

    model_id: str
    first: date
    before: date
    why: str
    is_frozen: bool


@dataclass(frozen=True)
class Serving:
    """The services of a partition in order; `why` tells the reason if nobody serves its start."""

    services: tuple[Service, ...]
    why: str

    @property
    def newest(self) -> str | None:
        """The model that serves last, None if nobody does."""
        return self.services[-1].model_id if self.services else None


def find_champions(ws: Workspace, key: str, task: Task) -> Serving:
    """The models that serve a partition: as frozen, else as decided now, and by order of people.

    While the window before waits for late bars nobody is chosen, whatever models there are: the
    decision is taken once, with that window's model in it. Raises GateError if the window is
    complete and its model is still to be trained.
    """
    start, end = ws.grid.window(key)
    stored = ws.meta.champions(task.task_id, key)
    found = [(c.model_id, c.from_ts, c.why, True) for c in stored]
    why = ""
    if not found or found[0][1] > start:
        decision = decide(ws, key, task)
        why = decision.why
        if decision.model_id is not None:
            found.insert(0, (decision.model_id, start, decision.why, False))
    if not found:
        return Serving((), why)
    ends = [first for _, first, _, _ in found[1:]] + [end]
    services = [
        Service(model_id, first, before, reason, is_frozen)
        for (model_id, first, reason, is_frozen), before in zip(found, ends, strict=True)
    ]
    return Serving(tuple(services), why or services[-1].why)


def decide(ws: Workspace, key: str, task: Task) -> Decision:
    """The champion at the start of a partition, from what is registered now."""
    with ws.series.reading("scoring") as con:
        sessions = read_sessions(con)["ts"].to_pylist()
    previous = partition_before(ws.grid, sessions, key)
    looked_at = judge_until(ws, previous) if previous else []
    if looked_at and not looked_at[-1].is_sealable:
        waits = f"window {looked_at[-1].key} is {looked_at[-1].why}"
        return Decision(None, f"{key} is not scored yet: {waits}")
    decision = _replay(ws, task, ws.grid.window(key)[0])
    if decision.model_id is not None:
        _require_attempt(ws, key, previous, task)
    return decision


def _replay(ws: Workspace, task: Task, start: date, without: str = "") -> Decision:
    """The champion before a date, from the last decision that was frozen before it."""
    orders = ws.meta.orders(task.task_id)
    retired = {o.model_id for o in orders if o.action == "retire" and o.from_ts <= start}
    retired.add(without)
    trained = [m for m in ws.meta.trained(task.task_id) if m.model_id != without]
    last = ws.meta.champion_before(task.task_id, start)
    by_id = {m.model_id: _contender(m, retired) for m in trained}
    incumbent = by_id.get(last.model_id) if last else None
    contenders = list(by_id.values())
    first_seq: dict[str, int] = {}
    for model in sorted(trained, key=lambda m: m.seq):
        first_seq.setdefault(model.recipe, model.seq)
    if last is not None and incumbent is not None and incumbent.status == "ready":
        since = ws.grid.window(last.partition_key)[0]  # earlier ones had their trial
        contenders = [c for c in contenders if c.asof >= since]
    usable = [m for m in trained if m.model_id not in retired]
    return replay(
        incumbent, contenders, start, _tested(ws, usable), 2 * task.horizon, ws.settings.champion,
        lambda day: _held_since(orders, day), first_seq.__getitem__,
    )  # fmt: skip


def _tested(ws: Workspace, trained: Sequence[Trained]) -> Tested:
    """What the models of a recipe were tested on by an as-of date.

    A session that several refits were tested on has the mean of theirs. So a recipe's evidence
    only grows, also when the champion's recipe is trained no more.
    """
    read = cache(ws.meta.model)

    @cache
    def tested(recipe: str, asof: date) -> Evidence:
        models = [read(m.model_id) for m in trained if m.recipe == recipe and m.asof <= asof]
        ts = [np.array(m.test_series["ts"], "datetime64[D]") for m in models]
        rank_ic = [np.array(m.test_series["rank_ic"], np.float64) for m in models]
        sessions, at = np.unique(np.concatenate(ts), return_inverse=True)
        values = np.concatenate(rank_ic)
        means = session_means(at, len(sessions), values, np.isfinite(values))
        chosen = max(m.chosen_asof for m in models)
        return Evidence(sessions, means, chosen, models[-1].settings["folds"]["protocol"])

    return tested


def _contender(m: Trained, retired: Collection[str | None]) -> Contender:
    """A model as it stood: retired from the order on; without its file it still wins its case."""
    status = "retired" if m.model_id in retired else "ready"
    is_known = m.status in ("ready", "retired", "pruned")
    return Contender(m.model_id, m.asof, status if is_known else m.status, m.recipe)


def _held_since(orders: Sequence[Order], day: date) -> date | None:
    """Since when the champion is held on a date, None if it is not."""
    held = None
    for order in orders:
        if order.from_ts <= day and order.action in ("hold", "release"):
            held = order.from_ts if order.action == "hold" else None
    return held


def _require_attempt(ws: Workspace, key: str, previous: str | None, task: Task) -> None:
    if previous is None:
        return
    tried = {m.partition_key for m in ws.meta.trained(task.task_id)}
    tried |= {r.partition_key for r in ws.meta.refusals(task.task_id)}
    if previous not in tried:
        raise GateError(
            f"Scores of {key} need the model of {task.task_id} as of {ws.grid.asof(previous)}, "
            f"which was not trained yet. Run `quant train --asof {ws.grid.asof(previous)}`."
        )


def find_challenger(ws: Workspace, key: str, task: Task, champion: str) -> Model | None:
    """The newest other ready model before a partition that is as new as its champion at least."""
    start = ws.grid.window(key)[0]
    ready = [m for m in ws.meta.trained(task.task_id) if m.status == "ready" and m.asof < start]
    serving = next((m for m in ready if m.model_id == champion), None)
    others = [m for m in ready if serving and m != serving and m.asof >= serving.asof]
    return ws.meta.model(others[-1].model_id) if others else None


def champion_on(ws: Workspace, task: Task, day: date) -> Champion | None:
    """The frozen decision in force on a date, None if nobody served then."""
    key = ws.grid.key(day)
    return next(
        (c for c in reversed(ws.meta.champions(task.task_id, key)) if c.from_ts <= day), None
    )


def promote(ws: Workspace, model_id: str, reason: str) -> Champion:
    """Let a model serve from the first session that is not stored yet."""
    model = ws.meta.model(model_id)
    if model.status != "ready":
        raise GateError(f"Model {model.model_id[:12]} is {model.status}, so it cannot serve.")
    champion = _ordered(ws, model, f"promoted by hand: {reason}")
    _order(ws, model.task_id, "promote", model.model_id, reason, champion)
    return champion


def rollback(ws: Workspace, task: Task, reason: str) -> Champion:
    """Let the champion before the present one serve again."""
    history = [c.model_id for c in ws.meta.champions(task.task_id)]
    ready = {m.model_id for m in ws.meta.trained(task.task_id) if m.status == "ready"}
    earlier = [m for m in history[:-1] if m != history[-1] and m in ready]
    if not earlier:
        raise NoData(f"{task.task_id} has no earlier champion that could serve again.")
    model = ws.meta.model(earlier[-1])
    champion = _ordered(ws, model, f"rolled back by hand: {reason}")
    _order(ws, task.task_id, "rollback", model.model_id, reason, champion)
    return champion


def retire(ws: Workspace, model_id: str, reason: str) -> Champion | None:
    """Take a model out of service for good; gives who serves in its place, if it serves now."""
    model = ws.meta.model(model_id)
    if model.status == "retired":
        raise GateError(f"Model {model.model_id[:12]} is retired already.")
    task = ws.settings.task(model.task_id)
    start = next_day(ws)
    now = ws.meta.champion_before(task.task_id, start + timedelta(days=1))
    champion = None
    if now is not None and now.model_id == model.model_id:
        decision = _replay(ws, task, start, without=model.model_id)
        if decision.model_id is None:
            raise GateError(
                f"Model {model.model_id[:12]} is the only one of {task.task_id} that can serve. "
                "Train another one first."
            )
        heir = ws.meta.model(decision.model_id)
        champion = _ordered(ws, heir, f"{model.model_id[:12]} was retired by hand: {reason}")
    _order(ws, task.task_id, "retire", model.model_id, reason, champion, "retired")
    return champion


def hold(ws: Workspace, task: Task, reason: str, *, release: bool = False) -> date:
    """Keep the champion whatever is trained, or let models challenge it again; gives since when."""
    held = _held_since(ws.meta.orders(task.task_id), date.max)
    if release == (held is None):
        state = "not held" if release else f"held since {held} already"
        raise SettingsError(f"The champion of {task.task_id} is {state}.")
    _order(ws, task.task_id, "release" if release else "hold", None, reason, None)
    return next_day(ws)


def next_day(ws: Workspace) -> date:
    """The day after the newest stored session: nothing that a person orders reaches back."""
    return ws.last_session() + timedelta(days=1)


def _ordered(ws: Workspace, model: Model, why: str) -> Champion:
    from_ts = next_day(ws)
    if model.asof >= from_ts:
        raise GateError(
            f"Model {model.model_id[:12]} is as of {model.asof}, but the next session to score "
            f"may be {from_ts}: it can serve once a later session is stored."
        )
    return Champion(
        task_id=model.task_id, partition_key=ws.grid.key(from_ts), from_ts=from_ts,
        model_id=model.model_id, why=why, decided_at=utc_now(),
        rule=ws.settings.champion.model_dump_json(),
    )  # fmt: skip


def _order(
    ws: Workspace,
    task_id: str,
    action: str,
    model_id: str | None,
    reason: str,
    champion: Champion | None,
    status: str | None = None,
) -> None:
    if not reason.strip():
        raise SettingsError(f"Say why with --reason: {action} is recorded for good.")
    order = Order(
        task_id=task_id, action=action, model_id=model_id, reason=reason, from_ts=next_day(ws),
        ordered_at=utc_now(),
    )  # fmt: skip
    ws.meta.add_order(order, champion, status)
