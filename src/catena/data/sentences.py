"""Where the first sentence of a text ends, in English and Chinese, without stopping at `e.g.`, `os.path` or `3.11`."""

from __future__ import annotations

import re

PARAGRAPH = re.compile(r"\n[ \t]*\n")
# A full stop ends a sentence only before white space or the end; a Chinese one always does.
END = re.compile(r"[.!?…]+[\"')\]”’]*(?=\s|$)|[。！？]+[”’」』）]*")
CLOSED = re.compile(r"[.!?。！？][\"')\]”’」』）]*$")
ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"'])(?:e\.g|i\.e|etc|cf|vs|viz|approx|resp|incl|fig|no|sec|ch|p|pp|ver|dr|mr|mrs|ms|st|al|a\.k\.a"
    r"|[A-Za-z])\.$",
    re.IGNORECASE,
)


def first_sentence(text: str) -> str:
    """Return the first sentence of the first paragraph on one line; the whole paragraph if no sentence ends in it."""
    paragraph = " ".join(PARAGRAPH.split(text.strip(), maxsplit=1)[0].split())
    for match in END.finditer(paragraph):
        candidate = paragraph[: match.end()]
        following = paragraph[match.end() :].lstrip()[:1]
        # "etc." may end a sentence; what follows in lower case goes on with it, and so does anything after "e.g.".
        if match[0].startswith(".") and following and (following.islower() or ABBREVIATION.search(candidate)):
            continue
        return candidate
    return paragraph


def is_sentence(text: str) -> bool:
    """Tell whether a text looks like one whole sentence: a letter, not a small one, begins it, and it has an end."""
    return text[:1].isalpha() and not text[0].islower() and bool(CLOSED.search(text))
