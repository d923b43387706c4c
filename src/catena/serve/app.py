"""The gateway: generators behind the OpenAI HTTP form. Every route on one page.

POST /v1/chat/completions     serve/openai.py
GET  /v1/models, /v1/models/{id}
GET  /health                  200 while every engine lives, 503 otherwise
GET  /metrics                 serve/metrics.py

In front of all of them: serve/hosts.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from catena.core.errors import did_you_mean
from catena.core.generate import StreamingGenerator
from catena.serve import metrics
from catena.serve.errors import http_exception, refuse, unexpected
from catena.serve.hosts import LoopbackHosts
from catena.serve.openai import Chat, ServeConfig
from catena.serve.wire import model_body


def build_app(
    models: Mapping[str, StreamingGenerator],
    *,
    fingerprints: Mapping[str, str] | None = None,
    config: ServeConfig | None = None,
) -> Starlette:
    """Return the ASGI application over `models` (name to generator), which the caller opens and closes.

    `fingerprints` maps a name to its model's digest; the first 12 digits go into every answer.
    """
    settings = config or ServeConfig()
    chat = Chat(models, fingerprints or {}, settings)
    created = int(time.time())

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model_body(name, created) for name in models]})

    async def show_model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in models:
            message = f"the model {name!r} does not exist. {did_you_mean(name, models)}"
            return refuse(404, message, param="model", code="model_not_found")
        return JSONResponse(model_body(name, created))

    async def health(request: Request) -> Response:
        alive = {name: bool(generator.stats().get("alive", 1)) for name, generator in models.items()}
        good = all(alive.values())
        status = "ok" if good else "failed"
        return JSONResponse({"status": status, "models": alive}, 200 if good else 503)

    async def show_metrics(request: Request) -> Response:
        return PlainTextResponse(metrics.render(models, chat.counters), media_type=metrics.CONTENT_TYPE)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", show_model),
            Route("/health", health),
            Route("/metrics", show_metrics),
        ],
        middleware=[Middleware(LoopbackHosts, names=settings.hosts)],
        exception_handlers={HTTPException: http_exception, Exception: unexpected},
    )
