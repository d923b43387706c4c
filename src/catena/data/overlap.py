"""Which passages of evaluation sets stand in a text, by shared n-grams: the pure machine of `data.decontaminate`.

    items -> passages -> n-grams (64-bit hashes) -> index         texts -> n-grams -> hits -> overlap of each passage

N-grams find where a passage may stand; its overlap is the share of its words that lie in threes of words which stand
there too. So an inserted or deleted word costs itself and not all n-grams across it; punctuation, case and width cost
nothing. A word weighs the less, the more texts have the n-grams around it (Allen AI's decon weighs n-grams so): what
everybody says is no evidence.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from math import log
from typing import TYPE_CHECKING, NamedTuple

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
# Characters of the texts that are searched at once: their arrays stay in the processor's cache.
BATCH = 1 << 18
# The places of a table of bits are so many times the n-grams: one n-gram in so many gets past it by chance.
SPARSE = 16


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


def passages_of(words: Hashes) -> list[Hashes]:
    """Cut words into pieces of `PASSAGE`, each half in the one before; words that are not many more are one piece."""
    if len(words) <= PASSAGE * 3 // 2:
        return [words]
    starts = [*range(0, len(words) - PASSAGE, PASSAGE // 2), len(words) - PASSAGE]
    return [words[start : start + PASSAGE] for start in starts]


def hashed(texts: Sequence[str]) -> tuple[Hashes, list[int]]:
    """Return the hashes of all words of the texts end to end, and where each text's begin, with the end of the last."""
    import numpy as np

    from catena.data.shingles import fold, word_hashes

    folded = [fold(text) for text in texts]
    words, places = word_hashes("\n".join(folded))  # a line break is part of no word
    ends = np.cumsum([len(text) + 1 for text in folded])
    return words, [0, *np.searchsorted(places, ends).tolist()]


def rolled(words: Hashes, size: int) -> Hashes:
    """Return the hashes of all runs of `size` words, in order: of 13 words from 12 and 1, of 12 from 6 and 6, ..."""
    import numpy as np

    if len(words) < size:
        return np.empty(0, dtype=np.uint64)
    found, length = words, 1
    for bit in f"{size:b}"[1:]:
        found = found[:-length] * np.uint64(pow(MULTIPLIER, length, 1 << 64)) + found[length:]
        length *= 2
        if bit == "1":
            found = found[:-1] * np.uint64(MULTIPLIER) + words[length:]
            length += 1
    return found


class Known:
    """A set of n-grams of one size, made to say no quickly: nearly all n-grams of a text are in no item."""

    def __init__(self, codes: Hashes) -> None:
        import numpy as np

        self._sorted = np.sort(codes)
        self._shift = np.uint64(64 - max(10, (SPARSE * len(codes)).bit_length()))
        self._bits = np.zeros(1 << (64 - int(self._shift)), dtype=np.bool_)
        self._bits[codes >> self._shift] = True

    def places(self, codes: Hashes) -> npt.NDArray[np.intp]:
        """Return where the codes are that are in the set."""
        import numpy as np

        likely = np.flatnonzero(self._bits[(codes >> self._shift).view(np.int64)])
        near = np.minimum(np.searchsorted(self._sorted, codes[likely]), len(self._sorted) - 1)
        found: npt.NDArray[np.intp] = likely[self._sorted[near] == codes[likely]]
        return found


Hits = dict[int, list[tuple[int, int]]]
"""By n-gram size, the (place, hash) of each n-gram of a text that some item has."""


class Index:
    """The n-grams of evaluation items, their weights, and the search for them in texts."""

    def __init__(self, most: int, least: int) -> None:
        self._most, self._least = most, min(least, most)
        self._passages: list[Passage] = []
        self._holders: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        self._known: dict[int, Known] = {}
        self._enough: dict[int, float] = {}
        self._seen: Counter[int] = Counter()
        self._texts = 0
        self.too_short = 0
        """Items with fewer words than the shortest n-gram: they cannot be told from chance."""

    def __len__(self) -> int:
        return len(self._passages)

    def add(self, item: str, text: str) -> None:
        """Take an evaluation item in."""
        words, _ = hashed([text])
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

        self._known = {
            size: Known(np.fromiter(codes, dtype=np.uint64, count=len(codes)))
            for size, codes in sorted(self._holders.items())
        }

    def hits(self, words: Hashes, begins: Sequence[int]) -> list[Hits]:
        """Return the hits of each text; `words` are those of all texts end to end."""
        import numpy as np

        found: list[Hits] = [{} for _ in begins[1:]]
        for size, known in self._known.items():
            codes = rolled(words, size)
            places = known.places(codes)
            texts = np.searchsorted(begins, places, side="right") - 1
            for place, text, code in zip(places.tolist(), texts.tolist(), codes[places].tolist(), strict=True):
                if place + size <= begins[text + 1]:
                    found[text].setdefault(size, []).append((place - begins[text], code))
        return found

    def learn(self, texts: Sequence[str]) -> None:
        """Count the n-grams of texts, for their weights; comes before any search."""
        self._enough.clear()
        for batch in batches(texts):
            self._texts += len(batch)
            for found in self.hits(*hashed(batch)):
                for hits in found.values():
                    self._seen.update({code for _, code in hits})

    def weight(self, code: int) -> float:
        """Return an n-gram's weight: 1 if one text or none has it, next to 0 if every text has it."""
        seen = max(1, self._seen[code])
        return 1 - log(seen) / log(self._texts + 1) if seen > 1 else 1.0

    def best(self, text: str, threshold: float) -> Found | None:
        """Return the passage that stands most completely in the text, if it reaches the threshold."""
        return next(self.search([text], threshold))

    def search(self, texts: Sequence[str], threshold: float) -> Iterator[Found | None]:
        """Yield for each text the passage that stands most completely in it, or None if none reaches the threshold."""
        for batch in batches(texts):
            words, begins = hashed(batch)
            for hits, start, end in zip(self.hits(words, begins), begins[:-1], begins[1:], strict=True):
                yield self._best(hits, words[start:end], threshold) if hits else None

    def _best(self, found: Hits, words: Hashes, threshold: float) -> Found | None:
        judged: list[Found] = []
        for size, hits in found.items():
            matches: dict[int, list[tuple[int, int]]] = defaultdict(list)
            for hit in hits:
                for number in self._holders[size][hit[1]]:
                    matches[number].append(hit)
            for number, places in matches.items():
                result = self._judged(number, places, words)
                if result is not None and result.overlap >= threshold:
                    judged.append(result)
        return max(judged, key=lambda entry: (entry.overlap, entry.item), default=None)

    def _judged(self, number: int, matches: list[tuple[int, int]], words: Hashes) -> Found | None:
        """Return how much of a passage stands in the words, or None where too little speaks for a closer look."""
        passage, distinct = self._passages[number], {code for _, code in matches}
        if len(distinct) < 2 and passage.words > passage.ngram:
            return None
        if number not in self._enough:
            self._enough[number] = WORTH * sum(map(self.weight, passage.codes.tolist()))
        if sum(map(self.weight, distinct)) < self._enough[number]:
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

    def _overlap(self, passage: Passage, window: Hashes) -> float:
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


def batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut texts into runs of about `BATCH` characters."""
    start = size = 0
    for place, text in enumerate(texts):
        size += len(text)
        if size >= BATCH:
            yield texts[start : place + 1]
            start, size = place + 1, 0
    if start < len(texts):
        yield texts[start:]
