"""Rules of the registry: written once, in turns, and every reference holds."""

import subprocess
import sys
import threading
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from quant_pipeline.errors import NoData, SettingsError
from quant_pipeline.stores.meta import Batch, Champion, MetaStore, Model, Refusal, utc_now

NOW = datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def meta(tmp_path: Path) -> MetaStore:
    return MetaStore(tmp_path / "models" / "registry.sqlite")


def model(model_id: str, **changes: Any) -> Model:
    values: dict[str, Any] = {
        "model_id": model_id,
        "task_id": "up_5d",
        "partition_key": "2019-12",
        "asof": date(2019, 12, 31),
        "status": "accepted",
        "parameters": {"num_leaves": 31, "learning_rate": 0.05},
        "metrics": {"rank_ic": 0.1, "auc": None},
        "fold_metrics": [{"fold": 0, "rank_ic": 0.1}],
        "test_series": {"ts": ["2019-12-02"], "rank_ic": [0.1], "top_minus_bottom": [None]},
        "importance": {"gain": {"ROC5": 1.5}},
        "features": ["ROC5", "KMID"],
        "feature_type": "float32",
        "feature_set_id": "f",
        "n_rows": 10,
        "n_sessions": 5,
        "n_symbols": 2,
        "first_ts": date(2019, 1, 2),
        "last_ts": date(2019, 12, 20),
        "rounds": 7,
        "price_batch_id": 1,
        "data_fingerprint": "d",
        "recipe": "r",
        "chosen_asof": date(2019, 12, 31),
        "settings": {"train": {"seed": 1}},
        "environment": {"python": "3.11"},
        "code_version": "0.1.0",
        "file_bytes": 100,
        "seconds": 1.5,
        "run_id": "",
        "created_at": NOW,
    }
    return Model(**values | changes)


def refusal(reason: str = "too few rows", **changes: Any) -> Refusal:
    values = {"task_id": "up_5d", "partition_key": "2019-12", "asof": date(2019, 12, 31)}
    return Refusal(
        **values | {"inputs": "3f9a"} | changes, reason=reason, run_id="", created_at=NOW
    )


def champion(model_id: str, **changes: Any) -> Champion:
    values = {
        "task_id": "up_5d", "partition_key": "2020-01", "from_ts": date(2020, 1, 1),
        "why": "newest", "decided_at": NOW,
    }  # fmt: skip
    return Champion(**values | changes, model_id=model_id)


def batch(rows: int, **changes: Any) -> Batch:
    values = {"table_name": "labels", "partition_key": "2020-01", "task_id": "up_5d"}
    return Batch(
        **values | changes,
        n_rows=rows,
        digest="",
        price_batch_id=1,
        spec_id="",
        status="pending",
        run_id="",
        written_at=NOW,
    )


# --- models


def test_a_model_comes_back_as_it_was_registered(meta: MetaStore) -> None:
    meta.add_model(model("a" * 64))
    row = model("a" * 64, seq=1)
    expected = row.model_dump() | {"row_digest": row.digest()}
    for found in (meta.model("a"), *meta.models(), *MetaStore(meta.path).models("up_5d")):
        assert found.model_dump() == expected
    assert meta.models("other") == []


def test_a_model_is_registered_once_and_stays_as_it_was(meta: MetaStore) -> None:
    first = meta.add_model(model("a" * 64))
    again = meta.add_model(model("a" * 64, seconds=99.0, run_id="later"))
    assert again.model_dump() == first.model_dump()
    assert [m.seconds for m in meta.models()] == [1.5]


def test_models_are_listed_by_asof_and_in_the_order_of_training(meta: MetaStore) -> None:
    months = [(date(2020, 2, 29), "b"), (date(2020, 1, 31), "d"), (date(2020, 2, 29), "a")]
    for asof, name in months:
        meta.add_model(model(name * 64, asof=asof))
    assert [(m.model_id[0], m.seq) for m in meta.models()] == [("d", 2), ("b", 1), ("a", 3)]


def test_a_prefix_names_the_one_model_that_starts_with_it(meta: MetaStore) -> None:
    for name in ("abc", "abd", "b_c", "b%d"):
        meta.add_model(model(name.ljust(64, "0")))
    assert meta.model("abc").model_id.startswith("abc")
    assert meta.model("b_").model_id.startswith("b_c")
    with pytest.raises(NoData, match=r"No model .* starts with 'x'\. See `quant models list`"):
        meta.model("x")
    with pytest.raises(NoData, match=r"2 models .* starts with 'ab': abc0+, abd0+\. Give more"):
        meta.model("ab")
    with pytest.raises(NoData, match=r"No model"):
        meta.model("%")


# --- champions, refusals


def test_a_champion_is_frozen_once(meta: MetaStore) -> None:
    for name in "ab":
        meta.add_model(model(name * 64))
    first = meta.freeze_champion(champion("a" * 64))
    again = meta.freeze_champion(champion("b" * 64, why="another"))
    assert again.model_dump() == first.model_dump() == champion("a" * 64).model_dump()
    later = {"partition_key": "2020-02", "from_ts": date(2020, 2, 1)}
    other = meta.freeze_champion(champion("b" * 64, **later))
    assert [(c.partition_key, c.model_id[0]) for c in meta.champions()] == [
        ("2020-01", "a"),
        ("2020-02", "b"),
    ]
    assert other.model_id == "b" * 64
    assert [c.model_id[0] for c in meta.champions("up_5d", "2020-02")] == ["b"]
    assert meta.champions("ret_5d") == []
    for day, expected in ((date(2020, 2, 1), "a"), (date(2020, 2, 2), "b")):
        before = meta.champion_before("up_5d", day)
        assert before is not None
        assert before.model_id[0] == expected
    assert meta.champion_before("up_5d", date(2020, 1, 1)) is None


def test_a_champion_has_to_be_a_registered_model(meta: MetaStore) -> None:
    with pytest.raises(IntegrityError, match="FOREIGN KEY constraint failed"):
        meta.freeze_champion(champion("a" * 64))
    assert meta.champions() == []


def test_the_same_refusal_is_recorded_once(meta: MetaStore) -> None:
    for reason in ("too few rows", "too few rows", "one class", "too few rows"):
        meta.add_refusal(refusal(reason))
    meta.add_refusal(refusal(partition_key="2019-11", asof=date(2019, 11, 30)))
    meta.add_refusal(refusal(task_id="ret_5d"))
    assert [(r.partition_key, r.reason) for r in meta.refusals("up_5d")] == [
        ("2019-11", "too few rows"),
        ("2019-12", "too few rows"),
        ("2019-12", "one class"),
    ]
    assert len(meta.refusals()) == 4


def test_moments_come_back_as_the_same_moment(meta: MetaStore) -> None:
    manila = NOW.astimezone(timezone(timedelta(hours=8)))
    meta.add_refusal(Refusal(**refusal().model_dump() | {"created_at": manila}))
    assert meta.refusals()[0].created_at == NOW
    assert utc_now().tzinfo is UTC


# --- batches


def test_batches_are_the_newest_committed_ones(meta: MetaStore) -> None:
    assert meta.batches() == []
    assert meta.begin_batches([]) == []
    (first,) = meta.begin_batches([batch(1)])
    assert meta.batches() == []
    meta.commit_batches([first])
    assert [b.n_rows for b in meta.batches()] == [1]
    meta.begin_batches([batch(2)])  # killed: whether its rows are stored is not known
    assert meta.batches() == []
    meta.commit_batches(meta.begin_batches([batch(3), batch(4, task_id="ret_5d")]))
    found = {(b.table_name, b.partition_key, b.task_id): b.n_rows for b in meta.batches()}
    assert found == {("labels", "2020-01", "up_5d"): 3, ("labels", "2020-01", "ret_5d"): 4}


def test_digests_are_those_of_all_batches_of_a_slice_and_none_of_a_pending_one(meta) -> None:
    assert meta.digests("labels", ("2019-01", "2020-12")) == {}
    one, two = batch(1), batch(2)
    one.digest, two.digest = "one", "two"
    meta.commit_batches(meta.begin_batches([one]))
    meta.begin_batches([two])
    meta.commit_batches(meta.begin_batches([batch(3, task_id="ret_5d")]))
    found = meta.digests("labels", ("2020-01", "2020-01"))
    mine = found["labels", "2020-01", "up_5d"]
    assert [digest for _, digest in mine] == ["one", ""]
    assert mine == sorted(mine)
    assert len(found) == 2
    assert meta.digests("features_daily", ("2020-01", "2020-01")) == {}
    assert meta.digests("labels", ("2020-02", "2020-12")) == {}


def test_more_batches_than_one_statement_can_name_are_committed(meta: MetaStore) -> None:
    """Years of a daily grid in one run; SQLite takes 32,766 variables, Debian's 250,000."""
    ids = meta.begin_batches([batch(1)])
    meta.commit_batches([*range(1_000, 260_000), *ids])
    assert len(meta.batches()) == 1


# --- facts


def test_a_fact_is_remembered_and_another_value_refused(meta: MetaStore) -> None:
    for _ in range(2):
        meta.require_fact("grid.cadence", "monthly")
    with pytest.raises(
        SettingsError, match=r"grid\.cadence = monthly, but quant\.toml now says weekly\. Set it"
    ):
        meta.require_fact("grid.cadence", "weekly")
    meta.require_fact("grid.cadence", "monthly")
    meta.require_fact("grid.start", "2010-01-01")


# --- one file, many writers


def test_a_failed_transaction_leaves_nothing(meta: MetaStore) -> None:
    with pytest.raises(KeyboardInterrupt), meta.writing() as session:  # noqa: PT012
        session.add(refusal())
        session.flush()
        raise KeyboardInterrupt
    assert meta.refusals() == []


WRITER = """
import sys
from datetime import date
from pathlib import Path
from quant_pipeline_tests.test_meta import batch, model, refusal
from quant_pipeline.stores.meta import MetaStore
meta = MetaStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for i in range(25):
    name = f"{sys.argv[2]}{i:02d}"
    meta.add_model(model(name.ljust(64, "0")))
    meta.add_refusal(refusal(name))
    meta.commit_batches(meta.begin_batches([batch(1, partition_key=name)]))
    assert len(meta.models()) > i
"""


def test_four_processes_write_at_once_without_an_error(meta: MetaStore) -> None:
    root = Path(__file__).parents[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(meta.path), name],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in "abcd"
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=50)[1] for process in processes]
    assert errors == [""] * 4
    assert [m.seq for m in sorted(meta.models(), key=lambda m: m.seq)] == list(range(1, 101))
    assert len(meta.refusals()) == len(meta.batches()) == 100


def test_threads_may_open_the_registry_at_the_same_time(meta: MetaStore) -> None:
    start, errors = threading.Barrier(8), []

    def use() -> None:
        start.wait()
        try:
            meta.models()
            meta.require_fact("grid.cadence", "monthly")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_home_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "50% off? #1 é" / "registry.sqlite"
    MetaStore(path).require_fact("a", "b")
    assert path.read_bytes().startswith(b"SQLite format 3")
    assert [p.name for p in tmp_path.iterdir()] == [path.parent.name]


def test_every_connection_is_durable_and_checks_references(meta: MetaStore) -> None:
    for mode in (meta.reading, meta.writing):
        with mode() as session:
            pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            connection = session.connection()
            found = [connection.exec_driver_sql(f"PRAGMA {p}").scalar() for p in pragmas]
            assert found == ["wal", 2, 1, 60000]
