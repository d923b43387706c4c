"""Which of a group of near-duplicates stays: one pass down the ranks, with a verified partner for whoever leaves. Pure.

In a component the texts go by rank (stored ones, then the longest, then the lowest id). A text leaves if it is as
similar as asked to one that stays, and names the most similar of those; else it stays. So a chain of neighbours never
takes a text along, and the result depends on nothing but the texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int32]

# A text is held against this many of its component that stay; beyond that, `untried` counts.
KEPT_TRIED = 1000


class Chosen(NamedTuple):
    """What `choose` decided."""

    kept_for: Indices
    """[texts] The text that is kept in place of each one that leaves; -1 for those that stay."""
    similarity: npt.NDArray[np.float32]
    """[texts] How alike the two are."""
    clusters: int
    """Components with at least two texts."""
    untried: int
    """Pairs that were left out because a component keeps more texts than `KEPT_TRIED`."""


def components_of(labels: Indices, rank: Indices) -> Iterator[Indices]:
    """Yield the members of each component with at least two, by rank; the components by their lowest member."""
    counts = np.bincount(labels, minlength=1)
    members = np.flatnonzero(counts[labels] > 1).astype(np.int32)
    order = members[np.lexsort((rank[members], labels[members]))]
    borders = np.flatnonzero(labels[order][1:] != labels[order][:-1]) + 1
    yield from (part for part in np.split(order, borders) if len(part))


def choose(
    labels: Indices,
    rank: Indices,
    similarity: Callable[[int, int], float],
    threshold: float,
    *,
    stored: int = 0,
) -> Chosen:
    """Decide for each text of each component whether it stays. The first `stored` texts always do."""
    kept_for = np.full(len(labels), -1, dtype=np.int32)
    found = np.zeros(len(labels), dtype=np.float32)
    clusters = untried = 0
    for group in components_of(labels, rank):
        clusters += 1
        kept: list[int] = []
        for text in group.tolist():
            if text < stored:
                kept.append(text)
                continue
            best, partner = 0.0, -1
            for other in kept[:KEPT_TRIED]:
                alike = similarity(text, other)
                if alike > best:
                    best, partner = alike, other
            if best >= threshold:
                kept_for[text], found[text] = partner, best
            else:
                untried += max(len(kept) - KEPT_TRIED, 0)
                kept.append(text)
    return Chosen(kept_for, found, clusters, untried)
