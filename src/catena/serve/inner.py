"""Requests that this process makes to its own application: jobs and gRPC go the way that a request over HTTP goes.

    job, RPC -> scope like that of a connection -> keys -> audit -> limits -> moderation -> replica

Nothing of that is done a second time here, so nothing can be forgotten in one of the ways.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope

from catena.serve.hosts import BOUND
from catena.serve.middleware.exchange import BEHALF, Behalf

Headers = Iterable[tuple[bytes, bytes]]
AHEAD = 64
"""Pieces of a stream that may wait for who reads it."""
JSON = (b"content-type", b"application/json")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to this process's own application."""

    path: str
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    method: str = "POST"
    client: str = "job"
    """Stands in the audit where an address would."""
    behalf: Behalf | None = None
    """For whom, where there is no credential any more."""

    def scope(self) -> Scope:
        """Return what an application is handed."""
        head = [*self.headers, (b"content-length", b"%d" % len(self.body))]
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [*head, JSON] if self.body else head,
            "client": (self.client, 0),
            "server": ("catena", 0),
            BOUND: "inside",
        }
        if self.behalf is not None:
            scope[BEHALF] = self.behalf
        return scope

    def receive(self, gone: asyncio.Event) -> Receive:
        """Return what gives the body, and the end of the connection when `gone` is set."""
        given = False

        async def receive() -> Message:
            nonlocal given
            if given:
                await gone.wait()
                return {"type": "http.disconnect"}
            given = True
            return {"type": "http.request", "body": self.body, "more_body": False}

        return receive


@dataclass(slots=True)
class Answered:
    """A whole answer."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


async def ask(app: ASGIApp, asked: Asked) -> Answered:
    """Return the whole answer to a request; who cancels this cancels the request."""
    answer = Answered(500, {}, b"")
    pieces: list[bytes] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status, answer.headers = message["status"], dict(message["headers"])
        else:
            pieces.append(message.get("body", b""))

    await app(asked.scope(), asked.receive(asyncio.Event()), send)
    answer.body = b"".join(pieces)
    return answer


@dataclass(slots=True)
class Opened:
    """An answer whose beginning is there."""

    status: int
    headers: dict[bytes, bytes]
    pieces: AsyncIterator[bytes]


@asynccontextmanager
async def opened(app: ASGIApp, asked: Asked) -> AsyncIterator[Opened]:
    """Give an answer as it comes; when the block ends, its connection is gone."""
    gone = asyncio.Event()
    queue: asyncio.Queue[Message] = asyncio.Queue(AHEAD)
    ended: Message = {"type": "end"}

    async def run() -> None:
        try:
            await app(asked.scope(), asked.receive(gone), queue.put)
        finally:
            if not gone.is_set():
                await queue.put(ended)

    async def pieces() -> AsyncIterator[bytes]:
        while (message := await queue.get())["type"] == "http.response.body":
            yield message.get("body", b"")
            if not message.get("more_body", False):
                return

    task = asyncio.create_task(run())
    try:
        first = await queue.get()
        if first["type"] == "end":
            await task  # raises what went wrong
            yield Opened(500, {}, pieces())
        else:
            yield Opened(first["status"], dict(first["headers"]), pieces())
    finally:
        gone.set()
        while not queue.empty():  # who waits to put something goes on, and sees that nobody listens
            queue.get_nowait()
        if not task.done():
            _, waiting = await asyncio.wait({task}, timeout=1)
            for one in waiting:
                one.cancel()
        await asyncio.gather(task, return_exceptions=True)
