"""Topics: clusters of the reference's questions, by the words that are frequent in them and rare elsewhere.

A topic's name is its most telling words. Only words of several texts are named: a page about drift must not quote what
one person wrote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from catena.data.words import folded_words

FEATURES = 1 << 12
DIMENSIONS = 32
FEWEST_TEXTS = 5
"""Texts that a word must be in to be named."""
NAMED = 3


class Topics:
    """Fitted on texts; then tells the topic of others. Raises `ValueError` where there are no words in them."""

    def __init__(self, texts: Sequence[str], count: int, seed: int) -> None:
        self._hash = HashingVectorizer(analyzer=folded_words, n_features=FEATURES, alternate_sign=False, norm=None)
        counts = self._hash.transform(texts)
        if counts.nnz == 0:
            raise ValueError("the texts have no words")
        self._weigh = TfidfTransformer(sublinear_tf=True).fit(counts)
        # Far below the number of texts: with more dimensions the clusters follow single texts.
        dimensions = max(2, min(DIMENSIONS, len(texts) // 4))
        self._clusters = KMeans(min(count, max(2, len(texts) // 20)), n_init=3, random_state=seed)
        with threadpool_limits(1):  # on a busy machine the threads of small matrices wait for each other, for seconds
            self._reduce = TruncatedSVD(dimensions, n_iter=2, random_state=seed).fit(self._weigh.transform(counts))
            places = self._clusters.fit_predict(self._placed(counts))
        self.names = _names(texts, places, self._clusters.n_clusters)

    def of(self, texts: Sequence[str]) -> list[str]:
        """Return each text's topic."""
        if not texts:
            return []
        return [self.names[place] for place in self._clusters.predict(self._placed(self._hash.transform(texts)))]

    def _placed(self, counts: Any) -> Any:
        return normalize(self._reduce.transform(self._weigh.transform(counts))).astype(np.float64)


def _names(texts: Sequence[str], places: Any, count: int) -> list[str]:
    everywhere: Counter[str] = Counter()
    within = [Counter[str]() for _ in range(count)]
    sizes = np.bincount(places, minlength=count)
    for text, place in zip(texts, places, strict=True):
        said = {word for word in folded_words(text) if len(word) > 1 or not word.isascii()}
        everywhere.update(said)
        within[place].update(said)
    names: list[str] = []
    for number, words in enumerate(within):
        telling = {
            word: many / sizes[number] * np.log(len(texts) / everywhere[word])
            for word, many in words.items()
            if many >= FEWEST_TEXTS
        }
        best = sorted(telling, key=lambda word: (-telling[word], word))[:NAMED]
        names.append(f"{number + 1}: {' '.join(best) or 'mixed'}")
    return names
