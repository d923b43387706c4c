"""Near-duplicates among texts: MinHash signatures, banding, exact verification. Pure; dedup and split stand on it.

    texts -> word shingles -> signatures [texts, bands * rows] -> candidate pairs -> pairs with their exact Jaccard

A pair with Jaccard J becomes a candidate with probability 1 - (1 - J^rows)^bands (Broder 1997; Leskovec et al.,
"Mining of Massive Datasets", ch. 3). Every candidate is verified, so banding decides recall and never precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import daft
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from catena.data.words import folded_words

Signatures = npt.NDArray[np.uint32]
Pairs = npt.NDArray[np.int64]
Shingles = npt.NDArray[np.uint64]

# In a bucket of k texts all k(k-1)/2 pairs are candidates; beyond this many, each is paired with this many neighbours.
BUCKET = 200
MULTIPLIER = 0x9E3779B97F4A7C15


def signatures(words: Sequence[Sequence[str]], hashes: int, ngram: int) -> Signatures:
    """Return the MinHash signatures [texts, hashes] of the shingles of `ngram` words, by Daft (xxhash3-64).

    Daft cuts at single spaces, so the words are joined by one: that is what makes text without spaces work. A text
    with fewer words than `ngram` is one shingle.
    """
    frame = daft.from_pydict({"text": [" ".join(text) for text in words]})
    expression = daft.col("text").minhash(num_hashes=hashes, ngram_size=ngram, hash_function="xxhash3_64")
    column = frame.select(expression.alias("signature")).to_arrow().column("signature").combine_chunks()
    flat = column.values if hasattr(column, "values") else column.flatten()
    return np.asarray(flat, dtype=np.uint32).reshape(len(words), hashes)


def shingles(words: Sequence[str], ngram: int) -> Shingles:
    """Return the sorted distinct shingles of `ngram` words, each as a 64-bit hash; a shorter text is one shingle.

    The hashes are Python's own and change from process to process: compare them, never store them.
    """
    size = min(ngram, len(words))
    if size == 0:
        return np.empty(0, dtype=np.uint64)
    codes = np.fromiter((hash(word) for word in words), dtype=np.int64, count=len(words)).view(np.uint64)
    rolled = np.full(len(words) - size + 1, size, dtype=np.uint64)
    for start in range(size):
        rolled = rolled * np.uint64(MULTIPLIER) + codes[start : len(codes) - size + 1 + start]
    return np.unique(rolled)


def jaccard(first: Shingles, second: Shingles) -> float:
    """Return the share of shingles that two texts have in common; 0 where either has none."""
    if not len(first) or not len(second):
        return 0.0
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)


def candidates(found: Signatures, bands: int, rows: int) -> Pairs:
    """Return the pairs [pairs, 2] of texts that agree in all rows of some band, sorted, the lower index first.

    One band is held at a time, as a sorted array.
    """
    texts = len(found)
    weights = np.array([pow(MULTIPLIER, power + 1, 1 << 64) for power in range(rows)], dtype=np.uint64)
    codes: list[Pairs] = [np.empty(0, dtype=np.int64)]
    for band in range(bands):
        # Two bands with one key by chance cost a verification, no more.
        keys = found[:, band * rows : (band + 1) * rows].astype(np.uint64) @ weights
        order = np.argsort(keys, kind="stable")
        ends = np.flatnonzero(np.append(keys[order][1:] != keys[order][:-1], True)) + 1
        starts = np.concatenate(([0], ends[:-1]))
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            codes.append(_bucket_pairs(order[start:end], texts))
    merged = np.unique(np.concatenate(codes))
    return np.stack((merged // max(texts, 1), merged % max(texts, 1)), axis=1)


def _bucket_pairs(members: npt.NDArray[np.intp], texts: int) -> Pairs:
    """Return the pairs of one bucket as first * texts + second; the members are in ascending order."""
    reach = min(len(members) - 1, BUCKET)
    parts = [members[:-step] * texts + members[step:] for step in range(1, reach + 1)]
    return np.concatenate(parts).astype(np.int64)


class Verified:
    """Texts, their near-duplicate pairs, and exact similarity on demand.

    `texts` are (position in the caller's list, words); a text without a word has no place here: all empty texts would
    be alike.
    """

    def __init__(self, words: Mapping[int, Sequence[str]], ngram: int) -> None:
        self._words, self._ngram = words, ngram
        self._shingles: dict[int, Shingles] = {}

    def similarity(self, first: int, second: int) -> float:
        """Return the exact Jaccard similarity of two texts' shingles."""
        return jaccard(self._of(first), self._of(second))

    def _of(self, text: int) -> Shingles:
        found = self._shingles.get(text)
        if found is None:
            found = self._shingles[text] = shingles(self._words[text], self._ngram)
        return found

    def pairs(self, bands: int, rows: int, threshold: float) -> tuple[list[tuple[int, int]], int]:
        """Return the pairs that are at least `threshold` alike, and how many candidates were verified for that."""
        places = list(self._words)
        if len(places) < 2:
            return [], 0
        found = candidates(signatures(list(self._words.values()), bands * rows, self._ngram), bands, rows)
        pairs = [(places[first], places[second]) for first, second in found]
        return [pair for pair in pairs if self.similarity(*pair) >= threshold], len(pairs)


def read_words(texts: Sequence[str]) -> dict[int, list[str]]:
    """Return the folded words of each text that has any, by position."""
    found = ((place, folded_words(text)) for place, text in enumerate(texts))
    return {place: words for place, words in found if words}


def components(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the groups of connected members among `count`, single ones included, each ascending, ordered by first."""
    if not count:
        return []
    edges: Any = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), dtype=np.int8), (edges[:, 0], edges[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    groups: dict[int, list[int]] = {}
    for member, label in enumerate(labels.tolist()):
        groups.setdefault(label, []).append(member)
    return list(groups.values())
