"""The repetition rules of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1): lines, paragraphs, commonest n-grams.

N-grams are of words, and of characters in Han, kana and hangul text. Reference pages repeat whole phrases for a good
reason: leave `duplicate_ngrams` out for them.
"""

from __future__ import annotations

import re
from collections import Counter

from pydantic import Field

from catena.core.config import Config
from catena.core.sample import Sample
from catena.data.words import words_of

PARAGRAPH = re.compile(r"\n\s*\n")


class Repetition(Config):
    """Drop documents that say the same thing over and over."""

    max_duplicate_lines: float = Field(default=0.3, ge=0, le=1)
    """Largest share of lines that stood before."""
    max_duplicate_line_characters: float = Field(default=0.2, ge=0, le=1)
    """Largest share of characters in lines that stood before."""
    max_duplicate_paragraphs: float = Field(default=0.3, ge=0, le=1)
    """Largest share of paragraphs that stood before."""
    max_duplicate_paragraph_characters: float = Field(default=0.2, ge=0, le=1)
    """Largest share of characters in paragraphs that stood before."""
    max_top_2gram: float = Field(default=0.20, ge=0)
    """Largest share of characters in the commonest pair of words."""
    max_top_3gram: float = Field(default=0.18, ge=0)
    """Largest share of characters in the commonest three words."""
    max_top_4gram: float = Field(default=0.16, ge=0)
    """Largest share of characters in the commonest four words."""
    duplicate_ngrams: bool = True
    """Whether the six rules that follow are asked for."""
    max_duplicate_5gram: float = Field(default=0.15, ge=0, le=1)
    """Largest share of characters in five words that stood before."""
    max_duplicate_6gram: float = Field(default=0.14, ge=0, le=1)
    """Largest share of characters in six words that stood before."""
    max_duplicate_7gram: float = Field(default=0.13, ge=0, le=1)
    """Largest share of characters in seven words that stood before."""
    max_duplicate_8gram: float = Field(default=0.12, ge=0, le=1)
    """Largest share of characters in eight words that stood before."""
    max_duplicate_9gram: float = Field(default=0.11, ge=0, le=1)
    """Largest share of characters in nine words that stood before."""
    max_duplicate_10gram: float = Field(default=0.10, ge=0, le=1)
    """Largest share of characters in ten words that stood before."""

    def reason(self, sample: Sample) -> str | None:
        """Return the code of the first rule that is broken, or None."""
        text = sample.text
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        share, characters = duplicates(lines)
        if share > self.max_duplicate_lines or characters > self.max_duplicate_line_characters:
            return "repeated_lines"
        share, characters = duplicates([part.strip() for part in PARAGRAPH.split(text) if part.strip()])
        if share > self.max_duplicate_paragraphs or characters > self.max_duplicate_paragraph_characters:
            return "repeated_paragraphs"
        words = words_of(text)
        for size, limit in ((2, self.max_top_2gram), (3, self.max_top_3gram), (4, self.max_top_4gram)):
            if top_ngram_share(words, size) > limit:
                return f"repeated_{size}grams"
        return self._duplicate_ngrams(words) if self.duplicate_ngrams else None

    def _duplicate_ngrams(self, words: list[str]) -> str | None:
        for size in range(5, 11):
            share = duplicate_ngram_share(words, size)
            if share > getattr(self, f"max_duplicate_{size}gram"):
                return f"duplicate_{size}grams"
            if not share:
                return None  # longer ones hold shorter ones: none of them stands twice either
        return None


def duplicates(parts: list[str]) -> tuple[float, float]:
    """Return which share of the parts, and which of their characters, are copies of an earlier part."""
    if not parts:
        return 0.0, 0.0
    unique = set(parts)
    characters = sum(map(len, parts))
    return 1 - len(unique) / len(parts), 1 - sum(map(len, unique)) / characters


def top_ngram_share(words: list[str], size: int) -> float:
    """Return which share of all the words' characters lies in the commonest n-gram; one that stands once counts 0."""
    if len(words) < size:
        return 0.0
    counts = Counter(zip(*(words[start:] for start in range(size)), strict=False))
    most = max(counts.values())
    if most == 1:
        return 0.0
    longest = max(sum(map(len, ngram)) for ngram, count in counts.items() if count == most)
    return most * longest / sum(map(len, words))


def duplicate_ngram_share(words: list[str], size: int) -> float:
    """Return which share of all the words' characters lies in n-grams that stood before, none counted twice.

    As in the published pipelines, a copy is stepped over as a whole, so that n-grams within it are not counted again.
    """
    seen: set[tuple[str, ...]] = set()
    copied = place = 0
    while place + size <= len(words):
        ngram = tuple(words[place : place + size])
        if ngram in seen:
            copied += sum(map(len, ngram))
            place += size
        else:
            seen.add(ngram)
            place += 1
    return copied / sum(map(len, words)) if copied else 0.0
