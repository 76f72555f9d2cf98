"""Proofs as checks: what was proved of a partition, and the sample that is proved every night."""

from collections.abc import Sequence
from datetime import date

from quant_pipeline.chain.audit import audit
from quant_pipeline.chain.checks.result import Checked
from quant_pipeline.chain.verified import Tell, Verified
from quant_pipeline.chain.verify_scores import verify_scores
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.stores.meta import CheckResult

MODELS, SCORES = "future_does_not_matter", "scores_are_rebuilt"
PROVED = {"lgbm_model": MODELS, "predictions": SCORES}


def verdicts(ws: Workspace, asset: str, keys: Sequence[str]) -> list[Checked]:
    """What the newest proof of each partition said; a proof takes too long to be part of each run.

    A partition that was never proved passes, and its words say so.
    """
    name = PROVED[asset]
    newest: dict[tuple[str, str], CheckResult] = {}
    for row in ws.meta.check_results(asset):
        if row.name == name and row.numbers.get("proved"):
            newest[row.partition_key, row.task_id] = row
    found = [
        Checked(name, r.partition_key, r.passed, "ERROR", r.words, r.numbers, r.task_id)
        for r in newest.values() if r.partition_key in keys
    ]  # fmt: skip
    how = "quant audit --asof {0}" if asset == "lgbm_model" else "quant verify --all --since {1}"
    for key in keys:
        if not any(one.key == key for one in found):
            command = how.format(ws.grid.asof(key), ws.grid.window(key)[0])
            words = f"Not proved yet: `{command}`, or execute this check alone."
            found.append(Checked(name, key, True, "ERROR", words))
    return found


def prove(ws: Workspace, asset: str, keys: Sequence[str], tell: Tell) -> list[Checked]:
    """Prove partitions of an asset now."""
    work = _prove_models if asset == "lgbm_model" else _prove_scores
    return [one for key in keys for one in work(ws.read_only(), key, tell)]


def choose_sample(ws: Workspace) -> dict[str, list[str]]:
    """The partition of models, and those of scores, that a night's proof looks at.

    Scores: the newest partition, where the live ones are. Models, and one more of scores: whose
    last proof is the oldest, never proved first, newer before older.
    """
    models = {m.partition_key for m in ws.meta.trained() if m.status != "imported"}
    scored = {b.partition_key for b in ws.meta.batches("predictions") if b.n_rows}
    found = {"lgbm_model": _longest_ago(ws, "lgbm_model", models), "predictions": []}
    if scored:
        newest = max(scored, key=ws.grid.asof)
        found["predictions"] = [newest, *_longest_ago(ws, "predictions", scored - {newest})]
    return found


def _longest_ago(ws: Workspace, asset: str, keys: set[str]) -> list[str]:
    last: dict[str, int] = {}
    for row in ws.meta.check_results(asset):
        if row.name == PROVED[asset] and row.numbers.get("proved") and row.id is not None:
            last[row.partition_key] = row.id
    newest_first = sorted(keys, key=ws.grid.asof, reverse=True)
    return sorted(newest_first, key=lambda key: last.get(key, 0))[:1]


def _prove_models(ws: Workspace, key: str, tell: Tell) -> list[Checked]:
    """An audit of a partition's models: one result a task."""
    trained = {m.task_id for m in ws.meta.trained()
               if m.partition_key == key and m.status != "imported"}  # fmt: skip
    tasks = [task for task in ws.tasks() if task.task_id in trained]
    if not tasks:
        return [Checked(MODELS, key, True, "ERROR", "No model yet.")]
    proofs = audit(ws, [ws.grid.asof(key)], tasks, tell)
    found = []
    for task in tasks:
        mine = [p for p in proofs if p.task_id in ("", task.task_id)]
        bad = [p for p in mine if p.failed]
        open_ = [p for p in mine if p.outcome == "unproven"]
        words = f"{bad[0].words}: {bad[0].finding or ''}" if bad else ""
        if open_ and not bad:
            words = f"{len(open_)} of {len(mine)} could not be proved: {open_[0].words}"
        numbers = {"proved": len(mine) - len(open_), "failed": len(bad), "unproven": len(open_)}
        found.append(Checked(MODELS, key, not bad, "ERROR", words, numbers, task.task_id))
    return found


def _prove_scores(ws: Workspace, key: str, tell: Tell) -> list[Checked]:
    """Scores of a partition made anew from prices: the newest sessions, live ones first."""
    start, end = ws.grid.window(key)
    rows = ws.series.query(
        "SELECT task_id, ts, model_id, bool_or(origin = 'live') AS is_live FROM predictions "
        "WHERE ts >= ? AND ts < ? GROUP BY ALL ORDER BY is_live DESC, ts DESC, model_id",
        [start, end],
    ).to_pylist()
    found = []
    for task in ws.tasks():
        mine = [row for row in rows if row["task_id"] == task.task_id]
        mine = mine[: ws.settings.proofs.sessions]
        results: list[Verified] = []
        by_model: dict[str, list[date]] = {}
        for row in mine:
            by_model.setdefault(row["model_id"], []).append(row["ts"])
        for i, (model_id, sessions) in enumerate(by_model.items()):
            tell(f"scoring {len(sessions)} sessions of {key} again", i, len(by_model))
            results += verify_scores(ws, ws.meta.model(model_id), sessions)
        bad = [v for v in results if v.outcome == "alarm"]
        other = [v for v in results if v.outcome == "explained"]
        words = "" if results else "No score yet."
        if bad:
            why = bad[0].reasons[0] if bad[0].reasons else "though nothing has changed"
            words = f"{bad[0].name}: {bad[0].words}, {why}"
        elif other:
            words = f"{len(other)} of {len(results)} not identical: {', '.join(other[0].reasons)}"
        numbers = {"proved": len(results), "failed": len(bad), "explained": len(other)}
        found.append(Checked(SCORES, key, not bad, "ERROR", words, numbers, task.task_id))
    return found
