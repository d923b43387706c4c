"""Extraction: from the text of an answer to what is scored. A pattern that runs away finds nothing, and is told of."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from catena.core.registry import require
from catena.evaluate.task import ExtractStep

MOST_SECONDS = 2.0
"""For one pattern on one answer."""
MOST_CHARACTERS = 100_000
"""Of an answer that patterns read: its end, for what comes last counts."""


class Extractor:
    """The steps of a task; counts what they could not read."""

    def __init__(self, steps: Sequence[ExtractStep]) -> None:
        self.steps = tuple(steps)
        self.nothing = 0
        """Answers in which nothing was found."""
        self.late = 0
        """Answers on which a pattern ran too long; they count as such, too."""
        patterns = [step.regex or step.remove for step in steps]
        self._regex: Any = require("regex", "eval") if any(patterns) else None

    def __call__(self, text: str) -> str | None:
        """Return what is to be scored, or None."""
        found: str | None = text
        try:
            for step in self.steps:
                found = self._step(step, found[-MOST_CHARACTERS:]) if found is not None else None
        except TimeoutError:
            self.late += 1
            found = None
        self.nothing += found is None
        return found

    def _step(self, step: ExtractStep, text: str) -> str | None:
        if step.until:
            text = text.partition(step.until)[0]
        if step.remove:
            text = self._regex.sub(step.remove, "", text, timeout=MOST_SECONDS)
        if step.regex:
            flags = self._regex.IGNORECASE if step.ignore_case else 0
            matches = self._regex.finditer(step.regex, text, flags=flags, timeout=MOST_SECONDS)
            found = next(matches, None) if step.take == "first" else deque(matches, maxlen=1)
            match: Any = (found.pop() if found else None) if isinstance(found, deque) else found
            if match is None:
                return None
            text = match.group(next((at for at, one in enumerate(match.groups(), 1) if one is not None), 0))
        if step.strip:
            text = text.strip()
        if step.lower:
            text = text.lower()
        return step.map.get(text, text)
