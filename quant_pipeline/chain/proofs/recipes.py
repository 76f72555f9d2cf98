"""Since when settings are known: what reports call out of sample for them must come after that."""

import json
from collections.abc import Sequence
from datetime import date, timedelta
from hashlib import sha256
from typing import Any

from sqlmodel import col, select

from quant_pipeline.chain import judge, judged
from quant_pipeline.chain.proofs.result import Finding, Proof
from quant_pipeline.chain.trials import VARIED
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData
from quant_pipeline.settings import Task
from quant_pipeline.stores.meta import Batch, Model, Trial
from quant_pipeline.stores.series import query, read_sessions

# What each release shipped, and since when that is known by its own account: (digest of all that
# `shipped_digests` looks at, digest of that but for what studies vary, date), one line a task. A
# release that ships other settings adds lines; those of earlier ones stay, as do their models.
RELEASED: Sequence[tuple[str, str, date]] = (
    ("cebc7288c391a747", "898edbbde1b1c300", date(2011, 12, 31)),
    ("cf904ed94d681b67", "5ace9db66b0a68c1", date(2011, 12, 31)),
)
SECTIONS = ("label", "folds", "features", "universe", "jumps", "train")


def prove_recipes(ws: Workspace) -> list[Proof]:
    """Compare the date of every recipe that has a model with what was known when it was tried.

    Reports count sessions up to that date as in-sample for the settings. It must not be older than
    the study that proposed them, or than the outcomes that were stored when a hand first used them;
    and reports must call no scored session up to it out of sample.
    """
    models = [m for m in ws.meta.models() if m.status != "imported"]  # chosen and tried elsewhere
    trials = {trial.recipe: trial for trial in ws.meta.trials()}
    known: dict[str, date] = {}
    for model in models:
        trial = trials.get(model.recipe)
        if trial is None:
            return [_failed(model, f"trial of {model.recipe[:12]}", "a trial", "none")]
        earliest = _earliest(ws, trial, model)
        if earliest is not None and model.chosen_asof < earliest:
            name, wanted = f"chosen_asof of {model.recipe[:12]}", f"{earliest} or later"
            return [_failed(model, name, wanted, str(model.chosen_asof))]
        known[model.model_id] = max(model.chosen_asof, earliest or model.chosen_asof)
    if _has_twice(ws):  # no report can judge them, and `served` tells which are wrong
        words = "some scores are stored twice for a symbol and session, so reports cannot be asked"
        return [Proof("recipes", "unproven", words)]
    n_asked = 0
    for task in ws.settings.tasks:
        of_task = {m.model_id: m for m in models if m.task_id == task.task_id}
        for model_id, session in _in_sample(ws, task, of_task, known):
            n_asked += 1
            for report in (_judged_alone, _published):
                if report(ws, task, session):
                    name = f"{session} for {of_task[model_id].recipe[:12]}"
                    until = f"in-sample until {known[model_id]}"
                    return [_failed(of_task[model_id], name, until, "out of sample in reports")]
    n = len({model.recipe for model in models})
    words = f"settings of {n} recipes are known since the dates that reports split by"
    return [Proof("recipes", "holds", words, None, "", None, {"recipes": n, "sessions": n_asked})]


def _failed(model: Model, name: str, expected: str, found: str) -> Proof:
    finding = Finding("recipes", "trials", "", model.asof, name, expected, found)
    words = "reports would call sessions out of sample that the settings have seen"
    return Proof("recipes", "fails", words, None, model.task_id, finding)


def _earliest(ws: Workspace, trial: Trial, model: Model) -> date | None:
    """The earliest date that may be given for the settings of a model; None if any may."""
    whole, fixed = shipped_digests(model.settings)
    if trial.chosen_by == "shipped settings":
        declared = [day for digest, _, day in RELEASED if digest == whole]
        return max(declared) if declared else _newest_known(ws, trial)
    if not trial.chosen_by.startswith("study "):
        return _newest_known(ws, trial)
    dates = [trial.asof, date.fromisoformat(trial.settings["fixed_asof"])]
    words = trial.chosen_by.split()
    if len(words) == 5:  # study, task, partition, recipe, data: the study that proposed it last
        dates.append(ws.grid.asof(words[2]))
    if all(digest != fixed for _, digest, _ in RELEASED):  # a hand had chosen what it did not vary
        same = trial.settings["fixed"]
        alike = [t for t in ws.meta.trials(trial.task_id) if t.settings.get("fixed") == same]
        first = _newest_known(ws, alike[0])
        dates += [first] if first else []
    return max(dates)


def shipped_digests(settings: dict[str, Any]) -> tuple[str, str]:
    """Digests of a model's recorded settings that a release may have shipped.

    Of its task and all sections that decide what is learned, and of these but for what studies
    vary.
    """
    whole = {name: settings[name] for name in (*SECTIONS, "task")}
    train = {name: value for name, value in whole["train"].items() if name not in VARIED}
    return _digest(whole), _digest(whole | {"train": train})


def _digest(values: dict[str, Any]) -> str:
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _newest_known(ws: Workspace, trial: Trial) -> date | None:
    """The last day before the newest window with outcomes that was stored when it was tried."""
    wanted = select(Batch.partition_key).where(
        Batch.table_name == "labels", Batch.task_id == trial.task_id, Batch.n_rows > 0,
        Batch.written_at <= trial.tried_at,
    )  # fmt: skip
    with ws.meta.reading() as session:
        key = session.exec(wanted.order_by(col(Batch.partition_key).desc())).first()
    return ws.grid.window(key)[0] - timedelta(days=1) if key else None


def _in_sample(
    ws: Workspace, task: Task, models: dict[str, Model], known: dict[str, date]
) -> list[tuple[str, date]]:
    """Of each recipe the first and the last scored session that its settings may have seen.

    With a known outcome, as reports have no others; beside each the model that scored it.
    """
    with ws.series.reading("an audit") as con:
        sessions = read_sessions(con)["ts"].to_pylist()
        scored = query(
            con,
            "SELECT DISTINCT p.model_id, p.ts FROM predictions p JOIN labels l "
            "USING (symbol, ts, task_id) WHERE p.task_id = ? AND l.reason IS NULL ORDER BY ALL",
            [task.task_id],
        ).to_pylist()
    judgeable = set(sessions[: max(len(sessions) - task.label_span, 0)])
    found: dict[str, list[tuple[date, str]]] = {}
    for row in scored:
        model = models.get(row["model_id"])
        if model and row["ts"] <= known[model.model_id] and row["ts"] in judgeable:
            found.setdefault(model.recipe, []).append((row["ts"], model.model_id))
    ends = {end for days in found.values() for end in (min(days), max(days))}
    return sorted((model_id, session) for session, model_id in ends)


def _has_twice(ws: Workspace) -> bool:
    with ws.series.reading("an audit") as con:
        found = query(
            con,
            "SELECT 1 AS n FROM predictions GROUP BY task_id, ts, symbol HAVING count(*) > 1 "
            "LIMIT 1",
        )
    return len(found) > 0


def _judged_alone(ws: Workspace, task: Task, session: date) -> bool:
    """Whether `quant predictions` judges a session as one after the choice of settings."""
    try:
        groups = judge.judge_predictions(ws, task, session, session)
    except NoData:
        return False
    return any(group["settings_known_before"] for group in groups)


def _published(ws: Workspace, task: Task, session: date) -> bool:
    """The same of what the page and other readers get."""
    with ws.series.reading("an audit") as con:
        sessions = read_sessions(con)["ts"].to_pylist()
    known = sessions[sessions.index(session) + task.label_span]
    rows = judged.judge_sessions(ws, task, known, known + timedelta(days=1)).to_pylist()
    return any(row["settings_known_before"] for row in rows)
