"""Models between homes: taken in aside, parsed in a process of their own first."""

import json
import pickle
import random
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from quant_pipeline.chain import vet as vetting
from quant_pipeline.chain.champions import promote
from quant_pipeline.chain.exchange import export_model, import_model
from quant_pipeline.chain.vet import vet
from quant_pipeline.errors import GateError, ModelFileError, QuantError, SourceError
from quant_pipeline.stores.meta import Champion, Model
from quant_pipeline.stores.model_files import from_bytes, to_bytes
from quant_pipeline_tests.homes import SmallHome
from quant_pipeline_tests.test_cli import call, succeed
from quant_pipeline_tests.test_model_files import Bomb

KEY = "2016-07"


@pytest.fixture
def other(used: SmallHome, tmp_path: Path) -> SmallHome:
    """A home like the first one, but for one model, which it does not know."""
    made = used.copy(tmp_path / "other")
    model_id = made.model_ids()[KEY, "up_5d"][0]
    made.change_series("DELETE FROM predictions WHERE model_id = ?", model_id)
    with made.workspace.meta.writing() as session:
        for champion in session.exec(select(Champion).where(Champion.model_id == model_id)):
            session.delete(champion)
        session.flush()
        session.delete(session.get(Model, model_id))
    made.workspace.files.path(model_id).unlink()
    return made


@pytest.fixture
def exported(used: SmallHome, tmp_path: Path) -> Path:
    ws = used.workspace
    return export_model(ws, ws.meta.model(used.model_ids()[KEY, "up_5d"][0]), tmp_path / "out")


def rewrite(path: Path, raw: bytes, **changes: Any) -> Path:
    """Other bytes, and a row that vouches for them."""
    row = json.loads(path.with_suffix(".json").read_text()) | changes
    row["model_id"] = sha256(raw).hexdigest()
    path.write_bytes(raw)
    path.with_suffix(".json").write_text(json.dumps(row))
    return path


def test_an_imported_model_is_looked_at_and_scores_aside_but_never_serves(used, other, exported):
    model = import_model(other.workspace, exported)
    assert model.status == "imported"
    theirs = used.workspace.meta.model(model.model_id).model_dump(exclude={"seq", "row_digest"})
    mine = other.workspace.meta.model(model.model_id).model_dump(exclude={"seq", "row_digest"})
    assert mine == theirs | {"status": "imported"}
    assert other.workspace.meta.damages() == []
    short = model.model_id[:12]
    assert "mean |SHAP|" in succeed(other.root, "models", "explain", short).out
    before = other.scores()
    succeed(other.root, "score", "--model", short, "--from", "2016-08-01", "--to", "2016-08-05")
    assert other.scores() == before
    assert other.rows("SELECT count(*) FROM predictions_shadow WHERE model_id = ?", model.model_id)
    with pytest.raises(GateError, match="is imported, so it cannot serve"):
        promote(other.workspace, model.model_id, "a test")
    assert import_model(other.workspace, exported).model_id == model.model_id, "again is nothing"


def test_the_commands_say_what_they_did(used, other, tmp_path):
    model_id = used.model_ids()[KEY, "up_5d"][0]
    said = succeed(used.root, "models", "export", model_id[:8], str(tmp_path / "out"))
    assert said.out == f"Wrote {tmp_path / 'out' / model_id}.joblib and its .json.\n"
    file = str(tmp_path / "out" / f"{model_id}.joblib")
    assert ": imported." in succeed(other.root, "models", "import", file).out
    assert call(other.root, "models", "import", str(tmp_path / "nothing.joblib")).code == 1


def test_a_hostile_text_ends_its_own_process_only(other, exported):
    """Each of these has a row that vouches for it."""
    content = from_bytes(exported.read_bytes())
    (text,) = content["boosters"]
    draw = random.Random(3)
    texts = [text[: draw.randrange(200, len(text))]]
    texts += [
        text.replace("num_leaves=", "num_leaves=9", 1), text.replace("split_feature=", "x="),
        text.replace("left_child=", "left_child=7 ", 1), "",
    ]  # fmt: skip
    before = other.state()
    for bad in texts:
        path = rewrite(exported, to_bytes(content | {"boosters": [bad]}))
        with pytest.raises(ModelFileError, match="was not imported"):
            import_model(other.workspace, path)
    assert other.state() == before


def test_a_payload_does_not_go_off_in_any_process(other, exported, tmp_path):
    raw = pickle.dumps({"boosters": [Bomb(tmp_path / "mark")], "features": []})
    with pytest.raises(ModelFileError, match=r"asks for posix\.mkdir"):
        import_model(other.workspace, rewrite(exported, raw))
    assert not (tmp_path / "mark").exists()


def test_what_never_ends_or_takes_all_memory_is_ended(monkeypatch):
    monkeypatch.setattr(vetting, "SECONDS", 0.05)  # twice that is less than the imports take
    with pytest.raises(ModelFileError, match=r"it took over 0\.1 s"):
        vet(b"", "x")
    monkeypatch.undo()
    bomb = b"\x80\x04" + b"\x8d" + (1 << 40).to_bytes(8, "little") + b"x."  # a text of 1 TiB
    with pytest.raises(ModelFileError, match="was not imported"):
        vet(bomb, "x")


@pytest.mark.parametrize(("changes", "words"), [
    ({"asof": "2016-05-31"}, r"do not say the same \(asof\)"),
    ({"task_id": "no_task"}, "No task no_task"),
    ({"features": ["a"]}, r"do not say the same \(features\)"),
    ({"environment": {"lightgbm": "3.0"}}, r"was trained with LightGBM 3\.0"),
    ({"asof": "yesterday"}, "is no row of a model"),
    ({"fold_metrics": "x"}, "is no row of a model"),
])  # fmt: skip
def test_a_row_that_does_not_fit_is_refused(other, exported, changes, words):
    path = rewrite(exported, exported.read_bytes(), **changes)
    before = other.state()
    with pytest.raises(QuantError, match=words):
        import_model(other.workspace, path)
    assert other.state() == before


def test_other_bytes_a_link_or_no_row_are_refused(other, exported):
    raw = exported.read_bytes()
    exported.write_bytes(raw + b"x")
    with pytest.raises(ModelFileError, match="one of them was changed"):
        import_model(other.workspace, exported)
    exported.unlink()
    exported.symlink_to("/etc/passwd")
    with pytest.raises(ModelFileError, match="is a link"):
        import_model(other.workspace, exported)
    exported.with_suffix(".json").write_text("{" * 100_000)
    with pytest.raises(SourceError, match="is no row of a model"):
        import_model(other.workspace, exported)
    exported.with_suffix(".json").unlink()
    with pytest.raises(SourceError, match="`quant models export ID FOLDER` writes it"):
        import_model(other.workspace, exported)
