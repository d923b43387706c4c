"""Statistics of scores: intervals and paired comparisons. Pure functions of numbers; the same seed, the same interval.

proportion (right or wrong)     wilson
mean of scores between 0 and 1  bootstrap_mean
ratio of sums (perplexity)      bootstrap_ratio    documents are drawn, tokens inside one hang together
two models, the same questions  mcnemar
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import comb, sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
# Indices drawn at once: 4 million of 8 bytes, so that the memory does not grow with the number of samples.
DRAWN_AT_ONCE = 1 << 22


class Interval(NamedTuple):
    """A value between the ends of its confidence interval."""

    value: float
    low: float
    high: float


def wilson(right: int, total: int, confidence: float = 0.95) -> Interval:
    """Return a proportion with its Wilson score interval (E. B. Wilson, 1927).

    Unlike the normal one it never leaves [0, 1] and has a width where everything was right.
    """
    if not 0 <= right <= total or total == 0:
        raise ValueError(f"{right} of {total} is no proportion")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = right / total
    scale = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z / scale * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At 0 and at 1 one end is exact; rounding must not put it on the wrong side of the value.
    low = 0.0 if right == 0 else max(middle - half, 0.0)
    high = 1.0 if right == total else min(middle + half, 1.0)
    return Interval(share, low, high)


def bootstrap_mean(
    values: Sequence[float], *, seed: int, confidence: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """Return a mean with its percentile bootstrap interval."""
    ones = [1.0] * len(values)
    return bootstrap_ratio(values, ones, seed=seed, confidence=confidence, resamples=resamples)


def bootstrap_ratio(
    above: Sequence[float],
    below: Sequence[float],
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return sum(above) / sum(below) with its percentile bootstrap interval; whole pairs are drawn."""
    if len(above) != len(below) or not len(above):
        raise ValueError("a ratio needs as many numbers above as below, and at least one")
    top, bottom = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    drawn = np.concatenate(
        [top[rows].sum(axis=1) / bottom[rows].sum(axis=1) for rows in _draws(len(top), resamples, seed)]
    )
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high))


def _draws(count: int, resamples: int, seed: int) -> Iterator[Any]:
    """Yield blocks of indices `[resamples, count]` drawn with replacement."""
    random = np.random.default_rng(seed % 2**63)
    block = max(DRAWN_AT_ONCE // count, 1)
    for start in range(0, resamples, block):
        yield random.integers(0, count, size=(min(block, resamples - start), count))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value that two models differ (Q. McNemar, 1947).

    Takes how many questions only the first and only the second got right; the rest says nothing about a difference.
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    if total == 0:
        return 1.0
    tail = sum(comb(total, count) for count in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << total))


def mean_interval(values: Sequence[float], *, seed: int) -> Interval:
    """Return the mean of scores: with Wilson's interval where each is right or wrong, else with a bootstrap."""
    if all(value in (0.0, 1.0) for value in values):
        return wilson(int(sum(values)), len(values))
    return bootstrap_mean(values, seed=seed)


def mapped(interval: Interval, function: Callable[[float], float]) -> Interval:
    """Return the interval of an increasing function of the value, for example `exp` of a mean loss."""
    return Interval(function(interval.value), function(interval.low), function(interval.high))
