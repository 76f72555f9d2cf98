"""What readers see without the database is what the database says."""

import os
import subprocess
import sys
from dataclasses import replace
from datetime import date

import pandas as pd
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from quant_pipeline.chain import shown
from quant_pipeline.chain.explain import explain_prediction
from quant_pipeline.chain.prices import publish_prices
from quant_pipeline.chain.stale import read_stored, stale_data
from quant_pipeline.errors import NoData, StoreError
from quant_pipeline.stores.locks import held, writer_of
from quant_pipeline.stores.meta import CheckResult, utc_now


@pytest.fixture
def readers(finished):
    """The finished home as a page has it: whoever asks its database gets an error at once."""
    return shown.without_waiting(finished.workspace)


def test_what_is_stored_is_read_alike_with_and_without_the_database(finished, readers):
    expected, found = read_stored(finished.workspace), shown.read_stored_shown(readers)
    for name in ("keys", "sessions", "sealed"):
        assert getattr(found, name) == getattr(expected, name)
    for name in ("changes", "ages", "missed"):
        mine, its = getattr(found, name), getattr(expected, name)
        assert (mine.ts == its.ts).all()
        assert (mine.batch_id == its.batch_id).all()


def test_staleness_is_seen_as_soon_as_prices_change(used, market):
    ws = shown.without_waiting(used.workspace)
    assert not any(stale_data(ws, shown.read_stored_shown(ws)).values())
    bars = market[market["symbol"] == "S003"].tail(40).copy()
    bars["close"] *= 1.05
    bars["high"] *= 1.06
    used.ingest(bars)
    there = used.workspace
    publish_prices(there)
    expected = stale_data(there, read_stored(there))
    assert any(expected.values())
    ws = shown.without_waiting(there)
    assert stale_data(ws, shown.read_stored_shown(ws)) == expected
    told = " ".join(a.what for a in shown.find_attention(ws))
    assert "features_daily of" in told
    assert "prices of" in told


def test_what_is_remembered_is_read_anew_when_something_is_written_or_a_day_begins(used):
    ws = used.workspace
    before = shown.stamp(ws)
    assert shown.stamp(ws) == before
    ws.meta.require_fact("a", "b")
    registered = shown.stamp(ws)
    assert registered != before
    (ws.home.models / "registry.sqlite-shm.another").touch()  # as SQLite does for a reader
    assert shown.stamp(ws) == registered
    next(ws.home.models.glob("*.joblib")).unlink()
    unlinked = shown.stamp(ws)
    assert unlinked != registered
    publish_prices(ws)
    assert shown.stamp(ws) != unlinked
    zones = ("Pacific/Kiritimati", "Etc/GMT+12")  # 26 hours apart: never the same day

    def elsewhere(zone: str) -> object:
        grid = ws.settings.grid.model_copy(update={"timezone": zone})
        return shown.stamp(replace(ws, settings=ws.settings.model_copy(update={"grid": grid})))

    assert elsewhere(zones[0]) != elsewhere(zones[1])


def test_failed_checks_are_told_once_a_check_and_errors_first(used):
    ws = used.workspace

    def result(key: str, severity: str, passed: bool) -> CheckResult:
        return CheckResult(
            asset="predictions", name="scores_are_spread", partition_key=key, severity=severity,
            passed=passed, words=f"words of {key}", numbers={}, run_id="", task_id="",
            checked_at=utc_now(),
        )  # fmt: skip

    ws.meta.add_check_results(
        [
            result("2016-06", "WARN", False), result("2016-07", "WARN", False),
            result("2016-05", "ERROR", False),
        ]
    )  # fmt: skip
    told = [a for a in shown.find_attention(ws) if "scores_are_spread" in a.what]
    assert [a.severity for a in told] == ["ERROR", "WARN"]
    assert "2016-07 (and 1 earlier): words of 2016-07" in told[1].what
    ws.meta.add_check_results([result(f"2016-0{i}", "WARN", True) for i in (5, 6, 7)])
    assert not [a for a in shown.find_attention(ws) if "scores_are_spread" in a.what]


def test_a_symbols_scores_come_with_what_happened(finished, readers):
    task = readers.settings.task("ret_5d")
    rows = shown.read_symbol(readers, task, "S004")
    expected = finished.rows(
        "SELECT p.ts, p.score, l.fwd_return FROM predictions p LEFT JOIN labels l "
        "ON l.symbol = p.symbol AND l.ts = p.ts AND l.task_id = p.task_id AND l.reason IS NULL "
        "WHERE p.symbol = 'S004' AND p.task_id = 'ret_5d' ORDER BY p.ts"
    )
    assert len(rows) == len(expected) > 40
    for row, (ts, score, fwd_return) in zip(rows.to_dict("records"), expected, strict=True):
        assert (row["ts"], row["score"]) == (ts, score)
        assert row["fwd_return"] == pytest.approx(fwd_return, nan_ok=True) or fwd_return is None


def test_a_symbols_scores_can_begin_at_a_session(readers):
    task = readers.settings.task("ret_5d")
    whole = shown.read_symbol(readers, task, "S004")
    first = whole["ts"].iloc[30]
    part = shown.read_symbol(readers, task, "S004", first)
    pd.testing.assert_frame_equal(part, whole.iloc[30:].reset_index(drop=True))


def test_sessions_are_read_once_a_file_and_anew_when_it_changes(used, monkeypatch):
    ws = shown.without_waiting(used.workspace)
    for task in ws.settings.tasks:
        expected = used.rows(
            "SELECT DISTINCT ts FROM predictions WHERE task_id = ? ORDER BY ts DESC", task.task_id
        )
        assert shown.scored_sessions(ws, task) == [ts for (ts,) in expected]
        assert shown.newest_session(ws, task) == expected[0][0]
    asked: list[str] = []
    real = shown.pq.ParquetFile
    monkeypatch.setattr(
        shown.pq, "ParquetFile", lambda f, **how: asked.append(f.name) or real(f, **how)
    )
    assert len(shown.scored_sessions(ws, ws.settings.tasks[0])) == len(expected)
    assert asked == []
    newest = max((ws.home.published / "predictions").glob("*.parquet"))
    rows = pq.read_table(newest, partitioning=None)
    kept = rows.filter(pc.less(rows["ts"], pc.max(rows["ts"])))
    ws.published.write("predictions", newest.stem, kept)
    assert len(shown.scored_sessions(ws, ws.settings.tasks[0])) == len(expected) - 1
    assert asked == [newest.name]
    newest.write_bytes(b"damaged")
    with pytest.raises(StoreError, match="quant reconcile"):
        shown.scored_sessions(ws, ws.settings.tasks[0])


def test_scores_of_some_days_are_read_from_their_partitions(finished, readers, monkeypatch):
    seen: list[int] = []
    real = ds.dataset
    monkeypatch.setattr(
        ds,
        "dataset",
        lambda files, *a, **k: seen.append(len(files)) or real(files, *a, **k),
    )
    (first,), (last,) = finished.rows(
        "SELECT DISTINCT ts FROM predictions WHERE ts IN ('2016-06-15', '2016-07-15') ORDER BY ts"
    )
    rows = shown.read_predictions(readers, "up_5d", first, last)
    ((n,),) = finished.rows(
        "SELECT count(*) FROM predictions WHERE task_id = 'up_5d' AND ts BETWEEN ? AND ?",
        first, last,
    )  # fmt: skip
    assert len(rows) == n > 100
    assert seen == [2]
    assert len(shown.read_predictions(readers, None, date(1990, 1, 1), date(1990, 2, 1))) == 0
    assert len(shown.read_predictions(readers, None, date(2090, 1, 1), None)) == 0


def test_a_score_of_the_newest_session_is_explained_without_the_database(finished, readers):
    task = readers.settings.task("up_5d")
    day = shown.newest_session(readers, task)
    mine = shown.explain_newest(readers, task, "S004")
    assert mine == explain_prediction(finished.workspace, task, "S004", day)
    assert mine["score"] == mine["score_now"]
    with pytest.raises(NoData, match="quant predictions explain"):
        shown.explain_newest(readers, task, "NOBODY")


def test_scores_of_a_model_come_with_their_returns(finished, readers):
    model = readers.meta.models("up_5d")[0]
    rows = shown.scores_with_returns(readers, model)
    ((n,),) = finished.rows(
        "SELECT count(*) FROM predictions p JOIN labels l USING (symbol, ts, task_id) "
        "WHERE l.reason IS NULL AND p.model_id = ?", model.model_id,
    )  # fmt: skip
    assert len(rows) == n > 100
    unknown = replace(readers, published=type(readers.published)(readers.home.root / "nowhere"))
    assert shown.scores_with_returns(unknown, model).empty


def test_the_stamp_changes_when_something_is_written(used):
    ws = used.workspace
    before = shown.stamp(ws)
    assert shown.stamp(ws) == before
    ws.published.write_bytes("coverage", "all", (ws.home.published / "coverage/all.parquet")
                             .read_bytes())  # fmt: skip
    assert shown.stamp(ws) != before


HOLD = """
import sys
from pathlib import Path
from quant_pipeline.stores.locks import held
with held(Path(sys.argv[1]), "backfill", 0):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_who_writes_is_told_without_waiting(tmp_path):
    lock = tmp_path / "quant.duckdb.lock"
    assert writer_of(lock) is None
    with held(lock, "readers", 0, shared=True):
        assert writer_of(lock) is None
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, env=dict(os.environ)) as other:  # fmt: skip
        assert other.stdout is not None
        other.stdout.readline()
        assert f"process {other.pid} (backfill" in (writer_of(lock) or "")
        other.communicate()
    assert writer_of(lock) is None
