"""The web server and daemon of a home, started by `quant ui` and asked over GraphQL."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant_pipeline_tests.homes import SmallHome

ENDS = ("SUCCESS", "FAILURE", "CANCELED")
LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries { name
    locationOrLoadError { __typename
        ... on PythonError { message stack }
        ... on RepositoryLocation {
            repositories { name assetNodes { assetKey { path } } } } } } } } }"""
LAUNCH = """mutation($params: ExecutionParams!) {
    launchPipelineExecution(executionParams: $params) { __typename
        ... on LaunchRunSuccess { run { id } }
        ... on PythonError { message }
        ... on RunConfigValidationInvalid { errors { message } } } }"""
RUN = """query($id: ID!) { runOrError(runId: $id) { __typename ... on Run {
    status tags { key value }
    assetMaterializations { assetKey { path } partition metadataEntries { label
        ... on FloatMetadataEntry { floatValue }
        ... on TextMetadataEntry { text }
        ... on IntMetadataEntry { intValue } } } } } }"""
BACKFILL = """mutation($params: LaunchBackfillParams!) {
    launchPartitionBackfill(backfillParams: $params) { __typename
        ... on LaunchBackfillSuccess { backfillId }
        ... on PythonError { message } } }"""
BACKFILL_STATUS = """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { status runs(limit: 100) { id status } } } }"""


@dataclass
class Server:
    """A running `quant ui` of one home."""

    home: SmallHome
    port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, query: str, **variables: Any) -> Any:
        """The answer to a GraphQL query; any error in it fails the test."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            answer = json.load(reply)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def wait_for(self, what: str, find: Callable[[], Any], seconds: float) -> Any:
        """What a question gives as soon as it gives something."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            found = find()
            if found:
                return found
            time.sleep(0.2)  # between two polls of another process
        raise AssertionError(f"{what} took over {seconds} s:\n{self.log.read_text()[-3000:]}")

    def answers(self) -> bool:
        """Whether it serves yet."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def run(self, run_id: str) -> Any:
        """A run as its page shows it."""
        return self.ask(RUN, id=run_id)["runOrError"]

    def ended(self, run_id: str, seconds: float = 90) -> Any:
        """A run once it has ended."""
        return self.wait_for(
            "the run", lambda: (run := self.run(run_id))["status"] in ENDS and run, seconds
        )

    def selector(self) -> dict[str, str]:
        """Where the definitions are."""
        (entry,) = self.ask(LOCATIONS)["workspaceOrError"]["locationEntries"]
        (repository,) = entry["locationOrLoadError"]["repositories"]
        return {
            "repositoryLocationName": entry["name"],
            "repositoryName": repository["name"],
        }

    def launch(self, assets: Sequence[str] = (), key: str = "", job: str = "__ASSET_JOB") -> str:
        """Launch a run of some assets of a partition, or of a job; gives its id."""
        chosen = [{"path": [asset]} for asset in assets]
        tags = [{"key": "dagster/partition", "value": key}] if key else []
        launched = self.ask(LAUNCH, params={
            "selector": {
                **self.selector(), "pipelineName": job, "assetSelection": chosen or None,
                "assetCheckSelection": None,
            },
            "mode": "default",
            "runConfigData": {},
            "executionMetadata": {"tags": tags},
        })["launchPipelineExecution"]  # fmt: skip
        assert launched["__typename"] == "LaunchRunSuccess", launched
        run_id: str = launched["run"]["id"]
        return run_id

    def backfill(self, assets: Sequence[str], keys: Sequence[str]) -> str:
        """Launch a backfill of partitions of assets; gives its id."""
        launched = self.ask(BACKFILL, params={
            "assetSelection": [{"path": [asset]} for asset in assets],
            "partitionNames": list(keys),
            "fromFailure": False,
        })["launchPartitionBackfill"]  # fmt: skip
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        backfill_id: str = launched["backfillId"]
        return backfill_id

    def backfilled(self, backfill_id: str, seconds: float) -> Any:
        """A backfill's status and runs once it has ended."""

        def ended() -> Any:
            found = self.ask(BACKFILL_STATUS, id=backfill_id)["partitionBackfillOrError"]
            return found["status"] not in ("REQUESTED", "CANCELING") and found

        return self.wait_for("the backfill", ended, seconds)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill_all_of(home: SmallHome, process: subprocess.Popen[bytes]) -> None:
    """End the server's group, then whatever else was started for this very home."""
    with suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pid in processes_of(home):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes_of(home: SmallHome) -> list[int]:
    """Other processes that were started for this very home."""
    mark, found = f"QUANT_HOME={home.root}".encode(), []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(ProcessLookupError, PermissionError, FileNotFoundError):
            if mark in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def start(home: SmallHome, log: Path, port: int, **variables: str) -> Server:
    """`quant ui` of a home, in a group of its own."""
    environment = {**os.environ, "QUANT_HOME": str(home.root), "NO_COLOR": "1", **variables}
    quant = str(Path(sys.executable).with_name("quant"))
    command = [quant, "ui", "--port", str(port), "--no-page"]  # test_page_browser.py has it
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=home.root, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    return Server(home, port, log, process)


@contextmanager
def serving(home: SmallHome, folder: Path, **variables: str) -> Iterator[Server]:
    """A server while the block runs, started with some variables."""
    found = start(home, folder / "log", free_port(), **variables)
    try:
        found.wait_for("starting", found.answers, 90)
        yield found
    finally:
        kill_all_of(home, found.process)


def listening(home: SmallHome) -> set[str]:
    """Addresses of IP on which the processes of a home listen, as `ip:port`.

    Read from /proc: which sockets they have open, and which of those are listening.
    """
    inodes = {inode for pid in processes_of(home) for inode in _sockets_of(pid)}
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                words = [address[i : i + 8] for i in range(0, len(address), 8)]
                packed = b"".join(bytes.fromhex(word)[::-1] for word in words)
                found.add(f"{socket.inet_ntop(family, packed)}:{int(port, 16)}")
    return found


def _sockets_of(pid: int) -> list[str]:
    found = []
    for handle in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            target = os.readlink(handle)
            if target.startswith("socket:["):
                found.append(target[8:-1])
    return found
