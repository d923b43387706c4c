"""One request to one replica: bytes there, and either the whole answer or the beginning of a stream back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import aiohttp

from catena.core.errors import RemoteError
from catena.serve.gateway.config import RoutingConfig
from catena.serve.gateway.preamble import Opening
from catena.serve.gateway.router import Backend

READ_BYTES = 1 << 16
KEEPALIVE_S = 3.0
"""Shorter than a server's own patience (uvicorn's is 5 s): a connection that it is about to close is not used again."""
BUSY = frozenset({429, 503})
"""Answers by which a replica says that it is well but cannot at the moment."""


class Failed(RemoteError):
    """A replica did not begin to answer; another may."""

    def __init__(self, message: str, *, lost: bool = False, busy: bool = False, unreached: bool = False) -> None:
        super().__init__(message)
        self.unreached = unreached
        """It never got the request."""
        self.lost = lost
        """The connection broke: the replica may have died of it."""
        self.busy = busy
        """It said itself that it cannot now."""


class TooLong(RemoteError):
    """A replica's answer is longer than it may be."""


@dataclass(slots=True)
class Answer:
    """What a replica said: `rest` is None for a whole answer, else the stream after `body`."""

    status: int
    content_type: bytes
    body: bytes
    rest: AsyncIterator[bytes] | None = None
    seconds: float = 0.0
    """To the first token, or to the whole answer."""


def open_session(routing: RoutingConfig) -> aiohttp.ClientSession:
    """Return the client for all replicas: no proxy, no cookies, bytes as they come."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S, ttl_dns_cache=10),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=routing.connect_s, sock_read=routing.first_token_s),
        headers={"accept-encoding": "identity"},  # bytes go on as they come, and are looked into on the way
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=READ_BYTES,
        trust_env=False,
    )


class Exchange:
    """An attempt; used as an asynchronous context, at whose end the connection is given back or cut."""

    def __init__(
        self, session: aiohttp.ClientSession, backend: Backend, path: str, body: bytes, headers: Mapping[str, str]
    ) -> None:
        self._session, self._backend, self._path, self._body = session, backend, path, body
        self._headers = {"content-type": "application/json", **headers}
        if backend.key:
            self._headers["authorization"] = f"Bearer {backend.key}"
        self._response: aiohttp.ClientResponse | None = None
        self._began = time.monotonic()

    async def __aenter__(self) -> Exchange:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._response is not None:
            self._response.close()  # one that was read to its end has given its connection back already

    async def begin(self, most_bytes: int) -> Answer:
        """Return the answer, or its beginning. Raises `Failed` as long as nothing of it has been given away."""
        try:
            self._response = await self._session.post(
                self._backend.url + self._path, data=self._body, headers=self._headers, allow_redirects=False
            )
            kind = self._response.headers.get("content-type", "application/json")
            if self._response.status < 300 and kind.startswith("text/event-stream"):
                return await self._opened(self._response, kind.encode("latin-1"))
            body = await self._whole(self._response, most_bytes)
        except aiohttp.ClientConnectorError as error:  # it never got the request
            raise Failed(f"{self._backend.shown} takes no connection", unreached=True) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Failed(f"the connection to {self._backend.shown} broke", lost=True) from error
        except TimeoutError as error:
            raise Failed(f"{self._backend.shown} did not answer in time") from error
        status = self._response.status
        if status in BUSY or status >= 500:
            raise Failed(f"{self._backend.shown} answered {status}", busy=status in BUSY)
        return Answer(status, kind.encode("latin-1"), body, None, time.monotonic() - self._began)

    async def _whole(self, response: aiohttp.ClientResponse, most_bytes: int) -> bytes:
        if (response.content_length or 0) > most_bytes:
            raise TooLong(f"the answer is longer than {most_bytes} bytes")
        if response.content_length is not None:
            return await response.read()
        pieces, size = [], 0
        async for piece in response.content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size > most_bytes:
                raise TooLong(f"the answer is longer than {most_bytes} bytes")
        return b"".join(pieces)

    async def _opened(self, response: aiohttp.ClientResponse, kind: bytes) -> Answer:
        opening = Opening()
        while data := await response.content.readany():
            state = opening.push(data)
            if state == "error":
                raise Failed(f"{self._backend.shown} failed before the first token")
            if state == "content":
                rest = response.content.iter_any()
                return Answer(response.status, kind, bytes(opening.held), rest, time.monotonic() - self._began)
        raise Failed(f"{self._backend.shown} ended before the first token", lost=True)
