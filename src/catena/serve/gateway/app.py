"""The gateway as an ASGI application, and what runs beside it: replicas, their number, names that are looked up.

POST the model routes           serve/gateway/relay.py
GET  /v1/models, /v1/models/{id}
GET  /health                    200 as long as this process works
GET  /ready                     200 while every model has a replica that answers, and nothing is shutting down
GET  /metrics                   its own counts, those of every replica, and GPUs
     /admin/releases            serve/releases/admin.py
GET  /openapi.json, /docs       serve/gateway/pages.py
     /v1/files, /v1/batches, /v1/responses/{id}     serve/jobs/
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from catena.core.errors import CatenaError, EnvironmentProblem, RemoteError, did_you_mean
from catena.govern.seal import Sealer
from catena.serve import metrics
from catena.serve.errors import answer_to, http_exception, unexpected
from catena.serve.gateway import gpus, meters
from catena.serve.gateway.ask import ROUTES
from catena.serve.gateway.cache import Cache
from catena.serve.gateway.caching import Cover, open_answers
from catena.serve.gateway.call import Call
from catena.serve.gateway.config import DeployConfig, ModelConfig
from catena.serve.gateway.exchange import open_session
from catena.serve.gateway.kept import CACHE_FILE, forget_clear
from catena.serve.gateway.limits import Limits
from catena.serve.gateway.lookup import look_up
from catena.serve.gateway.meters import Meters
from catena.serve.gateway.opinions import Opinions
from catena.serve.gateway.pages import Pages
from catena.serve.gateway.poison import fingerprint
from catena.serve.gateway.pool import Pool
from catena.serve.gateway.questions import open_questions
from catena.serve.gateway.relay import Relay
from catena.serve.gateway.router import shown
from catena.serve.gateway.scaling import Load, Scaler
from catena.serve.gateway.semantic import Semantic
from catena.serve.gateway.standing import Standing
from catena.serve.gateway.traces import Traces
from catena.serve.hosts import LoopbackHosts
from catena.serve.jobs.service import Jobs
from catena.serve.middleware.auth import asks_for_keys
from catena.serve.middleware.exchange import exchange_of, principal_of
from catena.serve.releases.admin import Admin
from catena.serve.releases.manager import Releases
from catena.serve.releases.outcomes import Outcomes
from catena.serve.releases.tags import Tags
from catena.serve.rules import require_rules
from catena.serve.wire import WireError

logger = logging.getLogger(__name__)
TICK_S = 1.0
SCRAPE_S = 2.0
FIRST_STARTS = 3
EMBED_S = 5.0
"""So long a request waits for a vector of its question; then it is asked without the semantic cache."""
Commands = Callable[[str, ModelConfig], Sequence[str]]


class Gateway:
    """Everything behind one address. `running` is entered beside the server."""

    def __init__(
        self,
        config: DeployConfig,
        *,
        state: Path,
        commands: Commands,
        on_ready: Callable[[], None] | None = None,
        on_problem: Callable[[], None] | None = None,
        traces: Traces | None = None,
        middleware: Sequence[Middleware] = (),
        tags: Tags | None = None,
        sealer: Sealer | None = None,
        standing: Standing | None = None,
    ) -> None:
        self.config, self.state, self._commands, self.standing = config, state, commands, standing
        self._on_ready, self._on_problem = on_ready, on_problem
        self.problem: CatenaError | None = None
        """Why the gateway gave up: a model whose replicas do not start."""
        self.meters = Meters()
        self.outcomes = Outcomes(middleware)
        self.releases = Releases(self, state, config.bake_s, tags)
        self.specs = {name: self.releases.current(name, model) for name, model in config.models.items()}
        """How each model is served now; a release changes it."""
        self.pools = {name: self.new_pool(name, model) for name, model in self.specs.items()}
        self.limits = Limits(config.limits)
        self.traces = traces or Traces(config.telemetry)
        self.cache = self._new_cache(Cover(sealer))
        self.session: aiohttp.ClientSession = None  # type: ignore[assignment]  # opened by `running`
        self.draining = False
        self._began = int(time.time())
        self._tasks: set[asyncio.Task[None]] = set()
        self._opinions = Opinions(middleware, self.releases)
        self.jobs = Jobs(config.jobs, state, self, self.busy, sealer) if config.jobs.on else None
        self._relay = Relay(self)
        self._documents = Pages(self.names, middleware)
        self._secured = asks_for_keys(middleware)
        self._pages = self._routes()
        self.app: ASGIApp = self._dispatch
        for kind in reversed((Middleware(LoopbackHosts, names=config.http.hosts), *middleware)):
            self.app = kind.cls(self.app, *kind.args, **kind.kwargs)

    def _new_cache(self, cover: Cover) -> Cache:
        cache, near, near_bytes = self.config.cache, None, 0
        if cover.secret and cache.store == "sqlite":
            forget_clear(self.state / CACHE_FILE)
        if cache.semantic.model:
            near_bytes = cache.max_bytes // 2
            kept = open_questions(cache.store, self.state, cache.ttl_s, cache.semantic.entries, near_bytes)
            near = Semantic(self._embed, cache.semantic, (cache.ttl_s, near_bytes), kept, cover)
        answers = open_answers(cache.store, self.state, cache.ttl_s, cache.max_bytes - near_bytes)
        return Cache(answers, self.digest_of, self.meters, near, cover)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self.app(scope, receive, send)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The hot routes are found without a router.
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in ROUTES:
            await self._relay(scope, receive, send)
        else:
            await self._pages(scope, receive, send)

    # -- what runs beside it -----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start replicas and keep them; at the end let them finish and go."""
        self.session = open_session(self.config.routing)
        try:
            for name, pool in self.pools.items():
                self.start_pool(pool, self.specs[name])
            self.releases.resume()
            if self.jobs is not None:
                self.jobs.begin()
            self._beside(self._until_ready())
            self._beside(self.releases.watch())
            if self.standing is not None:
                self._beside(self.standing.watch())
            yield
        finally:
            self.draining = True
            if self.jobs is not None:
                await self.jobs.close()
            tasks = tuple(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(self.releases.close(), *(pool.close() for pool in self.pools.values()))
            await self.session.close()
            await self.cache.close()
            await self.limits.close()
            await asyncio.to_thread(self.traces.close)

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something run until it ends, or the gateway does."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def new_pool(self, name: str, model: ModelConfig) -> Pool:
        """Return a pool for a model; nothing is started yet."""
        command = self._commands(name, model) if model.owned else ()
        return Pool(name, model, self.config.routing, self.config.breaker, command)

    def start_pool(self, pool: Pool, model: ModelConfig) -> None:
        """Start a pool's replicas, and what keeps their number right."""
        pool.begin(self.session)
        if model.owned:
            pool.resize(model.replicas.min)
            self._beside(self._scale(pool, model))
        elif model.dns:
            self._beside(look_up(pool, model.dns))
        else:
            pool.point_at(model.urls)

    async def _scale(self, pool: Pool, model: ModelConfig) -> None:
        scaler = Scaler(model.replicas)
        while not pool.closed:
            await asyncio.sleep(TICK_S)
            before = scaler.wanted
            load = Load(len(pool.ready()), pool.running + pool.waiting, pool.latency())
            wanted = scaler.decide(load, time.monotonic())
            if wanted != before:
                logger.info("%s: %d replicas instead of %d (%s)", pool.name, wanted, before, load)
                pool.resize(wanted)

    async def _until_ready(self) -> None:
        waiting = asyncio.gather(*(pool.until_ready(min(1, pool.config.replicas.min)) for pool in self.pools.values()))
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=0.2)
                if not waiting.done() and (problem := self._does_not_start()) is not None:
                    self.problem = problem
                    if self._on_problem is not None:
                        self._on_problem()
                    return
        finally:  # a gateway may end before that; what was waited for ends with it, and is told to nobody
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        if self._on_ready is not None:
            self._on_ready()

    def _does_not_start(self) -> CatenaError | None:
        """Return the problem of a model none of whose replicas starts; without the index they may yet."""
        for pool in () if self._away() else self.pools.values():
            for slot in pool.slots.values():
                if pool.config.owned and slot.restarts >= FIRST_STARTS and not pool.ready():
                    return EnvironmentProblem(f"{pool.name} does not start", hint=slot.problem)
        return None

    # -- what the relay asks -----------------------------------------------------------------------------------------

    def route(self, call: Call) -> tuple[Pool, str]:
        """Return whose replicas answer a request, and what its model's name ends with (an adapter)."""
        name = call.ask.model
        if (pool := self.pools.get(name)) is not None:
            return self.releases.route(call) or pool, ""
        base, _, adapter = name.rpartition(":")
        if adapter and base in self.pools and adapter in self.config.models[base].adapters:
            return self.pools[base], f":{adapter}"
        hint = did_you_mean(name, self.names())
        raise WireError(f"the model {name!r} does not exist. {hint}", param="model", code="model_not_found", status=404)

    def busy(self, model: str) -> bool:
        """Tell whether a model has no room beside the requests of those who wait for their answer."""
        pool = self.pools.get(model) or self.pools.get(model.rpartition(":")[0])
        if pool is None:
            return False
        room = max(1, len(pool.ready())) * pool.config.replicas.in_flight
        return pool.waiting > 0 or pool.running >= room

    def names(self) -> list[str]:
        """Return every model, each followed by what it is with an adapter."""
        return [
            name
            for base, model in self.config.models.items()
            for name in (base, *(f"{base}:{adapter}" for adapter in model.adapters))
        ]

    def digest_of(self, call: Call) -> str:
        """Return what the weights are that answered a request, or would now; nothing where nobody says it."""
        base, _, adapter = call.ask.model.partition(":")
        pool = self.pools.get(call.ask.model) or self.pools.get(base)
        if pool is None:
            return ""
        digests = {one.digest for one in pool.ready()} if call.weights is None else {call.weights}
        if len(digests) != 1 or not (digest := digests.pop()):
            return ""
        return f"{digest}+{adapter}={pool.config.adapters[adapter]}" if adapter in pool.config.adapters else digest

    async def ended(self, call: Call) -> None:
        """Count a request that is over."""
        known = call.ask.model if call.status != 404 else ""
        self.meters.requests.add(call.ask.route, known, str(call.status))
        self.meters.seconds.add(call.ask.route, known, of=time.monotonic() - call.began)
        if call.first_s:
            self.meters.first.add(known, of=call.first_s)
        if call.status < 300 and not call.cached:
            prompt, written = call.tokens()
            self.meters.tokens.add(known, "prompt", by=prompt)
            self.meters.tokens.add(known, "answer", by=written)
        if call.cut:
            self.meters.cut.add(known)
        self.releases.ended(call)

    async def _embed(self, text: str) -> list[float]:
        """Return a text's vector by the model of the semantic cache."""
        pool = self.pools[self.config.cache.semantic.model]
        asked = text.encode()
        mark = fingerprint(pool.name, asked)
        if pool.poison.convicted(mark, time.monotonic()):
            raise RemoteError("this text ended two replicas of the embedding model")
        async with asyncio.timeout(EMBED_S), pool.lease(asked, len(text) / 8, mark, ()) as lease:
            body = {"model": lease.backend.served or pool.name, "input": text}
            try:
                async with self.session.post(f"{lease.backend.url}/v1/embeddings", json=body) as response:
                    data = orjson.loads(await response.read())
                    if response.status != 200:
                        raise RemoteError(f"the embedding model answered {response.status}")
            except (aiohttp.ClientError, TimeoutError) as error:
                await pool.inquire(lease.backend)
                raise RemoteError(f"the embedding model did not answer: {error}") from error
            lease.record(good=True)
            pool.poison.answered(mark)
            return [float(value) for value in data["data"][0]["embedding"]]

    # -- pages -------------------------------------------------------------------------------------------------------

    def _routes(self) -> Starlette:
        routes: list[BaseRoute] = [
            *(Route(path, self._relay, methods=["POST"]) for path in ROUTES),
            Route("/v1/models", self._list_models),
            Route("/v1/models/{name:path}", self._show_model),
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/metrics", self._metrics),
            *Admin(self).routes,
            *self._documents.routes,
            *(self.jobs.routes if self.jobs is not None else ()),
        ]
        self.routes = [*routes, *self._documents.front]
        """Every path that is answered, by the gateway or by what stands before it."""
        require_rules(self.routes)
        self._documents.others = routes
        return Starlette(routes=routes, exception_handlers={HTTPException: http_exception, Exception: unexpected})

    async def _list_models(self, request: Request) -> Response:
        asker = principal_of(request.scope)
        names = [name for name in self.names() if asker is None or asker.may_use(name)]
        return JSONResponse({"object": "list", "data": [self._body(name) for name in names]})

    async def _show_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.names():
            hint = did_you_mean(name, self.names())
            message = f"the model {name!r} does not exist. {hint}"
            return answer_to(WireError(message, param="model", code="model_not_found", status=404))
        return JSONResponse(self._body(name))

    def _body(self, name: str) -> dict[str, object]:
        base, _, adapter = name.partition(":") if name not in self.pools else (name, "", "")
        digests = {one.digest for one in self.pools[base].ready()} - {""} if base in self.pools else set()
        body = {"id": name, "object": "model", "created": self._began, "owned_by": "catena"}
        return body | ({"digest": digests.pop()} if len(digests) == 1 and not adapter else {})

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "models": {name: len(pool.ready()) for name, pool in self.pools.items()}})

    async def _ready(self, request: Request) -> Response:
        good = not self.draining and all(pool.ready() or not pool.config.replicas.min for pool in self.pools.values())
        asker = principal_of(request.scope)
        all_ = not self._secured or (asker is not None and asker.may("metrics"))
        replicas = {
            name: [
                {
                    "id": slot.id if all_ else shown(slot.id),
                    "phase": slot.phase,
                    "restarts": slot.restarts,
                    "problem": slot.problem if all_ else "",
                }
                for slot in pool.slots.values()
            ]
            for name, pool in self.pools.items()
        }
        away = {"away": {"index": self._away() if all_ else "it does not answer"}} if self._away() else {}
        return JSONResponse({"ready": good, **away, "replicas": replicas}, 200 if good else 503)

    def _away(self) -> str:
        return self.standing.problem if self.standing is not None else ""

    async def _metrics(self, request: Request) -> Response:
        families = [*self.meters.families(), *meters.gauges(self.pools)]
        families += await asyncio.to_thread(self._opinions.families)
        if self.config.telemetry.gpus:
            families += await gpus.gpu_families()
        own = meters.render(families) + exchange_of(request.scope).metrics
        return metrics.answer(own + await self._replica_metrics())

    async def _replica_metrics(self) -> str:
        backends = [one for pool in self.pools.values() for one in pool.ready()]
        texts = await asyncio.gather(*(self._scrape(one.url) for one in backends))
        merged: dict[str, list[str]] = {}
        for backend, text in zip(backends, texts, strict=True):
            for family, lines in meters.relabelled(text, "replica", backend.id).items():
                kept = merged.setdefault(family, [])
                kept += lines if not kept else [line for line in lines if not line.startswith("#")]
        return "".join(f"{line}\n" for lines in merged.values() for line in lines)

    async def _scrape(self, url: str) -> str:
        try:
            timeout = aiohttp.ClientTimeout(total=SCRAPE_S)
            async with self.session.get(f"{url}/metrics", timeout=timeout) as response:
                return await response.text() if response.status == 200 else ""
        except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError):
            return ""
