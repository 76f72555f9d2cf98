"""What a booster is fitted to, and how much each row counts, from stored labels and returns."""

import numpy as np

from quant_pipeline.errors import DegenerateData
from quant_pipeline.ml.examples import Examples
from quant_pipeline.ml.ranking_metrics import grade_returns
from quant_pipeline.ml.sessions import average_ranks, index_sessions
from quant_pipeline.ml.weights import normalized, recency, uniqueness
from quant_pipeline.settings import Task


def make_target(
    task: Task, ts: np.ndarray, label: np.ndarray, fwd_return: np.ndarray
) -> np.ndarray:
    """What a booster of a task is fitted to; it compares rows of one session with one another only.

    - classification: the 0/1 label, or 1 where the return is above the session's median
    - regression: the return, its values beyond the session's quantiles ``winsorize`` and
      1 - ``winsorize`` set to these; as it is, less the session's mean (``demean``), or the centred
      rank (r - 0.5) / n - 0.5 of the average rank r among the session's n returns (``rank``)
    - ranking: the grade 0 to grades - 1 of the session's return quantile

    Raises DegenerateData for a label of a classification that is neither 0 nor 1.
    """
    if task.kind == "classification":
        if task.above == "median":
            return (fwd_return > _session_quantile(ts, fwd_return, 0.5)).astype(np.float64)
        bad = np.flatnonzero(~np.isin(label, (0.0, 1.0)))
        if len(bad):
            raise DegenerateData(
                f"Task {task.task_id} is a classification, but {len(bad)} labels are neither 0 "
                f"nor 1, first on {ts[bad[0]]}: {label[bad[0]]}."
            )
        return label.astype(np.float64)
    if task.kind == "ranking":
        return grade_returns(ts, fwd_return, task.grades).astype(np.float64)
    values = fwd_return.astype(np.float64)
    if task.winsorize:
        low = _session_quantile(ts, values, task.winsorize)
        values = np.clip(values, low, _session_quantile(ts, values, 1 - task.winsorize))
    if task.normalize == "none" or not len(values):
        return values
    _, session = index_sessions(ts)
    n = np.bincount(session)
    if task.normalize == "demean":
        demeaned: np.ndarray = values - (np.bincount(session, values) / n)[session]
        return demeaned
    ranked: np.ndarray = (average_ranks(session, values) - 0.5) / n[session] - 0.5
    return ranked


def row_weights(task: Task, examples: Examples, rows: np.ndarray) -> np.ndarray | None:
    """How much each of some rows counts in a fit to them, mean 1; None if all count the same.

    ``recency`` halves every ``half_life`` sessions before the newest of the rows; ``uniqueness`` is
    the average uniqueness of a row's return among the overlapping ones of its symbol. Nothing but
    these rows matters: whether a symbol has later ones is not known in a fold.
    """
    if task.weights == "none":
        return None
    if task.weights == "recency":
        return normalized(recency(index_sessions(examples.ts[rows])[1], task.half_life))
    entry, known = examples.entry_ts[rows], examples.known_at[rows]
    sessions = np.unique(np.concatenate([entry, known]))
    _, code = np.unique(examples.symbol[rows].astype(str), return_inverse=True)
    first = np.searchsorted(sessions, entry) + 1
    return normalized(uniqueness(code, first, np.searchsorted(sessions, known)))


def _session_quantile(ts: np.ndarray, values: np.ndarray, q: float) -> np.ndarray:
    """Each row's session's quantile, linear between the two nearest values."""
    if not len(values):
        return np.empty(0)
    _, session = index_sessions(ts)
    order = np.lexsort((values, session))
    ordered = values[order]
    n = np.bincount(session)
    start = np.cumsum(n) - n
    place = (n - 1) * q
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, n - 1)
    a, b = ordered[start + low], ordered[start + high]
    found: np.ndarray = (a + (b - a) * (place - low))[session]
    return found
