"""How many replicas a model should have: a pure policy, with the time as an argument.

The rule is that of Kubernetes' autoscaler: the number times what is, divided by what should be, rounded up; a tenth
more or less is left alone. Up at once (but for a pause between steps), down only to the most that was wanted in the
last `down_s` seconds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from catena.serve.gateway.config import ReplicaConfig

TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Load:
    """What there is at a moment."""

    ready: int
    """Replicas that answer."""
    requests: float
    """Running and waiting."""
    latency_s: float | None = None
    """P95 of the time to the first token, of late; None where nothing was asked."""


class Scaler:
    """Remembers what was wanted, and says what is wanted now."""

    def __init__(self, config: ReplicaConfig) -> None:
        self.config = config
        self.wanted = config.min
        self._raised = -math.inf
        self._history: deque[tuple[float, int]] = deque()

    def decide(self, load: Load, now: float) -> int:
        """Return the number of replicas for the next while."""
        config, scaling = self.config, self.config.scaling
        needed = min(config.max, max(config.min, self._needed(load)))
        self._history.append((now, needed))
        while self._history[0][0] < now - scaling.down_s:
            self._history.popleft()
        if needed > self.wanted:
            if now - self._raised >= scaling.up_s:
                self.wanted, self._raised = needed, now
        else:
            self.wanted = min(self.wanted, max(count for _, count in self._history))
        return self.wanted

    def _needed(self, load: Load) -> int:
        scaling = self.config.scaling
        if load.ready == 0:
            return max(self.wanted, 1 if load.requests else 0)
        needed = self._scaled(load.ready, load.requests / load.ready / scaling.queue)
        if scaling.latency_s is not None and load.latency_s is not None and load.requests:
            # Twice as slow does not mean that twice as many are needed, but no single step more than doubles.
            needed = max(needed, self._scaled(load.ready, min(2.0, load.latency_s / scaling.latency_s)))
        return needed

    def _scaled(self, ready: int, ratio: float) -> int:
        return ready if abs(ratio - 1) <= TOLERANCE else math.ceil(ready * ratio - 1e-9)
