"""Where the first sentence of a text ends, in English and Chinese, without stopping at `e.g.`, `os.path` or `3.11`."""

from __future__ import annotations

import re

PARAGRAPH = re.compile(r"\n[ \t]*\n")
# A full stop ends a sentence only before white space or the end; a Chinese one always does.
END = re.compile(r"[.!?…]+[\"')\]”’]*(?=\s|$)|[。！？]+[”’」』）]*")
CLOSED = re.compile(r"[.!?。！？][\"')\]”’」』）]*$")
# The first kind never ends a sentence; the second does before a capital letter.
NEVER_LAST = re.compile(
    r"(?:^|[\s(\[\"'])(?:e\.g|i\.e|cf|vs|viz|approx|resp|incl|fig|dr|mr|mrs|ms|prof)\.$", re.IGNORECASE
)
MAY_BE_LAST = re.compile(r"(?:^|[\s(\[\"'])(?:etc|et al|a\.k\.a)\.$", re.IGNORECASE)


def first_sentence(text: str) -> str:
    """Return the first sentence of the first paragraph on one line; the whole paragraph if no sentence ends in it."""
    paragraph = " ".join(PARAGRAPH.split(text.strip(), maxsplit=1)[0].split())
    for match in END.finditer(paragraph):
        candidate, following = paragraph[: match.end()], paragraph[match.end() :].lstrip()
        if NEVER_LAST.search(candidate) or (MAY_BE_LAST.search(candidate) and following[:1].islower()):
            continue
        return candidate
    return paragraph


def is_sentence(text: str) -> bool:
    """Tell whether a text looks like one whole sentence: a letter, not a small one, begins it, and it has an end."""
    return text[:1].isalpha() and not text[0].islower() and bool(CLOSED.search(text))


def sentences(text: str) -> list[str]:
    """Return all sentences of a text in order; a line break ends one too, so a heading is a sentence of its own."""
    found: list[str] = []
    for line in text.splitlines():
        start = 0
        for match in END.finditer(line):
            candidate, following = line[start : match.end()].strip(), line[match.end() :].lstrip()
            if NEVER_LAST.search(candidate) or (MAY_BE_LAST.search(candidate) and following[:1].islower()):
                continue
            found.append(candidate)
            start = match.end()
        found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]
