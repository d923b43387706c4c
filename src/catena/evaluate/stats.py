"""Statistics of scores: intervals and paired comparisons. Pure functions of numbers; the same seed, the same interval.

proportion (right or wrong)     wilson
mean of scores between 0 and 1  bootstrap_mean
ratio of sums (perplexity)      bootstrap_ratio    documents are drawn, tokens inside one hang together
sums (BLEU, F1, anything)       bootstrap_sums     questions, or clusters of them, are drawn
two models, the same questions  mcnemar, paired
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


# -- scores that sums decide (see `measures`) ------------------------------------------------------------------------

Finish = Callable[[Any], Any]


def together(evidence: Any, clusters: Sequence[str] | None) -> Any:
    """Add up the rows of each cluster: what hangs together is drawn together."""
    rows = np.asarray(evidence, dtype=np.float64)
    if clusters is None:
        return rows
    _, places = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    sums = np.zeros((int(places.max()) + 1, rows.shape[1]))
    np.add.at(sums, places, rows)
    return sums


def bootstrap_sums(
    evidence: Any, finish: Finish, *, seed: int, clusters: Sequence[str] | None = None, resamples: int = 1000
) -> Interval:
    """Return the score of evidence `[questions, k]` with its 95 % percentile bootstrap interval."""
    rows = together(evidence, clusters)
    value = float(finish(rows.sum(axis=0)[None])[0])
    drawn = np.concatenate([finish(counts @ rows) for counts in _counts(len(rows), resamples, seed)])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _counts(count: int, resamples: int, seed: int) -> Iterator[Any]:
    """Yield blocks `[resamples, count]`: how often each row is drawn."""
    random = np.random.default_rng(seed % 2**63)
    block = max(DRAWN_AT_ONCE // count, 1)
    for start in range(0, resamples, block):
        yield random.multinomial(count, np.full(count, 1 / count), size=min(block, resamples - start)).astype(float)


class Difference(NamedTuple):
    """How much the second of two models is above the first, on the same questions."""

    value: float
    low: float
    high: float
    p_value: float
    """How likely a difference at least as large is between two equally good models."""


def paired(
    first: Any,
    second: Any,
    finish: Finish,
    *,
    seed: int,
    clusters: Sequence[str] | None = None,
    resamples: int = 1000,
) -> Difference:
    """Compare two models by evidence `[questions, k]` about the same questions in the same order.

    The interval is a bootstrap of the pairs; the p-value comes from swapping the two models' answers at random
    (E. W. Noreen, 1989), exact (McNemar) where answers are right or wrong and stand by themselves.
    """
    one, other = together(first, clusters), together(second, clusters)
    found = float(finish(other.sum(axis=0)[None])[0] - finish(one.sum(axis=0)[None])[0])
    drawn = np.concatenate(
        [finish(counts @ other) - finish(counts @ one) for counts in _counts(len(one), resamples, seed)]
    )
    low, high = np.quantile(drawn, [0.025, 0.975])
    if clusters is None and _right_or_wrong(one) and _right_or_wrong(other):
        gained = int(((other[:, 0] == 1) & (one[:, 0] == 0)).sum())
        lost = int(((one[:, 0] == 1) & (other[:, 0] == 0)).sum())
        return Difference(found, float(low), float(high), mcnemar(lost, gained))
    return Difference(found, float(low), float(high), _swapped(one, other, finish, abs(found), seed, resamples))


def _right_or_wrong(rows: Any) -> bool:
    return bool(rows.shape[1] == 2 and (rows[:, 1] == 1).all() and np.isin(rows[:, 0], (0.0, 1.0)).all())


def _swapped(one: Any, other: Any, finish: Finish, least: float, seed: int, resamples: int) -> float:
    random = np.random.default_rng((seed + 1) % 2**63)
    as_far, change = 0, other - one
    block = max(DRAWN_AT_ONCE // len(one), 1)
    for start in range(0, resamples, block):
        swaps = random.integers(0, 2, size=(min(block, resamples - start), len(one))).astype(float)
        moved = swaps @ change
        differences = finish(other.sum(axis=0) - moved) - finish(one.sum(axis=0) + moved)
        as_far += int((np.abs(differences) >= least - 1e-12).sum())
    return (1 + as_far) / (1 + resamples)
