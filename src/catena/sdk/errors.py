"""What a call can end with, beside its answer."""

from __future__ import annotations

from catena.core.errors import CatenaError, NotFound, RemoteError, UsageError


class Unreachable(RemoteError):
    """No server answers, or not in time."""


class ApiError(CatenaError):
    """A server refused."""

    def __init__(self, message: str, *, status: int, code: str = "", param: str = "", request_id: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.request_id = status, code, param, request_id
        self.http_status = status
        kind: type[CatenaError] = NotFound if status == 404 else RemoteError if status >= 500 else UsageError
        self.exit_code = kind.exit_code
        self.usual_hint = "The server has said why; `catena COMMAND --help` shows what a command takes."
