"""The real web server and daemon on a home: what the page would do, and what it would see."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quant_pipeline_tests.homes import SmallHome, own_environment

pytestmark = pytest.mark.slow

KEY = "2016-06"
ASSETS = [
    "prices_daily", "features_daily", "labels", "training_frame", "walkforward_folds",
    "lgbm_model", "predictions", "prediction_outcomes",
]  # fmt: skip
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
PAST = """query($path: [String!]!) { assetNodeOrError(assetKey: {path: $path}) { ... on AssetNode {
    assetMaterializations { partition metadataEntries { label
        ... on FloatMetadataEntry { floatValue } } } } } }"""


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill_all_of(home: SmallHome, process: subprocess.Popen[bytes]) -> None:
    """End the server's group, then whatever else was started for this very home."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    mark = f"QUANT_HOME={home.root}".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        pid = int(environment.parent.name)
        try:
            if pid != os.getpid() and mark in environment.read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError, FileNotFoundError):
            continue


def start(home: SmallHome, log: Path, port: int) -> Server:
    """`quant ui` of a home, in a group of its own."""
    environment = {**os.environ, "QUANT_HOME": str(home.root), "NO_COLOR": "1"}
    command = [str(Path(sys.executable).with_name("quant")), "ui", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=home.root, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    return Server(home, port, log, process)


@pytest.fixture(scope="module")
def server(finished, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    home = finished.copy(folder / "home")
    with own_environment(folder):
        found = start(home, folder / "log", free_port())
        try:
            found.wait_for("starting", found.answers, 90)
            yield found
        finally:
            kill_all_of(home, found.process)


def test_the_code_location_loads(server):
    (entry,) = server.ask(LOCATIONS)["workspaceOrError"]["locationEntries"]
    location = entry["locationOrLoadError"]
    assert location["__typename"] == "RepositoryLocation", location
    (repository,) = location["repositories"]
    found = {".".join(node["assetKey"]["path"]) for node in repository["assetNodes"]}
    assert found == set(ASSETS)


def test_one_partition_of_each_asset_is_materialized_over_graphql(server):
    was = server.home.state()
    (entry,) = server.ask(LOCATIONS)["workspaceOrError"]["locationEntries"]
    launched = server.ask(LAUNCH, params={
        "selector": {
            "repositoryLocationName": entry["name"],
            "repositoryName": entry["locationOrLoadError"]["repositories"][0]["name"],
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": [asset]} for asset in ASSETS],
            "assetCheckSelection": None,
        },
        "mode": "default",
        "runConfigData": {},
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": KEY}]},
    })["launchPipelineExecution"]  # fmt: skip
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run_id = launched["run"]["id"]
    run = server.wait_for(
        "the run",
        lambda: (
            (found := server.run(run_id))["status"] in ("SUCCESS", "FAILURE", "CANCELED") and found
        ),
        90,
    )
    assert run["status"] == "SUCCESS", server.log.read_text()[-3000:]
    made = {event["assetKey"]["path"][0]: event for event in run["assetMaterializations"]}
    assert made.keys() == set(ASSETS)
    assert {event["partition"] for event in made.values()} == {KEY}
    assert all(event["metadataEntries"] for event in made.values())
    assert server.home.state() == was, "the same partition again changes nothing"


def test_a_run_started_by_quant_appears(server):
    with server.home.runner(recorded=True) as runner:
        runner.materialize(["prices_daily"], KEY, KEY)
        run_id = runner.instance.get_runs(limit=1)[0].run_id
    run = server.run(run_id)
    assert run["status"] == "SUCCESS"
    assert {"key": "quant/started_by", "value": "quant"} in run["tags"]
    assert [e["assetKey"]["path"] for e in run["assetMaterializations"]] == [["prices_daily"]]


def test_the_page_can_show_every_past_materialization(server):
    """GraphQL has no NaN: metadata that is one would be an error instead of a partition."""
    for asset in ASSETS:
        past = server.ask(PAST, path=[asset])["assetNodeOrError"]["assetMaterializations"]
        assert past, asset


def test_the_log_has_no_warning(server):
    lines = server.log.read_text().splitlines()
    assert lines
    bad = [line for line in lines if re.search(r"warning|traceback|error", line, re.IGNORECASE)]
    assert not bad
