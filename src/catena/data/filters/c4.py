"""The page rules of C4 (Raffel et al. 2020, JMLR 21, section 2.2); its line rules are the stage `data.lines`.

The thresholds are the paper's: pages of five sentences, lines of three words (the program published with it
has three and five). Left out: the removal of spans of three sentences that occur twice in the corpus (`data.dedup` is
for that), and the language threshold (`data.language`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from catena.core.config import Config
from catena.core.sample import Sample
from catena.data.scripts import count_sentences
from catena.data.words import CJK_CHARACTER

MAX_LIST_BYTES = 4 << 20


def read_words(value: Any) -> Any:
    """Turn the path of a word list into its words, so that the config, and its digest, hold what the file said."""
    if not isinstance(value, str):
        return value
    path = Path(value)
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise ValueError(f"the word list {value} is larger than {MAX_LIST_BYTES >> 20} MiB")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"the word list {value} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the word list {value} is not UTF-8") from error
    return sorted({line.strip() for line in lines if line.strip() and not line.startswith("#")})


class C4(Config):
    """Drop pages that are placeholders, code, too few sentences, or that hold a word of a list."""

    min_sentences: int = Field(default=5, ge=0)
    """Fewest sentences."""
    lorem_ipsum: bool = True
    """Drop pages with the placeholder "lorem ipsum"."""
    curly_bracket: bool = True
    """Drop pages with `{`: natural languages do not have it, programs do."""
    bad_words: Annotated[list[str], BeforeValidator(read_words)] = Field(default_factory=list)
    """Words that a page must not have: a list, or the path of a UTF-8 file with one a line (# begins a comment)."""

    def reason(self, sample: Sample) -> str | None:
        """Return the code of the first rule that is broken, or None."""
        text = sample.text
        if self.lorem_ipsum and "lorem ipsum" in text.lower():
            return "lorem_ipsum"
        if self.curly_bracket and "{" in text:
            return "curly_bracket"
        if self.bad_words and pattern_of(tuple(self.bad_words)).search(text):
            return "bad_words"
        if self.min_sentences and count_sentences(text) < self.min_sentences:
            return "few_sentences"
        return None


@lru_cache(maxsize=8)
def pattern_of(words: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern for any of the words: whole words, but anywhere in scripts without spaces."""
    parts = [re.escape(word) if CJK_CHARACTER.search(word) else rf"(?<!\w){re.escape(word)}(?!\w)" for word in words]
    return re.compile("|".join(parts), re.IGNORECASE)
