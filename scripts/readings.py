"""Make the tables of sounds that word lists are compiled with: `python scripts/readings.py`.

    pip install pypinyin==0.55.0 jieba==0.42.1 symspellpy==6.10.1

    readings.tsv     a syllable with its tone, and the characters read so (pypinyin: the usual reading of each)
    rarity.tsv       a syllable, and how rare each syllable is after it in ordinary Chinese: a letter for half a power
                     of ten, in the order of the lines. Counted in jieba's dictionary with its frequencies: within
                     words, and from the end of any word to the beginning of any other.
    latin.tsv        English words that are also whole syllables of pinyin (symspellpy's dictionary)

    ordinary.tsv     a character, and those that make a word of two with it (jieba's dictionary, the more usual ones)

The three packages are under the MIT licence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

from pypinyin import Style, lazy_pinyin, pinyin

LISTS = Path(__file__).parents[1] / "src" / "catena" / "govern" / "moderation" / "lists"
MADE = "# Made by scripts/readings.py from {}, MIT licence.\n"
COMMON = 300_000
"""So often an English word is counted that is no reader's slip."""
USUAL = 30
"""So often a Chinese word."""


def characters() -> dict[str, list[str]]:
    """Return the characters of each syllable with its tone: those of GB 2312 and Big5, which people write."""
    found: dict[str, list[str]] = {}
    for code in range(0x4E00, 0xA000):
        character = chr(code)
        if not (_encodes(character, "gb2312") or _encodes(character, "big5")):
            continue
        [[reading]] = pinyin(character, style=Style.TONE3, neutral_tone_with_five=True)
        if reading[:-1].isalpha() and reading[-1] in "12345":
            found.setdefault(reading.replace("ü", "v"), []).append(character)
    return found


def _encodes(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def words_of_jieba() -> Iterator[tuple[str, int]]:
    """Yield the words of Chinese characters alone, and how often each was counted."""
    for line in files("jieba").joinpath("dict.txt").read_text(encoding="utf-8").splitlines():
        word, count, *_ = line.split(" ")
        if all("\u4e00" <= one <= "\u9fff" for one in word):
            yield word, int(count)


def ordinary() -> dict[str, str]:
    """Return for each character those that follow it in usual words of two."""
    found: dict[str, str] = {}
    for word, count in sorted(words_of_jieba()):
        if len(word) == 2 and count >= USUAL:
            found[word[0]] = found.get(word[0], "") + word[1]
    return found


def rarities(syllables: list[str]) -> list[str]:
    """Return a line of letters for each syllable: how rare each other is after it."""
    inside: Counter[tuple[str, str]] = Counter()
    first: Counter[str] = Counter()
    last: Counter[str] = Counter()
    for word, count in words_of_jieba():
        sounds = lazy_pinyin(word)
        first[sounds[0]] += count
        last[sounds[-1]] += count
        for pair in pairwise(sounds):
            inside[pair] += count
    words = first.total()
    places = words + inside.total()
    lines = []
    for one in syllables:
        shares = [(inside[one, two] + last[one] * first[two] / words) / places for two in syllables]
        lines.append("".join(chr(ord("a") + min(25, int(-2 * math.log10(max(share, 1e-12))))) for share in shares))
    return lines


def latin(syllables: set[str]) -> list[str]:
    """Return common English words that are made of whole syllables."""
    found = []
    text = files("symspellpy").joinpath("frequency_dictionary_en_82_765.txt").read_text(encoding="utf-8-sig")
    for line in text.splitlines():
        word, count = line.split(" ")
        whole = [True] + [False] * len(word)
        for end in range(1, len(word) + 1):
            whole[end] = any(whole[at] and word[at:end] in syllables for at in range(max(0, end - 6), end))
        if whole[-1] and int(count) >= COMMON:
            found.append(word)
    return sorted(found)


def main() -> None:
    """Write the four tables."""
    known = characters()
    syllables = sorted({reading[:-1] for reading in known})
    lines = [f"{reading}\t{''.join(known[reading])}\n" for reading in sorted(known)]
    (LISTS / "readings.tsv").write_text(MADE.format("pypinyin") + "".join(lines), encoding="utf-8")
    rows = [f"{one}\t{row}\n" for one, row in zip(syllables, rarities(syllables), strict=True)]
    (LISTS / "rarity.tsv").write_text(MADE.format("jieba's dictionary") + "".join(rows), encoding="utf-8")
    after = [f"{one}\t{others}\n" for one, others in ordinary().items()]
    (LISTS / "ordinary.tsv").write_text(MADE.format("jieba's dictionary") + "".join(after), encoding="utf-8")
    words = "\n".join(latin(set(syllables))) + "\n"
    (LISTS / "latin.tsv").write_text(MADE.format("symspellpy's dictionary") + words, encoding="utf-8")


if __name__ == "__main__":
    main()
