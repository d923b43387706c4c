"""From tokens to text, piece by piece: whole characters only, and nothing of a stop string gets out.

Between the sampler and whoever reads: `TextStream` holds back what may still change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
WINDOW = 16  # tokens
LONGEST = 4  # tokens of one UTF-8 character


class Detokenizer:
    """Decodes a growing list of tokens; never gives half a UTF-8 character.

    Decoding is local: a window of the last tokens is decoded again, with some already given ones in front because
    some decoders drop the space before the first token. A byte-level model may write bytes that are no UTF-8 at all;
    they come as U+FFFD once it is certain that no later byte completes them.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._given = 0
        """Characters of the decoded window that are out."""
        self._unsure = 0
        """Tokens since the text last ended in a whole character."""

    def push(self, token: int) -> str:
        """Take one token and return the characters that are now certain."""
        self._window.append(token)
        text = self._decode(self._window)
        broken = len(text) - len(text.rstrip(REPLACEMENT))
        self._unsure = self._unsure + 1 if broken else 0
        certain = len(text)
        if broken:
            # Decoders with byte fallback show every byte of a run as U+FFFD until all of it is valid, so nothing is
            # certain at first; after LONGEST tokens it is rubbish, and only the last character can still be completed.
            certain = self._given if self._unsure <= LONGEST else len(text) - min(broken, 3)
        new = text[self._given : certain]
        self._given = max(self._given, certain)
        if len(self._window) >= 2 * WINDOW and not broken:
            self._slide(text)
        if len(self._window) >= 16 * WINDOW:  # rubbish all along
            new += self.flush()
        return new

    def flush(self) -> str:
        """Return what is left, at the end of the answer."""
        new = self._decode(self._window)[self._given :]
        self._window, self._given, self._unsure = [], 0, 0
        return new

    def _slide(self, text: str) -> None:
        """Forget the older half of the window, cut where a character begins, if the rest reads the same without it."""
        for cut in range(WINDOW, WINDOW + LONGEST):
            tail = self._decode(self._window[cut:])
            if tail and not tail.startswith(REPLACEMENT) and text.endswith(tail):
                self._window, self._given = self._window[cut:], len(tail)
                return


class StopFinder:
    """Passes text through up to the first stop string, and holds back an end that may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take text and return what may be shown; after a stop string, `stopped` is true and nothing follows."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [index for stop in self._stops if (index := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(self._overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return what was held back; the answer ended before it became a stop string."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Return the length of the longest end of `text` that begins `stop`."""
        return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


class TextStream:
    """An answer as it grows: tokens in, text to show out."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(decode)
        self._stops = StopFinder(stops)
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """All that was given out."""
        return "".join(self._pieces)

    @property
    def stopped(self) -> bool:
        """True once a stop string was met."""
        return self._stops.stopped

    def push(self, token: int) -> str:
        """Take a token and return new text, maybe none."""
        return self._give(self._stops.push(self._detokenizer.push(token)))

    def finish(self) -> str:
        """Return the rest at the end of the answer; a stop string may still be found in it."""
        rest = self._stops.push(self._detokenizer.flush())
        return self._give(rest + self._stops.flush())

    def _give(self, text: str) -> str:
        if text:
            self._pieces.append(text)
        return text
