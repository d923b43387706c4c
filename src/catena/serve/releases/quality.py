"""Is an answer one? Empty ones, loops, and text unlike that of the stable model, in any language. Pure.

What usual text looks like is learnt from the stable model's own answers: how likely each character is after the one
before it. An answer is odd where it is less likely than nearly all of the stable ones were, when they came.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_left, insort
from collections import deque

import numpy as np
from numpy.typing import NDArray

SIZE = 1 << 16
LONGEST = 2000
FEWEST = 50
"""Stable answers before anything is called odd."""
REMEMBERED = 500
SHARE = 0.02
"""Of stable answers that are odd by this definition."""
MARGIN = 1.25
"""In nats for a character: this much below that, so that only what is much worse counts. With 0.5 a healthy candidate
that writes of other things in other words was called odd in 2 to 8 % of its answers, and went back."""
SHORT = 12


def is_empty(text: str) -> bool:
    """Tell whether an answer says nothing."""
    return not text.strip()


def is_loop(text: str) -> bool:
    """Tell whether an answer says the same again and again: it packs to less than a tenth."""
    data = text.encode("utf-8", "replace")
    return len(data) >= 400 and len(zlib.compress(data, 1)) < len(data) / 10


class Plausibility:
    """How usual a text is, by pairs of characters."""

    def __init__(self) -> None:
        self._pairs = np.zeros(SIZE, dtype=np.float32)
        self._firsts = np.zeros(SIZE, dtype=np.float32)
        self.learnt = 0
        """Stable answers that were long enough to learn from."""
        self._order: deque[float] = deque()
        self._scores: list[float] = []

    def score(self, text: str) -> float:
        """Return the mean log-probability of a character, as far as the stable answers tell."""
        pairs, firsts = _names(text)
        if not len(pairs):
            return 0.0
        likely = (self._pairs[pairs] + 0.002) / (self._firsts[firsts] + 1.0)
        return float(np.log(likely).mean())

    def odd(self, text: str) -> bool | None:
        """Tell whether a text is odd; None where it is too short to say, or too little is known."""
        if len(self._scores) < FEWEST or len(text) < SHORT:
            return None
        return self.score(text) < self._scores[int(SHARE * len(self._scores))] - MARGIN

    def learn(self, text: str) -> None:
        """Take a stable answer; it is scored first, by what was known before it."""
        pairs, firsts = _names(text)
        if len(text) < SHORT:
            return
        if self.learnt >= FEWEST:  # by less than that every text looks unusual
            score = self.score(text)
            insort(self._scores, score)
            self._order.append(score)
            if len(self._order) > REMEMBERED:
                del self._scores[bisect_left(self._scores, self._order.popleft())]
        self.learnt += 1
        np.add.at(self._pairs, pairs, 1.0)
        np.add.at(self._firsts, firsts, 1.0)


def _names(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    points = np.frombuffer(text[:LONGEST].encode("utf-32-le", "replace"), dtype=np.uint32).astype(np.uint64)
    if len(points) < 2:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    firsts = points[:-1] * np.uint64(2654435761) % np.uint64(SIZE)
    pairs = (points[:-1] * np.uint64(1000003) + points[1:] * np.uint64(2654435761)) % np.uint64(SIZE)
    return pairs.astype(np.int64), firsts.astype(np.int64)


def threshold(times: list[float], share: float = 0.9) -> float:
    """Return the time that so many stay below."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)))] if ordered else math.inf
