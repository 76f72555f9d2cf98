"""Rules of the Philippine prices: the wheel is the expected one, the file is whole or absent."""

import hashlib
import io
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quant_pipeline.errors import SourceError
from quant_pipeline.stores.pse import fetch_pse

WHEEL = "fastquant-0.1.8.1-py3-none-any.whl"


def fake_wheel(path: Path) -> str:
    """A wheel like the real one, of two symbols, with its sha256."""
    merged = (
        "Symbol,NA,NA,NA,NA,NA,B,B,B,B,B\n,open,high,low,close,value,value,close,low,high,open\n"
        "dt,,,,,,,,,,\n2020-01-02,1,2,1,2,201,,,,,\n2020-01-03,,,,,,5,0,0,0,0\n"
        "rubbish,1,1,1,1,1,,,,,\n2020-01-06,3,3,3,3,100,-7,1,1,1,1\n"
    )
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("/somewhere/merged.csv", merged)
    about = "fastquant-0.1.8.1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fastquant/data/merged_stock_data.zip", inner.getvalue())
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: fastquant\nVersion: 0.1.8.1\n"
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def offline_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let pip look into one local folder only."""
    folder = tmp_path / "local_index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    return folder


def test_a_wheel_that_lies_there_becomes_long_prices(tmp_path: Path, offline_pip: Path) -> None:
    digest = fake_wheel(tmp_path / WHEEL)
    path = fetch_pse(tmp_path, expected_sha256=digest)
    rows = pq.read_table(path).to_pylist()
    assert [(r["symbol"], str(r["ts"]), r["close"], r["volume"]) for r in rows] == [
        ("B", "2020-01-03", 0.0, None),
        ("B", "2020-01-06", 1.0, -7.0),
        ("NA", "2020-01-02", 2.0, 100.0),
        ("NA", "2020-01-06", 3.0, 33.0),
    ]
    assert all(r["adj_close"] is None for r in rows)
    metadata = pq.read_schema(path).metadata
    assert (metadata[b"n_rows"], metadata[b"n_undated"]) == (b"4", b"2")
    assert leftovers(tmp_path) == {"pse.parquet", WHEEL}


def leftovers(folder: Path) -> set[str]:
    assert not list((folder / "temporary").iterdir())
    return {file.name for file in folder.iterdir() if file.is_file()}


def test_a_whole_file_stays_and_a_damaged_one_is_made_again(
    tmp_path: Path, offline_pip: Path
) -> None:
    digest = fake_wheel(tmp_path / WHEEL)
    path = fetch_pse(tmp_path, expected_sha256=digest)
    content, stamp = path.read_bytes(), path.stat().st_mtime_ns
    assert fetch_pse(tmp_path, expected_sha256=digest) == path
    assert path.stat().st_mtime_ns == stamp
    flipped = bytearray(content)
    flipped[60] ^= 1
    for damaged in (content[:-20], b"", bytes(flipped)):
        path.write_bytes(damaged)
        fetch_pse(tmp_path, expected_sha256=digest)
        assert path.read_bytes() == content


def test_a_file_of_someone_else_is_not_replaced(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "pse.parquet")
    with pytest.raises(SourceError, match=r"was not made by `quant fetch`"):
        fetch_pse(tmp_path)


def test_a_wheel_with_another_hash_is_not_opened(tmp_path: Path, offline_pip: Path) -> None:
    digest = fake_wheel(tmp_path / WHEEL)
    with pytest.raises(SourceError, match=rf"has sha256 {digest}, expected c7fac4401d"):
        fetch_pse(tmp_path)
    assert leftovers(tmp_path) == {WHEEL}


def test_what_pip_downloads_is_used_and_not_kept(tmp_path: Path, offline_pip: Path) -> None:
    digest = fake_wheel(offline_pip / WHEEL)
    path = fetch_pse(tmp_path / "data" / "raw", expected_sha256=digest)
    assert [file.name for file in path.parent.iterdir()] == ["pse.parquet"]
    assert leftovers(tmp_path) == set()


def test_offline_says_what_to_do_and_leaves_nothing(tmp_path: Path, offline_pip: Path) -> None:
    with pytest.raises(SourceError, match=r"Check the network .* place it at .*-any\.whl and run"):
        fetch_pse(tmp_path)
    assert leftovers(tmp_path) == set()


@pytest.mark.parametrize("content", [b"no zip", b""])
def test_a_wheel_without_the_data_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / WHEEL).write_bytes(content)
    with pytest.raises(SourceError, match=r"does not hold one CSV"):
        fetch_pse(tmp_path, expected_sha256=hashlib.sha256(content).hexdigest())
