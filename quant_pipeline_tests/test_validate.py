"""Rules of validation: every row is a price or is rejected with its first reason."""

import math
import re
import time
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.market.columns import PRICE_COLUMNS
from quant_pipeline.market.renames import Renames
from quant_pipeline.market.validate import (
    PRICE_SCHEMA,
    REASONS,
    Validated,
    normalize_symbol,
    parse_day,
    validate_rows,
)

TODAY, FIRST = date(2020, 1, 10), date(2019, 12, 1)
DATA = Path(__file__).parents[2] / "shared" / "data"

prices = st.sampled_from(["10", "10.5", "11", " 10 ", "1e1", "10.0000001"])
junk = st.sampled_from(["", "null", "NaN", "N/A", "abc", "1,000", "inf", "-inf", "0", "-1", "0x1A"])
numbers = prices | prices | prices | prices | junk | st.none()
symbols = st.sampled_from(["A", "a ", "BRK.B", "NA", "NULL", "nan", "^GSPC", "é", "", "A B"])
days = st.sampled_from(
    [
        "2020-01-02",
        "20200102",
        "2020-01-03T00:00:00",
        "2020-01-03 00:00:00-05:00",
        "2020-01-11",
        "2019-11-30",
        "02/01/2020",
        "2020-02-30",
        "2020-01-02 16:00",
        "",
        "{",
        "2020-0102",
    ]
)
row = st.tuples(symbols | st.none(), days | st.none(), *[numbers] * 6)
tables = st.lists(row, max_size=25).map(
    lambda rows: pd.DataFrame(rows, columns=list(PRICE_COLUMNS), dtype="str")
)


def check(rows: pd.DataFrame, **options: Any) -> Validated:
    return validate_rows(rows, today=TODAY, first_date=FIRST, **options)


def bar(**changes: Any) -> dict[str, Any]:
    good = {"symbol": "A", "ts": "2020-01-02", "open": "10", "high": "11", "low": "9"}
    return {**good, "close": "10.5", "adj_close": "5.25", "volume": "100", **changes}


def oracle_number(text: str | None) -> float | None:
    text = (text or "").strip()
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", text):
        text = text.replace(",", "")
    if re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?inf", text):
        return float(text)
    return None


def oracle(values: dict[str, Any]) -> str | None:
    """First reason of one row that depends on the row alone, in plain Python."""
    v = {k: None if pd.isna(x) else x for k, x in values.items()}
    ts = (v["ts"] or "").strip()
    try:
        ts = ts[:-6] if ts.endswith("-05:00") else ts
        is_iso = len(ts) == 8 or (len(ts) >= 10 and ts[4] == ts[7] == "-")
        stamp = datetime.fromisoformat(ts) if is_iso else None
    except ValueError:
        stamp = None
    if stamp is not None and (stamp.hour or stamp.minute):
        stamp = None
    if stamp is None and all(v[c] is None for c in PRICE_COLUMNS if c != "ts"):
        return "bad_line"
    if not re.fullmatch(
        r"\^?[A-Z0-9][A-Z0-9.\-^=&_/:+]{0,30}", (v["symbol"] or "").strip().upper()
    ):
        return "bad_symbol"
    if stamp is None:
        return "bad_date"
    if stamp.date() > TODAY:
        return "future_date"
    if stamp.date() < FIRST:
        return "before_grid_start"
    return oracle_values(v)


def oracle_values(v: dict[str, Any]) -> str | None:
    quotes = [oracle_number(v[c]) for c in ("open", "high", "low", "close")]
    volume, adj = oracle_number(v["volume"]), oracle_number(v["adj_close"])
    is_adj_given = (v["adj_close"] or "").strip().lower() not in ("", "null", "nan", "n/a")
    if any(q is None for q in quotes):
        return "null_price"
    if any(math.isinf(q) for q in quotes):
        return "non_finite_price"
    if any(q <= 0 for q in quotes):
        return "non_positive_price"
    o, h, low, c = quotes
    rules = {
        "null_volume": volume is None or math.isinf(volume),
        "negative_volume": volume is not None and volume < 0,
        "out_of_bounds": not all(1e-15 <= q <= 1e18 for q in quotes) or (volume or 0) > 1e18,
        "high_below_low": h < low,
        "open_close_outside_range": h < max(o, c) * (1 - 1e-6) or low > min(o, c) * (1 + 1e-6),
        "bad_adj_close": is_adj_given and (adj is None or not 1e-15 <= adj <= 1e18),
    }
    return next((name for name, is_broken in rules.items() if is_broken), None)


@settings(deadline=None, max_examples=70)
@given(tables)
def test_every_row_read_is_stored_or_rejected(rows: pd.DataFrame) -> None:
    before = rows.copy(deep=True)
    result = check(rows)
    assert result.n_read == len(rows) == result.n_valid + sum(result.counts.values())
    assert list(result.counts) == list(REASONS)
    found = result.rejected["reason"].value_counts().to_dict()
    assert {reason: n for reason, n in result.counts.items() if n} == found
    assert result.prices.schema == PRICE_SCHEMA
    keys = list(zip(*(result.prices[c].to_pylist() for c in ("symbol", "ts")), strict=True))
    assert keys == sorted(set(keys))
    pd.testing.assert_frame_equal(rows, before)


@settings(deadline=None, max_examples=120)
@given(row)
def test_each_reason_is_that_of_an_independent_oracle(values: tuple[str | None, ...]) -> None:
    rows = pd.DataFrame([values], columns=list(PRICE_COLUMNS), dtype="str")
    result = check(rows)
    expected = oracle(dict(zip(PRICE_COLUMNS, values, strict=True)))
    assert result.rejected["reason"].tolist() == ([] if expected is None else [expected])


@settings(deadline=None, max_examples=40)
@given(tables, st.randoms(use_true_random=False))
def test_order_of_rows_changes_nothing(rows: pd.DataFrame, random: Any) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    one, other = check(rows), check(rows.iloc[order])
    assert one.prices.equals(other.prices)
    assert one.counts == other.counts


@settings(deadline=None, max_examples=40)
@given(tables, tables)
def test_a_row_is_judged_by_itself_and_its_duplicates_alone(
    rows: pd.DataFrame, others: pd.DataFrame
) -> None:
    others = others.assign(symbol="OTHER")
    together = check(pd.concat([rows, others])).prices.to_pandas()
    alone = check(rows).prices.to_pandas()
    mine = together[together["symbol"] != "OTHER"].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, alone, check_exact=True)


@settings(deadline=None, max_examples=40)
@given(tables)
def test_prices_are_fit_to_be_prices_again(rows: pd.DataFrame) -> None:
    result = check(rows)
    again = check(result.prices.to_pandas(date_as_object=False))
    assert again.prices.equals(result.prices)
    assert again.n_read == again.n_valid


@settings(deadline=None, max_examples=40)
@given(tables)
def test_rejected_rows_keep_their_text(rows: pd.DataFrame) -> None:
    rejected = check(rows).rejected
    delivered = {tuple(r) for r in rows.fillna("<none>").itertuples(index=False)}
    kept = rejected[list(PRICE_COLUMNS)].fillna("<none>")
    assert {tuple(r) for r in kept.itertuples(index=False)} <= delivered


@settings(deadline=None, max_examples=40)
@given(st.floats(min_value=1e-15, max_value=1e18), st.sampled_from(["1", "null"]))
def test_text_is_read_to_the_last_bit(price: float, neighbour: str) -> None:
    quotes = dict.fromkeys(["open", "high", "low", "close"], repr(price))
    rows = pd.DataFrame([bar(**quotes), bar(symbol="B", close=neighbour)], dtype="str")
    assert check(rows).prices["close"][0].as_py() == price


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"symbol": "two words"}, "bad_symbol"),
        ({"symbol": "ß"}, "bad_symbol"),
        ({"symbol": "X" * 33}, "bad_symbol"),
        ({"symbol": None, "ts": None}, "bad_symbol"),
        ({"ts": "01/02/2020"}, "bad_date"),
        ({"ts": "2020-01-02 16:00:00"}, "bad_date"),
        ({"ts": "2020-01-11"}, "future_date"),
        ({"ts": "2019-11-30"}, "before_grid_start"),
        ({"open": "null"}, "null_price"),
        ({"close": "1,05"}, "null_price"),
        ({"close": "1.2M"}, "null_price"),
        ({"volume": "$5"}, "null_volume"),
        ({"high": "inf"}, "non_finite_price"),
        ({"low": "0"}, "non_positive_price"),
        ({"volume": ""}, "null_volume"),
        ({"volume": "-1"}, "negative_volume"),
        ({"volume": "1e308"}, "out_of_bounds"),
        ({"low": "5e-324"}, "out_of_bounds"),
        ({"high": "1e308"}, "out_of_bounds"),
        ({"adj_close": "1e308"}, "bad_adj_close"),
        ({"high": "8"}, "high_below_low"),
        ({"high": "10.4"}, "open_close_outside_range"),
        ({"low": "10.1"}, "open_close_outside_range"),
        ({"adj_close": "-1"}, "bad_adj_close"),
        ({"adj_close": "abc"}, "bad_adj_close"),
    ],
)
def test_each_defect_has_its_reason(changes: dict[str, Any], reason: str) -> None:
    result = check(pd.DataFrame([bar(**changes)], dtype="str"))
    assert result.rejected["reason"].tolist() == [reason]


@pytest.mark.parametrize(
    "changes",
    [
        {"adj_close": None},
        {"adj_close": "null"},
        {"volume": "0"},
        {"volume": "1.2M"},
        {"high": "1,050.00"},
        {"symbol": "^GSPC"},
        {"high": "10.499999"},
        {"ts": "2020-01-10"},
        {"ts": "2019-12-01"},
        {"symbol": "NA"},
        {"symbol": "NULL"},
        {"symbol": "nan"},
        {"symbol": "M&M"},
        {"symbol": "BRK.B"},
    ],
)
def test_these_rows_are_prices(changes: dict[str, Any]) -> None:
    result = check(pd.DataFrame([bar(**changes)], dtype="str"))
    assert result.n_valid == 1


@pytest.mark.parametrize(
    "ts",
    [
        ["2020-01-02", "2020-01-03"],
        [20200102, 20200103],
        [20200102.0, 20200103.0],
        [date(2020, 1, 2), date(2020, 1, 3)],
        pd.to_datetime(["2020-01-02", "2020-01-03"]),
        pd.to_datetime(["2020-01-02", "2020-01-03"]).tz_localize("America/New_York"),
        pd.Categorical(["2020-01-02", "2020-01-03"]),
        [pd.Timestamp("2020-01-02"), "20200103"],
    ],
)
def test_a_date_is_a_date_in_any_type(ts: Any) -> None:
    rows = pd.DataFrame([bar(), bar()]).assign(ts=ts)
    assert check(rows).prices["ts"].to_pylist() == [date(2020, 1, 2), date(2020, 1, 3)]


@pytest.mark.parametrize("ts", [pd.Timestamp("2020-01-02 16:00"), pd.NaT, 43832, 43832.5, True])
def test_other_values_are_no_dates(ts: Any) -> None:
    assert check(pd.DataFrame([bar(ts=ts)])).rejected["reason"].tolist() == ["bad_date"]


@pytest.mark.parametrize("dtype", ["float64", "float32", "Float64", "int64", "object", "str"])
def test_numbers_may_come_in_any_type(dtype: str) -> None:
    rows = pd.DataFrame([bar(open=9, high=11, low=9, close=10, adj_close=5, volume=7)])
    rows = rows.astype(dict.fromkeys(PRICE_COLUMNS[2:], dtype))
    values = check(rows).prices.to_pylist()[0]
    assert [values[c] for c in PRICE_COLUMNS[2:]] == [9.0, 11.0, 9.0, 10.0, 5.0, 7.0]


def test_true_is_not_a_price() -> None:
    rows = pd.DataFrame([bar()]).assign(open=True)
    assert check(rows).rejected["reason"].tolist() == ["null_price"]


def test_both_sides_of_a_contradiction_are_rejected() -> None:
    rows = pd.DataFrame([bar(), bar(symbol=" a"), bar(volume="101"), bar(symbol="B")])
    result = check(rows)
    assert result.counts["conflicting_duplicate"] == 3
    assert result.prices["symbol"].to_pylist() == ["B"]


def test_the_same_row_again_is_kept_once() -> None:
    rows = pd.DataFrame([bar(), bar(ts="20200102", close="10.50"), bar(volume="1e2")])
    result = check(rows)
    assert (result.n_valid, result.counts["duplicate"]) == (1, 2)


def test_a_broken_duplicate_does_not_condemn_the_good_row() -> None:
    result = check(pd.DataFrame([bar(), bar(close="null")]))
    assert (result.n_valid, result.counts["null_price"]) == (1, 1)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("AB"), st.sampled_from("123")), max_size=12))
def test_of_contradictions_the_last_delivered_is_kept_if_so_told(
    given_rows: list[tuple[str, str]],
) -> None:
    rows = pd.DataFrame([bar(symbol=s, volume=v) for s, v in given_rows], columns=PRICE_COLUMNS)
    last = dict(given_rows)
    result = check(rows, duplicates="last")
    kept = zip(*(result.prices[c].to_pylist() for c in ("symbol", "volume")), strict=True)
    assert list(kept) == sorted((s, float(v)) for s, v in last.items())
    n_repeats = sum(last[s] == v for s, v in given_rows) - len(last)
    assert result.counts["duplicate"] == n_repeats
    assert result.counts["conflicting_duplicate"] == len(rows) - len(last) - n_repeats


def test_renamed_tickers_are_one_symbol_before_duplicates_are_judged() -> None:
    renames = Renames.of(
        pa.table(
            {
                "ticker": ["HINDALC0"],
                "symbol": ["HINDALCO"],
                "first": pa.array([None], pa.date32()),
                "last": [date(2020, 1, 3)],
            }
        )
    )
    rows = pd.DataFrame(
        [
            bar(symbol="hindalc0"),
            bar(symbol="HINDALCO", volume="101"),
            bar(symbol="A"),
            bar(symbol="HINDALC0", ts="2020-01-03"),
            bar(symbol="HINDALC0", ts="2020-01-06"),
        ]
    )
    result = check(rows, renames=renames)
    assert result.rejected["symbol"].tolist() == ["hindalc0", "HINDALCO"]
    assert result.counts["conflicting_duplicate"] == 2
    assert [(p["symbol"], p["ts"].day) for p in result.prices.to_pylist()] == [
        ("A", 2),
        ("HINDALC0", 6),
        ("HINDALCO", 3),
    ]


def test_rejected_rows_tell_their_file_if_the_delivery_did() -> None:
    rows = pd.DataFrame([bar(), bar(symbol="B", close="null")])
    assert list(check(rows).rejected) == [*PRICE_COLUMNS, "reason"]
    assert check(rows.assign(file=[3, 7])).rejected["file"].tolist() == [7]


def test_missing_adj_close_is_null_and_never_nan() -> None:
    result = check(pd.DataFrame([bar()]).assign(adj_close=np.nan))
    assert result.prices["adj_close"].null_count == 1


@given(st.text(max_size=40))
def test_a_symbol_has_one_ascii_spelling(text: str) -> None:
    symbol = normalize_symbol(text)
    if symbol is not None:
        assert symbol.isascii()
        assert normalize_symbol(f" {symbol.lower()}") == symbol


@given(st.dates())
def test_every_date_is_read_as_written(day: date) -> None:
    expected = (day - date(1970, 1, 1)).days
    texts = [f"{day:%m-%d}", f"{day:%m%d}"]
    assert [parse_day(f"{day.year:04d}{'-' * ('-' in t)}{t}") for t in texts] == [expected] * 2
    assert parse_day(f"{day.isoformat()}T00:00:00Z") == expected


def test_a_large_table_takes_seconds_at_most() -> None:
    path = DATA / "us_large_yahoo_2002_2022.parquet"
    if not path.exists():
        pytest.skip(f"{path} is missing: the speed of validation was NOT tested")
    rows = pq.read_table(path).to_pandas(date_as_object=False)
    start = time.perf_counter()
    result = validate_rows(rows, today=date(2022, 1, 26), first_date=date(2002, 1, 2))
    assert time.perf_counter() - start < 6
    assert (result.n_valid, len(result.rejected)) == (1_819_228, 0)
    cut = validate_rows(rows, today=date(2021, 12, 31), first_date=date(2002, 1, 2) + timedelta(1))
    n_after = int((rows["ts"] > pd.Timestamp(2021, 12, 31)).sum())
    assert cut.counts["future_date"] == n_after
