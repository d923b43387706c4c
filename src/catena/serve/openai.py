"""`POST /v1/chat/completions`, as a raw ASGI application: body in, tokens out, and an eye on the connection.

read body -> check -> submit n requests to the generator -> deltas (from its thread) -> one answer, or events
                                                        \\-> client gone: cancel what is still running
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import Field
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from catena.core.config import Config
from catena.core.errors import CatenaError, did_you_mean
from catena.core.generate import Completion, Delta, Request, SamplingParams, StreamingGenerator
from catena.serve import stream
from catena.serve.errors import UNEXPECTED, answer_to
from catena.serve.wire import Answer, ChatRequest, WireError, error_body, parse_chat

logger = logging.getLogger(__name__)


class ServeConfig(Config):
    """Bounds and defaults of the HTTP side."""

    max_body_bytes: int = Field(default=1 << 20, ge=1)
    """Largest body of a request."""
    max_choices: int = Field(default=8, ge=1)
    """Most answers to one request (`n`)."""
    max_tokens: int = Field(default=512, ge=1)
    """Length of an answer where the request does not say it; never more than the model's context."""
    temperature: float = Field(default=1.0, ge=0)
    """Where the request does not say it; 1 is what the OpenAI schema says."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """Longest time for a request's body to arrive, in seconds."""
    hosts: tuple[str, ...] = ()
    """Further names (without port) that a server on loopback answers to, for example that of a proxy before it."""


@dataclass(slots=True)
class Counters:
    """What happened since the start, for `/metrics`."""

    answered: dict[tuple[str, int], int] = field(default_factory=dict)
    """(model, status) to number of chat requests; 499 where the client went away."""
    in_flight: int = 0

    def count(self, model: str, status: int) -> None:
        """Count one request."""
        self.answered[model, status] = self.answered.get((model, status), 0) + 1


class _Gone(Exception):
    """The client closed the connection."""


class Chat:
    """The chat endpoint over a set of generators."""

    def __init__(
        self, models: Mapping[str, StreamingGenerator], fingerprints: Mapping[str, str], config: ServeConfig
    ) -> None:
        self._models = models
        self._fingerprints = fingerprints
        self._config = config
        self.counters = Counters()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        reply = _Reply(scope, receive, send)
        model, status = "", 499
        self.counters.in_flight += 1
        try:
            request = parse_chat(decode(await self._body(scope, receive)))
            generator = self._generator(request.model)
            model = request.model
            await self._answer(request, generator, reply)
            status = 200
        except _Gone:
            pass
        except CatenaError as error:
            status = error.http_status
            await reply.fail(error)
        except Exception as error:
            logger.exception("a chat request failed")
            status = 500
            await reply.fail(error)
        finally:
            self.counters.in_flight -= 1
            self.counters.count(model, status)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body; raises `WireError` (415 if not JSON, 408 if it does not arrive, 413 if it is too long)."""
        require_json(scope)
        seconds = self._config.body_timeout_s
        try:
            async with asyncio.timeout(seconds):
                return await read_body(scope, receive, self._config.max_body_bytes)
        except TimeoutError as error:
            message = f"the body did not arrive within {seconds:g} s"
            raise WireError(message, code="request_timeout", status=408) from error

    def _generator(self, name: str) -> StreamingGenerator:
        if name not in self._models:
            hint = did_you_mean(name, self._models)
            raise WireError(
                f"the model {name!r} does not exist. {hint}", param="model", code="model_not_found", status=404
            )
        return self._models[name]

    async def _answer(self, request: ChatRequest, generator: StreamingGenerator, reply: _Reply) -> None:
        answer = Answer(
            f"chatcmpl-{secrets.token_hex(12)}",
            int(time.time()),
            request.model,
            self._fingerprints.get(request.model, "")[:12],
        )
        requests = self._requests(request, generator, answer.id)
        async with submitted(requests, generator, reply) as deltas:
            if request.stream:
                await _stream(answer, deltas, reply, len(requests), request)
            else:
                await reply.json(answer.whole(await _collect(deltas, len(requests))))

    def _requests(self, request: ChatRequest, generator: StreamingGenerator, id: str) -> list[Request]:
        if request.n > self._config.max_choices:
            raise WireError(f"n must be at most {self._config.max_choices}", param="n", code="invalid_value")
        context = int(generator.stats().get("context_tokens", self._config.max_tokens))
        messages = [message.message() for message in request.messages]

        def params(index: int) -> SamplingParams:
            return SamplingParams(
                max_tokens=request.max_completion_tokens or request.max_tokens or min(self._config.max_tokens, context),
                temperature=self._config.temperature if request.temperature is None else request.temperature,
                top_k=request.top_k or 0,
                top_p=1.0 if request.top_p is None else request.top_p,
                min_p=request.min_p or 0.0,
                presence_penalty=request.presence_penalty or 0.0,
                frequency_penalty=request.frequency_penalty or 0.0,
                repetition_penalty=request.repetition_penalty or 1.0,
                logit_bias=request.logit_bias,
                # Choices with one seed would all be the same answer.
                seed=None if request.seed is None else request.seed + index,
                stop=tuple(request.stop),
            )

        return [Request(f"{id}-{index}", messages, params(index)) for index in range(request.n)]


@asynccontextmanager
async def submitted(
    requests: list[Request], generator: StreamingGenerator, reply: _Reply
) -> AsyncIterator[AsyncIterator[tuple[int, Delta]]]:
    """Hand requests to the generator and give their deltas; whatever happens inside, none is left running."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[int, Delta] | None] = asyncio.Queue()
    watcher = asyncio.create_task(reply.gone(queue))
    taken: list[str] = []

    async def deltas() -> AsyncIterator[tuple[int, Delta]]:
        while (item := await queue.get()) is not None:
            yield item
        raise _Gone

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


async def _collect(deltas: AsyncIterator[tuple[int, Delta]], count: int) -> list[Completion]:
    """Wait until every choice is complete."""
    done: dict[int, Completion] = {}
    async for index, delta in deltas:
        if delta.completion is not None:
            done[index] = _good(delta.completion)
            if len(done) == count:
                break
    return [done[index] for index in range(count)]


async def _stream(
    answer: Answer, deltas: AsyncIterator[tuple[int, Delta]], reply: _Reply, count: int, request: ChatRequest
) -> None:
    """Send events as deltas come."""
    with_usage = request.stream_options is not None and request.stream_options.include_usage
    extra = {"usage": None} if with_usage else {}
    for index in range(count):
        await reply.event({**answer.chunk(index, {"role": "assistant", "content": ""}), **extra})
    done: dict[int, Completion] = {}
    async for index, delta in deltas:
        if delta.text:
            await reply.event({**answer.chunk(index, {"content": delta.text}), **extra})
        if delta.completion is not None:
            done[index] = _good(delta.completion)
            await reply.event({**answer.chunk(index, {}, delta.completion.finish_reason), **extra})
            if len(done) == count:
                break
    if with_usage:
        await reply.event(answer.usage_chunk([done[index] for index in range(count)]))
    await reply.end()


def _good(completion: Completion) -> Completion:
    """Pass on an answer that came to its own end; the others are the server's fault."""
    if completion.finish_reason in ("error", "cancelled", "deadline"):
        raise CatenaError("the engine stopped before the answer was complete")
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
            raise _Gone
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > limit:
            raise too_long
        if not message.get("more_body", False):
            return b"".join(pieces)


def decode(body: bytes) -> Any:
    """Decode JSON; raises `WireError` for invalid UTF-8 or JSON."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        what = "UTF-8" if "utf-8" in str(error).lower() else "JSON"
        raise WireError(f"the body is not valid {what}: {error}", code="invalid_json") from error


class _Reply:
    """The sending side of one connection."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._streaming = False

    async def gone(self, queue: asyncio.Queue[tuple[int, Delta] | None]) -> None:
        """Wait until the client goes away, then put None into the queue."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        queue.put_nowait(None)

    async def json(self, body: Any) -> None:
        """Send a whole answer."""
        await JSONResponse(body)(self._scope, self._receive, self._send)

    async def event(self, value: Any) -> None:
        """Send one event, after the headers if it is the first."""
        if not self._streaming:
            self._streaming = True
            await self._send({"type": "http.response.start", "status": 200, "headers": stream.HEADERS})
        await self._body(stream.event(value), more=True)

    async def end(self) -> None:
        """Send the end mark of a stream."""
        await self._body(stream.DONE, more=False)

    async def fail(self, error: Exception) -> None:
        """Send an error: as a response, or as the last event where the headers are out already."""
        if not self._streaming:
            await answer_to(error)(self._scope, self._receive, self._send)
            return
        message = error.message if isinstance(error, CatenaError) else UNEXPECTED
        await self._body(stream.event(error_body(message, "server_error")), more=False)

    async def _body(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
