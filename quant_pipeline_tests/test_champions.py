"""Who serves: a pure function of what is registered, replayed in as-of order."""

from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.ml.champions import Contender, judge, replay
from quant_pipeline.settings import ChampionSettings

DAYS = st.integers(0, 40).map(lambda n: date(2017, 6, 1) + timedelta(days=n))
START = date(2017, 7, 1)
SPEC = ChampionSettings()


def nobody(model_id: str) -> tuple[np.ndarray, np.ndarray]:
    raise AssertionError("nothing is to be compared")


def series(mean: float, n: int = 100, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    days = np.busday_offset("2017-01-02", np.arange(n), roll="forward")
    return days, mean + 0.1 * np.random.default_rng(seed).standard_normal(n)


@st.composite
def contenders(draw, recipes=("a",)):
    facts = st.tuples(
        DAYS, st.sampled_from(["ready", "failed", "retired"]), st.sampled_from(recipes)
    )
    rows = draw(st.lists(facts, max_size=12))
    return [Contender(f"m{i}", *row) for i, row in enumerate(rows)]


@settings(deadline=None)
@given(contenders(), DAYS)
def test_of_one_recipe_the_newest_ready_model_before_the_partition_serves(models, start):
    decision = replay(None, models, start, nobody, 10, SPEC)
    allowed = [m for m in models if m.status == "ready" and m.asof < start]
    assert decision.why
    if decision.model_id is None:
        assert not allowed
        return
    champion = next(model for model in allowed if model.model_id == decision.model_id)
    assert champion.asof == max(model.asof for model in allowed)
    same_asof = [model.model_id for model in allowed if model.asof == champion.asof]
    assert champion.model_id == same_asof[-1]


@settings(deadline=None)
@given(contenders(("a", "b")), DAYS, st.integers(0, 20))
def test_models_as_of_the_partition_or_later_never_change_its_champion(models, start, later):
    future = Contender("future", start + timedelta(days=later), "ready", "a")

    def compared(model_id):
        return series(0.0, seed=int(model_id[1:]))

    before = replay(None, models, start, compared, 10, SPEC)
    after = replay(None, [future, *models, future], start, compared, 10, SPEC)
    assert after.model_id == before.model_id


@settings(deadline=None)
@given(contenders(("a", "b", "c")), st.integers(1, 12))
def test_a_decision_may_be_taken_in_one_step_or_in_many(models, n_parts):
    """What was decided earlier is where the next decision goes on from."""

    def compared(model_id):
        return series(0.0, seed=int(model_id[1:]))

    at_once = replay(None, models, START, compared, 10, SPEC)
    incumbent, last = None, date(2017, 5, 31)
    cuts = [last + timedelta(days=41 * i // n_parts + 1) for i in range(1, n_parts)]
    for cut in [c for c in cuts if c < START] + [START]:
        mine = [m for m in models if last <= m.asof or incumbent is None]
        found = replay(incumbent, mine, cut, compared, 10, SPEC)
        incumbent = next((m for m in models if m.model_id == found.model_id), incumbent)
        last = cut
    assert (incumbent.model_id if incumbent else None) == at_once.model_id


OLD = Contender("old", date(2017, 5, 31), "ready", "a")
NEW = Contender("new", date(2017, 6, 30), "ready", "b")


def decide(new: float, old: float = 0.0, n: int = 100, **changes: object) -> str | None:
    spec = SPEC.model_copy(update=changes)
    found = {"old": series(old, n, 1), "new": series(new, n, 2)}
    return replay(OLD, [OLD, NEW], START, found.__getitem__, 10, spec).model_id


def test_another_recipe_takes_over_unless_it_is_worse_beyond_its_error():
    assert decide(0.0) == "new"
    assert decide(-0.005) == "new"
    assert decide(-0.2) == "old"
    assert decide(0.2) == "new"


def test_another_recipe_has_to_be_better_if_that_is_asked_for():
    assert decide(0.0, rule="if_better") == "old"
    assert decide(0.2, rule="if_better") == "new"
    assert decide(-0.2, rule="newest") == "new"


def test_on_too_few_common_sessions_the_setting_decides():
    for sign in (-1, 1):
        assert decide(sign * 0.3, n=40) == "new"
        assert decide(sign * 0.3, n=40, insufficient="keep") == "old"
    assert decide(-0.3, n=40, min_sessions=30) == "old"


def test_a_wider_error_is_forgiven_more():
    assert decide(-0.03, z=0.5) == "old"
    assert decide(-0.03, z=10.0) == "new"


def test_only_sessions_that_both_were_tested_on_count():
    days, values = series(0.0, 200)
    challenger = days[:120], np.where(np.arange(120) < 100, values[:120], 5.0)
    champion = days[:100], values[:100]
    for rule in ("unless_worse", "if_better"):
        spec = SPEC.model_copy(update={"rule": rule})
        is_better, why = judge(challenger, champion, 10, spec)
        assert is_better == (spec.insufficient == "promote")
        assert "only 100 of" in why or "common sessions" in why
    unlike = champion[0], champion[1] + np.random.default_rng(3).normal(0.1, 0.05, 100)
    assert judge(unlike, champion, 10, SPEC)[1].endswith("on 100 sessions")


def test_a_held_champion_is_not_challenged():
    for since in (date(2017, 6, 1), date(2017, 6, 30)):
        found = replay(OLD, [OLD, NEW], START, nobody, 10, SPEC, since)
        assert found.model_id == "old"
        assert "held since" in found.why
    refit = Contender("refit", date(2017, 6, 30), "ready", "a")
    assert replay(OLD, [OLD, refit], START, nobody, 10, SPEC, date(2017, 6, 1)).model_id == "old"
    assert replay(OLD, [OLD, refit], START, nobody, 10, SPEC, date(2017, 7, 1)).model_id == "refit"


def test_a_retired_champion_makes_way():
    gone = Contender("old", OLD.asof, "retired", "a")
    assert replay(gone, [gone, NEW], START, nobody, 10, SPEC).model_id == "new"
    assert replay(gone, [gone], START, nobody, 10, SPEC).model_id is None


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        ([], "no model has been trained yet"),
        ([Contender("a", date(2017, 5, 31), "failed", "r")], "none of the 1 models is ready"),
        ([Contender("a", date(2017, 7, 31), "ready", "r")], "as of 2017-07-31, not before"),
    ],
)
def test_no_champion_comes_with_a_reason_in_words(models, reason):
    decision = replay(None, models, START, nobody, 10, SPEC)
    assert decision.model_id is None
    assert reason in decision.why
