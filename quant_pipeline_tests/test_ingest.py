"""Rules of ingest on real stores: every row accounted for, versions, sessions, late bars."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from itertools import count
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from quant_pipeline.chain.ingest import ingest
from quant_pipeline.chain.seal import seal_until
from quant_pipeline.errors import SourceError
from quant_pipeline.stores.sources import Reading
from quant_pipeline_tests.homes import TODAY, SmallHome

Home = Callable[..., SmallHome]
START = date(2015, 6, 1)
TOLERANCE = 1e-4
PRICES = ["open", "high", "low", "close", "adj_close"]
_numbers = count()


def quick(n: int) -> settings:
    """So many examples, each of them with stores of its own; a third of them in `make test`."""
    ignored = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    phases = [Phase.explicit, Phase.generate]  # a smaller seed is no simpler example
    n = n if os.environ.get("QUANT_THOROUGH") else -(-n // 3)
    return settings(max_examples=n, deadline=None, suppress_health_check=ignored, phases=phases)


def fresh(home: Home, changes: dict[str, str] | None = None) -> SmallHome:
    return home(f"home{next(_numbers)}", changes)


def make_bars(
    n_dates: int, names: Sequence[str] = "ABCD", seed: int = 0, start: date = START
) -> pd.DataFrame:
    """Bars on every date; adj_close has a dividend now and then, volumes tell rows apart."""
    rng = np.random.default_rng(seed)
    dates = pd.bdate_range(start, periods=n_dates)
    frames = []
    for i, name in enumerate(names):
        close = 20.0 * np.exp(np.cumsum(rng.normal(0, 0.02, n_dates)))
        dividends = np.where(rng.random(n_dates) < 0.15, 0.03, 0.0)
        wide = 1.0 + 0.01 * rng.random((2, n_dates)) + 1e-3
        open_ = close * np.exp(rng.normal(0, 0.004, n_dates))
        frames.append(
            pd.DataFrame(
                {
                    "symbol": name,
                    "ts": dates,
                    "open": open_,
                    "high": np.maximum(open_, close) * wide[0],
                    "low": np.minimum(open_, close) / wide[1],
                    "close": close,
                    "adj_close": close * np.cumprod(1.0 + dividends),
                    "volume": 1e6 + 1e3 * (i * 1000 + np.arange(n_dates)),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def rebased(bars: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The same bars with each symbol's adj_close on another scale."""
    rng = np.random.default_rng(seed)
    factor = {s: float(f) for s, f in zip("ABCDEFGH", rng.uniform(0.5, 1.0, 8), strict=True)}
    return bars.assign(adj_close=bars["adj_close"] * bars["symbol"].map(factor))


def on(bars: pd.DataFrame, *days: Any) -> pd.DataFrame:
    return bars[bars["ts"].isin(pd.to_datetime(list(days)))]


def of(bars: pd.DataFrame, *names: str) -> pd.DataFrame:
    return bars[bars["symbol"].isin(names)]


def dates_of(bars: pd.DataFrame) -> list[pd.Timestamp]:
    return sorted(bars["ts"].unique())


def daily(made: SmallHome, batch_id: int | None = None) -> list[tuple[Any, ...]]:
    """prices_daily without batch numbers, newest or as of a batch."""
    table = "prices_daily" if batch_id is None else f"prices_as_of({batch_id})"
    columns = "symbol, ts, open, high, low, close, volume, adj_index"
    return made.rows(f"SELECT {columns} FROM {table} ORDER BY symbol, ts")


def answers(made: SmallHome, batch_id: int | None = None) -> dict[date, bool]:
    table = "sessions" if batch_id is None else f"sessions_as_of({batch_id})"
    return dict(made.rows(f"SELECT ts, is_session FROM {table} ORDER BY ts"))


def everything(made: SmallHome) -> dict[str, list[tuple[Any, ...]]]:
    """Every stored row of every table that ingest writes."""
    tables = (
        "price_batches", "price_versions", "price_superseded", "price_changes", "prices_rejected",
        "session_versions", "membership_versions", "rename_versions", "seals",
    )  # fmt: skip
    return {table: made.rows(f"SELECT * FROM {table} ORDER BY ALL") for table in tables}


def require_equal(
    one: list[tuple[Any, ...]], other: list[tuple[Any, ...]], rel: float = 1e-9
) -> None:
    assert [row[:2] for row in one] == [row[:2] for row in other]
    a, b = (np.array([row[2:] for row in rows], float) for rows in (one, other))
    np.testing.assert_allclose(a, b, rtol=rel)


def require_counts_add_up(report: Any) -> None:
    rejected = sum(report.n_rejected.values())
    assert report.n_read == report.n_new + report.n_restated + report.n_unchanged + rejected
    assert min(report.n_new, report.n_restated, report.n_unchanged) >= 0
    assert report.n_late <= report.n_new
    assert report.n_rebased <= report.n_unchanged


# --- Every row that is read is stored as a version or rejected with a reason


def with_junk(bars: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Some rows spoilt, some twice, some contradicted; dates and numbers as text or not."""
    bars = bars.assign(ts=bars["ts"].dt.strftime("%Y-%m-%d")).sample(frac=1.0, random_state=rng)
    spoilt = bars.sample(frac=0.3, random_state=rng).reset_index(drop=True)
    kind = rng.integers(0, 9, len(spoilt))
    spoilt.loc[kind == 0, "close"] = -1.0
    spoilt.loc[kind == 1, "close"] = np.nan
    spoilt.loc[kind == 2, "ts"] = "yesterday"
    spoilt.loc[kind == 3, "symbol"] = "not a symbol!"
    spoilt.loc[kind == 4, "ts"] = "2031-01-01"
    spoilt.loc[kind == 5, "ts"] = "1999-12-31"
    spoilt.loc[kind == 6, "adj_close"] = 0.0
    spoilt.loc[kind == 7, "high"] = spoilt["low"] / 2
    # kind 8 stays: it contradicts its original by its volume, as all of these do
    spoilt["volume"] = 9e6 + 1e3 * rng.permutation(10_000)[: len(spoilt)]
    again = bars.sample(frac=0.1, random_state=rng)
    return pd.concat([bars, spoilt, again]).sample(frac=1.0, random_state=rng)


@quick(6)
@given(seed=st.integers(0, 2**16), n_cuts=st.integers(0, 3))
def test_every_row_read_is_a_version_or_rejected_and_the_counts_say_so(home, seed, n_cuts):
    rng = np.random.default_rng(seed)
    bars = make_bars(int(rng.integers(5, 20)), "ABCD"[: int(rng.integers(2, 5))], seed)
    bars = bars[rng.random(len(bars)) < 0.8]
    delivered = with_junk(bars, rng)
    made = fresh(home)
    pieces = np.array_split(np.arange(len(delivered)), n_cuts + 1)
    rejected: Counter[str] = Counter()
    for rows in pieces:
        piece = delivered.iloc[rows]
        report = made.ingest(piece)
        require_counts_add_up(report)
        assert report.n_read == len(piece)
        rejected.update(report.n_rejected)
        stored = {v for (v,) in made.rows("SELECT volume FROM price_versions")}
        left = made.rows("SELECT DISTINCT CAST(volume AS DOUBLE) FROM prices_rejected")
        assert set(piece["volume"]) <= stored | {v for (v,) in left}
    by_reason = dict(made.rows("SELECT reason, count(*) FROM prices_rejected GROUP BY reason"))
    # a date may have become a session since, and its bars are none of the rejected any more
    assert set(by_reason) | {"no_session"} == set(rejected) | {"no_session"}
    # ... nor one any more: then the bars that were stored for it are among them
    rejected.pop("no_session", None)
    assert all(by_reason.get(reason, 0) <= n for reason, n in rejected.items())
    assert made.rows("SELECT count(*) FROM price_versions WHERE deleted") == [(0,)]


@quick(4)
@given(seed=st.integers(0, 2**16))
def test_the_same_delivery_again_changes_nothing_and_is_no_batch(home, seed):
    rng = np.random.default_rng(seed)
    bars = make_bars(15, "ABC", seed)
    bars = bars[rng.random(len(bars)) < 0.7]
    delivered = with_junk(bars, rng)
    made = fresh(home)
    made.ingest(delivered)
    before = everything(made)
    again = made.ingest(delivered.sample(frac=1.0, random_state=rng))
    require_counts_add_up(again)
    assert (again.batch_id, again.n_new, again.n_restated, again.changed_keys) == (None, 0, 0, [])
    assert everything(made) == before


@quick(4)
@given(seed=st.integers(0, 2**16))
def test_any_part_of_what_is_stored_comes_again_without_effect(home, seed):
    rng = np.random.default_rng(seed)
    bars = make_bars(20, "ABC", seed)
    made = fresh(home)
    made.ingest(bars)
    before = everything(made)
    part = bars[rng.random(len(bars)) < rng.choice([0.1, 0.5, 0.9])]
    scale = float(rng.uniform(0.3, 3.0))  # as of a split: prices by one constant, volumes over it
    part = rebased(part, seed)
    part[PRICES] *= scale
    part["volume"] /= scale
    report = made.ingest(part)
    require_counts_add_up(report)
    assert (report.batch_id, report.n_unchanged) == (None, len(part))
    assert everything(made) == before


@quick(3)
@given(seed=st.integers(0, 2**16))
def test_the_order_of_files_in_one_command_does_not_matter(home, seed):
    rng = np.random.default_rng(seed)
    delivered = with_junk(make_bars(10, "ABC", seed), rng)
    files = [delivered.iloc[i] for i in np.array_split(np.arange(len(delivered)), 4)]
    found = []
    for order in (range(4), rng.permutation(4)):
        made = fresh(home)
        report = made.ingest(*(files[i] for i in order))
        state = everything(made)
        rejected = sorted(((*row[2:],) for row in state["prices_rejected"]), key=repr)
        found.append(
            (report.n_rejected, report.n_new, state["price_versions"], state["session_versions"],
             state["price_changes"], rejected)
        )  # fmt: skip
    assert found[0] == found[1]


# --- However it comes, the same history ends as the same prices


@quick(4)
@given(seed=st.integers(0, 2**16), overlap=st.integers(1, 3))
def test_session_by_session_ends_as_one_delivery_does(home, seed, overlap):
    bars = make_bars(9, "ABC", seed)
    at_once = fresh(home)
    at_once.ingest(bars)
    made = fresh(home)
    days = dates_of(bars)
    at = 0
    rng = np.random.default_rng(seed)
    first_seen: dict[tuple[str, date], tuple[Any, ...]] = {}
    while at < len(days):
        upto = min(at + int(rng.integers(1, 4)), len(days))
        piece = rebased(on(bars, *days[max(at - overlap, 0) : upto]), int(rng.integers(2**16)))
        report = made.ingest(piece)
        assert (report.n_restated, report.n_relinked) == (0, 0)
        at = upto
        for row in daily(made):
            assert first_seen.setdefault(row[:2], row) == row  # bit for bit, ever after
    require_equal(daily(made), daily(at_once))
    assert answers(made) == answers(at_once)


@quick(3)
@given(seed=st.integers(0, 2**16))
def test_a_history_that_comes_backward_ends_as_the_same_returns(home, seed):
    bars = make_bars(12, "AB", seed)
    days = dates_of(bars)
    made, at_once = fresh(home), fresh(home)
    at_once.ingest(bars)
    for a, b in ((8, 12), (4, 9), (0, 5)):
        before = {row[:2]: row for row in daily(made)} if a < 8 else {}
        report = made.ingest(rebased(on(bars, *days[a:b]), seed + a))
        assert (report.n_restated, report.n_relinked) == (0, 0)
        now = {row[:2]: row for row in daily(made)}
        assert {key: now[key] for key in before} == before
    one, other = ([r for r in daily(h)] for h in (made, at_once))
    assert [row[:7] for row in one] == [row[:7] for row in other]
    for name in "AB":
        a, b = (np.array([r[7] for r in rows if r[0] == name]) for rows in (one, other))
        np.testing.assert_allclose(a / a[0], b / b[0], rtol=1e-9)


@quick(4)
@given(seed=st.integers(0, 2**16))
def test_batches_in_any_order_end_as_the_same_bars(home, seed):
    """Without dividends closes link what shares no session, so order cannot matter."""
    rng = np.random.default_rng(seed)
    bars = make_bars(16, "ABC", seed)
    bars["adj_close"] = np.nan
    pieces = np.array_split(np.array(dates_of(bars)), 4)
    made, at_once = fresh(home), fresh(home)
    at_once.ingest(bars)
    for i in rng.permutation(4):
        require_counts_add_up(made.ingest(on(bars, *pieces[i])))
    assert [row[:7] for row in daily(made)] == [row[:7] for row in daily(at_once)]
    for name in "ABC":  # the level of the index is that of the first bar that came
        one, other = (np.array([r[7] for r in daily(h) if r[0] == name]) for h in (made, at_once))
        np.testing.assert_allclose(one / one[0], other / other[0], rtol=1e-9)
    assert answers(made) == answers(at_once)


# --- Versions

CALENDAR = {"[universe]": '[sessions]\ncalendar = "XNYS"\n\n[universe]'}


def random_deliveries(seed: int) -> list[pd.DataFrame]:
    """Overlaps, corrections, holes, half days, lone bars, late days, re-based, in any order."""
    rng = np.random.default_rng(seed)
    bars = make_bars(int(rng.integers(8, 16)), "ABCD", seed)
    bars = bars[rng.random(len(bars)) < 0.9]
    lone = bars.sample(1, random_state=rng).assign(ts=pd.Timestamp("2015-06-06"))  # a Saturday
    found = []
    days = dates_of(bars)
    for _ in range(int(rng.integers(3, 6))):
        a, b = sorted(rng.integers(0, len(days) + 1, 2))
        piece = on(bars, *days[a : b + 1])
        piece = piece[rng.random(len(piece)) < rng.choice([0.4, 0.8, 1.0])].copy()
        piece["volume"] *= np.where(rng.random(len(piece)) < 0.1, 3.0, 1.0)
        twist = np.where(rng.random(len(piece)) < 0.1, 1.05, 1.0)
        piece[PRICES] = piece[PRICES].mul(twist, axis=0)
        if rng.random() < 0.5:
            piece = pd.concat([piece, lone])
        if len(piece):
            found.append(rebased(piece, int(rng.integers(2**16))))
    return found


@quick(5)
@given(seed=st.integers(0, 2**16))
def test_versions_are_only_appended_and_every_earlier_view_stays(home, seed):
    made = fresh(home)
    seen: dict[int, tuple[Any, Any]] = {}
    tables = ("price_versions", "price_superseded", "price_changes", "session_versions")
    before: dict[str, list[tuple[Any, ...]]] = {}
    for piece in random_deliveries(seed):
        report = made.ingest(piece)
        require_counts_add_up(report)
        state = everything(made)
        for table in tables:
            assert not Counter(before.get(table, [])) - Counter(state[table])
            added = Counter(state[table]) - Counter(before.get(table, []))
            assert report.batch_id is not None or not added
        before = state
        if report.batch_id is not None:
            seen[report.batch_id] = (daily(made), made.rows("SELECT * FROM sessions ORDER BY ts"))
        assert len({row[:2] for row in daily(made)}) == len(daily(made))
    for batch_id, (prices, sessions) in seen.items():
        assert daily(made, batch_id) == prices
        assert made.rows(f"SELECT * FROM sessions_as_of({batch_id}) ORDER BY ts") == sessions
    assert list(seen) == list(range(1, len(seen) + 1))


@quick(5)
@given(seed=st.integers(0, 2**16))
def test_price_changes_are_exactly_the_dates_whose_rows_or_answers_changed(home, seed):
    require_exact_changes(fresh(home), seed)


@pytest.mark.parametrize("seed", range(3))
def test_with_a_calendar_too_changes_are_exactly_those_of_rows_and_answers(home, seed):
    require_exact_changes(fresh(home, CALENDAR), seed)


def require_exact_changes(made: SmallHome, seed: int) -> None:
    n_batches = 0
    for piece in random_deliveries(seed):
        n_batches = made.ingest(piece).batch_id or n_batches
    for b in range(1, n_batches + 1):
        one, other = (Counter(daily(made, i)) for i in (b - 1, b))
        changed = {row[1] for row in (one - other) | (other - one)}
        old, new = answers(made, b - 1), answers(made, b)
        changed |= {ts for ts in new if new[ts] != old.get(ts, False)}
        sql = "SELECT ts FROM price_changes WHERE kind = 'prices' AND batch_id = ?"
        listed = {t for (t,) in made.rows(sql, b)}
        assert listed == changed


def test_a_date_that_is_no_session_any_more_is_no_changed_date(home):
    """Bars stay stored on it, and their index may move: prices_daily does not show them."""
    bars = make_bars(12, "ABCDEF")
    day = dates_of(bars)[-1]
    made = fresh(home)
    made.ingest(of(bars, "A", "B"))
    made.ingest(of(bars[bars["ts"] < day], "C", "D", "E", "F"))  # now two of six are too few
    fixed = of(bars, "A").copy()
    fixed.loc[fixed["ts"] >= dates_of(bars)[6], "adj_close"] *= 1.1  # a dividend told late
    batch_id = made.ingest(fixed[fixed["ts"] < day]).batch_id
    old, new = (dict((r[:2], r) for r in daily(made, i)) for i in (batch_id - 1, batch_id))
    changed = {key[1] for key in new if new[key] != old[key]}
    listed = made.rows("SELECT ts FROM price_changes WHERE batch_id = ?", batch_id)
    assert {ts for (ts,) in listed} == changed


@quick(5)
@given(seed=st.integers(0, 2**16))
def test_a_correction_is_one_listed_restatement_and_moves_no_other_return(home, seed):
    rng = np.random.default_rng(seed)
    bars = make_bars(12, "AB", seed)
    made = fresh(home)
    made.ingest(bars)
    old = daily(made)
    fixed = bars.copy()
    at = int(rng.integers(1, len(bars)))
    name, ts = fixed.loc[at, "symbol"], fixed.loc[at, "ts"].date()
    fixed.loc[at, ["high", "close", "adj_close"]] *= 1.05
    report = made.ingest(fixed)
    assert (report.n_restated, report.n_new) == (1, 0)
    assert [(r["symbol"], r["ts"]) for r in report.restated] == [(name, ts)]
    listed = made.rows("SELECT symbol, ts, change FROM prices_restated WHERE change = 'restated'")
    assert listed == [(name, ts, "restated")]
    moved = {a[:2] for a, b in zip(old, daily(made), strict=True) if a != b}
    if fixed.loc[at, "ts"] == bars["ts"].min():  # the first bar: its level is what all hang on
        assert {m[0] for m in moved} == {name}
    else:
        assert moved == {(name, ts)}


# --- Sessions


@quick(4)
@given(seed=st.integers(0, 2**16))
def test_later_deliveries_change_no_earlier_answer(home, seed):
    rng = np.random.default_rng(seed)
    bars = make_bars(14, "ABCD", seed)
    bars = bars[rng.random(len(bars)) < rng.choice([0.3, 0.6, 0.9])]
    at_once, made = fresh(home), fresh(home)
    at_once.ingest(bars)
    known: dict[date, bool] = {}
    for days in np.array_split(np.array(dates_of(bars)), 4):
        made.ingest(on(bars, *days))
        found = answers(made)
        assert {ts: found[ts] for ts in known} == known
        known = found
    assert known == answers(at_once)
    assert [r[:2] for r in daily(made)] == [r[:2] for r in daily(at_once)]


@quick(4)
@given(seed=st.integers(0, 2**16))
def test_a_half_delivered_day_waits_and_is_taken_in_when_enough_came(home, seed):
    """Any day comes one symbol at a time: counts are right, and it ends as at once."""
    rng = np.random.default_rng(seed)
    bars = make_bars(10, "ABCD", seed)
    bars["adj_close"] = bars["close"]
    day = dates_of(bars)[-1]
    made, at_once = fresh(home), fresh(home)
    at_once.ingest(bars)
    made.ingest(bars[bars["ts"] < day])
    for i, name in enumerate(rng.permutation(list("ABCD")).tolist(), 1):
        report = made.ingest(of(on(bars, day), name))
        require_counts_add_up(report)
        if i == 1:
            assert report.n_rejected == {"no_session": 1}
            waiting = made.rows("SELECT symbol, reason, batch_id FROM prices_rejected")
            assert waiting == [(name, "no_session", 2)]
        else:
            assert report.n_new == 1
            assert answers(made)[day.date()]
            assert made.rows("SELECT * FROM prices_rejected") == []
    assert daily(made) == daily(at_once)
    assert answers(made) == answers(at_once)


def test_a_bar_that_waited_keeps_the_dividend_it_came_with(home):
    bars = make_bars(10, "ABCD")
    bars["adj_close"] = bars["close"]
    last, day = dates_of(bars)[-2:]
    is_after = (bars["symbol"] == "A") & (bars["ts"] >= day)
    bars.loc[is_after, "adj_close"] *= 1.05  # a dividend of A on the last day
    at_once, made = fresh(home), fresh(home)
    at_once.ingest(bars)
    made.ingest(bars[bars["ts"] < day])
    made.ingest(of(on(bars, last, day), "A"))  # with an overlap that tells the dividend
    made.ingest(of(on(bars, last, day), "B", "C", "D"))
    require_equal(daily(made), daily(at_once))


def test_a_bar_that_waited_does_not_mix_its_scale_with_that_of_a_later_delivery(home):
    bars = make_bars(10, "ABCD")
    bars["adj_close"] = bars["close"]
    last, day = dates_of(bars)[-2:]
    at_once, made = fresh(home), fresh(home)
    at_once.ingest(bars)
    made.ingest(bars[bars["ts"] < day])
    made.ingest(of(on(bars, last, day), "A"))
    later = bars.assign(adj_close=bars["adj_close"] * 0.5)  # re-based by a constant since
    is_missing = (later["symbol"] == "A") & (later["ts"] == day)
    made.ingest(on(later[~is_missing], last, day))
    require_equal(daily(made), daily(at_once))


def test_the_newest_delivered_values_of_a_waiting_bar_are_taken_in(home):
    bars = make_bars(10, "ABCD")
    day = dates_of(bars)[-1]
    made = fresh(home)
    made.ingest(bars[bars["ts"] < day])
    one = of(on(bars, day), "A")
    for volume in (5e6, 7e6, 5e6):  # corrected, and corrected back
        made.ingest(one.assign(volume=volume))
    made.ingest(of(on(bars, day), "B", "C", "D"))
    found = made.rows("SELECT volume FROM prices_daily WHERE symbol = 'A' AND ts = ?", day.date())
    assert found == [(5e6,)]


def test_of_a_date_that_is_a_session_again_the_newest_values_count(home):
    """A session that history took away and more bars gave back: the newest values count."""
    made = fresh(home)
    bars = make_bars(12, "ABCDEF")
    day = dates_of(bars)[-1]
    made.ingest(of(bars, "A", "B"))
    made.ingest(of(bars[bars["ts"] < day], "C", "D", "E", "F"))  # now two of six are too few
    assert not answers(made)[day.date()]
    corrected = of(on(bars, day), "A").assign(volume=7e6)
    assert made.ingest(corrected).n_rejected == {"no_session": 1}
    made.ingest(of(on(bars, day), "C", "D", "E", "F"))
    assert answers(made)[day.date()]
    found = made.rows("SELECT volume FROM prices_daily WHERE symbol = 'A' AND ts = ?", day.date())
    assert found == [(7e6,)]


def test_a_lone_holiday_bar_never_becomes_a_session(home):
    bars = make_bars(20, "ABC")
    holiday = dates_of(bars)[10]
    bars = bars[(bars["ts"] != holiday) | (bars["symbol"] == "B")]
    made = fresh(home)
    for days in np.array_split(np.array(dates_of(bars)), 3):
        made.ingest(on(bars, *days))
        made.ingest(on(bars, *days))
    made.ingest(bars)
    assert not answers(made)[holiday.date()]
    assert made.rows("SELECT symbol, reason FROM prices_rejected") == [("B", "no_session")]
    assert not made.rows("SELECT * FROM price_changes WHERE ts = ?", holiday.date())


def test_a_missed_day_that_comes_later_is_a_session_and_every_return_is_kept(home):
    bars = make_bars(12, "ABC")
    days = dates_of(bars)
    made, at_once = fresh(home), fresh(home)
    at_once.ingest(bars)
    made.ingest(bars[bars["ts"] != days[6]])
    report = made.ingest(on(bars, *days[5:8]))
    assert (report.n_new, report.n_unchanged, report.n_restated) == (3, 6, 0)
    assert (report.n_relinked, report.first_changed, report.last_changed) == (
        0, days[6].date(), days[6].date(),
    )  # fmt: skip
    require_equal(daily(made), daily(at_once))
    assert answers(made) == answers(at_once)


@pytest.mark.parametrize("shares", [True, False])
def test_a_symbol_may_end_and_come_back_after_400_sessions(home, shares):
    bars = make_bars(430, "ABC")
    days = dates_of(bars)
    gone = (bars["symbol"] == "A") & (bars["ts"] >= days[10]) & (bars["ts"] < days[410])
    bars = bars[~gone]
    made, at_once = fresh(home), fresh(home)
    at_once.ingest(bars)
    made.ingest(on(bars, *days[:200]))
    made.ingest(on(bars, *days[199:410]))
    assert made.rows("SELECT max(ts) FROM prices_daily WHERE symbol = 'A'") == [(days[9].date(),)]
    back = bars if shares else on(bars, *days[405:])
    report = made.ingest(rebased(back, 3))
    assert (report.n_new, report.n_restated) == (60, 0)
    assert all(answers(made).values())
    (one, other) = ([r for r in daily(h) if r[0] != "A"] for h in (made, at_once))
    require_equal(one, other)
    (one, other) = ([r for r in daily(h) if r[0] == "A"] for h in (made, at_once))
    if not shares:  # one close links what shares no session: only that return may differ
        for part in (slice(0, 10), slice(10, None)):
            a, b = (np.array([r[7] for r in rows[part]]) for rows in (one, other))
            np.testing.assert_allclose(a / a[0], b / b[0])
    else:
        require_equal(one, other)


# --- After a seal


def sealed_home(home: Home, bars: pd.DataFrame) -> SmallHome:
    made = fresh(home)
    made.ingest(bars)
    assert all(c.is_sealable for c in seal_until(made.workspace, "2015-06"))
    return made


def test_a_seal_freezes_the_answers_of_its_window(home):
    bars = make_bars(30, "ABC")
    june = [d for d in dates_of(bars) if d.month == 6]
    missed, holiday = june[8], june[12]
    is_left = (bars["ts"] != missed) & ((bars["ts"] != holiday) | (bars["symbol"] == "B"))
    made = sealed_home(home, bars[is_left])
    frozen = {ts: is_one for ts, is_one in answers(made).items() if ts.month == 6}
    report = made.ingest(bars)
    require_counts_add_up(report)
    assert report.n_rejected == {"no_session": 6}
    assert (report.n_new, report.n_restated) == (0, 0)
    after = {ts: is_one for ts, is_one in answers(made).items() if ts.month == 6}
    assert after == {**frozen, missed.date(): False}
    assert report.missed_sessions == [missed.date(), holiday.date()]
    assert made.rows("SELECT ts, kind FROM price_changes WHERE batch_id > 1 ORDER BY ts") == [
        (missed.date(), "missed"), (holiday.date(), "missed"),
    ]  # fmt: skip
    assert made.ingest(bars).batch_id is None


def test_a_late_bar_of_a_sealed_session_is_stored_and_listed(home):
    bars = make_bars(30, "ABC")
    day = dates_of(bars)[5]
    is_late = (bars["ts"] == day) & (bars["symbol"] == "C")
    made = sealed_home(home, bars[~is_late])
    report = made.ingest(bars)
    require_counts_add_up(report)
    assert (report.n_new, report.n_late, report.n_restated) == (1, 1, 0)
    assert report.first_changed == report.last_changed == day.date()
    listed = made.rows("SELECT symbol, ts, change FROM prices_restated")
    assert listed == [("C", day.date(), "late")]


@pytest.mark.parametrize("sealed", [False, True])
def test_parts_of_what_is_known_change_nothing_beside_a_holiday_bar(home, sealed):
    bars = make_bars(30, "ABC")
    holiday = dates_of(bars)[10]
    bars = bars[(bars["ts"] != holiday) | (bars["symbol"] == "B")]
    made = fresh(home)
    made.ingest(bars)
    if sealed:
        seal_until(made.workspace, "2015-06")
    before = everything(made)
    for part in (bars, bars[bars["ts"] != holiday], of(bars, "A"), on(bars, holiday), bars):
        assert made.ingest(part).batch_id is None
    assert everything(made) == before


# --- Nothing is left by what fails


def test_an_ingest_that_fails_half_way_leaves_nothing(home):
    bars = make_bars(12, "ABC")
    days = dates_of(bars)
    made = fresh(home)
    made.ingest(on(bars, *days[:9]))
    made.ingest(of(on(bars, days[9]), "A"))
    # The last table but one that a batch writes has a row already that must be unique.
    clash = "(ts, batch_id, n_bars, is_session, why) VALUES (?, 3, 0, false, 'test')"
    made.change_series(f"INSERT INTO session_versions {clash}", days[11].date())
    before = everything(made)
    piece = pd.concat([on(bars, *days[8:]).assign(volume=9e6), make_bars(3).assign(close=-1.0)])
    with pytest.raises(duckdb.ConstraintException):
        made.ingest(piece)
    assert everything(made) == before
    made.change_series("DELETE FROM session_versions WHERE why = 'test'")
    report = made.ingest(piece)
    require_counts_add_up(report)
    # the bar of days[9] that waited is restated with the three of days[8]
    assert (report.batch_id, report.n_new, report.n_restated) == (3, 8, 4)


def test_files_that_cannot_be_read_store_nothing_and_say_what_to_do(home):
    made = fresh(home)
    made.ingest(make_bars(5))
    before = everything(made)
    folder = made.root / "bad"
    folder.mkdir()
    (folder / "one.csv").write_text("<html>not found</html>")
    (folder / "two.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(SourceError, match="Nothing could be read") as error:
        ingest(made.workspace, [folder], Reading(), TODAY)
    assert "one.csv" in str(error.value)
    assert "two.parquet" in str(error.value)
    assert everything(made) == before


def test_a_first_ingest_that_fails_leaves_the_grid_open(home):
    made = fresh(home)
    (made.root / "bad.csv").write_text("<html>not found</html>")
    with pytest.raises(SourceError):
        ingest(made.workspace, [made.root / "bad.csv"], Reading(), TODAY)
    made.change_settings("2015-05-01", "2015-04-01")
    assert made.ingest(make_bars(5)).n_new == 20


def test_a_bad_file_stops_no_other(home):
    made = fresh(home)
    folder = made.root / "mixed"
    folder.mkdir()
    (folder / "bad.csv").write_text("<html>not found</html>")
    make_bars(5).to_csv(folder / "good.csv", index=False)
    report = ingest(made.workspace, [folder], Reading(), TODAY)
    assert (report.n_read, report.n_new, len(report.problems)) == (20, 20, 1)
    assert len(daily(made)) == 20


@pytest.mark.parametrize("n_around", [0, 1, 3])
def test_a_corrected_bar_changes_the_returns_into_and_out_of_its_session(home, n_around):
    """Delivered alone or first of some: all its prices, not the scale of all bars, were wrong."""
    bars = make_bars(12, "ABC")
    bars["adj_close"] = bars["close"]
    days = dates_of(bars)
    wrong = bars.copy()
    is_wrong = (wrong["symbol"] == "A") & (wrong["ts"] == days[5])
    for name in ("open", "high", "low", "close", "adj_close"):
        wrong.loc[is_wrong, name] *= 1.03
    made, right = fresh(home), fresh(home)
    made.ingest(wrong)
    right.ingest(bars)
    report = made.ingest(of(on(bars, *days[5 : 6 + n_around]), "A"))
    assert (report.n_restated, report.n_unchanged) == (1, n_around)
    require_equal(daily(made), daily(right))
