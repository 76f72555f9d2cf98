"""Rules of published tables: whole files, read together, never half a write."""

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from quant_pipeline.stores.published import Published


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return Published(tmp_path / "data" / "published")


def rows(*values: int) -> pa.Table:
    return pa.table({"x": pa.array(values, pa.int64()), "name": [f"n{v}" for v in values]})


def test_nothing_published_is_none(published: Published) -> None:
    assert published.read("predictions") is None


def test_partitions_are_read_together_in_order(published: Published) -> None:
    published.write("predictions", "2020-02", rows(3))
    published.write("predictions", "2020-01", rows(1, 2))
    published.write("outcomes", "2020-01", rows(9))
    found = published.read("predictions")
    assert found is not None
    assert found.to_pydict() == rows(1, 2, 3).to_pydict()


def test_the_newest_partitions_alone_can_be_read(published: Published) -> None:
    for key in ("2020-01", "2020-02", "2020-03"):
        published.write("predictions", key, rows(int(key[-1])))
    for n, expected in ((1, [3]), (2, [2, 3]), (9, [1, 2, 3]), (None, [1, 2, 3])):
        found = published.read("predictions", newest=n)
        assert found is not None
        assert found["x"].to_pylist() == expected


def test_a_partition_is_replaced_as_a_whole(published: Published) -> None:
    published.write("predictions", "2020-01", rows(1, 2, 3))
    before = published.read("predictions")
    published.write("predictions", "2020-01", rows(4))
    found = published.read("predictions")
    assert found is not None
    assert found["x"].to_pylist() == [4]
    assert before is not None
    assert before["x"].to_pylist() == [1, 2, 3]
    published.write("predictions", "2020-01", rows())
    empty = published.read("predictions")
    assert empty is not None
    assert len(empty) == 0


def test_rows_and_columns_can_be_chosen(published: Published) -> None:
    for key, values in (("2020-01", (1, 2)), ("2020-02", (3, 4))):
        published.write("predictions", key, rows(*values))
    found = published.read("predictions", ds.field("x") > 1, ["name"])
    assert found is not None
    assert found.to_pydict() == {"name": ["n2", "n3", "n4"]}


def test_a_column_of_some_partitions_only_is_null_in_the_others(published: Published) -> None:
    published.write("predictions", "2020-01", pa.table({"x": [1], "y": pa.nulls(1)}))
    published.write("predictions", "2020-02", pa.table({"x": [2], "y": [0.5], "z": ["new"]}))
    published.write("predictions", "2020-03", pa.table({"x": [3], "z": ["new"]}))
    found = published.read("predictions")
    assert found is not None
    assert found.to_pydict() == {
        "x": [1, 2, 3],
        "y": [None, 0.5, None],
        "z": [None, "new", "new"],
    }


def test_what_a_crash_left_behind_is_not_read(published: Published) -> None:
    published.write("predictions", "2020-01", rows(1))
    folder = published.folder / "predictions"
    assert [p.name for p in folder.iterdir()] == ["2020-01.parquet"]
    (folder / ".2020-01.parquet.x7k2").write_bytes(b"half")
    (folder / ".2020-01.parquet").write_bytes(b"half")
    found = published.read("predictions")
    assert found is not None
    assert len(found) == 1


def test_a_stretch_of_partitions_can_be_read(published: Published) -> None:
    for key in ("2020-01", "2020-02", "2020-03"):
        published.write("predictions", key, rows(int(key[-1])))
    for stretch, expected in (
        ({"since": "2020-02"}, [2, 3]),
        ({"until": "2020-02"}, [1, 2]),
        ({"since": "2020-02", "until": "2020-02"}, [2]),
        ({"since": "2021-01"}, []),
        ({}, [1, 2, 3]),
    ):
        found = published.read("predictions", **stretch)
        assert found is not None
        assert found["x"].to_pylist() == expected
        assert found.schema == rows(1).schema
