"""Only a busy store is tried again, and only in runs that nobody watches."""

import threading

import dagster as dg
import pytest

from quant_pipeline.defs import retries
from quant_pipeline.defs.location import make_definitions
from quant_pipeline.defs.retries import STARTED_BY
from quant_pipeline.errors import NotEnoughHistory, StoreBusy
from quant_pipeline.stores.locks import held
from quant_pipeline_tests.homes import SmallHome


@pytest.fixture
def hasty(used: SmallHome, monkeypatch) -> SmallHome:
    """A home that waits for nobody, and tries again soon."""
    used.change_settings("[universe]", "[store]\nlock_wait_seconds = 0.1\n\n[universe]")
    monkeypatch.setattr(retries, "SECONDS", 1)
    return used


def run(made: SmallHome, asset: str, key: str, **tags: str) -> dg.ExecuteInProcessResult:
    job = make_definitions(made.workspace).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        return job.execute_in_process(
            instance=instance, asset_selection=[dg.AssetKey(asset)], partition_key=key,
            tags=tags, raise_on_error=False,
        )  # fmt: skip


class Holder:
    """Holds the database until a step was put up for retry, which is seen by its file."""

    def __init__(self, made: SmallHome) -> None:
        self.lock = made.root / "data" / "quant.duckdb.lock"
        self.has_it, self.let_go = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._hold)

    def _hold(self) -> None:
        with held(self.lock, "a test", 10):
            self.has_it.set()
            self.let_go.wait(60)

    def __enter__(self) -> "Holder":
        self.thread.start()
        assert self.has_it.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go.set()
        self.thread.join()


@pytest.mark.parametrize("asset", ["labels", "training_frame", "predictions"])
def test_a_step_of_the_daemon_waits_for_a_busy_store(hasty, asset, monkeypatch):
    was = hasty.state()
    tried = []
    with Holder(hasty) as holder:
        again = dg.RetryRequested.__init__

        def noted(self: dg.RetryRequested, *arguments: object, **named: object) -> None:
            tried.append(named)
            holder.let_go.set()
            again(self, *arguments, **named)

        monkeypatch.setattr(dg.RetryRequested, "__init__", noted)
        result = run(hasty, asset, "2016-06")
    assert result.success
    assert len(tried) >= 1
    kinds = [e.event_type_value for e in result.all_events]
    assert "STEP_UP_FOR_RETRY" in kinds
    assert hasty.state() == was


def test_a_run_of_quant_ends_with_the_error(hasty):
    with Holder(hasty):
        result = run(hasty, "training_frame", "2016-06", **{STARTED_BY: "quant"})
    assert not result.success
    assert "STEP_UP_FOR_RETRY" not in [e.event_type_value for e in result.all_events]
    (failure,) = [e for e in result.all_events if e.is_step_failure]
    assert failure.step_failure_data.error.cause.cls_name == StoreBusy.__name__


def test_every_other_error_ends_a_step_at_once(hasty):
    result = run(hasty, "walkforward_folds", "2015-07")
    assert not result.success
    assert "STEP_UP_FOR_RETRY" not in [e.event_type_value for e in result.all_events]
    (failure,) = [e for e in result.all_events if e.is_step_failure]
    assert failure.step_failure_data.error.cause.cls_name == NotEnoughHistory.__name__
