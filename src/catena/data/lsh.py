"""Banding at scale: which texts are linked by verified near-duplicate pairs, one band at a time. Pure.

    for each band:  keys [members] -> sorted -> buckets of equal keys -> pairs -> similar? -> components join

Memory is some 60 bytes a text whatever the number of bands, and time is linear: a pair whose texts are in one component
already is not tried again, in this band or a later one, and a pair that was found not to be alike is remembered.

A bucket is first tried as a star: its first text with every other. That settles a bucket of copies of one text,
however large, with one pair a text. Whatever the star leaves apart is tried pair by pair, at most `BUDGET` pairs of a
bucket and band; how many pairs that left out is counted in `untried`, so nothing is lost silently. (Such a pair meets
again in other bands, in other company.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from catena.data.shingles import Hashes

Indices = npt.NDArray[np.int32]
Pairs = npt.NDArray[np.int64]
Similar = Callable[[Pairs], npt.NDArray[np.bool_]]
"""Tells for pairs [pairs, 2], the lower index first, which of them are near-duplicates."""

BUDGET = 20_000
# Pairs that are given to `similar` at once, and pairs found not to be alike that are remembered (8 bytes each).
AT_ONCE = 1 << 18
REMEMBERED = 1 << 22


class Linked(NamedTuple):
    """What `link` found."""

    labels: Indices
    """[texts] The lowest index of the component that each text is in; its own if it is alone."""
    tried: int
    """Pairs that were verified."""
    untried: int
    """Pairs of a bucket that were left out for their number, summed over the bands."""


class Bands:
    """The links among `count` texts, band after band; `link` does all of them."""

    def __init__(self, count: int, similar: Similar, *, stored: int = 0) -> None:
        """`similar` verifies; pairs among the first `stored` texts are of no interest and are not tried."""
        self.count, self.stored = count, stored
        self.labels = np.arange(count, dtype=np.int32)
        self.tried = self.untried = 0
        self._similar = similar
        self._refused = np.empty(0, dtype=np.int64)

    def add(self, keys: Hashes, members: Indices) -> None:
        """Link the texts that agree in one band: `keys` [members] belong to the texts `members`, ascending."""
        texts, starts = buckets(keys, members, self.count)
        if not len(starts):
            return
        sizes = np.diff(np.append(starts, len(texts)))
        leaders = np.repeat(texts[starts], sizes)
        self._try(np.stack((leaders, texts), axis=1)[self.labels[leaders] != self.labels[texts]])
        apart = np.add.reduceat(self.labels[leaders] != self.labels[texts], starts) > 0
        self._rest(texts, starts[apart], sizes[apart])

    def _rest(self, texts: Indices, starts: Pairs, sizes: Pairs) -> None:
        waiting: list[Pairs] = []
        held = 0
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            pairs, left = across(texts[start : start + size], self.labels, self.stored)
            self.untried += left
            waiting.append(pairs)
            held += len(pairs)
            if held >= AT_ONCE:
                self._try(np.concatenate(waiting))
                waiting, held = [], 0
        if waiting:
            self._try(np.concatenate(waiting))

    def _try(self, pairs: Pairs | Indices) -> None:
        """Verify pairs that were not refused before, and join the components of those that are alike."""
        codes = pairs[:, 0].astype(np.int64) * self.count + pairs[:, 1]
        codes = np.unique(codes[pairs[:, 1] >= self.stored])
        if len(self._refused):
            place = np.minimum(np.searchsorted(self._refused, codes), len(self._refused) - 1)
            codes = codes[self._refused[place] != codes]
        for start in range(0, len(codes), AT_ONCE):
            part = codes[start : start + AT_ONCE]
            now = np.stack((part // self.count, part % self.count), axis=1)
            good = self._similar(now)
            self.tried += len(now)
            self.join(now[good])
            if len(self._refused) < REMEMBERED:
                self._refused = np.union1d(self._refused, part[~good])

    def join(self, pairs: Pairs) -> None:
        """Join the components of pairs [pairs, 2] that are known to be alike."""
        if not len(pairs):
            return
        ends = self.labels[pairs]
        nodes, places = np.unique(ends, return_inverse=True)
        places = places.reshape(-1, 2)
        graph = coo_array((np.ones(len(places), np.int8), (places[:, 0], places[:, 1])), shape=(len(nodes),) * 2)
        _, groups = connected_components(graph, directed=False)
        lowest = np.full(int(groups.max()) + 1, self.count, dtype=np.int32)
        np.minimum.at(lowest, groups, nodes)
        renamed = np.arange(self.count, dtype=np.int32)
        renamed[nodes] = lowest[groups]
        self.labels = renamed[self.labels]


def link(count: int, bands: Iterable[tuple[Hashes, Indices]], similar: Similar, *, stored: int = 0) -> Linked:
    """Return the components of `count` texts under verified similarity; `bands` yields (keys, members) of each band."""
    links = Bands(count, similar, stored=stored)
    for keys, members in bands:
        links.add(keys, members)
    return Linked(links.labels, links.tried, links.untried)


def buckets(keys: Hashes, members: Indices, count: int) -> tuple[Indices, Pairs]:
    """Return the texts that share a key with another, bucket by bucket and ascending, and where each bucket begins.

    Key and text are sorted as one number, which takes a third of the memory and time of an argsort: the low bits of the
    key give way to the text's index. Of ten million texts 40 bits of the key are left, and 45 pairs meet by chance.
    """
    bits = np.uint64(max(count - 1, 1).bit_length())
    packed = (keys >> bits << bits) | members.astype(np.uint64)
    packed.sort()
    same = packed[1:] >> bits == packed[:-1] >> bits
    shared = np.append(same, False) | np.append(False, same)[: len(packed)]
    first = shared & ~np.append(False, same)[: len(packed)]
    texts = (packed[shared] & np.uint64((1 << int(bits)) - 1)).astype(np.int32)
    return texts, np.flatnonzero(first[shared])


def across(members: Indices, labels: Indices, stored: int = 0) -> tuple[Pairs, int]:
    """Return the pairs of a bucket whose texts are in different components, at most `BUDGET`, and how many are left.

    The pairs of the first member are not among them: the star has tried those.
    """
    own = labels[members]
    inner = members >= stored
    parts: list[Pairs] = []
    held = 0
    for place in range(1, len(members) - 1):
        others = members[place + 1 :][(own[place + 1 :] != own[place]) & inner[place + 1 :]]
        if len(others):
            parts.append(np.stack((np.full(len(others), members[place]), others), axis=1).astype(np.int64))
            held += len(others)
        if held >= BUDGET:
            break
    pairs = np.concatenate(parts)[:BUDGET] if parts else np.empty((0, 2), dtype=np.int64)
    if held < BUDGET:
        return pairs, 0
    return pairs, _pairs_apart(own[1:], inner[1:]) - len(pairs)


def _pairs_apart(labels: Indices, inner: npt.NDArray[np.bool_]) -> int:
    """Count the pairs with different labels of which at least one text is `inner`."""

    def apart(chosen: Indices) -> int:
        _, counts = np.unique(chosen, return_counts=True)
        return (len(chosen) ** 2 - int((counts.astype(np.int64) ** 2).sum())) // 2

    return apart(labels) - apart(labels[~inner])
