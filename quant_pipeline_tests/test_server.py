"""The real web server and daemon on a home: what the page would do, and what it would see.

Tests that change the home stand after those that only look.
"""

import json
import os
import re
import threading
from collections.abc import Iterator
from datetime import datetime
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import pandas as pd
import pytest

from quant_pipeline.defs.instance import open_instance
from quant_pipeline_tests.homes import EVERY, own_environment
from quant_pipeline_tests.servers import LOCATIONS, Server, listening, serving

pytestmark = pytest.mark.slow

KEY, OPEN = "2016-06", "2016-08"
PAST = """query($path: [String!]!) { assetNodeOrError(assetKey: {path: $path}) { ... on AssetNode {
    assetMaterializations { partition metadataEntries { label
        ... on FloatMetadataEntry { floatValue } } } } } }"""
SCHEDULES = """query($where: RepositorySelector!) { schedulesOrError(repositorySelector: $where) {
    ... on Schedules { results { name executionTimezone scheduleState { status }
        futureTicks(limit: 400) { results { timestamp } } } } } }"""
TERMINATE = """mutation($id: String!) { terminateRun(runId: $id, terminatePolicy: SAFE_TERMINATE) {
    __typename ... on TerminateRunFailure { message } } }"""
TICKS = """query($where: SensorSelector!) { sensorOrError(sensorSelector: $where) {
    ... on Sensor { sensorState { ticks(limit: 1) { status } } } } }"""
RUNS = """query($filter: RunsFilter!) { runsOrError(filter: $filter) {
    ... on Runs { results { id status } } } }"""
SETTINGS = "max_rounds = 30\nearly_stopping_rounds = 5"
CANARY = "canary-5f3c1e"  # a part of a secret
LONG = "max_rounds = 50000\nearly_stopping_rounds = 50000"


@pytest.fixture(scope="module")
def told() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a webhook, and what it was told."""
    messages: list[dict[str, Any]] = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Webhook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/told/{CANARY}", messages
        server.shutdown()


@pytest.fixture(scope="module")
def server(finished, told, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    home = finished.copy(folder / "home")
    home.change_settings("[universe]", '[alerts]\non = ["run_failed"]\n\n[universe]')
    with own_environment(folder), serving(home, folder, QUANT_ALERTS__WEBHOOK=told[0]) as found:
        yield found


@pytest.fixture(scope="module")
def launched(server) -> tuple[str, dict[str, Any]]:
    """A backfill of three partitions of all assets, and what was stored before it."""
    was = server.home.state()
    return server.backfill(EVERY, ["2016-05", "2016-06", "2016-07"]), was


def made_by(run: dict[str, Any]) -> dict[str, str]:
    return {e["assetKey"]["path"][0]: e["partition"] for e in run["assetMaterializations"]}


def test_the_code_location_loads(server):
    (entry,) = server.ask(LOCATIONS)["workspaceOrError"]["locationEntries"]
    location = entry["locationOrLoadError"]
    assert location["__typename"] == "RepositoryLocation", location
    (repository,) = location["repositories"]
    found = {".".join(node["assetKey"]["path"]) for node in repository["assetNodes"]}
    assert found == set(EVERY)


def test_schedules_stand_still_and_would_go_by_the_clock_of_the_exchange(server):
    """Through both changes of its clock within a year."""
    found = server.ask(SCHEDULES, where=server.selector())["schedulesOrError"]["results"]
    by_name = {schedule["name"]: schedule for schedule in found}
    assert set(by_name) == {
        "daily_score_schedule", "retrain_schedule", "housekeeping_schedule",
        "proofs_schedule",
    }  # fmt: skip
    assert {s["scheduleState"]["status"] for s in found} == {"STOPPED"}
    assert {s["executionTimezone"] for s in found} == {"America/New_York"}
    ticks = [
        datetime.fromtimestamp(tick["timestamp"], ZoneInfo("America/New_York"))
        for tick in by_name["retrain_schedule"]["futureTicks"]["results"]
    ]
    assert {(t.weekday(), t.hour, t.minute) for t in ticks} == {(5, 6, 0)}
    assert len({t.utcoffset() for t in ticks}) == 2


@pytest.mark.usefixtures("launched")
def test_one_partition_of_each_asset_is_materialized(server):
    was = server.home.state()
    run = server.ended(server.launch(EVERY, KEY))
    assert run["status"] == "SUCCESS", server.log.read_text()[-3000:]
    assert made_by(run) == dict.fromkeys(EVERY, KEY)
    assert all(event["metadataEntries"] for event in run["assetMaterializations"])
    assert server.home.state() == was, "the same partition again changes nothing"


def test_the_log_has_no_warning(server):
    lines = server.log.read_text().splitlines()
    assert lines
    bad = [line for line in lines if re.search(r"warning|traceback|error", line, re.IGNORECASE)]
    assert not bad


def test_it_listens_on_the_loopback_address_only(server):
    found = listening(server.home)
    assert f"127.0.0.1:{server.port}" in found
    assert {address.rpartition(":")[0] for address in found} <= {"127.0.0.1", "::1"}


def asked(
    server: Server, method: str, path: str, body: str = "", **headers: str
) -> tuple[int, str]:
    """Status and text of an answer to a request with exactly these headers."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body or None, named)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_no_link_no_form_and_no_other_name_reaches_it(server):
    """What the bare webserver would do: run a mutation that comes by GET, whoever sends it."""
    change = 'mutation { setConcurrencyLimit(concurrencyKey: "evil", limit: 1) }'
    limits = "{ instance { concurrencyLimits { concurrencyKey } } }"
    body, kind = json.dumps({"query": change}), "application/json"
    link = "/graphql?" + urlencode({"query": change})
    own = f"127.0.0.1:{server.port}"
    for status, words, request in (
        (405, "GraphQL is asked by POST", ("GET", link)),
        (405, "needs a body of application/json", ("POST", link)),
        (403, "A page of http://evil.example may not", ("POST", "/graphql", body)),
        (421, "does not answer to the name evil.example", ("POST", "/graphql", body)),
        (421, "does not answer to the name evil.example", ("GET", "/")),
    ):
        headers = {"Content_Type": kind} if len(request) == 3 else {}
        headers |= {"Origin": "http://evil.example"} if status == 403 else {}
        headers |= {"Host": "evil.example"} if status == 421 else {}
        found = asked(server, *request, **headers)
        assert found[0] == status, found
        assert words in found[1]
    assert "evil" not in json.dumps(server.ask(limits))
    headers = {"Content_Type": kind, "Origin": f"http://{own}"}
    assert asked(server, "POST", "/graphql", body, **headers)[0] == 200
    assert "evil" in json.dumps(server.ask(limits)), "or else the refusals show nothing"


def test_materialize_all_with_the_open_window_ends_green_without_a_model(server):
    was = server.home.state()
    run = server.ended(server.launch(EVERY, OPEN))
    assert run["status"] == "SUCCESS", server.log.read_text()[-3000:]
    assert not {"walkforward_folds", "lgbm_model"} & made_by(run).keys()
    assert {"prices_daily", "features_daily", "labels", "training_frame"} <= made_by(run).keys()
    assert server.home.state() == was


def test_a_run_started_by_quant_appears(server):
    with server.home.runner(recorded=True) as runner:
        runner.materialize(["prices_daily"], KEY, KEY)
        run_id = runner.instance.get_runs(limit=1)[0].run_id
    run = server.run(run_id)
    assert run["status"] == "SUCCESS"
    assert {"key": "quant/started_by", "value": "quant"} in run["tags"]
    assert made_by(run) == {"prices_daily": KEY}


def test_the_page_can_show_every_past_materialization(server):
    """GraphQL has no NaN: metadata that is one would be an error instead of a partition."""
    for asset in EVERY:
        past = server.ask(PAST, path=[asset])["assetNodeOrError"]["assetMaterializations"]
        assert past, asset


@pytest.mark.long
def test_three_partitions_of_all_assets_took_at_most_nine_runs(server, launched):
    """Others ran meanwhile, and waited for one another."""
    backfill_id, was = launched
    found = server.backfilled(backfill_id, 180)
    assert found["status"] == "COMPLETED_SUCCESS", server.log.read_text()[-3000:]
    assert len(found["runs"]) <= 9
    assert {run["status"] for run in found["runs"]} == {"SUCCESS"}
    assert server.home.state() == was


def test_a_failed_run_is_told_to_the_webhook(server, told):
    name = {**server.selector(), "sensorName": "alert_run_failed"}
    server.wait_for(
        "the sensor",
        lambda: server.ask(TICKS, where=name)["sensorOrError"]["sensorState"]["ticks"],
        90,
    )
    run_id = server.launch(["lgbm_model"], "2015-06")
    assert server.ended(run_id)["status"] == "FAILURE"
    server.wait_for("the alert", lambda: told[1], 90)
    (message,) = told[1]
    assert (message["kind"], message["run_id"]) == ("run_failed", run_id)
    assert "lgbm_model failed in 2015-06: " in message["text"]
    assert message["partition"] == "2015-06"


@pytest.mark.long
def test_a_run_cancelled_in_mid_training_leaves_nothing_behind(server, launched):
    server.backfilled(launched[0], 180)  # else its models train as long, and hold the slot
    was = server.home.state()
    server.home.change_settings(SETTINGS, LONG)
    try:
        run_id = server.launch(["lgbm_model"], KEY)
        with open_instance(server.home.workspace.home) as instance:
            storage = instance.event_log_storage

            def claimed() -> int:
                return len(storage.get_concurrency_info("training").claimed_slots)

            def is_training() -> bool:
                # On a busy machine the slot is claimed before the run counts as started.
                return claimed() > 0 and server.run(run_id)["status"] == "STARTED"

            server.wait_for("training", is_training, 90)
            done = server.ask(TERMINATE, id=run_id)["terminateRun"]
            assert done["__typename"] == "TerminateRunSuccess", done
            assert server.ended(run_id)["status"] == "CANCELED"
            server.wait_for("the slot", lambda: not claimed(), 30)
    finally:
        server.home.change_settings(LONG, SETTINGS)
    assert list((server.home.workspace.home.dagster / "alive").iterdir()) == []
    assert server.home.state() == was


def test_a_file_in_the_inbox_is_ingested_and_scored(server: Server, market: pd.DataFrame):
    home = server.home
    newest = home.scores()[-1][0]
    inbox = home.workspace.home.inbox
    inbox.mkdir(parents=True, exist_ok=True)
    day = market[market["ts"] == market["ts"].max()].assign(ts=pd.Timestamp(2016, 8, 8))
    day.to_parquet(inbox / ".next", index=False)
    os.utime(inbox / ".next", (0, 0))
    (inbox / ".next").rename(inbox / "next.parquet")
    wanted = {"pipelineName": "daily_score"}

    def runs() -> Any:
        return server.ask(RUNS, filter=wanted)["runsOrError"]["results"]

    (run, *_) = server.wait_for("the sensor", runs, 90)
    assert server.ended(run["id"])["status"] == "SUCCESS"
    assert [p.name for p in (inbox / "done").iterdir()] == ["next.parquet"]
    scored = [row for row in home.scores() if row[0] > newest]
    assert {str(row[0]) for row in scored} == {"2016-08-08"}
    assert {row[6] for row in scored} == {"backfill"}, "of 2016, so not scored at once"


def test_a_secret_of_the_environment_is_stored_nowhere(server, told):
    """Not in runs, events, ticks, the registry, logs or the database: after all tests above."""
    assert told[1], "or else nobody used it"
    files = [p for p in server.home.root.rglob("*") if p.is_file()]
    assert {p.name for p in files} >= {"runs.db", "registry.sqlite", "quant.duckdb", "index.db"}
    found = [p for p in [*files, server.log] if CANARY.encode() in p.read_bytes()]
    assert not found
