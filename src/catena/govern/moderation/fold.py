"""Text as a reader sees it, whatever it is written with: the form in which words are looked for. Pure.

    plain   each character as the plain letter it looks like; what nobody sees is gone
    tight   the same, without what is put between letters to hide a word, repeats as one, and digits in words as letters

Both know which character of the text each of theirs came from. Most text has nothing to fold, so each step first looks
whether it has anything to do: that costs a tenth of doing it.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from catena.core.registry import require

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CJK = "\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff\uac00-\ud7af"
# Letters of other alphabets that look like ours.
LOOKALIKES = str.maketrans(
    "авекмнорстухіјѕԁɡԛԝһցոսαβεηικνορτυχγωđøłħıæœɑƒɩʀʏᴀʙᴄᴅᴇɢʜɪᴊᴋʟᴍɴᴏᴘǫꜱᴛᴜᴠᴡᴢ×",
    "abekmhopctyxijsdgqwhgnuabenikvoptuxywdolhiaoafirya" + "bcdeghijklmnopqstuvwzx",
)
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
SIGNS = r"[._\-*~|/\\^+=#'`\u00b7\u2022]"
SMALL = r"[^\w\u3002\uff0c\uff01\uff1f\uff1b\uff1a,!?;:()<>\[\]{}\"\n]"
# Each way begins with the sign that goes and looks back from there: so the search leaps from sign to sign.
JOINS = re.compile(
    r"[\W_](?:"
    # single letters with anything between them: f u c k, f.u.c.k, 5 h 1 t
    r"(?<=[a-z0-9].)(?<![a-z0-9][a-z0-9].)[\W_]{0,4}(?=[a-z0-9](?![a-z0-9]))"
    # signs inside a word: f*ck, fu-ck
    rf"|(?<=[a-z0-9@$]{SIGNS}){SIGNS}{{0,2}}(?=[a-z0-9@$])"
    # anything small between characters of Chinese
    rf"|(?<=[{CJK}](?:{SMALL}|_))(?:{SMALL}|_){{0,4}}(?=[{CJK}])"
    # more than one space
    r"|(?<=\s\s)\s*"
    r")",
    re.DOTALL,
)
REPEATS = re.compile(r"([a-z])\1{2,}")
LEET = str.maketrans("01l345789@$!|+", "oiieastbgasiit")
LEET_LONGEST = 16
"""Most letters of a word whose digits are taken for letters: a stream holds back as many, for it is decided by all."""
LEET_HINT = re.compile(r"[0-9@$!|+](?:[a-z]|(?<=[a-z].)[a-z0-9@$]|(?<=[a-z]{3}[0-9])(?![a-z0-9]))")
LEET_WORD = re.compile(
    r"(?<![a-z0-9@$])(?=[a-z0-9@$!|+]*[0-9@$!|+])(?=[a-z0-9@$!|+]*[a-z])"
    rf"[a-z0-9@$!|+]{{1,{LEET_LONGEST - 1}}}[a-z0-9@$](?![a-z0-9@$])"
)
AMOUNT = re.compile(r"[0-9@$!|+]+[a-z]+|[a-z]+[0-9@$!|+]+")
"""A number with a unit or of a model: 900k and f495 are no words."""
TABLE = 0x20000
SEVERAL, GONE = 0xFFFFFFFE, 0xFFFFFFFF


class _Letters(dict[int, str]):
    """Each character's plain form, found out when it is first met."""

    def __missing__(self, code: int) -> str:
        made = self[code] = _plain(chr(code))
        return made


def _plain(character: str) -> str:
    if character.isspace():
        return "\n" if character == "\n" else " "
    category = unicodedata.category(character)
    if category in ("Cf", "Mn", "Me", "Cc"):
        return ""
    code = ord(character)
    if 0x1F150 <= code <= 0x1F189:  # letters in discs and squares have no decomposition
        return chr(ord("a") + (code - 0x1F150) % 32) if (code - 0x1F150) % 32 < 26 else character
    if 0x1F1E6 <= code <= 0x1F1FF:
        return chr(ord("a") + code - 0x1F1E6)
    if 0x3040 <= code <= 0x30FF or 0xAC00 <= code <= 0xD7AF:
        return character
    parts = unicodedata.normalize("NFKD", character)
    kept = "".join(part for part in parts if unicodedata.category(part) not in ("Mn", "Me", "Cf"))
    return kept.casefold().translate(LOOKALIKES)


LETTERS = _Letters()


@cache
def _table() -> npt.NDArray[np.uint32]:
    """Return the plain forms as numbers: `GONE` for none, `SEVERAL` where it is more than one letter."""
    import numpy as np

    table = np.empty(TABLE, dtype=np.uint32)
    for code in range(TABLE):
        plain = _plain(chr(code))
        table[code] = GONE if not plain else ord(plain) if len(plain) == 1 else SEVERAL
    return table


def plain_form(text: str) -> str:
    """Return the plain form of a text."""
    if text.isascii() and not CONTROL.search(text):
        return text.lower()
    import numpy as np

    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if codes.max(initial=0) >= TABLE:
        return text.translate(LETTERS)
    plain = _table()[codes]
    if (plain == SEVERAL).any():
        return text.translate(LETTERS)
    made: str = plain[plain != GONE].tobytes().decode("utf-32-le", "surrogatepass")
    return made


@cache
def _triples() -> Any:
    engine = require("ahocorasick_rs", "govern")
    return engine.AhoCorasick([chr(ord("a") + number) * 3 for number in range(26)])


class Folded:
    """A text and its two forms."""

    __slots__ = ("_kept", "_places", "plain", "text", "tight")

    def __init__(self, text: str) -> None:
        self.text = text
        self.plain = plain_form(text)
        self._places: list[int] | None = None
        self._kept: list[int] | None = None
        tight = JOINS.sub("", self.plain)
        if _triples().find_matches_as_indexes(tight):
            tight = REPEATS.sub(r"\1", tight)
        if LEET_HINT.search(tight):
            tight = LEET_WORD.sub(_unleet, tight)
        self.tight = tight.replace("\n", " ")

    def span(self, start: int, end: int, *, tight: bool) -> tuple[int, int]:
        """Return where in the text a part of a form is."""
        if self._places is None:
            self._places = [at for at, character in enumerate(self.text) for _ in LETTERS[ord(character)]]
        if not tight:
            return self._places[start], self._places[end - 1] + 1
        if self._kept is None:
            self._kept = _left(self.plain)
        return self._places[self._kept[start]], self._places[self._kept[end - 1]] + 1


def _left(plain: str) -> list[int]:
    """Return the places of the characters that the joins and repeats leave."""
    gone = bytearray(len(plain))
    for match in JOINS.finditer(plain):
        gone[match.start() : match.end()] = b"\1" * (match.end() - match.start())
    left = [at for at in range(len(plain)) if not gone[at]]
    joined = "".join(plain[at] for at in left)
    again = {at for match in REPEATS.finditer(joined) for at in range(match.start() + 1, match.end())}
    return [at for number, at in enumerate(left) if number not in again]


@lru_cache(4096)
def unleet(word: str) -> str:
    """Return a word with digits and signs as the letters that they stand for; 1, l, i and ! are one letter."""
    return word.translate(LEET)


def _unleet(match: re.Match[str]) -> str:
    word = match[0]
    letters = sum(character.isalpha() for character in word)
    enough = 2 * letters >= len(word) or (letters > 1 and len(word) > 4 and not AMOUNT.fullmatch(word))
    return unleet(word) if enough else word
