"""What stored scores were worth: unlike ones are never pooled, and the numbers are plain."""

import json
from datetime import date

import numpy as np
import pytest
from scipy.stats import spearmanr

from quant_pipeline.chain.judge import judge_predictions
from quant_pipeline.errors import NoData
from quant_pipeline.settings import Task
from quant_pipeline_tests.homes import SmallHome


def judged(made: SmallHome, task_id: str = "ret_5d", **window: date) -> list[dict]:
    ws = made.workspace
    return judge_predictions(ws, ws.settings.task(task_id), **window)


def test_live_and_backfilled_scores_and_settings_chosen_later_are_judged_apart(used) -> None:
    used.change_series("UPDATE predictions SET origin = 'live' WHERE ts >= '2016-07-20'")
    with used.workspace.meta.writing() as session:
        for model in used.workspace.meta.models():
            model.chosen_asof = date(2016, 6, 15)
            session.merge(model)
    for task_id in ("up_5d", "ret_5d"):
        groups = judged(used, task_id)
        found = [
            (g["origin"], g["settings_known_before"], g["first_ts"], g["last_ts"]) for g in groups
        ]
        assert [row[:2] for row in found] == [
            ("live", True),
            ("backfill", True),
            ("backfill", False),
        ]
        assert found[0][2] == date(2016, 7, 20)
        assert found[1][2:] == (date(2016, 6, 16), date(2016, 7, 19))
        assert found[2][3] == date(2016, 6, 15)
        known = used.rows(
            "SELECT count(*) FROM predictions WHERE task_id = ? AND ts <= ?",
            task_id, groups[0]["last_ts"],
        )  # fmt: skip
        assert sum(g["n_scores"] for g in groups) == known[0][0]
        json.dumps(groups, default=str, allow_nan=False)


def test_only_sessions_whose_labels_are_known_are_judged(finished) -> None:
    sessions = [
        ts for (ts,) in finished.rows("SELECT ts FROM sessions WHERE is_session ORDER BY ts")
    ]
    (group,) = judged(finished)
    assert group["last_ts"] == sessions[-1 - 6]
    with pytest.raises(NoData, match="No score of ret_5d has a known label"):
        judged(finished, first=sessions[-6])


def test_the_numbers_are_those_of_scipy_session_by_session(finished) -> None:
    (group,) = judged(finished)
    rows = finished.rows(
        "SELECT ts, score, fwd_return FROM predictions JOIN labels USING (symbol, ts, task_id) "
        "WHERE reason IS NULL AND task_id = 'ret_5d' ORDER BY ts"
    )
    by_day: dict[date, list[tuple[float, float]]] = {}
    for ts, score, fwd_return in rows:
        by_day.setdefault(ts, []).append((score, fwd_return))
    expected = [
        spearmanr(*zip(*pairs, strict=True)).statistic
        for pairs in by_day.values() if len(pairs) >= 20
    ]  # fmt: skip
    assert group["metrics"]["rank_ic"] == pytest.approx(np.mean(expected))
    assert group["metrics"]["n_ic_sessions"] == len(expected)
    assert group["decay"][0]["lag"] == 0
    assert group["decay"][0]["rank_ic"] == pytest.approx(np.mean(expected))
    assert len(group["quantiles"]) == 5
    net, gross = group["portfolio"]["net"], group["portfolio"]["gross"]
    assert net < gross


def test_a_classification_has_its_calibration_and_base_rates(finished) -> None:
    (group,) = judged(finished, "up_5d")
    bins = group["calibration"]
    assert sum(b["n"] for b in bins) == group["n_scores"] - group["n_without_label"]
    share = sum(b["n"] * b["share_of_ones"] for b in bins) / sum(b["n"] for b in bins)
    assert share == pytest.approx(group["metrics"]["base_rate"])
    assert group["metrics"]["accuracy_base"] >= 0.5
    assert "calibration" not in judged(finished)[0]


def test_trivial_scores_stand_beside_and_are_judged_on_the_same_rows(finished) -> None:
    (group,) = judged(finished)
    found = {row["score"]: row for row in group["baselines"]}
    assert list(found) == ["one-week reversal", "12-1 momentum", "low volatility"]
    closes: dict[str, dict[date, float]] = {}
    for symbol, ts, close in finished.rows("SELECT symbol, ts, adj_index FROM prices_daily"):
        closes.setdefault(symbol, {})[ts] = close
    sessions = [
        ts for (ts,) in finished.rows("SELECT ts FROM sessions WHERE is_session ORDER BY 1")
    ]
    by_day: dict[date, list[tuple[float, float, float]]] = {}
    for symbol, ts, fwd_return, score in finished.rows(
        "SELECT symbol, ts, fwd_return, score FROM predictions "
        "JOIN labels USING (symbol, ts, task_id) WHERE reason IS NULL AND task_id = 'ret_5d'"
    ):
        before = closes[symbol].get(sessions[sessions.index(ts) - 5])
        if before is not None:
            by_day.setdefault(ts, []).append((before / closes[symbol][ts], fwd_return, score))
    columns = [list(zip(*rows, strict=True)) for rows in by_day.values()]
    expected = [spearmanr(reversal, fwd_return).statistic for reversal, fwd_return, _ in columns]
    there = [spearmanr(score, fwd_return).statistic for _, fwd_return, score in columns]
    assert found["one-week reversal"]["sessions"] == len(expected)
    assert found["one-week reversal"]["rank_ic"] == pytest.approx(np.mean(expected), abs=1e-4)
    # The score itself, on the rows that have a reversal.
    assert found["one-week reversal"]["score_rank_ic"] == pytest.approx(np.mean(there), abs=1e-6)


def test_models_of_permuted_labels_are_judged_if_asked_for(finished) -> None:
    told: list[str] = []
    ws = finished.workspace
    (group,) = judge_predictions(
        ws, ws.settings.task("ret_5d"), permuted_with=lambda what, *_: told.append(what)
    )
    permuted = group["baselines"][-1]
    assert permuted["score"] == "permuted labels"
    assert permuted["sessions"] == group["metrics"]["n_ic_sessions"]
    assert told == ["permuted labels as of 2016-04-30"]
    assert abs(permuted["rank_ic"]) < 4 * permuted["rank_ic_se"]
    assert permuted["rank_ic"] < group["metrics"]["rank_ic"]


def test_as_ofs_without_folds_have_no_permuted_model_and_end_nothing(used) -> None:
    used.change_series("DELETE FROM walkforward_folds")
    ws = used.workspace
    (group,) = judge_predictions(ws, ws.settings.task("ret_5d"), permuted_with=lambda *_: None)
    assert "permuted labels" not in [row["score"] for row in group["baselines"]]


def test_shadow_scores_of_a_model_are_judged_beside_those_that_were_served(used) -> None:
    used.change_series("DELETE FROM predictions_shadow")
    used.change_series(
        "INSERT INTO predictions_shadow SELECT symbol, ts, 'f' || model_id[2:], task_id, -score, "
        "generated_at, \"asof\", origin, price_batch_id FROM predictions WHERE task_id = 'ret_5d'"
    )
    served = used.workspace.meta.models("ret_5d")[0]
    like = {**served.model_dump(), "model_id": "f" + served.model_id[1:], "seq": 99}
    with used.workspace.meta.writing() as session:
        session.merge(type(served)(**like))
    mine = "f" + served.model_id[1:]
    ws = used.workspace
    (group,) = judge_predictions(ws, ws.settings.task("ret_5d"), model_id=mine)
    (beside,) = [r for r in group["baselines"] if r["score"] == "scores that were served"]
    assert beside["rank_ic"] == pytest.approx(-group["metrics"]["rank_ic"])
    assert beside["score_rank_ic"] == pytest.approx(group["metrics"]["rank_ic"])
    (alone,) = judge_predictions(ws, ws.settings.task("ret_5d"), model_id=served.model_id)
    assert alone["n_scores"] == group["n_scores"]
    with pytest.raises(NoData, match="No score of model 000000000000"):
        judge_predictions(ws, ws.settings.task("ret_5d"), model_id="0" * 64)


def test_a_session_without_scores_of_a_group_is_a_gap_and_not_left_out(used) -> None:
    """Every other session live: what counts sessions counts those of the market."""
    sessions = [ts for (ts,) in used.rows("SELECT DISTINCT ts FROM predictions ORDER BY ts")]
    live = sessions[::2]
    used.change_series(
        "UPDATE predictions SET origin = 'live' WHERE ts IN (SELECT unnest(?))", live
    )
    groups = {g["origin"]: g for g in judged(used)}
    assert (
        groups["live"]["sessions"]["turnover"]["mean"] is None
    )  # no session has one right before it
    assert groups["live"]["sessions"]["rank_autocorrelation"]["mean"] is None
    every, known = (
        used.workspace,
        used.rows(
            "SELECT ts, score, fwd_return FROM predictions JOIN labels USING (symbol, ts, task_id) "
            "WHERE reason IS NULL AND task_id = 'ret_5d' AND origin = 'live' ORDER BY ts"
        ),
    )
    assert every.settings.task("ret_5d").horizon == 5
    by_day: dict[date, list[tuple[float, float]]] = {}
    for ts, score, fwd_return in known:
        by_day.setdefault(ts, []).append((score, fwd_return))
    expected = [spearmanr(*zip(*pairs, strict=True)).statistic for pairs in by_day.values()]
    assert groups["live"]["metrics"]["rank_ic"] == pytest.approx(np.mean(expected))
    # A tranche of five sessions earlier lies on a session of the other group.
    assert groups["live"]["portfolio"]["turnover"] is None


def test_late_rows_of_a_session_neither_relabel_it_nor_change_what_a_hit_is(many, tmp_path) -> None:
    from quant_pipeline.chain.outcomes import write_outcomes
    from quant_pipeline_tests.homes import own_environment

    with own_environment(tmp_path):
        made = many.copy(tmp_path / "late")
        made.change_series("UPDATE predictions SET origin = 'live'")
        before = judged(made, "above")[0]
        n_before = made.rows(
            "SELECT ts, n FROM prediction_outcomes WHERE task_id = 'above' ORDER BY ts"
        )
        made.change_series("UPDATE predictions SET origin = 'backfill' WHERE symbol = 'S023'")
        ws = made.workspace
        write_outcomes(ws, ws.grid.keys("2016-07", "2016-08"), ws.settings.task("above"))
        rows = made.rows(
            "SELECT ts, origin, n, rank_ic FROM prediction_outcomes WHERE task_id = 'above' "
            "ORDER BY ts, origin"
        )
        groups = {g["origin"]: g for g in judged(made, "above")}
    assert {origin for _, origin, _, _ in rows} == {"live", "backfill"}
    backfilled = {ts: (n, ic) for ts, origin, n, ic in rows if origin == "backfill"}
    assert set(backfilled.values()) == {(1, None)}
    n_whole = dict(n_before)
    for ts, origin, n, ic in rows:
        if origin == "live":
            assert n == n_whole[ts] - (ts in backfilled)
            assert ic is not None
    assert (
        groups["backfill"]["sessions"]["turnover"]["mean"] is None
    )  # one name is no session to judge
    assert groups["backfill"]["sessions"]["capacity_top_quantile"]["mean"] is None
    assert groups["backfill"]["n_scores"] == before["n_sessions"]
    share = [g["metrics"]["base_rate"] for g in (before, groups["live"])]
    assert share[0] == pytest.approx(0.5, abs=0.03)
    assert share[1] == pytest.approx(share[0], abs=0.03)


NEW_TASKS = """
[[tasks]]
task_id = "above"
kind = "classification"
horizon = 5
above = "median"

[[tasks]]
task_id = "order"
kind = "ranking"
horizon = 5
weights = "recency"
half_life = 60

[[tasks]]
task_id = "slow"
kind = "regression"
horizon = 10
normalize = "demean"
winsorize = 0.05
weights = "uniqueness"

[universe]"""


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> SmallHome:
    """A home with tasks of every kind, two of them on the same rows."""
    from quant_pipeline_tests.homes import new_home, own_environment, sample_market

    folder = tmp_path_factory.mktemp("many")
    with own_environment(folder):
        made = new_home(folder / "home", {"\n[universe]": NEW_TASKS})
        made.ingest(sample_market())
        made.backfill(date(2016, 7, 1))
    return made


def test_tasks_of_every_kind_go_all_the_way(many) -> None:
    assert {m.task_id for m in many.workspace.meta.models()} == {"above", "order", "slow"}
    for task_id in ("above", "order", "slow"):
        (group,) = judged(many, task_id)
        metrics = group["metrics"]
        assert metrics["rank_ic"] > 2 * metrics["rank_ic_se"] > 0
        assert metrics["ndcg_at_k"] > metrics["ndcg_at_k_base"]
        json.dumps(group, default=str, allow_nan=False)
    assert judged(many, "above")[0]["metrics"]["base_rate"] == pytest.approx(0.5, abs=0.05)
    assert "mse" not in judged(many, "order")[0]["metrics"]


def test_outcomes_of_a_median_task_judge_by_the_median(many) -> None:
    rows = many.rows("SELECT base_rate, hit_rate FROM prediction_outcomes WHERE task_id = 'above'")
    base = [rate for rate, _ in rows if rate is not None]
    assert len(base) > 10
    assert all(0.4 <= rate <= 0.5 for rate in base)
    assert np.mean([hit for _, hit in rows if hit is not None]) > 0.5


def test_a_task_alone_makes_the_files_that_it_makes_with_others(many, tmp_path) -> None:
    from quant_pipeline.chain.learn import train_tasks, write_folds
    from quant_pipeline_tests.homes import own_environment

    with own_environment(tmp_path):
        made = many.copy(tmp_path / "alone")
        with made.workspace.meta.writing() as session:
            for champion in made.workspace.meta.champions():
                session.delete(session.merge(champion))
        together = {m.task_id: m.model_id for m in made.workspace.meta.models()
                    if m.partition_key == "2016-07"}  # fmt: skip
        with made.workspace.meta.writing() as session:
            for model in made.workspace.meta.models():
                session.delete(session.merge(model))
        for task in reversed(made.workspace.tasks()):
            write_folds(made.workspace, "2016-07", task)
            trained = train_tasks(made.workspace, "2016-07", [task])
            assert trained[task.task_id].model_id == together[task.task_id]


def test_the_sessions_of_a_task_differ_with_its_horizon() -> None:
    tasks = [Task(task_id=f"t{h}", kind="regression", horizon=h) for h in (5, 10)]
    assert tasks[0].rows != tasks[1].rows
