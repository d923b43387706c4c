"""Shadow traffic: copies of requests to the candidate, after the user has the answer, as far as there is room.

The queue is short and of its own. What does not fit is dropped and counted; nobody waits, nothing is billed, and the
stable replicas' breakers hear nothing of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import aiohttp

from catena.core.errors import CatenaError
from catena.serve.gateway.ask import Ask
from catena.serve.gateway.call import answer_text
from catena.serve.gateway.exchange import Exchange
from catena.serve.gateway.poison import fingerprint
from catena.serve.gateway.pool import Pool
from catena.serve.releases.plan import Outcome

logger = logging.getLogger(__name__)
QUEUE = 64
WORKERS = 2
COMPARED = 2000


@dataclass(slots=True)
class Comparison:
    """How like the candidate's answers are to the stable ones."""

    compared: int = 0
    equal: int = 0
    similarity: float = 0.0
    """Summed; 1 for each equal answer."""
    stable_length: int = 0
    candidate_length: int = 0
    dropped: int = 0
    """Copies for which there was no room."""
    furthest: list[tuple[float, str]] = field(default_factory=list)
    """(similarity, id) of the requests whose answers differ most."""

    def add(self, id: str, stable: str, candidate: str) -> None:
        """Compare two answers to one request."""
        alike = similarity(stable, candidate)
        self.compared += 1
        self.equal += stable == candidate
        self.similarity += alike
        self.stable_length += len(stable)
        self.candidate_length += len(candidate)
        self.furthest = sorted([*self.furthest, (round(alike, 3), id)])[:10]

    def table(self) -> dict[str, Any]:
        """Return it for people."""
        return {
            "compared": self.compared,
            "equal": self.equal,
            "mean_similarity": round(self.similarity / max(1, self.compared), 4),
            "length_ratio": round(self.candidate_length / max(1, self.stable_length), 4),
            "dropped": self.dropped,
            "furthest": self.furthest,
        }


def similarity(first: str, second: str) -> float:
    """Return the share of words that two texts have in common, in order."""
    if first == second:
        return 1.0
    one, other = first[:COMPARED].split() or [first], second[:COMPARED].split() or [second]
    if len(one) == 1 and len(other) == 1:  # a language without spaces
        one, other = list(first[:200]), list(second[:200])
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


class Shadow:
    """The queue, and those who work it off."""

    def __init__(
        self,
        pool: Pool,
        session: aiohttp.ClientSession,
        observe: Callable[[Outcome], None],
        flagged: Callable[[str], bool],
    ) -> None:
        self._pool, self._session, self._observe, self._flagged = pool, session, observe, flagged
        self.comparison = Comparison()
        self._queue: asyncio.Queue[tuple[str, Ask, str, str]] = asyncio.Queue(QUEUE)
        self._workers = [asyncio.create_task(self._work()) for _ in range(WORKERS)]

    def copy(self, id: str, ask: Ask, user: str, stable: str) -> None:
        """Queue a copy of a request that was answered, or drop it."""
        try:
            self._queue.put_nowait((id, ask, user, stable))
        except asyncio.QueueFull:
            self.comparison.dropped += 1

    async def close(self) -> None:
        """Stop; what is queued is dropped."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            id, ask, user, stable = await self._queue.get()
            try:
                await self._compare(id, ask, user, stable)
            except Exception:  # or this worker would be gone, and with both of them the shadow
                logger.exception("a copy of %s could not be compared", id)

    async def _compare(self, id: str, ask: Ask, user: str, stable: str) -> None:
        try:
            text, first_s = await self._ask(id, ask)
        except (CatenaError, aiohttp.ClientError, TimeoutError, OSError):
            self._observe(Outcome("candidate", user, failed=True))
            return
        flagged = await asyncio.to_thread(self._judged, id, stable, text)
        self._observe(Outcome("candidate", user, text=text, first_s=first_s, flagged=flagged))

    def _judged(self, id: str, stable: str, text: str) -> bool:
        self.comparison.add(id, stable, text)
        return self._flagged(text)

    async def _ask(self, id: str, ask: Ask) -> tuple[str, float]:
        began = time.monotonic()
        mark = fingerprint(self._pool.name, ask.body)
        async with self._pool.lease(ask.text, ask.cost, mark, ()) as lease:
            body, headers = ask.for_model(lease.backend.served or ask.model), {"x-request-id": f"{id}-shadow"}
            async with Exchange(self._session, lease.backend, ask.path, body, headers) as exchange:
                answer = await exchange.begin(self._pool.routing.max_answer_bytes)
                data = bytearray(answer.body)
                if answer.rest is not None:
                    async for piece in answer.rest:
                        data += piece
                lease.record(good=True, seconds=answer.seconds)
                self._pool.poison.answered(mark)
                if answer.status >= 300:
                    raise CatenaError(f"the candidate answered {answer.status}")
                return answer_text(bytes(data), answer.rest is not None), time.monotonic() - began
