"""features_daily and labels: rows of a range of partitions, computed from stored bars."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quant_pipeline.chain.blocks import in_blocks
from quant_pipeline.chain.lists import read_memberships
from quant_pipeline.chain.panel import Panel, read_panel
from quant_pipeline.chain.workspace import Workspace, newest_batch_id, price_batch_id
from quant_pipeline.errors import NoData
from quant_pipeline.market.feature_matrix import compute_matrix, spans_jump
from quant_pipeline.market.features import AnyFeature, look_back
from quant_pipeline.market.labels import Labels, make_labels
from quant_pipeline.market.universe import find_covered, find_members
from quant_pipeline.settings import Task
from quant_pipeline.stores.series import Connection

Bools = npt.NDArray[np.bool_]
LABEL_VALUES = 12  # of a bar and task that are held at once, about


@dataclass(frozen=True)
class FeatureRows:
    """Rows of features_daily, the flagged jumps among them, and which rows span one."""

    rows: pa.Table
    is_jump: Bools
    spans_jump: Bools


def features_in_blocks(
    ws: Workspace, keys: Sequence[str]
) -> Iterator[tuple[list[str], FeatureRows]]:
    """Features of consecutive partitions, some at a time: memory does not grow with history.

    Each block is computed when it is asked for, all of them from the same batch of prices.
    """
    batch_id = newest_batch_id(ws)
    for block in in_blocks(ws, keys, len(ws.features), batch_id):
        first, before = ws.grid.window(block[0])[0], ws.grid.window(block[-1])[1]
        yield block, features_between(ws, first, before, batch_id)


def features_between(
    ws: Workspace,
    first: date,
    before: date,
    batch_id: int | None = None,
    features: Sequence[AnyFeature] | None = None,
) -> FeatureRows:
    """Features of every bar on a session in ``[first, before)``, known at its close.

    Columns symbol, ts, the features (float32), in_universe and lacks_history (fewer than
    features.min_sessions), sorted by ts, symbol; those of quant.toml from the newest prices,
    unless others or another batch are given. NaN where a window spans a flagged jump.
    """
    features = ws.features if features is None else features
    needed = max(look_back(features), ws.settings.universe.value_sessions)
    with ws.series.reading("features") as con:
        batch_id = price_batch_id(con) if batch_id is None else batch_id
        panel = read_panel(con, first, before, needed, ws.settings.jumps, batch_id)
        is_wanted = panel.ts >= np.datetime64(first)
        members = _members(con, ws, panel, is_wanted, batch_id)
    age = panel.session - panel.first_session[panel.symbol] + 1
    has_history = age >= ws.settings.features.min_sessions
    matrix = compute_matrix(
        panel.symbol,
        panel.session,
        panel.columns,
        features,
        panel.is_jump,
        panel.first_session,
        is_wanted,
        members & has_history,
    ).T
    spans = spans_jump(panel.symbol, panel.session, panel.is_jump, look_back(features))
    wanted = np.flatnonzero(is_wanted)
    by_session = np.lexsort((panel.symbol[wanted], panel.session[wanted]))
    kept = wanted[by_session]
    columns = {
        "symbol": pa.array(panel.symbols[panel.symbol[kept]], pa.string()),
        "ts": pa.array(panel.ts[kept], pa.date32()),
    }
    for feature, values in zip(features, matrix, strict=True):
        values[:] = values[by_session]  # in place: Arrow takes it as it lies
        columns[feature.name] = pa.array(values, pa.float32())
    columns["in_universe"] = pa.array((members & has_history)[kept])
    columns["lacks_history"] = pa.array(~has_history[kept])
    spec = ws.feature_set_id if features is ws.features else ""
    rows = _made_from(batch_id, spec, pa.table(columns))
    return FeatureRows(rows, panel.is_jump[kept], spans[kept])


def _members(
    con: Connection, ws: Workspace, panel: Panel, is_wanted: Bools, batch_id: int
) -> Bools:
    """Which bars are in the universe, by history, traded value and, if asked for, membership."""
    members = find_members(
        panel.symbol,
        panel.session,
        panel.traded_value,
        panel.first_session,
        ws.settings.universe,
        is_wanted,
    )
    if ws.settings.universe.memberships:
        code = {name: i for i, name in enumerate(panel.symbols)}
        rows = read_memberships(con, batch_id).to_pylist()
        if not rows:
            raise NoData(
                "universe.memberships is true, but no list of members is stored. "
                "Run `quant ingest FILE --as memberships`, or set it to false."
            )
        intervals = [
            (code[r["symbol"]], np.datetime64(r["first"]), r["last"] and np.datetime64(r["last"]))
            for r in rows if r["symbol"] in code
        ]  # fmt: skip
        members &= find_covered(panel.symbol, panel.ts, intervals)
    return members


def labels_in_blocks(ws: Workspace, keys: Sequence[str]) -> Iterator[tuple[list[str], pa.Table]]:
    """Labels that became known in consecutive partitions, some partitions at a time."""
    batch_id = newest_batch_id(ws)
    for block in in_blocks(ws, keys, LABEL_VALUES * len(ws.settings.tasks), batch_id):
        first, before = ws.grid.window(block[0])[0], ws.grid.window(block[-1])[1]
        yield block, labels_between(ws, first, before, batch_id)


def labels_between(
    ws: Workspace, first: date, before: date, batch_id: int | None = None
) -> pa.Table:
    """Labels of all tasks that became known in ``[first, before)``, or the reason for none.

    Columns symbol, ts, task_id, label, fwd_return, entry_ts, exit_ts, known_at, reason; sorted
    by task_id, ts, symbol; from the newest prices, or from those of a batch.
    """
    span = max(task.label_span for task in ws.settings.tasks)
    with ws.series.reading("labels") as con:
        batch_id = price_batch_id(con) if batch_id is None else batch_id
        panel = read_panel(con, first, before, span, ws.settings.jumps, batch_id)
    start = int(panel.session.min()) if len(panel.session) else 0
    shape = (len(panel.sessions) - start, len(panel.symbols))
    close, is_jump = np.full(shape, np.nan), np.zeros(shape, np.bool_)
    close[panel.session - start, panel.symbol] = panel.columns["close"]
    is_jump[panel.session - start, panel.symbol] = panel.is_jump
    tables = []
    for task in sorted(ws.settings.tasks, key=lambda t: t.task_id):
        found = make_labels(
            close,
            is_jump,
            panel.sessions[start:],
            task,
            np.datetime64(first),
            np.datetime64(before),
            ws.settings.label.missing_exit,
        )
        tables.append(_label_rows(panel, task, found))
    return _made_from(batch_id, ws.label_spec_id, pa.concat_tables(tables))


def _label_rows(panel: Panel, task: Task, found: Labels) -> pa.Table:
    is_usable = found.reason == ""
    return pa.table(
        {
            "symbol": pa.array(panel.symbols[found.symbol], pa.string()),
            "ts": pa.array(found.ts, pa.date32()),
            "task_id": pa.array([task.task_id] * len(found.ts), pa.string()),
            "label": pa.array(found.label, mask=~is_usable),
            "fwd_return": pa.array(found.fwd_return, mask=~is_usable),
            "entry_ts": pa.array(found.entry_ts, pa.date32()),
            "exit_ts": pa.array(found.exit_ts, pa.date32()),
            "known_at": pa.array(found.known_at, pa.date32()),
            "reason": pa.array(found.reason, pa.string(), mask=is_usable),
        }
    )


def _made_from(batch_id: int, spec_id: str, rows: pa.Table) -> pa.Table:
    """Rows that know their newest price batch and what they were made with.

    Before they are stored, prices may be ingested and settings changed.
    """
    return rows.replace_schema_metadata({"price_batch_id": str(batch_id), "spec_id": spec_id})
