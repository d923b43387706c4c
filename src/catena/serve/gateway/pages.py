"""`GET /openapi.json` and `GET /docs` of a gateway: the forms of its replicas' routes, and every other route it has.

What stands in front of the routes (keys, feedback) and answers by itself says so in `ROUTES`, by path and method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from catena.serve.middleware.auth import asks_for_keys
from catena.serve.openapi import document, page

TOLD: Mapping[str, str] = {
    "/v1/models": "All models.",
    "/v1/models/{name}": "One model.",
    "/health": "Whether the gateway works.",
    "/ready": "Whether every model has a replica that answers.",
    "/metrics": "Counts and gauges of the gateway and its replicas, as Prometheus text.",
}
SAID: Mapping[str, str] = {
    "/v1/feedback": "What users say of answers.",
    "/v1/feedback/{id}": "One of them.",
    "/v1/files": "Files for batches.",
    "/v1/files/{id}": "One file.",
    "/v1/files/{id}/content": "What is in it.",
    "/v1/batches": "Batches of requests.",
    "/v1/batches/{id}": "One batch.",
    "/v1/batches/{id}/cancel": "Stop a batch.",
    "/v1/responses/{id}": "A response that was asked for in the background.",
    "/v1/responses/{id}/cancel": "Stop it.",
    "/admin/audit": "A search in the audit.",
    "/admin/lineage/{ref}": "What something was made from, and what was made of it.",
    "/admin/keys": "API keys.",
    "/admin/keys/{id}": "One key: show, revoke, rotate.",
    "/admin/releases": "Releases that are under way, and the change log.",
    "/admin/releases/{model}": "One release: how it stands, promote, rollback, feedback.",
}


class Pages:
    """The two routes."""

    def __init__(self, names: Callable[[], Sequence[str]], middleware: Sequence[Middleware]) -> None:
        self._names = names
        self._secured = asks_for_keys(middleware)
        self.front: list[BaseRoute] = [
            Route(path, self._document, methods=list(methods))
            for one in middleware
            for path, methods in getattr(one.cls, "ROUTES", {}).items()
        ]
        """What middlewares answer: path and methods. No request comes to these functions."""
        self.routes: list[BaseRoute] = [Route("/openapi.json", self._document), Route("/docs", self._page)]
        self.others: Sequence[BaseRoute] = ()
        """All routes of the gateway."""

    def told(self) -> dict[str, Any]:
        """Return the document."""
        from catena.serve.app import ENDPOINTS

        pages = {"/openapi.json", "/docs", "/v1/models/{name:path}", *ENDPOINTS, *TOLD}
        others = [one for one in self.others if getattr(one, "path", "") not in pages]
        made = document(ENDPOINTS, TOLD, self._names(), [*others, *self.front], secured=self._secured)
        for path, operations in made["paths"].items():
            for operation in operations.values() if path in SAID else ():
                operation["summary"] = SAID[path]
        return made

    async def _document(self, request: Request) -> Response:
        return JSONResponse(self.told())

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(page(self.told()))
