"""From an answer back to the page: which training samples, and so which source documents, a model learnt it from.

The model's own datasets are found by lineage; in them the samples with the same answer, or, where the model put it in
words of its own, with the nearest one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from catena.core.sample import Sample
from catena.core.types import DatasetVersion, ModelVersion, Run
from catena.hub.store import Store

# A word, or one character of a script without spaces.
TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
NEAR = 0.2
"""Least share of common tokens that makes a sample worth naming."""


@dataclass(frozen=True, slots=True)
class AnswerSource:
    """A training sample that an answer can have been learnt from."""

    sample_id: str
    question: str
    answer: str
    page: str
    """The source document: the sample's `page`, or its `_source`."""
    dataset: str
    """Digest of the dataset that the sample is in."""
    similarity: float
    """1.0 for the same text (spaces aside), else the Jaccard similarity of the two sets of words."""
    parents: tuple[str, ...] = ()
    """Ids of the samples that it was made from."""


def answer_sources(store: Store, model: ModelVersion, answer: str, limit: int = 3) -> list[AnswerSource]:
    """Return where a model can have learnt an answer, the nearest first, each page once.

    Samples with the very same answer are returned alone; else the nearest by words, or nothing where none is near.
    """
    wanted, words = normal(answer), _words(answer)
    exact: dict[tuple[str, str], AnswerSource] = {}
    near: dict[tuple[str, str], AnswerSource] = {}
    similarity: dict[str, float] = {}
    for dataset, sample in _learnt_from(store, model):
        for question, reference in turns(sample):
            text = normal(reference)
            page = str(sample.metadata.get("page") or sample.source)
            key = (page, text)
            if key in exact or key in near or not text:
                continue
            if text not in similarity:
                similarity[text] = 1.0 if text == wanted else min(_jaccard(words, _words(text)), 0.99)
            if similarity[text] < NEAR:
                continue
            found = AnswerSource(
                sample.id, question, reference, page, dataset.digest, round(similarity[text], 3), sample.parents
            )
            (exact if text == wanted else near)[key] = found
    best = sorted((exact or near).values(), key=lambda source: -source.similarity)
    return best[:limit]


def _learnt_from(store: Store, model: ModelVersion) -> Iterator[tuple[DatasetVersion, Sample]]:
    """Yield the samples of every conversation dataset that the model, or one it was made from, was trained on."""
    for digest, split in trained_on(store, model.digest).items():
        dataset = store.index.artifact(digest)
        if isinstance(dataset, DatasetVersion) and dataset.shape == "conversation":
            for sample in store.open_dataset(dataset).samples(split):
                yield dataset, sample


def trained_on(store: Store, digest: str) -> dict[str, str | None]:
    """Return the digests of all inputs of all models up the line, each with the split that was learnt (None: all)."""
    found: dict[str, str | None] = {}
    waiting, seen = [digest], {digest}
    while waiting:
        current = waiting.pop()
        for run in store.index.find_runs(output=current, status="done"):
            if current in run.inputs.values():
                continue  # passed on, not made
            for given in run.inputs.values():
                artifact = store.index.artifact(given)
                if isinstance(artifact, DatasetVersion):
                    found[given] = _split(run, artifact)
                elif artifact is not None and given not in seen:
                    seen.add(given)
                    waiting.append(given)
    return found


def _split(run: Run, dataset: DatasetVersion) -> str | None:
    wanted = str(run.config.get("split", "train"))
    return wanted if wanted in dataset.splits and wanted != "all" else None


def turns(sample: Sample) -> Iterator[tuple[str, str]]:
    """Yield each assistant message with the message before it."""
    before = ""
    for turn in sample.data["messages"]:
        if turn["role"] == "assistant":
            yield before, turn["content"]
        before = turn["content"]


def normal(text: str) -> str:
    """Return a text with one blank in place of each stretch of white space."""
    return " ".join(text.split())


def _words(text: str) -> frozenset[str]:
    return frozenset(TOKEN.findall(text.lower()))


def _jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    union = len(first | second)
    return len(first & second) / union if union else 0.0
