"""Checks of features_daily: infinite and missing values, and drift from the training window."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.chain.blocks import in_blocks
from quant_pipeline.chain.checks.result import Checked, some
from quant_pipeline.chain.panel import days
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.market.features import look_back
from quant_pipeline.ml.drift import merge_bins, stability_index
from quant_pipeline.stores.series import Connection, columns_of, identifiers, query, read_sessions

# One session in so many is looked at for drift, and the newest of each partition: neighbours are
# nearly alike.
EVERY = 5
FINE_BINS = 64
GRID_ROWS = 4_000
# Fewer have no distribution to compare: rows of a session move together.
MIN_SESSIONS_BEFORE, MIN_REFERENCE, MIN_ROWS = 10, 500, 50
N_WORST = 10  # features that are told of one by one


def check_features(ws: Workspace, keys: Sequence[str]) -> list[Checked]:
    """Check the features of the universe in consecutive partitions, each row read once."""
    with ws.series.reading("checks") as con:
        sessions = days(read_sessions(con)["ts"])
        stored = set(columns_of(con, "features_daily"))
        names = [f.name for f in ws.features if f.name in stored]
        chosen = _sampled(ws, keys, sessions)
        tables = [_read_reference(ws, con, keys, names, chosen)]
        counts: dict[str, dict[str, Any]] = {}
        for block in in_blocks(ws, keys, len(names)) if names else []:
            rows = _read(con, names, *_window(ws, block))
            counts |= _count(ws, block, names, rows)
            tables.append(rows.filter(pc.is_in(rows["ts"], pa.array(chosen, pa.date32()))))
    sample = _bin(pa.concat_tables(tables), names, sessions) if names else None
    found = []
    for key in keys:
        row = counts.get(key)
        found += [_finite(key, names, row), _filled(ws, key, names, row, sessions)]
        found.append(_drifted(ws, key, names, sample, sessions))
    return found


def _window(ws: Workspace, keys: Sequence[str]) -> tuple[date, date]:
    return ws.grid.window(keys[0])[0], ws.grid.window(keys[-1])[1]


def _read(
    con: Connection, names: Sequence[str], start: date, end: date, where: str = "TRUE"
) -> pa.Table:
    columns = identifiers(("ts", *names))
    sql = f"SELECT {columns} FROM features_daily WHERE in_universe AND ts >= ? AND ts < ? AND "
    return query(con, sql + where, [start, end]).combine_chunks()


def _read_reference(
    ws: Workspace, con: Connection, keys: Sequence[str], names: Sequence[str], chosen: list[date]
) -> pa.Table:
    """The sampled sessions before the partitions."""
    start = ws.grid.window(keys[0])[0]
    before = [day for day in chosen if day < start]
    if not names or not before:
        return pa.table({"ts": pa.array([], pa.date32()),
                         **{name: pa.array([], pa.float32()) for name in names}})  # fmt: skip
    listed = ", ".join(f"DATE '{day}'" for day in before)
    return _read(con, names, before[0], start, f"ts IN ({listed})")


def _count(
    ws: Workspace, keys: Sequence[str], names: Sequence[str], rows: pa.Table
) -> dict[str, dict[str, Any]]:
    """Rows of each partition, and each feature's values that are infinite or missing."""
    starts = np.array([ws.grid.window(key)[0] for key in keys], "datetime64[D]")
    place = np.searchsorted(starts, days(rows["ts"]), side="right") - 1
    n = np.bincount(place, minlength=len(keys))
    found: dict[str, dict[str, Any]] = {key: {"n": int(n[i])} for i, key in enumerate(keys)}
    for name in names:
        values = rows[name].to_numpy()
        bad = np.flatnonzero(~np.isfinite(values))
        is_null = np.isnan(values[bad])
        for what, chosen in (("null", bad[is_null]), ("inf", bad[~is_null])):
            counted = np.bincount(place[chosen], minlength=len(keys))
            for i, key in enumerate(keys):
                found[key][f"{name}|{what}"] = int(counted[i])
    return found


def _finite(key: str, names: Sequence[str], row: Mapping[str, Any] | None) -> Checked:
    bad = {n: row[f"{n}|inf"] for n in names if row[f"{n}|inf"]} if row else {}
    n_bad = sum(bad.values())
    words = "" if not bad else (
        f"{n_bad} values of {len(bad)} features are infinite: {some(list(bad))}. Neither training "
        f"nor scoring takes them: run `quant backfill --select features_daily` for {key}."
    )  # fmt: skip
    return Checked("features_are_finite", key, not bad, "ERROR", words, {"infinite_values": n_bad})


def _filled(
    ws: Workspace,
    key: str,
    names: Sequence[str],
    row: Mapping[str, Any] | None,
    sessions: npt.NDArray[np.datetime64],
) -> Checked:
    name, most = "features_are_filled", ws.settings.checks.max_null_share
    if not row or not row["n"]:
        return Checked(name, key, True, words="No row of the universe.", numbers={"rows": 0})
    share = {n: row[f"{n}|null"] / row["n"] for n in names}
    start = np.datetime64(ws.grid.window(key)[0])
    if int(np.searchsorted(sessions, start)) < look_back(ws.features):
        words = "History is shorter than the longest window of a feature."
        return Checked(name, key, True, words=words, numbers={"rows": row["n"]})
    bad = sorted((n for n in names if share[n] > most), key=lambda n: -share[n])
    words = "" if not bad else (
        f"{len(bad)} features lack more than {most:.0%} of their values: "
        f"{some([f'{n} ({share[n]:.0%})' for n in bad])}. See bars that are missing, and [jumps]."
    )  # fmt: skip
    numbers = {
        "rows": row["n"], "mean_null_share": float(np.mean(list(share.values()))),
        "largest_null_share": max(share.values()), "features_with_too_few": len(bad),
    } | _worst("null_share", list(names), [share[n] for n in names])  # fmt: skip
    return Checked(name, key, not bad, "WARN", words, numbers)


def _worst(what: str, names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """The largest values above 0 by feature, named "psi of KMID"; the page draws them."""
    above = sorted((-value, name) for name, value in zip(names, values, strict=True) if value > 0)
    return {f"{what} of {name}": -value for value, name in above[:N_WORST]}


@dataclass(frozen=True)
class _Sample:
    """Counts of sampled sessions in fine bins: (session, feature, bin).

    `is_regular` are those that are in every sample, whatever partitions are looked at.
    """

    sessions: npt.NDArray[np.datetime64]
    is_regular: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.int64]
    counts: npt.NDArray[np.float32]

    def n_regular(self, first: np.datetime64, before: np.datetime64) -> int:
        """Sessions of ``[first, before)`` that are in every sample."""
        inside = (self.sessions >= first) & (self.sessions < before)
        return int((inside & self.is_regular).sum())

    def between(
        self, first: np.datetime64, before: np.datetime64, *, only_regular: bool
    ) -> tuple[int, npt.NDArray[np.float64]]:
        """Rows and counts of the sampled sessions of ``[first, before)``."""
        chosen = (self.sessions >= first) & (self.sessions < before)
        if only_regular:
            chosen &= self.is_regular
        n = int(self.rows[chosen].sum())
        return n, self.counts[chosen].sum(axis=0, dtype=np.float64)


def _sampled(
    ws: Workspace, keys: Sequence[str], sessions: npt.NDArray[np.datetime64]
) -> list[date]:
    """Sessions to look at: of the partitions, and of the training window before the first."""
    bounds = np.array([ws.grid.window(key) for key in keys], "datetime64[D]")
    edges = np.searchsorted(sessions, bounds)
    start = max(int(edges[0, 0]) - ws.settings.train.window_sessions, 0)
    chosen = {i for i in range(start, int(edges[-1, 1])) if i % EVERY == 0}
    chosen |= {int(after) - 1 for first, after in edges if after > first}
    return [day for day in sessions[sorted(chosen)].tolist()]


def _bin(
    table: pa.Table, names: Sequence[str], sessions: npt.NDArray[np.datetime64]
) -> _Sample | None:
    """Rows by session, feature and bin of a grid that is about even over all of them."""
    if not len(table):
        return None
    of, place = np.unique(days(table["ts"]), return_inverse=True)
    counts = np.zeros((len(of), len(names), FINE_BINS), np.float32)
    step = max(len(table) // GRID_ROWS, 1)
    for j, name in enumerate(names):
        values = table[name].to_numpy()
        known = np.flatnonzero(np.isfinite(values))
        if len(known):
            some_values = np.sort(values[known][::step])
            grid = some_values[np.linspace(0, len(some_values) - 1, FINE_BINS + 1).astype(int)]
            code = np.searchsorted(np.unique(grid[1:-1]), values[known], side="right")
            flat = np.bincount(place[known] * FINE_BINS + code, minlength=len(of) * FINE_BINS)
            counts[:, j] = flat.reshape(len(of), FINE_BINS)
    is_regular = np.searchsorted(sessions, of) % EVERY == 0
    return _Sample(of, is_regular, np.bincount(place, minlength=len(of)), counts)


def _drifted(
    ws: Workspace,
    key: str,
    names: Sequence[str],
    sample: _Sample | None,
    sessions: npt.NDArray[np.datetime64],
) -> Checked:
    """Each feature's stability index in the partition, against the training window before it."""
    name, s = "features_have_not_drifted", ws.settings.checks
    start, end = np.array(ws.grid.window(key), "datetime64[D]")
    at = int(np.searchsorted(sessions, start))
    if sample is None or at == 0:
        return Checked(name, key, True, words="Nothing before it to compare with.")
    since = sessions[max(at - ws.settings.train.window_sessions, 0)]
    n_before, before = sample.between(since, start, only_regular=True)
    n, found = sample.between(start, end, only_regular=False)
    n_sessions = sample.n_regular(since, start)
    if n_sessions < MIN_SESSIONS_BEFORE or n_before < MIN_REFERENCE or n < MIN_ROWS:
        words = f"Too few rows to compare: {n} with {n_before} of {n_sessions} sessions before."
        return Checked(name, key, True, words=words, numbers={"rows": n, "rows_before": n_before})
    index = stability_index(merge_bins(before, before), merge_bins(found, before))
    order = np.argsort(-np.nan_to_num(index))
    bad = [names[i] for i in order if index[i] > s.feature_psi]
    share = len(bad) / len(names)
    largest = float(np.nan_to_num(index).max())
    passed = share <= s.max_drifted_share and largest <= s.max_feature_psi
    words = "" if passed else (
        f"{len(bad)} of {len(names)} features have drifted (index over {s.feature_psi}): "
        f"{some([f'{names[i]} {index[i]:.2f}' for i in order])}. Look for a changed source; else "
        "the market is not what models have learned from."
    )  # fmt: skip
    numbers = {
        "drifted_share": share, "median_psi": float(np.nanmedian(index)),
        "largest_psi": largest, "largest_psi_of": names[order[0]],
        "rows": n, "rows_before": n_before,
    } | _worst("psi", list(names), index.tolist())  # fmt: skip
    return Checked(name, key, passed, "WARN", words, numbers)
