"""Why two models or two scores differ: one cause swapped at a time, adding up to the whole."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from quant_pipeline.chain.champions import decide
from quant_pipeline.chain.making import makings_of, scored_with, why_impossible, why_other
from quant_pipeline.chain.model_content import read_boosters
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
from quant_pipeline.stores.series import read_sessions

Scores = dict[str, float]
# Sections of the settings that each cause swaps, in this order.
CAUSES = {
    "features": ("features", "jumps"),
    "universe": ("universe",),
    "settings": ("label", "folds", "train", "tasks"),
}
UNEXPLAINED = "unexplained"
CANCELLED = 1e-9  # of the largest change: a whole that is smaller has no shares


@dataclass(frozen=True)
class Step:
    """One cause: `change` of each symbol's score that it brings, after those before it.

    Symbols that came into the universe or went out of it here have no change.
    """

    cause: str
    words: str
    change: dict[str, float]
    entered: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def changes_something(self) -> bool:
        """Whether there is a score, or somebody in the universe, that it makes another."""
        return bool(self.entered or self.left or any(self.change.values()))


@dataclass(frozen=True)
class Difference:
    """Scores of one session, before and after, and the steps that lead from one to the other.

    `before` and `after` are of the symbols in both. For each of them the changes of all steps add
    up to `after` - `before`.
    """

    session: date
    before: Scores
    after: Scores
    steps: tuple[Step, ...]

    @property
    def entered(self) -> list[str]:
        """Symbols that have a score after, but none before."""
        return sorted(symbol for step in self.steps for symbol in step.entered)

    @property
    def left(self) -> list[str]:
        """Symbols that have a score before, but none after."""
        return sorted(symbol for step in self.steps for symbol in step.left)

    def rows(self) -> list[dict[str, Any]]:
        """Each step's mean and mean absolute change, its share of the whole, who came and went.

        A step's share is the covariance of its changes with the whole change over symbols, about
        zero, divided by that of the whole with itself: shares add up to 1. They are None if
        nothing changes as a whole, also because steps cancel each other.
        """
        symbols = sorted(set(self.before) & set(self.after))
        whole = np.array([self.after[s] - self.before[s] for s in symbols])
        changes = [np.array([step.change.get(s, 0.0) for s in symbols]) for step in self.steps]
        largest = max((np.abs(change).max(initial=0.0) for change in changes), default=0.0)
        size = np.abs(whole).max(initial=0.0)
        unit = whole / size if size > CANCELLED * largest else None
        return [
            {
                "cause": step.cause,
                "what": step.words,
                "mean_change": float(change.mean()) if symbols else None,
                "mean_abs_change": float(np.abs(change).mean()) if symbols else None,
                "share": None if unit is None else float(change / size @ unit / (unit @ unit)),
                "n_entered": len(step.entered),
                "n_left": len(step.left),
            }
            for step, change in zip(self.steps, changes, strict=True)
        ]


@dataclass(frozen=True)
class _Recipe:
    """What a model is made from; `scored` are settings of the rows that it then scores."""

    settings: Settings
    scored: Settings
    key: str
    batch_id: int


@dataclass(frozen=True)
class _Stop:
    """A place on the way: who is in the universe there, how some are scored, what led to it."""

    cause: str
    words: str
    members: Callable[[], set[str]]
    score: Callable[[Sequence[str]], Scores]


def diff_models(ws: Workspace, a: Model, b: Model, session: date | None, tell: Tell) -> Difference:
    """How much of the change in scores comes from what, from one model of a task to another.

    Both score the same session, by default the newest, from today's prices; in between, models are
    trained that take one thing after the other from the second: prices as of its batch, its
    as-of, features, universe, settings. From `b` to `a` every change has the opposite sign. What
    this code makes of both otherwise than it was made then is one step.
    Raises NoData if they are of different tasks, or one cannot be trained again.
    """
    if a.task_id != b.task_id:
        raise NoData(
            f"{a.model_id[:12]} is of {a.task_id}, {b.model_id[:12]} of {b.task_id}: their scores "
            "mean different things."
        )
    first, last = (_usable(ws, model, is_trained_again=True) for model in (a, b))
    scorer = _Scorer(ws, session or ws.last_session(), newest_batch_id(ws))
    _require_session(ws, scorer.session)
    recipes = [_Recipe(s, s, m.partition_key, m.price_batch_id) for m, s in ((a, first), (b, last))]
    # Always by way of the later batch, which holds all that either learned from.
    turn = 1 if _age(a) <= _age(b) else -1
    path = _path(*recipes[::turn])[::turn]
    before, after = (
        _Stop(*_made_otherwise(ws, m), partial(scorer.members, s), partial(scorer.recorded, m, s))
        for m, s in ((a, first), (b, last))
    )
    if a.model_id == b.model_id:
        return _difference(scorer.session, [before, after], tell)
    way = [_stop(ws, scorer, *pair) for pair in pairwise(path)]
    if len(way) == 1 and _are_made_alike(a, b):  # what this code makes of them is beside the point
        found = replace(after, cause=way[0].cause, words=way[0].words)
        return _difference(scorer.session, [before, found], tell)
    begin = _Stop(before.cause, before.words, before.members, partial(scorer.trained, path[0]))
    return _difference(scorer.session, [before, begin, *way, after], tell, are_ends_one=True)


def diff_scores(ws: Workspace, task: Task, session: date, tell: Tell) -> Difference:
    """How much of the change in a session's scores comes from what, from then to now.

    Then: what is stored, each score as of its own batch of prices. Now: what would come out if
    that partition were scored today for the first time, with today's code, prices, champion and
    quant.toml. Raises NoData without stored scores, or if a model cannot be made again.
    """
    stored = _Stored.read(ws, task, session)
    models = {model_id: ws.meta.model(model_id) for model_id in stored.model_ids}
    served = next(iter(models.values()))
    champion = ws.meta.model(_champion_now(ws, task, session) or served.model_id)
    settings = {m.model_id: _usable(ws, m) for m in models.values()}
    settings[champion.model_id] = _usable(ws, champion, is_trained_again=True)

    newest = newest_batch_id(ws)
    then = {b: _Scorer(ws, session, b) for b in stored.batch_ids}
    now = _Scorer(ws, session, newest)
    ours = settings[served.model_id]
    known = scored_with(ws, served, session) or ours
    scored = _scored_in(then, stored, ours, [known, ours, ws.settings])
    in_universe = {m: _with_universe(s, scored) for m, s in settings.items()}

    def recorded(pick: Callable[[int], _Scorer], symbols: Sequence[str]) -> Scores:
        found: Scores = {}
        for (model_id, batch_id), mine in stored.groups.items():
            both = sorted(set(mine) & set(symbols))
            found |= pick(batch_id).recorded(models[model_id], in_universe[model_id], both)
        return found

    mine = in_universe[served.model_id]
    stops = [
        _Stop("", "", lambda: set(stored.scores), lambda symbols: stored.scores),
        _Stop(*_scored_otherwise(ws, served, session, stored), lambda: stored.members(then, mine),
              lambda symbols: recorded(then.__getitem__, symbols)),
        _Stop(*_restated(ws, "scored", stored.batch_ids, newest),
              lambda: now.members(mine), lambda symbols: recorded(lambda _: now, symbols)),
    ]  # fmt: skip
    theirs = in_universe[champion.model_id]
    if list(models) != [champion.model_id]:
        names = ", ".join(model_id[:12] for model_id in models)
        words = f"served by {names}, today by {champion.model_id[:12]}"
        stops.append(
            _Stop("champion", words, partial(now.members, theirs),
                  partial(now.recorded, champion, theirs))
        )  # fmt: skip
    old = _Recipe(
        settings[champion.model_id], theirs, champion.partition_key, champion.price_batch_id
    )
    today = ws.settings.model_copy(update={"tasks": (task,)})
    path = _path(old, _Recipe(today, today, old.key, newest))
    stops.append(
        _Stop(*_made_otherwise(ws, champion), partial(now.members, theirs),
              partial(now.trained, old))
    )  # fmt: skip
    return _difference(session, [*stops, *(_stop(ws, now, *pair) for pair in pairwise(path))], tell)


def _champion_now(ws: Workspace, task: Task, session: date) -> str | None:
    """Who would serve a session's partition, were it decided today."""
    key = ws.grid.key(session)
    chosen = decide(ws, key, task).model_id
    orders = [c for c in ws.meta.champions(task.task_id, key)
              if ws.grid.window(key)[0] < c.from_ts <= session]  # fmt: skip
    return orders[-1].model_id if orders else chosen


def _require_session(ws: Workspace, day: date) -> None:
    with ws.series.reading("comparing") as con:
        is_one = len(read_sessions(con, day, day)) > 0
    if not is_one:
        raise NoData(
            f"{day} is no session whose prices are stored. Name one by --ts: the newest is "
            f"{ws.last_session()}."
        )


def _usable(ws: Workspace, model: Model, *, is_trained_again: bool = False) -> Settings:
    """The settings of a model that can score, and be trained again; refuse others at once."""
    settings = settings_of(ws, model)
    again = f"`quant train --asof {model.asof} --task {model.task_id}`"
    if model.status == "pruned":
        raise NoData(
            f"Model {model.model_id[:12]} cannot score any more: its file was pruned. On the data "
            f"and settings of then {again} makes the same file again."
        )
    if is_trained_again and (why := why_impossible(ws, model)):
        mend = "Set [features] of quant.toml and its modules back"
        if model.status == "imported":
            mend = f"Run `quant diff` there, or make a model of these prices with {again}"
        raise NoData(
            f"Model {model.model_id[:12]} cannot be trained again, which tells what a change comes "
            f"from: {why}. {mend}."
        )
    read_boosters(ws, model)
    return settings


def _are_made_alike(a: Model, b: Model) -> bool:
    """Whether code, environment and what features mean were the same for two models."""
    names = ("feature_modules", "feature_values")
    kept = [(m.code_version, m.environment, [m.settings.get(n) for n in names]) for m in (a, b)]
    return kept[0] == kept[1]


def _age(model: Model) -> tuple[int, date, int]:
    return model.price_batch_id, model.asof, model.seq


def _made_otherwise(ws: Workspace, model: Model) -> tuple[str, str]:
    """Why a model may come out otherwise, by what is recorded of it: cause and words."""
    short = model.model_id[:12]
    reasons = why_other(ws, model)
    if not reasons:
        return UNEXPLAINED, f"{short} does not come out again: see `quant verify {short}`"
    return _cause(reasons), f"{short} is of {'; '.join(reasons)}"


def _cause(reasons: Sequence[str]) -> str:
    """What of code, features and environment reasons name by their first word."""
    words = (reason.split()[0] for reason in reasons)
    kinds = (word if word in ("code", "features") else "environment" for word in words)
    return " or ".join(dict.fromkeys(kinds))


def _with_universe(settings: Settings, other: Settings) -> Settings:
    """Settings with the universe of others: what they make of a symbol, and whether it is in."""
    features = settings.features.model_copy(update={"min_sessions": other.features.min_sessions})
    return settings.model_copy(update={"features": features, "universe": other.universe})


@dataclass(frozen=True)
class _Stored:
    """Stored scores of one session, and who has them from which model and batch of prices."""

    scores: Scores
    groups: dict[tuple[str, int], list[str]]
    made_at: dict[tuple[str, int], datetime]

    @classmethod
    def read(cls, ws: Workspace, task: Task, session: date) -> "_Stored":
        """Of a symbol that two models scored, the score that was made last."""
        rows = ws.series.query(
            "SELECT symbol, score, model_id, price_batch_id, generated_at FROM predictions "
            "WHERE task_id = ? AND ts = ? ORDER BY generated_at, model_id, symbol",
            [task.task_id, session],
        ).to_pylist()
        if not rows:
            raise NoData(
                f"No score of {task.task_id} on {session} is stored. See `quant predictions`."
            )
        groups: dict[tuple[str, int], list[str]] = {}
        made_at: dict[tuple[str, int], datetime] = {}
        for symbol, row in {row["symbol"]: row for row in rows}.items():
            group = row["model_id"], row["price_batch_id"]
            groups.setdefault(group, []).append(symbol)
            made_at[group] = row["generated_at"]
        return cls({row["symbol"]: row["score"] for row in rows}, groups, made_at)

    @property
    def model_ids(self) -> list[str]:
        """The models, that of most symbols first."""
        n = Counter[str]()
        for (model_id, _), symbols in self.groups.items():
            n[model_id] += len(symbols)
        return [model_id for model_id, _ in n.most_common()]

    @property
    def batch_ids(self) -> list[int]:
        return sorted({batch_id for _, batch_id in self.groups})

    def members(self, then: Mapping[int, "_Scorer"], settings: Settings) -> set[str]:
        """Who is in the universe as of his own batch; without a score, as of the newest of them."""
        found = then[self.batch_ids[-1]].members(settings) - set(self.scores)
        for (_, batch_id), symbols in self.groups.items():
            found |= then[batch_id].members(settings) & set(symbols)
        return found


def _scored_otherwise(
    ws: Workspace, model: Model, session: date, stored: _Stored
) -> tuple[str, str]:
    """Why scores by a model may come out otherwise from the same prices: cause and words."""
    reasons = []
    for (model_id, batch_id), made_at in stored.made_at.items():
        if model_id == model.model_id:
            made = makings_of(ws, model, session, batch_id, made_at)[0]
            lost = () if made.settings else ("features or universe that are not recorded any more",)
            reasons += [*made.reasons, *lost]
    if not reasons:
        again = f"`quant verify --task {model.task_id} --ts {session}`"
        return UNEXPLAINED, f"the scores do not come out again: see {again}"
    return _cause(reasons), f"the scores are of {'; '.join(dict.fromkeys(reasons))}"


def _scored_in(
    then: Mapping[int, "_Scorer"], stored: _Stored, ours: Settings, others: Sequence[Settings]
) -> Settings:
    """Of other settings, the first of those whose universe is nearest to the stored scores'.

    In which they were made may not be recorded; the features behind are the same with all, or
    nothing would have been scored.
    """
    symbols = set(stored.scores)
    candidates = [_with_universe(ours, other) for other in others]
    if all(candidate == candidates[0] for candidate in candidates):
        return candidates[0]
    return min(candidates, key=lambda s: len(stored.members(then, s) ^ symbols))


def _path(old: _Recipe, new: _Recipe) -> list[_Recipe]:
    """Recipes from one to another that is not older, both included, one cause swapped at a time."""
    found = [old]
    if new.batch_id != old.batch_id:
        found.append(replace(found[-1], batch_id=new.batch_id))
    if new.key != old.key:
        found.append(replace(found[-1], key=new.key))
    for names in CAUSES.values():
        if _changed(old, new, names):
            made, scored = (
                mine.model_copy(update={name: getattr(theirs, name) for name in names})
                for mine, theirs in (
                    (found[-1].settings, new.settings), (found[-1].scored, new.scored)
                )
            )  # fmt: skip
            found.append(replace(found[-1], settings=made, scored=scored))
    return found


def _changed(a: _Recipe, b: _Recipe, names: Sequence[str]) -> list[str]:
    pairs = ((a.settings, b.settings), (a.scored, b.scored))
    return [n for n in names if any(getattr(x, n) != getattr(y, n) for x, y in pairs)]


def _stop(ws: Workspace, scorer: "_Scorer", last: _Recipe, recipe: _Recipe) -> "_Stop":
    """A model that is trained for it, and how its recipe differs from that of the stop before."""
    if last.batch_id != recipe.batch_id:
        cause, words = _restated(ws, "learned", [last.batch_id], recipe.batch_id)
    elif last.key != recipe.key:
        cause, words = "later data", f"learned by the end of {last.key}, then {recipe.key}"
    else:
        changed = {c: n for c, names in CAUSES.items() if (n := _changed(last, recipe, names))}
        ((cause, names),) = changed.items()
        words = ", ".join(f"[{name}]" for name in names)
    members = partial(scorer.members, recipe.scored)
    return _Stop(cause, words, members, partial(scorer.trained, recipe))


def _restated(ws: Workspace, what: str, then: Sequence[int], now: int) -> tuple[str, str]:
    """Cause and words of a step from batches of prices to another one."""
    words = f"{what} from prices as of batch {', '.join(map(str, then))}, then {now}"
    kinds = ws.series.query(
        "SELECT DISTINCT kind FROM price_batches WHERE batch_id > ? AND batch_id <= ?",
        [min(*then, now), max(*then, now)],
    )["kind"].to_pylist()
    if kinds == ["memberships"]:
        return "universe", words.replace("prices", "members")
    return "restated prices", words


def _difference(
    session: date, stops: Sequence[_Stop], tell: Tell, *, are_ends_one: bool = False
) -> Difference:
    """Go from the first to the last stop. A step that changes nothing is none."""
    members = [stop.members() for stop in stops]
    both = sorted(members[0] & members[-1])
    moves = _moves(members)
    before = at = _of(stops[0].score(both), both)
    steps = []
    for i, stop in enumerate(stops[1:]):
        tell(f"swapping {stop.cause}", i, len(stops) - 1)
        after = at | _of(stop.score(both), both)  # without features on the way a score stays
        change = {symbol: after[symbol] - at[symbol] for symbol in both}
        steps.append(Step(stop.cause, stop.words, change, *moves[i]))
        at = after
    if are_ends_one:
        steps = [_merged(steps[0], steps[-1]), *steps[1:-1]]
    return Difference(session, before, at, tuple(s for s in steps if s.changes_something))


def _of(scores: Scores, symbols: Sequence[str]) -> Scores:
    return {symbol: scores[symbol] for symbol in symbols if symbol in scores}


def _moves(members: Sequence[set[str]]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Who entered and who left for good at each step, of those who are at one end alone."""
    found: list[tuple[list[str], list[str]]] = [([], []) for _ in members[1:]]
    for symbol in sorted(members[0] ^ members[-1]):
        is_in = [symbol in those for those in members]
        at = max(i for i, (a, b) in enumerate(pairwise(is_in)) if a != b)
        found[at][is_in[0]].append(symbol)
    return [(tuple(entered), tuple(left)) for entered, left in found]


def _merged(a: Step, b: Step) -> Step:
    """Two steps as one, named for those that change something."""
    telling = [step for step in (a, b) if step.changes_something] or [a]
    causes = dict.fromkeys(cause for step in telling for cause in step.cause.split(" or "))
    words = "; ".join(step.words for step in telling)
    change = {symbol: a.change[symbol] + b.change[symbol] for symbol in a.change}
    return Step(" or ".join(causes), words, change, a.entered + b.entered, a.left + b.left)


@dataclass(frozen=True)
class _Rows:
    """Symbols with features on a session, which are in the universe, and the features."""

    symbols: list[str]
    members: set[str]
    columns: dict[str, np.ndarray]


class _Scorer:
    """Scores one session, features from prices as of one batch."""

    def __init__(self, ws: Workspace, session: date, batch_id: int) -> None:
        self.session = session
        self._ws, self._batch_id = ws, batch_id
        self._rows: dict[str, _Rows] = {}

    def members(self, settings: Settings) -> set[str]:
        """Symbols in the universe of settings."""
        return self._read(settings).members

    def recorded(self, model: Model, settings: Settings, symbols: Sequence[str]) -> Scores:
        """Scores by a registered model, in the universe or not."""
        return self._score(read_boosters(self._ws, model), model.features, settings, symbols)

    def trained(self, recipe: _Recipe, symbols: Sequence[str]) -> Scores:
        """Scores by a model that is trained for it and forgotten."""
        ws = self._ws
        present = present_of(ws, recipe.settings, recipe.key, recipe.batch_id)
        with scratch_home(ws, recipe.settings, present) as (made, _):
            compute_data(made, recipe.key)
            (found,) = learn(made, recipe.key).models.values()
            if not isinstance(found, Model):
                raise NoData(f"No model can be trained on the way: {found}")
            return self._score(read_boosters(made, found), found.features, recipe.scored, symbols)

    def _score(
        self, boosters: list[str], names: Sequence[str], settings: Settings, symbols: Sequence[str]
    ) -> Scores:
        rows = self._read(settings)
        at = [i for i, symbol in enumerate(rows.symbols) if symbol in set(symbols)]
        x = np.column_stack([rows.columns[name][at] for name in names]).astype(np.float32)
        score = score_rows(boosters, x, tuple(names), tuple(names))
        return dict(zip([rows.symbols[i] for i in at], score.tolist(), strict=True))

    def _read(self, settings: Settings) -> _Rows:
        """The rows of the session, computed once for settings that agree."""
        ws = self._ws
        key = replace(ws, settings=settings).feature_set_id
        if key not in self._rows:
            present = present_at(ws, settings, self.session, self._batch_id)
            with scratch_home(ws, settings, present) as (made, _):
                compute_features(made, [made.grid.key(self.session)])
                rows = made.series.query(
                    "SELECT * FROM features_daily WHERE ts = ? ORDER BY symbol", [self.session]
                )
            columns = {f.name: rows[f.name].to_numpy() for f in made.features}
            symbols, is_in = rows["symbol"].to_pylist(), rows["in_universe"].to_pylist()
            members = {symbol for symbol, is_it in zip(symbols, is_in, strict=True) if is_it}
            self._rows[key] = _Rows(symbols, members, columns)
        return self._rows[key]
