"""The web console behind the gateway's address: a child process that is kept running, and a relay to it.

    /console/*   HTTP and websockets, to `catena console --prefix /console` on loopback
    all else     the gateway

The console lets people in itself (keys, sessions), so that its rule in `serve/rules.py` is `public`; where the gateway
asks for keys, or others reach it, the console asks for one in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

import aiohttp
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from yarl import URL

from catena.serve.errors import refuse
from catena.serve.gateway.config import BreakerConfig, ModelConfig, ReplicaConfig, RoutingConfig
from catena.serve.gateway.pool import Pool
from catena.serve.rules import require_rules

PREFIX = "/console"
HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade".split()
)
"""Headers of one connection (RFC 9110, 7.6.1), which a relay does not pass on."""
OURS = frozenset((b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-prefix"))
SOCKETS = b"sec-websocket-"
READ_BYTES = 1 << 16


class Beside:
    """ASGI application in front of a gateway. `running` is entered beside the server."""

    def __init__(self, gateway: ASGIApp, command: Sequence[str]) -> None:
        self._gateway = gateway
        model = ModelConfig(script=tuple(command), replicas=ReplicaConfig(prewarm=False, drain_s=0.0, health_s=5.0))
        self._pool = Pool("console", model, RoutingConfig(), BreakerConfig(), command)
        self._session: aiohttp.ClientSession | None = None
        require_rules([Mount(PREFIX, self._gateway)])

    @contextlib.asynccontextmanager
    async def running(self, inner: AbstractAsyncContextManager[None]) -> AsyncIterator[None]:
        """Keep the console running as long as the gateway (`inner`) is."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
        async with (
            inner,
            aiohttp.ClientSession(
                timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
            ) as session,
        ):
            self._session = session
            self._pool.begin(session)
            self._pool.resize(1)
            try:
                yield
            finally:
                await self._pool.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is the console's by it, and the rest by the gateway."""
        path = scope.get("path", "")
        if scope["type"] in ("http", "websocket") and (path == PREFIX or path.startswith(PREFIX + "/")):
            await self._relay(scope, receive, send)
        elif scope["type"] != "websocket":
            await self._gateway(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        ready = self._pool.ready()
        if not ready or self._session is None:
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1013})
                return
            await refuse(503, "the console is not up yet. Try again in a moment", code="starting")(scope, receive, send)
            return
        query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        url = ready[0].url.removesuffix(PREFIX) + raw.partition(b"?")[0].decode("latin-1") + query
        try:
            await (self._talk if scope["type"] == "websocket" else self._ask)(
                self._session, url, (scope, receive, send)
            )
        except (aiohttp.ClientConnectionError, TimeoutError):
            if scope["type"] == "http":
                await refuse(502, "the console does not answer", code="console_lost")(scope, receive, send)

    async def _ask(self, session: aiohttp.ClientSession, url: str, call: tuple[Scope, Receive, Send]) -> None:
        scope, receive, send = call

        async def body() -> AsyncIterator[bytes]:
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return
                yield message.get("body", b"")
                if not message.get("more_body"):
                    return

        data = None if scope["method"] in ("GET", "HEAD") else body()
        async with session.request(
            scope["method"],
            _exactly(url),
            headers=_headers(scope),
            data=data,
            allow_redirects=False,
            skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
        ) as answer:
            head = [(name, value) for name, value in answer.raw_headers if name.lower() not in HOP]
            await send({"type": "http.response.start", "status": answer.status, "headers": head})
            async for block in answer.content.iter_chunked(READ_BYTES):
                await send({"type": "http.response.body", "body": block, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def _talk(self, session: aiohttp.ClientSession, url: str, call: tuple[Scope, Receive, Send]) -> None:
        scope, receive, send = call
        await receive()  # websocket.connect
        try:
            other = await session.ws_connect(_exactly(url), headers=_headers(scope), max_msg_size=0, autoping=True)
        except aiohttp.WSServerHandshakeError:
            await send({"type": "websocket.close", "code": 4403})  # answered as 403: the console did not let it in
            return
        async with other:
            await send({"type": "websocket.accept"})
            there = asyncio.create_task(_there(receive, other))
            back = asyncio.create_task(_back(other, send))
            try:
                await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (there, back):
                    task.cancel()
                await asyncio.gather(there, back, return_exceptions=True)


def _exactly(url: str) -> URL:
    """Return a URL that is sent as it is: what was encoded stays so."""
    return URL(url, encoded=True)


def _headers(scope: Scope) -> list[tuple[str, str]]:
    """Return the headers that are passed on, Host too, and whom they come from."""
    kept = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in scope["headers"]
        if name not in HOP and name not in OURS and not name.startswith(SOCKETS) and name != b"content-length"
    ]
    length = [
        ("content-length", value.decode("latin-1")) for name, value in scope["headers"] if name == b"content-length"
    ]
    scheme = {"ws": "http", "wss": "https"}.get(scope["scheme"], scope["scheme"])
    who = scope["client"][0] if scope.get("client") else ""
    return [*kept, *length, ("x-forwarded-for", who), ("x-forwarded-proto", scheme)]


async def _there(receive: Receive, other: aiohttp.ClientWebSocketResponse) -> None:
    while True:
        message: Message = await receive()
        if message["type"] != "websocket.receive":
            return
        if message.get("text") is not None:
            await other.send_str(message["text"])
        else:
            await other.send_bytes(message.get("bytes") or b"")


async def _back(other: aiohttp.ClientWebSocketResponse, send: Send) -> None:
    async for message in other:
        if message.type is aiohttp.WSMsgType.TEXT:
            await send({"type": "websocket.send", "text": message.data})
        elif message.type is aiohttp.WSMsgType.BINARY:
            await send({"type": "websocket.send", "bytes": message.data})
    with contextlib.suppress(RuntimeError):  # the browser may have gone first
        await send({"type": "websocket.close", "code": other.close_code or 1000})
