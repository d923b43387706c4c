"""Which script a text is written in, and where its sentences end: what the cleaning rules ask before they judge.

Pure. Chinese, Japanese and Korean are told apart by their letters: kana is written in Japanese only, hangul in Korean
only, Han in all three. A language that `data.language` left in the metadata goes before.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from catena.core.sample import Sample
from catena.data.words import HAN, HANGUL, KANA

EastAsian = Literal["zh", "ja", "ko"]

_LETTER = re.compile(r"[^\W\d_]")
_HAN = re.compile(f"[{HAN}]")
_KANA = re.compile(f"[{KANA}]")
_HANGUL = re.compile(f"[{HANGUL}]")

# What may close a sentence: a full stop, and the quotation marks and brackets after it.
CLOSERS = "\"'”’»」』）)】》〉］]"
TERMINAL = (".", "!", "?", "…", "。", "！", "？", "．", "｡", "؟", "۔", "।")
SENTENCE_END = re.compile(rf"[.!?…؟۔।]+[{re.escape(CLOSERS)}]*(?=\s|$)|[。！？．｡]+[{re.escape(CLOSERS)}]*")
MOSTLY = 0.5
# Japanese prose is a third to two thirds kana; Chinese that quotes a product's name has one or two.
SOME_KANA = 0.05


class Letters(NamedTuple):
    """How many letters a text has, and how many of them are of each East Asian script."""

    all: int
    han: int
    kana: int
    hangul: int

    def share(self, *counts: int) -> float:
        """Return the share of some of the letters in all of them; 0 in a text without letters."""
        return sum(counts) / self.all if self.all else 0.0


def letters_of(text: str) -> Letters:
    """Count the letters by script."""
    if text.isascii():
        return Letters(len(_LETTER.findall(text)), 0, 0, 0)
    return Letters(*(len(pattern.findall(text)) for pattern in (_LETTER, _HAN, _KANA, _HANGUL)))


def east_asian(text: str) -> EastAsian | None:
    """Tell Chinese, Japanese and Korean by their letters; None where most letters are of another script."""
    if text.isascii():
        return None
    letters = letters_of(text)
    if letters.share(letters.han, letters.kana, letters.hangul) <= MOSTLY:
        return None
    if letters.share(letters.hangul) > MOSTLY / 2:
        return "ko"
    return "ja" if letters.share(letters.kana) >= SOME_KANA else "zh"


def language_of(sample: Sample) -> EastAsian | None:
    """Return zh, ja or ko by the metadata's `language`, else by the letters; None for any other language."""
    named = sample.metadata.get("language")
    if isinstance(named, str) and named and named != "und":
        code = re.split(r"[-_]", named.lower())[0]
        return code if code in ("zh", "ja", "ko") else None  # type: ignore[return-value]
    return east_asian(sample.text)


def ends_sentence(line: str) -> bool:
    """Tell whether a line ends as a sentence does: with a full stop of any script, maybe inside quotation marks."""
    bare = line.rstrip()
    return bare.rstrip(CLOSERS).endswith(TERMINAL) or bare.endswith(('"', "”", "」", "』"))


def count_sentences(text: str) -> int:
    """Return the number of sentences: places where one ends, and one more for a line that just stops."""
    return sum(
        len(SENTENCE_END.findall(line)) + (not ends_sentence(line)) for line in text.splitlines() if line.strip()
    )
