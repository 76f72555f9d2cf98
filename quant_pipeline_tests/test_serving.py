"""Who serves which session: frozen, ordered by people, the same whatever came first."""

import json
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest
from scipy.stats import sem

from quant_pipeline.chain.champions import (
    champion_on,
    find_champions,
    hold,
    promote,
    retire,
    rollback,
)
from quant_pipeline.chain.compare import compare_models, flatten
from quant_pipeline.chain.predict import score_challenger, score_partition
from quant_pipeline.chain.retention import prune_files
from quant_pipeline.errors import GateError, ModelFileError, NoData, SettingsError
from quant_pipeline_tests.homes import SmallHome, sample_market

LAST = date(2016, 8, 5)  # the newest session


def next_week(made: SmallHome) -> None:
    """Five more sessions of August are delivered and scored."""
    more = sample_market(n_sessions=315)
    made.ingest(more[more["ts"] > pd.Timestamp(LAST)])
    for task in made.workspace.tasks():
        made.backfill(LAST, date(2016, 8, 31))
        assert score_partition(made.workspace, "2016-08", task).n_different == 0


def served(made: SmallHome, task_id: str) -> dict[date, str]:
    """The model of each scored session; each has one."""
    rows = made.rows(
        "SELECT ts, min(model_id), count(DISTINCT model_id) FROM predictions "
        "WHERE task_id = ? GROUP BY ts ORDER BY ts",
        task_id,
    )
    assert {n for _, _, n in rows} == {1}
    return {ts: model_id for ts, model_id, _ in rows}


def ids(made: SmallHome, task_id: str) -> dict[str, str]:
    return {m.partition_key: m.model_id for m in made.workspace.meta.models(task_id)}


def test_each_partition_is_served_by_the_refit_before_it(finished) -> None:
    for task in finished.workspace.tasks():
        rows = finished.workspace.meta.champions(task.task_id)
        models = ids(finished, task.task_id)
        for row in rows:
            assert row.model_id == models[finished.workspace.grid.shift(row.partition_key, -1)]
            assert row.from_ts == finished.workspace.grid.window(row.partition_key)[0]
        assert "refit of the champion's recipe as of 2016-07-31" in rows[-1].why
        found = champion_on(finished.workspace, task, date(2016, 7, 14))
        assert found is not None
        assert found.model_id == models["2016-06"]
        assert champion_on(finished.workspace, task, date(2015, 7, 14)) is None


def test_promoted_by_hand_it_serves_from_the_next_session_on_and_not_before(used) -> None:
    ws, task = used.workspace, used.workspace.settings.task("up_5d")
    models, before = ids(used, "up_5d"), served(used, "up_5d")
    champion = promote(ws, models["2016-05"][:12], "less turnover")
    assert champion.from_ts == LAST + timedelta(days=1)
    assert served(used, "up_5d") == before
    next_week(used)
    after = served(used, "up_5d")
    assert {ts: m for ts, m in after.items() if ts <= LAST} == before
    assert {m for ts, m in after.items() if ts > LAST} == {models["2016-05"]}
    services = find_champions(used.workspace, "2016-08", task).services
    assert [s.model_id for s in services] == [models["2016-07"], models["2016-05"]]
    assert services[1].why == "promoted by hand: less turnover"
    on = champion_on(used.workspace, task, LAST + timedelta(days=3))
    assert on is not None
    assert on.model_id == models["2016-05"]
    (order,) = used.workspace.meta.orders("up_5d")
    assert (order.action, order.reason) == ("promote", "less turnover")
    assert served(used, "ret_5d").keys() == after.keys()  # the other task goes on as before


def test_rolled_back_the_champion_before_serves_again(used) -> None:
    models = ids(used, "ret_5d")
    ws = used.workspace
    champion = rollback(ws, ws.settings.task("ret_5d"), "odd scores")
    assert champion.model_id == models["2016-06"]
    next_week(used)
    later = {m for ts, m in served(used, "ret_5d").items() if ts > LAST}
    assert later == {models["2016-06"]}


@pytest.mark.long
def test_retired_it_never_serves_again_and_another_takes_its_place(used) -> None:
    models = ids(used, "up_5d")
    champion = retire(used.workspace, models["2016-07"], "learned from wrong splits")
    assert champion is not None
    assert champion.model_id == models["2016-06"]
    assert used.workspace.meta.model(models["2016-07"]).status == "retired"
    with pytest.raises(GateError, match="is retired, so it cannot serve"):
        promote(used.workspace, models["2016-07"], "again")
    with pytest.raises(GateError, match="retired already"):
        retire(used.workspace, models["2016-07"], "again")
    next_week(used)
    assert {m for ts, m in served(used, "up_5d").items() if ts > LAST} == {models["2016-06"]}
    assert retire(used.workspace, models["2016-04"], "old") is None  # it does not serve


def test_an_order_changes_no_decision_of_a_partition_before_it(used) -> None:
    """Whether June is backfilled before or after its model is retired or pruned."""
    task = used.workspace.settings.task("up_5d")
    models = ids(used, "up_5d")
    with used.workspace.meta.writing() as session:
        for champion in used.workspace.meta.champions("up_5d"):
            session.delete(session.merge(champion))
    retire(used.workspace, models["2016-05"], "learned from wrong splits")
    prune_files(used.workspace, [task], 1)
    status = {m.partition_key: m.status for m in used.workspace.meta.models("up_5d")}
    assert (status["2016-05"], status["2016-06"]) == ("retired", "pruned")
    for key, before in (("2016-06", "2016-05"), ("2016-07", "2016-06")):
        assert find_champions(used.workspace, key, task).newest == models[before]


def test_a_retired_model_stays_so_when_its_file_is_pruned_and_made_again(used) -> None:
    models = ids(used, "up_5d")
    retire(used.workspace, models["2016-05"], "learned from wrong splits")
    with used.workspace.meta.writing() as session:
        for champion in used.workspace.meta.champions("up_5d")[:-1]:
            session.delete(session.merge(champion))
    pruned = prune_files(used.workspace, [used.workspace.settings.task("up_5d")], 1)
    assert models["2016-05"] in pruned
    used.run(["walkforward_folds", "lgbm_model"], "2016-05")
    assert used.workspace.files.path(models["2016-05"]).exists()
    status = {m.partition_key: m.status for m in used.workspace.meta.models("up_5d")}
    assert (status["2016-05"], status["2016-06"]) == ("retired", "pruned")


def test_the_last_model_cannot_be_retired(used) -> None:
    models = list(ids(used, "up_5d").values())
    for model_id in models[:-1]:
        retire(used.workspace, model_id, "tidying up")
    with pytest.raises(GateError, match="is the only one of up_5d that can serve"):
        retire(used.workspace, models[-1], "tidying up")
    assert used.workspace.meta.model(models[-1]).status == "ready"


def test_held_the_champion_stays_whatever_is_trained_until_it_is_released(used) -> None:
    """The window of August is closed by sessions of September."""
    ws, task = used.workspace, used.workspace.settings.task("up_5d")
    assert hold(ws, task, "audit") == LAST + timedelta(days=1)
    with pytest.raises(SettingsError, match="held since 2016-08-06 already"):
        hold(ws, task, "audit")
    more = sample_market(n_sessions=340)
    used.ingest(more[more["ts"] > pd.Timestamp(LAST)])
    used.backfill(LAST, date(2016, 9, 30))
    models = ids(used, "up_5d")
    assert "2016-08" in models  # trained all the same
    september = {m for ts, m in served(used, "up_5d").items() if ts.month == 9}
    assert september == {models["2016-07"]}
    challenger = used.rows(
        "SELECT DISTINCT model_id FROM predictions_shadow WHERE task_id = 'up_5d' AND ts > ?", LAST
    )
    assert challenger == [(models["2016-08"],)]  # scored in the shadow
    assert {m for ts, m in served(used, "ret_5d").items() if ts.month == 9} == {
        ids(used, "ret_5d")["2016-08"]
    }
    with pytest.raises(SettingsError, match="not held"):
        hold(used.workspace, used.workspace.settings.task("ret_5d"), "x", release=True)
    hold(used.workspace, task, "audit done", release=True)
    assert find_champions(used.workspace, "2016-09", task).newest == models["2016-07"]  # frozen


def test_an_order_without_a_reason_is_refused(used) -> None:
    was = used.state()
    for action in (
        lambda: promote(used.workspace, ids(used, "up_5d")["2016-05"], " "),
        lambda: rollback(used.workspace, used.workspace.settings.task("up_5d"), ""),
        lambda: hold(used.workspace, used.workspace.settings.task("up_5d"), ""),
    ):
        with pytest.raises(SettingsError, match="Say why with --reason"):
            action()
    assert used.state() == was
    assert used.workspace.meta.orders("up_5d") == []


def test_nobody_before_means_no_rollback(used) -> None:
    with used.workspace.meta.writing() as session:
        for champion in used.workspace.meta.champions("up_5d")[:-1]:
            session.delete(session.merge(champion))
    with pytest.raises(NoData, match="no earlier champion"):
        rollback(used.workspace, used.workspace.settings.task("up_5d"), "x")


@pytest.mark.long
def test_backfills_in_any_order_serve_the_same_scores(home, finished, market) -> None:
    made = home("later_first")
    made.ingest(market)
    for first, last in ((date(2016, 7, 1), date(2016, 8, 31)), (date(2016, 5, 1), LAST)):
        made.backfill(first, last)
    assert made.rows(
        "SELECT ts, symbol, task_id, model_id, score FROM predictions_champion ORDER BY ALL"
    ) == finished.rows(
        "SELECT ts, symbol, task_id, model_id, score FROM predictions_champion ORDER BY ALL"
    )
    twice = made.rows(
        "SELECT symbol, ts, task_id FROM predictions_champion GROUP BY ALL HAVING count(*) > 1"
    )
    assert twice == []


def test_a_challenger_whose_file_is_lost_costs_the_champion_nothing(used) -> None:
    used.change_settings("num_leaves = 7", "num_leaves = 5")
    used.run(["walkforward_folds", "lgbm_model"], "2016-07")
    before = served(used, "up_5d")
    *_, challenger = used.workspace.meta.models("up_5d")
    used.workspace.files.path(challenger.model_id).unlink()
    with used.runner(recorded=True) as runner:
        runner.materialize(["predictions"], "2016-08", "2016-08")
        run = runner.instance.get_run_records(limit=1)[0].dagster_run
        logged = [e.user_message for e in runner.instance.all_logs(run.run_id)]
    assert served(used, "up_5d") == before
    assert any("No shadow scores of up_5d in 2016-08: models/" in line for line in logged)


def test_the_model_that_serves_is_no_challenger(finished) -> None:
    for task in finished.workspace.tasks():
        assert score_challenger(finished.workspace, "2016-08", task) is None


# --- two models side by side


def test_models_compared_show_only_what_differs(used) -> None:
    used.change_settings("num_leaves = 7", "num_leaves = 5")
    used.run(["walkforward_folds", "lgbm_model"], "2016-07")
    *_, old, new = used.workspace.meta.models("up_5d")
    assert old.asof == new.asof
    found = compare_models(old, new)
    assert found["settings"] == [{"key": "train.num_leaves", "a": 7, "b": 5}]
    assert found["features"] == []
    assert len(found["folds"]) == 2
    for fold, mine, other in zip(found["folds"], old.fold_metrics, new.fold_metrics, strict=True):
        assert (fold["rank_ic_a"], fold["rank_ic_b"]) == (mine["rank_ic"], other["rank_ic"])
    rank_ic = found["sessions"][0]
    a, b = (np.array(m.test_series["rank_ic"], float) for m in (old, new))
    assert rank_ic["n"] == 60
    assert rank_ic["mean"] == pytest.approx((a - b).mean())
    for row in found["differences"]:
        each = [f[f"{row['metric']}_a"] - f[f"{row['metric']}_b"] for f in found["folds"]]
        assert row["n"] == len(each)
        assert row["mean"] == pytest.approx(sum(each) / len(each))
        assert row["se"] == pytest.approx(sem(each))
    assert {row["metric"] for row in found["differences"]} >= {"rank_ic", "rounds"}
    assert json.dumps(compare_models(old, old), default=str)
    assert compare_models(old, old)["settings"] == []
    assert flatten(old.settings)["train.num_leaves"] == 7


# --- files


def test_pruning_keeps_every_champion_and_the_newest(used) -> None:
    ws = used.workspace
    served_ids = {c.model_id for c in ws.meta.champions()}
    models = [m.model_id for m in ws.meta.models()]
    extra = sorted(set(models) - served_ids)
    used.change_settings("num_leaves = 7", "num_leaves = 5")
    used.run(["walkforward_folds", "lgbm_model"], "2016-06")  # two models that never serve
    new = {m.model_id for m in used.workspace.meta.models()} - set(models)
    assert len(new) == 2
    ws = used.workspace
    would = prune_files(ws, ws.tasks(), 1, dry_run=True)
    assert set(would) == new | set(extra)
    assert all(ws.files.path(m).exists() for m in models)
    assert prune_files(ws, ws.tasks(), 1) == would
    for model in ws.meta.models():
        assert ws.files.path(model.model_id).exists() == (model.model_id not in would)
        assert (model.status == "pruned") == (model.model_id in would)
    with pytest.raises(GateError, match="is pruned, so it cannot serve"):
        promote(ws, would[0], "again")
    with pytest.raises(ModelFileError, match="is missing"):
        ws.files.read(would[0])
    assert prune_files(ws, ws.tasks(), 1) == []
