"""Counting in a sliding window, in memory: what was counted in this window, and of the last one the share that still
lies in the time looked back at. Pure, with the time as an argument."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

MOST = 100_000
"""Counts that are kept; the one that was longest not asked for is forgotten first."""


@dataclass(slots=True)
class Count:
    """What has been counted under one name."""

    window: int
    now: int = 0
    before: int = 0


class Windows:
    """Counts of many names, each in windows of its own length."""

    def __init__(self) -> None:
        self._counts: OrderedDict[tuple[object, ...], Count] = OrderedDict()

    def hit(self, name: tuple[object, ...], amount: int, seconds: float, cost: int, now: float) -> bool:
        """Count `cost` where it fits into `amount`."""
        count, share = self._count(name, seconds, now)
        if count.before * share + count.now + cost > amount:
            return False
        count.now += cost
        return True

    def settle(self, name: tuple[object, ...], seconds: float, change: int, since: float, now: float) -> None:
        """Count what was used beyond a reservation made at `since`, whether it fits or not; or give back the rest of
        it (a negative change), to the window that it was counted in."""
        count, _ = self._count(name, seconds, now)
        if change > 0 or int(since / seconds) == count.window:
            count.now = max(0, count.now + change)
        elif int(since / seconds) == count.window - 1:
            count.before = max(0, count.before + change)

    def reset_s(self, name: tuple[object, ...], seconds: float, now: float) -> float:
        """Return after how many seconds there is room for one more."""
        count, share = self._count(name, seconds, now)
        waits = [share * seconds % (seconds / count.before)] if count.before else []
        waits += [share * seconds] if count.now else []
        return min(waits, default=0.0)

    def _count(self, name: tuple[object, ...], seconds: float, now: float) -> tuple[Count, float]:
        """Return a count as of now, and which share of the window before is still looked back at."""
        place = now / seconds
        window = int(place)
        count = self._counts.get(name)
        if count is None:
            count = self._counts[name] = Count(window)
            if len(self._counts) > MOST:
                self._counts.popitem(last=False)
        else:
            self._counts.move_to_end(name)
        if count.window != window:
            count.before = count.now if count.window == window - 1 else 0
            count.window, count.now = window, 0
        return count, 1 - (place - window)
