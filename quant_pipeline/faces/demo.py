"""`quant demo`: the whole chain on the Philippine market, and an honest look at the result."""

import time
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import typer

from quant_pipeline.chain.ingest import reading_of
from quant_pipeline.chain.report import compare
from quant_pipeline.chain.stale import Stored, read_stored
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.instance import prepare, template
from quant_pipeline.defs.jobs import Runner, backfill
from quant_pipeline.errors import NoData, QuantError
from quant_pipeline.faces.ingesting import ingest_and_report
from quant_pipeline.faces.output import print_table
from quant_pipeline.settings import Home
from quant_pipeline.stores.pse import fetch_pse
from quant_pipeline.stores.series import fetch_row

Tell = Callable[[str, int, int], None]
FIRST, LAST = date(2020, 12, 1), date(2021, 12, 15)
SOURCE = "pse.parquet"


def run_demo(tell: Tell) -> dict[str, Any]:
    """Fetch, ingest, walk 13 as-ofs forward, compare; gives what is shown, as plain data."""
    home = Home.from_environment()
    home.models.mkdir(parents=True, exist_ok=True)
    if not home.settings_file.exists():
        home.settings_file.write_text(template("quant.toml"))
    prepare(home)
    ws = Workspace.open(home)
    require_home_of(ws, [SOURCE])
    clock = Clock()
    tell("fetching prices", 0, 1)
    path = fetch_pse(home.raw)
    clock.lap("fetch")
    report = ingest_and_report(ws, [path], reading_of(ws), "prices", tell)
    clock.lap("ingest")
    with Runner.open(ws, clock.telling(tell)) as runner:
        done = backfill(runner, FIRST, LAST, ws.settings.tasks)
    clock.lap("scores")
    stored = read_stored(ws)
    keys = ws.grid.keys(ws.grid.shift(ws.grid.key(FIRST), -1), ws.grid.shift(ws.grid.key(LAST), -1))
    rows = compare(ws, FIRST, stored.last_session, keys, tell)
    clock.lap("baselines")
    return {
        "market": _describe_market(ws, stored),
        "models_trained": len(done.models) * len(ws.settings.tasks),
        "as_ofs": len(keys),
        "rejected": report.n_rejected,
        "scores": rows,
        "seconds": clock.laps,
        "home": str(home.root),
    }


class Clock:
    """Seconds per stage; a backfill's stages are told apart by what it says it is doing."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._began = time.monotonic()

    def lap(self, stage: str) -> None:
        """Note the seconds since the last lap."""
        now = time.monotonic()
        self.laps[stage] = round(self.laps.get(stage, 0.0) + now - self._began, 1)
        self._began = now

    def telling(self, tell: Tell) -> Tell:
        """Tell on, and note when features and models are done."""

        def told(what: str, done: int, total: int) -> None:
            if done == total and what.startswith("features"):
                self.lap("features")
            elif done == total and what == "models":
                self.lap("models")
            tell(what, done, total)

        return told


def require_home_of(ws: Workspace, sources: Sequence[str]) -> None:
    """Refuse to mix the demo's market into somebody's own."""
    try:
        with ws.series.reading("demo") as con:
            others = con.execute(
                "SELECT source FROM price_batches WHERE NOT "
                "list_bool_or([ends_with(source, s) FOR s IN $sources])",
                {"sources": list(sources)},
            ).fetchall()
    except NoData:
        return
    if others:
        raise QuantError(
            f"This home holds other prices ({others[0][0]}); the demo's would be mixed with them. "
            "Run it in an empty folder: `QUANT_HOME=~/quant_demo quant demo`."
        )


def _describe_market(ws: Workspace, stored: Stored) -> dict[str, Any]:
    with ws.series.reading("demo") as con:
        (n_symbols,) = fetch_row(con, "SELECT count(DISTINCT symbol) FROM prices_daily")
        (n_scored,) = fetch_row(con, "SELECT count(*) FROM predictions")
        (n_liquid,) = fetch_row(
            con,
            "SELECT median(n) FROM (SELECT count(*) AS n FROM features_daily "
            "WHERE in_universe AND ts >= ? GROUP BY ts)",
            [FIRST],
        )
    return {
        "symbols": n_symbols,
        "sessions": len(stored.sessions),
        "from": stored.first_session.isoformat(),
        "to": stored.last_session.isoformat(),
        "liquid_symbols_per_session": int(n_liquid),
        "stored_scores": n_scored,
    }


def show_demo(found: dict[str, Any]) -> None:
    """The result for people: table, what it means, where the files are, what to type next."""
    market = found["market"]
    typer.echo(
        f"Philippine market: {market['symbols']} stocks on {market['sessions']:,} sessions, "
        f"{market['from']} to {market['to']}.\n"
        f"{found['as_ofs']} monthly as-ofs walked forward; each scored only sessions after it: "
        f"{market['stored_scores']:,} scores,\nabout {market['liquid_symbols_per_session']} liquid "
        "stocks a session.\n"
    )
    print_table(
        [shown(row) for row in found["scores"]],
        {"score": "score", "rank_ic": "mean RankIC ± s.e.", "months": "months > 0",
         "spread": "top minus bottom fifth, 5-day return, gross"},
    )  # fmt: skip
    typer.echo()
    for line in _verdict(found["scores"]):
        typer.echo(line)
    typer.echo(
        "Prices are unadjusted and without dividends, and delisted stocks may be missing: "
        "a demonstration, not advice."
    )
    laps = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in found["seconds"].items())
    typer.echo(f"\nTook {sum(found['seconds'].values()):.0f} s: {laps}.")
    typer.echo(
        "Stored in data/quant.duckdb (table predictions), models/*.joblib and "
        "models/registry.sqlite."
    )
    typer.echo("Next: quant predictions --top 5 · quant models list · quant status · quant ui")


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a comparison as people read it."""

    def plus_minus(name: str, scale: float, digits: int, unit: str) -> str:
        value, error = row[name], row[f"{name}_se"]
        if value is None:
            return "–"
        spread = "–" if error is None else f"{error * scale:.{digits}f}"
        return f"{value * scale:+.{digits}f} ± {spread}{unit}"

    return {
        "score": row["score"],
        "rank_ic": plus_minus("rank_ic", 1, 4, ""),
        "months": f"{row['positive_months']} of {row['months']}",
        "spread": plus_minus("top_minus_bottom", 100, 2, " %"),
    }


def _verdict(rows: list[dict[str, Any]]) -> list[str]:
    """Say for each task whether there is a signal, and whether something trivial does as well."""
    trivial = [r for r in rows if not r["score"].startswith("task ")]
    known = [r for r in trivial if r["rank_ic"] is not None and "permuted" not in r["score"]]
    lines = []
    for row in (r for r in rows if r["score"].startswith("task ")):
        value, error = row["rank_ic"], row["rank_ic_se"]
        if value is None or error is None:
            lines.append(f"{row['score']}: too few sessions to judge.")
        elif value < 2 * error:
            lines.append(
                f"{row['score']}: no signal: its RankIC is not two standard errors above 0."
            )
        else:
            best = max(known, key=lambda r: r["rank_ic"], default=None)
            better = best is not None and best["rank_ic"] >= value
            than = f"; {best['score']} alone does as well" if best is not None and better else ""
            lines.append(
                f"{row['score']}: a signal {value / error:.1f} standard errors above 0{than}."
            )
    return lines
