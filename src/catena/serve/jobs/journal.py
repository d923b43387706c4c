"""Results on their way to the database: those that come while one write is under way go together in the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from catena.core.errors import CatenaError
from catena.serve.jobs.queue import Lost
from catena.serve.jobs.tables import Result

logger = logging.getLogger(__name__)
MOST = 500
PAUSE_S = 1.0


class Journal:
    """The results of one job."""

    def __init__(self, write: Callable[[Sequence[Result]], None]) -> None:
        self._write = write
        self._waiting: list[tuple[Result, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def put(self, result: Result) -> None:
        """Return when a result is written down; raises `Lost`. While the database is away this waits."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((result, written))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._flush())
        await written

    async def close(self) -> None:
        """Wait for what is under way."""
        if self._task is not None:
            await self._task

    async def _flush(self) -> None:
        while self._waiting:
            now, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            problem = await self._settled([result for result, _ in now])
            for _, written in now:
                if written.done():
                    continue
                if problem is None:
                    written.set_result(None)
                else:
                    written.set_exception(problem)

    async def _settled(self, found: list[Result]) -> Lost | None:
        while True:
            try:
                await asyncio.to_thread(self._write, found)
            except Lost as error:
                return error
            except CatenaError as error:
                logger.warning("results wait for the database: %s", error)
                await asyncio.sleep(PAUSE_S)
            else:
                return None
