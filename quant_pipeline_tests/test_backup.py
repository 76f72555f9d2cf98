"""Backups: a home copied while it is used is the same home elsewhere."""

import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from quant_pipeline.chain.backup import back_up, restore
from quant_pipeline.chain.reconcile import reconcile
from quant_pipeline.defs.instance import open_instance
from quant_pipeline.errors import StoreError
from quant_pipeline_tests.homes import SmallHome
from quant_pipeline_tests.test_cli import call, succeed

WRITER = """
import sys
from pathlib import Path
from quant_pipeline_tests.homes import SmallHome
made = SmallHome(Path(sys.argv[1]))
print("ready", flush=True)
for _ in range(100):
    made.run(["features_daily", "labels", "training_frame"], "2016-05", "2016-08")
    print("written", flush=True)
"""


def quiet(*_: object) -> None:
    """Tell nobody."""


def test_a_restored_home_is_the_same_and_goes_on(used, tmp_path):
    was = used.state()
    assert back_up(used.workspace, tmp_path / "backup", quiet) > 100_000
    made = SmallHome(restore(tmp_path / "backup", tmp_path / "again", quiet).home.root)
    assert made.state() == was
    assert reconcile(made.workspace, quiet, dry_run=True) == []
    with open_instance(made.workspace.home) as instance:
        assert len(instance.get_runs()) > 3
    made.backfill(date(2016, 8, 1))
    assert made.state() == was
    assert not list((tmp_path / "backup").rglob("*.lock"))
    assert used.state() == was


def test_a_backup_while_a_process_writes_agrees_with_itself(used, tmp_path):
    was = used.state()
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(used.root)], env=dict(os.environ), text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for word in ("ready", "written"):
            assert process.stdout.readline().strip() == word
        for i in range(2):
            back_up(used.workspace, tmp_path / f"backup{i}", quiet)
            assert process.poll() is None, "or else nobody wrote"
            made = SmallHome(tmp_path / f"backup{i}")
            assert made.state() == was
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_home_that_does_not_agree_with_itself_is_not_backed_up(used, tmp_path):
    used.change_series("DELETE FROM predictions WHERE ts = '2016-07-20'")
    with pytest.raises(StoreError, match=r"is not whole: I3: predictions 2016-07"):
        back_up(used.workspace, tmp_path / "backup", quiet)
    assert not [p for p in tmp_path.iterdir() if "backup" in p.name]


def test_a_damaged_backup_is_not_restored(used, tmp_path):
    back_up(used.workspace, tmp_path / "backup", quiet)
    model = next((tmp_path / "backup" / "models").glob("*.joblib"))
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(StoreError, match="is not whole: I2"):
        restore(tmp_path / "backup", tmp_path / "again", quiet)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("where", ["backup", "nowhere/backup"])
def test_a_backup_goes_to_a_new_folder_only(used, tmp_path, where):
    (tmp_path / "backup").mkdir()
    with pytest.raises(StoreError, match=r"is there already|is no folder"):
        back_up(used.workspace, tmp_path / where, quiet)


def test_nothing_is_restored_into_a_home_or_from_no_backup(used, tmp_path):
    back_up(used.workspace, tmp_path / "backup", quiet)
    was = used.state()
    with pytest.raises(StoreError, match=r"has a home \(quant\.toml, data/quant\.duckdb"):
        restore(tmp_path / "backup", used.root, quiet)
    assert used.state() == was
    with pytest.raises(StoreError, match="is no backup"):
        restore(tmp_path, tmp_path / "again", quiet)


def test_a_restore_that_was_killed_is_begun_again(used, tmp_path):
    back_up(used.workspace, tmp_path / "backup", quiet)
    again = tmp_path / "again"
    (again / "data").mkdir(parents=True)
    (again / ".restoring").touch()
    (again / "data" / "quant.duckdb").write_bytes(b"half of it")
    made = SmallHome(restore(tmp_path / "backup", again, quiet).home.root)
    assert made.state() == used.state()
    assert not (again / ".restoring").exists()


def test_the_commands_say_what_they_did(used, tmp_path):
    said = succeed(used.root, "backup", str(tmp_path / "backup"))
    assert "All agrees." in said.out
    assert call(used.root, "backup", str(tmp_path / "backup")).code == 1
    said = succeed(Path("/"), "restore", str(tmp_path / "backup"), str(tmp_path / "again"))
    assert f"Restored to {tmp_path / 'again'}" in said.out
    assert "2016-08-05" in succeed(tmp_path / "again", "status").out
