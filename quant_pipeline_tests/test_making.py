"""What happens to a home in use does not disarm its proofs, nor does it make them cry wolf."""

import json
import os
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlmodel import select

from quant_pipeline.chain import scratch
from quant_pipeline.chain import verify_scores as verifying
from quant_pipeline.chain.audit import audit, models_as_of, newest_asof
from quant_pipeline.chain.learn import train_tasks, write_folds
from quant_pipeline.chain.making import changes_since_made
from quant_pipeline.chain.proofs.result import Proof
from quant_pipeline.chain.provenance import made_with
from quant_pipeline.chain.proving import prove
from quant_pipeline.chain.verified import agreement_of
from quant_pipeline.chain.verify import verify_model, verify_since
from quant_pipeline.chain.verify_scores import verify_scores
from quant_pipeline.errors import NoData, StoreError
from quant_pipeline.stores.meta import Batch
from quant_pipeline_tests.homes import SmallHome
from quant_pipeline_tests.mutants import walk_data
from quant_pipeline_tests.test_cli import call
from quant_pipeline_tests.test_verify import change_row, model_of, quiet

DAY = date(2019, 5, 3)
EARLIER = date(2019, 4, 15)
OTHER_UNIVERSE = ("min_median_value = 1000.0", "min_median_value = 4800000.0")


def audited(made: SmallHome) -> list[Proof]:
    """The newest as-of's proofs of up_5d."""
    ws = made.workspace
    task = ws.settings.task("up_5d")
    return audit(ws, [newest_asof(ws, [task], date(2019, 12, 31))], [task])


def change_scores(made: SmallHome) -> None:
    made.change_series("UPDATE predictions SET score = score + 1e-9 WHERE symbol = 'C001'")


def change_batches(made: SmallHome, **values: Any) -> None:
    with made.workspace.meta.writing() as session:
        for batch in session.exec(select(Batch)):
            for name, value in values.items():
                setattr(batch, name, value)
            session.add(batch)


# --- Another universe, other features


def test_scores_of_another_universe_come_out_again_as_of_then(copied):
    ws = copied.workspace
    before = len(copied.scores())
    copied.change_settings(*OTHER_UNIVERSE)
    walk_data(copied.workspace)  # the same batch of prices, other rows in the universe
    ws = copied.workspace
    assert len(copied.scores()) == before
    for which, day in ((0, EARLIER), (-1, DAY)):
        (found,) = verify_scores(ws, model_of(copied, which=which), [day])
        assert (found.outcome, found.reasons) == ("identical", ())
    assert [p.words for p in audited(copied) if p.outcome != "holds"] == []
    change_scores(copied)
    (found,) = verify_scores(ws, model_of(copied), [DAY])
    assert found.outcome == "alarm"


def test_a_clock_that_was_set_back_hides_no_making(copied):
    """Features are then stamped later than the scores that were made from them."""
    change_batches(copied, written_at=date_time(2099))
    (found,) = verify_scores(copied.workspace, model_of(copied), [DAY])
    assert found.outcome == "identical"


def date_time(year: int) -> Any:
    from datetime import UTC, datetime

    return datetime(year, 1, 1, tzinfo=UTC)


def test_settings_that_nothing_records_any_more_are_a_reason_and_no_proof(copied):
    change_batches(copied, spec_id="of another time")
    (found,) = verify_scores(copied.workspace, model_of(copied), [DAY])
    assert found.outcome == "explained"
    assert "not recorded any more" in found.reasons[0]
    (proof,) = [p for p in audited(copied) if p.name == "scores"]
    assert proof.outcome == "unproven"


# --- Another version of the package


def test_a_changed_score_is_an_alarm_after_an_update_of_the_package_too(copied):
    change_scores(copied)
    change_row(copied, code_version="0.0.1+abc")
    change_batches(copied, made_with=made_with().replace("code ", "code 0.0.1+"))
    (found,) = verify_scores(copied.workspace, model_of(copied), [DAY])
    assert (found.outcome, found.reasons) == ("alarm", verifying.CHANGED)


def test_scores_that_another_version_made_otherwise_are_explained_by_it(copied, monkeypatch):
    honest = verifying.score_rows
    monkeypatch.setattr(verifying, "score_rows", lambda *a: honest(*a) + 1e-9)
    (found,) = verify_scores(copied.workspace, model_of(copied), [DAY])
    assert found.outcome == "alarm"
    change_batches(copied, made_with=made_with().replace("code ", "code 0.0.1+"))
    (found,) = verify_scores(copied.workspace, model_of(copied), [DAY])
    assert found.outcome == "explained"
    assert found.reasons[0].startswith("code 0.0.1+")
    change_batches(copied, made_with="")
    (found,) = verify_scores(copied.workspace, model_of(copied), [DAY])
    assert found.reasons == ("code that was not recorded then",)


def test_what_a_slice_was_made_with_is_compared_part_by_part():
    assert changes_since_made(made_with()) == []
    (found,) = changes_since_made(made_with().replace("numpy ", "numpy 0."))
    assert found.startswith("numpy 0.")
    assert " then, " in found


# --- Files, rows and settings that are gone


def test_a_pruned_model_leaves_its_scores_unproven_and_all_else_proved(copied):
    change_row(copied, status="pruned")
    (copied.root / "models" / f"{model_of(copied).model_id}.joblib").unlink()
    found = audited(copied)
    assert {p.name: p.outcome for p in found if p.outcome != "holds"} == {"scores": "unproven"}
    assert "its file was pruned" in next(p.words for p in found if p.name == "scores")
    (checked, _) = prove(copied.workspace, "lgbm_model", ["2019-04"], quiet)
    assert checked.passed
    assert "1 of" in checked.words
    assert "could not be proved: scores of" in checked.words
    assert checked.numbers["unproven"] == 1


def test_settings_that_this_version_does_not_take_are_told(copied):
    model = model_of(copied)
    train = model.settings["train"] | {"gone_option": 1}
    change_row(copied, settings=model.settings | {"train": train})
    found = verify_model(copied.workspace, model_of(copied))
    assert found.outcome == "explained"
    assert "train.gone_option" in found.reasons[0]
    (proof,) = [p for p in audited(copied) if p.name == "future"]
    assert proof.outcome == "unproven"
    assert "train.gone_option" in proof.words
    said = call(copied.root, "verify", model.model_id)
    assert said.code == 0, said.err


@pytest.mark.long
def test_an_own_module_that_was_edited_is_no_leak(copied):
    """The model cannot come out again: the proof says why, and that no future did it."""
    change_row(copied, feature_set_id="of an earlier module")
    model = model_of(copied)  # made with another seed, so that it cannot come out again
    changed = model.settings | {"train": model.settings["train"] | {"seed": 99}}
    change_row(copied, settings=changed)
    found = [p for p in audited(copied) if p.name == "future" and p.task_id]
    assert [p.outcome for p in found] == ["holds"]
    assert "as features or own modules mean something else now" in found[0].words


# --- Which models and scores


@pytest.mark.long
def test_the_model_that_scored_is_audited_beside_a_newer_one_of_its_as_of(copied):
    served = model_of(copied)
    copied.change_settings("learning_rate = 0.1", "learning_rate = 0.2")
    ws = copied.workspace
    task = ws.settings.task("up_5d")
    write_folds(ws, "2019-04", task)
    train_tasks(ws, "2019-04", [task])
    newer = model_of(copied)
    assert newer.model_id != served.model_id
    found = models_as_of(ws, served.asof, [task])
    assert {m.model_id for m in found} == {served.model_id, newer.model_id}
    proofs = audited(copied)
    assert [p.words for p in proofs if p.outcome != "holds"] == []
    assert [p.name for p in proofs].count("scores") == 1
    assert [p.name for p in proofs if p.task_id].count("future") == 2


@pytest.mark.long
def test_all_models_are_verified_also_those_that_never_served(copied):
    copied.change_series("DELETE FROM predictions WHERE ts >= '2019-05-01'")
    found = verify_since(copied.workspace, date(2019, 4, 1), quiet)
    assert sum(v.kind == "model" for v in found) == 4
    with pytest.raises(NoData, match="No model is as of 2030-01-01 or later"):
        verify_since(copied.workspace, date(2030, 1, 1), quiet)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_model_file_that_is_not_as_it_was_is_an_alarm(copied, damage):
    file = copied.root / "models" / f"{model_of(copied).model_id}.joblib"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    ws, model = copied.workspace, model_of(copied)
    found = [verify_model(ws, model), *verify_scores(ws, model, [DAY])]
    assert [v.outcome for v in found] == ["alarm", "alarm"]
    assert all(damage in v.reasons[0] for v in found)
    (proof,) = [p for p in audited(copied) if p.outcome != "holds"]
    assert (proof.name, proof.outcome) == ("scores", "unproven")
    assert damage in proof.words


def test_an_as_of_is_named_by_its_last_session_too(canary_home):
    ws = canary_home.workspace
    assert newest_asof(ws, ws.tasks(), date(2019, 4, 30)) == date(2019, 4, 30)
    assert newest_asof(ws, ws.tasks(), date(2019, 3, 30)) == date(2019, 3, 31)
    assert newest_asof(ws, ws.tasks(), date(2019, 4, 29)) == date(2019, 3, 31)
    with pytest.raises(NoData, match="No model is as of 2019-03-28 or earlier"):
        newest_asof(ws, ws.tasks(), date(2019, 3, 28))


# --- What is said


def test_a_symbol_that_is_not_there_any_more_is_counted_and_printed_as_json(copied):
    copied.change_series("UPDATE predictions SET symbol = 'C999' WHERE symbol = 'C001'")
    said = call(copied.root, "verify", "--ts", str(DAY), "--task", "up_5d", "--json")
    assert said.code == 1
    row = json.loads(said.out)[0]
    assert row["agreement"]["missing"] == 1
    shown = call(copied.root, "verify", "--ts", str(DAY), "--task", "up_5d")
    assert "1 symbol without a score" in shown.out


def test_agreement_leaves_out_what_is_missing():
    nan = np.nan
    assert agreement_of(np.array([1.0, 2.0, 3.0]), np.array([1.0, nan, 3.0])) == {
        "scores": 2, "missing": 1, "correlation": 1.0, "largest_difference": 0.0,
    }  # fmt: skip
    assert agreement_of(np.array([1.0]), np.array([nan])) == {"scores": 0, "missing": 1}
    assert agreement_of(np.array([1.0]), np.array([2.0])) == {"scores": 1, "then": 1.0, "now": 2.0}
    assert agreement_of(np.array([1.0, 1.0]), np.array([2.0, 3.0]))["correlation"] is None


def test_a_proof_of_scores_that_fails_names_the_symbol(copied):
    change_scores(copied)
    (proof,) = [p for p in audited(copied) if p.failed]
    assert proof.finding is not None
    assert (proof.finding.symbol, proof.finding.column) == ("C001", "score")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("verify", "--ts", "2019-05-03", "--symbol", "X"), "No symbol X."),
        (("verify", "--ts", "2029-05-03"), "There is no score of up_5d or ret_5d on 2029-05-03"),
        (("verify", "--all", "--ts", "2019-05-03"), "--ts cannot stand beside --all"),
        (("verify", "--since", "2019-05-03"), "--since stands beside --all"),
        (("verify", "--all", "--since", "2030-01-01"), "No model is as of 2030-01-01 or later"),
        (("audit", "--asof", "2019-04-30", "--samples", "2"), "give --asof or --samples, not both"),
    ],
)
def test_words_that_do_not_fit_are_refused(canary_home, words, told):
    said = call(canary_home.root, *words)
    assert said.code in (1, 2)
    assert told in said.err


def test_a_session_that_only_one_task_scored_is_verified(copied):
    copied.change_series("DELETE FROM predictions WHERE task_id = 'ret_5d' AND ts = ?", DAY)
    said = call(copied.root, "verify", "--ts", str(DAY), "--symbol", "C001", "--json")
    assert [row["kind"] for row in json.loads(said.out)] == ["scores", "model"]


# --- Stores are only read, scratch is removed


def test_proofs_of_an_empty_home_leave_nothing_behind(workspace):
    for words, told in (
        (("audit",), "No model has been trained yet"),
        (("verify", "--all"), "Nothing has been ingested yet"),
        (("diff", "a", "b"), "No model has been trained yet"),
    ):
        said = call(workspace.home.root, *words)
        assert said.code == 1
        assert told in said.err
    assert not workspace.home.registry.exists()
    assert not workspace.home.database.exists()


def test_a_home_opened_to_be_read_refuses_to_be_written(canary_home):
    ws = canary_home.workspace.read_only()
    assert len(ws.meta.models()) == 4
    with pytest.raises(StoreError, match="opened to be read"), ws.meta.writing():
        pass
    with pytest.raises(StoreError, match="opened to be read"), ws.series.writing("a test"):
        pass
    with (
        pytest.raises(Exception, match="readonly"),
        ws.meta.reading() as session,
    ):
        session.connection().exec_driver_sql("DELETE FROM models")


def test_what_a_killed_proof_left_is_removed_by_the_next_and_nothing_else(
    copied, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, foreign = tmp_path / f"{scratch.PREFIX}dead", tmp_path / f"{scratch.PREFIX}foreign"
    for folder in (dead, foreign):
        folder.mkdir()
    (dead / scratch.IN_USE).touch()
    with scratch.empty_home(copied.workspace, copied.workspace.settings) as one:
        assert not dead.exists()
        assert foreign.exists()  # without a lock it may be anybody's
        with scratch.empty_home(copied.workspace, copied.workspace.settings):
            assert one.home.root.exists()
    assert list(tmp_path.glob(f"{scratch.PREFIX}*")) == [foreign]


def test_a_proof_that_is_told_to_end_removes_its_scratch(copied, tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    quant = str(Path(sys.executable).with_name("quant"))
    environment = {**os.environ, "QUANT_HOME": str(copied.root), "TMPDIR": str(folder)}
    with subprocess.Popen([quant, "audit"], env=environment, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not list(folder.glob("*/data/quant.duckdb")):
            pass
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert list(folder.iterdir()) == []
