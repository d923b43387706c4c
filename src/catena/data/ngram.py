"""An n-gram language model in arrays: what `data.perplexity` measures by when it is given a reference and no model.

Interpolated Kneser-Ney with one discount for each order (Kneser and Ney 1995; Chen and Goodman 1998, eq. 16-18). It was
chosen over Jelinek-Mercer because it needs no held-out text to set its weights, and because its lower orders ask after
how many things a token was seen, not how often: a page full of one phrase does not make that phrase's words likely.

    texts -> tokens -> 64-bit hash of every n-gram -> one sorted table for each order: hash, probability
                                                      one for each order's contexts: hash, weight of the order below

The smoothing is worked into the tables, so a token costs one look-up where its longest n-gram is known. Two n-grams
share a hash with probability 2^-64 for each pair.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from catena.data.words import CJK, folded

Unit = Literal["characters", "words"]
Hashes = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

TOKEN = re.compile(rf"[{CJK}]|[^\W{CJK}]+|[^\w\s]")
DIGIT = re.compile(r"\d")
START = 1
FIRST_CODE = 16
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Codes(NamedTuple):
    """Texts in tokens, one after the other, each after `order - 1` start tokens."""

    values: Hashes
    counts: npt.NDArray[np.int64]
    """Tokens of each text, start tokens not counted."""


class Encoder:
    """Turns texts into tokens: the same token has the same code in every process."""

    def __init__(self, unit: Unit, order: int) -> None:
        self.unit, self.order = unit, order
        self._known: dict[str, int] = {}

    def encode(self, texts: Iterable[str]) -> Codes:
        """Return the tokens of texts; case, width and the value of digits do not count."""
        pad = np.full(self.order - 1, START, dtype=np.uint64)
        parts, counts = [], []
        for text in texts:
            plain = DIGIT.sub("0", folded(text))
            found = self._characters(plain) if self.unit == "characters" else self._words(plain)
            parts += [pad, found]
            counts.append(len(found))
        values = np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)
        return Codes(values, np.array(counts, dtype=np.int64))

    def _characters(self, text: str) -> Hashes:
        units = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        return units.astype(np.uint64) + np.uint64(FIRST_CODE)

    def _words(self, text: str) -> Hashes:
        known = self._known
        codes = []
        for word in TOKEN.findall(text):
            code = known.get(word)
            if code is None:
                digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                code = known[word] = int.from_bytes(digest, "little") | FIRST_CODE
            codes.append(code)
        return np.array(codes, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Table:
    """Sorted hashes and a number for each."""

    keys: Hashes
    values: Floats

    def get(self, wanted: Hashes) -> tuple[npt.NDArray[np.bool_], Floats]:
        """Return which hashes are known, and the numbers of those."""
        if not len(self.keys) or not len(wanted):
            return np.zeros(len(wanted), dtype=np.bool_), np.empty(0)
        # Sorted needles walk through the table in order: four times as fast as jumping about in it.
        order = np.argsort(wanted)
        places = np.empty(len(wanted), dtype=np.int64)
        places[order] = np.searchsorted(self.keys, wanted[order])
        known = self.keys[np.minimum(places, len(self.keys) - 1)] == wanted
        return known, self.values[places[known]]


@dataclass(frozen=True, slots=True)
class NgramModel:
    """Probabilities of n-grams up to `order`, and the weight that each context leaves to the order below."""

    encoder: Encoder
    grams: tuple[Table, ...]
    """By order, from single tokens up."""
    contexts: tuple[Table, ...]
    """By order of the n-grams that they are contexts of."""
    unknown: float
    """Probability of a token that the reference does not have, before any context is asked."""

    def nats(self, texts: Sequence[str]) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Return each text's negative log-likelihood in nats, and the number of its tokens."""
        codes = self.encoder.encode(texts)
        probabilities = self._probabilities(codes)
        # Summed one after the other, each text for itself: the bits do not depend on the batch.
        owner = np.repeat(np.arange(len(codes.counts)), codes.counts)
        sums: Floats = np.bincount(owner, -np.log(probabilities), len(codes.counts)).astype(np.float64)
        return sums, codes.counts

    def _probabilities(self, codes: Codes) -> Floats:
        order = len(self.grams)
        hashes = hashes_of(codes.values, order)
        waiting = places_of(codes, order)
        result = np.ones(len(waiting))
        slots = np.arange(len(waiting))
        for size in range(order, 0, -1):
            known, values = self.grams[size - 1].get(hashes[size - 1][waiting])
            result[slots[known]] *= values
            waiting, slots = waiting[~known], slots[~known]
            if size == 1:
                result[slots] *= self.unknown
            elif len(waiting):
                known, values = self.contexts[size - 1].get(hashes[size - 2][waiting - 1])
                result[slots[known]] *= values
        return result


def hashes_of(codes: Hashes, order: int) -> list[Hashes]:
    """Return, for each size up to `order`, the hash of the n-gram that ends at each place."""
    mixed = codes * MULTIPLIER
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    found = [mixed]
    for _ in range(1, order):
        longer = mixed.copy()
        longer[1:] += found[-1][:-1] * MULTIPLIER
        longer ^= longer >> np.uint64(31)
        found.append(longer)
    return found


def places_of(codes: Codes, order: int) -> npt.NDArray[np.int64]:
    """Return the places of the tokens that are no start tokens."""
    pads = np.repeat(np.arange(1, len(codes.counts) + 1) * (order - 1), codes.counts)
    return np.arange(int(codes.counts.sum())) + pads


def train(
    texts: Iterable[str], *, unit: Unit = "characters", order: int = 5, max_tokens: int = 5_000_000
) -> NgramModel:
    """Count the n-grams of the first `max_tokens` tokens of the texts, and smooth them.

    Memory: about 8 * (order + 4) bytes for each token. Raises `ValueError` where there is no token at all.
    """
    encoder = Encoder(unit, order)
    parts: list[Hashes] = []
    left = max_tokens
    for text in texts:
        values = encoder.encode([text]).values[: left + order - 1]
        parts.append(values)
        left -= len(values) - (order - 1)
        if left <= 0:
            break
    counts = np.array([len(part) - (order - 1) for part in parts], dtype=np.int64)
    if not counts.sum():
        raise ValueError("the reference has no text")
    codes = Codes(np.concatenate(parts), counts)
    hashes = hashes_of(codes.values, order)
    grams, contexts, unknown = _smoothed(hashes, _counted(hashes, places_of(codes, order)))
    return NgramModel(encoder, tuple(grams), tuple(contexts), unknown)


class Counted(NamedTuple):
    """The n-grams of one order: sorted hashes, counts, and a place in the text where each of them ends."""

    keys: Hashes
    counts: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]


def _counted(hashes: list[Hashes], places: npt.NDArray[np.int64]) -> list[Counted]:
    """Count the longest n-grams as often as they stand, shorter ones by how many different tokens stand before them."""
    levels: list[Counted] = []
    for level in reversed(hashes):
        keys, first, counts = np.unique(level[places], return_index=True, return_counts=True)
        places = places[first]  # each n-gram of this order once: its ends are what the order below counts
        levels.append(Counted(keys, counts, places))
    return levels[::-1]


def _smoothed(hashes: list[Hashes], levels: list[Counted]) -> tuple[list[Table], list[Table], float]:
    grams: list[Table] = []
    contexts: list[Table] = []
    uniform = 1.0 / (len(levels[0].keys) + 1)
    unknown = uniform
    for size, level in enumerate(levels, start=1):
        discount = _discount(level.counts)
        before: Any = np.zeros(len(level.keys), dtype=np.uint64) if size == 1 else hashes[size - 2][level.places - 1]
        keys, group = np.unique(before, return_inverse=True)
        totals = np.bincount(group, weights=level.counts)
        weights = discount * np.bincount(group) / totals
        if size == 1:
            unknown = float(weights[0]) * uniform
            lower: Any = uniform
        else:
            lower = grams[-1].get(hashes[size - 2][level.places])[1]
        probabilities = (level.counts - discount) / totals[group] + weights[group] * lower
        grams.append(Table(level.keys, probabilities))
        contexts.append(Table(keys, weights))
    return grams, contexts, unknown


def _discount(counts: npt.NDArray[np.int64]) -> float:
    """Return n1 / (n1 + 2 n2), kept off 0 and 1, which tiny references give."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return min(max(once / max(once + 2 * twice, 1), 0.1), 0.95)
