"""Personal data as moderation asks for it (`core/finding.py`): found, and told apart from what may still become some.

pending: the last run of characters that an address or a number can be made of, back to where it can have begun
"""

from __future__ import annotations

import re

from catena.core.finding import Finding
from catena.data.pii import find, plain_form
from catena.data.privacy import NOBODY, Kept

# Longest first: an e-mail address has up to 64 + 1 + 255 characters, an IBAN 34 and its spaces, a telephone number 45.
# They are read from the end of the text to its beginning: a search for what ends there would begin at every place.
RUN = re.compile(r"[A-Za-z0-9@._%+:/-]{0,700}")
NUMBER = re.compile(r"[\d ().+-]{0,95}\d[+(]?|")
ACCOUNT = re.compile(r"(?:[\dA-Z ]{0,60}\d)?[A-Z]{2}|[A-Z]|")
# A number is judged by what stands before it: `version 1.2.3.4`, `order 4111...`. Those words are looked back at, so
# only what begins behind them waits.


class Personal:
    """The detector `personal`."""

    def __init__(self) -> None:
        self._kept = Kept(NOBODY)

    def find(self, text: str) -> list[Finding]:
        """Return personal data that belongs to somebody: documentation's own addresses are left out."""
        found = [
            span for span in find(text) if (span.kind, plain_form(text[span.start : span.end])[0]) not in self._kept
        ]
        return [Finding(span.start, span.end, span.kind) for span in found]

    def aligned(self, text: str, at: int) -> int:
        """Return `at`: a text may be cut anywhere that is far enough behind."""
        return at

    def pending(self, text: str) -> int:
        """Return where the last run begins that may become an address or a number."""
        window = text[-1500:]
        plain, places = plain_form(window)
        backwards = plain[-800:][::-1]
        begin = backwards.startswith("\n")  # a line's end does not end an address that is set apart by it
        length = max(match.end() for pattern in (RUN, NUMBER, ACCOUNT) if (match := pattern.match(backwards, begin)))
        if length == begin:
            return len(text)
        start = len(plain) - length
        return len(text) - len(window) + (start if places is None else places[start])
