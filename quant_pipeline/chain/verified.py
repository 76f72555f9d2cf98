"""What became of a model or of scores that were made again."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

import numpy as np

Tell = Callable[[str, int, int], None]
Outcome = Literal["identical", "explained", "alarm"]


@dataclass(frozen=True)
class Verified:
    """What became of one model, or of the scores of one session that were made at one time.

    `reasons` tell what is not as it was then, if the bytes differ; an "alarm" has none, or scores
    that are not those that were recorded. `agreement` compares the scores of then and now, `today`
    what today's history would give.
    """

    kind: Literal["model", "scores"]
    name: str
    outcome: Outcome
    words: str
    reasons: tuple[str, ...] = ()
    agreement: dict[str, Any] = field(default_factory=dict)
    today: dict[str, Any] = field(default_factory=dict)
    session: date | None = None


def agreement_of(then: np.ndarray, now: np.ndarray) -> dict[str, Any]:
    """How two scores of the same rows agree: correlation and the largest difference.

    Rows without a score in `now` (NaN) are counted as missing and left out. One row is told as
    its two scores.
    """
    has_both = ~np.isnan(now)
    found: dict[str, Any] = {"scores": int(has_both.sum())}
    if not has_both.all():
        found["missing"] = int((~has_both).sum())
    then, now = then[has_both], now[has_both]
    if not len(then):
        return found
    if len(then) == 1:
        return found | {"then": float(then[0]), "now": float(now[0])}
    found["correlation"] = _correlation(then, now)
    found["largest_difference"] = float(np.max(np.abs(then - now)))
    return found


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Of Pearson; 1 for the same values, None where one of them is constant."""
    if np.array_equal(a, b):
        return 1.0
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])
