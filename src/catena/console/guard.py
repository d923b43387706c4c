"""Who may come in, for every request and every websocket before NiceGUI sees it. Pure ASGI.

prefix off -> Host on loopback (serve/hosts.py) -> Origin of what changes or talks -> session -> headers -> page
                                                                    no session: the form of login_form.py
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from catena.console.login_form import form
from catena.console.view import Console
from catena.core.errors import EnvironmentProblem
from catena.govern.access import Denied
from catena.serve.hosts import OWN, host_name

VISIT = "catena.visit"
"""Key of the scope: the `Visit` that the guard let in."""
SAFE = ("GET", "HEAD", "OPTIONS")
MOST_FORM_BYTES = 10_000
HEADERS = {
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True)
class Visit:
    """Who was let in."""

    token: str
    """Empty for the local administrator."""


class Guard:
    """ASGI middleware around the whole console."""

    def __init__(self, app: ASGIApp, console: Console) -> None:
        self._app, self._console = app, console
        # Cookies know no ports: two consoles on one machine must not take each other's.
        place = hashlib.sha256(str(console.workspace.store.root.resolve()).encode()).hexdigest()[:8]
        self.cookie = f"catena_console_{place}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, show it the door, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        inside = self._below_prefix(scope)
        if inside is None:
            await self._refuse(404, "the console is below " + self._console.prefix)(scope, receive, send)
            return
        try:
            answer = await self._answer(inside, receive)
        except EnvironmentProblem as error:  # the keys cannot be read at the moment
            answer = self._refuse(503, f"{error.message}. {error.hint}".strip())
        if answer is not None:
            await (answer if scope["type"] == "http" else WebSocketClose(4403))(inside, receive, send)
            return
        await self._app(inside, receive, _with_headers(send))

    def _below_prefix(self, scope: Scope) -> Scope | None:
        prefix, path = self._console.prefix, scope["path"]
        headers = [(name, value) for name, value in scope["headers"] if name != b"x-forwarded-prefix"]
        if prefix:
            if path != prefix and not path.startswith(prefix + "/"):
                return None
            path = path[len(prefix) :] or "/"
            headers.append((b"x-forwarded-prefix", prefix.encode()))  # NiceGUI writes its links with it
        return {**scope, "path": path, "raw_path": path.encode(), "headers": headers}

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        """Return the answer to what does not go in, or None and a visit in the scope."""
        headers, path, method = Headers(scope=scope), scope["path"], scope.get("method", "GET")
        if path == "/health":
            return PlainTextResponse("ok")
        talks = scope["type"] == "websocket" or method not in SAFE
        if talks and not _same_origin(headers, must=scope["type"] == "websocket"):
            return self._refuse(403, "this request came from another page")
        if path == "/login" and scope["type"] == "http":
            return await self._login(Request(scope, receive))
        token = Request({**scope, "type": "http"}).cookies.get(self.cookie, "")
        sessions = self._console.sessions
        if sessions.local and host_name(headers.get("host", "")) in OWN:
            token = ""
        elif sessions.person(token) is None:
            return self._to_login(scope, headers)
        if path == "/logout" and method == "POST":
            sessions.close(token)
            return self._left()
        if not _own_client(scope, token):
            return self._refuse(403, "this page belongs to another session")
        scope[VISIT] = Visit(token)
        return None

    def _to_login(self, scope: Scope, headers: Headers) -> Response:
        if scope["type"] != "http" or "text/html" not in headers.get("accept", ""):
            return self._refuse(401, "sign in first")
        query = scope["query_string"].decode("latin-1")
        wanted = scope["path"] + (f"?{query}" if query else "")
        return RedirectResponse(f"{self._console.prefix}/login?next={quote(wanted, safe='')}", 303)

    async def _login(self, request: Request) -> Response:
        after = request.query_params.get("next", "/")
        if not after.startswith("/") or after.startswith(("//", "/\\")):
            after = "/"
        if request.method != "POST":
            return form(request, self._console.prefix, after)
        key = await _posted(request)
        address = request.client.host if request.client else ""
        try:
            token = await self._console.sessions.open(key, address)
        except Denied as error:
            return form(request, self._console.prefix, after, error)
        answer = RedirectResponse(self._console.prefix + after, 303)
        lifetime = int(self._console.sessions.lifetime_s)
        secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
        path = self._console.prefix or "/"
        answer.set_cookie(self.cookie, token, lifetime, path=path, secure=secure, httponly=True, samesite="strict")
        return answer

    def _left(self) -> Response:
        answer = RedirectResponse(f"{self._console.prefix}/login", 303)
        answer.delete_cookie(self.cookie, path=self._console.prefix or "/", httponly=True, samesite="strict")
        return answer

    def _refuse(self, status: int, message: str) -> Response:
        return PlainTextResponse(message + "\n", status)


async def _posted(request: Request) -> str:
    """Return the key of a posted form; what is longer than any form is cut."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_FORM_BYTES:
            return ""
    return parse_qs(body.decode("utf-8", "replace")).get("key", [""])[0].strip()


def _same_origin(headers: Headers, *, must: bool) -> bool:
    """Tell whether a request comes from our own page: its Origin names the host that it was sent to."""
    origin = headers.get("origin", "")
    if not origin:
        return not must and headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
    return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


def _own_client(scope: Scope, token: str) -> bool:
    """Tell whether the page that a socket speaks for was sent to the same session."""
    if not scope["path"].startswith("/_nicegui_ws/"):
        return True
    from nicegui import Client

    wanted = parse_qs(scope["query_string"].decode("latin-1")).get("client_id", [""])[0]
    client = Client.instances.get(wanted)
    visit = None if client is None else client.request.scope.get(VISIT)
    return visit is None or visit.token == token


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return sent
