"""Gates: what may serve, what must be there, what must not have changed."""

import math
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.errors import DegenerateData, GateError
from quant_pipeline.ml.gate import (
    ModelRow,
    decide_champion,
    find_changed_fingerprints,
    find_missing_partitions,
    require_complete,
    require_model_before,
    require_unchanged,
    require_usable,
)

DAYS = st.integers(0, 40).map(lambda n: date(2017, 6, 1) + timedelta(days=n))
KEYS = st.lists(st.integers(1, 12).map(lambda month: f"2017-{month:02d}"), unique=True)


@st.composite
def model_rows(draw):
    facts = st.tuples(
        st.sampled_from(["up_5d", "ret_5d"]), DAYS, st.sampled_from(["ready", "failed", "pending"])
    )
    rows = draw(st.lists(facts, max_size=12))
    return [ModelRow(f"m{i}", *row) for i, row in enumerate(rows)]


@settings(deadline=None)
@given(model_rows(), st.sampled_from(["up_5d", "ret_5d"]), DAYS)
def test_the_champion_is_ready_of_its_task_and_older_than_the_partition(models, task_id, start):
    decision = decide_champion(models, task_id, start)
    allowed = [m for m in models if (m.task_id, m.status) == (task_id, "ready") and m.asof < start]
    assert decision.why
    if decision.model_id is None:
        assert not allowed
        return
    champion = next(model for model in allowed if model.model_id == decision.model_id)
    assert champion.asof == max(model.asof for model in allowed)
    same_asof = [model.model_id for model in allowed if model.asof == champion.asof]
    assert champion.model_id == same_asof[-1]


@settings(deadline=None)
@given(model_rows(), DAYS, st.integers(0, 20))
def test_models_as_of_the_partition_or_later_never_change_its_champion(models, start, later):
    future = ModelRow("future", "up_5d", start + timedelta(days=later), "ready")
    before = decide_champion(models, "up_5d", start).model_id
    assert decide_champion([future, *models, future], "up_5d", start).model_id == before


def test_of_two_models_with_one_asof_the_one_listed_last_serves():
    may, june = date(2017, 5, 31), date(2017, 6, 30)
    models = [ModelRow(name, "up_5d", june, "ready") for name in ("first", "again")]
    models += [ModelRow("failed", "up_5d", june, "failed"), ModelRow("old", "up_5d", may, "ready")]
    assert decide_champion(models, "up_5d", date(2017, 7, 1)).model_id == "again"


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        ([], "no model of up_5d has been trained yet"),
        ([ModelRow("a", "ret_5d", date(2017, 5, 31), "ready")], "no model of up_5d"),
        ([ModelRow("a", "up_5d", date(2017, 5, 31), "failed")], "none of the 1 models"),
        ([ModelRow("a", "up_5d", date(2017, 7, 31), "ready")], "as of 2017-07-31, not before"),
    ],
)
def test_no_champion_comes_with_a_reason_in_words(models, reason):
    decision = decide_champion(models, "up_5d", date(2017, 7, 1))
    assert decision.model_id is None
    assert reason in decision.why


@settings(deadline=None)
@given(DAYS, DAYS)
def test_a_model_never_scores_a_session_it_may_have_seen(asof, session):
    if asof < session:
        require_model_before(asof, session)
    else:
        with pytest.raises(GateError, match=f"as of {asof}.*{session}"):
            require_model_before(asof, session)


@settings(deadline=None)
@given(KEYS, KEYS)
def test_a_gate_opens_only_when_every_expected_partition_is_there(expected, present):
    missing = find_missing_partitions(expected, set(present))
    assert missing == [key for key in expected if key not in present]
    if not missing:
        require_complete("labels", expected, present, "quant backfill")
        return
    with pytest.raises(GateError) as caught:
        require_complete("labels", expected, present, "quant backfill")
    message = str(caught.value)
    assert f"labels lacks {len(missing)} of {len(expected)} partitions" in message
    assert missing[0] in message
    assert message.endswith("Run `quant backfill` first.")


def test_only_the_first_few_missing_partitions_are_named():
    expected = [f"2017-{month:02d}" for month in range(1, 13)]
    with pytest.raises(GateError, match="2017-01, 2017-02, 2017-03 and 9 more"):
        require_complete("labels", expected, [], "quant backfill")


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("xyz")), st.data())
def test_a_fingerprint_that_changed_came_or_went_is_found(recorded, data):
    found = data.draw(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("xyz")))
    changed = find_changed_fingerprints(recorded, found)
    assert set(changed) == {key for key, _ in set(recorded.items()) ^ set(found.items())}
    assert changed == sorted(changed)
    if changed:
        with pytest.raises(GateError, match=f"in {len(changed)} partitions: {changed[0]}.*Run `q`"):
            require_unchanged("training_frame", recorded, found, "q")
    else:
        require_unchanged("training_frame", recorded, found, "q")


def test_a_model_with_a_finite_loss_and_a_split_is_usable():
    require_usable("up_5d", {"n_rows": 10, "log_loss": 0.69, "ic": math.nan, "auc": None}, 1)
    require_usable("ret_5d", {"n_rows": 10, "mse": 0.08, "fold": "1"}, n_splits=3)


@pytest.mark.parametrize(
    ("metrics", "n_splits", "what"),
    [
        ({"n_rows": 10, "log_loss": 0.69}, 0, "no split"),
        ({"n_rows": 0, "log_loss": 0.69}, 5, "no out-of-sample score"),
        ({"log_loss": 0.69}, 5, "no out-of-sample score"),
        ({"n_rows": 10, "log_loss": math.nan}, 5, "log_loss = nan"),
        ({"n_rows": 10, "mse": math.inf}, 5, "mse = inf"),
        ({"n_rows": 10, "mse": None}, 5, "mse = None"),
        ({"n_rows": 10, "mse": 0.1, "ic": math.inf}, 5, "ic = inf"),
        ({"n_rows": 10, "ic": 0.1}, 5, "neither log_loss nor mse"),
    ],
)
def test_a_model_that_cannot_score_is_refused_by_name(metrics, n_splits, what):
    with pytest.raises(DegenerateData, match=f"up_5d.*{what}"):
        require_usable("up_5d", metrics, n_splits)
