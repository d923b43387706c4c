"""The gateway: generators behind the OpenAI HTTP form. Every route on one page.

POST /v1/chat/completions     serve/chat.py            POST /v1/classify     serve/embeddings.py
POST /v1/completions          serve/completions.py     POST /v1/decisions    serve/decisions.py
POST /v1/responses            serve/responses.py       POST /tokenize, /detokenize    serve/tokens.py
POST /v1/embeddings           serve/embeddings.py      POST /v1/(un)load_lora_adapter    serve/adapters.py
GET  /v1/models, /v1/models/{id}
GET  /health                  200 while every engine lives, 503 otherwise
GET  /metrics                 serve/metrics.py
GET  /openapi.json, /docs     serve/openapi.py

In front of all of them: serve/hosts.py, what serve/governed.py switches on, and at the socket serve/connections.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from catena.core.generate import StreamingGenerator
from catena.serve import metrics
from catena.serve.adapters import ADAPTER_ENDPOINTS, AdapterFolder
from catena.serve.chat import Chat
from catena.serve.completions import Completions
from catena.serve.config import ServeConfig
from catena.serve.decisions import Decisions
from catena.serve.embeddings import Classify, Embeddings
from catena.serve.endpoint import Counters, Endpoint
from catena.serve.errors import answer_to, http_exception, unexpected
from catena.serve.hosts import LoopbackHosts
from catena.serve.middleware.auth import asks_for_keys
from catena.serve.middleware.exchange import exchange_of, principal_of
from catena.serve.models import Models
from catena.serve.openapi import document, page
from catena.serve.responses import Responses
from catena.serve.rules import require_rules
from catena.serve.tokens import Detokenize, Tokenize
from catena.serve.wire import WireError

ENDPOINTS: Mapping[str, type[Endpoint[Any]]] = {
    "/v1/chat/completions": Chat,
    "/v1/completions": Completions,
    "/v1/responses": Responses,
    "/v1/embeddings": Embeddings,
    "/v1/classify": Classify,
    "/v1/decisions": Decisions,
    "/tokenize": Tokenize,
    "/detokenize": Detokenize,
}
PAGES: Mapping[str, str] = {
    "/v1/models": "All models.",
    "/v1/models/{name}": "One model.",
    "/health": "Whether every engine lives.",
    "/metrics": "Counts and gauges, as Prometheus text.",
}


def _endpoints(parts: tuple[Models, ServeConfig, Counters], adapters: AdapterFolder | None) -> dict[str, Endpoint[Any]]:
    made: dict[str, Endpoint[Any]] = {path: kind(*parts) for path, kind in ENDPOINTS.items()}
    if adapters is not None:
        made |= {path: kind(*parts, adapters) for path, kind in ADAPTER_ENDPOINTS.items()}
    return made


def build_app(
    models: Mapping[str, StreamingGenerator],
    *,
    fingerprints: Mapping[str, str] | None = None,
    config: ServeConfig | None = None,
    middleware: Sequence[Middleware] = (),
    adapters: AdapterFolder | None = None,
) -> Starlette:
    """Return the ASGI application over `models` (name to generator), which the caller opens and closes.

    `fingerprints` maps a name to its model's digest; the first 12 digits go into every answer. `middleware` stands
    before the routes, outermost first (see `serve/governed.py`). `adapters` finds those that come over HTTP.
    """
    settings = config or ServeConfig()
    served, counters = Models(models, fingerprints or {}), Counters()
    endpoints = _endpoints((served, settings, counters), adapters)
    kinds = {path: type(endpoint) for path, endpoint in endpoints.items()}
    created, secured = int(time.time()), asks_for_keys(middleware)

    async def list_models(request: Request) -> Response:
        asker = principal_of(request.scope)
        names = [name for name in served.names() if asker is None or asker.may_use(name)]
        return JSONResponse({"object": "list", "data": [served.body(name, created) for name in names]})

    async def show_model(request: Request) -> Response:
        try:
            return JSONResponse(served.body(request.path_params["name"], created))
        except WireError as error:
            return answer_to(error)

    async def health(request: Request) -> Response:
        alive = {name: bool(generator.stats().get("alive", 1)) for name, generator in models.items()}
        good = all(alive.values())
        status = "ok" if good else "failed"
        return JSONResponse({"status": status, "models": alive}, 200 if good else 503)

    async def show_metrics(request: Request) -> Response:
        return metrics.answer(metrics.render(models, counters) + exchange_of(request.scope).metrics)

    async def show_document(request: Request) -> Response:
        return JSONResponse(document(kinds, PAGES, served.names(), secured=secured))

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page(document(kinds, PAGES, served.names())))

    routes = [
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()),
        Route("/v1/models", list_models),
        Route("/v1/models/{name:path}", show_model),
        Route("/health", health),
        Route("/metrics", show_metrics),
        Route("/openapi.json", show_document),
        Route("/docs", show_page),
    ]
    require_rules(routes)
    return Starlette(
        routes=routes,
        middleware=[Middleware(LoopbackHosts, names=settings.hosts), *middleware],
        exception_handlers={HTTPException: http_exception, Exception: unexpected},
    )
