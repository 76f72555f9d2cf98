"""Which model serves: a pure function of what is registered, replayed in as-of order.

Training promotes nothing. A challenger is compared with the champion by what both scored out of
sample, in the test windows of their folds, on the same sessions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date

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


# Sessions (datetime64[D]) of a model's test windows and its RankIC on each, by model id.
Series = Callable[[str], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Decision:
    """The model that serves a partition, or None, and the reason in words."""

    model_id: str | None
    why: str


def replay(
    incumbent: Contender | None,
    contenders: Sequence[Contender],
    before: date,
    series: Series,
    lag: int,
    spec: ChampionSettings,
    held_since: date | None = None,
) -> Decision:
    """The champion of a partition that starts at `before`, from the last one that was decided.

    Ready models with an as-of date after that of the incumbent challenge in as-of order; of
    several with one as-of, only the one that was registered last (callers list them in that
    order). The first ready model is champion; a refit of the champion's recipe follows it; any
    other is judged by `judge`. Nobody challenges after `held_since`. Never a model that is not
    ready, nor one with an as-of date on or after `before`.
    """
    ready = [c for c in contenders if c.status == "ready" and c.asof < before]
    if incumbent is not None and incumbent.status != "ready":
        incumbent = None
    if incumbent is None and not ready:
        return Decision(None, _why_nobody(contenders, before))
    newest = {c.asof: c for c in ready}
    champion = incumbent
    why = "" if incumbent is None else f"it served before, as of {incumbent.asof}"
    for asof in sorted(newest):
        challenger = newest[asof]
        if champion is None:
            champion, why = challenger, f"first ready model, as of {asof}"
        elif asof <= champion.asof:
            continue
        elif held_since is not None and asof >= held_since:
            why = f"it is held since {held_since}"
        elif challenger.recipe == champion.recipe:
            champion, why = challenger, f"refit of the champion's recipe as of {asof}"
        else:
            is_better, reason = judge(
                series(challenger.model_id), series(champion.model_id), lag, spec
            )
            name = f"{challenger.model_id[:12]} as of {asof}"
            why = f"{name} {'took over' if is_better else 'stayed challenger'}: {reason}"
            champion = challenger if is_better else champion
    assert champion is not None
    return Decision(champion.model_id, why)


def judge(
    challenger: tuple[np.ndarray, np.ndarray],
    champion: tuple[np.ndarray, np.ndarray],
    lag: int,
    spec: ChampionSettings,
) -> tuple[bool, str]:
    """Whether a challenger takes over, and why, from RankIC on sessions that both were tested on.

    The mean difference is judged by its Newey-West standard error: "unless_worse" lets it take
    over unless it is more than `z` of them below 0, "if_better" only if it is more than `z` above.
    On fewer than `min_sessions` the setting `insufficient` decides.
    """
    if spec.rule == "newest":
        return True, "champion.rule takes the newest"
    found = paired_difference(*challenger, *champion, lag)
    n, mean, se = int(found["n"]), found["mean"], found["se"]
    if n < spec.min_sessions or not se > 0:
        return spec.insufficient == "promote", (
            f"only {n} of the {spec.min_sessions} common sessions that champion.min_sessions asks "
            f"for, so champion.insufficient = {spec.insufficient} decides"
        )
    reason = f"mean RankIC {mean:+.4f} ± {se:.4f} against the champion's on {n} sessions"
    if spec.rule == "if_better":
        return mean > spec.z * se, reason
    return mean >= -spec.z * se, reason


def _why_nobody(contenders: Iterable[Contender], before: date) -> str:
    every = list(contenders)
    if not every:
        return "no model has been trained yet"
    ready = [c.asof for c in every if c.status == "ready"]
    if not ready:
        return f"none of the {len(every)} models is ready"
    return f"the oldest ready model is as of {min(ready)}, not before {before}"
