"""The audit's proofs one by one: what is no leak is no alarm, and what is one is named."""

from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest
from sqlmodel import SQLModel, select

from quant_pipeline.chain import champions, judge, judged
from quant_pipeline.chain.audit import audit, choose_asofs
from quant_pipeline.chain.champions import promote
from quant_pipeline.chain.exchange import export_model, import_model
from quant_pipeline.chain.folds import cut_folds
from quant_pipeline.chain.learn import train_tasks, write_folds
from quant_pipeline.chain.predict import score_partition
from quant_pipeline.chain.proofs import recipes
from quant_pipeline.chain.proofs.champion import frozen_after, prove_champion
from quant_pipeline.chain.proofs.recipes import prove_recipes, shipped_digests
from quant_pipeline.chain.proofs.result import Proof
from quant_pipeline.chain.proofs.structure import prove_served, prove_structure
from quant_pipeline.chain.scratch import empty_home
from quant_pipeline.ml import boosters, splits
from quant_pipeline.settings import SHIPPED_CHOSEN_ASOF, Settings
from quant_pipeline.stores.meta import Champion, Model, Trial
from quant_pipeline_tests.homes import SmallHome, own_environment
from quant_pipeline_tests.mutants import FROM, MUTANTS, TO


@pytest.fixture(scope="module")
def clean(canary_home) -> SmallHome:
    return canary_home


@pytest.fixture(scope="module")
def two_recipes(clean, tmp_path_factory) -> SmallHome:
    """Three as-ofs: the newest model has another learning rate, and serves."""
    folder = tmp_path_factory.mktemp("two_recipes")
    with own_environment(folder):
        made = clean.copy(folder / "home")
        ws = made.workspace
        train(made, ws.grid.shift(FROM, -1))
        made.change_series("DELETE FROM predictions WHERE ts >= ?", ws.grid.window(TO)[1])
        with ws.meta.writing() as session:
            newest = [c for c in ws.meta.champions() if c.from_ts > ws.grid.asof(TO)]
            for row in (*newest, *(m for m in ws.meta.models() if m.partition_key == TO)):
                session.delete(row)
                session.flush()
        made.change_settings("learning_rate = 0.1", "learning_rate = 0.2")
        train(made, TO)
        for task in ws.tasks():
            score_partition(made.workspace, ws.grid.shift(TO, 1), task)
        return made


def train(made: SmallHome, key: str) -> None:
    ws = made.workspace
    for task in ws.tasks():
        write_folds(ws, key, task)
    train_tasks(ws, key, ws.tasks())


@pytest.fixture
def copied(clean, tmp_path):
    with own_environment(tmp_path):
        yield clean.copy(tmp_path / "home")


@pytest.fixture
def copied_two(two_recipes, tmp_path):
    with own_environment(tmp_path):
        yield two_recipes.copy(tmp_path / "home")


def chosen_again(
    made: SmallHome, task_id: str = "up_5d", made_up: SmallHome | None = None
) -> Proof:
    """The proof of the champion after the newest as-of, with sessions of the same or of a home."""
    ws = made.workspace
    task = ws.settings.task(task_id)
    (asof,) = choose_asofs(ws, [task], 1)
    frozen = frozen_after(ws, task, asof)
    assert frozen is not None
    with empty_home(ws, ws.settings) as empty:
        sessions = replace(empty, series=(made_up or made).workspace.series)
        return prove_champion(ws, sessions, task, frozen, asof, np.random.default_rng(0))


# --- Champions


def leak(name, patch):
    next(m for m in MUTANTS if m.name == name).make(patch)


def serves_as_of_its_first_day(patch):
    original = champions._replay
    patch.setattr(
        champions, "_replay",
        lambda ws, task, start, *args: original(ws, task, start + timedelta(days=1), *args),
    )  # fmt: skip


def judged_by_later_tests(patch):
    """Evidence for a recipe is that of all its models, whatever their as-of."""
    original = champions._tested

    def leaking(ws, trained):
        tested = original(ws, trained)
        return lambda recipe, _asof: tested(recipe, date.max)

    patch.setattr(champions, "_tested", leaking)


@pytest.mark.parametrize("task_id", ["up_5d", "ret_5d"])
@pytest.mark.parametrize(
    "make",
    [
        lambda patch: leak("champion chosen in hindsight", patch),
        lambda patch: leak("champion as of the end of its window", patch),
        serves_as_of_its_first_day,
    ],
    ids=["hindsight", "end of the window", "first day"],
)
def test_the_newest_champion_shows_each_leak(clean, monkeypatch, make, task_id):
    assert chosen_again(clean, task_id).outcome == "holds"
    make(monkeypatch)
    found = chosen_again(clean, task_id)
    assert found.failed
    assert "another one in hindsight" in found.words


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["champion chosen in hindsight", "champion as of the end of its window"]
)
def test_an_audit_of_the_newest_as_of_alone_shows_leaks_of_champions(clean, monkeypatch, name):
    leak(name, monkeypatch)
    ws = clean.workspace
    found = audit(ws, choose_asofs(ws, ws.tasks(), 1), ws.tasks())
    assert {p.task_id for p in found if p.name == "champion" and p.failed} == {"up_5d", "ret_5d"}


def test_later_tests_of_a_recipe_do_not_count_either(two_recipes, monkeypatch):
    assert chosen_again(two_recipes).outcome == "holds"
    judged_by_later_tests(monkeypatch)
    assert chosen_again(two_recipes).failed


def test_a_champion_is_chosen_by_the_rule_of_its_day(copied_two):
    file = copied_two.root / "quant.toml"
    file.write_text(file.read_text() + '\n[champion]\ninsufficient = "keep"\n')
    assert chosen_again(copied_two).outcome == "holds"
    change(copied_two, Champion, rule="")  # as in a registry of layout 2
    found = chosen_again(copied_two)
    assert found.outcome == "unproven"
    assert "by today's [champion], and that of then was not recorded" in found.words


def freeze_another(made: SmallHome, choose) -> None:
    """Behind the back of all, the newest champion becomes one that somebody chose."""
    ws = made.workspace
    with ws.meta.writing() as session:
        last = ws.meta.champions("up_5d")[-1]
        row = session.get(Champion, (last.task_id, last.partition_key, last.from_ts))
        row.model_id, why = choose(ws.meta.models("up_5d"))
        row.why = why or row.why
        session.add(row)


def test_a_champion_that_its_rule_does_not_give_is_an_alarm(copied_two):
    freeze_another(copied_two, lambda models: (models[0].model_id, ""))
    found = chosen_again(copied_two)
    assert found.failed
    assert "does not come out of the models of then" in found.words


def change(made: SmallHome, kind: type[SQLModel], **values) -> None:
    """Change columns of all rows of a table of the registry, behind the back of all."""
    with made.workspace.meta.writing() as session:
        for row in session.exec(select(kind)):
            for name, value in values.items():
                setattr(row, name, value)
            session.add(row)


def test_a_champion_by_order_from_the_start_of_a_window_on_is_no_alarm(copied):
    ws = copied.workspace
    task = ws.settings.task("up_5d")
    frozen = ws.meta.champions("up_5d")[-1]
    first = ws.meta.models("up_5d")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(champions, "next_day", lambda _: frozen.from_ts)
        promote(ws, first.model_id, "it is older")
    assert ws.meta.champions(task.task_id)[-1].model_id == first.model_id
    found = chosen_again(copied)
    assert found.outcome == "holds"
    assert "by order of a person" in found.words


def test_a_window_that_is_open_in_the_made_up_sessions_alone_is_no_alarm(clean, copied):
    asof = clean.workspace.grid.asof(TO)
    copied.change_series("DELETE FROM session_versions WHERE ts >= ?", asof - timedelta(days=9))
    copied.change_series('DELETE FROM seals WHERE "asof" >= ?', asof)
    assert chosen_again(clean, made_up=copied).outcome == "holds"


# --- Structure and stored scores


def structure(made: SmallHome) -> Proof:
    ws = made.workspace
    task = ws.settings.task("up_5d")
    cut_folds(ws, TO, task)
    (proof,) = prove_structure(ws, [ws.meta.models("up_5d")[-1]])
    return proof


@pytest.mark.parametrize("embargo", [0, 3])
@pytest.mark.parametrize("protocol", ["walk_forward", "cpcv"])
def test_the_embargo_of_either_protocol_is_where_it_belongs(copied, protocol, embargo):
    copied.change_settings(
        "n_folds = 2\nembargo_sessions = 3",
        f'n_folds = 2\nn_groups = 4\nprotocol = "{protocol}"\nembargo_sessions = {embargo}',
    )
    assert str(structure(copied).finding) == "None"


@pytest.mark.long
def test_models_of_combinations_pass_the_audit(copied):
    copied.change_settings("n_folds = 2", 'n_folds = 2\nn_groups = 4\nprotocol = "cpcv"')
    train(copied, TO)
    ws = copied.workspace
    assert ws.meta.models("up_5d")[-1].settings["folds"]["protocol"] == "cpcv"
    found = audit(ws, choose_asofs(ws, ws.tasks(), 1), ws.tasks())
    assert [str(p.finding or p.words) for p in found if p.outcome != "holds"] == []
    assert all(p.numbers["folds"] == 6 for p in found if p.name == "windows")


def test_combinations_without_their_embargo_are_found(copied, monkeypatch):
    copied.change_settings("n_folds = 2", 'n_folds = 2\nn_groups = 4\nprotocol = "cpcv"')
    original = splits.make_layout

    def leaking(starts, tested, label_span, embargo, n_stop):
        return original(starts, tested, label_span, embargo - 1, n_stop)

    monkeypatch.setattr(splits, "make_layout", leaking)
    found = structure(copied)
    assert found.failed
    assert "test to " in str(found.finding)


def test_scores_of_a_task_that_is_no_longer_asked_for_are_proved_too(copied):
    file = copied.root / "quant.toml"
    file.write_text(
        file.read_text() + '\n[[tasks]]\ntask_id = "up_5d"\nkind = "classification"\nhorizon = 5\n'
    )
    assert [task.task_id for task in copied.workspace.tasks()] == ["up_5d"]
    (proof,) = prove_served(copied.workspace)
    assert str(proof.finding) == "None"
    copied.change_series(
        "UPDATE predictions SET model_id = ? WHERE task_id = 'ret_5d' AND ts > '2019-05-01'",
        copied.workspace.meta.models("ret_5d")[0].model_id,
    )
    (proof,) = prove_served(copied.workspace)
    assert proof.failed


# --- Settings


@pytest.mark.parametrize(
    "name",
    ["a hand's settings dated too early", "sessions before the choice reported out of sample"],
)
def test_leaks_of_settings_are_found_in_what_is_stored(copied, monkeypatch, name):
    (proof,) = prove_recipes(copied.workspace)
    assert proof.outcome == "holds"
    assert proof.numbers == {"recipes": 2, "sessions": 4}
    if "dated" in name:
        for kind in (Model, Trial):
            change(copied, kind, chosen_asof=SHIPPED_CHOSEN_ASOF)
    else:
        leak(name, monkeypatch)
    (proof,) = prove_recipes(copied.workspace)
    assert proof.failed


@pytest.mark.parametrize("name", ["judge_predictions", "judge_sessions"])
def test_both_reports_are_looked_at(clean, monkeypatch, name):
    module = {"judge_predictions": judge, "judge_sessions": judged}[name]
    honest = getattr(module, name)
    leak("sessions before the choice reported out of sample", monkeypatch)
    other = {judge: (judged, "judge_sessions"), judged: (judge, "judge_predictions")}[module]
    assert getattr(module, name) is not honest
    monkeypatch.setattr(*other, ORIGINAL[other[1]])
    (proof,) = prove_recipes(clean.workspace)
    assert "out of sample in reports" in str(proof.finding)


ORIGINAL = {"judge_predictions": judge.judge_predictions, "judge_sessions": judged.judge_sessions}


def test_reports_that_cannot_be_asked_leave_it_unproven(copied):
    ids = [m.model_id for m in copied.workspace.meta.models("up_5d")]
    copied.change_series(
        "INSERT INTO predictions BY NAME SELECT * REPLACE (? AS model_id) FROM predictions "
        "WHERE model_id = ? AND ts < '2019-04-05'", ids[1], ids[0],
    )  # fmt: skip
    (proof,) = prove_recipes(copied.workspace)
    assert proof.outcome == "unproven"
    assert "stored twice" in proof.words


def test_an_imported_model_was_tried_elsewhere(copied, two_recipes, tmp_path):
    theirs = two_recipes.workspace
    path = export_model(theirs, theirs.meta.models("up_5d")[-1], tmp_path / "exported")
    assert import_model(copied.workspace, path).status == "imported"
    (proof,) = prove_recipes(copied.workspace)
    assert str(proof.finding) == "None"


def test_settings_that_some_release_shipped_are_known_since_its_date(copied, monkeypatch):
    for kind in (Model, Trial):
        change(copied, kind, chosen_asof=SHIPPED_CHOSEN_ASOF)
    change(copied, Trial, chosen_by="shipped settings")
    (proof,) = prove_recipes(copied.workspace)
    assert proof.failed, "no release ever shipped them"
    digests = [shipped_digests(m.settings) for m in copied.workspace.meta.models()]
    earlier = [(*both, SHIPPED_CHOSEN_ASOF) for both in digests]
    monkeypatch.setattr(recipes, "RELEASED", [*recipes.RELEASED, *earlier])
    (proof,) = prove_recipes(copied.workspace)
    assert str(proof.finding) == "None"
    change_jumps = {m.model_id: m.settings | {"jumps": {"threshold": 9}}
                    for m in copied.workspace.meta.models()}  # fmt: skip
    with copied.workspace.meta.writing() as session:
        for model_id, settings in change_jumps.items():
            session.get(Model, model_id).settings = settings
    (proof,) = prove_recipes(copied.workspace)
    assert proof.failed, "a hand has changed them"


def test_what_is_shipped_now_is_among_what_releases_shipped():
    shipped = Settings.model_construct()
    for task in shipped.tasks:
        named = {name: getattr(shipped, name).model_dump(mode="json") for name in recipes.SECTIONS}
        both = shipped_digests(named | {"task": task.model_dump(mode="json")})
        assert (*both, SHIPPED_CHOSEN_ASOF) in recipes.RELEASED, (
            f"Add {(*both, SHIPPED_CHOSEN_ASOF)} of {task.task_id} to RELEASED; keep what is there."
        )


def test_a_study_is_as_late_as_the_last_one_that_proposed_and_as_what_a_hand_had_fixed(copied):
    ws = copied.workspace
    latest = ws.meta.trials("up_5d")[0].chosen_asof
    fixed = {"fixed_asof": "2011-12-31"}
    for chosen_by, asof, is_well in (
        ("study up_5d 2019-04 recipe data", latest, True),
        ("study up_5d 2019-03 recipe data", date(2019, 3, 31), False),  # the hand knew more
        ("study up_5d 2019-06 recipe data", latest, False),
    ):
        change(copied, Model, chosen_asof=asof)
        change(copied, Trial, chosen_asof=asof, chosen_by=chosen_by, asof=date(2019, 3, 31))
        with ws.meta.writing() as session:
            for trial in ws.meta.trials():
                row = session.get(Trial, trial.recipe)
                row.settings = row.settings | fixed
        (proof,) = prove_recipes(ws)
        assert proof.failed != is_well, (chosen_by, asof, proof)


# --- Folds


def test_of_boosters_bins_settings_and_trees_are_told_apart():
    import lightgbm as lgb

    rng = np.random.default_rng(0)
    x = rng.random((500, 3))
    y = x[:, 0] + 0.1 * rng.random(500)

    def told(x, **parameters):
        usual = {"verbosity": -1, "num_leaves": 5, "num_threads": 1, "objective": "l2"}
        return boosters._digests([lgb.train(usual | parameters, lgb.Dataset(x, y), 3)
                                  .model_to_string()])  # fmt: skip

    def unlike(other):
        return [kind for kind, digest in told(x).items() if digest != other[kind]]

    assert unlike(told(x)) == []
    assert unlike(told(x * 2)) == ["bins", "trees"]
    assert unlike(told(x, learning_rate=0.3)) == ["settings", "trees"]
    assert unlike(told(x, metric="l1")) == ["settings"]
