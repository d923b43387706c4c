"""Requests that end replicas. Pure, with the time as an argument.

Whoever was running when a replica died is a suspect. A suspect is tried once more, alone on a replica; a good answer
clears it. If that replica dies as well, it is convicted: nobody gets it again for a while. Where it could not be alone
(nobody waits for ever) it stays a suspect, and is not tried a third time at once.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

MOST = 10_000


def fingerprint(model: str, body: bytes) -> bytes:
    """Return what makes two requests the same."""
    return hashlib.blake2b(body, key=model.encode()[:64], digest_size=16).digest()


class Poison:
    """Who is suspected, and who is convicted."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._strikes: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self.convictions = 0

    def strikes(self, mark: bytes, now: float) -> int:
        """Return how many replicas have died of a request, as far as is known."""
        if not self._strikes:
            return 0
        count, until = self._strikes.get(mark, (0, 0.0))
        return count if until > now else 0

    def suspect(self, mark: bytes, now: float) -> bool:
        """Tell whether a request should be alone."""
        return self.strikes(mark, now) == 1

    def convicted(self, mark: bytes, now: float) -> bool:
        """Tell whether nobody should get a request."""
        return self.strikes(mark, now) >= 2

    def died(self, marks: Iterable[bytes], now: float) -> None:
        """Note what a replica was doing when it died."""
        running = set(marks)
        for mark in running:
            before = self.strikes(mark, now)
            count = before + 1 if before == 0 or len(running) == 1 else before
            self.convictions += count == 2 and before == 1
            self._strikes[mark] = (count, now + self._seconds)
            self._strikes.move_to_end(mark)
        while len(self._strikes) > MOST:
            self._strikes.popitem(last=False)

    def answered(self, mark: bytes) -> None:
        """Note a good answer: it was not this one."""
        if self._strikes:
            self._strikes.pop(mark, None)
