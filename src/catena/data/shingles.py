"""Texts to sets of word shingles, as sorted 64-bit hashes: what near-duplicates are found by and verified with. Pure.

    texts -> folded code points -> a hash for each word -> a hash for each `ngram` words in a row -> sorted, distinct

Everything after case folding is numpy over a whole batch of texts, because a regular expression and a Python object for
each word cost eight times as much. What a word is stands in `words`: characters of scripts without spaces one by one,
other letters and digits together, with their marks. The hashes are the same in every process: a polynomial over the
code points modulo 2^64, mixed at the end. Two different words of fewer than a thousand letters share one with a chance
of about 2^-60.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from catena.data.words import JOINERS, MARKS, ONE_BY_ONE

Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]

MULTIPLIER = 0x9E3779B97F4A7C15
# Code points that are cut at once: some arrays of this many 8-byte numbers are held, and stay near the processor.
PIECE = 1 << 18
SEPARATOR, LETTER, CHARACTER, MARK, JOINER = range(5)


class Sets(NamedTuple):
    """One set of shingles for each text, laid end to end."""

    values: Hashes
    """Sorted and distinct within each text."""
    offsets: Offsets
    """Where each text's set begins; one more entry than there are texts."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, text: int) -> Hashes:
        """Return the set of one text."""
        return self.values[self.offsets[text] : self.offsets[text + 1]]

    @property
    def sizes(self) -> Offsets:
        """Return how many shingles each text has."""
        return np.diff(self.offsets)


def mixed(values: Hashes) -> Hashes:
    """Return 64-bit numbers in which every bit depends on every bit of the given ones (SplitMix64's last steps)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: Hashes = values ^ (values >> np.uint64(31))
    return result


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """Return for each code point whether it separates words, is part of one, is one, or what stands before it says."""
    characters = list(map(chr, range(0x110000)))
    kinds = np.fromiter(map(str.isalnum, characters), dtype=np.uint8, count=len(characters))
    kinds[ord("_")] = LETTER
    kinds[[ord(character) for character in MARKS]] = MARK
    kinds[[ord(character) for character in JOINERS]] = JOINER
    one_by_one = ONE_BY_ONE.findall("".join(characters[0x0E00:0x32400]))
    kinds[[ord(character) for character in one_by_one]] = CHARACTER
    return kinds


@cache
def _powers() -> tuple[Hashes, Hashes]:
    inverse = pow(MULTIPLIER, -1, 1 << 64)
    powers = (np.cumprod(np.full(PIECE, factor, dtype=np.uint64), dtype=np.uint64) for factor in (MULTIPLIER, inverse))
    return next(powers), next(powers)


def word_hashes(folded: str) -> tuple[Hashes, Offsets]:
    """Return the hash of each word of a folded text, and where in the text it begins."""
    hashes, starts, position = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], 0
    codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kinds = _with_their_letters(_kinds()[codes])
    while position < len(codes):
        end = _cut(kinds, position, min(position + PIECE, len(codes)))
        found = _hashes_of_piece(codes[position:end], kinds[position:end])
        hashes.append(found[0])
        starts.append(found[1] + position)
        position = end
    return np.concatenate(hashes), np.concatenate(starts)


def _with_their_letters(kinds: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Make marks and joiners parts of the word before them, or separators where none is; changes `kinds`."""
    joiners = np.flatnonzero(kinds == JOINER)
    after = np.append(kinds, SEPARATOR)[joiners + 1]
    kinds[joiners[(after != LETTER) & (after != MARK)]] = SEPARATOR
    marks = np.flatnonzero(kinds >= MARK)
    first = np.diff(marks, prepend=-2) > 1
    before = np.append(kinds, SEPARATOR)[marks[first] - 1]  # of the text's first character: the one at the end
    kinds[marks] = np.where(before == LETTER, LETTER, SEPARATOR)[np.cumsum(first) - 1]
    return kinds


def _cut(kinds: npt.NDArray[np.uint8], start: int, end: int) -> int:
    """Return the end of a piece, moved back to the end of a word; a word as long as a piece is cut."""
    if end == len(kinds):
        return end
    inside = np.flatnonzero(kinds[start:end] != LETTER)
    return start + int(inside[-1]) + 1 if len(inside) else end


def _hashes_of_piece(codes: npt.NDArray[np.uint32], kinds: npt.NDArray[np.uint8]) -> tuple[Hashes, Offsets]:
    powers, inverses = _powers()
    before = np.concatenate((np.zeros(1, np.uint8), kinds[:-1]))
    after = np.concatenate((kinds[1:], np.zeros(1, np.uint8)))
    letter, single = kinds == LETTER, kinds == CHARACTER
    starts = np.flatnonzero(single | (letter & (before != LETTER)))
    ends = np.flatnonzero(single | (letter & (after != LETTER))) + 1
    # sum of code[i] * M^i up to each place; a word's part of it, divided by M^start, depends on its letters only
    summed = np.concatenate((np.zeros(1, np.uint64), np.cumsum(codes * powers[: len(codes)])))
    return mixed((summed[ends] - summed[starts]) * inverses[starts]), starts


def fold(text: str) -> str:
    """Return the text after NFKC and case folding."""
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()


def shingle_sets(folded: Sequence[str], ngram: int) -> Sets:
    """Return the shingles of `ngram` words of each folded text. A text with fewer words is one shingle; without, none.

    Texts are cut in batches, so keep those that are given at once within memory: 8 bytes a word come back.
    """
    parts: list[Hashes] = []
    batch: list[str] = []
    size = 0
    for text in folded:
        batch.append(text)
        size += len(text) + 1
        if size >= PIECE:
            parts += _batch(batch, ngram)
            batch, size = [], 0
    parts += _batch(batch, ngram)
    offsets = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return Sets(np.concatenate(parts) if parts else np.empty(0, np.uint64), offsets)


def _batch(texts: list[str], ngram: int) -> list[Hashes]:
    if not texts:
        return []
    hashes, places = word_hashes("\n".join(texts))  # a line break is part of no word
    ends = np.cumsum([len(text) + 1 for text in texts])
    borders = np.concatenate((np.zeros(1, np.int64), np.searchsorted(places, ends)))
    rolled = _rolled(hashes, ngram)
    result = []
    for start, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        short = end - start < ngram
        found = _rolled(hashes[start:end], end - start) if short else rolled[start : end - ngram + 1]
        found.sort()
        result.append(found[np.append(True, found[1:] != found[:-1])] if len(found) else found)
    return result


def _rolled(hashes: Hashes, size: int) -> Hashes:
    """Return the hash of every `size` words in a row."""
    if size == 0 or len(hashes) < size:
        return np.empty(0, dtype=np.uint64)
    count = len(hashes) - size + 1
    rolled = np.full(count, size, dtype=np.uint64)
    for start in range(size):
        rolled *= np.uint64(MULTIPLIER)
        rolled += hashes[start : start + count]
    return mixed(rolled)


def jaccard(first: Hashes, second: Hashes) -> float:
    """Return the share of shingles that two sets, each sorted and distinct, have in common; 0 where either has none."""
    if not len(first) or not len(second):
        return 0.0
    both = np.concatenate((first, second))
    both.sort()
    common = int(np.count_nonzero(both[1:] == both[:-1]))
    return common / (len(both) - common)
