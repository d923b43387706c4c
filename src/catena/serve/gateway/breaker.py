"""A circuit breaker for one replica: pure, with the time as an argument.

    closed --errors or slow answers over the line--> open --after a while--> half-open --good probes--> closed
                                                       ^                          |
                                                       +------ a probe fails -----+   and the while doubles

Both rates are over a sliding window of ten buckets, so that an old failure stops counting little by little.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from catena.serve.gateway.config import BreakerConfig

State = Literal["closed", "open", "half-open"]
BUCKETS = 10


@dataclass(slots=True)
class Bucket:
    """What happened in a tenth of the window."""

    number: int
    answers: int = 0
    failures: int = 0
    slow: int = 0


class Breaker:
    """Says whether a replica may be asked, from how it answered."""

    def __init__(self, config: BreakerConfig) -> None:
        self.config = config
        self.state: State = "closed"
        self.opened = 0
        """How often it has opened."""
        self._buckets: deque[Bucket] = deque()
        self._until = 0.0
        self._wait = config.open_s
        self._probing = 0
        self._passed = 0

    def admits(self, now: float) -> bool:
        """Tell whether a request may go there; changes nothing but open to half-open when the time has come."""
        if self.state == "open" and now >= self._until:
            self.state, self._probing, self._passed = "half-open", 0, 0
        if self.state == "half-open":
            return self._probing + self._passed < self.config.probes
        return self.state == "closed"

    def begin(self) -> None:
        """Note that a request goes there."""
        if self.state == "half-open":
            self._probing += 1

    def forget(self) -> None:
        """Note that a request ended without saying anything about the replica (the client left)."""
        if self.state == "half-open":
            self._probing = max(0, self._probing - 1)

    def record(self, now: float, *, good: bool, seconds: float = 0.0) -> None:
        """Note how a request ended: `good` is False for the replica's failures, `seconds` is to the first token."""
        slow = self.config.slow_s is not None and seconds > self.config.slow_s
        if self.state == "half-open":
            self._probing = max(0, self._probing - 1)
            if not good or slow:
                self._open(now, min(self._wait * 2, self.config.open_max_s))
                return
            self._passed += 1
            if self._passed >= self.config.probes:
                self.state, self._wait = "closed", self.config.open_s
                self._buckets.clear()
            return
        if self.state == "open":  # it was on its way when the breaker opened
            return
        bucket = self._current(now)
        bucket.answers += 1
        bucket.failures += not good
        bucket.slow += slow
        self._judge(now)

    def rates(self, now: float) -> tuple[int, float, float]:
        """Return (answers, share of failures, share of slow ones) in the window."""
        self._current(now)
        answers = sum(bucket.answers for bucket in self._buckets)
        failures = sum(bucket.failures for bucket in self._buckets)
        slow = sum(bucket.slow for bucket in self._buckets)
        return answers, failures / max(1, answers), slow / max(1, answers)

    def _judge(self, now: float) -> None:
        answers, failed, slow = self.rates(now)
        if answers >= self.config.least and (failed >= self.config.errors or slow >= self.config.slow):
            self._open(now, self.config.open_s)

    def _open(self, now: float, wait: float) -> None:
        self.state, self._wait, self._until = "open", wait, now + wait
        self.opened += 1
        self._buckets.clear()

    def _current(self, now: float) -> Bucket:
        number = int(now / self.config.window_s * BUCKETS)
        while self._buckets and self._buckets[0].number <= number - BUCKETS:
            self._buckets.popleft()
        if not self._buckets or self._buckets[-1].number != number:
            self._buckets.append(Bucket(number))
        return self._buckets[-1]
