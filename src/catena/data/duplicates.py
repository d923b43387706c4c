"""Which of signed texts leave, and for whom: equal texts first, then near-duplicates in verified components. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from catena.data.clusters import choose
from catena.data.lsh import link
from catena.data.shingles import Hashes
from catena.data.signing import Signed

Indices = npt.NDArray[np.int32]


class Duplicates(NamedTuple):
    """What `find` found. A text that leaves has a kept one that is as similar as asked."""

    kept_for: Indices
    """[texts] The text that is kept in place of each one that leaves; -1 for those that stay."""
    similarity: npt.NDArray[np.float32]
    """[texts] How alike the two are."""
    equal: npt.NDArray[np.bool_]
    """[texts] Whether the two are equal, but for case, width and white space."""
    candidates: int
    """Pairs that were verified."""
    clusters: int
    """Groups of connected near-duplicates with at least two members."""
    untried: int
    """Pairs that were left out because there were too many in one place; see `lsh` and `clusters`."""

    def profile(self) -> dict[str, int]:
        """Return the numbers that a dataset's profile keeps."""
        equal = int(self.equal.sum())
        return {
            "candidates": self.candidates,
            "clusters": self.clusters,
            "equal": equal,
            "near": int((self.kept_for >= 0).sum()) - equal,
            "untried": self.untried,
        }


def ranks(lengths: npt.NDArray[np.int64], ids: Sequence[str] | pa.ChunkedArray, stored: int = 0) -> Indices:
    """Return the place of each text in the order of who stays: stored ones, then the longest, then the lowest id.

    `ids` are those of the texts after the stored ones.
    """
    count = len(lengths) - stored
    columns = {"length": pa.array(lengths[stored:]), "id": ids, "place": pa.array(np.arange(count))}
    keys = [("length", "descending"), ("id", "ascending"), ("place", "ascending")]
    order = pc.sort_indices(pa.table(columns), sort_keys=keys).to_numpy()
    rank = np.arange(len(lengths), dtype=np.int32)
    rank[order.astype(np.int64) + stored] = np.arange(stored, len(lengths), dtype=np.int32)
    return rank


def equal_texts(signed: Signed, rank: Indices, stored: int = 0) -> Indices:
    """Return for each text the equal one that is kept in its place, or -1. Empty texts are not equal to each other."""
    facts = signed.facts
    kept_for = np.full(len(signed), -1, dtype=np.int32)
    places = np.flatnonzero(facts["words"])
    if not len(places):
        return kept_for
    order = places[np.lexsort((rank[places], facts["key_low"][places], facts["key_high"][places]))]
    high, low = facts["key_high"][order], facts["key_low"][order]
    begins = np.append(True, (high[1:] != high[:-1]) | (low[1:] != low[:-1]))
    first = order[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    leave = ~begins & (order >= stored)
    kept_for[order[leave]] = first[leave]
    return kept_for


def find(
    signed: Signed,
    rank: Indices,
    bands: int,
    threshold: float,
    *,
    stored: int = 0,
    watch: Callable[[Iterator[int]], Iterator[int]] = iter,
) -> Duplicates:
    """Find the duplicates among signed texts, of which the first `stored` always stay; 0 bands for equal ones only.

    `watch` is given the numbers of the bands, to show how far it is.
    """
    kept_for = equal_texts(signed, rank, stored)
    equal = kept_for >= 0
    similarity = equal.astype(np.float32)
    if not bands:
        return Duplicates(kept_for, similarity, equal, 0, 0, 0)
    members = np.flatnonzero(~equal & (signed.facts["shingles"] > 0)).astype(np.int32)

    def each_band() -> Iterator[tuple[Hashes, Indices]]:
        for number in watch(iter(range(bands))):
            yield signed.band(number)[members], members

    linked = link(len(signed), each_band(), lambda pairs: signed.similar(pairs, threshold), stored=stored)
    chosen = choose(
        linked.labels, rank, lambda first, second: signed.similarity(first, second, threshold), threshold, stored=stored
    )
    near = chosen.kept_for >= 0
    kept_for[near], similarity[near] = chosen.kept_for[near], chosen.similarity[near]
    # Where the kept one of equal texts left as a near-duplicate, the others have its partner: their shingles are equal.
    moved = np.flatnonzero(equal)
    moved = moved[near[kept_for[moved]]]
    similarity[moved], equal[moved] = similarity[kept_for[moved]], False
    kept_for[moved] = kept_for[kept_for[moved]]
    return Duplicates(kept_for, similarity, equal, linked.tried, chosen.clusters, linked.untried + chosen.untried)
