"""Rules of model files: the name is the content, and nothing unknown is ever parsed."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import joblib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.errors import ModelFileError
from quant_pipeline.stores import model_files
from quant_pipeline.stores.durable import write_durably
from quant_pipeline.stores.model_files import ModelFiles, from_bytes, to_bytes

CONTENT: dict[str, Any] = {
    "booster": "tree\nversion=v4\n",
    "features": ["ROC5", "KMID"],
    "settings": {"seed": 7, "rate": 0.1, "rank": None, "on": True},
}

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
plain = st.recursive(
    scalars.filter(lambda v: v not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
contents = st.dictionaries(st.text(), plain, max_size=5)


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return ModelFiles(tmp_path / "models")


def rebuilt(value: Any) -> Any:
    """An equal value of other objects, dicts in another order."""
    if isinstance(value, dict):
        return {rebuilt(k): rebuilt(v) for k, v in reversed(value.items())}
    if isinstance(value, list):
        return [rebuilt(v) for v in value]
    return "".join(list(value)) if isinstance(value, str) else value


@settings(deadline=None)
@given(contents)
def test_equal_content_has_equal_bytes_however_it_was_built(content: dict[str, Any]) -> None:
    assert to_bytes(content) == to_bytes(rebuilt(content))
    assert to_bytes({"a": "one two", "b": ["one two"]}) == to_bytes(
        {"b": [" ".join(["one", "two"])], "a": " ".join(["one", "two"])}
    )


@settings(deadline=None)
@given(contents)
def test_content_comes_back_as_it_was(content: dict[str, Any]) -> None:
    assert json.dumps(from_bytes(to_bytes(content)), sort_keys=True) == json.dumps(
        content, sort_keys=True
    )


def test_a_file_is_named_by_its_content(files: ModelFiles) -> None:
    model_id, size = files.write(CONTENT)
    assert files.write(rebuilt(CONTENT)) == (model_id, size)
    assert files.write(CONTENT | {"more": 1})[0] != model_id
    assert files.read(model_id) == CONTENT
    assert files.path(model_id).stat().st_size == size
    assert files.path(model_id).stat().st_mode & 0o777 == 0o600
    assert joblib.load(files.path(model_id)) == CONTENT
    assert len(list(files.folder.iterdir())) == 2, "no temporary file is left"


def test_a_file_is_written_once_and_a_damaged_one_again(files: ModelFiles) -> None:
    model_id, _ = files.write(CONTENT)
    path = files.path(model_id)
    stamp = path.stat().st_ino
    files.write(CONTENT)
    assert path.stat().st_ino == stamp
    path.write_bytes(path.read_bytes()[:-1])
    files.write(CONTENT)
    assert files.read(model_id) == CONTENT


class Bomb:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_a_changed_byte_is_refused_before_anything_parses_it(
    files: ModelFiles, tmp_path: Path
) -> None:
    model_id, _ = files.write(CONTENT)
    path = files.path(model_id)
    good = path.read_bytes()
    bomb = pickle.dumps(Bomb(tmp_path / "mark"))
    for place in range(0, len(good), 7):
        flipped = bytearray(good)
        flipped[place] ^= 1
        path.write_bytes(bytes(flipped))
        with pytest.raises(ModelFileError, match=r"but the registry says .* it was not opened"):
            files.read(model_id)
    for bad in (b"", good + b"\0", good[:-1], bomb):
        path.write_bytes(bad)
        with pytest.raises(ModelFileError, match=rf"models/{path.name} has sha256 [0-9a-f]+…"):
            files.read(model_id)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("value", [Path("a"), {1, 2}.__class__, b"".join, 1j])
def test_a_pickle_that_names_a_global_is_refused(files: ModelFiles, value: Any) -> None:
    with pytest.raises(ModelFileError, match=r"asks for .*; plain types need no global"):
        from_bytes(pickle.dumps({"a": value}))


def test_a_bomb_with_the_right_name_does_not_go_off(files: ModelFiles, tmp_path: Path) -> None:
    raw = pickle.dumps({"booster": Bomb(tmp_path / "mark")})
    files.folder.mkdir()
    model_id = model_files.sha256(raw).hexdigest()
    files.path(model_id).write_bytes(raw)
    with pytest.raises(ModelFileError, match=r"asks for posix\.mkdir"):
        files.read(model_id)
    assert not (tmp_path / "mark").exists()


def test_only_a_dict_of_plain_values_is_a_model() -> None:
    with pytest.raises(ModelFileError, match="holds a list instead of a dict"):
        from_bytes(pickle.dumps([1]))
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            to_bytes({"a": value})
    for other in (object(), {1, 2}, b"bytes"):
        with pytest.raises(TypeError, match="not JSON serializable"):
            to_bytes({"a": other})


def test_a_missing_file_says_how_to_get_it_back(files: ModelFiles) -> None:
    with pytest.raises(ModelFileError, match=r"models/abc.*\.joblib is missing, .*`quant train"):
        files.read("abc" + "0" * 61)


@given(st.text() | st.sampled_from(["../../etc/passwd", "/etc/passwd", "a" * 63, "A" * 64,
                                    "a" * 64 + "\n", "a" * 64 + "\0", "\u0661" * 64]))  # fmt: skip
def test_what_is_no_id_reaches_no_path(text: str) -> None:
    if set(text) <= set("0123456789abcdef") and len(text) == 64:
        return
    for use in (ModelFiles(Path("models")).path, ModelFiles(Path("models")).read):
        with pytest.raises(ModelFileError, match="is no model id"):
            use(text)


def test_no_link_is_followed_and_no_pipe_waited_for(files: ModelFiles, tmp_path: Path) -> None:
    model_id, _ = files.write(CONTENT)
    path = files.path(model_id)
    good = path.rename(tmp_path / "good")
    path.symlink_to(good)
    with pytest.raises(ModelFileError, match="is a link or cannot be read"):
        files.read(model_id)
    assert not files.is_intact(model_id)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ModelFileError, match="is no file or has over"):
        files.read(model_id)
    path.unlink()
    path.mkdir()
    with pytest.raises(ModelFileError, match="is no file or has over"):
        files.read(model_id)
    path.rmdir()
    path.symlink_to(tmp_path / "outside")
    files.write(CONTENT)
    assert not (tmp_path / "outside").exists(), "writing follows none either"
    assert files.read(model_id) == CONTENT


def test_a_file_without_an_end_is_not_read(files: ModelFiles) -> None:
    model_id, _ = files.write(CONTENT)
    with files.path(model_id).open("r+b") as file:
        file.truncate(model_files.MAX_BYTES + 1)
    with pytest.raises(ModelFileError, match="is no file or has over 1024 MiB"):
        files.read(model_id)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_pickle_are_one_clear_error(raw: bytes) -> None:
    try:
        from_bytes(raw)
    except ModelFileError:
        return
    assert isinstance(pickle.loads(raw), dict)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    write_durably(target, b"old")
    write_durably(target, b"new")
    assert target.read_bytes() == b"new"
    with pytest.raises(TypeError):
        write_durably(target, "text")  # type: ignore[arg-type]
    assert target.read_bytes() == b"new"
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_durably(tmp_path / "folder", b"new")
    assert {p.name for p in tmp_path.iterdir()} == {"a.bin", "folder"}
