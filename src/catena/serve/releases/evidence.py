"""Is something worse with the candidate? Tests that may be looked at after every request. Pure.

`Evidence` is an e-process for two streams of yes and no (Turner, Ly & Gruenwald, "Generic E-variables for exact
sequential k-sample tests", 2024): as long as the candidate's share of yes is not above the stable one's, the chance
that it ever reaches 1/alpha is at most alpha, however often it is looked at. `Cusum` is Page's test of one stream
against a known rate, for the time when there is no stable stream any more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

ALTERNATIVES = ((2.0, 0.01), (4.0, 0.05), (10.0, 0.2), (30.0, 0.6), (100.0, 0.98))
"""How much worse the candidate might be: so many times the stable rate, and at least so much above it."""
PRIOR = (0.5, 50.0)
"""What is believed of the stable rate before there is anything: half a yes in fifty."""
MOST = 700.0


@dataclass(slots=True)
class Evidence:
    """That the candidate's rate is higher."""

    tolerance: float = 1.0
    """The candidate's rate may be so many times the stable one's."""
    yes: dict[str, int] = field(default_factory=lambda: {"stable": 0, "candidate": 0})
    seen: dict[str, int] = field(default_factory=lambda: {"stable": 0, "candidate": 0})
    _logs: list[float] = field(default_factory=lambda: [0.0] * (len(ALTERNATIVES) + 1))
    _block: list[bool] = field(default_factory=list)
    _owed: float = 0.0

    def add(self, arm: str, event: bool) -> None:
        """Take one observation."""
        if arm == "stable":
            self._block.append(event)
        else:
            self._close(self._thinned(event))
        self.seen[arm] += 1
        self.yes[arm] += event

    @property
    def log_value(self) -> float:
        """The logarithm of the evidence: the mean over the alternatives."""
        top = max(self._logs)
        return top + math.log(sum(math.exp(one - top) for one in self._logs) / len(self._logs))

    def reached(self, alpha: float) -> bool:
        """Tell whether it is enough at a level."""
        return self.log_value >= -math.log(alpha)

    def rate(self, arm: str) -> float:
        """Return the share of yes."""
        return self.yes[arm] / max(1, self.seen[arm])

    def _thinned(self, event: bool) -> bool:
        # Of the candidate's yeses, only so many count that a rate within the tolerance looks equal.
        if not event:
            return False
        self._owed += 1.0 / self.tolerance
        if self._owed >= 1.0 - 1e-9:
            self._owed -= 1.0
            return True
        return False

    def _close(self, event: bool) -> None:
        """Multiply in a block: what came from the stable stream since the last time, and one of the candidate."""
        stable = min(0.9, (self.yes["stable"] - sum(self._block) + PRIOR[0]) / (self._before() + PRIOR[1]))
        count, hits = len(self._block), sum(self._block)
        # The last one goes by what the candidate has shown so far.
        shown = max(stable, (self.yes["candidate"] / self.tolerance + 0.5) / (self.seen["candidate"] + 1))
        worse = [max(stable * times, stable + more) for times, more in ALTERNATIVES]
        for index, rate in enumerate((*worse, shown)):
            candidate = min(0.99, rate)
            mean = (candidate + count * stable) / (count + 1)
            log = _log(candidate, event) - _log(mean, event)
            log += hits * math.log(stable / mean) + (count - hits) * math.log((1 - stable) / (1 - mean))
            self._logs[index] = max(-MOST, min(MOST, self._logs[index] + log))
        self._block.clear()

    def _before(self) -> int:
        return self.seen["stable"] - len(self._block)


def _log(rate: float, event: bool) -> float:
    return math.log(rate if event else 1 - rate)


@dataclass(slots=True)
class Cusum:
    """That a rate is `times` what it was (and at least `more` above it). Signals when `value` passes `limit`."""

    usual: float
    times: float = 4.0
    more: float = 0.1
    limit: float = 12.0
    """Of the summed log-likelihood ratio; a false signal comes after about e^limit observations."""
    value: float = 0.0

    def add(self, event: bool) -> bool:
        """Take one observation; tells whether it signals."""
        usual = min(0.9, max(1e-3, self.usual))
        worse = min(0.99, max(usual * self.times, usual + self.more))
        self.value = max(0.0, self.value + _log(worse, event) - _log(usual, event))
        return self.value >= self.limit


def interval(yes: int, seen: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's interval for a share."""
    if seen == 0:
        return 0.0, 1.0
    share, square = yes / seen, z * z
    middle = (share + square / (2 * seen)) / (1 + square / seen)
    half = z / (1 + square / seen) * math.sqrt(share * (1 - share) / seen + square / (4 * seen * seen))
    return max(0.0, middle - half), min(1.0, middle + half)
