"""All checks of an asset over a range of partitions, and their results in the registry."""

from collections.abc import Callable, Sequence

from quant_pipeline.chain.checks.features import check_features
from quant_pipeline.chain.checks.learning import (
    check_folds,
    check_frame,
    check_labels,
    check_models,
)
from quant_pipeline.chain.checks.prices import check_prices
from quant_pipeline.chain.checks.result import Checked
from quant_pipeline.chain.checks.scores import check_outcomes, check_predictions
from quant_pipeline.chain.proving import PROVED, prove, verdicts
from quant_pipeline.chain.verified import Tell
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.stores.meta import CheckResult, utc_now

CHECKING: dict[str, Callable[[Workspace, Sequence[str]], list[Checked]]] = {
    "prices_daily": check_prices,
    "features_daily": check_features,
    "labels": check_labels,
    "training_frame": check_frame,
    "walkforward_folds": check_folds,
    "lgbm_model": check_models,
    "predictions": check_predictions,
    "prediction_outcomes": check_outcomes,
}


def run_checks(
    ws: Workspace,
    asset: str,
    keys: Sequence[str],
    run_id: str = "",
    names: Sequence[str] = (),
    tell: Tell = lambda _what, _done, _all: None,
) -> list[Checked]:
    """Check consecutive partitions of an asset, all at once, and add the results to the registry.

    A check only looks: whether a step may go on is for the gates inside of it. Proofs take long:
    with the others their newest verdict is told, and only if `names` asks for nothing else are
    they made.
    """
    if names and set(names) <= set(PROVED.values()):
        found = prove(ws, asset, keys, tell)
        record(ws, asset, found, run_id)
        return found
    found = CHECKING[asset](ws, list(keys))
    record(ws, asset, found, run_id)
    return found + (verdicts(ws, asset, keys) if asset in PROVED else [])


def record(ws: Workspace, asset: str, found: Sequence[Checked], run_id: str) -> None:
    """Add results to the registry."""
    now = utc_now()
    ws.meta.add_check_results(
        [
            CheckResult(
                asset=asset, name=c.name, partition_key=c.key, task_id=c.task_id, passed=c.passed,
                severity=c.severity, numbers=dict(c.numbers), words=c.words, run_id=run_id,
                checked_at=now,
            )
            for c in found
        ]
    )  # fmt: skip
