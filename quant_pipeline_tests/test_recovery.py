"""What is there to be found is found, no more and no less: end to end, on made-up markets.

A session's return is noise e(s) less `signal` times e(s - 2). A score of session t is judged by
the return of session t + 2, so -e(t) is the best score there is, and e(t) follows from returns up
to t alone.
"""

from datetime import date

import numpy as np
import pandas as pd
import pytest

from quant_pipeline.chain.judge import judge_predictions
from quant_pipeline.ml.metrics import information_coefficient, newey_west_se
from quant_pipeline_tests.homes import SmallHome, sample_market

SIGNAL = 0.3
MODULE = """
from quant_pipeline.market import rolling
from quant_pipeline.market.features import Feature


def gain(close):
    return close / rolling.lag(close, 1) - 1


def earlier(close):
    return rolling.lag(close, 2) / rolling.lag(close, 3) - 1


FEATURES = [Feature("GAIN", ("close",), 1, gain), Feature("EARLIER", ("close",), 3, earlier)]
"""
CHANGES = {
    "exclude = []": 'modules = ["found"]\ninclude = ["GAIN", "EARLIER", "KMID", "VMA5", "STD10"]',
    "max_rounds = 30": "max_rounds = 150",
    "num_leaves = 7": "num_leaves = 7\nfeature_fraction = 0.5\nlambda_l2 = 10.0",
    "window_sessions = 250": "window_sessions = 300",
    "[universe]": '[[tasks]]\ntask_id = "next"\nkind = "regression"\nhorizon = 1\n'
    'normalize = "rank"\n\n[universe]',
}


def walked(home, signal: float) -> SmallHome:
    made = home(f"signal_{signal}", CHANGES)
    (made.root / "found.py").write_text(MODULE)
    made.ingest(sample_market(n_symbols=60, n_sessions=400, signal=signal))
    made.backfill(date(2016, 9, 1), date(2016, 12, 31))
    return made


def judged(made: SmallHome) -> pd.DataFrame:
    rows = made.rows(
        "SELECT ts, symbol, score, fwd_return FROM predictions JOIN labels USING (symbol, ts, "
        "task_id) WHERE reason IS NULL ORDER BY ts, symbol"
    )
    return pd.DataFrame(rows, columns=["ts", "symbol", "score", "fwd_return"])


def best_score(made: SmallHome, signal: float) -> pd.Series:
    """-e(t), from the returns of every session up to t."""
    rows = made.rows("SELECT ts, symbol, adj_index FROM prices_daily ORDER BY ts, symbol")
    index = pd.DataFrame(rows, columns=["ts", "symbol", "index"]).pivot(
        index="ts", columns="symbol", values="index"
    )
    gain = np.log(index.ffill()).diff().fillna(0.0).to_numpy()
    noise = gain.copy()
    for t in range(2, len(noise)):
        noise[t] += signal * noise[t - 2]
    return -pd.DataFrame(noise, index.index, index.columns).stack()


def rank_ics(rows: pd.DataFrame, score: np.ndarray) -> np.ndarray:
    ts = rows["ts"].to_numpy("datetime64[D]")
    return information_coefficient(ts, score, rows["fwd_return"].to_numpy(), rank=True)[1]


def test_a_planted_signal_is_found_as_far_as_the_truth_allows(home) -> None:
    made = walked(home, SIGNAL)
    rows = judged(made)
    truth = best_score(made, SIGNAL)
    best = truth.loc[list(zip(rows["ts"], rows["symbol"], strict=True))].to_numpy()
    allowed = rank_ics(rows, best)
    found = rank_ics(rows, rows["score"].to_numpy())
    assert len(found) > 50
    se = newey_west_se(found, 2)
    rho = SIGNAL / np.sqrt(1 + SIGNAL**2)
    expected = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's of normal variables
    assert abs(allowed.mean() - expected) < 2 * newey_west_se(allowed, 2)
    assert abs(found.mean() - allowed.mean()) < 2 * se
    assert found.mean() > 10 * se
    (group,) = judge_predictions(made.workspace, made.workspace.settings.task("next"))
    assert group["metrics"]["rank_ic"] == pytest.approx(found.mean())
    assert group["origin"] == "backfill"


def test_where_nothing_is_planted_nothing_is_found(home) -> None:
    made = walked(home, 0.0)
    found = rank_ics(judged(made), judged(made)["score"].to_numpy())
    assert len(found) > 50
    assert abs(found.mean()) < 2 * newey_west_se(found, 2)
    (group,) = judge_predictions(made.workspace, made.workspace.settings.task("next"))
    assert abs(group["portfolio"]["net"]) < 4 * group["portfolio"]["net_se"]
