"""Which passages of evaluation sets stand in a text, by shared n-grams: the pure machine of `data.decontaminate`.

    items -> passages -> n-grams (64-bit hashes) -> index          text -> n-grams -> hits -> overlap of each passage

N-grams find where a passage may stand; its overlap is the share of its words that lie in threes of words which stand
there too. So an inserted or deleted word costs itself and not all n-grams across it; punctuation, case and width cost
nothing. A word weighs the less, the more texts have the n-grams around it (Allen AI's decon weighs n-grams so): what
everybody says is no evidence.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import log
from typing import TYPE_CHECKING, NamedTuple

from catena.data.words import folded_words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]

MULTIPLIER = 0x9E3779B97F4A7C15
PASSAGE = 100
"""Words: a longer item is checked in pieces of about this many, so that a copied part of it is found."""
SPREAD = 2
"""The n-grams of a passage count together when they stand within so many times its length."""
WORTH = 0.2
"""Least weighted share of a passage's n-grams that makes it worth a closer look."""
FINE = 3


class Passage(NamedTuple):
    """A piece of an evaluation item."""

    item: str
    words: int
    ngram: int
    codes: Hashes
    """Hashes of its n-grams, in order."""
    threes: Hashes


class Found(NamedTuple):
    """A passage that stands in a text."""

    item: str
    overlap: float
    first: int
    """Number of the word in the text where it begins."""


def ngram_of(words: int, most: int, least: int) -> int:
    """Return the n-gram size for a passage: of a short one, shorter n-grams, or one edit would break all of them."""
    return next((size for size in (most, 8) if least <= size <= most and words >= 3 * size), least)


def passages_of(words: Sequence[str]) -> list[Sequence[str]]:
    """Cut words into pieces of `PASSAGE`, each half in the one before; words that are not many more are one piece."""
    if len(words) <= PASSAGE * 3 // 2:
        return [words]
    starts = [*range(0, len(words) - PASSAGE, PASSAGE // 2), len(words) - PASSAGE]
    return [words[start : start + PASSAGE] for start in starts]


def rolled(words: Sequence[str], size: int) -> Hashes:
    """Return the hashes of all runs of `size` words, in order; Python's own hashes: compare them, never store them."""
    import numpy as np

    if len(words) < size:
        return np.empty(0, dtype=np.uint64)
    codes = np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)
    found = np.full(len(words) - size + 1, size, dtype=np.uint64)
    for start in range(size):
        found = found * np.uint64(MULTIPLIER) + codes[start : len(codes) - size + 1 + start]
    return found


class Index:
    """The n-grams of evaluation items, their weights, and the search for them in texts."""

    def __init__(self, most: int, least: int) -> None:
        self._most, self._least = most, min(least, most)
        self._passages: list[Passage] = []
        self._holders: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        self._sorted: dict[int, Hashes] = {}
        self._seen: Counter[int] = Counter()
        self._texts = 0
        self.too_short = 0
        """Items with fewer words than the shortest n-gram: they cannot be told from chance."""

    def __len__(self) -> int:
        return len(self._passages)

    def add(self, item: str, text: str) -> None:
        """Take an evaluation item in."""
        words = folded_words(text)
        if len(words) < self._least:
            self.too_short += 1
            return
        for piece in passages_of(words):
            size = ngram_of(len(piece), self._most, self._least)
            codes = rolled(piece, size)
            self._passages.append(Passage(item, len(piece), size, codes, rolled(piece, FINE)))
            for code in dict.fromkeys(codes.tolist()):
                self._holders[size][code].append(len(self._passages) - 1)

    def close(self) -> None:
        """Make the index ready for searching."""
        import numpy as np

        self._sorted = {
            size: np.sort(np.fromiter(codes, dtype=np.uint64, count=len(codes)))
            for size, codes in sorted(self._holders.items())
        }

    def hits(self, words: Sequence[str]) -> dict[int, list[tuple[int, int]]]:
        """Return, by n-gram size, the (place, hash) of each n-gram of the words that some item has."""
        import numpy as np

        found = {}
        for size, known in self._sorted.items():
            codes = rolled(words, size)
            if not len(codes):
                continue
            places = np.searchsorted(known, codes)
            places[places == len(known)] = 0
            matched = np.flatnonzero(known[places] == codes)
            if len(matched):
                found[size] = list(zip(matched.tolist(), codes[matched].tolist(), strict=True))
        return found

    def learn(self, words: Sequence[str]) -> None:
        """Count a text's n-grams, for their weights."""
        self._texts += 1
        for hits in self.hits(words).values():
            self._seen.update({code for _, code in hits})

    def weight(self, code: int) -> float:
        """Return an n-gram's weight: 1 if one text or none has it, next to 0 if every text has it."""
        seen = max(1, self._seen[code])
        return 1 - log(seen) / log(self._texts + 1) if seen > 1 else 1.0

    def best(self, text: str, threshold: float) -> Found | None:
        """Return the passage that stands most completely in the text, if it reaches the threshold."""
        words = folded_words(text)
        found: list[Found] = []
        for size, hits in self.hits(words).items():
            matches: dict[int, list[tuple[int, int]]] = defaultdict(list)
            for hit in hits:
                for number in self._holders[size][hit[1]]:
                    matches[number].append(hit)
            for number, places in matches.items():
                result = self._judged(self._passages[number], places, words)
                if result is not None and result.overlap >= threshold:
                    found.append(result)
        return max(found, key=lambda entry: (entry.overlap, entry.item), default=None)

    def _judged(self, passage: Passage, matches: list[tuple[int, int]], words: Sequence[str]) -> Found | None:
        """Return how much of a passage stands in the words, or None where too little speaks for a closer look."""
        distinct = {code for _, code in matches}
        enough = WORTH * sum(map(self.weight, passage.codes.tolist()))
        if (len(distinct) < 2 and passage.words > passage.ngram) or sum(map(self.weight, distinct)) < enough:
            return None
        first, last = self._window(passage, matches)
        around = words[max(0, first - passage.words) : last + passage.ngram + passage.words]
        return Found(passage.item, self._overlap(passage, around), first)

    def _window(self, passage: Passage, matches: list[tuple[int, int]]) -> tuple[int, int]:
        """Return the first and last place of the heaviest window over the matches, which are in order of place."""
        if matches[-1][0] - matches[0][0] <= SPREAD * passage.words:
            return matches[0][0], matches[-1][0]
        inside: Counter[int] = Counter()
        held, best, left, span = 0.0, 0.0, 0, (0, 0)
        for place, code in matches:
            held += 0.0 if inside[code] else self.weight(code)
            inside[code] += 1
            while place - matches[left][0] > SPREAD * passage.words:
                gone = matches[left][1]
                inside[gone] -= 1
                held -= 0.0 if inside[gone] else self.weight(gone)
                left += 1
            if held > best:
                best, span = held, (matches[left][0], place)
        return span

    def _overlap(self, passage: Passage, window: Sequence[str]) -> float:
        """Return the weighted share of the passage's words that lie in threes of the window."""
        import numpy as np

        weights, times = np.zeros(passage.words), np.zeros(passage.words)
        for place, code in enumerate(passage.codes.tolist()):
            weights[place : place + passage.ngram] += self.weight(code)
            times[place : place + passage.ngram] += 1
        weights /= times
        covered = np.zeros(passage.words, dtype=bool)
        for place in np.flatnonzero(np.isin(passage.threes, rolled(window, FINE))).tolist():
            covered[place : place + FINE] = True
        return round(float(weights[covered].sum() / weights.sum()), 4)
