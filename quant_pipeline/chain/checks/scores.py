"""Checks of predictions and prediction_outcomes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.chain.checks.result import Checked, Severity, some
from quant_pipeline.chain.model_content import read_boosters
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.ml.drift import population_stability
from quant_pipeline.settings import Task
from quant_pipeline.stores.meta import Trained
from quant_pipeline.stores.series import Connection, columns_of, identifiers, query

MIN_SCORES = 50  # fewer have no distribution to compare
MIN_NAMES = 20  # of a session whose scores have to be spread


@dataclass(frozen=True)
class _Part:
    """What is stored of one partition and task: its scores, and its sessions with a universe."""

    key: str
    task: Task
    ts: npt.NDArray[np.datetime64]
    model_id: npt.NDArray[np.object_]
    symbol: npt.NDArray[np.object_]
    score: npt.NDArray[np.float64]
    batch_id: npt.NDArray[np.int64]
    members: dict[date, int]
    before: npt.NDArray[np.float64]


def check_predictions(ws: Workspace, keys: Sequence[str]) -> list[Checked]:
    """Check the scores of consecutive partitions, read once with those of the one before."""
    with ws.series.reading("checks") as con:
        parts = list(_parts(ws, con, keys))
        found = _by_earlier_models(ws, con, keys)
        for part in parts:
            found += [_scored(ws, part), _spread(ws, part), _unique(part), _drifted(ws, part)]
            found.append(_reproduced(ws, con, part))
    return found


def _parts(ws: Workspace, con: Connection, keys: Sequence[str]) -> Iterator[_Part]:
    first, after = ws.grid.window(ws.grid.shift(keys[0], -1))[0], ws.grid.window(keys[-1])[1]
    scores = query(
        con,
        "SELECT task_id, ts, symbol, model_id, score, price_batch_id FROM predictions "
        "WHERE ts >= ? AND ts < ? ORDER BY task_id, ts, symbol",
        [first, after],
    )
    members: dict[date, int] = {}
    if "in_universe" in columns_of(con, "features_daily"):
        counted = "SELECT ts, count(*) FROM features_daily WHERE in_universe AND ts >= ? " + (
            "AND ts < ? GROUP BY ts"
        )
        members = dict(con.execute(counted, [first, after]).fetchall())
    for task in ws.settings.tasks:
        mine = scores.filter(pc.equal(scores["task_id"], task.task_id))
        ts, score = days(mine["ts"]), mine["score"].to_numpy()
        for key in keys:
            window = ws.grid.window(key)
            bounds = np.array([ws.grid.window(ws.grid.shift(key, -1))[0], *window], ts.dtype)
            a, b, c = np.searchsorted(ts, bounds)
            rows = mine.slice(b, c - b)
            yield _Part(
                key, task, ts[b:c], rows["model_id"].to_numpy(), rows["symbol"].to_numpy(),
                score[b:c], rows["price_batch_id"].to_numpy(),
                {d: n for d, n in members.items() if window[0] <= d < window[1]}, score[a:b],
            )  # fmt: skip


def _by_earlier_models(ws: Workspace, con: Connection, keys: Sequence[str]) -> list[Checked]:
    models = {m.model_id: m for m in ws.meta.trained()}
    start, end = ws.grid.window(keys[0])[0], ws.grid.window(keys[-1])[1]
    pairs = query(
        con,
        'SELECT DISTINCT ts, model_id, task_id, "asof" FROM predictions WHERE ts >= ? AND ts < ? '
        "ORDER BY ts, task_id, model_id",
        [start, end],
    ).to_pylist()
    of_key: dict[str, list[dict[str, Any]]] = {key: [] for key in keys}
    for pair in pairs:
        of_key[ws.grid.key(pair["ts"])].append(pair)
    found = []
    for key, mine in of_key.items():
        bad = [p for p in mine if not _is_earlier(p, models.get(p["model_id"]))]
        names = [f"{p['ts']} {p['model_id'][:12]}" for p in bad]
        words = "" if not bad else (
            f"{len(bad)} sessions are scored by a model of another task or of a later as-of, or "
            f"by none of the registry: {some(names)}. "
            "Those scores may know the future: do not use them."
        )  # fmt: skip
        numbers = {"models": len({(p["model_id"], p["task_id"]) for p in mine}), "bad": len(bad)}
        found.append(
            Checked("scores_come_from_earlier_models", key, not bad, "ERROR", words, numbers)
        )
    return found


def _is_earlier(pair: dict[str, Any], model: Trained | None) -> bool:
    return (
        model is not None
        and model.task_id == pair["task_id"]
        and model.asof == pair["asof"] < pair["ts"]
    )


def _scored(ws: Workspace, part: _Part) -> Checked:
    """Sessions of a partition that somebody serves, with the share of their universe scored."""
    name, least = "universe_is_scored", ws.settings.checks.min_scored_share
    task_id = part.task.task_id
    if not len(part.ts):
        served = ws.meta.champions(task_id, part.key)
        late = [day for day in part.members if served and day >= served[0].from_ts]
        words = f"{part.key} has a champion of {task_id}, but no score." if late else (
            "No champion serves here." if part.members else "No session yet."
        )  # fmt: skip
        none = {"sessions": len(part.members), "scores": 0}
        return Checked(name, part.key, not late, "ERROR", words, none, task_id)
    first, sessions = part.ts[0].item(), dict(zip(*_count(part.ts), strict=True))
    share = {d: sessions.get(d, 0) / n for d, n in part.members.items() if d >= first}
    bad = sorted(d for d, found in share.items() if found < least)
    words = "" if not bad else (
        f"{len(bad)} sessions have scores of {task_id} for under {least:.0%} of their universe: "
        f"{some([f'{d} ({share[d]:.0%})' for d in bad])}. Run `quant score --from {bad[0]} "
        f"--to {bad[-1]}`."
    )  # fmt: skip
    numbers: dict[str, float | int] = {
        "lowest_scored_share": min(share.values(), default=1.0), "scores": len(part.ts),
        "sessions": len(sessions), "sessions_with_too_few": len(bad),
    }  # fmt: skip
    return Checked(name, part.key, not bad, "ERROR", words, numbers, task_id)


def _count(ts: npt.NDArray[np.datetime64]) -> tuple[list[date], list[int]]:
    found, n = np.unique(ts, return_counts=True)
    return found.tolist(), n.tolist()


def _spread(ws: Workspace, part: _Part) -> Checked:
    """The smallest share of different values among the scores of a session."""
    least, task_id = ws.settings.checks.min_distinct_share, part.task.task_id
    _, starts, n = np.unique(part.ts, return_index=True, return_counts=True)
    share, width = [], []
    for a, size in zip(starts, n, strict=True):
        scores = part.score[a : a + size]
        if size >= MIN_NAMES:
            share.append(len(np.unique(scores)) / size)
            width.append(float(np.std(scores)))
    lowest = min(share, default=1.0)
    passed = lowest >= least and min(width, default=1.0) > 0
    words = "" if passed else (
        f"On a session only {lowest:.0%} of the scores of {task_id} differ from one another "
        f"(checks.min_distinct_share = {least}). See `quant models show` for its splits."
    )  # fmt: skip
    numbers = {"lowest_distinct_share": lowest, "sessions": len(share),
               "mean_spread": float(np.mean(width)) if width else float("nan")}  # fmt: skip
    return Checked("scores_are_spread", part.key, passed, "WARN", words, numbers, task_id)


def _unique(part: _Part) -> Checked:
    pairs = list(zip(part.ts.tolist(), part.symbol.tolist(), strict=True))
    twice = [pair for pair, after in pairwise(pairs) if pair == after]
    words = "" if not twice else (
        f"{len(twice)} scores of {part.task.task_id} are there twice, by different models: "
        f"{some([f'{symbol} {day}' for day, symbol in twice])}. Nobody can tell which one was "
        "served: keep the champion's."
    )  # fmt: skip
    numbers = {"duplicates": len(twice), "scores": len(pairs)}
    return Checked("scores_are_unique", part.key, not twice, "ERROR", words, numbers,
                   part.task.task_id)  # fmt: skip


def _drifted(ws: Workspace, part: _Part) -> Checked:
    """Raw scores against those of the partition before, both out of sample.

    Folds' test scores are not stored, and percentiles are uniform by construction.
    """
    name, most = "scores_have_not_drifted", ws.settings.checks.score_psi
    n, n_before, task_id = len(part.score), len(part.before), part.task.task_id
    numbers: dict[str, float | int] = {"scores": n, "scores_before": n_before}
    if min(n, n_before) < MIN_SCORES:
        words = f"Too few scores to compare: {n} with {n_before} before."
        return Checked(name, part.key, True, "WARN", words, numbers, task_id)
    index = population_stability(part.before, part.score)
    passed = index <= most
    words = "" if passed else (
        f"Scores of {task_id} moved from {np.median(part.before):.4g} to "
        f"{np.median(part.score):.4g} in the median against the partition before: index "
        f"{index:.2f}, over {most}. See `features_have_not_drifted`, and which model serves."
    )  # fmt: skip
    return Checked(name, part.key, passed, "WARN", words, numbers | {"psi": index}, task_id)


def _reproduced(ws: Workspace, con: Connection, part: _Part) -> Checked:
    """The newest session scored anew; other prices since the score are told as what they are."""
    from quant_pipeline.chain.predict import in_words, lost_features
    from quant_pipeline.ml.score import score_rows

    name, task_id = "scores_are_reproduced", part.task.task_id
    if not len(part.ts):
        return Checked(name, part.key, True, "ERROR", "No score yet.", {"scores": 0}, task_id)
    newest = np.flatnonzero(part.ts == part.ts[-1])
    model = ws.meta.model(str(part.model_id[newest[-1]]))
    newest = newest[part.model_id[newest] == model.model_id]
    lost = lost_features(ws, con, model)
    if lost or model.status == "pruned":
        why = in_words(lost) if lost else "its file was pruned"
        words = f"Cannot be made anew: {why}."
        return Checked(name, part.key, True, "ERROR", words, {"scores": 0}, task_id)
    stored = pa.table({"symbol": part.symbol[newest], "stored": part.score[newest]})
    rows = _features_of(con, model.features, part.ts[-1].item()).join(
        stored, "symbol", join_type="inner"
    )
    boosters, names = read_boosters(ws, model), tuple(model.features)
    x = np.stack([rows[n].to_numpy() for n in names], axis=1).astype(np.float32, copy=False)
    anew = score_rows(boosters, np.ascontiguousarray(x), names, names)
    is_same = anew.view(np.int64) == rows["stored"].to_numpy().view(np.int64)
    n_other = int((~is_same).sum()) + len(newest) - len(rows)
    numbers: dict[str, float | int | str] = {"scores": len(newest), "different": n_other}
    if not n_other:
        return Checked(name, part.key, True, "ERROR", "", numbers, task_id)
    made_from = [b.price_batch_id for b in ws.meta.batches("features_daily", (part.key, part.key))]
    is_restated = bool(made_from) and made_from[-1] > int(part.batch_id[newest].max())
    words = f"{n_other} of {len(newest)} scores of {part.ts[-1]} by {model.model_id[:12]} " + (
        f"come out different: prices were restated since, in batch {made_from[-1]}. They stay."
        if is_restated
        else "come out different from the same prices. Do not use them: features or scores were "
        "changed by hand, or another version of LightGBM or of the features made them."
    )
    severity: Severity = "WARN" if is_restated else "ERROR"
    return Checked(name, part.key, False, severity, words, numbers, task_id)


def _features_of(con: Connection, features: Sequence[str], day: date) -> pa.Table:
    return query(
        con,
        f"SELECT {identifiers(('symbol', *features))} FROM features_daily "
        "WHERE in_universe AND ts = ?",
        [day],
    )


def check_outcomes(ws: Workspace, keys: Sequence[str]) -> list[Checked]:
    """Check the outcomes that became known in partitions against all that were known before."""
    with ws.series.reading("checks") as con:
        rows = con.execute(
            "SELECT task_id, known_at, rank_ic FROM prediction_outcomes WHERE known_at < ? "
            "AND rank_ic IS NOT NULL",
            [ws.grid.window(keys[-1])[1]],
        ).fetchall()
    of_part: dict[tuple[str, str], list[float]] = {}
    for task_id, known_at, rank_ic in rows:
        of_part.setdefault((task_id, ws.grid.key(known_at)), []).append(rank_ic)
    found = []
    for task in ws.settings.tasks:
        means = {k: float(np.mean(v)) for (t, k), v in of_part.items() if t == task.task_id}
        found += [_rank_ic(ws, key, task, means, of_part) for key in keys]
    return found


def _rank_ic(
    ws: Workspace, key: str, task: Task, means: dict[str, float], of_part: dict[Any, list[float]]
) -> Checked:
    name, s, task_id = "rank_ic_is_usual", ws.settings.checks, task.task_id
    start = ws.grid.window(key)[0]
    past = [mean for k, mean in means.items() if ws.grid.window(k)[0] < start]
    numbers: dict[str, float | int] = {
        "sessions": len(of_part.get((task_id, key), [])), "earlier_partitions": len(past)
    }  # fmt: skip
    if key not in means or len(past) < s.min_history:
        words = "No outcome yet." if key not in means else (
            f"{len(past)} earlier partitions are too few to judge by "
            f"(checks.min_history = {s.min_history})."
        )  # fmt: skip
        numbers |= {"rank_ic": means[key]} if key in means else {}
        return Checked(name, key, True, "WARN", words, numbers, task_id)
    usual, spread = float(np.mean(past)), float(np.std(past, ddof=1))
    passed = means[key] >= usual - s.rank_ic_z * spread
    words = "" if passed else (
        f"Mean RankIC of {task_id} is {means[key]:+.4f}; in {len(past)} earlier partitions it was "
        f"{usual:+.4f} ± {spread:.4f}. See `quant predictions report --task {task_id}`."
    )  # fmt: skip
    numbers |= {"rank_ic": means[key], "usual_rank_ic": usual, "spread_of_rank_ic": spread}
    return Checked(name, key, passed, "WARN", words, numbers, task_id)
