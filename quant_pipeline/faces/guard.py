"""An ASGI layer that lets a browser reach a local page only from that page itself.

Dagster's webserver asks for no login, runs a mutation that comes by plain GET, and looks at neither
Origin nor Host: any page that the user has open could launch runs by a link or a form.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

NAMES = "QUANT_UI_NAMES"  # tells the server's process what else it is called
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
# A page of another site can send none of these without being asked for permission first.
SENT_TYPES = ("application/json", "application/graphql")
ADDED = [(b"x-frame-options", b"DENY"), (b"x-content-type-options", b"nosniff"),
         (b"referrer-policy", b"same-origin")]  # fmt: skip


@dataclass(frozen=True)
class Guard:
    """Wraps an app that serves under some names and, if `any_address`, under any IP address.

    Another name in Host may be one of an attacker that points here (DNS rebinding), so it is
    refused, as is every request of another Origin, every request but GET and HEAD whose body a
    foreign form could send, and GraphQL by GET but for its page.
    """

    app: App
    names: Collection[str] = LOOPBACK
    any_address: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403, 405 or 421 in a line of text."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, _adding_headers(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
        else:
            status, words = refusal
            headers = [(b"content-type", b"text/plain; charset=utf-8"), *ADDED]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": f"{words}\n".encode()})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        hosts, origins, types = (_all(scope, n) for n in (b"host", b"origin", b"content-type"))
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return 421, (
                f"This server does not answer to the name {', '.join(hosts)[:200] or '(none)'}. "
                "Open it as 127.0.0.1, or start it with `quant ui --name NAME`."
            )
        if any(origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}") for origin in origins):
            return 403, f"A page of {', '.join(origins)[:200]} may not use this server."
        if scope["type"] == "websocket" or scope["method"] == "HEAD":
            return None
        is_graphql = scope["path"].rstrip("/").endswith("/graphql")
        if scope["method"] == "GET":
            accepts = ", ".join(_all(scope, b"accept"))
            if is_graphql and ("text/html" not in accepts or scope.get("query_string")):
                return 405, "GraphQL is asked by POST with a body of application/json."
            return None
        kind = types[0].split(";")[0].strip().lower() if len(types) == 1 else ""
        if scope["method"] != "POST" or kind not in SENT_TYPES:
            return 405, f"{scope['method']} needs a body of application/json."
        return None

    def _is_ours(self, host: str) -> bool:
        name = _without_port(host).lower()
        return name in self.names or (self.any_address and _is_address(name))


def _all(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _adding_headers(send: Send) -> Send:
    """Also tell the browser that no other site may show the page in a frame."""

    async def adding(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {key.lower() for key, _ in message.get("headers", ())}
            new = [(key, value) for key, value in ADDED if key not in given]
            message = {**message, "headers": [*message.get("headers", ()), *new]}
        await send(message)

    return adding
