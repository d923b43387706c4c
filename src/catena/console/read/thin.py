"""What part of a curve is looked at, and its course behind the noise; `charts.thin` chooses the points to draw."""

from __future__ import annotations

import numpy as np

from catena.console.charts import Floats

STRETCHES = 160
"""Whose means are drawn as the course of a curve."""


def between(steps: np.ndarray, low: float | None, high: float | None) -> slice:
    """Return where the steps from `low` to `high` stand, and one more on each side so that the line runs on."""
    first = 0 if low is None else max(int(np.searchsorted(steps, low, side="left")) - 1, 0)
    last = len(steps) if high is None else min(int(np.searchsorted(steps, high, side="right")) + 1, len(steps))
    return slice(first, max(last, first))


def means(steps: np.ndarray, values: np.ndarray, stretches: int = STRETCHES) -> tuple[Floats, Floats]:
    """Return the mean of each stretch at its middle; nothing for a curve of few points, which needs none."""
    count = len(steps)
    if count < 2 * stretches:
        return np.zeros(0), np.zeros(0)
    starts = np.linspace(0, count, stretches + 1).astype(int)
    sizes = np.diff(starts)
    return np.add.reduceat(steps, starts[:-1]) / sizes, np.add.reduceat(values, starts[:-1]) / sizes
