"""`quant demo --synthetic` from an empty folder: what was planted is found, all of it proved."""

from pathlib import Path

import pytest

from quant_pipeline_tests.homes import own_environment
from quant_pipeline_tests.test_cli import call

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made_up")
    with own_environment(folder):
        yield folder


@pytest.fixture(scope="module")
def found(home: Path) -> dict:
    return call(home, "demo", "--synthetic", "--json").json


def test_scores_find_what_was_planted_and_no_more(found):
    for score in found["scores"]:
        planted = found["planted_ic"][score["score"].removeprefix("task ").split(":")[0]]
        assert abs(score["rank_ic"] - planted) < 3.0 * score["rank_ic_se"]
    assert found["events"]["split"] == found["symbols"]


def test_it_can_be_audited_and_rebuilt_though_the_vendor_restated(found, home):
    proofs = call(home, "audit", "--samples", "2", "--json").json
    assert {p["outcome"] for p in proofs} == {"holds"}
    assert len({p["asof"] for p in proofs if p["asof"]}) == 2
    rebuilt = call(home, "verify", "--all", "--json").json
    assert {v["outcome"] for v in rebuilt} == {"identical"}
    assert any(v["today"] for v in rebuilt)
    briefly = call(home, "verify", "--all")
    assert "sessions of scores: came out again bit for bit" in briefly.out
    assert len(briefly.out.splitlines()) < 20
