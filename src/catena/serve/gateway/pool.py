"""The replicas of one model: started, watched, replaced, drained, and given out to requests one by one.

    starting --first answer--> ready --dies, or /health fails--> (again, after a pause that doubles)
                                 \\--no longer wanted--> draining --> gone

A request `lease`s a replica. Where none is free it waits in line; who waits longest is next.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import aiohttp

from catena.core.errors import CatenaError
from catena.serve.gateway.breaker import Breaker
from catena.serve.gateway.child import Child, Started, healthy, prewarm
from catena.serve.gateway.config import BreakerConfig, ModelConfig, RoutingConfig
from catena.serve.gateway.endings import memory_kills, told
from catena.serve.gateway.line import Line
from catena.serve.gateway.poison import Poison
from catena.serve.gateway.router import Backend, Lease, Router
from catena.serve.gateway.waiting import either, unless

logger = logging.getLogger(__name__)
SETTLED_S = 60.0
"""A replica that lived so long begins again with the shortest pause."""
LATENCIES = 256
INQUIRY_S = 1.0
GENTLE_S = 5.0
"""Between asking a process to end and ending it; its requests have had `drain_s` before."""
Phase = Literal["starting", "ready", "waiting", "draining"]


@dataclass(eq=False, slots=True)
class Slot:
    """A place for one replica; what stands in it may be replaced."""

    id: str
    phase: Phase = "starting"
    backend: Backend | None = None
    child: Child | None = None
    restarts: int = 0
    problem: str = ""
    """Why the last one ended."""
    task: asyncio.Task[None] | None = None
    leaving: asyncio.Event = field(default_factory=asyncio.Event)


class Pool:
    """All replicas of a model."""

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        routing: RoutingConfig,
        breaker: BreakerConfig,
        command: Sequence[str] = (),
    ) -> None:
        self.name, self.config, self.routing = name, config, routing
        self._breaker, self._command = breaker, tuple(command)
        self.router = Router(prefix=routing.prefix, slack=routing.slack)
        self.poison = Poison(routing.poison_s)
        self.slots: dict[str, Slot] = {}
        self.latencies: deque[tuple[float, float]] = deque(maxlen=LATENCIES)
        """(when, seconds to the first token)."""
        self.deaths = self.crashes = 0
        """How many replicas have ended, and how many of them of themselves."""
        self.closed = False
        self._held: Backend | None = None
        """Kept free of others for suspects."""
        self.line = Line(name, routing.queue, routing.queue_s)
        self._numbers, self._requests = itertools.count(1), itertools.count(1)
        self._session: aiohttp.ClientSession | None = None
        self._changed = asyncio.Event()

    # -- replicas ----------------------------------------------------------------------------------------------------

    def begin(self, session: aiohttp.ClientSession) -> None:
        """Take the session that replicas are looked at with."""
        self._session = session

    def resize(self, count: int) -> None:
        """Have so many replicas of our own: start what is missing, let the youngest go."""
        if self.closed:
            return
        wanted = [slot for slot in self.slots.values() if slot.phase != "draining"]
        for _ in range(count - len(wanted)):
            slot = Slot(f"{self.name}-{next(self._numbers)}")
            self.slots[slot.id] = slot
            slot.task = asyncio.create_task(self._keep(slot))
        # Those that are not ready go first, then the youngest.
        for slot in sorted(wanted, key=lambda one: one.phase == "ready")[: max(0, len(wanted) - count)]:
            self.release(slot)

    def point_at(self, urls: Collection[str]) -> None:
        """Use exactly these servers, which others run."""
        if self.closed:
            return
        for url in urls:
            if url not in self.slots:
                slot = Slot(url)
                self.slots[url] = slot
                slot.task = asyncio.create_task(self._visit(slot))
        for url in set(self.slots) - set(urls):
            self.release(self.slots[url])

    def release(self, slot: Slot) -> None:
        """Let a replica finish what it does, and go."""
        if slot.phase != "draining":
            slot.phase = "draining"
            if slot.backend is not None:
                slot.backend.ready = False
            slot.leaving.set()

    async def close(self) -> None:
        """Let every replica finish and go, all at once."""
        self.closed = True
        self.line.close()
        for slot in list(self.slots.values()):
            self.release(slot)
        await asyncio.gather(*(slot.task for slot in self.slots.values() if slot.task), return_exceptions=True)

    async def until_ready(self, count: int = 1) -> None:
        """Wait until so many replicas answer."""
        while len(self.ready()) < count:
            self._changed.clear()
            await self._changed.wait()

    def ready(self) -> list[Backend]:
        """Return the replicas that take requests."""
        return [slot.backend for slot in self.slots.values() if slot.backend is not None and slot.backend.ready]

    def broken(self) -> bool:
        """Tell whether there are replicas, and every one of them is left alone by its breaker."""
        now, ready = time.monotonic(), self.ready()
        return bool(ready) and not any(one.breaker.admits(now) for one in ready)

    async def _keep(self, slot: Slot) -> None:
        """Keep a process in a slot until it is released."""
        pause, settings = self.config.replicas.backoff_s, self.config.replicas
        while not slot.leaving.is_set():
            slot.phase = "starting"
            slot.child = Child(slot.id, self._command, {**self._threads(), **self.config.environment})
            began = time.monotonic()
            try:
                await self._life(slot, slot.child)
            except CatenaError as error:
                slot.problem = " ".join(filter(None, (error.message, error.hint)))
            except OSError as error:
                slot.problem = str(error)
            finally:
                crashed = slot.backend is None or not slot.child.ended_by_others()  # none: it never answered
                at_work = self._gone(slot)
                await slot.child.stop(GENTLE_S)
            if slot.leaving.is_set():
                break
            slot.restarts += 1
            self.deaths += 1
            self.crashes += crashed
            if at_work or time.monotonic() - began > SETTLED_S:
                pause = settings.backoff_s  # what ended it was a request, or nothing that is always there
            logger.warning("%s: %s; again in %.1f s", slot.id, slot.problem, pause)
            slot.phase = "waiting"
            await either(slot.leaving.wait(), asyncio.sleep(pause))
            pause = min(pause * 2, settings.backoff_max_s)
        self.slots.pop(slot.id, None)

    def _threads(self) -> dict[str, str]:
        """Share the processors among the replicas of a stored model, where nobody has said otherwise."""
        if not self.config.model or "OMP_NUM_THREADS" in os.environ:
            return {}
        return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.config.replicas.max))}

    async def _life(self, slot: Slot, child: Child) -> None:
        settings = self.config.replicas
        started = await unless(slot.leaving, child.start(settings.start_s))
        if started is None:
            return
        assert self._session is not None
        served = self.config.served or started.model or self.name
        if settings.prewarm:
            warm = prewarm(self._session, started.url, served, "", settings.start_s)
            await either(slot.leaving.wait(), child.ended(), warm)
        if slot.leaving.is_set():
            return
        if child.code is None:
            self._answers(slot, started, served)
            await either(slot.leaving.wait(), child.ended(), self._until_sick(slot, started.url))
        if not slot.leaving.is_set():
            slot.problem = told(child.code, child.ended_by_others())
            return
        await self._idle(slot)

    async def _visit(self, slot: Slot) -> None:
        """Watch a server that somebody else runs until it is released."""
        assert self._session is not None
        settings, url = self.config.replicas, slot.id.rstrip("/").removesuffix("/v1")
        served = self.config.served or self.name
        key = os.environ.get(self.config.key_variable, "") if self.config.key_variable else ""
        warmed = not settings.prewarm
        while not slot.leaving.is_set():
            if await healthy(self._session, url, settings.health_timeout_s):
                try:
                    if not warmed:
                        await prewarm(self._session, url, served, key, settings.start_s)
                    warmed, slot.problem = True, ""
                    self._answers(slot, Started(url, served, self.config.revision), served, key)
                    await either(slot.leaving.wait(), self._until_sick(slot, url))
                except CatenaError as error:
                    slot.problem = error.message
            if not slot.leaving.is_set():
                slot.problem = slot.problem or "does not answer /health"
                self._gone(slot)
                slot.phase = "waiting"
                await either(slot.leaving.wait(), asyncio.sleep(settings.health_s))
        await self._idle(slot)
        self._gone(slot)
        self.slots.pop(slot.id, None)

    async def _idle(self, slot: Slot) -> None:
        """Wait until a replica that goes has finished, as long as it may."""
        backend, deadline = slot.backend, time.monotonic() + self.config.replicas.drain_s
        while backend is not None and backend.running and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    async def _until_sick(self, slot: Slot, url: str) -> None:
        """Return when a replica did not answer several times in a row."""
        assert self._session is not None
        settings, failures = self.config.replicas, 0
        while failures < settings.health_failures:
            await asyncio.sleep(settings.health_s)
            if slot.backend is not None and not slot.backend.ready:
                return
            kills = memory_kills()
            failures = 0 if await healthy(self._session, url, settings.health_timeout_s) else failures + 1
            if slot.child is not None and not failures:
                slot.child.lived(kills)

    def _answers(self, slot: Slot, started: Started, served: str, key: str = "") -> None:
        slot.backend = Backend(
            id=slot.id,
            url=started.url,
            breaker=Breaker(self._breaker),
            limit=self.config.replicas.in_flight,
            served=served,
            digest=started.digest or self.config.revision,
            key=key,
        )
        slot.phase, slot.problem = "ready", ""
        self._changed.set()
        self.line.wake()

    def _gone(self, slot: Slot) -> bool:
        """Note that a replica takes no more; tells whether it had requests."""
        backend, slot.backend = slot.backend, None
        at_work = backend is not None and bool(backend.in_flight)
        if backend is not None:
            if slot.leaving.is_set():
                backend.ready = False
            else:
                backend.ended_by_others = slot.child is not None and slot.child.ended_by_others()
                self._bury(backend)
            self.router.forget(backend.id)
            self.line.wake()
        return at_work

    def _bury(self, backend: Backend) -> None:
        """Note, once, that a replica died, and who was on it."""
        if backend.ready and backend.in_flight:
            marks = list(backend.in_flight.values())
            self.poison.died(marks, time.monotonic(), excused=backend.ended_by_others)
        backend.ready = False

    # -- requests ----------------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Requests that replicas have now."""
        return sum(slot.backend.running for slot in self.slots.values() if slot.backend is not None)

    @property
    def waiting(self) -> int:
        """Requests that wait for a replica."""
        return len(self.line)

    @asynccontextmanager
    async def lease(self, text: bytes, cost: float, mark: bytes, without: Collection[str]) -> AsyncIterator[Lease]:
        """Give a replica for one attempt, none of `without` where there is another. Raises `Overloaded`."""
        began = time.monotonic()
        suspect = self.poison.suspect(mark, began)
        alone_until = began + self.line.seconds / 2

        def choose() -> Backend | None:
            if suspect and time.monotonic() < alone_until:
                return self._apart()
            return self._choose(text, cost, without, None if suspect else self._held)

        try:
            backend = await self.line.take(suspect, choose)
        except BaseException:
            self._give_back()
            raise
        number = next(self._requests)
        backend.running += 1
        backend.work += cost
        backend.in_flight[number] = mark
        backend.breaker.begin()
        lease = Lease(backend, number)
        try:
            yield lease
        finally:
            if not lease.told:
                backend.breaker.forget()
            backend.running -= 1
            backend.work = max(0.0, backend.work - cost) if backend.running else 0.0
            backend.in_flight.pop(number, None)
            self._give_back()
            self.line.ended()

    async def inquire(self, backend: Backend) -> bool:
        """Tell whether a replica whose connection broke is dead. Whoever is on it then is a suspect, unless it was
        ended from outside."""
        if self.config.owned:
            deadline = time.monotonic() + INQUIRY_S
            while backend.ready and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
        elif backend.ready and self._session is not None and not await healthy(self._session, backend.url, INQUIRY_S):
            self._bury(backend)
        return not backend.ready

    def first_token(self, seconds: float) -> None:
        """Note how long a first token took."""
        self.latencies.append((time.monotonic(), seconds))

    def latency(self, window_s: float = 60.0) -> float | None:
        """Return the P95 of the time to the first token, of late."""
        since = time.monotonic() - window_s
        recent = sorted(seconds for when, seconds in self.latencies if when >= since)
        return recent[int(0.95 * (len(recent) - 1))] if recent else None

    def _choose(self, text: bytes, cost: float, without: Collection[str], held: Backend | None) -> Backend | None:
        now = time.monotonic()
        able = [one for one in self.ready() if one is not held and one.admits(now)]
        fresh = [one for one in able if one.id not in without]
        return self.router.pick(fresh or able, text, cost)

    def _apart(self) -> Backend | None:
        """Return a replica that has nothing else to do; until there is one, the emptiest gets nothing new."""
        if self._held is None or not self._held.ready:
            now = time.monotonic()
            able = [one for one in self.ready() if one.admits(now)]
            self._held = min(able, key=lambda one: one.running, default=None)
        return self._held if self._held is not None and self._held.running == 0 else None

    def _give_back(self) -> None:
        """Give the replica that was kept for suspects to everybody, when none waits and none is on it."""
        if self._held is None or self.line.suspects:
            return
        now = time.monotonic()
        if not any(self.poison.suspect(mark, now) for mark in self._held.in_flight.values()):
            self._held = None
            self.line.wake()
