"""Asset checks: what `chain.checks` finds, as Dagster shows it, partition by partition.

One step an asset computes all its checks for all partitions of a run at once. A run over a range
has no partition key, so Dagster would file each of its results under no partition, and leave the
planned ones of the partitions open for ever ("skipped"). So a range gives one event a check (the
worst of its partitions, which fails if one does), and each partition's own result is filed under
its key in one transaction (`defs.check_rows`): an event for each would take as long as the run.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from quant_pipeline.chain.checks.result import CHECKS, Checked, some
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.check_rows import file_by_partition, file_without_run

WorkspaceParam = dg.ResourceParam[Workspace]
Grid = dg.TimeWindowPartitionsDefinition
Found = Mapping[str, Mapping[str, Sequence[Checked]]]
SEVERITY = {"ERROR": dg.AssetCheckSeverity.ERROR, "WARN": dg.AssetCheckSeverity.WARN}


def make_checks(grid: Grid) -> Sequence[dg.AssetChecksDefinition]:
    """All checks, partitioned like their assets; one definition an asset."""
    return [_checks_of(asset, texts, grid) for asset, texts in CHECKS.items()]


def _checks_of(asset: str, texts: Mapping[str, str], grid: Grid) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(name, asset=asset, description=text, partitions_def=grid)
        for name, text in texts.items()
    ]

    @dg.multi_asset_check(name=f"check_{asset}", specs=specs, can_subset=True)
    def check(
        context: dg.AssetCheckExecutionContext, workspace: WorkspaceParam
    ) -> Iterator[dg.AssetCheckResult]:
        from quant_pipeline.chain.checks.run import run_checks

        keys = list(context.op_execution_context.partition_keys)
        chosen = [key.name for key in context.selected_asset_check_keys]
        checked = run_checks(workspace, asset, keys, context.run.run_id, chosen)
        found = by_name(checked, chosen, keys)
        for name, of_key in found.items():
            yield result(asset, name, of_key)
        if len(keys) > 1:
            file_by_partition(context, asset, evaluations(asset, found))

    return check


def check_without_run(
    instance: dg.DagsterInstance, ws: Workspace, asset: str, keys: Sequence[str]
) -> list[Checked]:
    """Check partitions that changed outside of a run (an ingest), and show it like a run's."""
    from quant_pipeline.chain.checks.run import run_checks

    if not keys:
        return []
    ordered = sorted(keys, key=ws.grid.asof)
    everything = ws.grid.keys(ordered[0], ordered[-1])
    found = [one for one in run_checks(ws, asset, everything) if one.key in keys]
    file_without_run(instance, asset, evaluations(asset, by_name(found, list(CHECKS[asset]), keys)))
    return found


def by_name(checked: Sequence[Checked], names: Sequence[str], keys: Sequence[str]) -> Found:
    """Results by check and partition, in the order of the catalogue."""
    found: dict[str, dict[str, list[Checked]]] = {
        name: {key: [] for key in keys} for texts in CHECKS.values() for name in texts
        if name in names
    }  # fmt: skip
    for one in checked:
        if one.name in found:
            found[one.name][one.key].append(one)
    return found


def result(asset: str, name: str, of_key: Mapping[str, Sequence[Checked]]) -> dg.AssetCheckResult:
    """What a check says of all partitions of a run: of one in full, of several which failed."""
    everything = [one for found in of_key.values() for one in found]
    bad = [key for key, found in of_key.items() if not all(one.passed for one in found)]
    if len(of_key) == 1:
        (found,) = of_key.values()
        return dg.AssetCheckResult(asset_key=asset, check_name=name, **_of_one(found))
    failed = [one for one in everything if not one.passed]
    errors = [one for one in failed if one.severity == "ERROR"]
    first = next(iter(errors or failed), None)
    metadata: dict[str, Any] = {"partitions": len(of_key), "partitions_not_passed": len(bad)}
    if bad:
        metadata["not_passed"] = dg.MetadataValue.md(_table(failed))
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=name,
        passed=not bad,
        severity=SEVERITY["ERROR" if errors else "WARN"],
        description=f"{some(bad)}; {first.key}: {first.words}" if first else None,
        metadata=metadata,
    )


def file_results(
    instance: dg.DagsterInstance, asset: str, found: Sequence[Checked], names: Sequence[str]
) -> None:
    """Show results of some checks that were made outside of a run of the asset."""
    keys = list(dict.fromkeys(one.key for one in found))
    file_without_run(instance, asset, evaluations(asset, by_name(found, names, keys)))


def evaluations(asset: str, found: Found) -> list[dg.AssetCheckEvaluation]:
    """What each check says of each partition of a run."""
    return [
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(asset), check_name=name, partition=key, blocking=False,
            **_of_one(results),
        )
        for name, of_key in found.items() for key, results in of_key.items()
    ]  # fmt: skip


def _of_one(found: Sequence[Checked]) -> dict[str, Any]:
    """Pass, severity, words and numbers of one partition; tasks are told apart by their id."""
    bad = [one for one in found if not one.passed]
    is_error = any(one.severity == "ERROR" for one in bad)
    said = bad or found
    return {
        "passed": not bad,
        "severity": SEVERITY["ERROR" if is_error or not bad else "WARN"],
        "description": " ".join(dict.fromkeys(o.words for o in said if o.words)) or None,
        "metadata": {
            (f"{one.task_id}/{name}" if one.task_id else name): value
            for one in found for name, value in one.numbers.items()
        },
    }  # fmt: skip


def _table(bad: Sequence[Checked]) -> str:
    lines = ["| partition | task | severity | why |", "| --- | --- | --- | --- |"]
    lines += [f"| {o.key} | {o.task_id} | {o.severity} | {o.words} |" for o in bad]
    return "\n".join(lines)
