"""What must hold before one asset may use another: pure rules over names, dates and numbers.

Each gate is called twice: inside the step that consumes, where it raises before anything is
written, and as an asset check, which shows it.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from datetime import date

from quant_pipeline.errors import DegenerateData, GateError

SHOWN = 3
# What has to be finite; a ranking's score estimates nothing, so it has neither.
LOSSES = ("log_loss", "mse")


def require_model_before(asof: date, first_session: date) -> None:
    """Refuse a model that knew the first session it is to score, or a later one."""
    if asof >= first_session:
        raise GateError(
            f"The model is as of {asof}, but the first session to score is {first_session}: it "
            "may have seen that session's outcome. Use a model with an earlier as-of date."
        )


def find_missing_partitions(expected: Sequence[str], present: Collection[str]) -> list[str]:
    """The expected partition keys that are not present, in the order expected."""
    known = set(present)
    return [key for key in expected if key not in known]


def require_complete(
    asset: str, expected: Sequence[str], present: Collection[str], command: str
) -> None:
    """Refuse to go on while partitions of an asset are missing; ``command`` fills them."""
    missing = find_missing_partitions(expected, present)
    if missing:
        raise GateError(
            f"{asset} lacks {len(missing)} of {len(expected)} partitions: {_some(missing)}. "
            f"Run `{command}` first."
        )


def find_changed_fingerprints(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Keys whose fingerprint is no longer the recorded one, or that are on one side only."""
    return sorted(
        key for key in recorded.keys() | found.keys() if recorded.get(key) != found.get(key)
    )


def require_unchanged(
    asset: str, recorded: Mapping[str, str], found: Mapping[str, str], command: str
) -> None:
    """Refuse history that was restated since it was recorded; ``command`` rebuilds it."""
    changed = find_changed_fingerprints(recorded, found)
    if changed:
        raise GateError(
            f"{asset} changed since it was recorded in {len(changed)} partitions: "
            f"{_some(changed)}. A model trained on it could not be rebuilt from its manifest. "
            f"Run `{command}` first."
        )


def require_usable(
    model: str, metrics: Mapping[str, float | int | str | None], n_splits: int
) -> None:
    """Refuse a trained model that cannot score: no split, no test row, or a loss that is no number.

    ``model`` names it in the message. LOSSES must be finite and no
    number infinite. Other metrics may be undefined (NaN or None): a universe under 20 names has no
    IC, and AUC needs two classes.
    """
    if n_splits < 1:
        raise DegenerateData(
            f"{model} has no split: it gives every row the same score. Features carry no signal "
            "at these settings; lower train.min_data_in_leaf or ingest more history."
        )
    if not metrics.get("n_rows"):
        raise DegenerateData(f"{model} has no out-of-sample score to judge it by. Check [folds].")
    losses = {name: metrics[name] for name in LOSSES if name in metrics}
    bad = [name for name, loss in losses.items() if not _is_finite(loss)]
    bad += [name for name, value in metrics.items() if name not in losses and _is_infinite(value)]
    if bad or not (losses or "ndcg_at_k" in metrics):
        what = ", ".join(f"{name} = {metrics[name]}" for name in bad) or "no loss and no ndcg_at_k"
        raise DegenerateData(
            f"{model} has unusable out-of-sample metrics: {what}. Check its labels and features."
        )


def _is_finite(value: float | int | str | None) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)


def _is_infinite(value: float | int | str | None) -> bool:
    return isinstance(value, float | int) and math.isinf(value)


def _some(keys: Sequence[str]) -> str:
    rest = len(keys) - SHOWN
    return ", ".join(keys[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
