"""Rules of locks: one writer or many readers, whoever dies lets go, and the busy one is named."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quant_pipeline.errors import StoreBusy, StoreError
from quant_pipeline.stores.locks import held

HOLDER = """
import sys
from pathlib import Path
from quant_pipeline.stores.locks import held
with held(Path(sys.argv[1]), "backfill", 0, shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def another_process(lock: Path, kind: str = "exclusive") -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the lock until it is told to go on."""
    command = [sys.executable, "-c", HOLDER, str(lock), kind]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "data" / "quant.duckdb.lock"


def test_a_second_process_is_told_who_holds_it(lock: Path) -> None:
    with another_process(lock) as other:
        for shared in (False, True):
            with pytest.raises(StoreBusy) as error, held(lock, "train", 0, shared=shared):
                pytest.fail("two at once")
            text = str(error.value)
            assert text.startswith(
                f"quant.duckdb is in use by process {other.pid} (backfill, since "
            )
            assert text.endswith("Waited 0 s; try again, or raise store.lock_wait_seconds.")
    assert issubclass(StoreBusy, StoreError)


def test_a_second_process_waits_until_the_first_lets_go(lock: Path) -> None:
    entered = threading.Event()

    def wait() -> None:
        with held(lock, "train", 60):
            entered.set()

    with another_process(lock) as other:
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not entered.wait(0.3), "entered while another process held it"
        other.communicate("\n")
        waiting.join(10)
    assert entered.is_set()


def test_a_killed_holder_lets_go(lock: Path) -> None:
    with another_process(lock) as other:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        with held(lock, "train", 0):
            pass


def test_readers_share_and_keep_writers_out_without_a_false_name(lock: Path) -> None:
    with held(lock, "ingest", 0):
        pass  # its name must not be taken for that of whoever reads later
    with another_process(lock, "shared"), held(lock, "reading", 0, shared=True):
        attempt = held(lock, "train", 0)
        with pytest.raises(StoreBusy, match=r"in use by another process\."):
            attempt.__enter__()
    with held(lock, "train", 0):
        pass


@pytest.mark.parametrize("shared", [False, True])
def test_an_exception_lets_go(lock: Path, shared: bool) -> None:
    with pytest.raises(KeyboardInterrupt), held(lock, "train", 0, shared=shared):
        raise KeyboardInterrupt
    with held(lock, "train", 0):
        pass


def test_a_failed_attempt_leaves_the_holders_name(lock: Path) -> None:
    with held(lock, "train", 0):
        before = lock.read_text()
        with pytest.raises(StoreBusy, match=rf"process {os.getpid()} \(train, since"):
            held(lock, "score", 0).__enter__()
        assert lock.read_text() == before


def test_a_shorter_name_leaves_no_rest_of_a_longer_one(lock: Path) -> None:
    for what in ("a very long description of what is being done", "train"):
        with held(lock, what, 0), pytest.raises(StoreBusy, match=rf"\({what}, since [0-9:]+\)\."):
            held(lock, "score", 0).__enter__()


@pytest.mark.parametrize("content", ["", "{", "5", "[]", "{}", "\0\0", '{"pid": 1}'])
def test_a_damaged_lock_file_names_nobody(lock: Path, content: str) -> None:
    with held(lock, "train", 0):
        lock.write_text(content)
        with pytest.raises(StoreBusy, match="in use by another process"):
            held(lock, "score", 0).__enter__()
