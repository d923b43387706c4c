"""`/admin/releases`: what `catena release` talks to. Acts need the action `releases`, or a server on loopback.

Who lists them sees too what can be released: each model with what it is served from, and the named candidates. A key
for some models moves only theirs. A promotion or a rollback may say which release it means (`release`, its id): it is
refused where that is over by now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from catena.core.errors import CatenaError, UsageError
from catena.serve.endpoint import require_json
from catena.serve.errors import answer_to
from catena.serve.hosts import BOUND, is_loopback
from catena.serve.middleware.exchange import principal_of
from catena.serve.wire import WireError

if TYPE_CHECKING:
    from catena.serve.gateway.app import Gateway

MOST_BYTES = 1 << 16
SHOWN = 50
ACTS = ("promote", "rollback", "feedback")


class Admin:
    """The routes."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway, self._releases = gateway, gateway.releases
        self.routes: list[BaseRoute] = [
            Route("/admin/releases", self._all, methods=["GET", "POST"]),
            Route("/admin/releases/{model:path}", self._one, methods=["GET", "POST"]),
        ]

    async def _all(self, request: Request) -> Response:
        releases = self._releases
        try:
            by = _who(request)
            if request.method == "GET":
                return JSONResponse(self._told())
            body = await _body(request)
            model, candidate = body.get("model"), body.get("candidate")
            if not isinstance(model, str) or not isinstance(candidate, str):
                raise UsageError("model and candidate are required")
            release = body.get("release") or {}
            if not isinstance(release, dict):
                raise UsageError("release must be an object")
            _require_model(request, model)
            return JSONResponse(releases.start(model, candidate, release, by), 201)
        except CatenaError as error:
            return answer_to(error)

    def _told(self) -> dict[str, Any]:
        """Return how releases stand, what was done, and what can be released."""
        gateway, releases = self._gateway, self._releases
        return {
            "releases": [releases.status(one) for one in releases.active],
            "changes": releases.log.entries()[-SHOWN:],
            "models": {name: spec.model for name, spec in gateway.specs.items()},
            "candidates": list(gateway.config.candidates),
        }

    async def _one(self, request: Request) -> Response:
        releases, model = self._releases, request.path_params["model"]
        try:
            by = _who(request)
            if request.method == "POST":
                _require_model(request, model)
                body = await _body(request)
                act, reason = body.get("act"), str(body.get("reason") or "asked for")
                if act in ("promote", "rollback") and (release := body.get("release")):
                    releases.require(model, str(release))
                if act == "promote":
                    releases.promote(model, by, reason)
                elif act == "rollback":
                    releases.rollback(model, by, reason)
                elif act == "feedback":
                    releases.like(str(body.get("request")), body.get("good") is True)
                else:
                    raise UsageError(f"act must be one of {', '.join(ACTS)}")
                return JSONResponse({"model": model, "act": act})
            return JSONResponse(releases.status(model))
        except CatenaError as error:
            return answer_to(error)


class Forbidden(CatenaError):
    """Nobody checks who asks, and others than this machine can."""

    http_status = 403


def _who(request: Request) -> str:
    asker = principal_of(request.scope)
    if asker is not None:
        return asker.subject
    bound = request.scope.get(BOUND) or (request.scope.get("server") or ("",))[0]
    if not is_loopback(str(bound)):
        raise Forbidden("releases need a server with keys, or one on loopback")
    return "local"


def _require_model(request: Request, model: str) -> None:
    """Raise `WireError` (403) where the key is for other models: the same words whether there is this one or not."""
    asker = principal_of(request.scope)
    if asker is not None and not asker.may_use(model):
        raise WireError(f"this key may not release the model {model!r}", code="model_not_allowed", status=403)


async def _body(request: Request) -> dict[str, Any]:
    require_json(request.scope)
    data = await request.body()
    if len(data) > MOST_BYTES:
        raise UsageError(f"the body is longer than {MOST_BYTES} bytes")
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise UsageError("the body must be a JSON object")
    return body
