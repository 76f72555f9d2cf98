"""A made-up market with a planted signal, for tests, benchmarks and examples."""

from datetime import date

import numpy as np
import pandas as pd


def make_market(
    n_symbols: int = 30,
    n_sessions: int = 700,
    start: date = date(2015, 1, 1),
    signal: float = 0.15,
    seed: int = 0,
) -> pd.DataFrame:
    """Daily bars of a made-up market in long form: symbol, ts, prices, adj_close, volume.

    Each symbol's return of a session is noise (2% a day) plus `signal` times minus its noise of the
    session before last: a short-term reversal that a model can find, none if `signal` is 0. One
    symbol in ten lists late, one in ten stops trading early, and 1% of bars are missing. Prices
    are unadjusted: every symbol splits 2:1 once, and adj_close accounts for it. The same seed
    gives the same market; a longer one begins like a shorter one.
    """
    sessions = pd.bdate_range(start, periods=n_sessions).to_numpy("datetime64[D]")
    frames = []
    for i in range(n_symbols):
        rng = np.random.default_rng([seed, i])
        draws = rng.standard_normal((n_sessions, 6))  # row by row: a longer market goes on
        noise = 0.02 * draws[:, 0]
        returns = noise.copy()
        returns[2:] -= signal * noise[:-2]
        adjusted = 50.0 * np.exp(np.cumsum(returns))
        split = 100 + 7 * i
        close = adjusted * np.where(np.arange(n_sessions) < split, 2.0, 1.0)
        spread = 1.0 + 0.01 * np.abs(draws[:, 1:4])
        open_ = close * np.exp(0.005 * draws[:, 4])
        frame = pd.DataFrame(
            {
                "symbol": f"S{i:03d}",
                "ts": sessions.astype("datetime64[s]"),
                "open": open_,
                "high": np.maximum(open_, close) * spread[:, 0],
                "low": np.minimum(open_, close) / spread[:, 1],
                "close": close,
                "adj_close": adjusted,
                "volume": np.round(1e5 * np.exp(0.3 * draws[:, 5])),
            }
        )
        keep = spread[:, 2] < 1.0258  # 1% of bars are missing
        keep[: 120 if i % 10 == 3 else 0] = False
        keep[560 if i % 10 == 7 else n_sessions :] = False
        frames.append(frame[keep])
    return pd.concat(frames, ignore_index=True)
