"""What holding the best names would have earned: overlapping tranches, gross and net of costs."""

import math
from dataclasses import dataclass

import numpy as np

from quant_pipeline.ml.ranking_metrics import top_k_rows
from quant_pipeline.ml.sessions import (
    MIN_NAMES,
    earlier_rows,
    index_sessions,
    index_symbols,
    mean_of_defined,
    mean_over_std,
    newey_west_se,
    session_means,
)

SESSIONS_A_YEAR = 252


@dataclass(frozen=True, eq=False)
class Portfolio:
    """One tranche a session, as columns: the one that is formed on ``ts``.

    ``gross`` and ``net`` are its returns until it is replaced, ``turnover`` the share of its value
    that was bought when it replaced an earlier one (NaN if it replaced none), ``traded`` the value
    bought and sold, as a share of the tranche, ``n_names`` how many it holds and ``n_unpriced``
    how many of them have no return, ``tied`` the share of its places that went by hash.
    ``capital`` starts at 1 before the first session and is marked when tranches end.
    """

    ts: np.ndarray
    gross: np.ndarray
    net: np.ndarray
    turnover: np.ndarray
    traded: np.ndarray
    n_names: np.ndarray
    n_unpriced: np.ndarray
    tied: np.ndarray
    capital: np.ndarray
    summary: dict[str, float]


def top_k_portfolio(
    ts: np.ndarray,
    symbol: np.ndarray,
    score: np.ndarray,
    fwd_return: np.ndarray,
    k: int,
    horizon: int,
    cost_bps: float,
    min_names: int = MIN_NAMES,
) -> Portfolio:
    """The k best names of every session, each held for ``horizon`` sessions: overlapping tranches.

    On each session of ``ts`` (all of them must be there) 1 / horizon of the capital goes, equally
    weighted, into the k highest scores and replaces the tranche formed ``horizon`` sessions before
    (Jegadeesh and Titman 1993). Ties for the last place go by hash, as in `top_k_rows`. A tranche
    earns the mean ``fwd_return`` of its names that have one; which have one is not known when it
    is formed, so names are chosen by score alone. It pays ``cost_bps`` / 10,000 for each unit of
    value bought and sold: net = gross - cost * traded. Names that stay cost nothing, also if their
    weights drifted; selling the last tranches is not charged.

    A session with fewer than ``min_names`` scores forms no tranche (NaN); the next one of its
    offset buys everything, as an offset's first one does.
    """
    if horizon < 1 or cost_bps < 0:
        raise ValueError(f"horizon is {horizon} and cost_bps {cost_bps}: at least 1 and 0")
    sessions, session = index_sessions(ts)
    scored = np.isfinite(score)
    has_tranche = np.bincount(session[scored], minlength=len(sessions)) >= max(1, min_names)
    is_chosen, tied = top_k_rows(ts, symbol, score, k)
    chosen = np.flatnonzero(is_chosen & has_tranche[session])
    own = session[chosen]
    stays = earlier_rows(own, index_symbols(symbol[chosen])[1], horizon) >= 0
    n = np.bincount(own, minlength=len(sessions))
    turnover = _share_bought(n, np.bincount(own[stays], minlength=len(sessions)), horizon)
    traded = np.where(np.isnan(turnover), 1.0, 2 * turnover)
    traded[n == 0] = np.nan
    earned = fwd_return[chosen].astype(np.float64)
    is_priced = np.isfinite(earned)
    gross = session_means(own, len(sessions), earned, is_priced)
    net = gross - cost_bps / 10_000 * traded
    capital = capital_of(net, horizon)
    n_names = np.where(n > 0, n, np.nan)
    n_unpriced = n_names - np.bincount(own[is_priced], minlength=len(sessions))
    summary = _summary(gross, net, turnover, n_names, capital, horizon)
    tied = np.where(n > 0, tied, np.nan)
    return Portfolio(
        sessions, gross, net, turnover, traded, n_names, n_unpriced, tied, capital, summary
    )


def _share_bought(n: np.ndarray, n_stays: np.ndarray, horizon: int) -> np.ndarray:
    """Value bought by each tranche that replaces one; as much is sold.

    A name that stays keeps the smaller of its weights, 1 / the larger of the numbers of names.
    """
    n_before = np.concatenate((np.zeros(horizon, np.int64), n))[: len(n)]
    replaces = (n > 0) & (n_before > 0)
    bought = np.full(len(n), np.nan)
    bought[replaces] = 1 - n_stays[replaces] / np.maximum(n, n_before)[replaces]
    return bought


def capital_of(net: np.ndarray, horizon: int) -> np.ndarray:
    """Mean capital of the offsets after each tranche: each grows by its own, the others wait.

    ``net`` has one return a session, formed on it and held for
    ``horizon`` sessions. A tranche without a return leaves its offset's capital as it was.
    """
    n_rounds = -(-len(net) // horizon)
    growth = np.ones(n_rounds * horizon)
    growth[: len(net)] = np.maximum(1 + np.where(np.isfinite(net), net, 0.0), 0.0)
    after = np.cumprod(growth.reshape(n_rounds, horizon), axis=0)
    before = np.vstack((np.ones((1, horizon)), after))[:n_rounds]
    ahead = before.sum(axis=1, keepdims=True) - np.cumsum(before, axis=1)
    capital: np.ndarray = ((np.cumsum(after, axis=1) + ahead) / horizon).ravel()[: len(net)]
    return capital


def _summary(
    gross: np.ndarray,
    net: np.ndarray,
    turnover: np.ndarray,
    n_names: np.ndarray,
    capital: np.ndarray,
    horizon: int,
) -> dict[str, float]:
    """Means per tranche with Newey-West errors (2 * horizon lags), and what the net ones make.

    ``net_sharpe`` is per year: mean / standard deviation (ddof 1) of an offset's tranches, which
    do not overlap, averaged over offsets, times sqrt(252 / horizon). ``worst_drawdown`` is the
    largest fall of ``capital`` from its highest value so far, as a share of that.
    """
    ratios = np.array([mean_over_std(net[offset::horizon]) for offset in range(horizon)])
    n_earning = int(np.isfinite(net).sum())
    drawdown = math.nan
    if n_earning:
        highest = np.maximum(np.maximum.accumulate(capital), 1.0)
        drawdown = float((1 - capital / highest).max())
    return {
        "n_sessions": len(net),
        "n_tranches": n_earning,
        "is_short": int(n_earning < 10 * horizon),
        "gross": mean_of_defined(gross),
        "gross_se": newey_west_se(gross, 2 * horizon),
        "net": mean_of_defined(net),
        "net_se": newey_west_se(net, 2 * horizon),
        "net_sharpe": mean_of_defined(ratios) * math.sqrt(SESSIONS_A_YEAR / horizon),
        "turnover": mean_of_defined(turnover),
        "n_names": mean_of_defined(n_names),
        "worst_drawdown": drawdown,
    }
