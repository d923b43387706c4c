"""Every error that a client sees, in OpenAI's form. A stack trace never leaves the process."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from catena.core.errors import CatenaError
from catena.serve.wire import WireError, error_body

RETRY_AFTER_S = 1
UNEXPECTED = "the server had an error while answering"


def answer_to(error: Exception) -> Response:
    """Return the response for an error: Catena's own with their sentence, any other as 500 without one."""
    if not isinstance(error, CatenaError):
        return refuse(500, UNEXPECTED)
    message = f"{error.message}. {error.hint}".rstrip() if error.hint else error.message
    if isinstance(error, WireError):
        return refuse(error.http_status, message, param=error.param, code=error.code)
    return refuse(error.http_status, message)


def refuse(status: int, message: str, *, param: str | None = None, code: str | None = None) -> Response:
    """Return an error response with a status; 429 and 503 say when to come back, 408 ends the connection."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {"retry-after": str(RETRY_AFTER_S)} if status in (429, 503) else {}
    headers |= {"connection": "close"} if status == 408 else {}
    return JSONResponse(error_body(message, kind, param=param, code=code), status, headers)


async def http_exception(request: Request, error: Exception) -> Response:
    """Answer what the router raises: no such route, or another method than it has."""
    status = getattr(error, "status_code", 500)
    if status == 404:
        return refuse(404, f"there is no {request.url.path} here", code="unknown_url")
    if status == 405:
        return refuse(405, f"{request.method} is not allowed for {request.url.path}", code="method_not_allowed")
    return refuse(status, UNEXPECTED if status >= 500 else str(getattr(error, "detail", "refused")))


async def unexpected(request: Request, error: Exception) -> Response:
    """Answer anything else that got this far."""
    return answer_to(error)
