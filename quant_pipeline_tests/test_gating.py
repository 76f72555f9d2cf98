"""Gates and changed settings: what is missing, stale or different is refused, never mixed."""

from datetime import date

import dagster as dg
import pandas as pd
import pytest
from sqlmodel import select

from quant_pipeline.errors import GateError, ModelFileError, SettingsError, StoreError
from quant_pipeline.market.features import FEATURE_SETS
from quant_pipeline.stores.meta import Champion, Model
from quant_pipeline_tests.homes import DATA, LEARNING, SCORES, WALK_FROM, sample_market
from quant_pipeline_tests.test_cli import succeed

ASOF = date(2016, 6, 30)


# --- Gates


def test_the_open_window_trains_nothing_and_records_no_materialization(used):
    was = used.state()
    with used.runner(recorded=True) as runner:
        for key in ("2016-08", "2016-09"):  # the one with sessions, and one after the last
            for assets in (["prices_daily", *DATA], LEARNING, SCORES):
                runner.materialize(assets, key, key)
        for asset in LEARNING:
            assert runner.instance.get_materialized_partitions(dg.AssetKey(asset)) == {
                "2016-04", "2016-05", "2016-06", "2016-07"
            }  # fmt: skip
        assert all(run.is_success for run in runner.instance.get_runs(limit=6))
    is_now = used.state()
    n_rows = "SELECT partition_key, sum(n_rows) FROM training_manifest GROUP BY ALL ORDER BY ALL"
    assert used.rows(n_rows)[-1] == ("2016-09", 0)
    del was["training_manifest"], is_now["training_manifest"]
    assert is_now == was


def test_without_a_champion_there_are_no_scores_and_the_reason_is_told(used):
    was = used.state()
    with used.runner(recorded=True) as runner:
        runner.materialize(["predictions"], "2015-09", "2015-09")
        run = runner.instance.get_run_records(limit=1)[0].dagster_run
        (event,) = [
            e.dagster_event.step_materialization_data.materialization
            for e in runner.instance.all_logs(run.run_id)
            if e.dagster_event and e.dagster_event.is_step_materialization
        ]
    assert run.is_success
    assert event.metadata["up_5d/rows"].value == 0
    assert "before 2015-09-01" in event.metadata["up_5d/champion_because"].value
    assert used.state() == was


def test_training_refuses_a_missing_manifest_before_anything_is_written(used):
    used.change_series("DELETE FROM training_manifest WHERE partition_key = '2016-02'")
    was = used.state()
    for asset in LEARNING:
        with pytest.raises(GateError, match=r"lacks 1 .* 2016-02.*quant backfill --from"):
            used.run([asset], "2016-07")
        assert used.state() == was


def test_training_refuses_restated_history_before_anything_is_written(used, market):
    restated = market[market["ts"] == pd.Timestamp(2016, 2, 10)].copy()
    restated["low"] *= 0.9
    assert used.ingest(restated).n_restated == len(restated)
    was = used.state()
    stale = r"features_daily is stale in 5 of 12 .* first 2016-02: prices of 2016-02-10 changed in "
    with pytest.raises(GateError, match=stale + r"batch 2\. Run `quant backfill --from"):
        used.run(["lgbm_model"], "2016-07")
    used.run(["features_daily", "labels"], "2016-02", "2016-08")
    was |= {table: used.state()[table] for table in ("features_daily", "labels")}
    with pytest.raises(GateError, match=r"training_frame is stale in 5 of 12"):
        used.run(["lgbm_model"], "2016-07")
    assert used.state() == was


def test_training_refuses_rows_that_are_not_those_of_the_manifest(used):
    """Whoever changed them, and however: the fingerprint tells."""
    change = "UPDATE features_daily SET KMID = KMID + 0.001 WHERE ts = '2016-02-10'"
    used.change_series(change)
    was = used.state()
    with pytest.raises(GateError, match=r"changed .* 2016-02.*quant backfill --from"):
        used.run(["lgbm_model"], "2016-07")
    assert used.state() == was


def test_training_refuses_folds_of_other_settings(used):
    used.change_settings("n_folds = 2", "n_folds = 3")
    was = used.state()
    with pytest.raises(
        GateError, match=r"walkforward_folds has 2 folds .*quant train --asof 2016-07"
    ):
        used.run(["lgbm_model"], "2016-07")
    assert used.state() == was
    used.run(LEARNING, "2016-07")
    assert len(used.workspace.meta.models()[-1].fold_metrics) == 3


def test_scoring_refuses_a_missing_model_before_anything_is_written(used):
    with used.workspace.meta.writing() as session:
        for champion in session.exec(select(Champion).where(Champion.partition_key == "2016-07")):
            session.delete(champion)
        session.flush()
        for model in session.exec(select(Model).where(Model.partition_key == "2016-06")):
            session.delete(model)
    used.change_series("DELETE FROM predictions WHERE ts BETWEEN '2016-07-01' AND '2016-07-31'")
    was = used.state()
    with pytest.raises(GateError, match=r"as of 2016-06-30.*quant train --asof 2016-06-30"):
        used.run(["predictions"], "2016-07")
    assert used.state() == was


def test_a_changed_or_lost_model_file_is_not_opened(used):
    champion = used.model_ids()["2016-06", "up_5d"][0]
    file = used.root / "models" / f"{champion}.joblib"
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + b"x")
    with pytest.raises(ModelFileError, match="changed after training"):
        used.run(["predictions"], "2016-07")
    file.unlink()
    with pytest.raises(ModelFileError, match="is missing"):
        used.run(["predictions"], "2016-07")
    used.run(["lgbm_model"], "2016-06")
    assert file.read_bytes() == raw


def test_a_task_that_fails_does_not_cost_the_others_their_model(used):
    """A horizon that is too long for the history is refused, with its reason; the rest goes on."""
    longer = '\n[[tasks]]\ntask_id = "up_{0}d"\nkind = "classification"\nhorizon = {0}\n'
    used.change_settings("threads = 1\n", "threads = 1\n" + longer.format(5) + longer.format(200))
    used.backfill(date(2016, 8, 1))
    trained = succeed(used.root, "train", "--asof", "2016-07-31")
    assert "Not trained: Folds need 542 sessions" in trained.err
    assert "up_5d" in trained.out
    assert len(used.model_ids()["2016-07", "up_5d"]) == 1
    assert used.scores()[-1][0] == date(2016, 8, 5)
    with used.runner(recorded=True) as runner:
        runner.materialize(LEARNING, "2016-07", "2016-07")
        for asset in LEARNING:
            event = runner.instance.get_latest_materialization_event(dg.AssetKey(asset))
            shown = event.asset_materialization.metadata
            assert shown["up_200d/refused"].value.startswith("Folds need 542 sessions")
            assert "up_5d/refused" not in shown
    assert shown["up_5d/rank_ic"].value > 0
    assert shown["up_5d/folds"].value.startswith("| fold | test_start | test_end |")


# --- Changed settings


def test_a_changed_feature_set_is_refused_or_rebuilt_and_never_mixed(used):
    used.change_settings("exclude = []", 'exclude = ["KMID"]')
    was = used.state()
    for asset in LEARNING:
        with pytest.raises(GateError, match="other features or another universe"):
            used.run([asset], "2016-07")
    with pytest.raises(StoreError, match="stored with other columns"):
        used.run(["features_daily"], "2016-07")
    assert used.state() == was
    used.run(DATA, "2015-06", "2016-08")
    used.run(LEARNING, "2016-07")
    names = [name for name in FEATURE_SETS["alpha158"] if name != "KMID"]
    newest = used.workspace.meta.models()[-1]
    assert (newest.partition_key, newest.features) == ("2016-07", names)
    assert len(used.model_ids()["2016-07", "up_5d"]) == 2


@pytest.mark.long
def test_a_changed_universe_is_refused_or_rebuilt_and_never_mixed(used):
    used.change_settings("[universe]\nmin_sessions = 20", "[universe]\nmin_sessions = 130")
    was = used.state()
    for asset in LEARNING:
        with pytest.raises(GateError, match="other features or another universe"):
            used.run([asset], "2016-07")
    assert used.state() == was
    done = used.backfill(date(2016, 8, 1))
    assert len(done.data["features_daily"]) == 15
    assert used.workspace.meta.models()[-1].n_rows < was["Model"][-1]["n_rows"]


def test_a_changed_task_does_not_train_on_its_old_labels(used):
    task = '\n[[tasks]]\ntask_id = "up_5d"\nkind = "classification"\nhorizon = {}\n'
    used.change_settings("threads = 1\n", "threads = 1\n" + task.format(3))
    was = used.state()
    with pytest.raises(GateError):
        used.run(["lgbm_model"], "2016-07")
    assert used.state() == was
    used.backfill(date(2016, 8, 1))
    (model,) = [m for m in used.workspace.meta.models("up_5d")[-1:]]
    assert (model.partition_key, model.settings["task"]["horizon"]) == ("2016-07", 3)


def test_another_cadence_in_a_used_home_is_refused(used):
    used.change_settings('cadence = "monthly"', 'cadence = "weekly"')
    was = used.state()
    with pytest.raises(SettingsError, match=r"made with grid\.cadence = monthly"):
        used.backfill(WALK_FROM, recorded=True)
    with pytest.raises(SettingsError, match=r"made with grid\.cadence = monthly"):
        used.ingest(sample_market())
    assert used.state() == was


@pytest.mark.long
def test_scores_of_a_champion_whose_feature_is_gone_stay_and_fail_no_backfill(used):
    used.change_settings("exclude = []", 'exclude = ["KMID"]')
    before = used.workspace.series.query("SELECT * FROM predictions ORDER BY ALL")
    done = used.backfill(WALK_FROM)
    assert done.models
    assert done.scores
    after = used.workspace.series.query("SELECT * FROM predictions ORDER BY ALL")
    assert len(before)
    assert after.equals(before)
