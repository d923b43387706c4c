"""Errors as hub clients read them: a status, `X-Error-Code`, `X-Error-Message`, and the sentence in JSON."""

from __future__ import annotations

import logging

from starlette.responses import JSONResponse, Response

from catena.core.errors import CatenaError, EnvironmentProblem
from catena.govern.access import Denied
from catena.hub.repo.repos import EntryNotFound, RepoNotFound, RevisionNotFound

logger = logging.getLogger(__name__)
CODES: tuple[tuple[type[CatenaError], str], ...] = (
    (RepoNotFound, "RepoNotFound"),
    (RevisionNotFound, "RevisionNotFound"),
    (EntryNotFound, "EntryNotFound"),
)
UNEXPECTED = "the hub had an error while answering"


class TooLarge(CatenaError):
    """A body or a file beyond the bounds."""

    http_status = 413


class NotOffered(CatenaError):
    """What this hub does not do."""

    http_status = 501


def answer_to(error: Exception) -> Response:
    """Return the response for an error: our own with their sentence, any other as 500 without one."""
    if not isinstance(error, CatenaError):
        logger.error("a request of the hub failed", exc_info=error)
        return refuse(500, UNEXPECTED)
    message = f"{error.message}. {error.hint}".rstrip() if error.hint else error.message
    code = next((code for kind, code in CODES if isinstance(error, kind)), "")
    status = error.http_status
    if isinstance(error, Denied) and status == 401:
        # Clients take a 401 for a repository that they may not know of, but for these very words.
        response = refuse(401, message, code=code)
        response.headers["www-authenticate"] = 'Bearer realm="catena"'
        return response
    response = refuse(status, message, code=code)
    if isinstance(error, EnvironmentProblem):
        response.headers["retry-after"] = "1"
    return response


def refuse(status: int, message: str, *, code: str = "") -> Response:
    """Return an error response."""
    text = " ".join(message.split())
    headers = {"x-error-message": text.encode("ascii", "replace").decode()[:2000]}
    if code:
        headers["x-error-code"] = code
    return JSONResponse({"error": message}, status, headers)
