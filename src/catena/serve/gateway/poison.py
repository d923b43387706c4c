"""Requests that end replicas. Pure, with the time as an argument.

Whoever was running when a replica died is a suspect. A suspect is tried once more, alone on a replica; a good answer
clears it. If that replica dies as well, it is convicted: nobody gets it again for a while. Where it could not be alone
(nobody waits for ever) it stays a suspect, and is not tried a third time at once.

A death from outside (`endings.py`) says nothing about who was running, so it is excused. But only `EXCUSES` times in a
row: something outside may end replicas because of what a request does to them.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

MOST = 10_000
EXCUSES = 2


def fingerprint(model: str, body: bytes) -> bytes:
    """Return what makes two requests the same."""
    return hashlib.blake2b(body, key=model.encode()[:64], digest_size=16).digest()


class Poison:
    """Who is suspected, and who is convicted."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._strikes: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._excused: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self.convictions = 0

    def strikes(self, mark: bytes, now: float) -> int:
        """Return how many replicas have died of a request, as far as is known."""
        return _count(self._strikes, mark, now)

    def suspect(self, mark: bytes, now: float) -> bool:
        """Tell whether a request should be alone."""
        return self.strikes(mark, now) == 1

    def convicted(self, mark: bytes, now: float) -> bool:
        """Tell whether nobody should get a request."""
        return self.strikes(mark, now) >= 2

    def died(self, marks: Iterable[bytes], now: float, *, excused: bool = False) -> None:
        """Note what a replica was doing when it died; `excused` where somebody ended it from outside."""
        running = set(marks)
        if excused:
            running = {mark for mark in running if not self._excuse(mark, now)}
        for mark in running:
            before = self.strikes(mark, now)
            count = before + 1 if before == 0 or len(running) == 1 else before
            self.convictions += count == 2 and before == 1
            self._note(self._strikes, mark, count, now)

    def answered(self, mark: bytes) -> None:
        """Note a good answer: it was not this one."""
        for kept in (self._strikes, self._excused):
            if kept:
                kept.pop(mark, None)

    def _excuse(self, mark: bytes, now: float) -> bool:
        """Tell whether a death from outside is no reason to suspect a request."""
        count = _count(self._excused, mark, now)
        if count < EXCUSES:
            self._note(self._excused, mark, count + 1, now)
        return count < EXCUSES

    def _note(self, kept: OrderedDict[bytes, tuple[int, float]], mark: bytes, count: int, now: float) -> None:
        kept[mark] = (count, now + self._seconds)
        kept.move_to_end(mark)
        while len(kept) > MOST:
            kept.popitem(last=False)


def _count(kept: OrderedDict[bytes, tuple[int, float]], mark: bytes, now: float) -> int:
    count, until = kept.get(mark, (0, 0.0)) if kept else (0, 0.0)
    return count if until > now else 0
