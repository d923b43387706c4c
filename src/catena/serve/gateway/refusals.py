"""Errors of the gateway, each with what a client may do about it."""

from __future__ import annotations

import math

from starlette.responses import JSONResponse, Response

from catena.core.errors import CatenaError
from catena.serve.errors import answer_to
from catena.serve.gateway.line import Overloaded
from catena.serve.wire import WireError, error_body


class Poisonous(WireError):
    """A request that ended two replicas."""

    def __init__(self) -> None:
        super().__init__(
            "this request ended two replicas and is not given to another", code="request_ends_replicas", status=422
        )


class RateLimited(CatenaError):
    """A limit has no room for the request."""

    http_status = 429

    def __init__(self, what: str, limit: str, retry_after: float) -> None:
        super().__init__(f"the limit of {limit} ({what}) is reached", hint="Try again later.")
        self.what, self.retry_after = what, retry_after


def said(error: Exception) -> Response:
    """Return the response for an error; 429 and 503 say when to come back."""
    if isinstance(error, RateLimited):
        message = f"{error.message}. {error.hint}"
        body = error_body(message, error.what, code="rate_limit_exceeded")
        return JSONResponse(body, 429, {"retry-after": _seconds(error.retry_after)})
    response = answer_to(error)
    if isinstance(error, Overloaded):
        response.headers["retry-after"] = _seconds(error.retry_after)
    return response


def _seconds(value: float) -> str:
    return str(max(1, math.ceil(value)))
