"""What is wrong with a set of prices, one JSON line a set: rejected rows, odd dates, jumps.

    python bench/data_quality.py                  every set in ../shared/data
    python bench/data_quality.py one.parquet ...  these sets

Sets are long tables with the columns symbol, ts, open, high, low, close, adj_close, volume.
Figures and their meaning: docs/data-quality.md.
"""

import json
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from quant_pipeline.market.adjust import Bars, merge_delivery
from quant_pipeline.market.feature_matrix import symbol_slices
from quant_pipeline.market.jumps import find_jumps
from quant_pipeline.market.sessions import find_sessions
from quant_pipeline.market.validate import Validated, validate_rows
from quant_pipeline.settings import IngestSettings, JumpSettings, SessionSettings

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DATA = Path(__file__).parents[2] / "shared" / "data"
SETS = (
    "ph_pse_2010_2021",
    "us_wiki100_1990_2018",
    "us_large_yahoo_2002_2022",
    "us_large_yahoo_2022_2024_asfound",
    "in_nifty50_2000_2021",
    "crypto_binance_2017_2026",
)
IS_ADJUSTED = {SETS[1], SETS[2], SETS[5]}
# The splits that us_large_yahoo_2022_2024_asfound.md lists: symbol, session, new shares for one.
KNOWN_SPLITS = {
    ("AMZN", "2022-06-06"): 20.0,
    ("DXCM", "2022-06-13"): 4.0,
    ("FTNT", "2022-06-23"): 5.0,
    ("GOOG", "2022-07-18"): 20.0,
    ("GOOGL", "2022-07-18"): 20.0,
    ("TSLA", "2022-08-25"): 3.0,
    ("NDAQ", "2022-08-29"): 3.0,
    ("PANW", "2022-09-13"): 3.0,
    ("CPRT", "2022-11-04"): 2.0,
    ("TECH", "2022-11-29"): 4.0,
    ("PCAR", "2023-02-07"): 1.5,
    ("MNST", "2023-03-27"): 2.0,
    ("CPRT", "2023-08-21"): 2.0,
    ("SRE", "2023-08-21"): 2.0,
    ("COO", "2024-02-20"): 4.0,
    ("WMT", "2024-02-26"): 3.0,
    ("ODFL", "2024-03-27"): 2.0,
    ("NVDA", "2024-06-10"): 10.0,
    ("APH", "2024-06-12"): 2.0,
    ("CMG", "2024-06-25"): 50.0,
    ("WRB", "2024-07-10"): 1.5,
    ("AVGO", "2024-07-15"): 10.0,
}
BIG_MOVE = 0.3  # simple return from close to close, up or down
JUDGED_BARS = 20
LATEST = date(2100, 1, 1)


@dataclass(frozen=True)
class PricedSet:
    """A set's bars on sessions, sorted by (symbol, session), prices adjusted forward."""

    validated: Validated
    names: list[str]
    days: npt.NDArray[np.datetime64]
    n_dates: int
    n_off_session: int
    symbol: Ints
    session: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    traded_value: Floats

    def flags(self, spec: JumpSettings) -> npt.NDArray[np.bool_]:
        """Which bars `find_jumps` flags."""
        prices = (self.open, self.high, self.low, self.close)
        return find_jumps(self.symbol, self.session, *prices, self.traded_value, spec)

    def move(self) -> Floats:
        """Log move from the close of the bar before to this close, NaN on first bars."""
        move = np.full(len(self.close), np.nan)
        move[1:] = np.log(self.close[1:] / self.close[:-1])
        move[np.flatnonzero(np.diff(self.symbol)) + 1] = np.nan
        return move

    def has_reverted(self, row: int) -> bool:
        """Whether the closes of the following bars lie nearer to the level before a jump.

        Hindsight, to judge a flag by: no part of the rule. The last bar has not reverted.
        """
        later = self.close[row + 1 : row + 1 + JUDGED_BARS]
        later = later[self.symbol[row + 1 : row + 1 + JUDGED_BARS] == self.symbol[row]]
        if not len(later):
            return False
        level = np.log(np.median(later))
        away = abs(level - np.log(self.close[row]))
        return bool(away > abs(level - np.log(self.close[row - 1])))

    def key(self, row: int) -> tuple[str, str]:
        """Symbol and date of a bar."""
        return self.names[self.symbol[row]], str(self.days[self.session[row]])


def read_set(path: Path) -> PricedSet:
    """Validate a set, keep its bars on sessions, and run each symbol's index forward."""
    rows = pq.read_table(path).to_pandas(date_as_object=False)
    validated = validate_rows(rows, today=LATEST, first_date=date(1900, 1, 1))
    encoded = validated.prices["symbol"].combine_chunks().dictionary_encode()
    symbol = encoded.indices.to_numpy().astype(np.int64)
    dates = validated.prices["ts"].to_numpy().astype("datetime64[D]")
    days, day = np.unique(dates, return_inverse=True)
    spec = SessionSettings()
    is_session = find_sessions(
        day, symbol, min_share=spec.min_share, active_dates=spec.active_dates
    )
    kept = is_session[day]
    quotes = {
        name: validated.prices[name].to_numpy()[kept]
        for name in ("open", "high", "low", "close", "adj_close", "volume")
    }
    index = _forward_index(symbol[kept], day[kept], quotes)
    scale = index / quotes["close"]
    return PricedSet(
        validated=validated,
        names=encoded.dictionary.to_pylist(),
        days=days[is_session],
        n_dates=len(days),
        n_off_session=int((~kept).sum()),
        symbol=symbol[kept],
        session=(np.cumsum(is_session) - 1)[day[kept]],
        open=quotes["open"] * scale,
        high=quotes["high"] * scale,
        low=quotes["low"] * scale,
        close=index,
        traded_value=quotes["volume"] * quotes["close"],
    )


def _forward_index(symbol: Ints, day: Ints, quotes: dict[str, Floats]) -> Floats:
    none = np.empty(0)
    nothing = Bars(np.empty(0, np.int64), none, none, none, none, none, none)
    index = np.empty(len(symbol))
    for first, last in symbol_slices(symbol):
        names = ("open", "high", "low", "close", "volume", "adj_close")
        given = Bars(day[first:last], *(quotes[name][first:last] for name in names))
        merged = merge_delivery(nothing, given, IngestSettings().tolerance)
        index[first:last] = merged.bars.index
    return index


def report(path: Path, spec: JumpSettings) -> dict[str, Any]:
    """Counts of one set, and every flagged bar by name."""
    prices = read_set(path)
    start = time.perf_counter()
    is_flagged = prices.flags(spec)
    seconds = time.perf_counter() - start
    move = prices.move()
    is_big = np.abs(np.expm1(move)) > BIG_MOVE
    rejected = {reason: n for reason, n in prices.validated.counts.items() if n}
    rows = is_flagged.nonzero()[0].tolist()
    found = {prices.key(row): round(float(np.exp(-move[row])), 3) for row in rows}
    line: dict[str, Any] = {
        "set": path.stem,
        "n_read": prices.validated.n_read,
        "n_rejected": sum(rejected.values()),
        "rejected": rejected,
        "n_dates": prices.n_dates,
        "n_sessions": len(prices.days),
        "n_bars": len(prices.close),
        "n_off_session": prices.n_off_session,
        "n_moves": int((np.abs(move) > spec.min_move).sum()),
        "n_moves_30pct": int(is_big.sum()),
        "n_moves_30pct_flagged": int((is_big & is_flagged).sum()),
        "n_flagged": len(found),
        "n_flagged_per_million_bars": round(1e6 * len(found) / len(prices.close), 2),
        "seconds": round(seconds, 3),
    }
    if path.stem == SETS[3]:
        missed = KNOWN_SPLITS.keys() - found.keys()
        line["n_known_splits"] = len(KNOWN_SPLITS)
        line["n_known_flagged"] = len(KNOWN_SPLITS) - len(missed)
        line["missed"] = sorted(" ".join(key) for key in missed)
        found = {key: ratio for key, ratio in found.items() if key not in KNOWN_SPLITS}
    line["reverted"] = [" ".join(prices.key(row)) for row in rows if prices.has_reverted(row)]
    name = "false_flags" if path.stem in IS_ADJUSTED else "other_flags"
    line[name] = {" ".join(key): ratio for key, ratio in found.items()}
    return line


def main(arguments: list[str]) -> None:
    """Print one JSON line a set; name on stderr each one that is missing."""
    paths = [Path(argument) for argument in arguments] or [
        DATA / f"{name}.parquet" for name in SETS
    ]
    for path in paths:
        if path.exists():
            print(json.dumps(report(path, JumpSettings())), flush=True)
        else:
            print(f"{path} is missing: NOT judged", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
