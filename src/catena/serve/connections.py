"""The guard at the socket: how many connections, how long a head may take, how long a reader may sleep.

Between the listener and uvicorn's parser, which knows none of these bounds: without them one client that sends a byte a
minute, or reads none, keeps its place for ever.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any, ClassVar

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from catena.serve.config import ServeConfig
from catena.serve.errors import RETRY_AFTER_S
from catena.serve.wire import error_body

CONNECTION = "catena.connection"
"""Key of the scope: protocol and cycle, for answers that the kernel copies from a file (`serve/hub/files.py`)."""
LINGER_S = 1.0
"""Time for a refused client to read why, before the connection is cut."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection; `bounded` makes a class of it for a config."""

    bounds: ClassVar[ServeConfig] = ServeConfig()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._head_bytes = 0
        self._in_head = False
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or say that there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.bounds.max_connections:
            self.connections.discard(self)
            self._refuse(503, "too many connections are open. Try again in a moment", "server_error")
            return
        self._start("head", self.bounds.header_timeout_s, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        for name in list(self._timers):
            self._stop(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; a head that grows too long ends the connection."""
        if self._refused:
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self.bounds.max_header_bytes:
            limit = self.bounds.max_header_bytes
            self._refuse(431, f"the head of the request is longer than {limit} bytes", "invalid_request_error")

    def on_message_begin(self) -> None:
        """Note that a request begins."""
        super().on_message_begin()
        self._in_head = True
        if "head" not in self._timers:
            self._start("head", self.bounds.header_timeout_s, self._late)

    def on_headers_complete(self) -> None:
        """Note that its head is here; for the body, the endpoint has a limit of its own."""
        self._in_head, self._head_bytes = False, 0
        self._stop("head")
        super().on_headers_complete()
        # Each request gets its own cycle: with pipelining the protocol's is already that of a later one.
        self.scope[CONNECTION] = (self, self.cycle)  # type: ignore[literal-required]

    def on_message_complete(self) -> None:
        """Count the next head from here."""
        self._head_bytes = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Note that the client takes nothing at the moment."""
        super().pause_writing()
        self._start("reader", self.bounds.send_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that it does again."""
        self._stop("reader")
        super().resume_writing()

    def _late(self) -> None:
        if not self._in_head:  # it never said anything: nobody waits for an answer
            self.transport.abort()
            return
        seconds = self.bounds.header_timeout_s
        self._refuse(408, f"the headers did not arrive within {seconds:g} s", "invalid_request_error")

    def _refuse(self, status: int, message: str, kind: str) -> None:
        body = orjson.dumps(error_body(message, kind, code=CODES[status]))
        head = [b"content-type: application/json", b"connection: close", b"content-length: %d" % len(body)]
        if status == 503:
            head.append(b"retry-after: %d" % RETRY_AFTER_S)
        self._refused = True
        self._stop("head")
        self.transport.write(STATUS_LINE[status] + b"\r\n".join([*head, b"", body]))
        # Not closed at once: what the client still sends would be answered by a reset that eats our words.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._start("linger", LINGER_S, self.transport.abort)

    def _start(self, name: str, seconds: float, act: Any) -> None:
        self._stop(name)
        self._timers[name] = self.loop.call_later(seconds, act)

    def _stop(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()


CODES = {408: "request_timeout", 431: "headers_too_large", 503: "too_many_connections"}


def bounded(config: ServeConfig) -> type[GuardedProtocol]:
    """Return the protocol for a config."""
    return type("BoundedProtocol", (GuardedProtocol,), {"bounds": config})


def allow_files(wanted: int) -> None:
    """Let this process have so many open files (a connection is one), as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    enough = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, enough), hard))
