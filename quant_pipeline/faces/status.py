"""`quant status`: what is there, what is stale or late and why, and what to type."""

from datetime import date, timedelta
from typing import Any

import typer

from quant_pipeline.chain.knowledge import models_that_knew_less
from quant_pipeline.chain.prices import count_prices
from quant_pipeline.chain.seal import judge_until, read_counts, waiting_message
from quant_pipeline.chain.stale import Stored, read_stored, stale_data
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData, SettingsError
from quant_pipeline.faces.output import print_table
from quant_pipeline.market.calendars import closed_sessions
from quant_pipeline.market.closing import judge_coverage

OLD_DAYS = 5


def find_status(ws: Workspace) -> dict[str, Any]:
    """The state of a home as plain data."""
    found: dict[str, Any] = {"home": str(ws.home.root), "prices": None, "stale": {}, "tasks": []}
    try:
        stored = read_stored(ws)
    except NoData as error:
        return {**found, "next": str(error)}
    found["prices"] = count_prices(ws) | {
        "sessions": len(stored.sessions),
        "first_session": stored.first_session.isoformat(),
        "last_session": stored.last_session.isoformat(),
    }
    found["windows"] = _find_windows(ws, stored)
    found["late"] = _find_late(ws, stored)
    found["stale"] = {asset: why for asset, why in stale_data(ws, stored).items() if why}
    found["models_that_knew_less"] = [
        {"model_id": m["model_id"], "task_id": m["task_id"], "asof": m["asof"].isoformat()}
        for m in models_that_knew_less(ws, stored)
    ]
    found["tasks"] = _find_tasks(ws)
    found["next"] = _next_step(found)
    return found


def _find_windows(ws: Workspace, stored: Stored) -> dict[str, Any]:
    """Sealed windows, and what the next one waits for."""
    looked_at = judge_until(ws, stored.keys[-1])
    ready = [c.key for c in looked_at if c.is_sealable]
    waiting = next((c for c in looked_at if not c.is_sealable), None)
    sealed = sorted(stored.sealed, key=stored.keys.index)
    return {
        "sealed": len(sealed),
        "sealed_through": sealed[-1] if sealed else None,
        "complete_not_sealed": ready,
        "open": waiting.key if waiting else None,
        "open_because": waiting_message(waiting, waiting.key) if waiting else None,
    }


def _find_late(ws: Workspace, stored: Stored) -> list[str]:
    """What should be there by now and is not, in words."""
    late = []
    today, last = ws.today(), stored.last_session
    name = ws.settings.sessions.calendar
    if name:
        late += _missing_sessions(name, last, today)
    elif (today - last).days > OLD_DAYS:
        late.append(
            f"The newest session, {last}, is {(today - last).days} days old. "
            "(Set sessions.calendar in a new home to know which sessions are missing.)"
        )
    with ws.series.reading("status") as con:
        counts = read_counts(con)
        waiting = con.execute(
            "SELECT ts, n_bars FROM sessions WHERE NOT is_session AND ts > ? ORDER BY ts", [last]
        ).fetchall()
    last_counted, usual = judge_coverage(counts)
    if last_counted.n_bars < ws.settings.seal.coverage * usual:
        late.append(f"{last} has {last_counted.n_bars} of {usual:g} usual bars so far.")
    for ts, n_bars in waiting[-3:]:
        late.append(f"{ts} has {n_bars} of {usual:g} usual bars: no session yet.")
    empty = [s.ts for s in counts if not s.n_bars]
    if empty:
        late.append(f"Without any bar are these sessions of {name}: {_some_days(empty[::-1])}.")
    return late


def _missing_sessions(name: str, last: date, today: date) -> list[str]:
    try:
        missing = closed_sessions(name, last + timedelta(days=1), today)
    except SettingsError as error:  # the calendar ends before today
        return [str(error)]
    if not missing:
        return []
    return [
        f"{name} had {len(missing)} sessions after {last}, the newest stored: "
        f"{_some_days(missing)}."
    ]


def _some_days(days: list[date]) -> str:
    shown = ", ".join(str(d) for d in days[:5])
    return f"{shown} and {len(days) - 5} more" if len(days) > 5 else shown


def _find_tasks(ws: Workspace) -> list[dict[str, Any]]:
    rows = ws.series.query(
        "SELECT task_id, count(*) AS n, max(ts) AS last FROM predictions GROUP BY task_id"
    ).to_pylist()
    scored = {r["task_id"]: (r["n"], r["last"]) for r in rows}
    tasks = []
    for task in ws.settings.tasks:
        models = ws.meta.models(task.task_id)
        n, last = scored.get(task.task_id, (0, None))
        tasks.append(
            {
                "task": task.task_id,
                "models": len(models),
                "newest_asof": models[-1].asof.isoformat() if models else None,
                "refused": len(ws.meta.refusals(task.task_id)),
                "scores": n,
                "scored_through": last.isoformat() if last else None,
            }
        )
    return tasks


def _next_step(found: dict[str, Any]) -> str:
    if not any(t["models"] for t in found["tasks"]):
        return (
            "No model has been trained yet. Run `quant train`, or `quant backfill --from D --to D`."
        )
    late = [t for t in found["tasks"] if t["scored_through"] != found["prices"]["last_session"]]
    if late:
        return (
            f"{late[0]['task']} is scored through {late[0]['scored_through'] or 'no session yet'}. "
            "Run `quant score`, which fills what is stale and trains complete windows first."
        )
    if found["stale"]:
        return "Some partitions are stale. Run `quant score`, which fills them first."
    return "Everything is up to date. Look at `quant predictions --top 5`, or `quant ui`."


def show_status(found: dict[str, Any]) -> None:
    """The state of a home in words."""
    typer.echo(f"Home {found['home']}")
    if found["prices"]:
        _show_prices(found)
        _show_windows(found)
        _show_stale(found["stale"])
        if found["models_that_knew_less"]:
            n = len(found["models_that_knew_less"])
            typer.echo(
                f"Restated since: {n} models were trained before data they learned from were "
                "restated; they stay. `quant prices restated --reach` lists what."
            )
        print_table(
            found["tasks"],
            {
                "task": "task",
                "models": "models",
                "newest_asof": "newest as of",
                "refused": "refused",
                "scores": "scores",
                "scored_through": "scored through",
            },
        )
    typer.echo(found["next"])


def _show_prices(found: dict[str, Any]) -> None:
    prices = found["prices"]
    typer.echo(
        f"Prices: {prices['bars']:,} bars of {prices['symbols']:,} symbols on "
        f"{prices['sessions']:,} sessions, {prices['first_session']} to "
        f"{prices['last_session']}, from {prices['batches']:,} batches."
    )
    if prices["rejected"]:
        by_reason = ", ".join(f"{reason} {n:,}" for reason, n in prices["rejected"].items())
        typer.echo(f"Rejected: {sum(prices['rejected'].values()):,} rows ({by_reason}).")
    if prices["restated"] or prices["late"]:
        typer.echo(
            f"Restated: {prices['restated']:,} bars; after their window was sealed came "
            f"{prices['late']:,}."
        )
    for late in found["late"]:
        typer.echo(f"Late: {late}")


def _show_windows(found: dict[str, Any]) -> None:
    windows = found["windows"]
    if windows["sealed"]:
        typer.echo(f"Sealed: {windows['sealed']:,} windows, through {windows['sealed_through']}.")
    ready = windows["complete_not_sealed"]
    if ready:
        span = ready[0] if len(ready) == 1 else f"{ready[0]} to {ready[-1]}"
        typer.echo(f"Complete, to be sealed when they train: {len(ready):,} windows, {span}.")
    if windows["open_because"]:
        typer.echo(windows["open_because"])


def _show_stale(stale: dict[str, dict[str, str]]) -> None:
    """One line for each reason and stretch that assets share."""
    lines: dict[tuple[bool, str], list[str]] = {}
    for asset, why in stale.items():
        for is_missing in (True, False):
            keys = [key for key, reason in why.items() if (reason == "missing") == is_missing]
            if keys:
                span = keys[0] if len(keys) == 1 else f"{len(keys):,} of {keys[0]} to {keys[-1]}"
                reasons = list(dict.fromkeys(why[key] for key in keys))
                more = f" and {len(reasons) - 2} other reasons" if len(reasons) > 2 else ""
                because = "" if is_missing else f", because {'; '.join(reasons[:2])}{more}"
                lines.setdefault((is_missing, f"{span}{because}"), []).append(asset)
    for (is_missing, text), assets in lines.items():
        typer.echo(f"{'Not computed yet' if is_missing else 'Stale'}: {', '.join(assets)}: {text}.")
