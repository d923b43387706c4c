"""What sounds like a Chinese entry: other characters of the same syllables, and pinyin. From tables.

    傻逼 -> sha bi -> 煞笔, 啥币                   homophones: characters turned into syllables, looked for as syllables
                   -> sha bi, shabi, sha3 bi1, 傻bi, sha逼     spellings: looked for as they are, as whole words

Left alone are syllables that ordinary Chinese has next to each other more often than `RARE` (出生 sounds as 畜生 does),
usual words (女权 is not 女拳) and parts of them, and English ones (China is chi na). `scripts/readings.py` makes the
tables and names their sources.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LISTS = Path(__file__).parent / "lists"
RARE = 3.2e-6
"""How often syllables may stand in this order in ordinary Chinese, a place of the text, to be taken for an entry."""
RARE_IN_TONE = 3.2e-5
"""The same of syllables with their tones, counted without; and of pinyin, which little ordinary text is written in."""
TONES = 10
"""So many times rarer a word of two is thought to be with its tones."""
BUDGET = 3e-4
"""What the homophones of all entries together may come to: a list of thousands has those of its rarest."""
LONGEST = 16
"""Most letters of a spelling: a stream holds back as many."""
SHORTEST = 5
"""Fewest letters of one, spaces not counted: shorter ones are too easily something else."""
FIRST = 0xE000
"""The first of the signs that stand for syllables; nobody writes them, and the forms keep their lengths."""


def _rows(name: str) -> list[list[str]]:
    lines = (LISTS / name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


@lru_cache(1)
def _readings() -> dict[str, str]:
    """Return the usual syllable of each character, with its tone as a digit."""
    return {character: reading for reading, characters in _rows("readings.tsv") for character in characters}


@lru_cache(1)
def _rarity() -> dict[str, str]:
    return dict(_rows("rarity.tsv"))


@lru_cache(1)
def _numbers() -> dict[str, int]:
    return {syllable: number for number, syllable in enumerate(_rarity())}


@lru_cache(1)
def _english() -> frozenset[str]:
    return frozenset(word for [word] in _rows("latin.tsv"))


@lru_cache(1)
def _ordinary() -> frozenset[str]:
    """Return the usual words of two characters."""
    return frozenset(one + other for one, others in _rows("ordinary.tsv") for other in others)


@lru_cache(1)
def _signs() -> npt.NDArray[np.uint32]:
    """Return for each character of the first plane the sign of its syllable, or itself."""
    import numpy as np

    table = np.arange(0x10000, dtype=np.uint32)
    for character, reading in _readings().items():
        table[ord(character)] = FIRST + _numbers()[reading[:-1]]
    return table


def read(word: str) -> tuple[str, ...]:
    """Return the syllables of a word with their tones; nothing unless it is of two known characters or more."""
    known = _readings()
    return tuple(known[one] for one in word) if len(word) > 1 and all(one in known for one in word) else ()


def frequency(syllables: Sequence[str]) -> float:
    """Return about how often syllables stand in this order in ordinary Chinese, as a share of all places.

    A chain: each pair as often as it is counted, given its first. `rarity.tsv` counts in half powers of ten.
    """
    share = 1.0
    for number, (one, two) in enumerate(pairwise(syllables)):
        share *= _share(one, two) / (_share(one) if number else 1.0)
    return share


@lru_cache(4096)
def _share(one: str, two: str = "") -> float:
    row = _rarity()[one]
    letters = row[_numbers()[two]] if two else row
    return math.fsum(10 ** (-(ord(letter) - ord("a")) / 2) for letter in letters)


@dataclass(frozen=True, slots=True)
class Homophones:
    """What sounds like a word."""

    signs: str
    often: float
    """How often ordinary Chinese is thought to have one, as a share of all places."""
    tones: tuple[str, ...] = ()
    """The syllables with tones, where those must be the same too."""

    def has(self, text: str, start: int, end: int) -> bool:
        """Tell whether a part of a text, found by its signs, sounds so and is no usual word.

        Nor may its first or last character be one of a usual word with what stands beside it: 你去四 sounds as 你去死
        does, but not in 你去四川, nor 母沟 as 母狗 in 父母沟通.
        """
        heard, usual = read(text[start:end]), _ordinary()
        edges = (text[max(start - 1, 0) : start + 1], text[end - 1 : end + 1])
        return bool(heard) and self.tones in ((), heard) and not usual.intersection((text[start:end], *edges))


def homophones(readings: Sequence[str]) -> Homophones | None:
    """Return a word's homophones by its syllables with tones, or None where ordinary text has them."""
    syllables = [reading[:-1] for reading in readings]
    often = frequency(syllables)
    if not syllables or often > RARE_IN_TONE:
        return None
    signs = "".join(chr(FIRST + _numbers()[one]) for one in syllables)
    if often <= RARE:
        return Homophones(signs, often)
    return Homophones(signs, often / TONES, tuple(readings))


def rarest(words: Iterable[str]) -> dict[str, list[tuple[Homophones, int]]]:
    """Return by their signs the homophones of words and the words' numbers: the rarest, while `BUDGET` lasts."""
    heard = [(made, number) for number, word in enumerate(words) if (made := homophones(read(word)))]
    chosen: dict[str, list[tuple[Homophones, int]]] = {}
    spent = 0.0
    for made, number in sorted(heard, key=lambda one: one[0].often):
        spent += made.often
        if spent > BUDGET:
            break
        chosen.setdefault(made.signs, []).append((made, number))
    return chosen


def as_sounds(form: str) -> str:
    """Return a form with each Chinese character as the sign of its syllable; as long as before."""
    import numpy as np

    codes = np.frombuffer(form.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    made: str = _signs()[np.minimum(codes, 0xFFFF)].tobytes().decode("utf-32-le", "surrogatepass")
    return made


def spellings(word: str, readings: Sequence[str]) -> Iterator[str]:
    """Yield the ways to write a word, or one of its characters, in Latin letters."""
    if not readings or len(set(word)) == 1:  # a character twice: lv is a brand
        return
    bare = [reading[:-1] for reading in readings]
    if frequency(bare) <= RARE_IN_TONE:
        for parts in {tuple(one.replace("v", letter) for one in bare) for letter in "vu"}:
            yield from _wholes(parts)
    if sum(map(len, readings)) <= LONGEST:
        yield from (sign.join(readings) for sign in ("", " "))
    for at, syllable in enumerate(bare):
        before, after = word[:at], word[at + 1 :]
        # apart from the rest, what is short or English is a word of its own
        signs = ("",) if syllable in _english() or len(syllable) + len(word) < 5 else ("", " ")
        if len(syllable) > 1 and len(word) - 1 + len(syllable) <= LONGEST:
            yield from {
                f"{before}{one if before else ''}{syllable}{two if after else ''}{after}"
                for one in signs
                for two in signs
            }


def _wholes(parts: Sequence[str]) -> Iterator[str]:
    """Yield the spellings of all syllables together, but for what is English."""
    whole = "".join(parts)
    if not SHORTEST <= len(whole) <= LONGEST:
        return
    if whole not in _english():
        yield whole
    if not all(one in _english() for one in parts):
        yield " ".join(parts)
