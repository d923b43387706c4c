"""What the POST routes share, as raw ASGI applications: body in, answer or events out, and an eye on the connection.

read body -> check -> submit requests to the generator -> deltas (from its thread) -> one answer, or events
                                                      \\-> client gone: cancel what is still running
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from catena.core.errors import CatenaError, EnvironmentProblem
from catena.core.generate import Completion, Delta, Request, StreamingGenerator
from catena.serve import stream
from catena.serve.config import ServeConfig
from catena.serve.errors import UNEXPECTED, answer_to
from catena.serve.models import Models, Target
from catena.serve.wire import MOST_DEEP, BodyT, WireError, error_body, parse, too_deep

logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")
MOST_JOBS = 64
"""Calls of one route that run outside an engine's own queue (embeddings); more are refused."""


@dataclass(slots=True)
class Counters:
    """What happened since the start, for `/metrics`."""

    answered: dict[tuple[str, str, int], int] = field(default_factory=dict)
    """(route, model, status) to number of requests; 499 where the client went away."""
    in_flight: dict[str, int] = field(default_factory=dict)
    """Route to requests that are not answered yet."""

    def enter(self, route: str, change: int) -> None:
        """Note that a request came or went."""
        self.in_flight[route] = self.in_flight.get(route, 0) + change

    def count(self, route: str, model: str, status: int) -> None:
        """Count one request."""
        self.answered[route, model, status] = self.answered.get((route, model, status), 0) + 1


class Gone(Exception):
    """The client closed the connection."""


class Endpoint(ABC, Generic[BodyT]):
    """One POST route."""

    route: str
    """Its name in metrics."""
    body: type[BodyT]

    def __init__(self, models: Models, config: ServeConfig, counters: Counters) -> None:
        self.models, self.config, self.counters = models, config, counters
        # Threads of its own: work that waits for a model must not hold up the tokenizing of other routes.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix=f"catena-{self.route}")

    @abstractmethod
    async def answer(self, request: BodyT, target: Target, reply: Reply) -> None:
        """Answer a request that was checked; raises `CatenaError`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        reply = Reply(scope, receive, send)
        model, status = "", 499
        self.counters.enter(self.route, 1)
        try:
            request = parse(self.body, decode(await self._read(scope, receive)))
            target = self.target(request)
            model = request.model
            await self.answer(request, target, reply)
            status = 200
        except Gone:
            pass
        except CatenaError as error:
            status = error.http_status
            await reply.fail(error)
        except Exception as error:
            logger.exception("a request to %s failed", self.route)
            status = 500
            await reply.fail(error)
        finally:
            self.counters.enter(self.route, -1)
            self.counters.count(self.route, model, status)

    def target(self, request: BodyT) -> Target:
        """Return what a request's `model` stands for; raises `WireError`."""
        return self.models.resolve(request.model)

    async def run(self, work: Callable[[], ResultT]) -> ResultT:
        """Do work that blocks, in a thread; raises `EnvironmentProblem` where too much is under way."""
        if self.counters.in_flight.get(self.route, 0) > MOST_JOBS:
            raise EnvironmentProblem("too many requests are on their way", hint="Try again in a moment.")
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body; raises `WireError` (415 if not JSON, 408 if it does not arrive, 413 if it is too long)."""
        require_json(scope)
        seconds = self.config.body_timeout_s
        try:
            async with asyncio.timeout(seconds):
                return await read_body(scope, receive, self.config.max_body_bytes)
        except TimeoutError as error:
            message = f"the body did not arrive within {seconds:g} s"
            raise WireError(message, code="request_timeout", status=408) from error


@asynccontextmanager
async def submitted(
    requests: list[Request], generator: StreamingGenerator, reply: Reply
) -> AsyncIterator[AsyncIterator[tuple[int, Delta]]]:
    """Hand requests to the generator and give their deltas; whatever happens inside, none is left running."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[int, Delta] | None] = asyncio.Queue()
    watcher = asyncio.create_task(reply.gone(queue))
    taken: list[str] = []

    async def deltas() -> AsyncIterator[tuple[int, Delta]]:
        while (item := await queue.get()) is not None:
            yield item
        raise Gone

    try:
        for index, request in enumerate(requests):

            def on_delta(delta: Delta, index: int = index) -> None:
                loop.call_soon_threadsafe(queue.put_nowait, (index, delta))

            taken.append(request.id)
            # In a thread: tokenizing a long prompt would hold up every other connection.
            await asyncio.to_thread(generator.submit, request, on_delta)
        yield deltas()
    finally:
        watcher.cancel()
        for id in taken:
            generator.cancel(id)


async def collect(requests: list[Request], generator: StreamingGenerator, reply: Reply) -> list[Completion]:
    """Hand requests to the generator and wait until each is complete."""
    done: dict[int, Completion] = {}
    async with submitted(requests, generator, reply) as deltas:
        async for index, delta in deltas:
            if delta.completion is not None:
                done[index] = good(delta.completion)
                if len(done) == len(requests):
                    break
    return [done[index] for index in range(len(requests))]


def good(completion: Completion) -> Completion:
    """Pass on an answer that came to its own end; a deadline is what the client asked for, the rest our fault."""
    if completion.finish_reason == "deadline":
        message = f"the answer was not complete in time ({completion.generated} tokens were)"
        raise WireError(message, param="deadline_s", code="deadline_exceeded", status=408)
    if completion.finish_reason in ("error", "cancelled"):
        raise completion.error or CatenaError("the engine stopped before the answer was complete")
    return completion


def require_json(scope: Scope) -> None:
    """Raise `WireError` 415 unless a body is declared as JSON: any other type a web page may send without asking."""
    given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"content-type"]
    if [value.partition(";")[0].strip().lower() for value in given] != ["application/json"]:
        message = f"the content type must be application/json, not {', '.join(given) or 'absent'}"
        raise WireError(message, code="unsupported_media_type", status=415)


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Return the whole body; raises `WireError` 413 as soon as it is known to be too long."""
    too_long = WireError(f"the body is longer than {limit} bytes", code="request_too_large", status=413)
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise too_long
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > limit:
            raise too_long
        if not message.get("more_body", False):
            return b"".join(pieces)


def decode(body: bytes) -> Any:
    """Decode JSON; raises `WireError` for invalid UTF-8 or JSON, and for what is nested absurdly deep."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        what = "UTF-8" if "utf-8" in str(error).lower() else "JSON"
        raise WireError(f"the body is not valid {what}: {error}", code="invalid_json") from error
    if too_deep(body, value):
        raise WireError(f"the body is nested more than {MOST_DEEP} levels deep", code="invalid_json")
    return value


class Reply:
    """The sending side of one connection."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._streaming = False

    async def gone(self, queue: asyncio.Queue[Any]) -> None:
        """Wait until the client goes away, then put None into the queue."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        queue.put_nowait(None)

    async def json(self, body: Any) -> None:
        """Send a whole answer."""
        await Response(orjson.dumps(body), media_type="application/json")(self._scope, self._receive, self._send)

    async def event(self, value: Any, name: str = "") -> None:
        """Send one event, after the headers if it is the first."""
        if not self._streaming:
            self._streaming = True
            await self._send({"type": "http.response.start", "status": 200, "headers": stream.HEADERS})
        await self._body(stream.event(value, name), more=True)

    async def end(self, mark: bytes = stream.DONE) -> None:
        """Send the end mark of a stream."""
        await self._body(mark, more=False)

    async def fail(self, error: Exception) -> None:
        """Send an error: as a response, or as the last event where the headers are out already."""
        if not self._streaming:
            await answer_to(error)(self._scope, self._receive, self._send)
            return
        message = error.message if isinstance(error, CatenaError) else UNEXPECTED
        await self._body(stream.event(error_body(message, "server_error")), more=False)

    async def _body(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
