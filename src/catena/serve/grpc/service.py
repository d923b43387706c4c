"""The calls of `catena.proto`: each is a request to this process's own application (serve/inner.py), as over HTTP.

A call whose deadline passes, or whose client goes away, is cancelled, and with it the request: the model stops.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote

import grpc
import orjson
from starlette.types import ASGIApp

from catena.serve.errors import UNEXPECTED
from catena.serve.grpc import catena_pb2 as pb, forms
from catena.serve.inner import Answered, Asked, ask, opened
from catena.serve.wire import WireError, error_body

logger = logging.getLogger(__name__)
R = TypeVar("R")
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
PASSED = {"authorization", "x-api-key", "api-key", "x-request-id", "traceparent", "cache-control"}
"""Metadata that means the same as the header of its name."""
CODES: Mapping[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.FAILED_PRECONDITION,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
Context = Any  # grpc.aio.ServicerContext; grpc has no types


class Service:
    """The calls."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    # Their names are the protocol's.
    async def Chat(self, request: pb.ChatRequest, context: Context) -> pb.ChatReply:
        """Answer a chat."""
        body = await _made(context, lambda: forms.chat_body(request, stream=False))
        return await self._whole(context, CHAT, body, forms.chat_reply)

    async def ChatStream(self, request: pb.ChatRequest, context: Context) -> AsyncIterator[pb.Piece]:
        """Answer a chat piece by piece."""
        body = await _made(context, lambda: forms.chat_body(request, stream=True))
        async for piece in self._streamed(context, CHAT, body):
            yield piece

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateReply:
        """Go on with a text."""
        body = await _made(context, lambda: forms.generate_body(request, stream=False))
        return await self._whole(context, COMPLETIONS, body, forms.generate_reply)

    async def GenerateStream(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.Piece]:
        """Go on with a text piece by piece."""
        body = await _made(context, lambda: forms.generate_body(request, stream=True))
        async for piece in self._streamed(context, COMPLETIONS, body):
            yield piece

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedReply:
        """Turn texts into vectors."""
        return await self._whole(context, EMBEDDINGS, forms.embed_body(request), forms.embed_reply)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsReply:
        """List the models that the caller may use."""
        return await self._whole(context, "/v1/models", b"", forms.models_reply)

    async def _whole(self, context: Context, path: str, body: bytes, form: Callable[[bytes], R]) -> R:
        told: R | None = None
        with _unexpected(path) as failed:
            answer = await ask(self._app, _asked(context, path, body))
            if answer.status < 300:
                told = form(answer.body)
            else:
                failed.append(answer)
        if told is None:
            await _refuse(context, failed[0])
        return told

    async def _streamed(self, context: Context, path: str, body: bytes) -> AsyncIterator[pb.Piece]:
        with _unexpected(path) as failed:
            async for piece in self._pieces(context, path, body):
                yield piece
        if failed:
            await _refuse(context, failed[0])

    async def _pieces(self, context: Context, path: str, body: bytes) -> AsyncIterator[pb.Piece]:
        async with opened(self._app, _asked(context, path, body)) as answer:
            if answer.status >= 300:
                whole = b"".join([piece async for piece in answer.pieces])
                await _refuse(context, Answered(answer.status, answer.headers, whole))
            async for event in _events(answer.pieces):
                if "error" in event:
                    await _refuse(context, Answered(502, {}, orjson.dumps(event)))
                for piece in forms.pieces(event):
                    yield piece


@contextlib.contextmanager
def _unexpected(path: str) -> Iterator[list[Answered]]:
    """Give a list that holds a refusal afterwards where something failed that nobody thought of: clients are told as
    little of it as over HTTP."""
    failed: list[Answered] = []
    try:
        yield failed
    except grpc.aio.AbortError:
        raise
    except Exception:
        logger.exception("a call of %s failed", path)
        failed.append(Answered(500, {}, orjson.dumps(error_body(UNEXPECTED, "server_error"))))


def _asked(context: Context, path: str, body: bytes) -> Asked:
    head = tuple(
        (name.encode(), value.encode("latin-1"))
        for name, value in context.invocation_metadata()
        if name in PASSED and isinstance(value, str)
    )
    return Asked(path, body, head, "POST" if body else "GET", client=_client(context.peer()))


def _client(peer: str) -> str:
    """Return the address of `ipv4:127.0.0.1:1234`, `ipv6:[::1]:1234` or `unix:...`."""
    kind, _, rest = unquote(peer).partition(":")
    return kind if kind == "unix" else rest.rpartition(":")[0].strip("[]")


async def _made(context: Context, make: Any) -> bytes:
    try:
        made: bytes = make()
    except WireError as error:
        await _abort(
            context, grpc.StatusCode.INVALID_ARGUMENT, error.message, [("catena-error-code", error.code or "")]
        )
    return made


async def _refuse(context: Context, answer: Answered) -> NoReturn:
    """End a call with the code and the words of a refusal."""
    try:
        error = orjson.loads(answer.body)["error"]
        message, code, param = str(error["message"]), error.get("code"), error.get("param")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message, code, param = f"the server answered {answer.status}", None, None
    told = {"catena-error-code": code, "catena-error-param": param}
    trailing = [(name, str(value)) for name, value in told.items() if value and str(value).isascii()]
    if again := answer.headers.get(b"retry-after"):
        trailing.append(("retry-after", again.decode("latin-1")))
    await _abort(context, CODES.get(answer.status, grpc.StatusCode.INTERNAL), message, trailing)


async def _abort(context: Context, code: grpc.StatusCode, message: str, trailing: list[tuple[str, str]]) -> NoReturn:
    await context.abort(code, message, tuple(trailing))
    raise AssertionError("abort raises")


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yield what each event of a stream says; the last one may be without an end."""
    held = b""
    async for piece in pieces:
        *whole, held = (held + piece).split(b"\n")
        for line in whole:
            if (data := _told(line)) is not None:
                yield orjson.loads(data)
    if (data := _told(held)) is not None:
        yield orjson.loads(data)


def _told(line: bytes) -> bytes | None:
    data = line[5:].strip() if line.startswith(b"data:") else b""
    return data if data and data != b"[DONE]" else None
