"""Why two models or two scores differ: one cause swapped at a time, adding up to the whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import Any

import numpy as np

from quant_pipeline.chain.champions import decide
from quant_pipeline.chain.making import scored_with
from quant_pipeline.chain.model_content import read_boosters
from quant_pipeline.chain.provenance import code_version
from quant_pipeline.chain.rebuild import (
    compute_data,
    compute_features,
    learn,
    present_at,
    present_of,
)
from quant_pipeline.chain.scratch import scratch_home, settings_of
from quant_pipeline.chain.verified import Tell
from quant_pipeline.chain.workspace import Workspace, newest_batch_id
from quant_pipeline.errors import NoData
from quant_pipeline.ml.score import score_rows
from quant_pipeline.settings import Settings, Task
from quant_pipeline.stores.meta import Model

Scores = dict[str, float]
# Sections of the settings that each cause swaps, in this order.
CAUSES = {
    "features": ("features", "jumps"),
    "universe": ("universe",),
    "settings": ("label", "folds", "train", "tasks"),
}


@dataclass(frozen=True)
class Step:
    """One cause: `change` of each symbol's score that it brings, after those before it."""

    cause: str
    words: str
    change: dict[str, float]


@dataclass(frozen=True)
class Difference:
    """Scores of one session, before and after, and the steps that lead from one to the other.

    For each symbol in both the changes of all steps add up to `after` - `before`.
    """

    session: date
    before: Scores
    after: Scores
    steps: tuple[Step, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Each step's mean and mean absolute change, and its share of the whole.

        A step's share is the covariance of its changes with the whole change over symbols, about
        zero, divided by that of the whole with itself: shares add up to 1.
        """
        symbols = sorted(set(self.before) & set(self.after))
        whole = np.array([self.after[s] - self.before[s] for s in symbols])
        square = float(whole @ whole)
        found = []
        for step in self.steps:
            change = np.array([step.change.get(s, 0.0) for s in symbols])
            share = float(change @ whole / square) if square else None
            found.append(
                {
                    "cause": step.cause,
                    "what": step.words,
                    "mean_change": float(change.mean()) if len(symbols) else None,
                    "mean_abs_change": float(np.abs(change).mean()) if len(symbols) else None,
                    "share": share,
                }
            )
        return found


@dataclass(frozen=True)
class _Recipe:
    """What a model is made from."""

    settings: Settings
    key: str
    batch_id: int


def diff_models(ws: Workspace, a: Model, b: Model, session: date | None, tell: Tell) -> Difference:
    """How much of the change in scores comes from what, from one model of a task to another.

    Both score the same session, by default the newest, from today's prices; in between, models are
    trained that take one thing after the other from the second: prices as of its batch, the later
    as-of, features, universe, settings. What is left at both ends is code and environment.
    Raises NoData if they are of different tasks.
    """
    if a.task_id != b.task_id:
        raise NoData(
            f"{a.model_id[:12]} is of {a.task_id}, {b.model_id[:12]} of {b.task_id}: their scores "
            "mean different things."
        )
    scorer = _Scorer(ws, session or ws.last_session(), newest_batch_id(ws))
    old, new = (_Recipe(settings_of(ws, m), m.partition_key, m.price_batch_id) for m in (a, b))
    path = _path(old, new)
    walk = _Walk(scorer.recorded(a, old.settings), tell, len(path) + 2)
    walk.to("code", _versions(a), lambda: scorer.trained(old))
    for cause, words, recipe in path:
        walk.to(cause, words, partial(scorer.trained, recipe))
    walk.to("code", _versions(b), lambda: scorer.recorded(b, new.settings))
    return walk.end(scorer.session)


def diff_scores(ws: Workspace, task: Task, session: date, tell: Tell) -> Difference:
    """How much of the change in a session's scores comes from what, from then to now.

    Then: what is stored. Now: what would come out if that partition were scored today for the
    first time, with today's prices, champion and quant.toml. Raises NoData without stored scores.
    """
    stored = ws.series.query(
        "SELECT symbol, score, model_id, price_batch_id FROM predictions "
        "WHERE task_id = ? AND ts = ? ORDER BY symbol",
        [task.task_id, session],
    ).to_pylist()
    if not stored:
        raise NoData(f"No score of {task.task_id} on {session} is stored. See `quant predictions`.")
    model = ws.meta.model(stored[0]["model_id"])
    batch_id = max(row["price_batch_id"] for row in stored)
    settings = scored_with(ws, model, session) or settings_of(ws, model)
    newest = newest_batch_id(ws)
    then, now = _Scorer(ws, session, batch_id), _Scorer(ws, session, newest)
    champion = ws.meta.model(_champion_now(ws, task, session) or model.model_id)
    old = _Recipe(settings_of(ws, champion), champion.partition_key, champion.price_batch_id)
    today = ws.settings.model_copy(update={"tasks": (task,)})
    path = _path(old, _Recipe(today, old.key, newest))
    stored_scores = {row["symbol"]: row["score"] for row in stored}
    walk = _Walk(stored_scores, tell, len(path) + 2 + (champion.model_id != model.model_id))
    walk.to("code", _versions(model), lambda: then.recorded(model, settings))
    words = f"features from prices as of batch {batch_id}, then {newest}"
    walk.to("restated prices", words, lambda: now.recorded(model, settings))
    if champion.model_id != model.model_id:
        words = f"served by {model.model_id[:12]}, today by {champion.model_id[:12]}"
        walk.to("champion", words, lambda: now.recorded(champion, old.settings))
    for cause, words, recipe in path:
        walk.to(cause, words, partial(now.trained, recipe))
    return walk.end(session)


def _champion_now(ws: Workspace, task: Task, session: date) -> str | None:
    """Who would serve a session's partition, were it decided today."""
    key = ws.grid.key(session)
    chosen = decide(ws, key, task).model_id
    orders = [c for c in ws.meta.champions(task.task_id, key)
              if ws.grid.window(key)[0] < c.from_ts <= session]  # fmt: skip
    return orders[-1].model_id if orders else chosen


def _path(old: _Recipe, new: _Recipe) -> list[tuple[str, str, _Recipe]]:
    """Recipes from one to another, one cause swapped at a time: cause, what changed, recipe."""
    found = []
    now = old
    if new.batch_id > now.batch_id:
        words = f"learned from prices as of batch {now.batch_id}, then {new.batch_id}"
        now = replace(now, batch_id=new.batch_id)
        found.append(("restated prices", words, now))
    if new.key != now.key:
        words = f"learned by the end of {now.key}, then {new.key}"
        now = replace(now, key=new.key)
        found.append(("later data", words, now))
    for cause, names in CAUSES.items():
        changed = [n for n in names if getattr(new.settings, n) != getattr(now.settings, n)]
        if changed:
            update = {name: getattr(new.settings, name) for name in names}
            now = replace(now, settings=now.settings.model_copy(update=update))
            found.append((cause, ", ".join(f"[{name}]" for name in changed), now))
    return found


def _versions(model: Model) -> str:
    return f"{model.model_id[:12]} is of code {model.code_version}, this is {code_version()}"


class _Walk:
    """From scores to scores, step by step."""

    def __init__(self, before: Scores, tell: Tell, total: int) -> None:
        self._before, self._at = before, before
        self._steps: list[Step] = []
        self._tell, self._total, self._done = tell, total, 0

    def to(self, cause: str, words: str, score: Callable[[], Scores]) -> None:
        self._tell(f"swapping {cause}", self._done, self._total)
        after = score()
        both = set(self._at) & set(after)
        change = {symbol: after[symbol] - self._at[symbol] for symbol in both}
        if cause != "code" or any(change.values()):
            self._steps.append(Step(cause, words, change))
        self._done += 1
        # A symbol that a step leaves out is compared with nothing from there on.
        self._at = {symbol: after[symbol] for symbol in after if symbol in self._at}

    def end(self, session: date) -> Difference:
        """The whole, for the symbols that were there at every step."""
        before = {symbol: self._before[symbol] for symbol in self._at}
        return Difference(session, before, dict(self._at), tuple(self._steps))


class _Scorer:
    """Scores one session, features from prices as of one batch."""

    def __init__(self, ws: Workspace, session: date, batch_id: int) -> None:
        self.session = session
        self._ws, self._batch_id = ws, batch_id
        self._features: dict[str, tuple[list[str], dict[str, np.ndarray]]] = {}

    def recorded(self, model: Model, settings: Settings) -> Scores:
        """Scores by a registered model."""
        return self._score(read_boosters(self._ws, model), model.features, settings)

    def trained(self, recipe: _Recipe) -> Scores:
        """Scores by a model that is trained for it and forgotten."""
        ws = self._ws
        present = present_of(ws, recipe.settings, recipe.key, recipe.batch_id)
        with scratch_home(ws, recipe.settings, present) as (made, _):
            compute_data(made, recipe.key)
            (found,) = learn(made, recipe.key).models.values()
            if not isinstance(found, Model):
                raise NoData(f"No model can be trained on the way: {found}")
            return self._score(read_boosters(made, found), found.features, recipe.settings)

    def _score(self, boosters: list[str], names: Sequence[str], settings: Settings) -> Scores:
        symbols, columns = self._read(settings)
        x = np.column_stack([columns[name] for name in names]).astype(np.float32)
        score = score_rows(boosters, x, tuple(names), tuple(names))
        return dict(zip(symbols, score.tolist(), strict=True))

    def _read(self, settings: Settings) -> tuple[list[str], dict[str, np.ndarray]]:
        """Symbols in the universe and their features, computed once for settings that agree."""
        ws = self._ws
        key = replace(ws, settings=settings).feature_set_id
        if key not in self._features:
            present = present_at(ws, settings, self.session, self._batch_id)
            with scratch_home(ws, settings, present) as (made, _):
                compute_features(made, [made.grid.key(self.session)])
                rows = made.series.query(
                    "SELECT * FROM features_daily WHERE in_universe AND ts = ? ORDER BY symbol",
                    [self.session],
                )
            columns = {f.name: rows[f.name].to_numpy() for f in made.features}
            self._features[key] = (rows["symbol"].to_pylist(), columns)
        return self._features[key]
