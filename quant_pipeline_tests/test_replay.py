"""Three months day by day, as they come, against one backfill over the same final knowledge.

Bars come late, a day is missed, prices are restated, a dividend is paid. What differs in the end
is what the replay knew less about, and all of it is listed with its reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import pandas as pd
import pytest

from quant_pipeline.chain.audit import audit, choose_asofs
from quant_pipeline.chain.knowledge import models_that_knew_less, scores_that_knew_less
from quant_pipeline.chain.stale import read_stored, stale_data
from quant_pipeline.chain.verify import verify_since
from quant_pipeline.defs.jobs import close_and_score
from quant_pipeline_tests.homes import SmallHome, new_home, own_environment, sample_market

pytestmark = pytest.mark.long

FIRST, LAST = date(2016, 5, 2), date(2016, 8, 5)
MISSED, MISSED_COMES = date(2016, 5, 17), date(2016, 5, 20)
LATE, LATE_COMES = date(2016, 6, 30), date(2016, 7, 5)  # after June was sealed
LATE_SYMBOLS = ["S001", "S002"]
NEXT_DAY, NEXT_DAY_SYMBOLS = date(2016, 7, 12), ["S006", "S008", "S009"]
WRONG, WRONG_SYMBOL, CORRECTED = date(2016, 6, 14), "S004", date(2016, 7, 14)
DIVIDEND, DIVIDEND_SYMBOL = date(2016, 7, 20), "S011"
PAYS = 0.03
ONE_TASK = {
    "threads = 1\n": "threads = 1\n\n[[tasks]]\ntask_id = 'ret_5d'\nkind = 'regression'\n"
    "horizon = 5\nnormalize = 'rank'\n"
}


def final_market() -> pd.DataFrame:
    """What is known at the end: with the dividend, everything right."""
    bars = sample_market(n_sessions=330)
    bars = bars[bars["ts"] <= pd.Timestamp(LAST)]
    paid = (bars["symbol"] == DIVIDEND_SYMBOL) & (bars["ts"] < pd.Timestamp(DIVIDEND))
    bars.loc[paid, "adj_close"] *= 1.0 - PAYS
    return bars.reset_index(drop=True)


def is_on(bars: pd.DataFrame, symbols: list[str], day: date) -> "pd.Series[bool]":
    return bars["symbol"].isin(symbols) & (bars["ts"] == pd.Timestamp(day))


def as_told(bars: pd.DataFrame, day: date) -> pd.DataFrame:
    """Bars as the vendor has them on a day: adj_close is close on each symbol's newest bar."""
    known = bars[bars["ts"] <= pd.Timestamp(day)].copy()
    newest = known.groupby("symbol").tail(1).set_index("symbol")
    scale = newest["close"] / newest["adj_close"]
    known["adj_close"] *= known["symbol"].map(scale)
    if day < CORRECTED:
        wrong = is_on(known, [WRONG_SYMBOL], WRONG)
        for name in ("open", "high", "low", "close", "adj_close"):
            known.loc[wrong, name] *= 1.04
    return known


def deliveries(bars: pd.DataFrame) -> Iterator[tuple[date, pd.DataFrame | None]]:
    """What comes on each session: three sessions of it, so that dividends are seen."""
    sessions = [ts.date() for ts in sorted(bars["ts"].unique())]
    yield FIRST - timedelta(days=1), as_told(bars, FIRST - timedelta(days=1))
    for day in [s for s in sessions if s >= FIRST]:
        if day == MISSED:
            yield day, None
            continue
        told = as_told(bars, day)
        recent = sessions[max(sessions.index(day) - 2, 0) : sessions.index(day) + 1]
        wanted = {pd.Timestamp(s) for s in recent if s != MISSED or day >= MISSED_COMES}
        if day == MISSED_COMES:
            wanted.add(pd.Timestamp(MISSED))
        if day == LATE_COMES:
            wanted.add(pd.Timestamp(LATE))
        if day == CORRECTED:
            wanted |= {pd.Timestamp(s) for s in sessions if WRONG - timedelta(4) <= s <= WRONG}
        rows = told[told["ts"].isin(wanted)]
        if day < LATE_COMES:
            rows = rows[~is_on(rows, LATE_SYMBOLS, LATE)]
        if day == NEXT_DAY:
            rows = rows[~is_on(rows, NEXT_DAY_SYMBOLS, NEXT_DAY)]
        yield day, rows


@dataclass(frozen=True)
class Walked:
    """The home that lived through it, and the one that got it all at once."""

    day_by_day: SmallHome
    at_once: SmallHome


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walked]:
    folder = tmp_path_factory.mktemp("replay")
    with own_environment(folder):
        made = Walked(
            new_home(folder / "day_by_day", ONE_TASK), new_home(folder / "at_once", ONE_TASK)
        )
        for day, rows in deliveries(final_market()):
            if rows is not None:
                made.day_by_day.ingest(rows)
                made.at_once.ingest(rows)
            if day >= FIRST:
                with made.day_by_day.runner() as runner:
                    ws = runner.workspace
                    start = ws.grid.window(ws.grid.key(ws.last_session()))[0]
                    close_and_score(runner, start, ws.last_session(), ws.tasks())
        made.at_once.backfill(FIRST)
        yield made


def everything(home: SmallHome, table: str) -> list[tuple[Any, ...]]:
    return home.rows(f"SELECT * FROM {table} ORDER BY ALL")


def scores(home: SmallHome) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    rows = home.rows("SELECT symbol, ts, task_id, model_id, score FROM predictions")
    return {row[:3]: row[3:] for row in rows}


@pytest.mark.slow
def test_data_end_the_same_to_the_last_byte(walked: Walked) -> None:
    for table in (
        "prices_daily",
        "features_daily",
        "labels",
        "training_manifest",
        "training_frame",
    ):
        assert repr(everything(walked.day_by_day, table)) == repr(
            everything(walked.at_once, table)
        ), table
    ws = walked.day_by_day.workspace
    assert not any(stale_data(ws, read_stored(ws)).values())


@pytest.mark.slow
def test_what_was_stored_at_once_from_one_last_file_is_the_same_but_for_rounding(
    walked: Walked, home: Any
) -> None:
    once = home("one_file")
    once.ingest(as_told(final_market(), LAST))
    names = "symbol, ts, open, high, low, close, volume, adj_index"
    sql = f"SELECT {names} FROM prices_daily ORDER BY ALL"
    found, expected = (pd.DataFrame(h.rows(sql)) for h in (walked.day_by_day, once))
    pd.testing.assert_frame_equal(found[list(range(7))], expected[list(range(7))])
    # The index may differ by a constant a symbol: its returns are what was told.
    ratio = (found[7] / expected[7]).groupby(found[0]).transform(lambda r: r / r.iloc[0])
    assert (abs(ratio - 1.0) < 1e-9).all()


@pytest.mark.slow
def test_models_differ_only_where_the_replay_knew_less(walked: Walked) -> None:
    ids, others = walked.day_by_day.model_ids(), walked.at_once.model_ids()
    assert ids.keys() == others.keys()
    assert {key for key, _ in ids} == {"2016-04", "2016-05", "2016-06", "2016-07"}
    differ = {key for key in ids if ids[key] != others[key]}
    ws = walked.day_by_day.workspace
    late = models_that_knew_less(ws, read_stored(ws))
    assert {("2016-06", m["task_id"]) for m in late} == differ
    assert {m["changed_ts"] for m in late} == {LATE}  # came first; the correction came after it
    ws = walked.at_once.workspace
    assert models_that_knew_less(ws, read_stored(ws)) == []


@pytest.mark.slow
def test_champions_are_those_of_the_same_windows(walked: Walked) -> None:
    def champions(home: SmallHome) -> dict[tuple[str, str], date]:
        meta = home.workspace.meta
        rows = meta.champions()
        return {(c.task_id, c.partition_key): meta.model(c.model_id).asof for c in rows}

    found = champions(walked.day_by_day)
    assert found == champions(walked.at_once)
    assert {key for _, key in found} == {"2016-05", "2016-06", "2016-07", "2016-08"}


@pytest.mark.slow
def test_scores_differ_only_where_the_replay_knew_less_and_all_of_these_are_listed(
    walked: Walked,
) -> None:
    found, expected = scores(walked.day_by_day), scores(walked.at_once)
    assert found.keys() == expected.keys()
    differ = {key for key in found if found[key] != expected[key]}
    ws = walked.day_by_day.workspace
    listed = scores_that_knew_less(ws, read_stored(ws))
    reasons = {(r["symbol"], r["ts"], r["task_id"]): r["change"] for r in listed}
    assert differ <= reasons.keys()
    assert {reasons[key] for key in differ} == {"session", "late", "restated", "model"}
    assert 0 < len(differ) < len(found) / 2
    # Where nothing is listed the scores are equal, and most of them are not listed.
    assert len(reasons) < 0.7 * len(found)
    ws = walked.at_once.workspace
    assert scores_that_knew_less(ws, read_stored(ws)) == []


@pytest.mark.slow
def test_each_surprise_left_its_trace(walked: Walked) -> None:
    home = walked.day_by_day
    restated = home.rows(
        "SELECT symbol, ts, change FROM prices_restated WHERE change <> 'relinked'"
    )
    late = {(s, ts) for s, ts, change in restated if change == "late"}
    assert late == {(s, LATE) for s in LATE_SYMBOLS}
    assert (WRONG_SYMBOL, WRONG, "restated") in restated
    assert home.rows("SELECT why FROM seals WHERE partition_key = '2016-06'")[0][0].startswith(
        "2016-06-30 has 2"
    )
    assert home.rows("SELECT count(*) FROM sessions WHERE ts = ? AND is_session", MISSED) == [(1,)]
    assert home.rows("SELECT count(*) FROM prices_rejected") == [(0,)]


@pytest.mark.slow
def test_every_lived_score_is_rebuilt_from_what_was_known_then(walked: Walked) -> None:
    ws = walked.day_by_day.workspace
    found = verify_since(ws, FIRST, lambda *_: None)
    assert [(v.kind, v.name, v.reasons) for v in found if v.outcome != "identical"] == []
    lived = walked.day_by_day.rows("SELECT DISTINCT ts, price_batch_id FROM predictions")
    assert sorted(v.session for v in found if v.session) == sorted(ts for ts, _ in lived)
    assert any(v.today for v in found)  # restated since: today's history gives others
    newest = choose_asofs(ws, ws.tasks(), 2)
    assert [p for p in audit(ws, newest, ws.tasks()) if p.failed] == []
