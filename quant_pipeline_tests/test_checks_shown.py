"""Checks as Dagster and the registry show them, partition by partition."""

import asyncio

import dagster as dg
import pandas as pd
import pytest
from dagster._core.asset_graph_view.serializable_entity_subset import SerializableEntitySubset
from dagster._core.loader import LoadingContextForTest
from dagster._core.storage.asset_check_state import AssetCheckState
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)

from quant_pipeline.chain.checks.result import CHECKS
from quant_pipeline.chain.proving import PROVED
from quant_pipeline.defs.checks import check_without_run
from quant_pipeline.defs.grid import make_partitions
from quant_pipeline.stores.meta import CheckResult, utc_now
from quant_pipeline_tests.homes import DATA, SCORES, SmallHome

FILLED = dg.AssetCheckKey(dg.AssetKey("features_daily"), "features_are_filled")
IN_JUNE = "ts BETWEEN '2016-06-01' AND '2016-06-30'"


def shown(runner, home: SmallHome, key: dg.AssetCheckKey) -> dict[str, list[str]]:
    """Partitions by status, as the web UI asks for them."""
    grid = make_partitions(home.workspace.settings)
    state = asyncio.run(AssetCheckState.gen(LoadingContextForTest(runner.instance), (key, grid)))
    assert state is not None
    return {status.value: sorted(subset_keys(subset)) for status, subset in state.subsets.items()
            if not subset.is_empty}  # fmt: skip


def subset_keys(subset: SerializableEntitySubset[dg.AssetCheckKey]) -> set[str]:
    return set(subset.subset_value.get_partition_keys())


def latest(runner, key: dg.AssetCheckKey, partition: str | None):
    """The newest record of a check of one partition, or of a range (None)."""
    records = runner.instance.event_log_storage.get_asset_check_execution_history(key, limit=100)
    return next(r for r in records if r.partition == partition)


def test_a_run_over_a_range_shows_each_partition_as_it_is(used):
    """No partition is left planned, which the page would call skipped."""
    keys = used.workspace.grid.keys("2016-04", "2016-07")
    with used.runner(recorded=True) as runner:
        runner.materialize(["features_daily"], keys[0], keys[-1])
        assert {k: set(v) >= set(keys) for k, v in shown(runner, used, FILLED).items()} == {
            "SUCCEEDED": True
        }
        used.change_series(f"UPDATE features_daily SET RSV20 = 'nan' WHERE {IN_JUNE}")
        check_only(runner, "features_daily", keys[0], keys[-1])
        found = shown(runner, used, FILLED)
        assert found["FAILED"] == ["2016-06"]
        assert set(found["SUCCEEDED"]) >= {"2016-04", "2016-05", "2016-07"}
        assert set(found) == {"FAILED", "SUCCEEDED"}
        june, all_of_them = latest(runner, FILLED, "2016-06"), latest(runner, FILLED, None)
        for record in (june, all_of_them):
            assert record.evaluation.severity is dg.AssetCheckSeverity.WARN
            assert "RSV20 (100%)" in record.evaluation.description
        assert june.evaluation.metadata["largest_null_share"].value == 1.0
        assert all_of_them.evaluation.metadata["partitions_not_passed"].value == 1
        assert "2016-06" in all_of_them.evaluation.metadata["not_passed"].value
        assert june.evaluation.target_materialization_data is not None
        runner.materialize(["features_daily"], "2016-06", "2016-06")
        assert set(shown(runner, used, FILLED)) == {"SUCCEEDED"}


def check_only(runner, asset: str, first: str, last: str) -> None:
    """The checks of an asset alone, over a range of partitions."""
    keys = {dg.AssetCheckKey(dg.AssetKey(asset), name) for name in CHECKS[asset]}
    job = runner.job.get_subset(asset_selection=set(), asset_check_selection=keys)
    job.execute_in_process(
        instance=runner.instance,
        tags={ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last},
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )


def test_every_check_of_every_asset_runs_with_its_asset(used):
    with used.runner(recorded=True) as runner:
        for assets in (["prices_daily", *DATA], ["walkforward_folds", "lgbm_model"], SCORES):
            runner.materialize(assets, "2016-07", "2016-07")
        for asset, texts in CHECKS.items():
            for name in texts:
                key = dg.AssetCheckKey(dg.AssetKey(asset), name)
                found = latest(runner, key, "2016-07")
                assert found.status.value == "SUCCEEDED", key
    stored = used.workspace.meta.check_results(key="2016-07")
    every = {(a, n) for a, t in CHECKS.items() for n in t}
    assert {(r.asset, r.name) for r in stored} == every - set(PROVED.items())
    assert all(r.run_id and r.passed for r in stored)


def test_results_stay_in_the_registry_for_good(used):
    meta = used.workspace.meta
    old = meta.check_results("labels", "2016-06")
    used.run(["labels"], "2016-06")
    new = meta.check_results("labels", "2016-06")
    assert new[: len(old)] == old
    assert {(r.name, r.task_id) for r in new[len(old) :]} == {
        (name, task) for name in CHECKS["labels"] for task in ("up_5d", "ret_5d")
    }
    rates = [r.numbers["base_rate"] for r in new if r.name == "base_rate_is_usual"]
    assert 0 < min(rates) <= max(rates) < 1
    assert meta.check_results("labels", "1999-01") == []


def test_a_home_made_before_gets_the_table(workspace):
    with workspace.meta.writing() as session:
        session.connection().exec_driver_sql("DROP TABLE check_results")
    again = type(workspace).open(workspace.home).meta
    row = CheckResult(
        asset="labels", name="x", partition_key="2016-06", task_id="", passed=False,
        severity="WARN", numbers={"n": 1}, words="why", run_id="r", checked_at=utc_now(),
    )  # fmt: skip
    again.add_check_results([row])
    (found,) = again.check_results()
    assert (found.numbers, found.passed, found.words) == ({"n": 1}, False, "why")


def test_what_changed_outside_of_a_run_is_shown_like_a_run(used, market):
    """As an ingest may ask for; asked for twice, the second answer counts."""
    key = dg.AssetCheckKey(dg.AssetKey("prices_daily"), "moves_are_plausible")
    ws, keys = used.workspace, ["2016-05", "2016-07"]
    with used.runner(recorded=True) as runner:
        assert all(c.passed for c in check_without_run(runner.instance, ws, "prices_daily", keys))
        assert shown(runner, used, key) == {"SUCCEEDED": keys}
        wild = market[(market["ts"] == pd.Timestamp(2016, 7, 12)) & (market["symbol"] == "S001")]
        columns = ["open", "high", "low", "close", "adj_close"]
        used.ingest(wild.assign(**{c: 9 * wild[c] for c in columns}))
        found = check_without_run(runner.instance, ws, "prices_daily", keys)
        assert [(c.name, c.key) for c in found if not c.passed] == [(key.name, "2016-07")]
        assert shown(runner, used, key) == {"SUCCEEDED": ["2016-05"], "FAILED": ["2016-07"]}
        said = latest(runner, key, "2016-07").evaluation
        assert said.severity is dg.AssetCheckSeverity.ERROR
        assert "S001 2016-07-12" in said.description
        assert check_without_run(runner.instance, ws, "prices_daily", []) == []


def test_one_check_of_an_asset_may_be_run_alone(used):
    key = dg.AssetCheckKey(dg.AssetKey("labels"), "base_rate_is_usual")
    with used.runner(recorded=True) as runner:
        job = runner.job.get_subset(asset_selection=set(), asset_check_selection={key})
        done = job.execute_in_process(
            instance=runner.instance, partition_key="2016-06",
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )  # fmt: skip
        assert [e.check_name for e in done.get_asset_check_evaluations()] == [key.name]


def test_a_proof_is_made_where_its_check_runs_alone(used):
    key = dg.AssetCheckKey(dg.AssetKey("predictions"), PROVED["predictions"])
    with used.runner(recorded=True) as runner:
        job = runner.job.get_subset(asset_selection=set(), asset_check_selection={key})
        done = job.execute_in_process(
            instance=runner.instance, partition_key="2016-07",
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )  # fmt: skip
        (found,) = done.get_asset_check_evaluations()
    assert found.passed
    assert found.metadata["up_5d/proved"].value == 5
    (stored, _) = used.workspace.meta.check_results("predictions", "2016-07")[-2:]
    assert (stored.name, stored.passed) == (key.name, True)


@pytest.mark.parametrize("asset", list(CHECKS))
def test_every_check_says_what_it_looks_at(asset):
    for name, text in CHECKS[asset].items():
        assert name.islower()
        assert len(text) > 30
        assert text.endswith(".")
