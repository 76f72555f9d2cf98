"""Gates: what may serve, what must be there, what must not have changed."""

import math
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.errors import DegenerateData, GateError
from quant_pipeline.ml.gate import (
    find_changed_fingerprints,
    find_missing_partitions,
    require_complete,
    require_model_before,
    require_unchanged,
    require_usable,
)

DAYS = st.integers(0, 40).map(lambda n: date(2017, 6, 1) + timedelta(days=n))
KEYS = st.lists(st.integers(1, 12).map(lambda month: f"2017-{month:02d}"), unique=True)


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
        ({"n_rows": 10, "ic": 0.1}, 5, "no loss and no ndcg_at_k"),
    ],
)
def test_a_model_that_cannot_score_is_refused_by_name(metrics, n_splits, what):
    with pytest.raises(DegenerateData, match=f"up_5d.*{what}"):
        require_usable("up_5d", metrics, n_splits)
