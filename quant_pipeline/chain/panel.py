"""Stored bars as arrays: sessions and symbols numbered, prices adjusted forward."""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quant_pipeline.market.jumps import JUMP_LOOK_BACK, find_jumps
from quant_pipeline.settings import JumpSettings
from quant_pipeline.stores.series import (
    Connection,
    read_first_bars,
    read_prices,
    read_sessions,
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Days = npt.NDArray[np.datetime64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Panel:
    """Bars sorted by (symbol, session), as codes into `symbols` and `sessions`.

    `columns` holds adjusted open, high, low, close, volume and vwap ((high + low + close) / 3);
    `first_session` is each symbol's first session ever, which may lie before this panel.
    `is_jump` flags bars that came after a move that looks like an unadjusted split, right for
    the wanted sessions and the look-back that was asked for.
    """

    symbols: npt.NDArray[np.object_]
    sessions: Days
    symbol: Ints
    session: Ints
    columns: dict[str, Floats]
    traded_value: Floats
    first_session: Ints
    is_jump: Bools

    @property
    def ts(self) -> Days:
        """Each bar's session."""
        return self.sessions[self.session]


def read_panel(
    con: Connection,
    first: date,
    before: date,
    look_back: int,
    jumps: JumpSettings,
    batch_id: int | None = None,
) -> Panel:
    """Bars on sessions in ``[first, before)`` and in the `look_back` sessions before them.

    As of a batch: what was ingested later is not seen.
    """
    sessions = days(read_sessions(con, None, before - timedelta(days=1), batch_id)["ts"])
    wanted = int(np.searchsorted(sessions, np.datetime64(first)))
    start = max(wanted - look_back - JUMP_LOOK_BACK, 0)
    if start >= len(sessions):
        return _empty(sessions)
    table = read_prices(con, sessions[start].item(), sessions[-1].item(), batch_id)
    encoded = table["symbol"].combine_chunks().dictionary_encode()
    symbols = encoded.dictionary.to_numpy(zero_copy_only=False)
    firsts = read_first_bars(con, batch_id)
    close = _floats(table["close"])
    index = _floats(table["adj_index"])
    columns = {name: _floats(table[name]) / close * index for name in ("open", "high", "low")}
    columns["close"] = index
    traded_value = _floats(table["volume"]) * close
    columns["volume"] = traded_value / index
    columns["vwap"] = (columns["high"] + columns["low"] + index) / 3.0
    first_days = np.array([firsts[s] for s in symbols], "datetime64[D]")
    symbol = encoded.indices.to_numpy().astype(np.int64)
    session = np.searchsorted(sessions, days(table["ts"])).astype(np.int64)
    open_, high, low = (columns[name] for name in ("open", "high", "low"))
    return Panel(
        symbols=symbols,
        sessions=sessions,
        symbol=symbol,
        session=session,
        is_jump=find_jumps(symbol, session, open_, high, low, index, traded_value, jumps),
        columns=columns,
        traded_value=traded_value,
        first_session=np.searchsorted(sessions, first_days).astype(np.int64),
    )


def days(column: pa.ChunkedArray) -> Days:
    """A date column as datetime64[D]."""
    values: Days = column.to_numpy().astype("datetime64[D]")
    return values


def _floats(column: pa.ChunkedArray) -> Floats:
    values: Floats = column.to_numpy()
    return values


def _empty(sessions: Days) -> Panel:
    none, no_codes = np.empty(0), np.empty(0, np.int64)
    names = ("open", "high", "low", "close", "volume", "vwap")
    return Panel(
        np.empty(0, object),
        sessions,
        no_codes,
        no_codes,
        dict.fromkeys(names, none),
        none,
        no_codes,
        np.empty(0, np.bool_),
    )
