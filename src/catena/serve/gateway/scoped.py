"""Small things that every part of the gateway does with an ASGI scope: headers in, request ids."""

from __future__ import annotations

import re

from starlette.types import Scope

from catena.serve.middleware.exchange import exchange_of

SANE = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


def header(scope: Scope, name: bytes) -> bytes:
    """Return a header's value, or nothing."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return b""


def request_id(scope: Scope) -> str:
    """Return the caller's own id of a request where it is one that can be written anywhere, or that of the audit."""
    given = header(scope, b"x-request-id")
    return given.decode() if SANE.fullmatch(given) else f"req-{exchange_of(scope).id}"
