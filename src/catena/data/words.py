"""Words of a text in any script: what the data stages count, shingle and compare.

Han, kana and hangul text has no usable spaces, so each of its characters counts as a word, and so does each letter and
mark of Thai, Lao, Burmese and Khmer; everything else is cut at whatever is neither letter nor digit. Vowel signs and
accents behind a letter belong to its word, as do joiners between two letters (Unicode Annex 29, WB4).
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
# Thai, Lao, Burmese with its neighbours, Khmer, Tai: letters and marks, no digits, no punctuation.
SOUTH_EAST_ASIAN = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf\u1000-\u103f\u1050-\u108f\u109a-\u109d\u1780-\u17d3\u17d7"
    "\u17dc-\u17dd\u1950-\u1974\u1980-\u19c9\u1a20-\u1a7f\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa76\uaa7a-\uaa7f"
)
ONE_BY_ONE = re.compile(f"[{CJK}{SOUTH_EAST_ASIAN}]")
"""A character that is a word."""
# Variation selectors are marks by category, and choose a glyph: an emoji's is no part of the digit before it.
MARKS = "".join(
    mark
    for mark in map(chr, [*range(0x300, 0xFE00), *range(0xFE10, 0x1F000)])
    if unicodedata.category(mark) in ("Mn", "Mc") and not ONE_BY_ONE.match(mark)
)
"""Characters that belong to the letter before them."""
JOINERS = "\u200c\u200d"


def _word() -> re.Pattern[str]:
    letter, wide = f"[^\\W{CJK}{SOUTH_EAST_ASIAN}]", "\U00010000-\U0001efff"
    mark = f"(?:[{MARKS}]|[{JOINERS}](?=[{MARKS}]|{letter}))"
    # Marks beyond U+FFFF are searched one by one: what stands behind most words is told from a mark before that.
    ahead = f"(?=[{''.join(mark for mark in MARKS if mark <= chr(0xFFFF))}{JOINERS}{wide}])"
    return re.compile(f"{ONE_BY_ONE.pattern}|{letter}++(?:{ahead}{mark}{letter}*+)*+")


WORD = _word()
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
