"""The line of those who wait for a replica of one model: first come, first served, in bounds."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from catena.core.errors import CatenaError

T = TypeVar("T")
GLANCE_S = 0.25
"""Who waits looks so often without being woken: a breaker opens by the clock."""
REMEMBERED = 256


class Overloaded(CatenaError):
    """No replica was free in time."""

    http_status = 503

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, hint="Try again in a moment.")
        self.retry_after = retry_after


@dataclass(eq=False, slots=True)
class Waiter:
    """Someone in line."""

    turn: asyncio.Future[None]


class Line:
    """Two lines in truth: a suspect may have to wait where another request would not."""

    def __init__(self, name: str, most: int, seconds: float) -> None:
        self._name, self._most = name, most
        self.seconds = seconds
        """Longest wait."""
        self._lines: dict[bool, deque[Waiter]] = {False: deque(), True: deque()}
        self._closed = False
        self._ended: deque[float] = deque(maxlen=REMEMBERED)

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    @property
    def suspects(self) -> int:
        """How many of those who wait should be alone."""
        return len(self._lines[True])

    async def take(self, suspect: bool, choose: Callable[[], T | None]) -> T:
        """Return what `choose` finds, at once or when it is one's turn. Raises `Overloaded`."""
        line = self._lines[suspect]
        if not line and (found := choose()) is not None:
            return found
        if len(self) >= self._most:
            raise Overloaded(f"{len(self)} requests wait for {self._name!r} already", self.retry_after())
        loop = asyncio.get_running_loop()
        waiter = Waiter(loop.create_future())
        line.append(waiter)
        deadline = time.monotonic() + self.seconds
        try:
            while not self._closed and (left := deadline - time.monotonic()) > 0:
                await asyncio.wait({waiter.turn}, timeout=min(left, GLANCE_S))
                if (found := choose()) is not None:
                    return found
                if waiter.turn.done():
                    waiter.turn = loop.create_future()
            raise Overloaded(f"no replica of {self._name!r} was free in time", self.retry_after())
        finally:
            line.remove(waiter)
            self.wake()

    def close(self) -> None:
        """Send everybody away: there will be no replica any more."""
        self._closed = True
        for line in self._lines.values():
            for waiter in line:
                if not waiter.turn.done():
                    waiter.turn.set_result(None)

    def wake(self) -> None:
        """Tell the first that something may have changed."""
        for line in self._lines.values():
            if line and not line[0].turn.done():
                line[0].turn.set_result(None)

    def ended(self) -> None:
        """Note that a request has ended."""
        self._ended.append(time.monotonic())
        self.wake()

    def retry_after(self) -> float:
        """Return after how many seconds those who wait now will have been served, roughly: between 1 and 60."""
        if len(self._ended) < 2:
            return 1.0
        rate = len(self._ended) / max(1e-3, time.monotonic() - self._ended[0])
        return min(60.0, max(1.0, len(self) / rate))
