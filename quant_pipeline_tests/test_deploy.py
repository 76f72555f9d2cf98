"""The example files of deploy/: what systemd and a container would start does start, and stops."""

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quant_pipeline_tests.homes import SmallHome, own_environment
from quant_pipeline_tests.servers import Server, free_port, kill_all_of

pytestmark = pytest.mark.slow
DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
UNIT, CONTAINER = DEPLOY / "quant-ui.service", DEPLOY / "Containerfile"
SECONDS = 60
QUANT = Path(sys.executable).with_name("quant")


@pytest.fixture(scope="module")
def unit() -> configparser.ConfigParser:
    found = configparser.ConfigParser(strict=False, interpolation=None)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read(UNIT)
    return found


def instructions(name: str) -> list[str]:
    """What follows one word of the Containerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", CONTAINER.read_text())
    return [line.split(" ", 1)[1] for line in text.splitlines() if line.startswith(f"{name} ")]


def start_and_stop(home: SmallHome, command: list[str], folder: Path, how: int) -> str:
    """Start a command of `quant ui`, ask its page, end it with a signal; gives what it said."""
    log = folder / "log"
    environment = {**os.environ, "QUANT_HOME": str(home.root), "NO_COLOR": "1"}
    port = int(command[command.index("--port") + 1])
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(QUANT), *command], env=environment, cwd=home.root, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    server = Server(home, port, log, process)
    try:
        server.wait_for("starting", server.answers, 90)
        assert server.selector()["repositoryLocationName"] == "quant_pipeline"
        if how == signal.SIGINT:
            os.killpg(process.pid, how)  # as Ctrl-C in a terminal
        else:
            process.send_signal(how)
        process.wait(timeout=SECONDS)
        mark = f"QUANT_HOME={home.root}".encode()
        left = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in environ.read_bytes().split(b"\0"):
                    left.append((environ.parent / "cmdline").read_bytes())
            except (FileNotFoundError, PermissionError, ProcessLookupError):
                continue
        assert not left
    finally:
        kill_all_of(home, process)
    return log.read_text()


def with_free_port(words: list[str]) -> list[str]:
    at = words.index("--port") + 1
    return [*words[:at], str(free_port()), *words[at + 1 :]]


@pytest.mark.long
def test_what_systemd_starts_serves_and_ends_in_time(unit, home, tmp_path):
    service = unit["Service"]
    program, *words = service["ExecStart"].split()
    assert Path(program).name == "quant"
    assert service["Environment"] == f"QUANT_HOME={service['WorkingDirectory']}"
    assert service["WorkingDirectory"] in service["ReadWritePaths"].split()
    assert float(service["TimeoutStopSec"]) == SECONDS
    said = start_and_stop(home(), with_free_port(words), tmp_path, signal.SIGTERM)
    assert "Traceback" not in said


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="UNIT NOT VERIFIED: there is no systemd-analyze"
)
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    text = UNIT.read_text()
    for program in re.findall(r"^ExecStart=(\S+)", text, re.MULTILINE):
        text = text.replace(program, str(QUANT))
    (tmp_path / UNIT.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT.name)],
        capture_output=True, text=True,
    )  # fmt: skip
    about = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert not about


@pytest.mark.long
def test_what_a_container_starts_serves_every_address_says_so_and_ends_with_ctrl_c(home, tmp_path):
    """On the loopback address, as tests listen nowhere else."""
    (command,) = instructions("CMD")
    program, *words = json.loads(command)
    assert (program, words[:3]) == ("quant", ["ui", "--host", "0.0.0.0"])
    words[2] = "127.0.0.1"
    start_and_stop(home(), with_free_port(words), tmp_path, signal.SIGINT)
    helped = subprocess.run([QUANT, "ui", "--help"], capture_output=True, text=True, check=True)
    assert "there is no login" in " ".join(helped.stdout.split())


def test_the_container_is_made_from_what_is_there():
    root = DEPLOY.parent
    assert instructions("COPY") == ["--chown=quant . /home/quant/quant_pipeline"]
    ignored = (root / ".dockerignore").read_text().split()
    assert {".git", ".venv", "data", "models"} <= set(ignored)
    targets = re.findall(r"^(\w+):", (root / "Makefile").read_text(), re.MULTILINE)
    for line in instructions("RUN"):
        for target in re.findall(r"make -C \S+ (\w+)", line):
            assert target in targets


def test_an_address_that_is_none_of_this_machine_is_refused(home):
    made = home()
    with own_environment(made.root):
        for host in ("192.0.2.1", "no.such.host.invalid"):
            done = subprocess.run(
                [QUANT, "ui", "--host", host, "--port", str(free_port())],
                env={**os.environ, "QUANT_HOME": str(made.root)}, capture_output=True, text=True,
            )  # fmt: skip
            assert (done.returncode, done.stdout) == (1, "")
            assert f"{host} is no address of this machine." in done.stderr
