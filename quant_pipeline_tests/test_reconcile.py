"""Reconciling: every invariant is seen broken once, named, and mended where that is possible."""

import os
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from quant_pipeline.chain.prices import publish_prices
from quant_pipeline.chain.reconcile import Problem, not_repaired, reconcile
from quant_pipeline.chain.slices import stored_digest
from quant_pipeline.stores.meta import Batch, Written, utc_now
from quant_pipeline_tests.homes import SmallHome
from quant_pipeline_tests.test_cli import call, succeed

KEY = "2016-07"


def look(made: SmallHome, *, dry_run: bool = False) -> list[Problem]:
    return reconcile(made.workspace, lambda *_: None, dry_run=dry_run)


def names(found: list[Problem]) -> list[str]:
    return [problem.invariant for problem in found]


def a_model(made: SmallHome) -> str:
    return made.model_ids()[KEY, "up_5d"][0]


def old(path: Path) -> Path:
    """A file that nobody writes any more."""
    os.utime(path, (0, 0))
    return path


@pytest.fixture
def used(used: SmallHome) -> SmallHome:
    """A copy of the finished home, its prices published as by `quant ingest`."""
    publish_prices(used.workspace)
    return used


def test_a_finished_home_agrees_with_itself(used):
    """Also a check of the digests: each is made again from what is stored."""
    assert look(used) == []
    slices = [b[0][0] for t in ("features_daily", "labels", "predictions", "prediction_outcomes",
                                "training_frame", "walkforward_folds")
              for b in used.workspace.meta.unsettled_batches(t)]  # fmt: skip
    assert sum(s.n_rows > 0 for s in slices) > 60
    with used.workspace.series.reading() as con:
        for slice_ in slices:
            n_rows, digest = stored_digest(used.workspace, con, slice_)
            assert n_rows == slice_.n_rows, slice_
            assert digest == slice_.digest or not n_rows, slice_


@pytest.mark.parametrize(
    ("table", "key"), [("training_nrame", KEY), ("labels", "2016-0w"), ("price_batches", "1x")]
)
def test_nothing_is_stored_of_a_slice_that_cannot_be(used, table, key):
    """As a registry with a flipped bit may name it."""
    slice_ = Written(0, table, key, "up_5d", 3, "", 1, "")
    with used.workspace.series.reading() as con:
        assert stored_digest(used.workspace, con, slice_) == (0, "")


def flip_model(made: SmallHome) -> None:
    path = made.root / "models" / f"{a_model(made)}.joblib"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def delete_model(made: SmallHome) -> None:
    (made.root / "models" / f"{a_model(made)}.joblib").unlink()


def link_model(made: SmallHome) -> None:
    path = made.root / "models" / f"{a_model(made)}.joblib"
    path.rename(made.root / "elsewhere")
    path.symlink_to(made.root / "elsewhere")


def forget_model(made: SmallHome) -> None:
    model_id = a_model(made)
    with made.workspace.meta.writing() as session:
        session.connection().exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        session.connection().exec_driver_sql("DELETE FROM champions")
        session.connection().exec_driver_sql(f"DELETE FROM models WHERE model_id = '{model_id}'")


def lose_scores(made: SmallHome) -> None:
    made.change_series("DELETE FROM predictions WHERE ts = '2016-07-20' AND task_id = 'up_5d'")


def change_score(made: SmallHome) -> None:
    made.change_series(
        "UPDATE predictions SET score = score + 1e-9 WHERE ts = '2016-07-20' AND task_id = 'up_5d' "
        "AND symbol = 'S001'"
    )


def change_feature(made: SmallHome) -> None:
    made.change_series("UPDATE features_daily SET KMID = KMID + 1 WHERE ts = '2016-07-20'")


def change_label(made: SmallHome) -> None:
    made.change_series("UPDATE labels SET label = 1 - label WHERE ts = '2016-06-20'")


def change_fold(made: SmallHome) -> None:
    made.change_series(
        "UPDATE walkforward_folds SET n_purged = n_purged + 1 WHERE partition_key = '2016-07' "
        "AND task_id = 'up_5d' AND part = 'train' AND fold = 1"
    )


def lose_prices(made: SmallHome) -> None:
    made.change_series("DELETE FROM price_versions WHERE symbol = 'S003' AND ts = '2016-08-05'")


def lose_a_seal(made: SmallHome) -> None:
    made.change_series("DELETE FROM seals WHERE partition_key = '2016-07'")


def forget_batches(made: SmallHome) -> None:
    with made.workspace.meta.writing() as session:
        session.connection().exec_driver_sql(
            f"DELETE FROM batches WHERE table_name = 'predictions' AND partition_key = '{KEY}'"
        )


def lose_published(made: SmallHome) -> None:
    (made.root / "data" / "published" / "predictions" / f"{KEY}.parquet").unlink()


def change_published(made: SmallHome) -> None:
    path = made.root / "data" / "published" / "coverage" / "all.parquet"
    path.write_bytes(path.read_bytes()[:-4])


def publish_too_much(made: SmallHome) -> None:
    folder = made.root / "data" / "published" / "predictions"
    (folder / "2009-01.parquet").write_bytes((folder / f"{KEY}.parquet").read_bytes())


def leave_half_a_model(made: SmallHome) -> None:
    old_file = made.root / "models" / f".{'0' * 64}.joblib.abcdef12"
    old_file.write_bytes(b"half")
    old(old_file)


CASES: dict[str, tuple[Callable[[SmallHome], None], set[str], bool]] = {
    "a model's byte is flipped": (flip_model, {"I1", "I2"}, False),
    "a model's file is gone": (delete_model, {"I1"}, False),
    "a model's file is a link": (link_model, {"I1", "I2"}, False),
    "a model is not registered": (forget_model, {"I4"}, False),
    "scores are gone": (lose_scores, {"I3", "I7"}, False),
    "a score is another one": (change_score, {"I3", "I7"}, False),
    "features are others": (change_feature, {"I5", "I6"}, False),
    "labels are others": (change_label, {"I5", "I6"}, False),
    "a bar is gone": (lose_prices, {"I5", "I7"}, False),
    "a seal is gone": (lose_a_seal, {"I5"}, False),
    "nobody has recorded scores": (forget_batches, {"I3"}, False),
    "a fold is another one": (change_fold, {"I5"}, False),
    "a published file is gone": (lose_published, {"I7"}, True),
    "a published file is cut": (change_published, {"I7"}, True),
    "a published file is of nothing": (publish_too_much, {"I7"}, True),
    "a killed writer left a file": (leave_half_a_model, {"leftover"}, True),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_broken_is_named_and_mended_if_it_can_be(used, case):
    damage, broken, is_mended = CASES[case]
    damage(used)
    found = look(used)
    assert set(names(found)) == broken
    assert (len(not_repaired(found)) == 0) == is_mended
    if len(not_repaired(found)) < len(found):
        again = look(used)
        assert [p.what for p in again] == [p.what for p in not_repaired(found)]


def test_a_dry_run_tells_the_same_and_changes_nothing(used):
    for damage in (flip_model, change_score, lose_published, leave_half_a_model):
        damage(used)
    before, files = used.state(), sorted(used.root.rglob("*"))
    told = look(used, dry_run=True)
    assert set(names(told)) == {"I1", "I2", "I3", "I7", "leftover"}
    assert (used.state(), sorted(used.root.rglob("*"))) == (before, files)


def pending(made: SmallHome, n_rows: int, digest: str) -> int:
    batch = Batch(
        table_name="labels", partition_key=KEY, task_id="up_5d", n_rows=n_rows, digest=digest,
        price_batch_id=1, spec_id="", status="pending", run_id="r", written_at=utc_now(),
    )  # fmt: skip
    (number,) = made.workspace.meta.begin_batches([batch])
    return number


def test_a_pending_slice_that_was_stored_is_recorded_and_one_that_was_not_is_forgotten(used):
    meta = used.workspace.meta
    (written,) = [b[0][0] for b in meta.unsettled_batches("labels")
                  if (b[0][0].partition_key, b[0][0].task_id) == (KEY, "up_5d")]  # fmt: skip
    lost = [pending(used, 7, "f" * 64) for _ in range(2)]
    stored = pending(used, written.n_rows, written.digest)
    lost.append(pending(used, 8, "e" * 64))
    found = look(used)
    assert names(found) == ["I5", "I5"]
    assert not not_repaired(found)
    (newest, *_) = [b for b in meta.unsettled_batches("labels")
                    if (b[0][0].partition_key, b[0][0].task_id) == (KEY, "up_5d")]  # fmt: skip
    assert [(row.id, is_pending) for row, is_pending in newest] == [(stored, False)]
    assert look(used) == []


def test_models_that_were_never_registered_are_deleted_once_nobody_can_be_writing_them(used):
    content = {"a": 1}
    model_id, _ = used.workspace.files.write(content)
    assert look(used) == [], "a training may be about to register it"
    old(used.workspace.files.path(model_id))
    assert names(look(used)) == ["leftover"]
    assert not used.workspace.files.path(model_id).exists()


def test_training_again_brings_a_lost_model_back(used):
    model_id = a_model(used)
    delete_model(used)
    (problem,) = look(used)
    assert f"quant train --asof {date(2016, 7, 31)}" in problem.advice
    succeed(used.root, *problem.advice.split("`quant ")[1].rstrip("`").split())
    assert a_model(used) == model_id
    assert look(used) == []


def test_the_command_tells_and_ends_with_1_if_something_is_left_to_do(used):
    assert "All agrees." in succeed(used.root, "reconcile").out
    lose_published(used)
    told = succeed(used.root, "reconcile", "--dry-run")
    assert "I7: data/published/predictions/2016-07.parquet is missing" in told.out
    (row,) = succeed(used.root, "reconcile", "--json").json
    assert row["can_be_repaired"]
    delete_model(used)
    done = call(used.root, "reconcile")
    assert done.code == 1
    assert done.out.startswith("I1: model ")
