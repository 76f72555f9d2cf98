"""Telling people what went wrong: a webhook or a command of quant.toml gets it as JSON."""

import json
import subprocess
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Literal

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import AlertFailed
from quant_pipeline.stores.meta import CheckResult, DailyRun, utc_now

Kind = Literal["run_failed", "check_failed", "data_late"]
SHOWN = 5  # failed checks that one message names


@dataclass(frozen=True)
class Alert:
    """One thing to tell: a line for people, and the facts for programs.

    `number` is where to go on from once it was told: of an event, a check's result, a daily run.
    """

    kind: Kind
    number: int
    text: str
    facts: dict[str, Any] = field(default_factory=dict)


def is_wanted(ws: Workspace, kind: Kind) -> bool:
    """Whether somebody is to be told of such things."""
    spec = ws.settings.alerts
    return bool(spec.webhook or spec.command) and kind in spec.on


def send(ws: Workspace, alert: Alert) -> list[str]:
    """Post an alert to the webhook and hand it to the command; gives what did not work.

    Raises AlertFailed if none of those that are set took it; it may be sent again.
    """
    spec = ws.settings.alerts
    told = {
        "text": f"quant_pipeline in {ws.home.root.name}: {alert.text}",
        "kind": alert.kind,
        "home": str(ws.home.root),
        "at": utc_now().isoformat(timespec="seconds"),
        **alert.facts,
    }
    message = json.dumps(told, default=str).encode()
    ways: list[Callable[[], None]] = []
    if spec.webhook:
        ways.append(lambda: _post(spec.webhook, message, spec.timeout_seconds))
    if spec.command:
        folder = str(ws.home.root)
        ways.append(lambda: _run(spec.command, message, spec.timeout_seconds, folder))
    problems = []
    for way in ways:
        try:
            way()
        except AlertFailed as error:
            problems.append(str(error))
    if ways and len(problems) == len(ways):
        raise AlertFailed(" ".join(problems))
    return problems


def failed_checks(ws: Workspace, after: int) -> list[Alert]:
    """One alert for what checks of a run found since a number, oldest first."""
    severe = ("ERROR",) if ws.settings.alerts.severity == "ERROR" else ("ERROR", "WARN")
    by_run: dict[str, list[CheckResult]] = {}
    for row in ws.meta.check_results(after=after):
        if not row.passed and row.severity in severe:
            by_run.setdefault(row.run_id, []).append(row)
    return sorted(map(_of_checks, by_run.values()), key=lambda a: a.number)


def _of_checks(found: list[CheckResult]) -> Alert:
    lines = [
        f"{r.asset}/{r.name} {r.partition_key} {r.task_id}".rstrip() + f": {r.words}"
        for r in found[:SHOWN]
    ]
    rest = f" (and {len(found) - SHOWN} more)" if len(found) > SHOWN else ""
    n = f"{len(found)} check{'s' * (len(found) != 1)} failed{rest}. "
    checks = [
        {
            "asset": r.asset, "check": r.name, "partition": r.partition_key, "task": r.task_id,
            "severity": r.severity, "words": r.words, "numbers": r.numbers,
        }
        for r in found[:100]
    ]  # fmt: skip
    number = max(r.id or 0 for r in found)
    facts = {"run_id": found[0].run_id, "checks": checks}
    return Alert("check_failed", number, n + "\n".join(lines), facts)


def late_days(ws: Workspace, after: int) -> list[Alert]:
    """An alert for each day that got no prices since a number, oldest first."""
    runs = ws.meta.daily_runs()
    return [_of_day(r) for r in runs if r.state == "given_up" and (r.id or 0) > after]


def _of_day(run: DailyRun) -> Alert:
    facts = {"expected": run.expected, "newest_session": run.newest_session, "run_id": run.run_id}
    return Alert("data_late", run.id or 0, f"{run.words}.", facts)


def _post(address: str, message: bytes, seconds: float) -> None:
    request = urllib.request.Request(
        address, message, {"Content-Type": "application/json", "User-Agent": "quant_pipeline"}
    )
    try:
        with urllib.request.urlopen(request, timeout=seconds):
            pass
    except (OSError, ValueError, HTTPException) as error:  # without the address: it may be secret
        raise AlertFailed(f"The webhook of [alerts] did not take a message: {error}.") from None


def _run(command: tuple[str, ...], message: bytes, seconds: float, folder: str) -> None:
    try:
        done = subprocess.run(
            command, input=message, capture_output=True, timeout=seconds, cwd=folder, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AlertFailed(f"The command of [alerts] could not be run: {error}.") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-300:]
        raise AlertFailed(
            f"The command of [alerts], {command[0]}, ended with {done.returncode}: {said}"
        )
