"""The test window does not matter: each fold fitted again, everything known from it on made up."""

from collections.abc import Mapping, Sequence
from datetime import date

import numpy as np

from quant_pipeline.chain.proofs.result import Finding, Outcome, Proof
from quant_pipeline.chain.rebuild import Rebuilt
from quant_pipeline.chain.training_data import read_examples
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.market.rewriting import rewrite_examples
from quant_pipeline.ml.boosters import FoldFit
from quant_pipeline.ml.examples import Examples
from quant_pipeline.ml.splits import Fold, FoldRows, fold_rows, make_folds
from quant_pipeline.ml.train import Recipe, refit_fold
from quant_pipeline.settings import Task, alike

Labels = dict[str, np.ndarray]
SHARE_GONE = 0.3  # of the rows from a test window on


def prove_windows(
    made: Workspace, key: str, rebuilt: Rebuilt, rng: np.random.Generator
) -> list[Proof]:
    """Fit each fold of a partition's models again, its test window and all that follows made up.

    Rows of training and early stopping, rounds, bins, settings and trees have to be the same. Made
    up is also which rows there are: of each session at least one stays. Where folds train on both
    sides of a test (cpcv), only the test windows are made up.
    """
    proofs = []
    asof = made.grid.asof(key)
    for tasks in alike(made.settings.tasks):
        trained = [t for t in tasks if t.task_id in rebuilt.trained]
        if not trained:
            continue
        found, n_folds, n_rewritten = _refit(made, key, trained, rebuilt, rng)
        numbers = {"folds": n_folds, "rewritten": n_rewritten}
        for task in trained:
            finding = found.get(task.task_id)
            outcome: Outcome = "fails" if finding else "holds"
            words = f"{n_folds} folds came out alike, {n_rewritten:,} test and later rows made up"
            if finding is not None:
                words = "a fold depends on its own test window"
            proofs.append(Proof("windows", outcome, words, asof, task.task_id, finding, numbers))
    return proofs


def _refit(
    made: Workspace, key: str, tasks: Sequence[Task], rebuilt: Rebuilt, rng: np.random.Generator
) -> tuple[dict[str, Finding], int, int]:
    """The first difference of each task; how many folds there are, and made-up rows."""
    s = made.settings
    with made.series.reading("an audit") as con:
        examples, labels, _ = read_examples(made, con, key, tasks)
    folds = make_folds(np.unique(examples.ts), s.folds, tasks[0].label_span)
    recipe = Recipe(s.train, s.folds, s.metrics)
    found: dict[str, Finding] = {}
    n_rewritten = 0
    for number, fold in enumerate(folds):
        other, other_labels, n = _rewritten(examples, labels, fold, s.folds.protocol, rng)
        n_rewritten += n
        rows, fits = refit_fold(other, other_labels, folds, number, tasks, recipe)
        was = fold_rows(fold, examples.ts, examples.known_at)
        unlike = _unlike_rows(fold, examples, was, other, rows)
        for task in tasks:
            mine = rebuilt.trained[task.task_id]
            rounds, digests = mine.fold_rounds[number], mine.fold_digests[number]
            finding = unlike or _unlike_fit(fold, rounds, digests, fits[task.task_id])
            if finding is not None:
                found.setdefault(task.task_id, finding)
    return found, len(folds), n_rewritten


def _rewritten(
    examples: Examples, labels: Labels, fold: Fold, protocol: str, rng: np.random.Generator
) -> tuple[Examples, Labels, int]:
    """Examples whose test window, and what became known from it on, is made up; and how many."""
    start = min(block.start for block in fold.test)
    is_later, is_known_later = examples.ts >= start, examples.known_at >= start
    if protocol == "cpcv":
        is_later = np.zeros(len(examples.ts), bool)
        for block in fold.test:
            is_later |= (examples.ts >= block.start) & (examples.ts <= block.end)
        is_known_later = is_later
    names = list(labels)
    values = np.column_stack([examples.fwd_return, *(labels[name] for name in names)])
    x, values = rewrite_examples(examples.x, values, is_later, is_known_later, rng)
    is_first = np.append(True, examples.ts[1:] != examples.ts[:-1])
    stays = ~is_later | is_first | (rng.random(len(x)) >= SHARE_GONE)
    other = Examples(
        symbol=examples.symbol[stays],
        ts=examples.ts[stays],
        entry_ts=examples.entry_ts[stays],
        known_at=examples.known_at[stays],
        x=x[stays],
        fwd_return=values[stays, 0],
        feature_names=examples.feature_names,
    )
    made_up = {name: values[stays, i] for i, name in enumerate(names, 1)}
    return other, made_up, int(np.count_nonzero(is_later | is_known_later))


def _unlike_rows(
    fold: Fold, examples: Examples, was: FoldRows, other: Examples, rows: FoldRows
) -> Finding | None:
    """The first row to train or to stop on that is another one where the test is made up."""
    for part in ("train", "stop"):
        before, after = (
            list(zip(e.ts[at].tolist(), e.symbol[at].tolist(), strict=True))
            for e, at in ((examples, getattr(was, part)), (other, getattr(rows, part)))
        )
        if before != after:
            ts, symbol = min(set(before) ^ set(after))
            counts = f"{len(before):,} rows", f"{len(after):,}"
            return Finding(f"fold {fold.fold}", f"rows of {part}", symbol, ts, "", *counts)
    return None


def _unlike_fit(
    fold: Fold, rounds: Sequence[int], digests: Mapping[str, str], fit: FoldFit
) -> Finding | None:
    start = _as_date(min(block.start for block in fold.test))
    name = f"fold {fold.fold}"
    if tuple(rounds) != fit.rounds:
        return Finding(name, "boosters", "", start, "rounds", tuple(rounds), fit.rounds)
    unlike = [kind for kind, digest in digests.items() if digest != fit.digests[kind]]
    if unlike:
        values = digests[unlike[0]][:12], fit.digests[unlike[0]][:12]
        return Finding(name, "boosters", "", start, " and ".join(unlike), *values)
    return None


def _as_date(day: np.datetime64) -> date:
    found: date = day.astype("datetime64[D]").item()
    return found
