"""`data.select`: of a mixed corpus, what is most like a reference set goes on.

    reference -> TF-IDF centroid          source -> cosine to the centroid -> the best share, or all above a threshold

Terms are words, pairs of neighbouring words, and pieces of 4 letters; in Chinese, Japanese and Korean characters and
pairs of them. They are hashed to 2^20 columns (Weinberger et al. 2009), so memory does not grow with the vocabulary,
and the corpus is read in batches, three times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

from pydantic import Field

from catena.core.config import Config
from catena.core.errors import DataError
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.data.words import folded_words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

COLUMNS = 1 << 20
BATCH = 512
LONGEST = 200_000
"""Characters of a document that are looked at: what it is about shows in far fewer."""
PIECE = 4


class SelectConfig(Config):
    keep: float = Field(0.3, gt=0, le=1)
    """Share of the rows to keep: those most like the reference set."""
    threshold: float | None = Field(None, ge=0, le=1)
    """Keep whatever is at least this similar (cosine, 0 to 1) instead of a share."""
    metadata_key: str = Field("similarity", min_length=1)
    """Where each row's similarity is written in its metadata."""


def terms(text: str) -> Iterator[str]:
    """Yield the terms of a text: words, pairs of words, and pieces of longer words."""
    words = folded_words(text[:LONGEST])
    yield from words
    yield from map("\t".join, pairwise(words))
    for word in words:
        if len(word) > PIECE:
            yield from (f"{word[start : start + PIECE]}~" for start in range(len(word) - PIECE + 1))


class Similarity:
    """Cosine similarity of texts to the centroid of reference texts, with one weighting for both.

    Inverse document frequencies come from source and reference together: what every text has says nothing.
    """

    def __init__(self) -> None:
        import numpy as np
        from sklearn.feature_extraction.text import HashingVectorizer

        self._hasher = HashingVectorizer(analyzer=terms, n_features=COLUMNS, norm=None, alternate_sign=False)
        self._frequency = np.zeros(COLUMNS, dtype=np.int64)
        self._documents = 0
        self._centroid: npt.NDArray[np.float64] | None = None

    def count(self, texts: list[str]) -> None:
        """Count in how many of the texts each term occurs."""
        import numpy as np

        self._frequency += np.bincount(self._hasher.transform(texts).indices, minlength=COLUMNS)
        self._documents += len(texts)

    def refer_to(self, batches: Iterable[list[str]]) -> None:
        """Take the centroid of these texts; raises `DataError` where they have no words."""
        import numpy as np

        total = np.zeros(COLUMNS)
        for texts in batches:
            total += np.asarray(self._weighted(texts).sum(axis=0)).ravel()
        length = float(np.linalg.norm(total))
        if not length:
            raise DataError("the reference set has no words to compare with", hint="Give documents with text.")
        self._centroid = total / length

    def of(self, texts: list[str]) -> list[float]:
        """Return the similarity of each text, 0 to 1, with six digits; 0 for a text without words."""
        assert self._centroid is not None
        # Six digits: the order of a sum, and with it the last bits, may differ between processors.
        return [round(float(value), 6) for value in self._weighted(texts) @ self._centroid]

    def _weighted(self, texts: list[str]) -> Any:
        import numpy as np
        from sklearn.preprocessing import normalize

        counts = self._hasher.transform(texts)
        idf = np.log((1 + self._documents) / (1 + self._frequency[counts.indices])) + 1
        counts.data = (1 + np.log(counts.data)) * idf
        return normalize(counts, copy=False)


def batches_of(samples: Iterable[Sample]) -> Iterator[list[str]]:
    """Yield the samples' texts in lists of `BATCH`."""
    rest = iter(samples)
    while batch := [sample.text for sample in islice(rest, BATCH)]:
        yield batch


def limit_of(scores: list[float], cfg: SelectConfig) -> tuple[float, int]:
    """Return the least similarity that stays, and how many rows with exactly that one stay (the first ones)."""
    if cfg.threshold is not None:
        return cfg.threshold, len(scores)
    count = max(1, round(cfg.keep * len(scores)))
    least = sorted(scores, reverse=True)[count - 1]
    return least, count - sum(score > least for score in scores)


@stage("data.select")
def select(ctx: Context, cfg: SelectConfig, *, source: DatasetVersion, reference: DatasetVersion) -> DatasetVersion:
    """Keep the rows most like a reference set by TF-IDF; the others are kept back with their similarity."""
    opened, model = ctx.store.open_dataset(source), ctx.store.open_dataset(reference)
    similarity = Similarity()
    progress = ctx.progress("Compare", 2 * source.rows)
    for samples in (model.samples(), progress_over(progress, opened.samples())):
        for texts in batches_of(samples):
            similarity.count(texts)
    similarity.refer_to(batches_of(model.samples()))
    batches = batches_of(progress_over(progress, opened.samples()))
    scores = [score for texts in batches for score in similarity.of(texts)]
    progress.finish()
    least, ties = limit_of(scores, cfg) if scores else (0.0, 0)
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        for sample, score in zip(opened.samples(), scores, strict=True):
            found = replace(sample, metadata={**sample.metadata, cfg.metadata_key: score})
            ties -= score == least
            if score > least or (score == least and ties >= 0):
                out.add(found)
            else:
                out.reject(found, "off_topic", f"similarity {score:.6f}, kept from {least:.6f}")
        return out.commit(profile={"selection": {"kept_from": least, "mean": mean_of(scores)}})


def progress_over(progress: Any, samples: Iterable[Sample]) -> Iterator[Sample]:
    """Yield the samples and move the progress line on."""
    for sample in samples:
        progress.advance()
        yield sample


def mean_of(scores: list[float]) -> float:
    """Return the mean with six digits; 0 of nothing."""
    return round(sum(scores) / len(scores), 6) if scores else 0.0
