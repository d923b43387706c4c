"""One request on its way through the middlewares: its body, read once, who asks, and what was decided about it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.types import Message, Receive, Scope

from catena.govern.roles import Action, Principal
from catena.serve.config import ServeConfig
from catena.serve.endpoint import read_body
from catena.serve.wire import WireError, too_deep

KEY = "catena.exchange"
BEHALF = "catena.behalf"
"""Key of the scope: for whom a job of this process asks (`Behalf`). No request over a network can set it."""


@dataclass(frozen=True, slots=True)
class Behalf:
    """Who gave a job that is done now, when nobody is there to show a credential."""

    principal: Principal | None
    """None where nobody was asked who they are."""
    tenant: str


@dataclass(slots=True)
class Exchange:
    """What the middlewares know of one request."""

    id: str
    principal: Principal | None = None
    """None where nobody is asked who they are."""
    action: Action | None = None
    body: bytes | None = None
    """The request's body, once somebody wanted it."""
    parsed: Any = None
    """The body as JSON; None where it is none. The routes read the same bytes with the same parser."""
    secret: bool = False
    """Whether the answer holds a secret, which the audit leaves out."""
    decisions: list[dict[str, Any]] = field(default_factory=list)
    """What was decided and why, for the audit."""
    metrics: str = ""
    """What the middlewares count, as Prometheus text; only where `/metrics` is asked for."""

    @property
    def model(self) -> str:
        """The model that a JSON body names."""
        named = self.parsed.get("model") if isinstance(self.parsed, dict) else None
        return named if isinstance(named, str) else ""

    @property
    def subject(self) -> str:
        """Whom the request belongs to; `-` where nobody was asked."""
        return self.principal.subject if self.principal is not None else "-"


def exchange_of(scope: Scope) -> Exchange:
    """Return the request's exchange; the first who asks makes it."""
    found = scope.get(KEY)
    if found is None:
        found = scope[KEY] = Exchange(secrets.token_hex(8))
    assert isinstance(found, Exchange)
    return found


def principal_of(scope: Scope) -> Principal | None:
    """Return who asks, where somebody was asked."""
    found = scope.get(KEY)
    return found.principal if isinstance(found, Exchange) else None


def is_json(scope: Scope) -> bool:
    """Tell whether a request declares its body as JSON."""
    for name, value in scope["headers"]:
        if name == b"content-type":
            return bool(value.partition(b";")[0].strip().lower() == b"application/json")
    return False


async def read_json(scope: Scope, receive: Receive, config: ServeConfig) -> Receive:
    """Read a JSON body into the exchange; returns what the next one receives from, the body first.

    Raises `WireError` (413, 408) and `Gone` as the endpoints do. Other kinds of bodies are left where they are.
    """
    exchange = exchange_of(scope)
    if exchange.body is None:
        if scope["method"] not in ("POST", "PUT", "PATCH") or not is_json(scope):
            return receive
        try:
            async with asyncio.timeout(config.body_timeout_s):
                exchange.body = await read_body(scope, receive, config.max_body_bytes)
        except TimeoutError as error:
            message = f"the body did not arrive within {config.body_timeout_s:g} s"
            raise WireError(message, code="request_timeout", status=408) from error
        try:
            exchange.parsed = orjson.loads(exchange.body)
        except orjson.JSONDecodeError:
            exchange.parsed = None  # the endpoint says so in its own words
        if too_deep(exchange.body, exchange.parsed):
            exchange.parsed = None  # the same
        return _replayed(exchange, receive)
    return receive


def _replayed(exchange: Exchange, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": exchange.body, "more_body": False}

    return again


def replace_json(exchange: Exchange, body: Mapping[str, Any]) -> None:
    """Put another body in the request's place: what moderation masked."""
    exchange.parsed, exchange.body = body, orjson.dumps(body)
