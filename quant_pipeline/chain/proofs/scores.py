"""The future does not matter to scores: one session's once more, everything after it made up."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.chain.making import Making, makings_of, why_bad, why_unscored
from quant_pipeline.chain.proofs.result import Finding, Outcome, Proof, first_difference
from quant_pipeline.chain.rebuild import present_at, score_again, stored_scores
from quant_pipeline.chain.scratch import scratch_home
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.settings import Settings
from quant_pipeline.stores.meta import Model

TOGETHER = ("price_batch_id", "generated_at")
Found = tuple[Outcome, str, Finding | None]


def prove_scores(ws: Workspace, model: Model, session: date, rng: np.random.Generator) -> Proof:
    """Score one session again, from prices alone and with everything after it made up."""
    stored = stored_scores(ws, model, session)
    numbers = {"session": session.isoformat(), "scores": len(stored)}
    outcome, words, finding = _prove(ws, model, session, stored, rng)
    finding = replace(finding, ts=session) if finding else None
    return Proof("scores", outcome, words, model.asof, model.task_id, finding, numbers)


def _prove(
    ws: Workspace, model: Model, session: date, stored: pa.Table, rng: np.random.Generator
) -> Found:
    if why := why_bad(ws, model) or why_unscored(ws, model):
        return "unproven", f"scores of {session} cannot be made again: {why}", None
    words = f"{len(stored)} scores of {session} came out bit for bit, everything after it made up"
    found: Found = ("holds", words, None)
    for mine in _made_together(stored):  # late bars were scored later
        batch_id, made_at = (mine[name][0].as_py() for name in TOGETHER)
        makings = makings_of(ws, model, session, batch_id, made_at)
        one = _prove_together(ws, model, session, mine, makings, rng)
        if one is not None and found[0] == "holds":
            found = one
        if found[0] == "fails":
            break
    return found


def _prove_together(
    ws: Workspace,
    model: Model,
    session: date,
    stored: pa.Table,
    makings: list[Making],
    rng: np.random.Generator,
) -> Found | None:
    """What is to be said of scores that were made together; None if they came out bit for bit."""
    known = [(m.settings, m.reasons) for m in makings if m.settings is not None]
    if not known:
        words = f"scores of {session} were made with settings that are not recorded any more"
        return "unproven", words, None
    unlike = None
    for settings, reasons in known:
        found = _scored(ws, model, settings, session, stored, rng)
        finding = _difference(stored, found)
        if finding is None:
            return None
        plain = _scored(ws, model, settings, session, stored, None)
        if looked_ahead := _difference(plain, found):
            return "fails", f"scores of {session} depend on what came later", looked_ahead
        unlike = unlike or (finding, reasons)
    assert unlike is not None
    finding, reasons = unlike
    if makings[0].settings is None:
        words = f"scores of {session} were made with settings that are not recorded any more"
        return "unproven", words, None
    if reasons:
        words = f"other scores of {session} come out, as {reasons[0]}, but alike with any future"
        return "holds", words, None
    words = (
        f"scores of {session} do not come out again, with any future: see `quant verify --task "
        f"{model.task_id} --ts {session}`"
    )
    return "fails", words, finding


def _made_together(stored: pa.Table) -> Iterator[pa.Table]:
    """Scores by the batch of prices and the time that they were made from."""
    for group in stored.group_by(list(TOGETHER)).aggregate([]).sort_by("generated_at").to_pylist():
        same = [pc.equal(stored[n], pa.scalar(v, stored[n].type)) for n, v in group.items()]
        yield stored.filter(pc.and_(*same))


def _difference(expected: pa.Table, found: pa.Table) -> Finding | None:
    columns = ["symbol", "score"]
    return first_difference(
        "scores", "predictions", expected.select(columns), found.select(columns), ("symbol",)
    )


def _scored(
    ws: Workspace,
    model: Model,
    settings: Settings,
    session: date,
    stored: pa.Table,
    rng: np.random.Generator | None,
) -> pa.Table:
    """Scores as of the batch of some stored ones, without symbols that were scored otherwise."""
    present = present_at(ws, settings, session, stored["price_batch_id"][0].as_py())
    with scratch_home(ws, settings, present, rng) as (made, _):
        found = score_again(made, ws.files, model, session)
    others = set(stored_scores(ws, model, session)["symbol"].to_pylist())
    others -= set(stored["symbol"].to_pylist())
    return found.filter(pc.invert(pc.is_in(found["symbol"], pa.array(sorted(others), pa.string()))))
