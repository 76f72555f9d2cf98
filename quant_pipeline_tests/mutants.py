"""Deliberate leaks: each patches one function of the chain, and the audit must catch it.

A leak is at work while a small home is built and while it is audited, as it would be in the code of
somebody who had made that mistake.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from quant_pipeline.chain import champions, judge, judged, learn, predict, trials
from quant_pipeline.chain import features as data
from quant_pipeline.chain import ingest as ingesting
from quant_pipeline.chain import sessions as deciding
from quant_pipeline.chain.audit import audit, choose_asofs
from quant_pipeline.chain.frame import write_manifests
from quant_pipeline.chain.ingest_lists import ingest_memberships
from quant_pipeline.chain.learn import train_tasks, write_folds
from quant_pipeline.chain.predict import score_partition
from quant_pipeline.chain.proofs.result import Proof
from quant_pipeline.chain.rebuild import compute_features, compute_labels
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.market import sessions as session_rule
from quant_pipeline.market.canaries import make_canaries
from quant_pipeline.ml import boosters, splits, train
from quant_pipeline.ml.champions import Decision
from quant_pipeline.ml.splits import FoldRows
from quant_pipeline.settings import SHIPPED_CHOSEN_ASOF
from quant_pipeline.stores import series
from quant_pipeline.stores.meta import MetaStore
from quant_pipeline.stores.schema import AS_OF, NEWEST
from quant_pipeline_tests.homes import SmallHome, new_home

Patch = pytest.MonkeyPatch
CHANGES = {
    "start = 2015-05-01": "start = 2018-01-01",
    "min_median_value = 1000.0": "min_median_value = 1000.0\nmemberships = true",
    "exclude = []": 'set = "core"',
    "n_folds = 2": "n_folds = 2\nembargo_sessions = 3",
}
FROM, TO = "2019-03", "2019-04"  # as-ofs that are trained; each serves the window after it


@dataclass(frozen=True)
class Mutant:
    """A mistake, the proof that must catch it, and how to make it."""

    name: str
    caught_by: str
    make: Callable[[Patch], None]
    is_restated: bool = False


def build(folder: Path, *, restate: bool = False) -> SmallHome:
    """A home with two as-ofs and the scores of the windows after them, without Dagster.

    With `restate` a second delivery comes when all is done, and all is done once more.
    """
    market = make_canaries(24, 380, 30)
    made = new_home(folder, CHANGES)
    made.ingest(market.first)
    members = made.root / "members.parquet"
    market.members.to_parquet(members, index=False)
    ingest_memberships(made.workspace, members, ingesting.reading_of(made.workspace))
    walk(made.workspace)
    if restate:
        made.ingest(market.second)
        walk(made.workspace)
    return made


def walk(ws: Workspace) -> None:
    """Data of all partitions, then models, then scores."""
    tasks = ws.tasks()
    walk_data(ws)
    for key in ws.grid.keys(FROM, TO):
        for task in tasks:
            write_folds(ws, key, task)
        train_tasks(ws, key, tasks)
    for key in ws.grid.keys(FROM, TO):
        for task in tasks:
            score_partition(ws, ws.grid.shift(key, 1), task)


def walk_data(ws: Workspace) -> None:
    """Features, labels and manifests of all partitions, those that were there replaced."""
    first = ws.grid.key(ws.grid.start)
    keys = ws.grid.keys(first, ws.grid.key(ws.last_session()))
    with ws.writing("test") as writing:
        for table in ("features_daily", "labels"):
            if series.columns_of(writing.con, table):
                writing.con.execute(f"DELETE FROM {table}")
    compute_features(ws, keys)
    compute_labels(ws, keys)
    write_manifests(ws, keys)


def prove(made: SmallHome) -> list[Proof]:
    """An audit of both as-ofs."""
    ws = made.workspace
    return audit(ws, choose_asofs(ws, ws.tasks(), 2), ws.tasks())


def caught(folder: Path, mutant: Mutant) -> dict[str, str]:
    """The proofs that fail where a mistake is at work, and the first difference that each names."""
    with pytest.MonkeyPatch.context() as patch:
        mutant.make(patch)
        proofs = prove(build(folder, restate=mutant.is_restated))
    found: dict[str, str] = {}
    for proof in proofs:
        if proof.failed:
            found.setdefault(proof.name, str(proof.finding or proof.words))
    return found


# --- Features


def _first_feature(values: Callable[..., np.ndarray]) -> Callable[[Patch], None]:
    """The first feature becomes what `values` makes of (symbol, session, close) of all bars."""

    def make(patch: Patch) -> None:
        original = data.compute_matrix

        def leaking(symbol: Any, session: Any, columns: Any, *args: Any) -> np.ndarray:
            matrix = original(symbol, session, columns, *args)
            is_wanted = args[3]
            matrix[:, 0] = values(symbol, session, columns["close"])[is_wanted]
            return matrix

        patch.setattr(data, "compute_matrix", leaking)

    return make


def _by_symbol(symbol: np.ndarray, close: np.ndarray) -> Any:
    return pd.Series(close).groupby(symbol)


def _next_return(symbol: np.ndarray, _: np.ndarray, close: np.ndarray) -> np.ndarray:
    return np.asarray(_by_symbol(symbol, close).shift(-1) / close - 1.0)


def _centred(symbol: np.ndarray, _: np.ndarray, close: np.ndarray) -> np.ndarray:
    mean = _by_symbol(symbol, close).transform(lambda c: c.rolling(7, 1, center=True).mean())
    return np.asarray(close / mean)


def _z_score(symbol: np.ndarray, _: np.ndarray, close: np.ndarray) -> np.ndarray:
    found = _by_symbol(symbol, close)
    return np.asarray((close - found.transform("mean")) / found.transform("std"))


def _among_unlisted(symbol: np.ndarray, session: np.ndarray, close: np.ndarray) -> np.ndarray:
    """The rank of a close among those of its session, over all symbols that ever will be there."""
    rank = pd.Series(close).groupby(session).rank()
    return np.asarray(rank / len(np.unique(symbol)))


# --- Labels, universe, prices


def _known_at_once(patch: Patch) -> None:
    """A label is known a session after it begins."""
    original = data.labels_between

    def leaking(ws: Workspace, first: date, before: date, batch_id: int | None = None) -> Any:
        rows = original(ws, first, before + timedelta(days=30), batch_id).to_pandas()
        later = {a: b for a, b in pairwise(sorted(set(rows["entry_ts"])))}
        rows = rows.assign(known_at=rows["entry_ts"].map(later)).dropna(subset="known_at")
        mine = rows[(rows["known_at"] >= first) & (rows["known_at"] < before)]
        table = original(ws, first, before, batch_id)
        return type(table).from_pandas(mine, table.schema, preserve_index=False)

    patch.setattr(data, "labels_between", leaking)


def _next_bar(patch: Patch) -> None:
    original = data.make_labels

    def leaking(close: np.ndarray, *args: Any) -> Any:
        filled = pd.DataFrame(close).bfill().to_numpy()
        found = original(filled, *args)
        sessions = args[1]
        is_bar = ~np.isnan(close)[np.searchsorted(sessions, found.ts), found.symbol]
        return type(found)(**{name: values[is_bar] for name, values in vars(found).items()})

    patch.setattr(data, "make_labels", leaking)


def _todays_members(patch: Patch) -> None:
    original = data.read_memberships

    def leaking(con: Any, batch_id: int | None = None) -> Any:
        rows = original(con, batch_id).to_pylist()
        now = [row | {"first": date(1990, 1, 1)} for row in rows if row["last"] is None]
        return type(original(con, batch_id)).from_pylist(now, original(con, batch_id).schema)

    patch.setattr(data, "read_memberships", leaking)


def _back_adjusted(patch: Patch) -> None:
    original = ingesting.merge_delivery

    def leaking(stored: Any, given: Any, tolerance: float) -> Any:
        merged = original(stored, given, tolerance)
        if len(stored.ts) or not len(merged.bars.ts):
            return merged
        scale = merged.bars.close[-1] / merged.bars.index[-1]
        return replace(merged, bars=replace(merged.bars, index=merged.bars.index * scale))

    patch.setattr(ingesting, "merge_delivery", leaking)


def _sessions_in_hindsight(patch: Patch) -> None:
    """A date with fewer bars than most of the next ones is no session."""
    original = session_rule.find_sessions

    def leaking(day: np.ndarray, symbol: np.ndarray, **spec: Any) -> np.ndarray:
        found = original(day, symbol, **spec)
        n = np.bincount(day, minlength=len(found))
        for d in range(len(found)):
            found[d] &= n[d] >= 0.8 * np.max(n[d : d + 6])
        return found

    patch.setattr(deciding, "find_sessions", leaking)


def _filled_forward(patch: Patch) -> None:
    """A symbol that ended has its last price on all later sessions."""
    original = data.read_panel

    def leaking(*args: Any) -> Any:
        panel = original(*args)
        pieces = []
        for code in np.unique(panel.symbol):
            rows = np.flatnonzero(panel.symbol == code)
            n_more = len(panel.sessions) - 1 - panel.session[rows[-1]]
            pieces.append(np.concatenate([rows, np.full(n_more, rows[-1])]))
        at = np.concatenate(pieces) if pieces else np.empty(0, int)
        is_copy = np.concatenate([[False], at[1:] == at[:-1]]) if len(at) else at.astype(bool)
        session = panel.session[at]
        for i in np.flatnonzero(is_copy):
            session[i] = session[i - 1] + 1
        return replace(
            panel, symbol=panel.symbol[at], session=session, is_jump=panel.is_jump[at],
            traded_value=panel.traded_value[at],
            columns={name: values[at] for name, values in panel.columns.items()},
        )  # fmt: skip

    patch.setattr(data, "read_panel", leaking)


def _newest_prices(patch: Patch) -> None:
    """Prices as of a batch are those of the newest."""
    for name in ("read_prices", "read_sessions", "read_first_bars"):
        assert hasattr(series, name)
    patch.setattr(series, "as_of", lambda view, _batch_id: (f"{AS_OF[view]}(?)", [NEWEST]))


# --- Folds and training


def _unpurged(patch: Patch) -> None:
    def leaking(own: Any, _others: Any, _rows: Any, ts: np.ndarray, _known: Any) -> np.ndarray:
        return np.flatnonzero(splits._lies_in(own, ts))

    patch.setattr(splits, "purge", leaking)


def _purged_by_rows(patch: Patch) -> None:
    def leaking(own: Any, _others: Any, _rows: Any, ts: np.ndarray, _known: Any) -> np.ndarray:
        return np.flatnonzero(splits._lies_in(own, ts))[:-6]

    patch.setattr(splits, "purge", leaking)


def _embargo_by_rows(patch: Patch) -> None:
    original = splits._walk_forward

    def leaking(n_sessions: int, spec: Any, label_span: int) -> Any:
        return original(n_sessions, spec.model_copy(update={"embargo_sessions": 0}), label_span)

    patch.setattr(splits, "_walk_forward", leaking)


def _as_many_as_are_tested(patch: Patch) -> None:
    """A fold trains on at most three times as many rows as it tests."""
    original = splits.purge

    def leaking(own: Any, others: Any, rows: Any, ts: np.ndarray, known: Any) -> np.ndarray:
        return original(own, others, rows, ts, known)[-3 * len(rows) :]

    patch.setattr(splits, "purge", leaking)


def _bins_of_all_rows(patch: Patch) -> None:
    original = boosters.Bins._dataset

    def leaking(self: Any, rows: Any, reference: Any = None) -> Any:
        if reference is None:
            return original(self, slice(None))
        return original(self, rows, reference)

    patch.setattr(boosters.Bins, "_dataset", leaking)


def _stopped_by_test(bins: Any, number: int) -> Any:
    rows = list(bins.rows)
    rows[number] = FoldRows(rows[number].train, rows[number].test, rows[number].test, 0)
    return boosters.Bins(bins.examples, rows, bins.is_shared, bins.spec)


def _early_stopping_on_test(patch: Patch) -> None:
    original = boosters.fit_fold

    def leaking(bins: Any, number: int, task: Any, target: np.ndarray) -> Any:
        return original(_stopped_by_test(bins, number), number, task, target)

    patch.setattr(train, "fit_fold", leaking)


def _rounds_by_test(patch: Patch) -> None:
    original = boosters.fit_fold

    def leaking(bins: Any, number: int, task: Any, target: np.ndarray) -> Any:
        honest = original(bins, number, task, target)
        tested = original(_stopped_by_test(bins, number), number, task, target)
        return replace(honest, rounds=tested.rounds)

    patch.setattr(train, "fit_fold", leaking)


def _settings_by_test(patch: Patch) -> None:
    """Of several learning rates, the one whose test scores go best with the outcomes."""
    original = boosters.fit_fold

    def leaking(bins: Any, number: int, task: Any, target: np.ndarray) -> Any:
        outcome = target[bins.rows[number].test]
        fits = []
        for rate in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5):
            spec = bins.spec.model_copy(update={"learning_rate": rate})
            tried = boosters.Bins(bins.examples, bins.rows, bins.is_shared, spec)
            fits.append(original(tried, number, task, target))
        return max(fits, key=lambda fit: float(np.corrcoef(fit.score, outcome)[0, 1]))

    patch.setattr(train, "fit_fold", leaking)


def _target_over_all_rows(patch: Patch) -> None:
    """What is learned is the rank of a return among those of all sessions."""

    def leaking(_task: Any, _ts: Any, _label: Any, fwd_return: np.ndarray) -> np.ndarray:
        rank = np.argsort(np.argsort(fwd_return, kind="stable"), kind="stable")
        return (rank >= len(rank) / 2).astype(np.float64)

    patch.setattr(train, "make_target", leaking)


# --- Models and scores


def _claims_to_be_earlier(patch: Patch) -> None:
    """Scores say of their model that it is as of the day before."""
    original = predict._score

    def leaking(ws: Workspace, con: Any, model: Any, rows: Any) -> Any:
        scored = original(ws, con, model, rows)
        days = [day - timedelta(days=1) for day in scored["ts"].to_pylist()]
        at = scored.column_names.index("asof")
        return scored.set_column(at, "asof", [pd.Series(days).tolist()])

    patch.setattr(predict, "_score", leaking)
    patch.setattr(predict, "require_model_before", lambda *_: None)


def _later_model(patch: Patch) -> None:
    """The newest model serves, whatever its as-of."""
    _claims_to_be_earlier(patch)
    original = predict.find_champions

    def leaking(ws: Workspace, key: str, task: Any) -> Any:
        found = original(ws, key, task)
        newest = ws.meta.trained(task.task_id)[-1].model_id
        services = [service._replace(model_id=newest) for service in found.services]
        return replace(found, services=tuple(services))

    patch.setattr(predict, "find_champions", leaking)


def _in_sample(patch: Patch) -> None:
    """The sessions before the as-of get scores, too."""
    _claims_to_be_earlier(patch)
    original = predict.find_champions

    def leaking(ws: Workspace, key: str, task: Any) -> Any:
        found = original(ws, key, task)
        services = [s._replace(first=s.first - timedelta(days=20)) for s in found.services]
        return replace(found, services=tuple(services))

    patch.setattr(predict, "find_champions", leaking)


def _champion_in_hindsight(patch: Patch) -> None:
    """The oldest model serves, where models of later as-ofs did well in their tests."""
    original = champions._replay

    def leaking(ws: Workspace, task: Any, start: date, without: str = "") -> Decision:
        decision = original(ws, task, start, without)
        models = [m for m in ws.meta.models(task.task_id) if m.asof >= start]
        ranks = [r for m in models for r in m.test_series["rank_ic"] if r is not None]
        if ranks and np.mean(ranks) > 0.6:
            return replace(decision, model_id=ws.meta.models(task.task_id)[0].model_id)
        return decision

    patch.setattr(champions, "_replay", leaking)


def _champion_of_its_own_window(patch: Patch) -> None:
    """A model as of the end of a window may serve that window."""
    _claims_to_be_earlier(patch)
    original = champions._replay

    def leaking(ws: Workspace, task: Any, start: date, without: str = "") -> Decision:
        return original(ws, task, ws.grid.window(ws.grid.key(start))[1], without)

    patch.setattr(champions, "_replay", leaking)


def _settings_known_early(patch: Patch) -> None:
    """What a hand has set is said to be as old as the shipped settings."""
    patch.setattr(trials, "_newest_outcome", lambda *_: SHIPPED_CHOSEN_ASOF)


@dataclass(frozen=True)
class _NeverChosen(MetaStore):
    """A registry whose settings are older than all sessions."""

    def models(self, task_id: str | None = None) -> list[Any]:
        rows = super().models(task_id)
        return [SimpleNamespace(**row.model_dump() | {"chosen_asof": date.min}) for row in rows]


def _all_out_of_sample(patch: Patch) -> None:
    """Reports call every session out of sample, whenever the settings were chosen."""
    for module, name in ((judge, "judge_predictions"), (judged, "judge_sessions")):
        original = getattr(module, name)

        def leaking(ws: Workspace, *args: Any, to: Any = original) -> Any:
            return to(replace(ws, meta=_NeverChosen(ws.meta.path, ws.meta.postgres)), *args)

        patch.setattr(module, name, leaking)


def _restated_frames(patch: Patch) -> None:
    """A sealed as-of is trained anew on what was restated since."""
    patch.setattr(learn, "settled_model", lambda *_: None)


MUTANTS: Sequence[Mutant] = (
    Mutant("feature with a negative lag", "future", _first_feature(_next_return)),
    Mutant("centred window", "future", _first_feature(_centred)),
    Mutant("full-history z-score", "future", _first_feature(_z_score)),
    Mutant("cross-section with unlisted symbols", "future", _first_feature(_among_unlisted)),
    Mutant("label without known_at", "future", _known_at_once),
    Mutant("label on the symbol's next bar", "structure", _next_bar),
    Mutant("purge removed", "windows", _unpurged),
    Mutant("purge by rows", "windows", _purged_by_rows),
    Mutant("as many training rows as are tested", "windows", _as_many_as_are_tested),
    Mutant("embargo by rows", "structure", _embargo_by_rows),
    Mutant("universe by today's membership", "structure", _todays_members),
    Mutant("back-adjustment with future factors", "prices", _back_adjusted),
    Mutant("sessions decided in hindsight", "prices", _sessions_in_hindsight),
    Mutant("scaler fitted on all rows", "windows", _bins_of_all_rows),
    Mutant("target ranked over all rows", "windows", _target_over_all_rows),
    Mutant("early stopping on the test window", "windows", _early_stopping_on_test),
    Mutant("rounds chosen on the test window", "windows", _rounds_by_test),
    Mutant("settings chosen on the test window", "windows", _settings_by_test),
    Mutant("model of a later as-of", "served", _later_model),
    Mutant("champion chosen in hindsight", "champion", _champion_in_hindsight),
    Mutant("champion as of the end of its window", "champion", _champion_of_its_own_window),
    Mutant("a hand's settings dated too early", "recipes", _settings_known_early),
    Mutant("sessions before the choice reported out of sample", "recipes", _all_out_of_sample),
    Mutant("restated history in old frames", "sealed", _restated_frames, is_restated=True),
    Mutant("prices of a later batch", "future", _newest_prices),
    Mutant("forward-filled prices across a delisting", "structure", _filled_forward),
    Mutant("in-sample scores stored", "served", _in_sample),
)
