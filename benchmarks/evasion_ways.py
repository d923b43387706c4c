"""Ways to write a word so that people read it and a filter may not, by kind; for benchmarks/moderation.py.

Readings of words come from the package pypinyin, of which the filter's own table (one reading for each character) is
made as well. A way gives None for a word that it does not change.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

Way = Callable[[str], str | None]
LEET = str.maketrans("oieastbg", "01345789")
SOME_LEET = str.maketrans("oieas", "01345")
CYRILLIC = str.maketrans("aceopxy", "асеорху")
UNSEEN = ("\u200b", "\u200d", "\u00ad")
SPELLINGS = (("ck", "kk"), ("f", "ph"), ("c", "k"), ("ss", "zz"), ("er", "a"), ("i", "y"), ("u", "oo"))
dice = random.Random(5)


def full_width(word: str) -> str:
    """Return a word in the wide letters of East Asian type."""
    return "".join(chr(ord(one) + 0xFEE0) if "!" <= one <= "~" else one for one in word)


def mathematical(word: str) -> str:
    """Return a word in bold mathematical letters."""
    return "".join(chr(0x1D41A + ord(one) - 97) if "a" <= one <= "z" else one for one in word)


def between(sign: str) -> Way:
    """Return what puts a sign between all letters; an unseen one leaves the spaces of a phrase where they are."""
    return lambda word: sign.join(word if sign in UNSEEN else word.replace(" ", ""))


def inside(sign: str) -> Way:
    """Return what puts a sign in the middle of a word."""
    return lambda word: word[: len(word) // 2] + sign + word[len(word) // 2 :]


def spelt_by_ear(word: str) -> str | None:
    """Return a word as it sounds."""
    made = word
    for usual, other in SPELLINGS:
        made = made.replace(usual, other)
    return None if made == word else made


@cache
def readings() -> dict[str, list[str]]:
    """Return the usual characters of each reading, without tones."""
    from pypinyin import Style, pinyin

    found: dict[str, list[str]] = {}
    for row in range(0xB0, 0xD8):  # the 3,755 usual ones of GB 2312, which stand in the order of their readings
        for cell in range(0xA1, 0xFF):
            try:
                character = bytes((row, cell)).decode("gb2312")
            except UnicodeDecodeError:
                continue
            found.setdefault(pinyin(character, style=Style.NORMAL)[0][0], []).append(character)
    return found


def han(word: str) -> bool:
    """Tell whether a word is of Chinese characters alone, and more than one."""
    return len(word) > 1 and all("\u4e00" <= one <= "\u9fff" for one in word)


def sounds(word: str) -> list[str] | None:
    """Return the readings of a word of Chinese characters."""
    from pypinyin import lazy_pinyin

    return list(lazy_pinyin(word)) if han(word) else None


def pinyin_with(sign: str) -> Way:
    """Return what writes a word's sounds in Latin letters."""
    return lambda word: sign.join(found) if (found := sounds(word)) else None


def initials(word: str) -> str | None:
    """Return the first letters of a word's sounds."""
    return "".join(one[0] for one in found) if (found := sounds(word)) else None


def homophones(most: int) -> Way:
    """Return what puts other characters of the same sound in place of so many."""

    def written(word: str) -> str | None:
        found = sounds(word)
        if found is None:
            return None
        places = dice.sample(range(len(word)), min(most, len(word)))
        letters = list(word)
        for place in places:
            others = [one for one in readings().get(found[place], []) if one != word[place]]
            if others:
                letters[place] = dice.choice(others)
        made = "".join(letters)
        return None if made == word else made

    return written


def half_pinyin(word: str) -> str | None:
    """Return a word with one character by its sound in Latin letters."""
    found = sounds(word)
    return word[:-1] + found[-1] if found else None


WAYS: dict[str, dict[str, dict[str, Way]]] = {
    "en": {
        "nothing": {"as it is": str, "capitals": str.upper},
        "spacing": {
            "spaces": between(" "),
            "dots": between("."),
            "hyphens": between("-"),
            "a star inside": inside("*"),
            "a space inside": inside(" "),
        },
        "zero width": {
            "everywhere": between("\u200b"),
            "joiners": between("\u200d"),
            "soft hyphens": between("\u00ad"),
        },
        "leet": {
            "five letters": lambda word: word.translate(SOME_LEET),
            "eight letters": lambda word: word.translate(LEET),
            "and spaces": lambda word: " ".join(word.translate(SOME_LEET).replace(" ", "")),
        },
        "homophones": {"spelt by ear": spelt_by_ear},
        "look-alikes": {
            "full width": full_width,
            "Cyrillic letters": lambda word: word.translate(CYRILLIC),
            "mathematical": mathematical,
            "accents": lambda word: "\u0301".join(word),
            "repeats": lambda word: word[:1] + word[1] * 5 + word[2:],
        },
    },
    "zh": {
        "nothing": {"as it is": str},
        "spacing": {
            "spaces": between(" "),
            "dots": between("·"),
            "stars": between("*"),
            "emoji": between("\U0001f600"),
        },
        "zero width": {"everywhere": between("\u200b"), "joiners": between("\u200d")},
        "pinyin": {
            "joined": pinyin_with(""),
            "with spaces": pinyin_with(" "),
            "one character": half_pinyin,
            "initials": initials,
        },
        "homophones": {"one character": homophones(1), "all characters": homophones(9)},
        "look-alikes": {"full width": full_width},
    },
}
