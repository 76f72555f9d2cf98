"""Which delivered rows are prices: everything else is set aside, with its reason."""

from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from quant_pipeline.market.columns import PRICE_COLUMNS
from quant_pipeline.market.renames import Renames
from quant_pipeline.market.text_values import day_number, normalize_symbol, parse_day, parse_numbers

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

__all__ = [
    "PRICE_SCHEMA",
    "REASONS",
    "Validated",
    "normalize_symbol",
    "parse_day",
    "validate_rows",
]

PRICE_SCHEMA = pa.schema(
    [("symbol", pa.string()), ("ts", pa.date32())]
    + [(name, pa.float64()) for name in PRICE_COLUMNS[2:]]
)

REASONS = (
    "bad_line",
    "bad_symbol",
    "bad_date",
    "future_date",
    "before_grid_start",
    "null_price",
    "non_finite_price",
    "non_positive_price",
    "null_volume",
    "negative_volume",
    "out_of_bounds",
    "high_below_low",
    "open_close_outside_range",
    "bad_adj_close",
    "conflicting_duplicate",
    "duplicate",
    "no_session",
)

ROUNDING = 1e-6
LEAST_PRICE, MOST_PRICE, MOST_VOLUME = 1e-15, 1e18, 1e18
"""Beyond these no return of two prices and no value traded is sure to be a finite float32."""
_ABSENT = pa.array(["", "null", "nan", "na", "n/a", "#n/a", "none", "-"], pa.large_string())
_NO_DAY = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Validated:
    """Rows that are prices, and the others: ``n_read == prices.num_rows + len(rejected)``.

    `prices` follows PRICE_SCHEMA, sorted by symbol and ts, each pair once; adj_close is null
    where none was delivered. `rejected` keeps the values as text and in the order of delivery,
    with a `reason`; `counts` has every reason, in REASONS' order, also those that never occurred.
    If the rows told their `file`, rejected rows keep it.
    """

    prices: pa.Table
    rejected: pd.DataFrame
    counts: dict[str, int]
    n_read: int

    @property
    def n_valid(self) -> int:
        """Rows that are prices."""
        return int(self.prices.num_rows)


def validate_rows(
    rows: pd.DataFrame,
    *,
    today: date,
    first_date: date,
    renames: Renames | None = None,
    duplicates: Literal["reject", "last"] = "reject",
) -> Validated:
    r"""Split rows as delivered into prices and rejected rows, each with its first reason.

    Reasons, in the order of REASONS:

    - bad_line: every other value is missing and `ts` is no date (a line of some other text)
    - bad_symbol: not ``\^?[A-Z0-9][A-Z0-9.\-^=&_/:+]*`` of up to 32 after NFC, strip and upper
    - bad_date: not ISO or YYYYMMDD, or with a time of day other than midnight
    - future_date, before_grid_start: after `today`, before `first_date`
    - null_price: open, high, low or close missing or not a number
    - non_finite_price, non_positive_price: one of them infinite; zero or less
    - null_volume: missing, not a number or infinite; negative_volume: below zero
    - out_of_bounds: a price outside LEAST_PRICE to MOST_PRICE, a volume above MOST_VOLUME
    - high_below_low; open_close_outside_range: beyond a relative 1e-6, which rounding explains
    - bad_adj_close: there, but not a positive finite number
    - conflicting_duplicate: the same symbol and ts with other values. None of them is kept, or
      with ``duplicates="last"`` the last one delivered
    - duplicate: the same row again: one of them is kept
    - no_session: never given here; the caller, who knows the market, moves rows with `reject`

    `renames` apply before duplicates are judged; rejected rows keep the ticker. Whether a row is
    kept depends on its own values and on its duplicates alone, and on the order of rows only with
    ``duplicates="last"``. Numbers may be text, as `parse_numbers` reads them, to the last bit. A
    date with a zone counts as written.
    """
    names, symbol = _symbols(rows["symbol"])
    day = _days(rows["ts"])
    numbers = {name: _numbers(rows[name], name == "volume") for name in PRICE_COLUMNS[2:]}
    values = {name: number[0] for name, number in numbers.items()}
    values["volume"] = values["volume"] + 0.0  # no negative zero
    reason = np.zeros(len(rows), np.int8)
    _judge_keys(reason, rows, symbol, day, today, first_date)
    _judge_values(reason, values, numbers["adj_close"][1])
    if renames is not None:
        names, symbol = renames.apply(names, symbol, day)
    kept = _judge_duplicates(reason, symbol, day, values, duplicates == "last")
    counts = np.bincount(reason, minlength=len(REASONS) + 1)[1:]
    files = rows["file"].to_numpy(dtype=np.int32) if "file" in rows else None
    return Validated(
        prices=_prices(kept, names, symbol, day, values),
        rejected=_rejected(rows, reason, files),
        counts=dict(zip(REASONS, counts.tolist(), strict=True)),
        n_read=len(rows),
    )


def _flag(reason: npt.NDArray[np.int8], name: str, mask: Bools) -> None:
    reason[mask & (reason == 0)] = REASONS.index(name) + 1


def _judge_keys(
    reason: npt.NDArray[np.int8],
    rows: pd.DataFrame,
    symbol: Ints,
    day: Ints,
    today: date,
    first_date: date,
) -> None:
    is_undated = day == _NO_DAY
    if is_undated.any():
        others = rows.loc[:, [name for name in PRICE_COLUMNS if name != "ts"]]
        is_empty = np.zeros(len(rows), np.bool_)
        is_empty[is_undated] = others[is_undated].isna().to_numpy().all(axis=1)
        _flag(reason, "bad_line", is_empty)
    _flag(reason, "bad_symbol", symbol < 0)
    _flag(reason, "bad_date", is_undated)
    _flag(reason, "future_date", day > day_number(today))
    _flag(reason, "before_grid_start", day < day_number(first_date))


def _judge_values(
    reason: npt.NDArray[np.int8], values: dict[str, Floats], is_adj_absent: Bools
) -> None:
    quotes = [values[name] for name in ("open", "high", "low", "close")]
    open_, high, low, close = quotes
    volume, adj_close = values["volume"], values["adj_close"]
    _flag(reason, "null_price", np.logical_or.reduce([np.isnan(v) for v in quotes]))
    _flag(reason, "non_finite_price", np.logical_or.reduce([np.isinf(v) for v in quotes]))
    _flag(reason, "non_positive_price", np.logical_or.reduce([v <= 0 for v in quotes]))
    _flag(reason, "null_volume", ~np.isfinite(volume))
    _flag(reason, "negative_volume", volume < 0)
    is_beyond = [(v < LEAST_PRICE) | (v > MOST_PRICE) for v in quotes]
    _flag(reason, "out_of_bounds", np.logical_or.reduce([*is_beyond, volume > MOST_VOLUME]))
    _flag(reason, "high_below_low", high < low)
    is_outside = (high < np.maximum(open_, close) * (1 - ROUNDING)) | (
        low > np.minimum(open_, close) * (1 + ROUNDING)
    )
    _flag(reason, "open_close_outside_range", is_outside)
    is_adj_good = (adj_close >= LEAST_PRICE) & (adj_close <= MOST_PRICE)
    _flag(reason, "bad_adj_close", ~is_adj_absent & ~is_adj_good)


def _judge_duplicates(
    reason: npt.NDArray[np.int8],
    symbol: Ints,
    day: Ints,
    values: dict[str, Floats],
    is_last_kept: bool,
) -> Ints:
    """Flag duplicates among the rows that are left; the rows to keep, by symbol and ts."""
    left = np.flatnonzero(reason == 0)
    if len(left) == 0:
        return left
    days = day[left]
    key = symbol[left] * (int(days.max()) - int(days.min()) + 1) + (days - days.min())
    if np.all(key[1:] > key[:-1]):
        return left
    order = np.argsort(key, kind="stable")
    left, key = left[order], key[order]
    is_first = np.concatenate([[True], key[1:] != key[:-1]])
    if is_first.all():
        return left
    group = np.cumsum(is_first) - 1
    starts = np.flatnonzero(is_first)
    ends = np.append(starts[1:], len(left)) - 1
    chosen = (ends if is_last_kept else starts)[group]
    again = np.flatnonzero(chosen != np.arange(len(left)))
    differs = np.zeros(len(left), np.bool_)
    for column in values.values():
        one, other = column[left[chosen[again]]], column[left[again]]
        differs[again] |= ~((one == other) | (np.isnan(one) & np.isnan(other)))
    is_conflict = differs
    if not is_last_kept:
        is_conflict = (np.bincount(group, weights=differs) > 0)[group]
    is_again = np.zeros(len(left), np.bool_)
    is_again[again] = True
    reason[left[is_conflict]] = REASONS.index("conflicting_duplicate") + 1
    reason[left[is_again & ~is_conflict]] = REASONS.index("duplicate") + 1
    kept: Ints = left[~is_again & ~is_conflict]
    return kept


def _prices(
    kept: Ints, names: list[str], symbol: Ints, day: Ints, values: dict[str, Floats]
) -> pa.Table:
    codes = pa.array(symbol[kept].astype(np.int32))
    columns = [
        pa.DictionaryArray.from_arrays(codes, pa.array(names, pa.string())).cast(pa.string()),
        pa.array(day[kept].astype(np.int32)).cast(pa.date32()),
    ]
    for name in PRICE_COLUMNS[2:]:
        columns.append(pa.array(values[name][kept], from_pandas=True))
    return pa.Table.from_arrays(columns, schema=PRICE_SCHEMA)


def _rejected(
    rows: pd.DataFrame, reason: npt.NDArray[np.int8], files: npt.NDArray[np.int32] | None
) -> pd.DataFrame:
    where = np.flatnonzero(reason)
    labels = np.array(("", *REASONS), dtype=object)
    columns: dict[str, Any] = {}
    for name in PRICE_COLUMNS:
        column = rows[name].iloc[where]
        is_text = column.dtype == "str"
        columns[name] = column.array if is_text else pd.array(_texts(column), dtype="str")
    if files is not None:
        columns["file"] = files[where]
    return pd.DataFrame({**columns, "reason": pd.array(labels[reason[where]], dtype="str")})


def _symbols(column: "pd.Series[Any]") -> tuple[list[str], Ints]:
    """Sorted distinct symbols, and each row's place among them; -1 for one that is none."""
    codes, found = _encode(column)
    spelled = [normalize_symbol(_text_of(value)) for value in found]
    names = sorted({name for name in spelled if name is not None})
    place = {name: i for i, name in enumerate(names)}
    places = [-1 if name is None else place[name] for name in spelled]
    return names, np.array([*places, -1], np.int64)[codes]


def _days(column: "pd.Series[Any]") -> Ints:
    """Days since 1970-01-01; _NO_DAY for what is no date."""
    if isinstance(column.dtype, np.dtype | pd.DatetimeTZDtype) and column.dtype.kind == "M":
        stamps = pd.DatetimeIndex(column).tz_localize(None).to_numpy()
        days = stamps.astype("datetime64[D]")
        is_day = ~np.isnat(stamps) & (days == stamps)
        return np.where(is_day, days.astype(np.int64), _NO_DAY)
    codes, found = _encode(column)
    parsed = [parse_day(_text_of(value)) for value in found]
    return np.array([*(_NO_DAY if day is None else day for day in parsed), _NO_DAY])[codes]


def _numbers(column: "pd.Series[Any]", has_suffixes: bool) -> tuple[Floats, Bools]:
    """Numbers, NaN where there is none, and where nothing was delivered at all.

    One parser reads all text, so that a value's bits never depend on its neighbours.
    """
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        return values, np.isnan(values)
    text = _flat(_as_arrow(column))
    try:
        values = _to_numpy(pc.cast(text, pa.float64()))
        is_absent = np.isnan(values)
        if int(is_absent.sum()) == text.null_count:
            return values, is_absent
    except pa.ArrowInvalid:
        pass
    text = pc.utf8_trim_whitespace(text)
    is_absent = _to_numpy(pc.fill_null(pc.is_in(pc.utf8_lower(text), _ABSENT), True))
    is_absent |= _to_numpy(pc.is_null(text))
    return _to_numpy(parse_numbers(text, has_suffixes=has_suffixes)), is_absent


def _encode(column: "pd.Series[Any]") -> tuple[Ints, list[Any]]:
    """Codes into the distinct values of a column; -1 for missing ones."""
    encoded = _flat(_as_arrow(column))
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    codes = _to_numpy(pc.fill_null(encoded.indices.cast(pa.int64()), -1))
    return codes, encoded.dictionary.to_pylist()


def _as_arrow(column: "pd.Series[Any]") -> pa.Array:
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
        return pa.array(column, from_pandas=True)
    if isinstance(column.dtype, pd.StringDtype):
        return pa.array(column, pa.large_string(), from_pandas=True)
    return pa.array(_texts(column), pa.large_string())


def _texts(column: "pd.Series[Any]") -> list[str | None]:
    """Values as text: what was delivered as text stays as it is."""
    missing = column.isna().to_numpy()
    return [None if m else _text_of(v) for v, m in zip(column.tolist(), missing, strict=True)]


def _text_of(value: object) -> str:
    if isinstance(value, pd.Timestamp) and value == value.normalize():
        return str(value.date())
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _flat(array: pa.Array) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _to_numpy(array: pa.Array) -> npt.NDArray[Any]:
    return np.array(array.to_numpy(zero_copy_only=False))
