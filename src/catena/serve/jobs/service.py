"""Files, batches and background responses as the gateway has them: routes, and the runner beside the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from sqlalchemy import URL
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Scope

from catena.core.errors import CatenaError
from catena.govern.seal import Sealer
from catena.serve.endpoint import Gone
from catena.serve.errors import answer_to
from catena.serve.gateway.ask import Ask
from catena.serve.jobs.background import Background
from catena.serve.jobs.batches import Batches
from catena.serve.jobs.config import JobsConfig
from catena.serve.jobs.files import Files
from catena.serve.jobs.queue import Queue
from catena.serve.jobs.runner import Runner
from catena.serve.jobs.sealing import Seals

Handler = Callable[[Request], Awaitable[Response]]
DATABASE = "jobs.db"


class Jobs:
    """The jobs of one gateway. `app` is the gateway itself; `busy` says whether live requests of a model wait."""

    def __init__(
        self,
        config: JobsConfig,
        state: Path,
        app: ASGIApp,
        busy: Callable[[str], bool],
        sealer: Sealer | None = None,
    ) -> None:
        state.mkdir(parents=True, exist_ok=True)
        url = config.store or URL.create("sqlite", database=str(state / DATABASE))
        seals = Seals(sealer)
        self.queue = Queue(url, seals)
        self.files = Files(self.queue, config, state, seals)
        self._runner: Runner | None = None
        self._made = config, app, busy
        self._task: asyncio.Task[None] | None = None
        self.batches = Batches(self.queue, self.files, config, self._wake)
        self.background = Background(self.queue, config, self._wake)
        self.routes: list[BaseRoute] = [
            _route("/v1/files", GET=self.files.list, POST=self.files.create),
            _route("/v1/files/{id}", GET=self.files.show, DELETE=self.files.delete),
            _route("/v1/files/{id}/content", GET=self.files.content),
            _route("/v1/batches", GET=self.batches.list, POST=self.batches.create),
            _route("/v1/batches/{id}", GET=self.batches.show),
            _route("/v1/batches/{id}/cancel", POST=self.batches.cancel),
            _route("/v1/responses/{id}", GET=self.background.show, DELETE=self.background.delete),
            _route("/v1/responses/{id}/cancel", POST=self.background.cancel),
        ]

    def begin(self) -> None:
        """Work on what is there, and on what comes."""
        config, app, busy = self._made
        self._runner = Runner(self.queue, self.files, config, app, busy)
        self._task = asyncio.create_task(self._runner.run())

    async def close(self) -> None:
        """Stop; what is not finished goes on with the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self.queue.close)

    async def accept(self, ask: Ask, scope: Scope) -> bytes:
        """Take in a response that is asked for in the background."""
        return await self.background.accept(ask, scope)

    def _wake(self, id: str) -> None:
        if self._runner is not None:
            self._runner.wake(id)


def _route(path: str, **handlers: Handler) -> Route:
    """Return a route with a handler for each method; every error becomes an answer."""

    async def handle(request: Request) -> Response:
        try:
            return await handlers["GET" if request.method == "HEAD" else request.method](request)
        except Gone:
            return Response(status_code=499)
        except CatenaError as error:
            return answer_to(error)

    return Route(path, handle, methods=list(handlers))
