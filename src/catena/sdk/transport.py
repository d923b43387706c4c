"""How a call is sent: headers, what is tried again and when, and errors. What waits differs; the rest is here once."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from catena.core.errors import RemoteError, UsageError
from catena.sdk.calls import Call
from catena.sdk.errors import ApiError, Unreachable

T = TypeVar("T")
DONE = "[DONE]"
AGAIN = (429, 502, 503, 504)
FIRST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_ASKED_S = 0.25, 8.0, 60.0


def base_of(url: str) -> str:
    """Return where a server's routes begin; raises `UsageError` for what is no URL."""
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is no URL", hint="For example: http://127.0.0.1:8000")
    return url.rstrip("/").removesuffix("/v1")


def headers_of(key: str) -> dict[str, str]:
    """Return what every request says."""
    return {"accept": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}


def sent(call: Call[Any]) -> dict[str, Any]:
    """Return the arguments of a request."""
    arguments: dict[str, Any] = {"params": dict(call.query) or None}
    if call.files is not None:
        arguments["files"] = call.files
    elif call.body is not None:
        arguments["json"] = call.body
    return arguments


def may_repeat(call: Call[Any], *, arrived: bool) -> bool:
    """Tell whether a request without an answer may be sent again: it did not arrive, or it changes nothing."""
    return not arrived or call.method == "GET"


def pause(attempt: int, headers: Mapping[str, str] | None = None) -> float:
    """Return how long to wait before the next attempt: as the server says, or twice as long each time, with chance."""
    told = (headers or {}).get("retry-after", "")
    usual = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**attempt) * random.uniform(0.5, 1.0)
    return min(LONGEST_ASKED_S, max(usual, float(told))) if told.isdigit() else usual


def again(status: int, call: Call[Any], headers: Mapping[str, str], left: int) -> bool:
    """Tell whether an answer says to come back."""
    if not left or status in call.good or status not in AGAIN:
        return False
    return status in (429, 503) or call.method == "GET"


def read(call: Call[T], status: int, headers: Mapping[str, str], data: bytes) -> T:
    """Return what an answer says; raises `ApiError`."""
    if status >= 300 and status not in call.good:
        raise _refusal(status, headers, data)
    try:
        return call.read(data if call.raw else json.loads(data))
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise RemoteError(f"{call.path} did not answer as Catena does: {error}") from error


def _refusal(status: int, headers: Mapping[str, str], data: bytes) -> ApiError:
    request_id = headers.get("x-request-id", "")
    try:
        error = json.loads(data)["error"]
        message, code, param = str(error["message"]), str(error.get("code") or ""), str(error.get("param") or "")
    except (ValueError, KeyError, TypeError):
        message, code, param = f"the server answered {status}", "", ""
    return ApiError(message, status=status, code=code, param=param, request_id=request_id)


def piece_of(call: Call[T], line: str) -> T | None:
    """Return what a line of a stream of events says, None for one that says nothing; raises the error that it tells."""
    if not line.startswith("data:") or (data := line[5:].strip()) == DONE:
        return None
    try:
        event = json.loads(data)
        if isinstance(event, dict) and (error := event.get("error")):
            raise ApiError(str(error["message"]), status=502, code=str(error.get("code") or ""))
        return call.read(event)
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise RemoteError(f"{call.path} did not answer as Catena does: {error}") from error


def lines_in(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a stream. Only a line feed ends one: httpx also splits where a text within JSON has U+2028."""
    held = b""
    for piece in pieces:
        *whole, held = (held + piece).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")
    yield held.decode("utf-8", "replace")


async def lines_coming(pieces: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """The same, of a stream that is waited for."""
    held = b""
    async for piece in pieces:
        *whole, held = (held + piece).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")
    yield held.decode("utf-8", "replace")


def cut(error: Exception | None = None) -> RemoteError:
    """Return the error for a stream that ended before its end."""
    told = f": {error}" if error is not None and str(error) else ""
    return RemoteError(f"the answer was cut off{told}", hint="What came until then stands; ask again for the rest.")


def unreachable(url: str, error: Exception) -> Unreachable:
    """Return the error for a server that does not answer."""
    told = str(error) or type(error).__name__
    return Unreachable(f"no server answers at {url}: {told}", hint="Is it running? `catena up deploy.yaml`.")
