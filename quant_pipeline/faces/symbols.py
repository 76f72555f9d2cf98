"""Symbols as people type them: spelled as ingest spells them; unknown ones get a suggestion."""

from typing import TYPE_CHECKING

import pyarrow.compute as pc

from quant_pipeline.errors import NoData, unknown_name
from quant_pipeline.market.text_values import normalize_symbol

if TYPE_CHECKING:
    from quant_pipeline.chain.workspace import Workspace
    from quant_pipeline.stores.published import Published


def spelled(text: str) -> str:
    """A symbol the one way that prices are stored under; as it is if it can't be one.

    >>> spelled(" ali"), spelled("two words")
    ('ALI', 'two words')
    """
    return normalize_symbol(text) or text


def stored_symbol(ws: "Workspace", text: str) -> str:
    """The symbol that is meant; raises NoData with a suggestion if no price of it is stored."""
    symbol = spelled(text)
    sql = "SELECT 1 FROM price_versions WHERE symbol = ? LIMIT 1"
    if not len(ws.series.query(sql, [symbol])):
        rows = ws.series.query("SELECT DISTINCT symbol FROM price_versions")
        raise NoData(_unknown("symbol", symbol, rows["symbol"].to_pylist()))
    return symbol


def require_scored(published: "Published", symbol: str) -> None:
    """Raise NoData with a suggestion if a symbol has no score at all."""
    scored = published.read("predictions", columns=["symbol"])
    known = pc.unique(scored["symbol"]).to_pylist() if scored is not None else []
    if symbol not in known:
        raise NoData(_unknown("score of", symbol, known))


def _unknown(what: str, symbol: str, known: list[str]) -> str:
    return f"{unknown_name(what, symbol, known)} `quant status` tells what is stored."
