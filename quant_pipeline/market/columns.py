"""Which column of a file is which: canonical names, their aliases, and what the user says."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from quant_pipeline.errors import SourceError, unknown_name

PRICE_COLUMNS = ("symbol", "ts", "open", "high", "low", "close", "adj_close", "volume")

ALIASES: Mapping[str, frozenset[str]] = {
    "symbol": frozenset({"symbol", "ticker", "sym", "tickersymbol", "stocksymbol"}),
    "ts": frozenset({"ts", "date", "datetime", "timestamp", "tradedate", "tradingdate"}),
    "open": frozenset({"open", "o", "openprice", "openingprice"}),
    "high": frozenset({"high", "h", "highprice"}),
    "low": frozenset({"low", "l", "lowprice"}),
    "close": frozenset({"close", "c", "closeprice", "closingprice", "lastprice"}),
    "adj_close": frozenset({"adjclose", "adjustedclose", "closeadj", "closeadjusted"}),
    "volume": frozenset({"volume", "vol", "v", "tradedvolume", "sharevolume", "tottrdqty"}),
}


def map_columns(
    names: Sequence[str],
    given: Mapping[str, str],
    *,
    table: str = "prices",
    has_symbol: bool = False,
) -> dict[str, str]:
    """Tell for each canonical column the file's name for it.

    `given` is what the user says (``--column close=px_last``) and beats every alias. Aliases
    ignore case, spaces and any of ``_.-*<>``. adj_close may be absent;
    so may symbol, if `has_symbol` says that it is supplied otherwise.

    Raises SourceError if a column is lacking, or if two columns of the file could be meant.

    >>> map_columns(["Date", "O", "High", "Low", "Close", "Vol."], {"open": "O"}, has_symbol=True)
    {'ts': 'Date', 'open': 'O', 'high': 'High', 'low': 'Low', 'close': 'Close', 'volume': 'Vol.'}
    """
    optional = {"adj_close", "symbol"} if has_symbol else {"adj_close"}
    return match_columns(names, given, ALIASES, table=table, optional=optional)


def match_columns(
    names: Sequence[str],
    given: Mapping[str, str],
    aliases: Mapping[str, frozenset[str]],
    *,
    table: str,
    optional: Collection[str] = (),
    kind: str = "price",
) -> dict[str, str]:
    """Tell for each key of `aliases` the file's name for it, as `map_columns` does for prices."""
    found: dict[str, str] = {}
    for canonical in given:
        if canonical not in aliases:
            raise SourceError(unknown_name(f"{kind} column", canonical, aliases))
    for canonical in aliases:
        matches = _matches(names, canonical, given, aliases[canonical])
        if len(matches) > 1:
            raise SourceError(_ambiguous(table, canonical, matches))
        if matches:
            found[canonical] = matches[0]
        elif canonical in given:
            raise SourceError(
                f"Table {table} has no column {given[canonical]}, which --column "
                f"{canonical}={given[canonical]} names (the file has: {show_names(names)})."
            )
    missing = [c for c in aliases if c not in found and c not in optional]
    if missing:
        raise SourceError(_lacking(table, names, missing, found, kind))
    return found


def count_known(names: Iterable[str]) -> int:
    """How many canonical columns some of the names are aliases of.

    >>> count_known(["Date", "Open", "Offen"])
    2
    """
    folded = {_fold(name) for name in names}
    return sum(not folded.isdisjoint(known) for known in ALIASES.values())


def show_names(names: Iterable[str], limit: int = 20) -> str:
    """Column names for an error message: printable, and not too many or too long.

    >>> show_names(["date", "px_last"])
    'date, px_last'
    """
    shown = ["".join(c if c.isprintable() else "?" for c in name.strip()[:40]) for name in names]
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return (", ".join(shown[:limit]) or "none") + more


def _matches(
    names: Sequence[str], canonical: str, given: Mapping[str, str], aliases: Collection[str]
) -> list[str]:
    if canonical in given:
        return [name for name in names if name.strip() == given[canonical].strip()]
    return [name for name in names if _fold(name) in aliases]


def _fold(name: str) -> str:
    return re.sub(r"[\s_.\-<>*]", "", name).casefold()


def _ambiguous(table: str, canonical: str, matches: Sequence[str]) -> str:
    if len({name.strip() for name in matches}) == 1:
        return (
            f"Table {table} has {len(matches)} columns named {matches[0].strip()}, so which one "
            f"is {canonical} cannot be told. Rename them in the file."
        )
    return (
        f"Table {table} has {len(matches)} columns for {canonical}: {show_names(matches)}. "
        f"Choose one with --column {canonical}={matches[0].strip()}."
    )


def _lacking(
    table: str, names: Sequence[str], missing: Sequence[str], found: Mapping[str, str], kind: str
) -> str:
    if not found:
        return (
            f"Table {table} has no column of {kind}s that is known by name (the file has: "
            f"{show_names(names)}). If it is a {kind} table, name each one with "
            f"--column {missing[0]}=NAME."
        )
    unused = [name for name in names if name not in found.values()]
    example = show_names(unused) if len(unused) == 1 else "NAME"
    which, it = ("columns", "them") if len(missing) > 1 else ("column", "it")
    options = " ".join(f"--column {canonical}={example}" for canonical in missing)
    return (
        f"Table {table} lacks {which} {', '.join(missing)} "
        f"(the file has: {show_names(names)}). Name {it} with {options}."
    )
