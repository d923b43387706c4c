"""A client that does as little as one can: HTTP/1.1 on sockets that stay open, as fast as answers come or by a clock.

`closed` asks again as soon as it has an answer: it finds how much a server can do, and its times are those of a server
that has as much to do as there are connections. `paced` asks when it is time, whether answers came or not, as people
do: a request that finds no free connection waits, and the wait counts (nothing is left out because the client was held
up). Times begin when a request was due.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

PROMPT = "Tell me in a few words what the function json.loads does, and what it raises."


class Connection(asyncio.Protocol):
    """One connection with one request under way at a time; `done` is called with each answer's status."""

    def __init__(self, request: bytes, done: Callable[[Connection, int], None]) -> None:
        self.request, self._done = request, done
        self.events = 0
        self.due = 0.0
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._buffer, self._status = b"", 0
        self._chunked = self._headed = False
        self._length = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self, due: float) -> None:
        """Send the request, which was due at that moment."""
        self._buffer, self._headed, self.due = b"", False, due
        self._transport.write(self.request)

    def close(self) -> None:
        """Ask no more."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._headed:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            self._status = int(head[9:12])
            self._chunked = b"transfer-encoding: chunked" in head
            self._length = 0 if self._chunked else int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            self._buffer, self._headed = self._buffer[end + 4 :], True
        if self._chunked:
            self.events += data.count(b"data: ")
            if not self._buffer.endswith(b"0\r\n\r\n"):
                self._buffer = self._buffer[-16:]
                return
        elif len(self._buffer) < self._length:
            return
        self._done(self, self._status)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)


def chat_request(url: str, key: str, *, stream: bool = False, model: str = "m", **more: Any) -> bytes:
    """Return the bytes of a chat request."""
    host = url.removeprefix("http://")
    messages = [{"role": "user", "content": PROMPT}]
    body = json.dumps({"model": model, "messages": messages, "max_tokens": 64, "stream": stream, **more}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    auth = f"authorization: Bearer {key}\r\n" if key else ""
    return (head + auth + f"content-length: {len(body)}\r\n\r\n").encode() + body


class _Load:
    """What both ways share: connections, times, statuses."""

    def __init__(self, url: str, request: bytes) -> None:
        self.url, self.request = url, request
        self.times: list[float] = []
        self.statuses: dict[int, int] = {}
        self.connections: list[Connection] = []

    async def open(self, count: int) -> None:
        host, _, port = self.url.removeprefix("http://").partition(":")
        loop = asyncio.get_running_loop()
        for _ in range(count):
            _, one = await loop.create_connection(lambda: Connection(self.request, self.done), host, int(port))
            self.connections.append(one)

    def done(self, connection: Connection, status: int) -> None:
        self.times.append(time.perf_counter() - connection.due)
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def told(self, seconds: float) -> dict[str, float]:
        if set(self.statuses) != {200}:
            raise SystemExit(f"{self.url} answered {self.statuses}")
        ordered = sorted(self.times)
        return {
            "rps": len(ordered) / seconds,
            "p50_ms": ordered[len(ordered) // 2] * 1000,
            "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
            "events_per_s": sum(one.events for one in self.connections) / seconds,
        }


class _Closed(_Load):
    until = 0.0

    def done(self, connection: Connection, status: int) -> None:
        super().done(connection, status)
        now = time.perf_counter()
        if now < self.until:
            connection.ask(now)
        else:
            connection.close()


async def closed(url: str, request: bytes, connections: int, seconds: float) -> dict[str, float]:
    """Ask as fast as so many connections can, for so long."""
    load = _Closed(url, request)
    await load.open(connections)
    began = time.perf_counter()
    load.until = began + seconds
    for one in load.connections:
        one.ask(time.perf_counter())
    await asyncio.gather(*(one.lost for one in load.connections))
    return load.told(time.perf_counter() - began)


class _Paced(_Load):
    def __init__(self, url: str, request: bytes) -> None:
        super().__init__(url, request)
        self.free: deque[Connection] = deque()
        self.late: deque[float] = deque()

    def done(self, connection: Connection, status: int) -> None:
        super().done(connection, status)
        if self.late:
            connection.ask(self.late.popleft())
        else:
            self.free.append(connection)

    def take(self, due: float) -> None:
        if self.free:
            self.free.popleft().ask(due)
        else:
            self.late.append(due)


async def paced(
    url: str, request: bytes, connections: int, seconds: float, rate: float, *, seed: int = 0
) -> dict[str, float]:
    """Ask so many times a second at random moments (a Poisson process: the same ones for the same seed)."""
    load, dice = _Paced(url, request), random.Random(seed)
    await load.open(connections)
    load.free.extend(load.connections)
    began = due = time.perf_counter()
    asked = 0
    while (due := due + dice.expovariate(rate)) < began + seconds:
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        load.take(due)
        asked += 1
    until = time.perf_counter() + 30
    while len(load.times) < asked and time.perf_counter() < until:
        await asyncio.sleep(0.01)
    if len(load.times) < asked:
        raise SystemExit(f"{url} left {asked - len(load.times)} of {asked} requests without an answer")
    for one in load.connections:
        one.close()
    return load.told(seconds)
