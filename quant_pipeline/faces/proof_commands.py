"""`quant audit`, `verify`, `diff`: proofs on the user's own data, and what a change comes from."""

import math
from collections import Counter
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quant_pipeline.errors import NoData
from quant_pipeline.faces.options import (
    Csv,
    Json,
    Session,
    TaskId,
    chosen,
    day_option,
    model_ids,
    open_workspace,
)
from quant_pipeline.faces.output import count, emit, print_table, progress, say

if TYPE_CHECKING:
    from quant_pipeline.chain.difference import Difference
    from quant_pipeline.chain.proofs.result import Proof
    from quant_pipeline.chain.verified import Tell, Verified
    from quant_pipeline.chain.workspace import Workspace

SIGNS = {"holds": "holds", "fails": "FAILS", "unproven": "unproven"}


def audit(
    asof: Annotated[
        date | None, day_option("The newest as-of on or before this date, or whose last session.")
    ] = None,
    task: TaskId = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="So many as-ofs: the newest (default: 1), others spread before."),
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Prove that no model and no score saw the future: all later data made up, all computed again.

    Each as-of takes about as long as training it twice. The home is only read. Exit code 1 if a
    proof fails, with the first value that differs.

    Example: quant audit --samples 3
    """
    from quant_pipeline.chain.audit import audit as run
    from quant_pipeline.chain.audit import choose_asofs, newest_asof

    if asof is not None and samples is not None:
        raise typer.BadParameter("give --asof or --samples, not both")
    ws = open_workspace().read_only()
    tasks = chosen(ws, task)
    if asof is None:
        asofs = choose_asofs(ws, tasks, samples or 1)
    else:
        asofs = [newest_asof(ws, tasks, asof)]
        say(f"As of {asofs[0]}.")
    with progress() as tell:
        proofs = run(ws, asofs, tasks, tell)
    emit([as_row(p) for p in proofs], as_json, lambda: _show(proofs), as_csv)
    if any(p.failed for p in proofs):
        raise typer.Exit(1)


def as_row(proof: "Proof") -> dict[str, Any]:
    """A proof for programs."""
    finding = proof.finding
    return {
        "proof": proof.name,
        "asof": proof.asof,
        "task": proof.task_id or None,
        "outcome": proof.outcome,
        "words": proof.words,
        "numbers": proof.numbers,
        "finding": {k: _plain(v) for k, v in vars(finding).items()} | {"words": str(finding)}
        if finding
        else None,
    }


def _plain(value: Any) -> Any:
    """A value for JSON, which knows neither NaN nor infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _show(proofs: "Sequence[Proof]") -> None:
    asof: Any = ""
    for proof in proofs:
        if proof.asof != asof:
            asof = proof.asof
            typer.echo(f"As of {asof}:" if asof else "All that is stored:")
        whose = f"{proof.task_id}: " if proof.task_id else ""
        typer.echo(f"  {SIGNS[proof.outcome]:<8}  {proof.name:<9}  {whose}{proof.words}.")
        if proof.finding:
            typer.echo(f"            first difference: {proof.finding}")
    found = Counter[str](proof.outcome for proof in proofs)
    others = "".join(
        f", {found[outcome]} {word}"
        for outcome, word in (("fails", "FAIL"), ("unproven", "could not be taken"))
        if found[outcome]
    )
    say(f"{count(found['holds'], 'proof')} of {len(proofs)} hold{others}.")


def verify(
    model: Annotated[
        str | None,
        typer.Argument(help="An id or a unique beginning of one.", autocompletion=model_ids),
    ] = None,
    symbol: Annotated[str | None, typer.Option(help="The score of one symbol.")] = None,
    ts: Session = None,
    task: TaskId = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every model and score since --since.")
    ] = False,
    since: Annotated[
        date | None, day_option("With --all: models as of this date or later, and scores.")
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Rebuild models and scores from the registry and the prices of their day, byte by byte.

    Identical; or not, and what differs: code, environment, features; or not and nothing differs: an
    alarm, exit code 1. Names a model, or a score by --ts, --task and maybe --symbol, or --all.

    Example: quant verify --symbol AC --ts 2021-11-15 --task up_5d
    """
    from quant_pipeline.chain.verify import verify_since

    given = {"--symbol": symbol, "--ts": ts, "--task": task}
    if extra := [name for name, value in given.items() if value and (model or all_)]:
        whose = "a model's id" if model else "--all"
        raise typer.BadParameter(f"{', '.join(extra)} cannot stand beside {whose}")
    if since is not None and not all_:
        raise typer.BadParameter("--since stands beside --all")
    ws = open_workspace().read_only()
    with progress() as tell:
        if all_:
            found = verify_since(ws, since or ws.grid.start, tell)
        else:
            found = _verify(ws, model, symbol, ts, task, tell)
    emit([vars(v) for v in found], as_json, lambda: _show_verified(found, all_), as_csv)
    if any(v.outcome == "alarm" for v in found):
        raise typer.Exit(1)


def _verify(
    ws: "Workspace",
    model_id: str | None,
    symbol: str | None,
    ts: date | None,
    task_id: str | None,
    tell: "Tell",
) -> "list[Verified]":
    """A model by its id, or the scores of a session and the models that made them."""
    from quant_pipeline.chain.verify import models_that_scored, verify_model
    from quant_pipeline.chain.verify_scores import verify_scores
    from quant_pipeline.faces.symbols import stored_symbol

    if model_id is not None:
        tell("training it again", 0, 1)
        return [verify_model(ws, ws.meta.model(model_id))]
    if ts is None:
        raise typer.BadParameter("Name a model, or a session by --ts, or give --all.")
    found = []
    symbol = stored_symbol(ws, symbol) if symbol else None
    models = models_that_scored(ws, chosen(ws, task_id), ts, symbol)
    for i, model in enumerate(models):
        tell(f"training {model.model_id[:12]} again, and scoring {ts}", i, len(models))
        found += [*verify_scores(ws, model, [ts], symbol), verify_model(ws, model)]
    return found


def _show_verified(found: "Sequence[Verified]", briefly: bool) -> None:
    """Each model and session; or briefly, sessions that came out identical as one line."""
    alike = [v for v in found if briefly and v.kind == "scores" and v.outcome == "identical"]
    for v in [v for v in found if v not in alike]:
        typer.echo(f"{'ALARM' if v.outcome == 'alarm' else v.outcome:<10} {v.name}: {v.words}.")
        for reason in v.reasons:
            typer.echo(f"           because of {reason}.")
        if v.outcome == "alarm" and not v.reasons:
            typer.echo("           Nothing that is recorded has changed since: look into it.")
        if v.agreement:
            typer.echo(f"           Then and now: {_in_words(v.agreement)}.")
        if v.today:
            typer.echo(f"           Today's history would give {_in_words(v.today)}.")
    if alike:
        typer.echo(
            f"identical  {count(len(alike), 'session')} of scores: came out again bit for bit."
        )
    moved = [v.today for v in alike if v.today]
    if moved:
        least = min((t["correlation"] for t in moved if t.get("correlation")), default=None)
        typer.echo(
            f"           Today's history would give others on {len(moved)} of them"
            + (f", with a correlation of {least:.4f} or more." if least is not None else ".")
        )
    counted = Counter[str](v.outcome for v in found)
    say(", ".join(f"{n} {outcome}" for outcome, n in counted.items()) + ".")


def _in_words(numbers: dict[str, Any]) -> str:
    """What today gives, or how scores agree."""
    found = []
    if numbers.get("model_id"):
        found.append(f"{numbers['model_id'][:12]} ({numbers['because']})")
    if "now" in numbers:
        found.append(f"{numbers['now']:.6f} instead of {numbers['then']:.6f}")
    if "missing" in numbers:
        found.append(f"{count(numbers['missing'], 'symbol')} without a score")
    if "refused" in numbers:
        found.append(f"no model: {numbers['refused']}")
    if "largest_difference" in numbers:
        scores, correlation = count(numbers["scores"], "score"), numbers["correlation"]
        alike = "" if correlation is None else f" with a correlation of {correlation:.4f}"
        found.append(f"{scores}{alike}, the largest difference {numbers['largest_difference']:.2g}")
    return ", ".join(found)


def diff(
    a: Annotated[
        str | None, typer.Argument(help="A model, the earlier one.", autocompletion=model_ids)
    ] = None,
    b: Annotated[
        str | None, typer.Argument(help="Another model of its task.", autocompletion=model_ids)
    ] = None,
    ts: Session = None,
    task: TaskId = None,
    symbol: Annotated[str | None, typer.Option(help="Also this symbol's score.")] = None,
    as_json: Json = False,
) -> None:
    """Tell how much of a change in scores comes from what: one cause swapped at a time.

    Of two models, on the newest session or --ts; or, with --task and --ts alone, of a session's
    scores as stored and as they would come out today. Shares are over symbols that both sides
    score, and add up to the whole; who entered or left the universe is counted.

    Example: quant diff 3f9a 77c0 --ts 2021-11-15
    """
    from quant_pipeline.faces.symbols import stored_symbol

    ws = open_workspace().read_only()
    found = _differ(ws, a, b, ts, task)
    data: dict[str, Any] = {
        "session": found.session,
        "symbols": len(found.after),
        "n_entered": len(found.entered),
        "n_left": len(found.left),
        "entered": found.entered,
        "left": found.left,
        "causes": found.rows(),
    }
    if symbol is not None:
        symbol = stored_symbol(ws, symbol)
        if symbol not in found.after:
            raise NoData(_only_one_side(found, symbol))
        data["symbol"] = {
            "symbol": symbol, "before": found.before[symbol], "after": found.after[symbol],
            "changes": {f"{i} {s.cause}": s.change[symbol] for i, s in enumerate(found.steps, 1)},
        }  # fmt: skip

    def show() -> None:
        _show_difference(found, data["causes"])
        if symbol is not None:
            told = data["symbol"]
            typer.echo(f"{symbol}: {told['before']:.6f} before, {told['after']:.6f} after")
            for cause, change in told["changes"].items():
                typer.echo(f"  {change:+.6f}  {cause}")

    emit(data, as_json, show)


def _only_one_side(found: "Difference", symbol: str) -> str:
    """Why a symbol has no change that could be told."""
    for step in found.steps:
        if symbol in (*step.entered, *step.left):
            side, did = ("after", "entered") if symbol in step.entered else ("before", "left")
            return (
                f"{symbol} has a score of {found.session} only {side}: it {did} the universe "
                f"(cause: {step.cause}, {step.words})."
            )
    return f"{symbol} has no score of {found.session} on either side."


def _show_difference(found: "Difference", causes: list[dict[str, Any]]) -> None:
    """How many scores are compared, who came and went, and each cause."""
    scores = f"{count(len(found.after), 'score')} of {found.session}"
    if not causes:
        typer.echo(f"{scores}, the same before and after.")
        return
    typer.echo(f"{scores}, before and after; shares are over these symbols:")
    columns = _CAUSES
    if found.entered or found.left:
        typer.echo(f"{len(found.entered)} more entered the universe, {len(found.left)} left it.")
        columns = _MOVES | columns
    print_table(causes, columns)
    if all(row["share"] is None for row in causes):
        typer.echo("As a whole no score changed, so there are no shares.")


def _differ(
    ws: "Workspace", a: str | None, b: str | None, ts: date | None, task: str | None
) -> "Difference":
    from quant_pipeline.chain.difference import diff_models, diff_scores

    with progress() as tell:
        if a is not None and b is not None:
            return diff_models(ws, ws.meta.model(a), ws.meta.model(b), ts, tell)
        if a is None and ts is not None and task is not None:
            return diff_scores(ws, ws.settings.task(task), ts, tell)
    raise typer.BadParameter("Name two models, or a session by --ts and --task.")


_NUMBERS = {
    "cause": "cause", "share": "share", "mean_abs_change": "mean |change|",
    "mean_change": "mean change",
}  # fmt: skip
_CAUSES = _NUMBERS | {"what": "what"}
_MOVES = _NUMBERS | {"n_entered": "entered", "n_left": "left"}
