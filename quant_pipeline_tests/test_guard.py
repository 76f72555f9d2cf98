"""The layer around the web server: what another page, name or link may not do."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_pipeline.faces.guard import Guard

OWN = "127.0.0.1:3000"
JSON = "application/json"


async def inner(scope: Any, receive: Any, send: Any) -> None:
    """An app that answers everything."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    else:
        headers = [(b"X-Frame-Options", b"SAMEORIGIN")] if scope["path"] == "/framed" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def ask(
    method: str = "GET",
    path: str = "/",
    query: str = "",
    kind: str = "http",
    guard: Guard | None = None,
    **headers: str,
) -> tuple[int, dict[str, str]]:
    """The status that a request comes to (a websocket's close code, or 101), and its headers."""
    given_headers = {"host": OWN} | {k.replace("_", "-"): v for k, v in headers.items()}
    scope = {
        "type": kind, "method": method, "path": path, "query_string": query.encode(),
        "headers": [(k.encode(), v.encode("latin-1")) for k, v in given_headers.items() if v],
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run((guard or Guard(inner))(scope, receive, send))
    first = sent[0]
    if kind == "websocket":
        return (101 if first["type"] == "websocket.accept" else first["code"]), {}
    found = {k.decode().lower(): v.decode() for k, v in first["headers"]}
    return first["status"], found


@pytest.mark.parametrize(("status", "asked"), [
    (200, {}),
    (200, {"host": "localhost:3001"}),
    (200, {"host": "[::1]:3000"}),
    (200, {"path": "/runs/x", "origin": f"http://{OWN}"}),
    (200, {"method": "POST", "path": "/graphql", "content_type": JSON}),
    (200, {"method": "POST", "path": "/graphql", "content_type": JSON, "origin": f"http://{OWN}"}),
    (200, {"method": "POST", "path": "/graphql", "content_type": f"{JSON}; charset=utf-8"}),
    (200, {"path": "/graphql", "accept": "text/html"}),
    (421, {"host": "evil.example"}),
    (421, {"host": "127.0.0.1.evil.example:3000"}),
    (421, {"host": "192.168.1.7:3000"}),
    (421, {"host": ""}),
    (403, {"origin": "http://evil.example"}),
    (403, {"origin": "null"}),
    (403, {"origin": "http://127.0.0.1:9999"}),
    (403, {"method": "POST", "path": "/graphql", "content_type": JSON, "origin": "null"}),
    (405, {"path": "/graphql", "query": "query=mutation{x}"}),
    (405, {"path": "/graphql", "query": "query=mutation{x}", "accept": "*/*"}),
    (405, {"path": "/graphql", "query": "query=mutation{x}", "accept": "text/html"}),
    (405, {"path": "/graphql/", "query": "query={x}"}),
    (405, {"method": "POST", "path": "/graphql", "query": "query=mutation{x}"}),
    (405, {"method": "POST", "path": "/graphql", "content_type": "text/plain"}),
    (405, {"method": "POST", "path": "/graphql",
           "content_type": "application/x-www-form-urlencoded"}),
    (405, {"method": "POST", "path": "/report_asset_materialization/prices_daily"}),
    (405, {"method": "PUT", "path": "/", "content_type": JSON}),
    (405, {"method": "OPTIONS", "path": "/graphql"}),
], ids=str)  # fmt: skip
def test_only_the_page_itself_gets_an_answer(status, asked):
    found, headers = ask(**asked)
    assert found == status
    assert headers["x-frame-options"] == "DENY"
    assert not any(name.startswith("access-control") for name in headers)


@pytest.mark.parametrize(("code", "headers"), [
    (101, {"origin": f"http://{OWN}"}), (101, {}), (1008, {"origin": "http://evil.example"}),
    (1008, {"origin": "null"}), (1008, {"host": "evil.example", "origin": "http://evil.example"}),
], ids=str)  # fmt: skip
def test_a_foreign_page_opens_no_websocket(code, headers):
    assert ask(kind="websocket", path="/graphql", **headers)[0] == code


def test_a_server_for_others_answers_to_addresses_and_its_names_only():
    guard = Guard(inner, {"127.0.0.1", "quant.example"}, any_address=True)
    for host in ("192.168.1.7:3000", "[fe80::1]:3000", "QUANT.example", "127.0.0.1"):
        assert ask(guard=guard, host=host)[0] == 200
    for host in ("evil.example", "localhost", "1.2.3.4.evil.example", "quant.example.evil"):
        assert ask(guard=guard, host=host)[0] == 421


def test_two_hosts_are_none():
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"",
             "headers": [(b"host", b"127.0.0.1"), (b"Host", b"evil.example")]}  # fmt: skip
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(inner)(scope, send, send))
    assert sent[0]["status"] == 421


def test_what_the_app_says_of_frames_stays():
    assert ask(path="/framed")[1]["x-frame-options"] == "SAMEORIGIN"


@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", ""]),
    st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=30),
    st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), min_size=1, max_size=30),
)
def test_whatever_comes_a_foreign_origin_never_passes(method, host, origin):
    status, _ = ask(method, host=host or "x", origin=f"http://{origin}", content_type=JSON)
    assert status != 200 or origin == host
