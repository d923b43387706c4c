"""One metric over the steps of a training, as arrays that grow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Course:
    """One metric over the steps of a training. Only grows; reading it costs nothing."""

    def __init__(self) -> None:
        self._steps = np.empty(256, dtype=np.int64)
        self._values = np.empty(256, dtype=np.float64)
        self._size = 0
        self._rising = True
        self.broken: list[int] = []
        """Steps at which the value was no finite number."""

    def add(self, steps: np.ndarray, values: np.ndarray) -> None:
        """Append points. A step that was there before counts the last time."""
        finite = np.isfinite(values)
        if not finite.all():
            self.broken += steps[~finite].tolist()
            steps, values = steps[finite], values[finite]
        if not len(steps):
            return
        before = self._steps[self._size - 1] if self._size else steps[0] - 1
        self._rising = self._rising and bool(steps[0] > before) and bool((np.diff(steps) > 0).all())
        end = self._size + len(steps)
        if end > len(self._steps):
            self._steps = _grown(self._steps, self._size, end)
            self._values = _grown(self._values, self._size, end)
        self._steps[self._size : end] = steps
        self._values[self._size : end] = values
        self._size = end

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Return steps, rising, and values: views, not to be written."""
        if not self._rising:
            steps, values = last_of_each(self._steps[: self._size], self._values[: self._size])
            self._steps, self._values, self._size, self._rising = steps, values, len(steps), True
        return self._steps[: self._size], self._values[: self._size]

    def copied(self) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Return copies of steps, values and broken steps."""
        steps, values = self.points()
        return steps.copy(), values.copy(), list(self.broken)

    @classmethod
    def of(cls, steps: np.ndarray, values: np.ndarray, broken: Sequence[int]) -> Course:
        """Return a course of points that rise."""
        made = cls()
        made.add(steps, values)
        made.broken = list(broken)
        return made

    def __len__(self) -> int:
        return self._size


def _grown(old: np.ndarray, size: int, least: int) -> np.ndarray:
    grown = np.empty(max(2 * len(old), least), dtype=old.dtype)
    grown[:size] = old[:size]
    return grown


def last_of_each(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points by rising step; of a step that stands there twice, the last."""
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    last = np.append(np.diff(steps) > 0, True) if len(steps) else np.zeros(0, dtype=bool)
    return steps[last], values[last]
