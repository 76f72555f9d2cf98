"""Model files and rows of the registry that somebody changed: no byte of them reaches LightGBM."""

import pickle
import random
import re
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightgbm as lgb
import pytest
from sqlmodel import select

from quant_pipeline.chain.explain import explain_model
from quant_pipeline.errors import ModelFileError, QuantError
from quant_pipeline.stores.meta import Model
from quant_pipeline.stores.model_files import to_bytes
from quant_pipeline_tests.homes import SmallHome
from quant_pipeline_tests.test_cli import call
from quant_pipeline_tests.test_model_files import Bomb

KEY = "2016-07"


@pytest.fixture
def parsed(monkeypatch) -> list[str]:
    """Every text that LightGBM is given to parse, which it goes on to do."""
    found: list[str] = []
    init = lgb.Booster.__init__

    def seen(self: lgb.Booster, *args: Any, **options: Any) -> None:
        if options.get("model_str") is not None:
            found.append(options["model_str"])
        init(self, *args, **options)

    monkeypatch.setattr(lgb.Booster, "__init__", seen)
    return found


def model_of(made: SmallHome) -> Model:
    return made.workspace.meta.model(made.model_ids()[KEY, "up_5d"][0])


def forge(made: SmallHome, raw: bytes) -> Model:
    """Bytes as the file of a model that the registry vouches for."""
    model = model_of(made)
    old, model_id = model.model_id, sha256(raw).hexdigest()
    (made.root / "models" / f"{model_id}.joblib").write_bytes(raw)
    with made.workspace.meta.writing() as session:
        connection = session.connection()
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        for table in ("models", "champions", "orders"):
            connection.exec_driver_sql(
                f"UPDATE {table} SET model_id = ? WHERE model_id = ?", (model_id, old)
            )
    return made.workspace.meta.model(model_id)


def test_truncated_and_flipped_files_never_reach_lightgbm(used, parsed):
    ws, model = used.workspace, model_of(used)
    path = ws.files.path(model.model_id)
    good = path.read_bytes()
    explain_model(ws, model)
    assert len(parsed) == 1, "or else the rest shows nothing"
    draw = random.Random(7)
    damaged = [good[: draw.randrange(len(good))] for _ in range(300)]
    for _ in range(500):
        flipped = bytearray(good)
        flipped[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        damaged.append(bytes(flipped))
    for raw in damaged:
        path.write_bytes(raw)
        with pytest.raises(ModelFileError, match="it was changed after training, so it was not"):
            ws.files.read(model.model_id)
    for raw in random.Random(8).sample(damaged, 5):
        path.write_bytes(raw)
        with pytest.raises(ModelFileError, match="it was changed after training"):
            explain_model(ws, model)
    assert len(parsed) == 1


def test_scoring_with_a_damaged_model_writes_nothing(used, parsed):
    path = used.workspace.files.path(model_of(used).model_id)
    path.write_bytes(path.read_bytes()[:-7])
    used.change_series("DELETE FROM predictions WHERE ts >= '2016-08-01'")
    before = used.scores()
    said = call(used.root, "score", "--task", "up_5d")
    assert said.code == 1
    assert "it was changed after training" in said.err
    assert used.scores() == before
    assert not parsed


def test_a_payload_does_not_go_off_not_even_with_a_forged_row(used, parsed, tmp_path):
    raw = pickle.dumps({"boosters": [Bomb(tmp_path / "mark")]})
    used.workspace.files.path(model_of(used).model_id).write_bytes(raw)
    with pytest.raises(ModelFileError, match="it was changed after training"):
        explain_model(used.workspace, model_of(used))
    with pytest.raises(ModelFileError, match=r"asks for posix\.mkdir"):
        explain_model(used.workspace, forge(used, raw))
    assert not (tmp_path / "mark").exists()
    assert not parsed


@pytest.mark.parametrize("content", [
    {}, {"boosters": None}, {"boosters": "tree"}, {"boosters": []}, {"boosters": [b"tree"]},
    {"boosters": [7]}, [], "tree",
], ids=repr)  # fmt: skip
def test_a_forged_row_with_a_file_of_another_shape_is_one_clear_error(used, parsed, content):
    model = forge(used, pickle.dumps(content))
    with pytest.raises(QuantError, match=r"model file"):
        explain_model(used.workspace, model)
    assert not parsed


@pytest.mark.parametrize("name", ['x" FROM features_daily; DROP TABLE predictions; --', "../a",
                                  "a\nversion=v9", "", "ä", "symbol\0"])  # fmt: skip
def test_a_forged_feature_name_reaches_no_query(used, parsed, name):
    model = model_of(used)
    content = used.workspace.files.read(model.model_id)
    content["features"][0] = name
    forged = forge(used, to_bytes(content))
    with used.workspace.meta.writing() as session:
        row = session.exec(select(Model).where(Model.model_id == forged.model_id)).one()
        row.features = [name, *row.features[1:]]
        session.add(row)
    before = used.scores()
    with pytest.raises(QuantError, match=r"is no feature any more"):
        explain_model(used.workspace, used.workspace.meta.model(forged.model_id))
    assert used.scores() == before
    assert not parsed


@pytest.mark.parametrize("change", [
    {"asof": date(2016, 5, 31)}, {"data_fingerprint": "0" * 64}, {"feature_set_id": "other"},
], ids=repr)  # fmt: skip
def test_a_row_that_says_something_else_than_its_file_is_not_used(used, parsed, change):
    """As of an earlier date, a model could be served for sessions that it has seen."""
    model = model_of(used)
    with used.workspace.meta.writing() as session:
        row = session.get(Model, model.model_id)
        for name, value in change.items():
            setattr(row, name, value)
    with pytest.raises(ModelFileError, match=rf"do not say the same \({next(iter(change))}\)"):
        explain_model(used.workspace, used.workspace.meta.model(model.model_id))
    assert not parsed


def test_a_model_of_another_lightgbm_is_not_used(used, parsed):
    model = model_of(used)
    with used.workspace.meta.writing() as session:
        row = session.get(Model, model.model_id)
        row.environment = row.environment | {"lightgbm": "3.3.5"}
    before = used.scores()
    used.change_series("DELETE FROM predictions WHERE ts >= '2016-08-01'")
    said = call(used.root, "score", "--task", "up_5d")
    assert said.code == 1
    assert re.search(r"was trained with LightGBM 3\.3\.5, and \d.* is installed", said.err)
    assert used.scores() == [row for row in before if str(row[0]) < "2016-08-01"]
    assert not parsed


def test_a_row_whose_id_is_a_path_opens_nothing(used, tmp_path):
    model = model_of(used)
    outside = Path(used.root.parent / "evil.joblib")
    outside.write_bytes(pickle.dumps({"boosters": [Bomb(tmp_path / "mark")]}))
    with used.workspace.meta.writing() as session:
        connection = session.connection()
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        for table in ("models", "champions", "orders"):
            connection.exec_driver_sql(
                f"UPDATE {table} SET model_id = '../../evil' WHERE model_id = '{model.model_id}'"
            )
    with pytest.raises(ModelFileError, match="is no model id"):
        explain_model(used.workspace, used.workspace.meta.model("../../evil"))
    said = call(used.root, "reconcile", "--dry-run")
    assert said.code == 1
    assert "../../evil" in said.out
    assert not (tmp_path / "mark").exists()
