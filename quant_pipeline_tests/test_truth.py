"""Prices, labels and features of the canaries' market, held against the truth behind it."""

from datetime import date

import numpy as np
import pandas as pd
import pytest

from quant_pipeline.market.canaries import Canaries, make_canaries
from quant_pipeline_tests.homes import SmallHome, new_home, own_environment
from quant_pipeline_tests.mutants import CHANGES, walk_data

SIZE = (40, 260, 30)


@pytest.fixture(scope="module")
def truth() -> Canaries:
    return make_canaries(*SIZE)


@pytest.fixture(scope="module")
def made(truth, tmp_path_factory) -> SmallHome:
    """Both deliveries ingested one after the other, and data computed."""
    folder = tmp_path_factory.mktemp("truth")
    with own_environment(folder):
        found = new_home(folder / "home", CHANGES | {"memberships = true": "memberships = false"})
        found.ingest(truth.first)
        found.ingest(truth.second)
        walk_data(found.workspace)
    return found


def wide(made: SmallHome, truth: Canaries, sql: str) -> pd.DataFrame:
    """Rows of (ts, symbol, value) as sessions x symbols."""
    rows = pd.DataFrame(made.rows(sql), columns=["ts", "symbol", "value"])
    table = rows.pivot(index="ts", columns="symbol", values="value")
    return table.reindex([d.item() for d in truth.sessions]).reindex(columns=truth.symbols)


def untouched(truth: Canaries) -> np.ndarray:
    """Symbols with no corrected bar: elsewhere a vendor's correction is the truth from then on."""
    touched = {symbol for symbol, _ in truth.restated}
    return np.array([symbol not in touched for symbol in truth.symbols])


def test_the_index_has_the_true_returns_through_splits_and_dividends(made, truth):
    index = wide(made, truth, "SELECT ts, symbol, adj_index FROM prices_daily").to_numpy()
    shift = np.log(index) - np.cumsum(truth.returns, axis=0)
    for j in np.flatnonzero(untouched(truth)):
        mine = shift[np.isfinite(shift[:, j]), j]
        np.testing.assert_allclose(mine, mine[0], atol=1e-6)


def test_what_is_stored_is_what_was_delivered_and_what_was_left_out(made, truth):
    stored = wide(made, truth, "SELECT ts, symbol, close FROM prices_daily").notna().to_numpy()
    np.testing.assert_array_equal(stored, truth.has_bar)
    restated = made.rows(
        "SELECT DISTINCT symbol, ts FROM prices_restated WHERE change = 'restated'"
    )
    assert sorted(restated) == sorted(truth.restated)


def test_labels_are_the_true_returns_between_the_sessions(made, truth):
    found = wide(made, truth, "SELECT ts, symbol, fwd_return FROM labels WHERE task_id = 'ret_5d'")
    total = np.cumsum(truth.returns, axis=0)
    n = len(total)
    expected = np.full(total.shape, np.nan)
    expected[: n - 6] = np.expm1(total[6:] - total[1 : n - 5])
    has_all = truth.has_bar[: n - 6] & truth.has_bar[1 : n - 5] & truth.has_bar[6:]
    has_all &= untouched(truth)
    both = np.flatnonzero(has_all.ravel())
    mine = found.to_numpy()[: n - 6].ravel()[both]
    assert len(both) > 3000
    is_label = np.isfinite(mine)
    assert is_label.mean() > 0.99
    np.testing.assert_allclose(mine[is_label], expected[: n - 6].ravel()[both][is_label], rtol=1e-5)


def test_a_symbol_that_ended_keeps_its_losses_and_is_not_scored_again(made, truth):
    ended = {e.symbol: e.ts for e in truth.events if e.kind == "delisting"}
    assert len(ended) == SIZE[0] // 10
    for symbol, last in ended.items():
        ((newest,),) = made.rows("SELECT max(ts) FROM features_daily WHERE symbol = ?", symbol)
        assert newest == last
        rows = made.rows(
            "SELECT ts, known_at, fwd_return FROM labels WHERE symbol = ? AND task_id = 'ret_5d' "
            "AND reason IS NULL ORDER BY ts DESC LIMIT 1",
            symbol,
        )
        assert rows[0][1] > last  # known at the exit session, though the symbol ended before


def test_a_symbol_that_listed_late_has_no_feature_before(made, truth):
    for event in truth.events:
        if event.kind == "listing":
            ((first,),) = made.rows(
                "SELECT min(ts) FROM features_daily WHERE symbol = ?", event.symbol
            )
            assert first == event.ts


def test_momentum_of_a_month_is_that_of_the_true_returns(made, truth):
    """ROC20 of Alpha158 is the close of 20 sessions ago over the close now."""
    names = [row[1] for row in made.rows("SELECT * FROM pragma_table_info('features_daily')")]
    assert "ROC20" in names
    found = wide(made, truth, "SELECT ts, symbol, ROC20 FROM features_daily").to_numpy()
    total = np.cumsum(truth.returns, axis=0)
    expected = np.exp(total[:-20] - total[20:])
    has_both = truth.has_bar[:-20] & truth.has_bar[20:] & untouched(truth)
    mine = found[20:]
    is_there = has_both & np.isfinite(mine)
    assert is_there.sum() > 5000
    np.testing.assert_allclose(mine[is_there], expected[is_there], rtol=1e-4)


def test_the_planted_signal_has_its_correlation_with_the_stored_labels(made, truth):
    labels = wide(made, truth, "SELECT ts, symbol, fwd_return FROM labels WHERE task_id = 'ret_5d'")
    by_session = []
    for shock, label in zip(truth.shocks, labels.to_numpy(), strict=True):
        known = np.isfinite(label)
        if known.sum() > 20:
            by_session.append(np.corrcoef(-shock[known], label[known])[0, 1])
    error = np.std(by_session) / np.sqrt(len(by_session) / 6)  # labels overlap
    assert np.mean(by_session) == pytest.approx(truth.ic(5), abs=3 * error)
    assert np.mean(by_session) > 0.2


def test_dates_are_the_sessions_of_the_market_and_no_others(made, truth):
    rows = made.rows("SELECT ts FROM sessions WHERE is_session ORDER BY ts")
    assert [ts for (ts,) in rows] == [d.item() for d in truth.sessions]
    assert isinstance(rows[0][0], date)
