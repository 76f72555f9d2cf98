"""The future does not matter: the chain from prices to model and scores, with another one."""

from collections.abc import Sequence
from datetime import date

import pyarrow as pa

from quant_pipeline.chain.making import why_other
from quant_pipeline.chain.proofs.result import Finding, Outcome, Proof, first_difference
from quant_pipeline.chain.rebuild import (
    Rebuilt,
    compute_data,
    compute_features,
    compute_labels,
    learn,
)
from quant_pipeline.chain.scratch import Present, Rewritten, scratch_home
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.stores.meta import Model

# What a chain holds that may depend on nothing after the cut, in the order in which it is made.
_KNOWN = {
    "features_daily": ("features", "ts <= $cut", ("symbol", "ts")),
    "labels": ("labels", "known_at <= $cut", ("task_id", "symbol", "ts")),
    "training_manifest": ("frame", "$cut IS NOT NULL", ("partition_key", "task_id")),
    "walkforward_folds": (
        "folds", "$cut IS NOT NULL", ("task_id", "fold", "part", "block"),
    ),
}  # fmt: skip


def prove_models(
    ws: Workspace,
    models: Sequence[Model],
    present: Present,
    made: Workspace,
    rebuilt: Rebuilt,
    rewritten: Rewritten,
) -> list[Proof]:
    """Compare models as recorded with those that were rebuilt in a home with another future.

    A model of the same bytes had the same features, labels, folds, rounds and settings. If one
    differs, it is rebuilt with the future as it was: only if that changes anything, the future
    mattered; else it is not reproducible, and `quant verify` tells why.
    """
    proofs = [prove_newest(ws, made, present)]
    differing = [m for m in models if _rebuilt_id(rebuilt, m) != m.model_id]
    findings: dict[str, Finding | None] = {}
    if differing:
        findings = _compare_futures(ws, made, rebuilt, present, [m.task_id for m in differing])
    changed = (
        f"{rewritten.n_real:,} later bars became {rewritten.n_made_up:,} others, "
        f"{rewritten.n_restated:,} earlier ones were restated later"
    )
    for model in models:
        numbers = dict(vars(rewritten))
        outcome: Outcome = "holds"
        finding = None
        words = f"model {model.model_id[:12]} came out byte for byte; {changed}"
        if rewritten.n_real and rewritten.n_alike == rewritten.n_real:
            outcome, words = "unproven", "the rewrite changed nothing after the cut"
        elif model in differing:
            finding = findings.get(model.task_id)
            outcome, words = _judge(ws, model, finding, changed)
        proofs.append(Proof("future", outcome, words, model.asof, model.task_id, finding, numbers))
    return proofs


def prove_newest(ws: Workspace, made: Workspace, present: Present) -> Proof:
    """Features and labels of the as-of's own partition, with the future as it was and another one.

    The features of its last sessions have no label yet, so no model has learned from them: their
    scores come of the model before.
    """
    key = ws.grid.key(present.cut)
    beyond = ws.grid.key(ws.grid.window(key)[1])
    n, finding = 0, None
    with scratch_home(ws, made.settings, present) as (plain, _):
        compute_features(plain, [key, beyond])
        compute_labels(plain, [key, beyond])
        start = ws.grid.window(key)[0]
        for table in ("features_daily", "labels"):
            stage, _, keys = _KNOWN[table]
            column = "ts" if table == "features_daily" else "known_at"
            where = f"{column} BETWEEN $start AND $cut"
            rows = [
                _known_rows(one, table, where, keys, present.cut, start=start)
                for one in (plain, made)
            ]
            n += len(rows[0])
            finding = finding or first_difference(stage, table, rows[0], rows[1], keys)
    words = f"{n:,} features and labels of {key} came out alike"
    outcome: Outcome = "fails" if finding else "holds"
    return Proof("future", outcome, words, present.cut, "", finding, {"rows": n})


def _judge(
    ws: Workspace, model: Model, finding: Finding | None, changed: str
) -> tuple[Outcome, str]:
    short = model.model_id[:12]
    if finding is not None:
        return "fails", f"model {short} depends on what came later ({changed})"
    if reasons := why_other(ws, model):
        return "holds", (
            f"another model than {short} comes out, as {reasons[0]}, but alike with any future; "
            f"{changed}"
        )
    return "fails", (
        f"model {short} does not come out again, with any future: see `quant verify {short}`"
    )


def _rebuilt_id(rebuilt: Rebuilt, model: Model) -> str:
    found = rebuilt.models.get(model.task_id)
    return found.model_id if isinstance(found, Model) else ""


def _compare_futures(
    ws: Workspace, made: Workspace, rebuilt: Rebuilt, present: Present, task_ids: Sequence[str]
) -> dict[str, Finding | None]:
    """Where a chain with another future differs from one with the future as it was, by task."""
    key = ws.grid.key(present.cut)
    with scratch_home(ws, made.settings, present) as (plain, _):
        compute_data(plain, key)
        again = learn(plain, key)
        finding = None
        for table in _KNOWN:
            finding = finding or _differ(plain, made, table, present.cut)
    found: dict[str, Finding | None] = {}
    for task_id in task_ids:
        ids = []
        for one in (again, rebuilt):
            model = one.models.get(task_id)
            ids.append(model.model_id if isinstance(model, Model) else str(model))
        found[task_id] = finding
        if finding is None and ids[0] != ids[1]:
            found[task_id] = Finding("model", "models", "", present.cut, "model_id", *ids)
    return found


def _differ(plain: Workspace, made: Workspace, table: str, cut: date) -> Finding | None:
    stage, where, keys = _KNOWN[table]
    rows = [_known_rows(ws, table, where, keys, cut) for ws in (plain, made)]
    return first_difference(stage, table, rows[0], rows[1], keys)


def _known_rows(
    ws: Workspace, table: str, where: str, keys: Sequence[str], cut: date, **others: date
) -> pa.Table:
    order = ", ".join(sorted(keys, key=lambda name: name != "ts"))
    with ws.series.reading("an audit") as con:
        sql = f"SELECT * FROM {table} WHERE {where} ORDER BY {order}"
        return con.sql(sql, params={"cut": cut, **others}).to_arrow_table()
