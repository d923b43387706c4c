"""Near-duplicates among texts: MinHash signatures and banding, verified exactly. Pure; dedup and split stand on it.

    sets of shingles -> signatures [texts, bands * rows] -> keys [texts, bands] -> candidate pairs -> exact Jaccard

A pair with Jaccard J becomes a candidate with probability 1 - (1 - J^rows)^bands (Broder 1997; Leskovec et al.,
"Mining of Massive Datasets", ch. 3). Every candidate is verified, so banding decides recall and never precision.

Signatures are made by Fast Similarity Sketching (Dahlgaard, Knudsen, Thorup, FOCS 2017): each shingle is thrown into
one place of the signature, in rounds until all places are filled. That is one to two hashes for a shingle of a long
text instead of one for each place (256 by default), and each place still agrees with probability exactly J.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from catena.data.shingles import MULTIPLIER, Hashes, Offsets, Sets, mixed, shingle_sets

Pairs = npt.NDArray[np.int64]

# In a bucket of k texts all k(k-1)/2 pairs are candidates; beyond this many, each is paired with this many neighbours.
BUCKET = 200
# After so many throws of every shingle the places that are still empty are few, or the text is short: they are filled
# one by one.
ROUNDS = 8
# Texts that are sketched at once: their signatures stay in the processor's cache.
BATCH = 64
EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)


def signatures(sets: Sets, hashes: int) -> Hashes:
    """Return the signatures [texts, hashes] of sets of shingles. The row of an empty set says nothing."""
    found = np.full((len(sets), hashes), EMPTY, dtype=np.uint64)
    for start in range(0, len(sets), BATCH):
        end = min(start + BATCH, len(sets))
        values = sets.values[sets.offsets[start] : sets.offsets[end]]
        _sketch(values, sets.sizes[start:end], found[start:end])
    return found


def _sketch(values: Hashes, sizes: Offsets, found: Hashes) -> None:
    """Fill `found` [texts, hashes]; an earlier round's value stands, whatever a later one would be."""
    hashes = np.uint64(found.shape[1])
    flat = found.reshape(-1)
    thrown, text = values, np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes)
    for number in range(ROUNDS):
        throw = mixed(thrown ^ np.uint64((number + 1) * MULTIPLIER & 0xFFFFFFFFFFFFFFFF))
        place = ((throw >> np.uint64(32)) * hashes >> np.uint64(32)) + text * hashes
        best = np.full(len(flat), EMPTY, dtype=np.uint64)
        np.minimum.at(best, place.view(np.int64), throw)
        np.copyto(flat, best, where=flat == EMPTY)
        unfilled = (found == EMPTY).any(axis=1)
        going_on = unfilled[text.view(np.int64)]
        if not going_on.any():
            return
        thrown, text = thrown[going_on], text[going_on]
    _fill(values, sizes, found)


def _fill(values: Hashes, sizes: Offsets, found: Hashes) -> None:
    """Fill each place that is still empty with the least hash of all shingles under a hash function of its own."""
    starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
    for text in np.flatnonzero((found == EMPTY).any(axis=1) & (sizes > 0)).tolist():
        places = np.flatnonzero(found[text] == EMPTY)
        seeds = mixed((places + ROUNDS + 1).astype(np.uint64) * np.uint64(MULTIPLIER))
        own = values[starts[text] : starts[text + 1]]
        found[text, places] = mixed(own[None, :] ^ seeds[:, None]).min(axis=1)


def band_keys(found: Hashes, bands: int, rows: int) -> Hashes:
    """Return the keys [texts, bands] of signatures [texts, bands * rows]: equal where all rows of a band are."""
    weights = np.array([pow(MULTIPLIER, power + 1, 1 << 64) for power in range(rows)], dtype=np.uint64)
    # Two bands with one key by chance cost a verification, no more.
    return mixed((found.reshape(len(found), bands, rows) * weights).sum(axis=2, dtype=np.uint64))


def candidates(keys: Hashes) -> Pairs:
    """Return the pairs [pairs, 2] of texts with the same key [texts, bands] in some band, sorted, lower index first."""
    texts = len(keys)
    codes: list[Pairs] = [np.empty(0, dtype=np.int64)]
    for band in range(keys.shape[1]):
        column = keys[:, band]
        order = np.argsort(column, kind="stable")
        ends = np.flatnonzero(np.append(column[order][1:] != column[order][:-1], True)) + 1
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


def shingles(words: Sequence[str], ngram: int) -> Hashes:
    """Return the sorted distinct shingles of `ngram` words, each as a 64-bit hash; a shorter text is one shingle."""
    return shingle_sets([" ".join(words)], ngram).values
