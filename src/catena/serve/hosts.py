"""Which names a server on loopback answers to: a web page must not reach it by a name of its own.

A page from anywhere can let its name point to 127.0.0.1 (DNS rebinding); its requests then come to us, as if they were
of our own origin, and only their Host header tells them apart.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from catena.serve.errors import refuse

OWN = ("localhost", "127.0.0.1", "[::1]")
BOUND = "catena.bound"
"""Key of the scope: the address that the server listens on, where it says so (`serve/server.py` does)."""
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]@/\s]+)(?::\d*)?")


class LoopbackHosts:
    """ASGI middleware: on loopback, 421 for requests whose Host is not this machine and not one of `names`."""

    def __init__(self, app: ASGIApp, names: Iterable[str] = ()) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in (*OWN, *names))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        bound = scope.get(BOUND) or (scope.get("server") or ("",))[0]
        if scope["type"] != "http" or not is_loopback(bound) or self._admits(scope, bound):
            await self._app(scope, receive, send)
            return
        message = "this server is on loopback and answers to localhost, not to that Host. Name others in its `hosts`"
        await refuse(421, message, code="unknown_host")(scope, receive, send)

    def _admits(self, scope: Scope, bound: str) -> bool:
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(given) != 1:
            return False
        name = host_name(given[0])
        return name in self._names or name in (bound, f"[{bound}]")


def is_loopback(address: str) -> bool:
    """Tell whether an address is this machine's own; names and paths of sockets are none."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def host_name(header: str) -> str:
    """Return the name in a Host header in small letters, without its port; nothing where it is malformed."""
    match = HOST.fullmatch(header.strip().lower())
    return match[1] if match else ""
