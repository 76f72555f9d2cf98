"""What `quant features` finds and prints, and the table of features in the docs."""

import sys
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import typer

from quant_pipeline.chain.features import features_between
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import FeatureError, NoData, unknown_name
from quant_pipeline.faces.output import cell, count, print_table
from quant_pipeline.faces.symbols import stored_symbol
from quant_pipeline.market.features import FEATURE_SETS, KNOWN, AnyFeature

BAR = ("open", "high", "low", "close", "volume")
BEGIN, END = "<!-- features: made by `make docs` -->", "<!-- end of features -->"


def find_features(ws: Workspace | None) -> list[dict[str, Any]]:
    """The features of a home, or all built-in ones, as plain rows."""
    features: Iterable[AnyFeature] = KNOWN.values() if ws is None else ws.features
    return [_row(feature) for feature in features]


def _row(feature: AnyFeature) -> dict[str, Any]:
    sets = [name for name, features in FEATURE_SETS.items() if feature.name in features]
    return {
        "name": feature.name,
        "window": feature.window,
        "inputs": list(feature.inputs),
        "sets": sets if KNOWN.get(feature.name) is feature else ["own"],
        "formula": feature.formula or _call(feature),
    }


def _call(feature: AnyFeature) -> str:
    """A function without a formula in words, like gap(open, close)."""
    name = getattr(getattr(feature, "compute", None), "__name__", "function")
    return f"{name}({', '.join(feature.inputs)})"


def show_features(rows: list[dict[str, Any]]) -> None:
    """Features as a table."""
    print_table([{**row, "inputs": ", ".join(row["inputs"])} for row in rows],
                {"name": "feature", "window": "window", "inputs": "inputs",
                 "formula": "formula"})  # fmt: skip
    longest = max(row["window"] for row in rows)
    typer.echo(f"{count(len(rows), 'feature')}; the longest window looks {longest} sessions back.")


def find_feature(
    ws: Workspace, name: str, symbol: str | None, to: date | None, last: int
) -> dict[str, Any]:
    """What a feature is and, for a symbol, its newest values with the bars of their sessions."""
    known: dict[str, AnyFeature] = {**KNOWN, **{f.name: f for f in ws.features}}
    if name not in known:
        raise FeatureError(
            f"{unknown_name('feature', name, known)} See `quant features list --all`."
        )
    feature = known[name]
    is_chosen = feature in ws.features
    found: dict[str, Any] = {**_row(feature), "is_in_quant_toml": is_chosen, "values": None}
    if symbol is not None:
        wanted = stored_symbol(ws, symbol)
        found |= {"symbol": wanted, "values": _values(ws, feature, wanted, to, last)}
    return found


def _values(
    ws: Workspace, feature: AnyFeature, symbol: str, to: date | None, last: int
) -> list[dict[str, Any]]:
    bars = ws.series.query(
        f"SELECT ts, {', '.join(BAR)} FROM prices_daily WHERE symbol = ? "
        "AND ts <= coalesce(?, DATE '9999-12-31') ORDER BY ts DESC LIMIT ?",
        [symbol, to, last],
    ).to_pylist()
    if not bars:
        until = f" up to {to}" if to else ""
        raise NoData(f"No bar of {symbol}{until} is stored. `quant status` tells what is.")
    newest = bars[0]["ts"] + timedelta(days=1)
    rows = features_between(ws, bars[-1]["ts"], newest, features=[feature]).rows
    mine = rows.filter(pc.equal(rows["symbol"], symbol)).to_pylist()
    values = {row["ts"]: row for row in mine}
    return [
        {
            **bar,
            "value": _known(values[bar["ts"]][feature.name]),
            "in_universe": values[bar["ts"]]["in_universe"],
        }
        for bar in reversed(bars)
    ]


def _known(value: float) -> float | None:
    return None if value != value else value


def print_feature(found: dict[str, Any]) -> None:
    """A feature in words, its values as a table."""
    typer.echo(f"{found['name']} = {found['formula']}")
    typer.echo(f"Made from {', '.join(found['inputs'])} of the session and {found['window']} "
               "sessions before.")  # fmt: skip
    if not found["is_in_quant_toml"]:
        typer.echo("quant.toml does not ask for it: no model learns from it.")
    if found["values"] is not None:
        values = [row["value"] for row in found["values"]]
        texts = [cell(None) if v is None else f"{v:.6g}" for v in values]
        width = max(len(found["name"]), *map(len, texts))
        shown = [
            {**row, "value": text.rjust(width)}
            for row, text in zip(found["values"], texts, strict=True)
        ]
        columns = {"ts": "session", **{name: name for name in BAR}, "value": found["name"],
                   "in_universe": "in universe"}  # fmt: skip
        typer.echo(f"{found['symbol']}, bars as traded:")
        print_table(shown, columns)


def markdown_table() -> str:
    """All built-in features as Markdown."""
    lines = ["| feature | window | inputs | formula |", "| --- | ---: | --- | --- |"]
    for row in find_features(None):
        formula = row["formula"].replace("|", "\\|")
        inputs = ", ".join(row["inputs"])
        lines.append(f"| {row['name']} | {row['window']} | {inputs} | `{formula}` |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """A page with today's table between its two marks."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{markdown_table()}\n{END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_table(page.read_text()))
