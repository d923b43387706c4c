"""How far two sets of numbers or of categories are apart, and whether that can be chance. Pure functions.

    PSI    population stability index: sum of (p - q) ln(p / q) over bins; by custom 0.1 is worth a look, 0.25 a shift
    KS     the largest distance between two cumulative distributions

The custom's limits are for many rows. With few, PSI is large by chance alone: about (bins - 1)(1/n + 1/m) where nothing
has changed. So a finding also needs a p-value: the share of random divisions of all rows into two sets of these sizes
that are as far apart (a permutation test; exact but for the number of draws, whatever the distribution).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
FLOOR = 1e-4
"""Least share of a bin: an empty one would be infinitely far away."""
BINS = 10
MOST_CATEGORIES = 12
OTHER = "other"
DRAWS = 2000


def psi(reference: npt.ArrayLike, current: npt.ArrayLike) -> Floats:
    """Return the PSI of counts `[..., bins]`; both are broadcast."""
    p, q = (np.asarray(one, np.float64) for one in (reference, current))
    p = np.maximum(p / p.sum(-1, keepdims=True), FLOOR)
    q = np.maximum(q / q.sum(-1, keepdims=True), FLOOR)
    found: Floats = ((q - p) * np.log(q / p)).sum(-1)
    return found


def ks(reference: npt.ArrayLike, current: npt.ArrayLike) -> float:
    """Return the two-sample Kolmogorov-Smirnov statistic of values, 0 to 1."""
    first, second = np.sort(np.asarray(reference, np.float64)), np.sort(np.asarray(current, np.float64))
    everything = np.concatenate([first, second])
    below = np.searchsorted(first, everything, side="right") / len(first)
    under = np.searchsorted(second, everything, side="right") / len(second)
    return float(np.abs(below - under).max())


def permutation_p(reference: Counts, current: Counts, seed: int, draws: int = DRAWS) -> float:
    """Return how likely a PSI as large is where both sets are drawn from one; never 0."""
    generator = np.random.default_rng(seed)
    pooled, size = reference + current, int(current.sum())
    drawn = generator.multivariate_hypergeometric(pooled, size, size=draws)
    random = psi(pooled - drawn, drawn)
    return float((1 + int((random >= psi(reference, current) - 1e-12).sum())) / (draws + 1))


def edges_of(reference: npt.ArrayLike, bins: int = BINS) -> Floats:
    """Return the inner edges of bins with about equally many reference values; fewer where values repeat."""
    values = np.asarray(reference, np.float64)
    return np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))


def binned(values: npt.ArrayLike, edges: Floats) -> Counts:
    """Count values in the bins between edges: up to the first, above it up to the second, ..., above the last."""
    places = np.searchsorted(edges, np.asarray(values, np.float64), side="left")
    return np.bincount(places, minlength=len(edges) + 1).astype(np.int64)


def categories_of(reference: Sequence[str], current: Sequence[str]) -> list[str]:
    """Return the commonest categories of both; the rest is counted as `other`."""
    common = Counter([*reference, *current]).most_common()
    names = [name for name, _ in common[:MOST_CATEGORIES]]
    return names if len(common) <= MOST_CATEGORIES else [*names, OTHER]


def counted(values: Sequence[str], names: Sequence[str]) -> Counts:
    """Count values by category."""
    place = {name: number for number, name in enumerate(names)}
    other = place.get(OTHER, 0)
    found = np.zeros(len(names), np.int64)
    for value in values:
        found[place.get(value, other)] += 1
    return found


@dataclass(frozen=True, slots=True)
class Compared:
    """One feature in both sets."""

    labels: list[str]
    reference: list[int]
    """Rows in each bin or category."""
    current: list[int]
    psi: float
    p: float
    """Of the PSI."""
    ks: float | None = None
    """Of numbers."""
    difference: float | None = None
    """Of shares: the current less the reference's."""


def numbers(reference: Sequence[float], current: Sequence[float], seed: int) -> Compared:
    """Compare numbers in bins of the reference."""
    edges = edges_of(reference)
    first, second = binned(reference, edges), binned(current, edges)
    told = [f"{edge:.4g}" for edge in edges]
    labels = [f"≤ {told[0]}", *(f"{low}–{high}" for low, high in pairwise(told)), f"> {told[-1]}"]
    found = float(psi(first, second))
    p = permutation_p(first, second, seed)
    return Compared(labels, first.tolist(), second.tolist(), found, p, ks=ks(reference, current))


def categories(reference: Sequence[str], current: Sequence[str], seed: int) -> Compared:
    """Compare categories."""
    names = categories_of(reference, current)
    first, second = counted(reference, names), counted(current, names)
    return Compared(
        names, first.tolist(), second.tolist(), float(psi(first, second)), permutation_p(first, second, seed)
    )


def shares(reference: Sequence[bool], current: Sequence[bool], seed: int) -> Compared:
    """Compare how often something is so."""
    first = np.array([len(reference) - sum(reference), sum(reference)], np.int64)
    second = np.array([len(current) - sum(current), sum(current)], np.int64)
    found, p = float(psi(first, second)), permutation_p(first, second, seed)
    difference = second[1] / len(current) - first[1] / len(reference)
    return Compared(["no", "yes"], first.tolist(), second.tolist(), found, p, difference=float(difference))
