"""Which model serves: a pure function of what is registered, replayed in as-of order.

Training promotes nothing. Recipes are compared by what their models scored out of sample, in the
test windows of their folds, on the same sessions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from quant_pipeline.ml.metrics import paired_difference
from quant_pipeline.settings import ChampionSettings


@dataclass(frozen=True)
class Contender:
    """What the gate knows of a model of one task, all of it known at its as-of date."""

    model_id: str
    asof: date
    status: str
    recipe: str


@dataclass(frozen=True, eq=False)
class Evidence:
    """Sessions (datetime64[D]) on which a recipe was tested by an as-of date, RankIC on each.

    `chosen_asof`: outcomes known by then may have led the choice of its settings. Tests under
    unlike protocols are not compared.
    """

    sessions: np.ndarray
    rank_ic: np.ndarray
    chosen_asof: date
    protocol: str


# The evidence for a recipe by an as-of date.
Tested = Callable[[str, date], Evidence]


@dataclass(frozen=True)
class Decision:
    """The model that serves a partition, or None, and the reason in words."""

    model_id: str | None
    why: str


def replay(
    incumbent: Contender | None,
    contenders: Sequence[Contender],
    before: date,
    tested: Tested,
    lag: int,
    spec: ChampionSettings,
    held_since: Callable[[date], date | None] = lambda _: None,
    known_since: Callable[[str], int] = lambda _: 0,
) -> Decision:
    """The champion of a partition that starts at `before`, from the last one that was decided.

    Ready models with an as-of date after that of the incumbent challenge in as-of order, of one
    recipe and as-of the one that was registered last (callers list them in that order). The first
    ready model is champion. At each as-of the refit of the champion's recipe follows it first; then
    a model of any other recipe is judged by `judge`: one that was registered before the champion's
    (`known_since`: the first number of a recipe), whose refit is there, too, has to be better.
    Nobody challenges at an as-of on the day after which the champion is held. Never a model that is
    not ready, nor one with an as-of date on or after `before`.
    """
    ready = [c for c in contenders if c.status == "ready" and c.asof < before]
    if incumbent is not None and incumbent.status != "ready":
        incumbent = None
    if incumbent is None and not ready:
        return Decision(None, _why_nobody(contenders, before))
    champion = incumbent
    why = "" if incumbent is None else f"it served before, as of {incumbent.asof}"
    for asof in sorted({c.asof for c in ready}):
        newest = {c.recipe: c for c in ready if c.asof == asof}
        if champion is None:
            champion = next(iter(newest.values()))
            why = f"first ready model, as of {asof}"
        elif asof <= champion.asof:
            continue
        elif (since := held_since(asof + timedelta(days=1))) is not None:
            why = f"it is held since {since}"
            continue
        elif champion.recipe in newest:
            champion = newest[champion.recipe]
            why = f"refit of the champion's recipe as of {asof}"
        for recipe, challenger in newest.items():
            if recipe == champion.recipe:
                continue
            is_refitted = champion.recipe in newest
            is_old = is_refitted and known_since(recipe) < known_since(champion.recipe)
            is_better, reason = judge(
                tested(recipe, asof), tested(champion.recipe, asof), lag, spec, is_old=is_old
            )
            name = f"{challenger.model_id[:12]} as of {asof}"
            why = f"{name} {'took over' if is_better else 'stayed challenger'}: {reason}"
            champion = challenger if is_better else champion
    assert champion is not None
    return Decision(champion.model_id, why)


def judge(
    challenger: Evidence,
    champion: Evidence,
    lag: int,
    spec: ChampionSettings,
    *,
    is_old: bool = False,
) -> tuple[bool, str]:
    """Whether a recipe takes over from another, and why, from RankIC on common test sessions.

    Sessions count that neither recipe's settings were chosen by; all, if fewer than `min_sessions`
    of them are. The mean difference is judged by its Newey-West standard error: "unless_worse" lets
    the challenger take over unless it is more than `z` of them below 0; "if_better", and one
    `is_old`, only if it is more than `z` above, and not by sessions that may have led the choice
    of settings. On fewer than `min_sessions` the setting `insufficient` decides.
    """
    if spec.rule == "newest":
        return True, "champion.rule takes the newest"
    if challenger.protocol != champion.protocol:
        return spec.insufficient == "promote", (
            f"tests by {challenger.protocol} and {champion.protocol} cannot be compared, so "
            f"champion.insufficient = {spec.insufficient} decides"
        )
    found, is_after = _compare(challenger, champion, lag, spec.min_sessions)
    n, mean, se = int(found["n"]), found["mean"], found["se"]
    n_silent = _count_silent(challenger, champion)
    if n < spec.min_sessions <= n + n_silent:
        return False, (
            f"its scores tell the names apart on only {n} of {n + n_silent} common sessions"
        )
    if n < spec.min_sessions:
        return spec.insufficient == "promote", (
            f"only {n} of the {spec.min_sessions} common sessions that champion.min_sessions asks "
            f"for, so champion.insufficient = {spec.insufficient} decides"
        )
    reason = f"mean RankIC {mean:+.4f} ± {se:.4f} against the champion's on {n} sessions"
    if not is_after:
        reason += ", which may have led the choice of settings"
    if is_old or spec.rule == "if_better":
        return bool(is_after and mean > spec.z * se), reason
    return bool(mean >= -spec.z * se), reason


def _compare(
    challenger: Evidence, champion: Evidence, lag: int, least: int
) -> tuple[dict[str, float], bool]:
    """The difference on common sessions, and whether these lie after both choices of settings."""
    chosen = np.datetime64(max(challenger.chosen_asof, champion.chosen_asof))
    late = challenger.sessions > chosen
    after = paired_difference(
        challenger.sessions[late], challenger.rank_ic[late], champion.sessions, champion.rank_ic,
        lag,
    )  # fmt: skip
    if after["n"] >= least:
        return after, True
    every = paired_difference(
        challenger.sessions, challenger.rank_ic, champion.sessions, champion.rank_ic, lag
    )
    return every, bool(late.all())


def _count_silent(challenger: Evidence, champion: Evidence) -> int:
    """Common sessions on which the champion has a RankIC, and the challenger was tested in vain."""
    silent = challenger.sessions[~np.isfinite(challenger.rank_ic)]
    heard = champion.sessions[np.isfinite(champion.rank_ic)]
    return len(np.intersect1d(silent, heard))


def _why_nobody(contenders: Iterable[Contender], before: date) -> str:
    every = list(contenders)
    if not every:
        return "no model has been trained yet"
    ready = [c.asof for c in every if c.status == "ready"]
    if not ready:
        return f"none of the {len(every)} models is ready"
    return f"the oldest ready model is as of {min(ready)}, not before {before}"
