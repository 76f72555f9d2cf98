"""Scores from a stored booster: the same row, the same score, whatever it is scored with."""

from itertools import zip_longest

import lightgbm as lgb
import numpy as np

from quant_pipeline.errors import DegenerateData, ModelFileError
from quant_pipeline.ml.metrics import average_ranks, index_sessions


def score_rows(
    booster_text: str,
    x: np.ndarray,
    feature_names: tuple[str, ...],
    expected_names: tuple[str, ...],
    threads: int = 1,
) -> np.ndarray:
    """One float64 score per row of ``x``: a probability, or a regression's prediction.

    ``feature_names`` name the columns of ``x``, ``expected_names`` are those that the model was
    trained on; LightGBM itself would score renamed or reordered columns without a word. A row's
    score depends neither on the other rows, nor on their order, nor on ``threads``. The text must
    be vouched for by its sha256 before it gets here: parsing a damaged one can kill the process.

    Raises ModelFileError that names the first difference in columns, DegenerateData for infinity.
    """
    _require_same_names(feature_names, expected_names, "the model was trained on")
    if x.ndim != 2 or x.shape[1] != len(expected_names):
        raise ModelFileError(
            f"Rows to score have shape {x.shape}, but there are {len(expected_names)} features."
        )
    booster = lgb.Booster(model_str=booster_text)
    _require_same_names(expected_names, tuple(booster.feature_name()), "the model text has")
    if not len(x):
        return np.empty(0)
    highest, lowest = np.fmax.reduce(x, axis=0), np.fmin.reduce(x, axis=0)
    infinite = np.flatnonzero(np.isinf(highest) | np.isinf(lowest))
    if len(infinite):
        raise DegenerateData(
            f"Feature {expected_names[infinite[0]]} is infinite in rows to score. "
            "Features are finite numbers or NaN; recompute features_daily."
        )
    rows = np.ascontiguousarray(x)
    return np.asarray(booster.predict(rows, num_threads=threads), dtype=np.float64)


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
