"""Word lists: found in both forms of a text (`fold.py`), in one pass each, however long the lists are.

A line of a list is an entry; `#` begins a comment.

    word          as a whole word (an entry of Chinese, Japanese or Korean anywhere)
    word*         also with an ending: words, wording
    two words     with any spaces between
    word <TAB> mask      its own action: block, mask or flag
    傻逼          also by what sounds the same (`sounds.py`): other characters, if rare in that order; pinyin
    ~操你妈 <TAB> cao ni ma     the same by these sounds, however usual: a reading for each character
    !word         harmless: a finding inside of it does not count
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, product
from pathlib import Path
from typing import Any, get_args

from catena.core.errors import ConfigError, NotFound, did_you_mean
from catena.core.finding import Act, Finding
from catena.core.registry import require
from catena.govern.moderation.fold import CJK, LEET_LONGEST, LETTERS, Folded, unleet
from catena.govern.moderation.sounds import as_sounds, rarest, read, spellings

logger = logging.getLogger(__name__)
LISTS = Path(__file__).parent / "lists"
SOUNDS = LISTS / "pinyin.tsv"
LATIN = re.compile(r"[a-z0-9]")
CHAIN = 64
"""Longest run without a space that is looked at as one word."""
FARTHEST = 4096
"""Most characters that are held back: beyond, somebody hides a word in thousands of invisible ones."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a list."""

    text: str
    """As it is written there."""
    word: str
    """As it is looked for."""
    endings: bool = False
    harmless: bool = False
    sounds: tuple[str, ...] = ()
    action: Act | None = None


def read_entries(path: Path) -> list[Entry]:
    """Read a list; raises `ConfigError` with the line of a mistake."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the word list {path} cannot be read: {error}") from error
    entries = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text:
            entries.append(_entry(text, f"{path}:{number}"))
    return entries


def _entry(line: str, where: str) -> Entry:
    text, *more = (part.strip() for part in line.split("\t") if part.strip())
    action: Act | None = None
    sounds: tuple[str, ...] = ()
    for part in more:
        if part in get_args(Act):
            action = part  # type: ignore[assignment]
        elif text.startswith("~"):
            sounds = tuple(part.split())
        else:
            raise ConfigError(f"{where}: {part!r} is no action", hint=did_you_mean(part, get_args(Act)))
    word = " ".join(Folded(text.strip("~!*")).plain.split())
    if not word or (text.startswith("~") and len(sounds) != len(word)):
        raise ConfigError(f"{where}: {line!r} is no entry", hint="A sound for each character: ~他妈<TAB>ta ma")
    return Entry(text, word, text.endswith("*"), text.startswith("!"), sounds, action)


def list_paths(names: Iterable[str]) -> list[Path]:
    """Return the files of lists by name or path; raises `NotFound`."""
    paths = []
    for name in names:
        own = LISTS / f"{name}.txt"
        path = own if own.exists() else Path(name)
        if not path.exists():
            known = [one.stem for one in LISTS.glob("*.txt")]
            raise NotFound(f"there is no word list {name!r}", hint=did_you_mean(name, known))
        paths.append(path)
    return paths


GLUED = 6
"""Fewest letters of a phrase that is also looked for without its spaces: go die is not."""
MOST_WAYS = 64


class Index:
    """Compiled entries. Immutable, so that a reload never meets a search half-way."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        engine = require("ahocorasick_rs", "govern")
        patterns: dict[str, Entry] = {}
        for entry in entries:
            patterns.setdefault(entry.word, entry)
        for entry in entries:
            if entry.harmless:
                continue
            for way in _ways(entry):
                patterns.setdefault(way, entry)
        self._entries = list(patterns.values())
        self._automaton: Any = engine.AhoCorasick(list(patterns)) if patterns else None
        alike = rarest("" if entry.harmless else entry.word for entry in entries)
        self._alike = [[(heard, entries[number]) for heard, number in ones] for ones in alike.values()]
        self._ear: Any = engine.AhoCorasick(list(alike)) if alike else None
        self._sounding = {f"s{number}": entry for number, entry in enumerate(entries) if entry.sounds}
        self._sounds = _sounds_pattern(self._sounding)
        starts = sorted({start for entry in self._sounding.values() for start in _starts(entry)})
        self._sound_starts: Any = engine.AhoCorasick(starts) if starts else None
        solid = [len(pattern.replace(" ", "")) for pattern in patterns]
        solid += [sum(map(len, entry.sounds)) for entry in self._sounding.values()]
        self.longest = max(solid, default=0)
        """Characters, without spaces, of the longest entry."""

    def find(self, text: str) -> list[Finding]:
        """Return the entries in a text, in order."""
        if self._automaton is None:
            return []
        folded = Folded(text)
        found: dict[tuple[int, int], Finding] = {}
        forms = [(folded.plain, False)]
        if folded.tight != folded.plain:
            forms.append((folded.tight, True))
        for form, tight in forms:
            hits = self._automaton.find_matches_as_indexes(form, overlapping=True)
            for start, end, entry in self._standing(form, hits) if hits else ():
                place = folded.span(start, end, tight=tight)
                if entry.endings:
                    place = (place[0], _ending(text, place[1]))
                found.setdefault(place, Finding(*place, "words", entry.text, entry.action))
        if self._ear is not None and not text.isascii():
            for start, end, entry in self._heard(folded.tight):
                place = folded.span(start, end, tight=True)
                found.setdefault(place, Finding(*place, "words", entry.text, entry.action))
        if self._sounds is not None and self._sound_starts.find_matches_as_indexes(folded.tight):
            spoken = [(*one.span(), self._sounding[one.lastgroup or ""]) for one in self._sounds.finditer(folded.tight)]
            for start, end, entry in _outside(spoken, self._harmless(folded.tight)) if spoken else ():
                place = folded.span(start, end, tight=True)
                found.setdefault(place, Finding(*place, "words", entry.text, entry.action))
        return [found[place] for place in sorted(found)]

    def _heard(self, form: str) -> list[tuple[int, int, Entry]]:
        """Return what sounds like entries, and is in nothing harmless."""
        heard = []
        for number, start, end in self._ear.find_matches_as_indexes(as_sounds(form), overlapping=True):
            fits = (entry for alike, entry in self._alike[number] if alike.has(form, start, end))
            heard += [(start, end, entry) for entry in fits][:1]
        return _outside(heard, self._harmless(form)) if heard else []

    def _harmless(self, form: str) -> list[tuple[int, int]]:
        hits = self._automaton.find_matches_as_indexes(form, overlapping=True)
        return [(start, end) for number, start, end in hits if self._entries[number].harmless]

    def _standing(self, form: str, hits: list[tuple[int, int, int]]) -> list[tuple[int, int, Entry]]:
        """Return the hits that stand as words and in nothing harmless, each with its ending."""
        standing, harmless = [], []
        for number, start, end in hits:
            entry = self._entries[number]
            if entry.harmless:
                harmless.append((start, end))
                continue
            if LATIN.match(form, start) and start > 0 and LATIN.match(form, start - 1):
                continue
            if LATIN.match(form, end - 1) and not entry.endings and LATIN.match(form, end):
                continue
            standing.append((start, end, entry))
        return _outside(standing, harmless)


def _ways(entry: Entry) -> list[str]:
    """Return how else an entry is looked for: by its sounds, and as it looks in the tight form."""
    written = {entry.word, Folded(entry.word).tight}
    whole = entry.word.replace(" ", "")
    if len(whole) >= GLUED:
        written.add(whole)
    ways = []
    for one in sorted(written):  # any of the words may have had digits for letters
        parts = [sorted({part, unleet(part)}) for part in one.split(" ")]
        ways += [" ".join(chosen) for chosen in islice(product(*parts), MOST_WAYS)]
    return [*ways, *spellings(entry.word, read(entry.word))]


def _outside(hits: list[tuple[int, int, Entry]], harmless: list[tuple[int, int]]) -> list[tuple[int, int, Entry]]:
    return [hit for hit in hits if not any(first <= hit[0] and hit[1] <= last for first, last in harmless)]


def _ending(text: str, at: int) -> int:
    """Return where a word ends that goes on from `at`."""
    stop = at
    while stop < len(text) and stop - at < CHAIN and LATIN.match(LETTERS[ord(text[stop])]):
        stop += 1
    return stop


@lru_cache(1)
def _characters() -> dict[str, str]:
    """Return the characters of each sound."""
    lines = (line.split("\t") for line in SOUNDS.read_text(encoding="utf-8").splitlines() if "\t" in line)
    return {sound.strip(): characters.strip() for sound, characters in lines}


def _starts(entry: Entry) -> list[str]:
    """Return all ways to write an entry's first two sounds: where none of them is, the slow pattern finds nothing."""
    first, second = (
        [sound, *own, *_characters().get(sound, "")]
        for own, sound in list(zip(entry.word, entry.sounds, strict=True))[:2]
    )
    return [f"{one}{space}{other}" for one in first for space in ("", " ") for other in second]


def _sounds_pattern(entries: dict[str, Entry]) -> re.Pattern[str] | None:
    if not entries:
        return None
    known = _characters()
    ways = []
    for name, entry in entries.items():
        parts = [
            rf"(?:(?<![a-z]){sound}(?![a-z])|[{own}{known.get(sound, '')}])"
            for own, sound in zip(entry.word, entry.sounds, strict=True)
        ]
        run = "".join(entry.sounds)
        ways.append(rf"(?P<{name}>{' ?'.join(parts)}|(?<![a-z]){run}(?![a-z]))")
    return re.compile("|".join(ways))


class Words:
    """The detector `words` over lists that may change while it works."""

    def __init__(self, names: Iterable[str]) -> None:
        self._paths = list_paths(names)
        self._stamps: list[tuple[int, int]] = []
        self._lock = threading.Lock()
        self._index = Index([])
        self.reload()

    def reload(self) -> bool:
        """Read the lists again if a file changed; tells whether one did. A list that is broken now stays as it was."""
        with self._lock:
            try:
                stamps = [(status.st_mtime_ns, status.st_size) for status in map(Path.stat, self._paths)]
                if stamps == self._stamps:
                    return False
                index = Index([entry for path in self._paths for entry in read_entries(path)])
            except (OSError, ConfigError) as error:
                if not self._stamps:
                    raise
                logger.error("the word lists stay as they were: %s", error)
                return False
            self._index, self._stamps = index, stamps
            return True

    def find(self, text: str) -> list[Finding]:
        """Return the entries in a text."""
        return self._index.find(text)

    def aligned(self, text: str, at: int) -> int:
        """Return `at`: a text may be cut anywhere that is far enough behind."""
        return at

    def pending(self, text: str) -> int:
        """Return where the last characters begin that may belong to an entry that is not whole yet.

        Counted are characters that a word can be made of, and a repeated one once: what is put between does not help.
        """
        at, left, before = len(text), max(self._index.longest, LEET_LONGEST) + 2, ""
        least = max(0, at - FARTHEST)
        while at > least and left > 0:
            at -= 1
            plain = LETTERS[ord(text[at])]
            if plain and plain != before and (plain[0].isalnum() or plain in "@$!|+"):
                left -= 1
            before = plain or before
        least = max(least, at - CHAIN)
        while at > least and _in_word(text[at - 1]):
            at -= 1
        return at


_CJK = re.compile(f"[{CJK}]")


def _in_word(character: str) -> bool:
    plain = LETTERS[ord(character)]
    return not plain or not (plain.isspace() or _CJK.match(plain))
