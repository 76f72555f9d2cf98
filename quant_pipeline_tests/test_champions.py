"""Who serves: a pure function of what is registered, replayed in as-of order."""

from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.ml.champions import Contender, Evidence, judge, replay
from quant_pipeline.settings import ChampionSettings

DAYS = st.integers(0, 40).map(lambda n: date(2017, 6, 1) + timedelta(days=n))
START = date(2017, 7, 1)
SPEC = ChampionSettings()


def nobody(recipe: str, asof: date) -> Evidence:
    raise AssertionError("nothing is to be compared")


def series(
    mean: float,
    n: int = 100,
    seed: int = 0,
    chosen: date = date(2016, 12, 31),
    protocol: str = "walk_forward",
) -> Evidence:
    days = np.busday_offset("2017-01-02", np.arange(n), roll="forward")
    values = mean + 0.1 * np.random.default_rng(seed).standard_normal(n)
    return Evidence(days, values, chosen, protocol)


def compared(recipe: str, asof: date) -> Evidence:
    """Evidence that differs by recipe and grows with time."""
    return series(0.0, (asof - date(2017, 1, 2)).days, seed=ord(recipe))


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

    before = replay(None, models, start, compared, 10, SPEC)
    after = replay(None, [future, *models, future], start, compared, 10, SPEC)
    assert after.model_id == before.model_id


@settings(deadline=None)
@given(contenders(("a", "b", "c")), st.integers(1, 12))
def test_a_decision_may_be_taken_in_one_step_or_in_many(models, n_parts):
    """What was decided earlier is where the next decision goes on from."""
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
    found = {"a": series(old, n, 1), "b": series(new, n, 2)}
    return replay(OLD, [OLD, NEW], START, lambda recipe, _: found[recipe], 10, spec).model_id


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
    short, long = series(0.0, 100), series(0.0, 200, 1)
    for rule in ("unless_worse", "if_better"):
        spec = SPEC.model_copy(update={"rule": rule})
        assert judge(long, short, 10, spec)[1].endswith("on 100 sessions")
    is_better, why = judge(long, series(0.0, 59), 10, SPEC)
    assert is_better
    assert why.startswith("only 59 of the 60 common sessions")


def test_equal_scores_are_not_worse_and_not_better():
    same = series(0.0)
    assert judge(same, same, 10, SPEC)[0]
    assert not judge(same, same, 10, SPEC.model_copy(update={"rule": "if_better"}))[0]
    assert "+0.0000 ± 0.0000" in judge(same, same, 10, SPEC)[1]


def test_sessions_that_led_the_choice_of_settings_are_no_proof_of_being_better():
    better, old = series(0.2, 200, 1, chosen=date(2017, 12, 31)), series(0.0, 200, 2)
    spec = SPEC.model_copy(update={"rule": "if_better"})
    is_better, why = judge(better, old, 10, spec)
    assert not is_better
    assert why.endswith("on 200 sessions, which may have led the choice of settings")
    assert not judge(series(-0.2, 200, 1, chosen=date(2017, 12, 31)), old, 10, SPEC)[0]
    half = series(0.2, 200, 1, chosen=better.sessions[99].item())
    is_better, why = judge(half, old, 10, spec)
    assert is_better
    assert why.endswith("on 100 sessions")


def test_tests_under_unlike_protocols_are_not_compared():
    is_better, why = judge(series(-0.5, protocol="cpcv"), series(0.0), 10, SPEC)
    assert is_better
    assert "cpcv and walk_forward cannot be compared" in why
    keep = SPEC.model_copy(update={"insufficient": "keep"})
    assert not judge(series(0.5, protocol="cpcv"), series(0.0), 10, keep)[0]


def test_a_recipe_whose_scores_tell_nothing_apart_does_not_take_over():
    days = series(0.0).sessions
    silent = Evidence(days, np.full(len(days), np.nan), date(2016, 12, 31), "walk_forward")
    is_better, why = judge(silent, series(0.0), 10, SPEC)
    assert not is_better
    assert why == "its scores tell the names apart on only 0 of 100 common sessions"


def months(n: int) -> list[date]:
    return [date(2017 + (m + 1) // 12, (m + 1) % 12 + 1, 1) - timedelta(days=1) for m in range(n)]


def test_a_worse_recipe_stays_out_however_long_it_is_tried():
    """Its refits bring new sessions, on which the champion was never tested."""
    models = [Contender("old", months(1)[0], "ready", "a")]
    models += [Contender(f"worse{i}", asof, "ready", "b") for i, asof in enumerate(months(30))]

    def tested(recipe, asof):
        return series(-0.2, 300, 1) if recipe == "b" else series(0.0, 120, 2)

    for start in (date(2017, 3, 1), date(2019, 6, 1)):
        assert replay(None, models, start, tested, 10, SPEC).model_id == "old"


def test_a_refit_of_the_champion_follows_it_beside_a_worse_recipe():
    models = [
        Contender(f"{recipe}{i}", asof, "ready", recipe)
        for i, asof in enumerate(months(12)) for recipe in "ab"
    ]  # fmt: skip

    def tested(recipe, asof):
        return series(-0.2 if recipe == "b" else 0.0, 200, ord(recipe))

    assert replay(None, models, date(2018, 1, 1), tested, 10, SPEC).model_id == "a11"


@pytest.mark.parametrize(("better", "winner"), [(0.0, "b"), (0.2, "a")])
def test_two_recipes_that_are_both_refitted_do_not_take_turns(better, winner):
    """The older one had its day: it has to be better to come back."""
    models = [Contender("a0", months(1)[0], "ready", "a")]
    models += [
        Contender(f"{recipe}{i}", asof, "ready", recipe)
        for i, asof in enumerate(months(12)) if i for recipe in "ab"
    ]  # fmt: skip
    known = {"a": 1, "b": 2}

    def tested(recipe, asof):
        grown = better if asof > date(2017, 6, 1) and recipe == "a" else 0.0
        return series(grown, 200, ord(recipe))

    champions = []
    for start in (date(2017, 5, 1), date(2018, 1, 1)):
        found = replay(None, models, start, tested, 10, SPEC, known_since=known.__getitem__)
        champions.append(found.model_id)
    assert champions == ["b3", f"{winner}11"]


def held(first: date, last: date | None = None):
    return lambda day: first if first <= day and (last is None or day < last) else None


def test_a_held_champion_is_not_challenged():
    for since in (date(2017, 6, 1), date(2017, 7, 1)):
        found = replay(OLD, [OLD, NEW], START, nobody, 10, SPEC, held(since))
        assert found.model_id == "old"
        assert "held since" in found.why
    refit = Contender("refit", date(2017, 6, 30), "ready", "a")
    later = date(2017, 7, 2)
    assert replay(OLD, [OLD, refit], START, nobody, 10, SPEC, held(OLD.asof)).model_id == "old"
    assert replay(OLD, [OLD, refit], START, nobody, 10, SPEC, held(later)).model_id == "refit"
    released = held(date(2017, 6, 1), date(2017, 7, 1))
    assert replay(OLD, [OLD, refit], START, nobody, 10, SPEC, released).model_id == "refit"


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
