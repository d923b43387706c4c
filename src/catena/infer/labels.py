"""Classifiers behind the generators' registry: texts in, the probability of each label out. They generate nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from catena.core.errors import UsageError
from catena.core.generate import Delta, Labelled, Request
from catena.infer.codec import ModelCodec
from catena.models.classify import Classifier, encode


class TextLabeller:
    """A `Labeller` over a model with the head `sequence`."""

    def __init__(self, classifier: Classifier) -> None:
        if classifier.head != "sequence":
            raise UsageError(f"the model labels tokens (its head is {classifier.head}), not texts")
        self._classifier = classifier
        rows = classifier.model.get_input_embeddings().weight.shape[0]
        self.codec = ModelCodec(classifier.tokenizer, rows)
        self._lock = threading.Lock()
        self._texts = self._tokens = 0

    def classify(self, texts: Sequence[str]) -> list[Labelled]:
        """Return the probability of each label of each text."""
        for text in texts:
            if not text.strip():
                raise UsageError("a text is empty")
            self.codec.continuation(text)  # refuses half characters
        with self._lock:
            rows = encode(self._classifier.tokenizer, texts)
            context = self._classifier.context
            longest = max((len(row.ids) for row in rows), default=0)
            if context and longest > context:
                raise UsageError(f"a text has {longest} tokens; the context is {context} tokens", hint="Cut it.")
            found = self._classifier.probabilities(rows)
            self._texts += len(rows)
            self._tokens += sum(len(row.ids) for row in rows)
        return [
            Labelled(dict(zip(self._classifier.labels, map(float, shares), strict=True)), len(row.ids))
            for row, shares in zip(rows, found, strict=True)
        ]

    def submit(self, request: Request, on_delta: Callable[[Delta], None]) -> NoReturn:
        """Refuse: this model writes no text."""
        raise UsageError("this model gives labels and does not generate", hint="Ask /v1/classify.")

    def cancel(self, request_id: str) -> None:
        """Nothing runs."""

    def stats(self) -> Mapping[str, float]:
        """Return counters."""
        told = {"alive": 1.0, "texts_total": self._texts, "prompt_tokens_total": self._tokens}
        return told | ({"context_tokens": self._classifier.context} if self._classifier.context else {})

    def close(self) -> None:
        """Nothing to end."""


def open_labeller(folder: Path, **options: Any) -> TextLabeller:
    """Load a classifier's folder."""
    if options:
        raise UsageError(f"a classifier takes no options, not {', '.join(options)}")
    return TextLabeller(Classifier(folder))
