"""What chance and simple rules would have scored: permuted labels, and trivial scores."""

from collections.abc import Callable, Sequence
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quant_pipeline.chain.features import features_between
from quant_pipeline.chain.folds import read_folds
from quant_pipeline.chain.training_data import read_examples
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import DegenerateData, NotEnoughHistory
from quant_pipeline.market.features import KNOWN, TRIVIAL_SCORES
from quant_pipeline.ml.examples import Examples
from quant_pipeline.ml.metrics import permute_across_symbols
from quant_pipeline.ml.score import score_rows
from quant_pipeline.ml.train import Recipe, train_model
from quant_pipeline.settings import Task
from quant_pipeline.stores.series import identifiers

BASELINE_EVERY = 4
BASELINE_SEED = 7
Floats = npt.NDArray[np.float64]
Tell = Callable[[str, int, int], None]


def trivial_scores(ws: Workspace, first: date, last: date) -> pa.Table:
    """symbol, ts and a float64 column a trivial score, known at the close of ts.

    Computed from prices, whatever the set of features is.
    """
    features = [KNOWN[feature] for feature, _ in TRIVIAL_SCORES.values()]
    made = features_between(ws, first, last + timedelta(days=1), features=features).rows
    columns = {name: made[name] for name in ("symbol", "ts")}
    for name, (feature, sign) in TRIVIAL_SCORES.items():
        columns[name] = pa.array(sign * made[feature].to_numpy().astype(np.float64))
    return pa.table(columns)


def permuted_scores(
    ws: Workspace, task: Task, keys: Sequence[str], last: date, tell: Tell
) -> pa.Table | None:
    """symbol, ts and score of models whose labels were permuted across symbols.

    Trained at every fourth of the as-ofs, each scores the windows up to the next one. As-ofs with
    too little history or without folds have no model, as for true labels. None if none has one.
    """
    chosen = list(keys)[::BASELINE_EVERY]
    pieces = []
    for i, key in enumerate(chosen):
        tell(f"permuted labels as of {ws.grid.asof(key)}", i, len(chosen))
        try:
            with ws.series.reading("baseline") as con:
                examples, labels, _ = read_examples(ws, con, key, [task])
                folds = read_folds(con, key, task.task_id)
            names = examples.feature_names
            s = ws.settings
            permuted, label = _permute(examples, labels[task.task_id])
            recipe = Recipe(s.train, s.folds, s.metrics)
            trained = train_model(permuted, label, folds, task, recipe)
        except (DegenerateData, NotEnoughHistory):
            continue  # nothing to learn from, or chance found nothing to split on
        start = ws.grid.window(ws.grid.shift(key, 1))[0]
        end = min(ws.grid.asof(ws.grid.shift(key, BASELINE_EVERY)), last)
        rows = _feature_rows(ws, names, start, end)
        x = np.column_stack([rows[name].to_numpy() for name in names])
        score = score_rows(trained.boosters, np.ascontiguousarray(x), names, names)
        pieces.append(rows.select(["symbol", "ts"]).append_column("score", pa.array(score)))
    return pa.concat_tables(pieces) if pieces else None


def align(rows: pa.Table, baseline: pa.Table) -> dict[str, Floats]:
    """Each float column of a baseline at the symbols and sessions of some rows; NaN if missing."""
    keys = ["symbol", "ts"]
    names = [f.name for f in baseline.schema if pa.types.is_floating(f.type)]
    left, right = (t.to_pandas() for t in (rows.select(keys), baseline.select([*keys, *names])))
    found = left.merge(right, how="left", on=keys, validate="many_to_one")
    return {name: found[name].to_numpy(np.float64) for name in names}


def _feature_rows(ws: Workspace, features: Sequence[str], start: date, end: date) -> pa.Table:
    return ws.series.query(
        f"SELECT {identifiers(('symbol', 'ts', *features))} FROM features_daily "
        "WHERE in_universe AND ts >= ? AND ts <= ? ORDER BY ts, symbol",
        [start, end],
    )


def _permute(e: Examples, label: Floats) -> tuple[Examples, Floats]:
    """The examples with another symbol's labels, the same other one through all of history."""
    label = permute_across_symbols(e.symbol, e.ts, label, BASELINE_SEED)
    fwd_return = permute_across_symbols(e.symbol, e.ts, e.fwd_return, BASELINE_SEED)
    keep = np.isfinite(label) & np.isfinite(fwd_return)
    kept = {name: getattr(e, name)[keep] for name in ("symbol", "ts", "entry_ts", "known_at")}
    x = np.ascontiguousarray(e.x[keep])
    examples = Examples(**kept, x=x, fwd_return=fwd_return[keep], feature_names=e.feature_names)
    return examples, label[keep]
