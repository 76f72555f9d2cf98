"""Rules of column mapping."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_pipeline.errors import SourceError
from quant_pipeline.market.columns import ALIASES, PRICE_COLUMNS, map_columns

YAHOO = ["Date", "Open", "High", "Low", "Close", "Adj Close", "Volume"]
spellings = st.sampled_from([str.upper, str.lower, str.title, lambda s: f" {s} ", "_".join])


@given(st.data())
def test_any_alias_in_any_spelling_and_order_is_found(data: st.DataObject) -> None:
    names = {}
    for canonical in PRICE_COLUMNS:
        alias = data.draw(st.sampled_from(sorted(ALIASES[canonical])))
        names[canonical] = data.draw(spellings)(alias)
    order = data.draw(st.permutations([*names.values(), "Turnover", "Prev Close", "%Change"]))
    assert map_columns(order, {}) == names


@pytest.mark.parametrize(
    "names",
    [
        ["Ticker", *YAHOO],
        ["symbol", "date", "open", "high", "low", "last price", "Adjusted Close", "vol"],
        ["<TICKER>", "<PER>", "<DATE>", "<OPEN>", "<HIGH>", "<LOW>", "<CLOSE>", "<VOL>"],
        list(PRICE_COLUMNS),
    ],
)
def test_common_headers_need_no_option(names: list[str]) -> None:
    found = map_columns(names, {})
    assert set(found) >= set(PRICE_COLUMNS) - {"adj_close"}
    assert set(found.values()) <= set(names)


def test_no_two_canonical_columns_share_an_alias() -> None:
    aliases = [alias for group in ALIASES.values() for alias in group]
    assert len(aliases) == len(set(aliases))


@pytest.mark.parametrize("missing", [c for c in PRICE_COLUMNS if c != "adj_close"])
def test_a_lacking_column_is_named_with_the_way_out(missing: str) -> None:
    names = [c for c in PRICE_COLUMNS if c != missing] + ["px_last"]
    with pytest.raises(SourceError) as error:
        map_columns(names, {}, table="prices.csv")
    assert str(error.value) == (
        f"Table prices.csv lacks column {missing} (the file has: {', '.join(names)}). "
        f"Name it with --column {missing}=px_last."
    )
    assert map_columns(names, {missing: "px_last"})[missing] == "px_last"


def test_adj_close_may_be_absent_and_symbol_if_supplied_otherwise() -> None:
    names = [name for name in YAHOO if name != "Adj Close"]
    assert "adj_close" not in map_columns(["symbol", *names], {})
    assert "symbol" not in map_columns(names, {}, has_symbol=True)


def test_two_columns_for_one_need_the_users_word() -> None:
    names = ["symbol", *YAHOO, "last price"]
    with pytest.raises(SourceError, match=r"2 columns for close: Close, last price"):
        map_columns(names, {})
    assert map_columns(names, {"close": "last price"})["close"] == "last price"


def test_two_columns_of_one_name_cannot_be_told_apart() -> None:
    with pytest.raises(SourceError, match=r"2 columns named Close"):
        map_columns(["symbol", *YAHOO, "Close"], {"close": "Close"})


def test_an_option_that_names_nothing_is_an_error() -> None:
    with pytest.raises(SourceError, match=r"no column px_lst, which --column close=px_lst names"):
        map_columns(["symbol", *YAHOO, "px_last"], {"close": "px_lst"})
    with pytest.raises(SourceError, match=r"No price column clsoe\. Did you mean close\?"):
        map_columns(["symbol", *YAHOO], {"clsoe": "Close"})


@given(st.lists(st.text(max_size=60), max_size=60))
def test_foreign_names_give_a_printable_error(names: list[str]) -> None:
    with pytest.raises(SourceError) as error:
        map_columns(names, {})
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1500
