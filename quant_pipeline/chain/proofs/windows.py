"""The test window does not matter: each fold fitted again, everything known from it on made up."""

from collections.abc import Sequence
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


def prove_windows(
    made: Workspace, key: str, rebuilt: Rebuilt, rng: np.random.Generator
) -> list[Proof]:
    """Fit each fold of a partition's models again, its test window and all that follows made up.

    Rows of training and early stopping, bins, rounds, settings and trees have to be the same.
    Where folds train on both sides of a test (cpcv), only the test windows are made up.
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
        for task in tasks:
            mine = rebuilt.trained[task.task_id]
            rounds, digest = mine.fold_rounds[number], mine.fold_digests[number]
            finding = _compare(fold, was, rows, rounds, digest, fits[task.task_id])
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
    other = Examples(
        symbol=examples.symbol,
        ts=examples.ts,
        entry_ts=examples.entry_ts,
        known_at=examples.known_at,
        x=x,
        fwd_return=values[:, 0],
        feature_names=examples.feature_names,
    )
    made_up = {name: values[:, i] for i, name in enumerate(names, 1)}
    return other, made_up, int(np.count_nonzero(is_later | is_known_later))


def _compare(
    fold: Fold,
    was: FoldRows,
    rows: FoldRows,
    rounds: Sequence[int],
    digest: str,
    fit: FoldFit,
) -> Finding | None:
    start = _as_date(min(block.start for block in fold.test))
    name = f"fold {fold.fold}"
    for part in ("train", "stop"):
        before, after = getattr(was, part), getattr(rows, part)
        if not np.array_equal(before, after):
            return Finding(name, f"rows of {part}", "", start, "", len(before), len(after))
    if tuple(rounds) != fit.rounds:
        return Finding(name, "boosters", "", start, "rounds", tuple(rounds), fit.rounds)
    if digest != fit.digest:
        return Finding(name, "boosters", "", start, "bins, settings or trees", digest[:12],
                       fit.digest[:12])  # fmt: skip
    return None


def _as_date(day: np.datetime64) -> date:
    found: date = day.astype("datetime64[D]").item()
    return found
