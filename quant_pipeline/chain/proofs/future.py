"""The future does not matter: the chain from prices to model and scores, with another one."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.chain.learn import code_version, environment
from quant_pipeline.chain.proofs.result import Finding, Outcome, Proof, first_difference
from quant_pipeline.chain.rebuild import (
    Rebuilt,
    compute_data,
    compute_features,
    compute_labels,
    learn,
    present_at,
    score_again,
    stored_scores,
)
from quant_pipeline.chain.scratch import Present, Rewritten, scratch_home, settings_of
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import QuantError
from quant_pipeline.settings import Settings
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
    changed = f"{rewritten.n_real:,} later bars became {rewritten.n_made_up:,} others"
    for model in models:
        numbers = dict(vars(rewritten))
        outcome: Outcome = "holds"
        finding = None
        words = f"model {model.model_id[:12]} came out byte for byte; {changed}"
        if rewritten.n_real and rewritten.n_alike == rewritten.n_real:
            outcome, words = "unproven", "the rewrite changed nothing after the cut"
        elif model in differing:
            finding = findings.get(model.task_id)
            outcome, words = _judge(model, finding, changed)
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


def _judge(model: Model, finding: Finding | None, changed: str) -> tuple[Outcome, str]:
    short = model.model_id[:12]
    if finding is not None:
        return "fails", f"model {short} depends on what came later ({changed})"
    if model.code_version != code_version() or model.environment != environment():
        return "holds", (
            f"with this code another model than {short} comes out, alike with any future; {changed}"
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


def prove_scores(ws: Workspace, model: Model, session: date, rng: np.random.Generator) -> Proof:
    """Score one session again, from prices alone and with everything after it made up."""
    settings = scored_with(ws, model, session)
    if settings is None:
        words = f"scores of {session} were made with settings that are not recorded any more"
        return Proof("scores", "unproven", words, model.asof, model.task_id)
    stored = stored_scores(ws, model, session)
    outcome: Outcome = "holds"
    words = f"{len(stored)} scores of {session} came out bit for bit, everything after it made up"
    finding = None
    for batch_id in sorted(set(stored["price_batch_id"].to_pylist())):  # late bars have another
        mine = stored.filter(pc.equal(stored["price_batch_id"], batch_id))
        found = _scored(ws, model, settings, session, batch_id, rng, mine)
        if not first_difference("", "", mine.select(found.column_names), found, ("symbol",)):
            continue
        plain = _scored(ws, model, settings, session, batch_id, None, mine)
        finding = first_difference("scores", "predictions", plain, found, ("symbol",))
        outcome = "fails"
        words = f"scores of {session} depend on what came later"
        if finding is None:
            words = (
                f"scores of {session} do not come out again, with any future: see "
                f"`quant verify --task {model.task_id} --ts {session}`"
            )
        break
    finding = replace(finding, ts=session) if finding else None
    numbers = {"session": session.isoformat(), "scores": len(stored)}
    return Proof("scores", outcome, words, model.asof, model.task_id, finding, numbers)


def _scored(
    ws: Workspace,
    model: Model,
    settings: Settings,
    session: date,
    batch_id: int,
    rng: np.random.Generator | None,
    stored: pa.Table,
) -> pa.Table:
    """Scores as of a batch, without symbols that another batch scored."""
    present = present_at(ws, settings, session, batch_id)
    with scratch_home(ws, settings, present, rng) as (made, _):
        found = score_again(made, ws.files, model, session)
    others = set(stored_scores(ws, model, session)["symbol"].to_pylist())
    others -= set(stored["symbol"].to_pylist())
    return found.filter(pc.invert(pc.is_in(found["symbol"], pa.array(sorted(others), pa.string()))))


def scored_with(ws: Workspace, model: Model, session: date) -> Settings | None:
    """The settings that the features behind stored scores were made with, None if they are lost."""
    key = ws.grid.key(session)
    spec = next((b.spec_id for b in ws.meta.batches("features_daily", (key, key))), "")
    for settings in (ws.settings, settings_of(ws, model)):
        try:
            is_it = replace(ws, settings=settings).feature_set_id == spec
        except QuantError:  # of a feature or module that is gone
            continue
        if is_it:
            return settings
    return None
