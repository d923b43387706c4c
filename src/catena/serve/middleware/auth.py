"""Who may pass: credential to principal, rule of the route, models of the key. Everything else is 401 or 403."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from catena.core.errors import CatenaError
from catena.govern.access import NO_CREDENTIAL, Access, Denied
from catena.govern.roles import Action, Principal
from catena.serve.config import ServeConfig
from catena.serve.endpoint import Gone
from catena.serve.errors import answer_to, refuse
from catena.serve.middleware.exchange import BEHALF, Behalf, Exchange, exchange_of, read_json
from catena.serve.rules import Rules

MODEL_PAGE = "/v1/models/"
TELLS_MORE = frozenset({"/ready"})
"""Public pages that tell more to who shows a key for it; without one, or with a wrong one, they answer too."""


class Auth:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, access: Access, config: ServeConfig, rules: Rules | None = None) -> None:
        self._app, self._access, self._config = app, access, config
        self._rules = rules or Rules()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its principal, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        exchange.action = action = self._rules.action(scope["method"], scope["path"])
        if action == "public":
            if scope["path"] in TELLS_MORE:
                with contextlib.suppress(CatenaError):
                    exchange.principal = await self._access.identify(credential(scope))
            await self._app(scope, receive, send)
            return
        try:
            principal = exchange.principal = await self._identify(scope)
            self._require_action(principal, action, scope)
            if principal.models != ("*",):
                receive = await read_json(scope, receive, self._config)
                _require_model(principal, exchange, scope)
        except Gone:
            return
        except CatenaError as error:
            exchange.decisions.append({"by": "auth", "decision": "refused", "reason": error.message})
            await _refusal(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _identify(self, scope: Scope) -> Principal:
        behalf: Behalf | None = scope.get(BEHALF)
        if behalf is None:
            return await self._access.identify(credential(scope))
        if behalf.principal is None:
            raise Denied("this was asked for while nobody needed a key", code="missing_api_key")
        exchange_of(scope).principal = behalf.principal  # who asked is known, also where it is refused now
        return self._access.again(behalf.principal)

    def _require_action(self, principal: Principal, action: Action | None, scope: Scope) -> None:
        # What is no route goes on to be told so: only those who may ask at all learn which routes there are.
        if action is not None and not principal.may(action):
            message = f"the role {principal.role!r} of this key may not do this: it needs the action {action!r}"
            raise Denied(message, code="forbidden", status=403)


def credential(scope: Scope) -> str:
    """Return what a request shows: a bearer token, or `x-api-key` or `api-key`; several are none."""
    found = []
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, token = value.strip().partition(b" ")
            found.append(token.strip() if kind.lower() == b"bearer" else b"")
        elif name in (b"x-api-key", b"api-key"):
            found.append(value.strip())
    if len(found) > 1:
        raise Denied("more than one credential was sent", code="invalid_api_key")
    return found[0].decode("latin-1") if found else ""


def _require_model(principal: Principal, exchange: Exchange, scope: Scope) -> None:
    if scope["path"].startswith(MODEL_PAGE):
        wanted = scope["path"].removeprefix(MODEL_PAGE)
    elif exchange.action == "infer":
        wanted = exchange.model
        if exchange.body is not None and exchange.parsed is None:
            return  # no JSON: the endpoint says so in its own words
    else:
        return
    if not principal.may_use(wanted):
        # The same words whether the model exists or not.
        raise Denied(f"this key may not use the model {wanted!r}", code="model_not_allowed", status=403)


def _refusal(error: CatenaError) -> Response:
    if not isinstance(error, Denied):
        return answer_to(error)
    response = refuse(error.http_status, error.message, code=error.code)
    if error.http_status == 401:
        realm = b'Bearer realm="catena"' + (b"" if error.message == NO_CREDENTIAL else b', error="invalid_token"')
        response.raw_headers.append((b"www-authenticate", realm))
    return response


def asks_for_keys(middleware: Iterable[Middleware]) -> bool:
    """Tell whether `Auth` is among what stands before the routes."""
    kinds: list[Any] = [one.cls for one in middleware]
    return Auth in kinds
