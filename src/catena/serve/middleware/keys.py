"""API keys over HTTP, for who may do `keys`: made, listed, revoked, rotated, each act in the audit, no secret in it.

GET  /admin/keys          all keys, without secrets
POST /admin/keys          a new one, shown once
GET  /admin/keys/{id}
POST /admin/keys/{id}     {"act": "revoke"} or {"act": "rotate", "grace_s": 3600}

Nobody gets a key out of it that may more than who asks: not more actions, and not other models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from catena.core.errors import CatenaError, UsageError
from catena.govern.access import Access, Denied
from catena.govern.audit.log import Log
from catena.govern.keys import KeyRecord, Keys
from catena.govern.roles import GRANTED, Principal, Role, checked_actions
from catena.serve.config import ServeConfig
from catena.serve.endpoint import Gone, decode, read_body, require_json
from catena.serve.errors import answer_to, refuse
from catena.serve.middleware.exchange import exchange_of
from catena.serve.rules import Rules
from catena.serve.wire import WireError

PATH = "/admin/keys"


class NewKey(BaseModel):
    """The body of `POST /admin/keys`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(min_length=1, max_length=200)
    """What it is for."""
    role: Role = "user"
    subject: str = Field(default="", max_length=200)
    """Whom it belongs to; by default the name."""
    models: list[str] = Field(default_factory=lambda: ["*"], min_length=1, max_length=100)
    actions: list[str] = Field(default_factory=list, max_length=100)
    """Only this of what the role may do."""
    expires_s: float | None = Field(default=365 * 86400.0, gt=0, le=100 * 366 * 86400.0)
    """Life in seconds; null: for ever."""


class KeyAct(BaseModel):
    """The body of `POST /admin/keys/{id}`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    act: Literal["revoke", "rotate"]
    grace_s: float = Field(default=0.0, ge=0, le=366 * 86400.0)
    """So long the old key goes on after `rotate`, in seconds."""


class KeyDesk:
    """ASGI middleware, behind audit and keys."""

    ROUTES: ClassVar[Mapping[str, tuple[str, ...]]] = {PATH: ("GET", "POST"), f"{PATH}/{{id}}": ("GET", "POST")}

    def __init__(self, app: ASGIApp, keys: Keys, access: Access, config: ServeConfig, log: Log | None = None) -> None:
        self._app, self._keys, self._access, self._config, self._log = app, keys, access, config, log
        self._rules = Rules()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is about keys, and pass on everything else."""
        path = scope.get("path", "")
        if scope["type"] != "http" or (path != PATH and not path.startswith(f"{PATH}/")):
            await self._app(scope, receive, send)
            return
        try:
            response = await self._answer(scope, receive)
        except Gone:
            return
        except Denied as error:
            response = refuse(error.http_status, error.message, code=error.code)
        except CatenaError as error:
            response = answer_to(error)
        response.headers["cache-control"] = "no-store"
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        method, ref = scope["method"], scope["path"].removeprefix(PATH).removeprefix("/")
        if self._rules.action(method, scope["path"]) is None:
            if "/" in ref:
                return refuse(404, f"there is no {scope['path']} here", code="unknown_url")
            return refuse(405, f"{method} is not allowed for {scope['path']}", code="method_not_allowed")
        asker = exchange_of(scope).principal
        assert asker is not None, "this stands behind the check of keys"
        if method != "POST":
            return await asyncio.to_thread(self._show, ref)
        require_json(scope)
        body = decode(await read_body(scope, receive, self._config.max_body_bytes))
        exchange_of(scope).secret = True
        if ref:
            return await asyncio.to_thread(self._act, asker, ref, _checked(KeyAct, body))
        return await asyncio.to_thread(self._create, asker, _checked(NewKey, body))

    def _show(self, ref: str) -> Response:
        at = datetime.now(UTC)
        if ref:
            return JSONResponse(self._keys.find(ref).shown(at))
        return JSONResponse({"object": "list", "data": [record.shown(at) for record in self._keys.all()]})

    def _create(self, asker: Principal, body: NewKey) -> Response:
        actions = checked_actions(body.actions, body.role)
        granted = GRANTED[body.role] if actions is None else frozenset(actions)
        _require_within(asker, granted, tuple(body.models))
        key, record = self._keys.create(
            body.name,
            body.role,
            subject=body.subject,
            models=tuple(body.models),
            actions=actions,
            lifetime=None if body.expires_s is None else timedelta(seconds=body.expires_s),
        )
        self._note(asker, "keys.create", record, role=record.role)
        return self._new(key, record, 201)

    def _act(self, asker: Principal, ref: str, body: KeyAct) -> Response:
        old = self._keys.find(ref)
        if body.act == "revoke":
            ended = self._keys.revoke(ref)
            for record in ended:
                self._note(asker, "keys.revoke", record)
            self._access.refresh()
            also = [record.id for record in ended[1:]]
            return JSONResponse({**ended[0].shown(datetime.now(UTC)), "also_revoked": also})
        _require_within(asker, old.principal().allowed, old.models)
        key, record = self._keys.rotate(ref, grace=timedelta(seconds=body.grace_s))
        self._note(asker, "keys.rotate", record, asked=old.id, grace_s=body.grace_s)
        return self._new(key, record, 200)

    def _new(self, key: str, record: KeyRecord, status: int) -> Response:
        self._access.refresh()
        return JSONResponse({**record.shown(datetime.now(UTC)), "key": key}, status)

    def _note(self, asker: Principal, act: str, record: KeyRecord, **fields: Any) -> None:
        if self._log is not None:
            tag = self._log.vault.tag(record.subject)
            self._log.act({"act": act, "by": asker.subject, "key": record.id, "tag": tag, **fields})


def _require_within(asker: Principal, actions: frozenset[Any], models: tuple[str, ...]) -> None:
    """Raise `Denied` 403 where a key would open more than the asker's own."""
    beyond = sorted(actions - asker.allowed)
    if beyond:
        raise Denied(f"this key may not give the action {beyond[0]!r}", code="forbidden", status=403)
    if "*" not in asker.models and not set(models) <= set(asker.models):
        raise Denied("this key may not give models that it may not use itself", code="forbidden", status=403)


def _checked(kind: Callable[..., Any], body: Any) -> Any:
    try:
        return kind.model_validate(body)  # type: ignore[attr-defined]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise WireError(f"{where or 'the body'}: {first['msg']}", param=where or None) from error
    except UsageError as error:
        raise WireError(error.message) from error
