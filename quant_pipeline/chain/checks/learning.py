"""Checks of labels, training_frame, walkforward_folds and lgbm_model."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from quant_pipeline.chain.checks.result import Checked
from quant_pipeline.chain.folds import count_overlaps
from quant_pipeline.chain.frame import fingerprint_partitions, read_rows
from quant_pipeline.chain.training_data import read_examples, training_keys
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NotEnoughHistory, QuantError
from quant_pipeline.ml.gate import find_changed_fingerprints, require_usable
from quant_pipeline.settings import Task, alike
from quant_pipeline.stores.series import Connection, columns_of, query, read_manifests, registered

FEWEST_SESSIONS = 5  # whose labels have a base rate to judge


def check_labels(ws: Workspace, keys: Sequence[str]) -> list[Checked]:
    """Check the labels that became known in consecutive partitions, in one query."""
    starts = {ws.grid.window(key)[0]: key for key in keys}
    above = [t.threshold if t.kind == "classification" else 0.0 for t in ws.settings.tasks]
    tasks = pa.table({"task_id": [t.task_id for t in ws.settings.tasks], "threshold": above})
    windows = pa.table({"start": pa.array(list(starts), pa.date32())})
    with (
        ws.series.reading("checks") as con,
        registered(con, "windows", windows),
        registered(con, "thresholds", tasks),
    ):
        rows = query(
            con,
            _LABELS,
            [ws.grid.window(keys[0])[0], ws.grid.window(keys[-1])[1]],
        ).to_pylist()
    stored = {(starts[row["start"]], row["task_id"]): row for row in rows}
    found = []
    for key in keys:
        for task in ws.settings.tasks:
            row = stored.get((key, task.task_id), {})
            found += [_in_order(key, task, row), _base_rate(ws, key, task, row)]
    return found


_LABELS = """
    SELECT start, task_id, count(*) AS n, count(label) AS n_labels,
        count(*) FILTER (NOT (known_at > ts AND entry_ts > ts AND exit_ts > entry_ts
            AND known_at >= exit_ts)) AS n_disordered,
        count(DISTINCT ts) FILTER (label IS NOT NULL) AS n_sessions,
        avg((fwd_return > threshold)::INTEGER) FILTER (label IS NOT NULL) AS base_rate
    FROM labels JOIN thresholds USING (task_id) ASOF JOIN windows ON known_at >= start
    WHERE known_at >= ? AND known_at < ? GROUP BY ALL
"""


def _in_order(key: str, task: Task, row: dict[str, Any]) -> Checked:
    n = row.get("n_disordered", 0)
    words = "" if not n else (
        f"{n} labels of {task.task_id} are known before they can be: known_at > ts, and "
        f"ts < entry_ts < exit_ts <= known_at, must hold. Run `quant backfill --select labels` "
        f"for {key}."
    )  # fmt: skip
    numbers = {"out_of_order": n, "rows": row.get("n", 0)}
    name = "labels_follow_their_sessions"
    return Checked(name, key, not n, "ERROR", words, numbers, task.task_id)


def _base_rate(ws: Workspace, key: str, task: Task, row: dict[str, Any]) -> Checked:
    s = ws.settings.checks
    name, rate = "base_rate_is_usual", row.get("base_rate")
    numbers = {"labels": row.get("n_labels", 0), "sessions": row.get("n_sessions", 0)}
    if rate is None or row["n_sessions"] < FEWEST_SESSIONS:
        words = f"Labels of fewer than {FEWEST_SESSIONS} sessions say too little."
        return Checked(name, key, True, "WARN", words, numbers, task.task_id)
    passed = s.min_base_rate <= rate <= s.max_base_rate
    words = "" if passed else (
        f"{rate:.1%} of the labels of {task.task_id} are above their threshold, outside "
        f"{s.min_base_rate:.0%} to {s.max_base_rate:.0%}. Look at prices, and at the threshold."
    )  # fmt: skip
    return Checked(name, key, passed, "WARN", words, numbers | {"base_rate": rate}, task.task_id)


def check_frame(ws: Workspace, keys: Sequence[str]) -> list[Checked]:
    """Check the manifests of consecutive partitions, and the newest one's training window.

    The window of the newest partition is read once, as training reads it; what is older has no
    fingerprint made anew.
    """
    found = []
    with ws.series.reading("checks") as con:
        for task in ws.settings.tasks:
            manifests = read_manifests(con, task.task_id)
            found += [_complete(ws, key, task, manifests.get(key)) for key in keys]
        for tasks in alike(ws.settings.tasks):
            found += _as_recorded(ws, con, keys, tasks)
    return found


def _complete(ws: Workspace, key: str, task: Task, row: dict[str, Any] | None) -> Checked:
    name = "increments_are_complete"
    if row is None:
        words = f"{task.task_id} has no manifest. Run `quant backfill --select training_frame`."
        return Checked(name, key, False, "ERROR", words, {}, task.task_id)
    dropped = {n: row[n] for n in ("n_outside_universe", "n_short_history", "n_without_features")}
    said = row["n_rows"] + sum(dropped.values())
    wrong = []
    if said != row["n_labels"]:
        wrong.append(f"{row['n_labels']} labels became known, but {said} are told of.")
    if row["feature_set_id"] != ws.feature_set_id:
        wrong.append("It was made with other features or another universe than quant.toml's.")
    if wrong:
        wrong.append(f"Run `quant backfill --select training_frame` for {key}.")
    numbers = {"rows": row["n_rows"], "labels": row["n_labels"], **dropped}
    return Checked(name, key, not wrong, "ERROR", " ".join(wrong), numbers, task.task_id)


def _as_recorded(
    ws: Workspace, con: Connection, keys: Sequence[str], tasks: Sequence[Task]
) -> list[Checked]:
    """The gate of training for the newest partition; if it is closed, whose rows are others."""
    name = "examples_are_as_recorded"
    try:
        window, _, whole_from = training_keys(ws, con, keys[-1], tasks[0])
    except NotEnoughHistory as error:
        return [Checked(name, k, True, "ERROR", str(error), {}, t.task_id)
                for k in keys for t in tasks]  # fmt: skip
    words, changed = "", {task.task_id: set[str]() for task in tasks}
    try:
        read_examples(ws, con, keys[-1], tasks)
    except QuantError as error:
        words = str(error)
        changed = _changed(ws, con, window, whole_from, tasks)
    found = []
    for task in tasks:
        bad = changed[task.task_id]
        for key in keys:
            is_in = key in window
            reason = words if key == keys[-1] or key in bad else ""
            if not is_in:
                reason = f"Before the training window of {keys[-1]}: not read again."
            passed = not is_in or not reason
            n_compared = (len(window) if key == keys[-1] else 1) if is_in else 0
            numbers = {"increments_compared": n_compared, "changed": len(bad)}
            found.append(Checked(name, key, passed, "ERROR", reason, numbers, task.task_id))
    return found


def _changed(
    ws: Workspace, con: Connection, window: Sequence[str], whole_from: Any, tasks: Sequence[Task]
) -> dict[str, set[str]]:
    """Partitions of the window whose rows are not those of their manifests, or have none."""
    names = tuple(f.name for f in ws.features)
    if set(names) - set(columns_of(con, "features_daily")):
        return {task.task_id: set(window) for task in tasks}
    found: dict[str, set[str]] = {}
    for task in tasks:
        manifests = read_manifests(con, task.task_id)
        recorded = {k: manifests[k]["fingerprint"] for k in window if k in manifests}
        rows, labels = read_rows(con, [task.task_id], whole_from, ws.grid.asof(window[-1]), names)
        prints = fingerprint_partitions(ws, rows, labels, list(window), [task])[task.task_id]
        found[task.task_id] = set(find_changed_fingerprints(recorded, prints))
    return found


def check_folds(ws: Workspace, keys: Sequence[str]) -> list[Checked]:
    """Prove the stored windows of partitions anew, in SQL.

    Windows that a model was trained on stay as they were when rows are restated later: then
    another number of rows is told, and overlaps alone fail.
    """
    trained = {(m.partition_key, m.task_id) for m in ws.meta.trained()}
    found = []
    with ws.series.reading("checks") as con:
        for key in keys:
            for task in ws.settings.tasks:
                counted = count_overlaps(con, key, task, ws.grid.asof(key))
                found.append(_windows(key, ws, task, counted, (key, task.task_id) in trained))
    return found


def _windows(
    key: str, ws: Workspace, task: Task, counted: tuple[int, int, int], is_trained: bool
) -> Checked:
    n_overlaps, n_said, n_there = counted
    passed = n_overlaps == 0 and (n_said == n_there or is_trained)
    words = ""
    if not n_said:
        words = f"No windows of {task.task_id}: nothing to prove."
    elif not passed:
        words = (
            f"{n_overlaps} rows of {task.task_id} have an outcome in another window of their fold; "
            f"windows are said to keep {n_said} rows and hold {n_there}. Run "
            f"`quant train --asof {ws.grid.asof(key)}`."
        )
    elif n_said != n_there:
        words = (
            f"Rows were restated since the model of {task.task_id} was trained: windows kept "
            f"{n_said} rows and hold {n_there} now. The model stays as it is."
        )
    numbers = {"overlaps": n_overlaps, "rows_kept": n_said, "rows_there": n_there}
    return Checked("windows_do_not_overlap", key, passed, "ERROR", words, numbers, task.task_id)


def check_models(ws: Workspace, keys: Sequence[str]) -> list[Checked]:
    """Check that the models of partitions can be used, and that their files are theirs."""
    found = []
    for trained in ws.meta.trained():
        if trained.partition_key not in keys or trained.status == "pruned":
            continue
        model, words = ws.meta.model(trained.model_id), ""
        try:
            n_used = sum(share > 0 for share in model.importance["split"].values())
            require_usable(model.model_id[:12], model.metrics, n_used)
            ws.files.read(model.model_id)
        except QuantError as error:
            words = str(error)
        numbers = {n: v for n in ("rank_ic", "rank_ic_se", "auc", "mse", "log_loss")
                   if isinstance(v := model.metrics.get(n), float)}  # fmt: skip
        numbers |= {"rounds": model.rounds, "rows": model.n_rows}
        found.append(
            Checked("model_is_usable", model.partition_key, not words, "ERROR", words, numbers,
                    model.task_id)
        )  # fmt: skip
    for key in keys:
        if not any(c.key == key for c in found):
            found.append(Checked("model_is_usable", key, True, "ERROR", "No model yet."))
    return found
