"""A made-up market that knows the truth about itself: signal, events, and what a vendor changed.

Whatever computes features, labels or adjustment, or claims to have seen no future, can be held
against it. Two deliveries: a history, and later the whole of it again with more sessions, as a
vendor restates it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Days = npt.NDArray[np.datetime64]

VOLATILITY = 0.02
HOLE_SHARE = 0.01
DIVIDEND = 0.02  # of the close before
N_RESTATED = 12
RESTATED_BY = 1.07  # close, high and low of a corrected bar, over what they were


@dataclass(frozen=True)
class Event:
    """Something that happened to a symbol on a session; `value` is a ratio or a share of close."""

    kind: str  # split, dividend, listing, delisting
    symbol: str
    ts: date
    value: float


@dataclass(frozen=True)
class Canaries:
    """Deliveries and the truth behind them.

    ``returns``, ``shocks`` and ``has_bar`` are sessions x symbols: each session's true log return
    with dividends, the part of it that is new, and where a bar was delivered. ``shocks`` with the
    sign turned are the signal: known at the close, and correlated with what follows by `ic`.
    ``restated`` are the bars of the first delivery that the second one corrects; bars that the
    second one leaves out are ``omitted``. ``members`` are intervals of an index.
    """

    first: pd.DataFrame
    second: pd.DataFrame
    members: pd.DataFrame
    sessions: Days
    symbols: tuple[str, ...]
    returns: Floats
    shocks: Floats
    has_bar: Bools
    events: tuple[Event, ...]
    restated: tuple[tuple[str, date], ...]
    omitted: tuple[tuple[str, date], ...]
    signal: float

    def ic(self, horizon: int, entry_lag: int = 1) -> float:
        """The true correlation of the signal at a close and the log return of a label.

        Of returns e(t) - signal * e(t-2) with independent e, from the coefficients of each e.
        """
        return planted_ic(self.signal, horizon, entry_lag)


def planted_ic(signal: float, horizon: int, entry_lag: int = 1) -> float:
    """Corr(-e(t), r(t+lag+1) + ... + r(t+lag+horizon)) for r(t) = e(t) - signal * e(t-2).

    >>> planted_ic(0.0, 5)
    0.0
    >>> round(planted_ic(0.6, 5), 4)
    0.3354
    """
    weights: dict[int, float] = {}
    for k in range(entry_lag + 1, entry_lag + horizon + 1):
        weights[k] = weights.get(k, 0.0) + 1.0
        weights[k - 2] = weights.get(k - 2, 0.0) - signal
    spread = float(np.sqrt(sum(w * w for w in weights.values())))
    return 0.0 - weights.get(0, 0.0) / spread


def make_canaries(
    n_symbols: int = 40,
    n_sessions: int = 420,
    n_live: int = 40,
    start: date = date(2018, 1, 2),
    signal: float = 0.6,
    seed: int = 0,
) -> Canaries:
    """A market whose last `n_live` sessions come with the second delivery.

    Of ten symbols one lists late and one ends early; each splits 2:1 once and pays a dividend of
    2% of the close before twice, once in the newest sessions for most; 1% of bars are missing.
    adj_close accounts for splits and dividends, so the second delivery has another one for the
    whole past. It also corrects some bars and leaves others out. The same seed gives the same.
    """
    rng = np.random.default_rng(seed)
    sessions = pd.bdate_range(start, periods=n_sessions).to_numpy("datetime64[D]")
    symbols = tuple(f"C{i:03d}" for i in range(n_symbols))
    shape = n_sessions, n_symbols
    shocks = VOLATILITY * rng.standard_normal(shape)
    returns = shocks.copy()
    returns[2:] -= signal * shocks[:-2]
    has_bar = rng.random(shape) >= HOLE_SHARE
    events, split, payout = _happen(sessions, symbols, n_live, has_bar)
    gross = np.exp(returns)
    close = 50.0 * np.cumprod((gross - payout) / split, axis=0, dtype=np.float64)
    bars = _bars(sessions, symbols, close, has_bar, rng)
    # By what a vendor scales closes before a session: its price return over its total return.
    factor = (gross - payout) / gross / split
    first = _deliver(bars, factor, n_sessions - n_live)
    second = _deliver(bars, factor, n_sessions)
    chosen = first.sample(2 * N_RESTATED, random_state=seed).sort_values(["symbol", "ts"])
    keys = list(zip(chosen["symbol"].tolist(), chosen["ts"].dt.date.tolist(), strict=True))
    restated, omitted = tuple(keys[::2]), tuple(keys[1::2])
    return Canaries(
        first, _correct(second, restated, omitted), _members(sessions, symbols), sessions, symbols,
        returns, shocks, has_bar, tuple(events), restated, omitted, signal,
    )  # fmt: skip


def _happen(
    sessions: Days, symbols: tuple[str, ...], n_live: int, has_bar: Bools
) -> tuple[list[Event], Floats, Floats]:
    """Events, split ratios and dividends; listings and ends are marked in `has_bar`."""
    n = len(sessions)
    events = []
    split, payout = np.ones(has_bar.shape), np.zeros(has_bar.shape)

    def note(kind: str, i: int, at: int, value: float) -> None:
        events.append(Event(kind, symbols[i], sessions[at].item(), value))

    for i in range(len(symbols)):
        if i % 10 == 3:
            has_bar[: n // 4, i] = False
            has_bar[n // 4, i] = True
            note("listing", i, n // 4, 0.0)
        if i % 10 == 7:
            has_bar[n - 2 * n_live :, i] = False
            has_bar[n - 2 * n_live - 1, i] = True
            note("delisting", i, n - 2 * n_live - 1, 0.0)
        at = 30 + (17 * i) % (n - 40)
        split[at, i] = 2.0
        note("split", i, at, 2.0)
        for when in ((at + n // 3) % n, n - 1 - i % (2 * n_live)):
            if when > 0 and when != at and not payout[when, i]:
                payout[when, i] = DIVIDEND
                note("dividend", i, when, DIVIDEND)
    return events, split, payout


def _bars(
    sessions: Days,
    symbols: tuple[str, ...],
    close: Floats,
    has_bar: Bools,
    rng: np.random.Generator,
) -> pd.DataFrame:
    shape = close.shape
    open_ = close * np.exp(0.005 * rng.standard_normal(shape))
    spread = 1.0 + 0.01 * np.abs(rng.standard_normal((2, *shape)))
    volume = np.round(1e5 * np.exp(0.3 * rng.standard_normal(shape)))
    session, symbol = np.nonzero(has_bar)
    return pd.DataFrame(
        {
            "symbol": np.array(symbols, object)[symbol],
            "ts": sessions[session].astype("datetime64[s]"),
            "open": open_[has_bar],
            "high": (np.maximum(open_, close) * spread[0])[has_bar],
            "low": (np.minimum(open_, close) / spread[1])[has_bar],
            "close": close[has_bar],
            "volume": volume[has_bar],
            "session": session,
            "code": symbol,
        }
    )


def _deliver(bars: pd.DataFrame, factor: Floats, until: int) -> pd.DataFrame:
    """Bars of the first `until` sessions, adj_close as a vendor has it then: the newest is close.

    Each close is scaled by the factors of all later sessions of the delivery.
    """
    mine = bars[bars["session"] < until]
    scale = np.ones((until, factor.shape[1]))
    scale[:-1] = np.cumprod(factor[until - 1 : 0 : -1], axis=0)[::-1]
    adjusted = mine["close"] * scale[mine["session"], mine["code"]]
    names = ["symbol", "ts", "open", "high", "low", "close", "adj_close", "volume"]
    given = mine.assign(adj_close=adjusted)[names]
    return given.sort_values(["symbol", "ts"], ignore_index=True)


def _correct(
    delivery: pd.DataFrame,
    restated: Sequence[tuple[str, date]],
    omitted: Sequence[tuple[str, date]],
) -> pd.DataFrame:
    """The delivery with some bars corrected (all prices but open), and without others."""
    key = list(zip(delivery["symbol"], delivery["ts"].dt.date, strict=True))
    wrong, gone = set(restated), set(omitted)
    is_restated = np.array([k in wrong for k in key])
    scale = np.where(is_restated, RESTATED_BY, 1.0)
    names = ["close", "adj_close", "high", "low"]
    corrected = delivery.assign(**{name: delivery[name] * scale for name in names})
    corrected["low"] = corrected[["low", "open"]].min(axis=1)
    is_there = np.array([k not in gone for k in key])
    return corrected[is_there].reset_index(drop=True)


def _members(sessions: Days, symbols: tuple[str, ...]) -> pd.DataFrame:
    """An index: most are in it throughout, some leave half way, some come then."""
    half = sessions[len(sessions) // 2]
    rows = []
    for i, symbol in enumerate(symbols):
        first = half if i % 5 == 1 else sessions[0]
        last = half - np.timedelta64(1, "D") if i % 5 == 2 else np.datetime64("NaT")
        rows.append({"symbol": symbol, "first": first, "last": last})
    return pd.DataFrame(rows)
