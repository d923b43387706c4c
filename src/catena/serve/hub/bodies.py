"""Bodies of requests: JSON and forms within a bound, and streams that are as long as they like but not slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import parse_qs

import orjson
from starlette.types import Receive, Scope

from catena.core.errors import CatenaError, UsageError
from catena.serve.endpoint import Gone
from catena.serve.hub.answers import TooLarge

SMALL = 8 << 20
BATCH = 1 << 20
"""Bytes that are gathered before a thread is asked to write them."""


class TooSlow(CatenaError):
    """A client that sends nothing for too long."""

    http_status = 408


async def pieces(scope: Scope, receive: Receive, limit: int, idle_s: float) -> AsyncIterator[bytes]:
    """Yield a body in pieces of about `BATCH`. Raises `TooLarge`, `TooSlow`, and `Gone` where it breaks off."""
    too_large = TooLarge(f"the body is longer than {limit} bytes", hint="See the settings hub.max_*.")
    if declared_length(scope) > limit:
        raise too_large
    gathered, size, more = bytearray(), 0, True
    while more:
        try:
            async with asyncio.timeout(idle_s):
                message = await receive()
        except TimeoutError as error:
            raise TooSlow(f"nothing arrived for {idle_s:g} s") from error
        if message["type"] == "http.disconnect":
            raise Gone
        gathered += message.get("body", b"")
        more = message.get("more_body", False)
        if len(gathered) >= BATCH or not more:
            size += len(gathered)
            if size > limit:
                raise too_large
            yield bytes(gathered)
            gathered.clear()


async def poured(body: AsyncIterator[bytes], write: Callable[[bytes], object]) -> None:
    """Hand each piece of a body to `write`, in a thread, while the next one is on its way. Order is kept.

    However it ends, no thread is writing any more afterwards.
    """
    writing: asyncio.Task[object] | None = None
    try:
        async for piece in body:
            if writing is not None:
                await writing
            writing = asyncio.create_task(asyncio.to_thread(write, piece))
        if writing is not None:
            await writing
    finally:
        if writing is not None:
            await asyncio.wait([writing])
            writing.exception()  # it was raised above, or something else is being raised


def declared_length(scope: Scope) -> int:
    """Return the length that the head declares; 0 for none."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


async def whole(scope: Scope, receive: Receive, idle_s: float) -> bytes:
    """Return a small body."""
    return b"".join([piece async for piece in pieces(scope, receive, SMALL, idle_s)])


async def fields(scope: Scope, receive: Receive, idle_s: float) -> dict[str, Any]:
    """Return a small JSON object, or a form (each field a list); raises `UsageError` for anything else."""
    body = await whole(scope, receive, idle_s)
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    if kind.startswith(b"application/x-www-form-urlencoded"):
        return dict(parse_qs(body.decode("utf-8", "replace")))
    if not body:
        return {}
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError("the body is no JSON object")
    return found
