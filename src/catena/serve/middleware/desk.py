"""What the workspace knows, over HTTP, for who may see it.

GET /admin/audit            entries by subject, text, kind, model, id, since, until, limit (action `audit`)
GET /admin/lineage/{ref}    what a model or dataset was made from, and what was made of it (action `data`)

That somebody searched the audit is written into it, as with `catena audit search`; what was found is not: the words of
one person must not come to lie under the key of another, where no erasure finds them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from catena.core.errors import CatenaError
from catena.govern.audit.log import Log
from catena.govern.audit.reading import Query, entries
from catena.govern.config import AuditConfig
from catena.hub.lineage import as_json, trace
from catena.hub.store import Store
from catena.serve.errors import answer_to, refuse
from catena.serve.middleware.exchange import exchange_of
from catena.serve.rules import Rules
from catena.serve.wire import WireError

AUDIT, LINEAGE = "/admin/audit", "/admin/lineage/"
WORDS = ("subject", "text", "kind", "model", "id")
TIMES = ("since", "until")
USUAL, MOST = 100, 1000


class WorkspaceDesk:
    """ASGI middleware, behind audit and keys."""

    ROUTES: ClassVar[Mapping[str, tuple[str, ...]]] = {AUDIT: ("GET",), f"{LINEAGE}{{ref:path}}": ("GET",)}

    def __init__(self, app: ASGIApp, store: Store, log: Log | None, config: AuditConfig) -> None:
        self._app, self._store, self._log, self._config = app, store, log, config
        self._rules = Rules()
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is about the workspace, and pass on everything else."""
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path.startswith(LINEAGE) or (path == AUDIT and self._log is not None)):
            await self._app(scope, receive, send)
            return
        try:
            response = await self._answer(scope)
        except CatenaError as error:
            response = answer_to(error)
        response.headers["cache-control"] = "no-store"
        await response(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response:
        method, path = scope["method"], scope["path"]
        if self._rules.action(method, path) is None:
            return refuse(405, f"{method} is not allowed for {path}", code="method_not_allowed")
        asked = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True))
        if path != AUDIT:
            _known_only(asked, ())
            ref = unquote(path.removeprefix(LINEAGE))
            return JSONResponse(await asyncio.to_thread(lambda: as_json(trace(self._store, self._store.resolve(ref)))))
        _known_only(asked, (*WORDS, *TIMES, "limit"))
        query, limit = _query(asked), _limit(asked.get("limit", str(USUAL)))
        exchange_of(scope).secret = True
        by = exchange_of(scope).subject
        async with self._turn:  # a search may read all of it
            found = await asyncio.to_thread(self._search, query, limit, by)
        return JSONResponse({"object": "list", "data": found})

    def _search(self, query: Query, limit: int, by: str) -> list[dict[str, Any]]:
        assert self._log is not None
        found = list(islice(entries(self._store.root, self._config, query), limit))
        told = {key: str(value) for key, value in asdict(query).items() if value and key != "subject"}
        tag = {"tag": self._log.vault.tag(query.subject)} if query.subject else {}
        self._log.act({"act": "audit.search", "by": by, **tag, "query": told, "found": len(found)})
        return found


def _known_only(asked: Mapping[str, str], known: tuple[str, ...]) -> None:
    if unknown := sorted(set(asked) - set(known)):
        raise WireError(f"unknown parameter: {unknown[0]}", param=unknown[0], code="unknown_parameter")


def _query(asked: Mapping[str, str]) -> Query:
    found: dict[str, Any] = {name: asked.get(name, "") for name in WORDS}
    return Query(**found | {name: _time(name, asked[name]) for name in TIMES if asked.get(name)})


def _time(name: str, text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise WireError(f"{name} must be a time like 2026-01-31T12:00:00Z", param=name, code="invalid_value") from error
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MOST:
        raise WireError(f"limit must be a number from 1 to {MOST}", param="limit", code="invalid_value")
    return int(text)
