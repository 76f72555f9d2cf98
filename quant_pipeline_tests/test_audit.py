"""The audit: a clean home passes, every deliberate leak is caught by its proof, nothing is left."""

import json
from datetime import date

import pytest

from quant_pipeline.chain.audit import audit, choose_asofs, newest_asof
from quant_pipeline.chain.proofs.result import Proof
from quant_pipeline.errors import NoData, StoreError
from quant_pipeline.market.canaries import make_canaries
from quant_pipeline_tests.homes import SmallHome, own_environment
from quant_pipeline_tests.mutants import MUTANTS, caught, prove
from quant_pipeline_tests.test_cli import call

ALWAYS = ("feature with a negative lag",)


@pytest.fixture(scope="module")
def clean(canary_home) -> SmallHome:
    return canary_home


@pytest.fixture(scope="module")
def proofs(clean) -> list[Proof]:
    return prove(clean)


def newest(made: SmallHome) -> list[Proof]:
    ws = made.workspace
    return audit(ws, choose_asofs(ws, ws.tasks(), 1), ws.tasks())


def failed(found: list[Proof]) -> set[str]:
    return {proof.name for proof in found if proof.failed}


def test_every_proof_of_a_clean_home_holds(clean, proofs):
    assert [str(p.finding) for p in proofs if p.outcome != "holds"] == []
    n_tasks, n_asofs = 2, 2
    by_name = {name: sum(p.name == name for p in proofs) for name in {p.name for p in proofs}}
    each = n_tasks * n_asofs
    assert by_name == {
        "prices": n_asofs, "future": each + n_asofs, "windows": each, "structure": each,
        "champion": each, "scores": each, "served": 1, "sealed": 1, "recipes": 1,
    }  # fmt: skip


def test_the_rewrite_did_change_what_came_later(proofs):
    for proof in proofs:
        if proof.name == "future" and proof.task_id:
            assert proof.numbers["n_real"] > 50
            assert proof.numbers["n_alike"] == 0
            assert proof.numbers["n_restated"] > 500
        if proof.name == "windows":
            assert proof.numbers["rewritten"] > 1000
        if proof.name == "champion":
            assert proof.numbers["later_models"] >= 2


def test_nothing_of_the_home_changes_and_no_scratch_stays(clean, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = clean.state()
    newest(clean)
    assert list(tmp_path.iterdir()) == []
    assert clean.state() == before


def test_a_scratch_that_cannot_hold_it_is_an_error_with_numbers(clean, monkeypatch):
    monkeypatch.setattr("quant_pipeline.chain.scratch.BYTES_A_VALUE", 10**12)
    with pytest.raises(StoreError, match=r"GiB for a scratch copy, but .* has .* GiB.*TMPDIR"):
        newest(clean)


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(m, marks=[pytest.mark.long] * (m.name not in ALWAYS)) for m in MUTANTS],
    ids=lambda m: m.name,
)
def test_every_leak_is_caught_by_the_proof_that_must(mutant, tmp_path):
    with own_environment(tmp_path):
        found = caught(tmp_path / "home", mutant)
    assert mutant.caught_by in found, found


def test_there_are_enough_leaks_and_each_has_a_name():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 18


def test_a_score_that_was_changed_by_a_bit_is_found(copied):
    session = copied.rows("SELECT DISTINCT ts FROM predictions WHERE task_id = 'up_5d' ORDER BY 1")
    newest_half = [ts for (ts,) in session if ts.month == 5]
    day = newest_half[len(newest_half) // 2]
    copied.change_series(
        "UPDATE predictions SET score = score + 1e-16 WHERE task_id = 'up_5d' AND ts = ?", day
    )
    found = [p for p in newest(copied) if p.failed]
    assert [p.name for p in found] == ["scores"]
    assert "do not come out again, with any future" in found[0].words


def test_a_score_of_a_symbol_without_a_bar_is_found_and_ends_the_command_with_1(copied):
    copied.change_series("UPDATE predictions SET symbol = 'C999' WHERE symbol = 'C001'")
    said = call(copied.root, "audit", "--task", "up_5d")
    assert said.code == 1
    assert "first difference: scores, predictions (C999," in said.out


@pytest.mark.long
def test_after_a_restatement_older_models_still_hold(copied):
    copied.ingest(make_canaries(24, 380, 30).second)
    assert failed(newest(copied)) == set()


def test_the_command_tells_names_and_numbers(copied):
    rows = json.loads(
        call(copied.root, "audit", "--asof", "2019-04-15", "--task", "up_5d", "--json").out
    )
    assert {row["asof"] for row in rows} == {"2019-03-31", None}
    assert {row["outcome"] for row in rows} == {"holds"}
    assert set(rows[0]) == {"proof", "asof", "task", "outcome", "words", "numbers", "finding"}


def test_as_ofs_are_spread_and_a_date_before_all_is_told(clean):
    ws = clean.workspace
    assert len(choose_asofs(ws, ws.tasks(), 9)) == 2
    with pytest.raises(NoData, match="No model is as of 2000-01-01 or earlier"):
        newest_asof(ws, ws.tasks(), date(2000, 1, 1))
