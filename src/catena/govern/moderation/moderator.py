"""The settings of moderation at work: which detectors look, what is done about what they find, lists read again."""

from __future__ import annotations

import logging
import threading

from catena.core.finding import DETECTORS, Act, Detector, Finding
from catena.govern.config import ModerationConfig
from catena.govern.moderation.classifier import Filter
from catena.govern.moderation.stream import Outcome, Stream
from catena.govern.moderation.words import Words

logger = logging.getLogger(__name__)
MOST_NAMES = 4096


class Moderator:
    """Looks through texts. Also a context manager."""

    def __init__(self, config: ModerationConfig, classifier: Filter | None = None) -> None:
        self.config = config
        self._words = Words(config.words)
        self._detectors: list[Detector] = [self._words] if config.words else []
        if config.personal:
            self._detectors.append(DETECTORS.load("personal")())
        if classifier is not None:
            self._detectors.append(classifier)
        self._acts: dict[str, Act] = {"words": config.on_words, "classifier": config.on_classifier}
        self._harmless: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="catena-words", daemon=True)
        self._thread.start()

    def __enter__(self) -> Moderator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop looking for changed lists."""
        self._ended.set()
        self._thread.join(10)

    def decide(self, finding: Finding) -> Act:
        """Return what is done about a finding."""
        return finding.action or self._acts.get(finding.kind, self.config.on_personal)

    def stream(self) -> Stream:
        """Return a new text that will be written piece by piece."""
        return Stream(self._detectors, self.decide)

    def review(self, text: str) -> Outcome:
        """Decide about a whole text."""
        return self.stream().push(text, end=True)

    def harmless(self, name: str) -> bool:
        """Tell whether nothing is found in a name; names are few and come again with every request."""
        known = self._harmless
        if name in known:
            return True
        good = not self.review(name).decisions
        if good and len(known) < MOST_NAMES:
            known.add(name)
        return good

    def _watch(self) -> None:
        while not self._ended.wait(self.config.refresh_s):
            try:
                if self._words.reload():
                    self._harmless = set()
                    logger.warning("the word lists have changed and are read again")
            except Exception:
                logger.exception("looking for changed word lists failed")
