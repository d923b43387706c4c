"""The quality rules that FineWeb adds to Gopher's and C4's (Penedo et al. 2024, arXiv 2406.17557, section 3.6).

The shares are those of the published pipeline. For duplicate characters it has 0.01 where the paper's text says 0.1;
what the data set was made with counts. How long a short line is in Chinese, Japanese and Korean is our own choice: a
character there says about as much as two and a half letters.
"""

from __future__ import annotations

from pydantic import Field

from catena.core.config import Config
from catena.core.sample import Sample
from catena.data.filters.repetition import duplicates
from catena.data.scripts import ends_sentence
from catena.data.words import is_cjk, words_of


class FineWeb(Config):
    """Drop pages that are lists: lines without an end, short lines, copied lines, more breaks than words."""

    min_line_punctuation: float = Field(default=0.12, ge=0, le=1)
    """Least share of lines that end with terminal punctuation."""
    max_short_lines: float = Field(default=0.67, ge=0, le=1)
    """Largest share of short lines."""
    short_line: int = Field(default=30, ge=0)
    """A line of so many characters or fewer is short."""
    short_line_cjk: int = Field(default=12, ge=0)
    """The same in text that is mostly Chinese, Japanese or Korean."""
    max_duplicate_characters: float = Field(default=0.01, ge=0, le=1)
    """Largest share of characters in lines that stood before."""
    max_newlines: float = Field(default=0.3, ge=0)
    """Most line breaks for each word (character, in Chinese, Japanese and Korean)."""

    def reason(self, sample: Sample) -> str | None:
        """Return the code of the first rule that is broken, or None."""
        text = sample.text.strip()
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            return "empty"
        if sum(map(ends_sentence, lines)) < self.min_line_punctuation * len(lines):
            return "line_punctuation"
        short = self.short_line_cjk if is_cjk(text) else self.short_line
        if sum(len(line) <= short for line in lines) > self.max_short_lines * len(lines):
            return "short_lines"
        if duplicates(lines)[1] > self.max_duplicate_characters:
            return "duplicate_characters"
        if text.count("\n") > self.max_newlines * len(words_of(text)):
            return "newlines"
        return None
