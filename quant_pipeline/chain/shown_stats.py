"""What judged sessions add up to: means with errors, months, a portfolio's capital. Frames in."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import pandas as pd

from quant_pipeline.ml.portfolio import capital_of
from quant_pipeline.ml.sessions import mean_of_defined, newey_west_se
from quant_pipeline.settings import MetricSettings

AGE = "rank_ic_age_"
QUANTILE = "quantile_"


def is_after(judged: pd.DataFrame) -> "pd.Series[bool]":
    """Whether the settings were chosen before the session: they cannot have been led by it."""
    return judged["settings_known_before"].astype(bool)


def out_of_sample(judged: pd.DataFrame) -> pd.DataFrame:
    """The sessions after the settings were chosen; all of them, if there is none."""
    after = judged[is_after(judged)]
    return after.reset_index(drop=True) if len(after) else judged


def in_sample(judged: pd.DataFrame) -> str:
    """What a reader must know if sessions may have led the choice of the settings, else ""."""
    n_inside = int((~is_after(judged)).sum())
    if not n_inside:
        return ""
    return (
        f"{n_inside} of {len(judged)} sessions, shaded below, may have led the choice of the "
        "settings: they are in sample for those."
    )


def made_with(judged: pd.DataFrame, name: str) -> list[float]:
    """The values of a setting of [metrics] that sessions were judged with; none if unrecorded."""
    return sorted(judged[name].dropna().unique()) if name in judged else []


def settings_in_words(judged: pd.DataFrame, name: str, unknown: str) -> str:
    """A setting that sessions were judged with, for labels: "20", or "5 or 20" if they differ."""
    return " or ".join(f"{value:g}" for value in made_with(judged, name)) or unknown


def portfolio_title(judged: pd.DataFrame, horizon: int) -> str:
    """What the top-k portfolio of judged sessions was made with."""
    k, cost = (settings_in_words(judged, name, "") for name in ("top_k", "cost_bps"))
    costs = f"{cost} bps" if cost else "costs"
    return f"Top {k or 'k'} names, {horizon} tranches, gross and net of {costs}"


def settings_warning(judged: pd.DataFrame, spec: MetricSettings) -> str:
    """What differs between [metrics] of today and that of the sessions, and what to do; or ""."""
    today, cure = spec.model_dump(), "`quant score` or `quant reconcile` judges them all anew."
    if any(name not in judged or judged[name].isna().any() for name in today):
        return f"Of some sessions it is unknown with which [metrics] they were judged: {cure}"
    names = [n for n, value in today.items() if made_with(judged, n) != [value]]
    if not names:
        return ""
    told = ", ".join(
        f"{n} = {settings_in_words(judged, n, '?')} (quant.toml now: {today[n]:g})" for n in names
    )
    is_mixed = any(len(made_with(judged, n)) > 1 for n in names)
    what = "Sessions judged with different [metrics] are mixed here" if is_mixed else (
        "These sessions were judged with other [metrics] than quant.toml has now"
    )  # fmt: skip
    return f"{what}: {told}. {cure}"


def mean_with_error(values: "pd.Series[float]", horizon: int) -> dict[str, Any]:
    """``mean``, ``se`` (Newey-West, 2 * horizon lags) and ``n`` of a series by session.

    ``is_short``: under ten horizons of sessions, too few for the error to be trusted.
    """
    array = values.to_numpy(np.float64)
    n = int(np.isfinite(array).sum())
    return {
        "mean": mean_of_defined(array),
        "se": newey_west_se(array, 2 * horizon),
        "n": n,
        "is_short": n < 10 * horizon,
    }


def by_quantile(judged: pd.DataFrame, horizon: int) -> pd.DataFrame:
    """Mean return of each fifth of the score, lowest first: quantile, mean, se, n."""
    names = [name for name in judged.columns if name.startswith(QUANTILE)]
    return _rows({"quantile": names}, judged, QUANTILE, horizon)


def by_age(judged: pd.DataFrame, horizon: int) -> pd.DataFrame:
    """Mean RankIC by the age of the score in sessions: age, mean, se, n."""
    names = [n for n in judged.columns if n.startswith(AGE) and judged[n].notna().any()]
    names.sort(key=lambda name: int(name.removeprefix(AGE)))
    return _rows({"age": names}, judged, AGE, horizon)


def _rows(
    named: dict[str, list[str]], judged: pd.DataFrame, prefix: str, horizon: int
) -> pd.DataFrame:
    ((column, names),) = named.items()
    rows = [
        {column: int(name.removeprefix(prefix))} | mean_with_error(judged[name], horizon)
        for name in names
    ]
    return pd.DataFrame(rows, columns=[column, "mean", "se", "n"])


def by_month(judged: pd.DataFrame, column: str) -> pd.DataFrame:
    """The mean of each calendar month: year, month (1 to 12), mean, n."""
    known = judged.dropna(subset=[column])
    month = known["ts"].dt.to_period("M")
    found = known.groupby(month)[column].agg(["mean", "count"]).reset_index()
    return pd.DataFrame(
        {
            "year": found["ts"].dt.year, "month": found["ts"].dt.month,
            "mean": found["mean"], "n": found["count"],
        }
    )  # fmt: skip


def capital(judged: pd.DataFrame, sessions: Sequence[date], horizon: int) -> pd.DataFrame:
    """What 1 became in the top-k portfolio: ts, gross, net, drawdown (of net, 0 or below).

    ``ts`` is the session on which what a tranche earned was known, not that of its forming.
    ``judged`` is of one group; ``sessions`` are all market sessions, for those that it lacks.
    """
    every = pd.to_datetime(pd.Index(list(sessions)))
    if not len(judged):
        return pd.DataFrame({"ts": [], "gross": [], "net": [], "drawdown": []})
    ends = [judged["ts"].min(), judged["ts"].max(), judged["known_at"].min()]
    first, last, known = every.searchsorted(ends).tolist()
    at = np.arange(first, min(last + 1, len(every)))
    tranches = judged.drop_duplicates("ts").set_index("ts").reindex(every[at])
    gross, net = (
        capital_of(tranches[name].to_numpy(np.float64), horizon) for name in ("gross", "net")
    )
    highest = np.maximum(np.maximum.accumulate(net), 1.0)
    ts = every[np.minimum(at + known - first, len(every) - 1)]
    return pd.DataFrame({"ts": ts, "gross": gross, "net": net, "drawdown": net / highest - 1.0})


def smoothed(judged: pd.DataFrame, column: str, n_sessions: int = 63) -> "pd.Series[float]":
    """The mean of the sessions up to each one, of a quarter at least."""
    return judged[column].rolling(n_sessions, min_periods=max(2, n_sessions // 4)).mean()
