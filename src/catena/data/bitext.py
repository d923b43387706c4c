"""Which sentences of two texts translate each other: the inner machine of `data.align_parallel`. Pure.

Gale and Church (1993, "A Program for Aligning Sentences in Bilingual Corpora"): long sentences have long translations.
Dynamic programming over beads of 1-1, 1-0, 0-1, 2-1, 1-2 and 2-2 sentences finds the cheapest way through both texts. A
second pass adds what the first one taught about words (Dice coefficients of words that stand in the same beads).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from math import erf, exp, log, sqrt
from typing import NamedTuple

from catena.data.words import folded_words

# Kinds of bead and how often they occur, from the paper's table 5.
BEADS: dict[tuple[int, int], float] = {
    (1, 1): 0.89,
    (1, 0): 0.0099 / 2,
    (0, 1): 0.0099 / 2,
    (2, 1): 0.089 / 2,
    (1, 2): 0.089 / 2,
    (2, 2): 0.011,
}
VARIANCE = 6.8
"""Of the length of a translation, for each character of the original (section 3.2 of the paper)."""
ALONE = 3.0
"""What a sentence without a translation costs beside its prior, in nats. The paper takes the distance of its length
from nothing, so that a long addition is never left alone and spoils its neighbour."""
WORD_WEIGHT = 10.0
"""What a bead whose words all have their translation in it is cheaper by, in nats."""
REACH = 60
"""Sentences that the way may stray from the diagonal: bounds time and memory in long texts."""
MIN_SEEN = 2


class Bead(NamedTuple):
    """source[first:first_end] and target[second:second_end] translate each other; `score` is 0 to 1."""

    first: int
    first_end: int
    second: int
    second_end: int
    score: float


Lexicon = Mapping[tuple[str, str], float]


def length_cost(source: int, target: int, ratio: float) -> float:
    """Return -log of the probability that `source` characters become `target` ones; `ratio` of them is usual."""
    if source == target == 0:
        return 0.0
    mean = (source + target / ratio) / 2
    delta = abs(source * ratio - target) / sqrt(mean * VARIANCE * ratio)
    return -log(max(2 * (1 - 0.5 * (1 + erf(delta / sqrt(2)))), 1e-12))


def word_share(source: Iterable[str], target: Iterable[str], lexicon: Lexicon) -> float:
    """Return how well the words are translated in each other, 0 to 1: the mean of each word's best coefficient.

    Words that both texts have, such as names and numbers, are their own translation.
    """
    first, second = set(source), set(target)
    if not first or not second:
        return 0.0

    def best(word: str, others: set[str], turned: bool) -> float:
        if word in others:
            return 1.0
        pairs = ((other, word) if turned else (word, other) for other in others)
        return max((lexicon.get(pair, 0.0) for pair in pairs), default=0.0)

    forth = sum(best(word, second, False) for word in first) / len(first)
    back = sum(best(word, first, True) for word in second) / len(second)
    return (forth + back) / 2


def align(source: Sequence[str], target: Sequence[str], lexicon: Lexicon | None = None, ratio: float = 0) -> list[Bead]:
    """Return the beads of two lists of sentences, in order, covering all of both.

    `ratio` is target characters for each of the source; that of these texts if 0.
    """
    lengths = [len(text) for text in source], [len(text) for text in target]
    ratio = ratio or (sum(lengths[1]) or 1) / (sum(lengths[0]) or 1)
    words = [folded_words(text) for text in source], [folded_words(text) for text in target]
    cost: dict[tuple[int, int], float] = {(0, 0): 0.0}
    came: dict[tuple[int, int], tuple[int, int]] = {}
    slope, reach = len(target) / max(len(source), 1), REACH + abs(len(target) - len(source))
    for first in range(len(source) + 1):
        middle = round(first * slope)
        for second in range(max(0, middle - reach), min(len(target), middle + reach) + 1):
            for (one, other), prior in BEADS.items():
                before = cost.get((first - one, second - other))
                if before is None:
                    continue
                price = before - log(prior)
                here, there = sum(lengths[0][first - one : first]), sum(lengths[1][second - other : second])
                price += length_cost(here, there, ratio) if one and other else ALONE
                if lexicon is not None and one and other:
                    left = [word for part in words[0][first - one : first] for word in part]
                    right = [word for part in words[1][second - other : second] for word in part]
                    price -= WORD_WEIGHT * word_share(left, right, lexicon)
                if price < cost.get((first, second), float("inf")):
                    cost[first, second], came[first, second] = price, (one, other)
    return _way_back(came, lengths, words, ratio, lexicon)


def _way_back(
    came: Mapping[tuple[int, int], tuple[int, int]],
    lengths: tuple[list[int], list[int]],
    words: tuple[list[list[str]], list[list[str]]],
    ratio: float,
    lexicon: Lexicon | None,
) -> list[Bead]:
    first, second = len(lengths[0]), len(lengths[1])
    beads: list[Bead] = []
    while first or second:
        one, other = came[first, second]
        start, begin = first - one, second - other
        score = 0.0
        if one and other:
            score = exp(-length_cost(sum(lengths[0][start:first]), sum(lengths[1][begin:second]), ratio))
            if lexicon is not None:
                left = [word for part in words[0][start:first] for word in part]
                right = [word for part in words[1][begin:second] for word in part]
                score = (score + word_share(left, right, lexicon)) / 2
        beads.append(Bead(start, first, begin, second, round(score, 4)))
        first, second = start, begin
    return beads[::-1]


def learn_lexicon(pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Return the Dice coefficient of each pair of words that stand in the same pairs of texts at least twice."""
    left: Counter[str] = Counter()
    right: Counter[str] = Counter()
    both: Counter[tuple[str, str]] = Counter()
    for source, target in pairs:
        first, second = set(folded_words(source)), set(folded_words(target))
        left.update(first)
        right.update(second)
        both.update(product(first, second))
    return {
        (one, other): 2 * count / (left[one] + right[other])
        for (one, other), count in both.items()
        if count >= MIN_SEEN
    }
