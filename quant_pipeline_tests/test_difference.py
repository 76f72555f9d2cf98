"""What `quant diff` calls a cause: it is one, in both directions, and all of it adds up."""

import json
from collections.abc import Callable
from datetime import date
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_pipeline.chain import ingest as ingesting
from quant_pipeline.chain.difference import Difference, Step, diff_models, diff_scores
from quant_pipeline.chain.ingest_lists import ingest_memberships
from quant_pipeline.chain.learn import train_tasks, write_folds
from quant_pipeline.chain.predict import score_partition, score_shadow
from quant_pipeline.errors import QuantError
from quant_pipeline.market.canaries import make_canaries
from quant_pipeline.ml import boosters
from quant_pipeline.stores.meta import Model
from quant_pipeline_tests.homes import SmallHome
from quant_pipeline_tests.mutants import walk_data
from quant_pipeline_tests.test_cli import call

MARKET = (24, 380, 30)
DAY = date(2019, 5, 3)
TASK = "up_5d"


def quiet(*_: Any) -> None:
    """Tell nobody."""


@pytest.fixture(scope="module")
def canaries():
    return make_canaries(*MARKET)


def newest(made: SmallHome) -> Model:
    return made.workspace.meta.models(TASK)[-1]


def change_rows(made: SmallHome, change: Callable[[Model], dict[str, Any]]) -> None:
    """Change rows of the registry, as if another version had made them."""
    with made.workspace.meta.writing() as session:
        for model in made.workspace.meta.models(TASK):
            row = session.get(Model, model.model_id)
            assert row is not None
            for name, value in change(model).items():
                setattr(row, name, value)
            session.add(row)


def then_and_now(made: SmallHome, session: date = DAY) -> Difference:
    found = diff_scores(made.workspace, made.workspace.settings.task(TASK), session, quiet)
    require_whole(found)
    return found


def require_whole(found: Difference) -> None:
    """Steps change something, and add up to the whole for every symbol; so do the shares."""
    assert set(found.before) == set(found.after)
    for step in found.steps:
        assert step.changes_something
        assert set(step.change) == set(found.after)
    for symbol, after in found.after.items():
        whole = sum(step.change[symbol] for step in found.steps)
        assert whole == pytest.approx(after - found.before[symbol], abs=1e-12)
    shares = [row["share"] for row in found.rows()]
    if any(found.after[s] != before for s, before in found.before.items()):
        assert sum(shares) == pytest.approx(1.0, abs=1e-9)
    assert not set(found.after) & {*found.entered, *found.left}
    json.dumps(found.rows(), allow_nan=False)


def causes(found: Difference) -> list[str]:
    return [step.cause for step in found.steps]


def test_there_and_back_are_the_same_causes_with_opposite_signs(copied, canaries):
    old = copied.workspace.meta.models(TASK)[0]
    copied.ingest(canaries.second)
    copied.change_settings("learning_rate = 0.1", "learning_rate = 0.11")
    ws = copied.workspace
    walk_data(ws)
    task = ws.settings.task(TASK)
    write_folds(ws, "2019-03", task)
    new = train_tasks(ws, "2019-03", [task])[TASK]
    assert isinstance(new, Model)
    there, back = (diff_models(ws, *pair, DAY, quiet) for pair in ((old, new), (new, old)))
    for found in (there, back):
        require_whole(found)
    assert causes(there) == ["restated prices", "settings"]
    assert causes(back) == causes(there)[::-1]
    for one, other in zip(there.steps, back.steps[::-1], strict=True):
        assert one.change == {symbol: -change for symbol, change in other.change.items()}
    assert [row["share"] for row in there.rows()] == [row["share"] for row in back.rows()][::-1]
    assert f"batch {old.price_batch_id}, then {new.price_batch_id}" in there.steps[0].words
    assert f"batch {new.price_batch_id}, then {old.price_batch_id}" in back.steps[1].words


@pytest.mark.parametrize(
    ("recorded", "cause", "words"),
    [
        ({"code_version": "0.0.1+abc"}, "code", "code 0.0.1+abc then"),
        ({"environment": "numpy"}, "environment", "numpy 1.0.0 then"),
        ({"features": "others"}, "features", "own modules"),
        ({}, "unexplained", "see `quant verify"),
    ],
)
def test_other_training_is_named_for_what_is_recorded_as_other(
    copied, canaries, monkeypatch, recorded, cause, words
):
    later = canaries.second["ts"] > canaries.first["ts"].max()
    copied.ingest(canaries.second[later].reset_index(drop=True))  # a batch, and nothing restated
    if not recorded:
        assert then_and_now(copied).steps == ()
    if "environment" in recorded:
        change_rows(copied, lambda m: {"environment": m.environment | {"numpy": "1.0.0"}})
    elif "features" in recorded:
        monkeypatch.setattr("quant_pipeline.chain.workspace.FEATURE_VALUES", 99)
    else:
        change_rows(copied, lambda _: recorded)
    honest = boosters.booster_parameters
    monkeypatch.setattr(
        boosters, "booster_parameters", lambda *a: honest(*a) | {"learning_rate": 0.11}
    )
    found = then_and_now(copied)
    assert causes(found) == [cause]
    assert found.rows()[0]["share"] == 1.0
    assert words in found.steps[0].words


def test_code_is_no_cause_between_two_models_of_the_same_code(copied, monkeypatch):
    change_rows(copied, lambda _: {"code_version": "0.0.1+abc"})
    honest = boosters.booster_parameters
    monkeypatch.setattr(
        boosters, "booster_parameters", lambda *a: honest(*a) | {"learning_rate": 0.11}
    )
    a, b = copied.workspace.meta.models(TASK)
    found = diff_models(copied.workspace, a, b, DAY, quiet)
    require_whole(found)
    assert causes(found) == ["later data"]
    change_rows(copied, lambda m: {"code_version": m.model_id} if m.model_id == a.model_id else {})
    a, b = copied.workspace.meta.models(TASK)
    found = diff_models(copied.workspace, a, b, DAY, quiet)
    require_whole(found)
    assert causes(found) == ["code", "later data"]


@pytest.mark.parametrize(
    ("change", "why", "what_to_do"),
    [
        (
            lambda _: {"status": "imported"},
            "was imported, and learned from the prices of another home",
            "Run `quant diff` there, or make a model of these prices with `quant train --asof",
        ),
        (lambda _: {"status": "pruned"}, "its file was pruned", "`quant train --asof 2019-0"),
        (
            lambda m: {"environment": m.environment | {"lightgbm": "3.1.0"}},
            "was trained with LightGBM 3.1.0",
            "Install lightgbm==3.1.0",
        ),
        (
            lambda m: {
                "settings": m.settings
                | {"features": m.settings["features"] | {"include": ["NOPE"]}}
            },
            "its features are gone: No feature NOPE",
            "Set \\[features\\] of quant.toml and its modules back",
        ),
        (
            lambda m: {"settings": m.settings | {"train": m.settings["train"] | {"gone": 1}}},
            "does not take: train.gone",
            "Use the version that made it",
        ),
    ],
)
def test_what_cannot_be_taken_apart_is_refused_with_what_to_do(copied, change, why, what_to_do):
    changed = newest(copied).model_id
    change_rows(copied, lambda m: change(m) if m.model_id == changed else {})
    a, b = copied.workspace.meta.models(TASK)
    for pair in ((a, b), (b, a)):
        with pytest.raises(QuantError, match=f"{why}.*{what_to_do}"):
            diff_models(copied.workspace, *pair, DAY, quiet)
    if newest(copied).status != "imported":  # such a one does not serve
        with pytest.raises(QuantError, match=f"{why}.*{what_to_do}"):
            then_and_now(copied)


def test_a_day_without_a_session_is_refused(canary_home):
    a, b = canary_home.workspace.meta.models(TASK)
    for day in (date(2019, 5, 4), date(2018, 1, 1), date(2030, 1, 1)):
        with pytest.raises(QuantError, match=f"{day} is no session .* the newest is 2019-"):
            diff_models(canary_home.workspace, a, b, day, quiet)


@pytest.mark.long
def test_late_scores_are_compared_as_of_their_own_batch(copied, canaries):
    # Everybody's bar of the day before is corrected, so that it matters whose batch is taken.
    day_before = canaries.first["ts"] == pd.Timestamp(date(2019, 5, 2))
    restated = canaries.first[day_before].reset_index(drop=True)
    for name in ("close", "adj_close"):
        if name in restated:
            restated[name] *= 1.001
    copied.change_series("DELETE FROM predictions WHERE symbol = 'C001' AND ts = ?", DAY)
    copied.ingest(restated)
    ws = copied.workspace
    walk_data(ws)
    score_partition(ws, "2019-05", ws.settings.task(TASK))
    batches = copied.rows(
        "SELECT count(*) FROM predictions WHERE ts = ? AND task_id = ? GROUP BY price_batch_id "
        "ORDER BY price_batch_id",
        DAY, TASK,
    )  # fmt: skip
    assert [n for (n,) in batches] == [18, 1]
    found = then_and_now(copied)
    assert causes(found) == ["restated prices"]
    assert found.steps[0].change["C001"] == 0.0


@pytest.mark.long
def test_who_left_is_counted_and_told(copied):
    copied.change_settings("min_median_value = 1000.0", "min_median_value = 2000000.0")
    words = ("diff", "--ts", str(DAY), "--task", TASK)
    told = json.loads(call(copied.root, *words, "--json").out)
    walk_data(copied.workspace)  # features are of today's universe now, the stored scores are not
    found = then_and_now(copied)
    assert causes(found) == ["universe"]
    assert found.entered == []
    assert 0 < len(found.left) == 19 - len(found.after) < 18
    assert found.rows()[0]["n_left"] == len(found.left)
    assert (told["symbols"], told["n_entered"]) == (len(found.after), 0)
    assert told["left"] == found.left
    said = call(copied.root, *words)
    assert f"{len(found.after)} scores of {DAY}, before and after; shares are over" in said.out
    assert f"0 more entered the universe, {len(found.left)} left it." in said.out
    refused = call(copied.root, *words, "--symbol", found.left[0])
    assert refused.code == 1
    gone = (
        f"{found.left[0]} has a score of {DAY} only before: it left the universe (cause: universe"
    )
    assert gone in refused.err


def test_who_entered_is_counted(copied):
    copied.change_settings("memberships = true", "memberships = false")
    found = then_and_now(copied)
    assert causes(found) == ["universe"]
    assert found.left == []
    assert found.rows()[0]["n_entered"] == len(found.entered) > 0


def test_another_list_of_members_is_the_universe_and_no_price(copied, canaries):
    gone = sorted(then_and_now(copied).after)[0]
    members = copied.root / "members.parquet"
    canaries.members[canaries.members["symbol"] != gone].to_parquet(members, index=False)
    ws = copied.workspace
    ingest_memberships(ws, members, ingesting.reading_of(ws))
    found = then_and_now(copied)
    assert set(causes(found)) == {"universe"}
    assert found.left == [gone]


def test_another_champion_is_the_whole_difference(copied):
    ws = copied.workspace
    older = ws.meta.models(TASK)[0]
    score_shadow(ws, older, DAY, DAY)
    copied.change_series("DELETE FROM predictions WHERE ts = ? AND task_id = ?", DAY, TASK)
    copied.change_series("INSERT INTO predictions BY NAME FROM predictions_shadow")
    found = then_and_now(copied)
    assert causes(found) == ["champion"]
    assert older.model_id[:12] in found.steps[0].words


def test_no_change_is_told_without_shares(canary_home):
    model = newest(canary_home).model_id
    told = json.loads(call(canary_home.root, "diff", model, model, "--json").out)
    assert told["causes"] == []
    said = call(canary_home.root, "diff", model, model, "--ts", str(DAY))
    assert said.out == f"19 scores of {DAY}, the same before and after.\n"


values = st.floats(-1e6, 1e6, allow_subnormal=True)


@given(st.integers(0, 5).flatmap(lambda n: st.lists(st.lists(values, min_size=n, max_size=n))))
def test_shares_add_up_or_there_are_none(changes):
    """Whatever steps change: also by next to nothing, and if they cancel each other."""
    n = len(changes[0]) if changes else 0
    steps = tuple(Step("a", "", {str(i): row[i] for i in range(n)}) for row in changes)
    before = {str(i): 0.0 for i in range(n)}
    after = {str(i): sum(row[i] for row in changes) for i in range(n)}
    rows = Difference(DAY, before, after, steps).rows()
    json.dumps(rows, allow_nan=False)
    shares = [row["share"] for row in rows]
    if any(after.values()) and None not in shares:
        assert sum(shares) == pytest.approx(1.0, abs=1e-5)
    else:
        assert set(shares) <= {None}


def test_steps_that_cancel_each_other_have_no_shares():
    steps = (Step("a", "", {"A": 0.1 + 0.2}), Step("b", "", {"A": -0.3}))
    found = Difference(DAY, {"A": 0.0}, {"A": 0.1 + 0.2 - 0.3}, steps)
    assert found.after["A"] != 0.0
    assert [row["share"] for row in found.rows()] == [None, None]
