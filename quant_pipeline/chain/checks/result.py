"""What a check says of a partition, and the names and texts of all checks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

# ERROR: the data must not be used. WARN: a person should look.
Severity = Literal["ERROR", "WARN"]

CHECKS: Mapping[str, Mapping[str, str]] = {
    "prices_daily": {
        "no_session_is_missing": "Sessions follow one another as in the exchange's calendar, or "
        "without a longer gap than usual.",
        "bars_are_not_stale": "Few bars repeat the bar before: a source that stands still does.",
        "moves_are_plausible": "No move looks like a split that the source did not adjust, and "
        "none is beyond belief.",
        "sessions_are_covered": "Each session has most of its usual bars.",
        "prices_are_recent": "The newest bar is as new as the calendar allows, as of now.",
    },
    "features_daily": {
        "features_are_finite": "No feature is infinite: models would take it for a number.",
        "features_are_filled": "Few values of the universe are missing, of each feature.",
        "features_have_not_drifted": "Features are distributed as in the training window before "
        "(population stability index).",
    },
    "labels": {
        "labels_follow_their_sessions": "Each label is known after its session, entry and exit.",
        "base_rate_is_usual": "Neither nearly all nor nearly none of the labels are positive.",
    },
    "training_frame": {
        "increments_are_complete": "Each task has its manifest, and the rows left out add up.",
        "examples_are_as_recorded": "Every increment of the training window is there and has its "
        "recorded fingerprint.",
    },
    "walkforward_folds": {
        "windows_do_not_overlap": "No example of a window has an outcome where another window of "
        "its fold has examples. Counted in SQL from the stored windows, with nothing of the code "
        "that cut them; the windows hold exactly the rows that they are said to have kept.",
    },
    "lgbm_model": {
        "model_is_usable": "Each model of the partition has splits and finite out-of-sample "
        "metrics, and its file.",
        "future_does_not_matter": "The newest look-ahead audit of the partition's models, by "
        "`quant audit` or the nightly job. Executed alone, it audits them.",
    },
    "predictions": {
        "scores_come_from_earlier_models": "Every score of the partition is by a model of its "
        "task, as of before its session.",
        "universe_is_scored": "Nearly every member of the universe has a score.",
        "scores_are_spread": "Scores of a session tell its symbols apart.",
        "scores_are_unique": "A symbol has one score a session and task.",
        "scores_have_not_drifted": "Scores are distributed as in the partition before "
        "(population stability index).",
        "scores_are_reproduced": "Scores of the newest session, made anew from the stored "
        "features and the model file, are the stored ones to the last bit.",
        "scores_are_rebuilt": "The newest rebuilding of the partition's scores from prices as of "
        "their batch, by the nightly job. Executed alone, it rebuilds some.",
    },
    "prediction_outcomes": {
        "rank_ic_is_usual": "Mean RankIC is not far under that of earlier partitions.",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Checked:
    """What a check found in a partition, of one task if it looks at tasks one by one.

    `words` say what is wrong, where, and what to do; or why nothing could be judged.
    """

    name: str
    key: str
    passed: bool
    severity: Severity = "WARN"
    words: str = ""
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)
    task_id: str = ""

    def __post_init__(self) -> None:
        plain = {n: v.item() if isinstance(v, np.generic) else v for n, v in self.numbers.items()}
        known = {n: v for n, v in plain.items() if not _is_undefined(v)}
        object.__setattr__(self, "numbers", known)
        object.__setattr__(self, "passed", bool(self.passed))


def some(found: Sequence[Any], shown: int = 3) -> str:
    """The first of some things, and how many more there are.

    >>> some(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    rest = len(found) - shown
    return ", ".join(str(f) for f in found[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _is_undefined(value: float | int | str) -> bool:
    """Neither JSON nor GraphQL has a NaN or an infinity."""
    return isinstance(value, float) and not math.isfinite(value)
