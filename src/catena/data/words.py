"""Words of a text in any script: what the data stages count, shingle and compare.

Han, kana and hangul text has no usable spaces, so each of its characters counts as a word; everything else is cut at
whatever is neither letter nor digit.
"""

from __future__ import annotations

import re
import unicodedata

# Letters and syllables; Han with its extensions and compatibility forms.
HANGUL = "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"
KANA = "\u3040-\u30ff\u31f0-\u31ff"
HAN = "\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
CJK = HANGUL + KANA + HAN
CJK_CHARACTER = re.compile(f"[{CJK}]")
WORD = re.compile(f"[{CJK}]|[^\\W{CJK}]+")
SPACES = re.compile(r"\s+")


def words_of(text: str) -> list[str]:
    """Return the words as they stand, in order; punctuation is left out."""
    return WORD.findall(text)


def folded_words(text: str) -> list[str]:
    """Return the words after NFKC and case folding: two texts that differ only in width and case have equal ones."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def folded(text: str) -> str:
    """Return the text after NFKC and case folding, with every run of white space as one space."""
    return SPACES.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def is_cjk(text: str) -> bool:
    """Tell whether most words of the text are single Han, kana or hangul characters."""
    words = words_of(text)
    return 2 * len(CJK_CHARACTER.findall(text)) > len(words)
