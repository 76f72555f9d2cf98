"""Scores from a stored booster: the same row, the same score, whatever it is scored with."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from quant_pipeline.errors import DegenerateData, ModelFileError
from quant_pipeline.ml.metrics import average_ranks, index_sessions

if TYPE_CHECKING:
    import lightgbm as lgb  # takes a second and a half: imported by what uses it


def score_rows(
    boosters: Sequence[str],
    x: np.ndarray,
    feature_names: tuple[str, ...],
    expected_names: tuple[str, ...],
    threads: int = 1,
) -> np.ndarray:
    """One float64 score per row of ``x``, the mean of the boosters'.

    A probability, a regression's prediction, or what a ranking orders by.

    ``feature_names`` name the columns of ``x``, ``expected_names`` are those that the model was
    trained on; LightGBM itself would score renamed or reordered columns without a word. A row's
    score depends neither on the other rows, nor on their order, nor on ``threads``. The text must
    be vouched for by its sha256 before it gets here: parsing a damaged one can kill the process.

    Raises ModelFileError that names the first difference in columns, DegenerateData for infinity.
    """
    loaded = _open(boosters, x, feature_names, expected_names)
    if not len(x):
        return np.empty(0)
    total = np.zeros(len(x))
    for booster in loaded:
        rows = np.ascontiguousarray(x)
        total += np.asarray(booster.predict(rows, num_threads=threads), dtype=np.float64)
    mean: np.ndarray = total / len(loaded)
    return mean


def explain_rows(
    boosters: Sequence[str],
    x: np.ndarray,
    feature_names: tuple[str, ...],
    expected_names: tuple[str, ...],
    threads: int = 1,
) -> np.ndarray:
    """SHAP values of each row's raw score: one column a feature, and the base value as the last.

    LightGBM's own ``pred_contrib`` (Lundberg and Lee 2017, exact for trees), the mean over the
    boosters. A row's values add up to its raw score: of a classification that is the log-odds,
    before the logistic function, else the score itself. Raises like `score_rows`.
    """
    loaded = _open(boosters, x, feature_names, expected_names)
    total = np.zeros((len(x), len(expected_names) + 1))
    for booster in loaded if len(x) else []:
        rows = np.ascontiguousarray(x)
        total += np.asarray(booster.predict(rows, pred_contrib=True, num_threads=threads))
    mean: np.ndarray = total / len(loaded)
    return mean


def _open(
    boosters: Sequence[str],
    x: np.ndarray,
    feature_names: tuple[str, ...],
    expected_names: tuple[str, ...],
) -> "list[lgb.Booster]":
    """Boosters that fit the rows to score, which hold no infinity."""
    _require_same_names(feature_names, expected_names, "the model was trained on")
    if x.ndim != 2 or x.shape[1] != len(expected_names):
        raise ModelFileError(
            f"Rows to score have shape {x.shape}, but there are {len(expected_names)} features."
        )
    import lightgbm as lgb

    loaded = [lgb.Booster(model_str=text) for text in boosters]
    for booster in loaded:
        _require_same_names(expected_names, tuple(booster.feature_name()), "the model text has")
    if len(x):
        highest, lowest = np.fmax.reduce(x, axis=0), np.fmin.reduce(x, axis=0)
        infinite = np.flatnonzero(np.isinf(highest) | np.isinf(lowest))
        if len(infinite):
            raise DegenerateData(
                f"Feature {expected_names[infinite[0]]} is infinite in rows to score. "
                "Features are finite numbers or NaN; recompute features_daily."
            )
    return loaded


def _require_same_names(found: tuple[str, ...], expected: tuple[str, ...], whose: str) -> None:
    for position, (name, wanted) in enumerate(zip_longest(found, expected)):
        if name != wanted:
            raise ModelFileError(
                f"Feature {position + 1} is {name or 'missing'}, but {whose} "
                f"{wanted or 'no such column'} there ({len(found)} against {len(expected)} "
                "features, order counts). Train a model on the current features."
            )


def session_percentile(ts: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Average rank of a score within its session / number of scores there, in (0, 1].

    A NaN score has no percentile and is not counted.

    >>> day = np.array(["2024-01-02"] * 4, dtype="datetime64[D]")
    >>> session_percentile(day, np.array([0.1, 0.9, 0.1, 0.5])).tolist()
    [0.375, 1.0, 0.375, 0.75]
    """
    _, session = index_sessions(ts)
    percentile = np.full(len(score), np.nan)
    valid = ~np.isnan(score)
    n = np.bincount(session[valid], minlength=1)
    percentile[valid] = average_ranks(session[valid], score[valid]) / n[session[valid]]
    return percentile
