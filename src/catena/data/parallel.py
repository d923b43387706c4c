"""`data.align_parallel`: two datasets of documents that translate each other become examples, sentence by sentence.

    two tables -> pairs (the rest kept back, lengths added up) -> words learnt -> aligned (`bitext`) -> examples

Documents are paired by a key of their metadata, or by their order. Each step reads the tables again, some rows at a
time: of texts that are not being aligned, only keys and places are in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice, zip_longest
from typing import Any

import numpy as np
from pydantic import Field

from catena.core.config import Config
from catena.core.errors import DataError
from catena.core.sample import Sample, dig, sample_id
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.data.bitext import Bead, Lexicon, align, learn_lexicon
from catena.data.sentences import sentences
from catena.hub.datasets import Dataset
from catena.hub.rows import to_sample

LEARNED = 20_000
"""Pairs of sentences that the lexicon is learned from at most, and at least: of fewer, chance would be learned."""
FEWEST = 50


# Documents whose translations are fetched at once.
AT_ONCE = 256

Pair = tuple[Sample, Sample, list[str], list[str]]


class AlignParallelConfig(Config):
    pair_by: str = ""
    """What a document and its translation share in their metadata (`id`, `fields.id`); if empty, their place."""
    min_score: float = Field(0.1, ge=0, le=1)
    """Pairs with a lower score (lengths, and words if a lexicon is learned) are kept back as `misaligned`."""
    lexicon: bool = True
    """Align twice, the second time with the words that the first time put together."""
    max_sentences: int = Field(5000, ge=1)
    """Documents with more sentences are kept back as `too_long`."""


def sentences_of(sample: Sample) -> list[str]:
    """Return a document's sentences: the list under metadata.sentences, or the text cut at its full stops and lines."""
    given = sample.metadata.get("sentences")
    return [str(sentence) for sentence in given] if isinstance(given, list) else sentences(sample.text)


class Paired:
    """Two datasets, read together again and again: of the texts, only some are in memory at a time."""

    def __init__(self, source: Dataset, target: Dataset, cfg: AlignParallelConfig) -> None:
        self._source, self._target, self._key, self._most = source, target, cfg.pair_by, cfg.max_sentences

    def all(self) -> Iterator[tuple[Sample | None, Sample | None]]:
        """Yield each source document with its translation, and translations without a source; None for what is missing.

        Of several translations with one key, the last is taken.
        """
        if not self._key:
            yield from zip_longest(self._source.samples(), self._target.samples())
            return
        keyed = ((place, self._key_of(sample)) for place, sample in enumerate(self._target.samples()))
        waiting = {key: place for place, key in keyed if key is not None}
        used: set[int] = set()
        rest = self._source.samples()
        while some := list(islice(rest, AT_ONCE)):
            keys = [self._key_of(sample) for sample in some]
            places = [-1 if key is None else waiting.pop(key, -1) for key in keys]
            wanted = sorted(place for place in places if place >= 0)
            found = dict(zip(wanted, map(to_sample, self._target.take(np.array(wanted, dtype=np.int64))), strict=True))
            used.update(wanted)
            yield from ((sample, found.get(place)) for sample, place in zip(some, places, strict=True))
        yield from ((None, sample) for place, sample in enumerate(self._target.samples()) if place not in used)

    def _key_of(self, sample: Sample) -> str | None:
        value = dig(sample.metadata, self._key)
        return None if value is None else str(value)

    def pairs(self) -> Iterator[Pair]:
        """Yield the documents that have each other, with their sentences."""
        for first, second in self.all():
            if first is not None and second is not None:
                cut = sentences_of(first), sentences_of(second)
                if max(map(len, cut)) <= self._most:
                    yield first, second, *cut


def license_of(first: str | None, second: str | None) -> str | None:
    """Return the licence of what is made of two things: both, or unknown where either is."""
    return first if first == second else f"{first} AND {second}" if first and second else None


def example(source: Sample, target: Sample, bead: Bead, texts: tuple[str, str]) -> Sample:
    """Return the example of one bead; both documents are its parents."""
    metadata: dict[str, Any] = {
        "score": bead.score,
        "bead": f"{bead.first_end - bead.first}-{bead.second_end - bead.second}",
        "source_sentence": bead.first,
        "target_sentence": bead.second,
    }
    return Sample(
        id=sample_id(source.id, target.id, bead.first, bead.second),
        data={"input": texts[0], "output": texts[1]},
        metadata=metadata,
        source=source.source,
        license=license_of(source.license, target.license),
        parents=(source.id, target.id),
        split=source.split,
    )


def texts_of(bead: Bead, first: list[str], second: list[str]) -> tuple[str, str]:
    """Return the two texts of a bead."""
    return " ".join(first[bead.first : bead.first_end]), " ".join(second[bead.second : bead.second_end])


@stage("data.align_parallel")
def align_parallel(
    ctx: Context, cfg: AlignParallelConfig, *, source: DatasetVersion, target: DatasetVersion
) -> DatasetVersion:
    """Align the sentences of documents and their translations; pairs become examples, the rest is kept back."""
    both = Paired(ctx.store.open_dataset(source), ctx.store.open_dataset(target), cfg)
    pairs, lengths = 0, [0, 0]
    with ctx.store.new_dataset("example", license=license_of(source.license, target.license)) as out:
        for first, second in ctx.progress("Pair", max(source.rows, target.rows), "documents").over(both.all()):
            if first is None or second is None:
                lonely = first or second
                assert lonely is not None
                out.reject(lonely, "no_translation", cfg.pair_by or "order", shape="document")
                continue
            cut = sentences_of(first), sentences_of(second)
            if max(map(len, cut)) > cfg.max_sentences:
                out.reject(first, "too_long", f"{max(map(len, cut))} sentences", shape="document")
                continue
            pairs += 1
            lengths = [length + len("".join(part)) for length, part in zip(lengths, cut, strict=True)]
        if not pairs:
            raise DataError("no document has its translation in the other dataset", hint="See `pair_by`.")
        ratio = lengths[1] / max(1, lengths[0])
        learning = ctx.progress("Learn words", pairs, "documents") if cfg.lexicon else None
        lexicon = _lexicon_of(learning.over(both.pairs()), ratio) if learning else None
        beads = 0
        for one, other, given, translated in ctx.progress("Align", pairs, "documents").over(both.pairs()):
            for bead in align(given, translated, lexicon, ratio):
                beads += 1
                made = example(one, other, bead, texts_of(bead, given, translated))
                rest = replace(made, data={"text": "\n".join(filter(None, made.data.values()))})
                if not made.data["input"] or not made.data["output"]:
                    out.reject(rest, "unaligned", made.metadata["bead"], shape="document")
                elif bead.score < cfg.min_score:
                    out.reject(rest, "misaligned", f"score {bead.score:.4f}", shape="document")
                else:
                    out.add(made)
        facts = {"documents": pairs, "beads": beads, "length_ratio": round(ratio, 4)}
        return out.commit(profile={"alignment": facts})


def _lexicon_of(pairs: Iterable[Pair], ratio: float) -> Lexicon | None:
    """Learn words from the pairs of one sentence each that lengths alone put together."""
    sure = (
        texts_of(bead, first, second)
        for _, _, first, second in pairs
        for bead in align(first, second, None, ratio)
        if bead.first_end - bead.first == bead.second_end - bead.second == 1
    )
    learned = list(islice(sure, LEARNED))
    return learn_lexicon(learned) if len(learned) >= FEWEST else None
