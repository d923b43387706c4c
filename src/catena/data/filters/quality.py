"""The quality rules of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1), made safe for text without spaces.

Mean word length, alphabetic words and stop words are statements about English and its neighbours: they are not asked
of text that is mostly Han, kana or hangul.
"""

from __future__ import annotations

import re

from pydantic import Field

from catena.core.config import Config
from catena.core.sample import Sample
from catena.data.words import is_cjk

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
SYMBOL = re.compile(r"#|\.\.\.|…")
BULLETS = ("-", "*", "•", "‣", "●", "·")


class Quality(Config):
    """Drop what does not read like prose: symbols, bullets, endless words, no function words."""

    min_word_length: float = Field(default=3.0, ge=0)
    """Least mean length of a word, in characters (not asked of CJK text)."""
    max_word_length: float = Field(default=10.0, gt=0)
    """Greatest mean length of a word, in characters (not asked of CJK text)."""
    max_symbol_ratio: float = Field(default=0.1, ge=0)
    """Most `#` and `...` for each word."""
    max_bullet_lines: float = Field(default=0.9, ge=0, le=1)
    """Largest share of lines that begin with a bullet."""
    max_ellipsis_lines: float = Field(default=0.3, ge=0, le=1)
    """Largest share of lines that end with an ellipsis."""
    min_alphabetic_words: float = Field(default=0.8, ge=0, le=1)
    """Least share of words with a letter in them (not asked of CJK text)."""
    min_stop_words: int = Field(default=2, ge=0, le=len(STOP_WORDS))
    """How many of the, be, to, of, and, that, have, with must occur (not asked of CJK text)."""

    def reason(self, sample: Sample) -> str | None:
        """Return the code of the first rule that is broken, or None."""
        text = sample.text
        words, lines = text.split(), [line.strip() for line in text.splitlines() if line.strip()]
        if not words:
            return "empty"
        # In text without spaces a "word" of split() is a whole sentence: there, the characters are the words.
        cjk = is_cjk(text)
        count = len(text) if cjk else len(words)
        if len(SYMBOL.findall(text)) > self.max_symbol_ratio * count:
            return "symbols"
        if sum(line.startswith(BULLETS) for line in lines) > self.max_bullet_lines * len(lines):
            return "bullets"
        if sum(line.endswith(("...", "…")) for line in lines) > self.max_ellipsis_lines * len(lines):
            return "ellipsis"
        return None if cjk else self._spaced_reason(words)

    def _spaced_reason(self, words: list[str]) -> str | None:
        mean = sum(map(len, words)) / len(words)
        if not self.min_word_length <= mean <= self.max_word_length:
            return "word_length"
        if sum(any(letter.isalpha() for letter in word) for word in words) < self.min_alphabetic_words * len(words):
            return "not_alphabetic"
        if len(STOP_WORDS.intersection(word.lower().strip(".,;:!?\"'()") for word in words)) < self.min_stop_words:
            return "stop_words"
        return None
