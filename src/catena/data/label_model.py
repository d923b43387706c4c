"""How sure a label is, judged by a model that has not seen its row: what the confidence filter and the search for label
errors share. Pure.

    texts -> hashed words, pairs and letter triples, TF-IDF -> naive Bayes, trained on the other folds -> log scores
          -> temperature and noise rate, fitted together -> probabilities [rows, labels], and the belief in each label

Naive Bayes, because it is trained by one sparse product: on 15,000 queries with 150 intents it judged better than
logistic regression on 200 dimensions (93 % against 87 % right, with 10 % of the labels wrong) in a hundredth of the
time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from catena.core.errors import DataError
from catena.data.words import folded_words

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

LABEL_FEATURES = 1 << 16
QUALITY_FEATURES = 1 << 18
SMOOTHING = 0.05
TEMPERATURES = np.geomspace(0.05, 20, 49)
NOISE_STEPS = 30


class Belief(NamedTuple):
    """What the other rows say about each row's label."""

    probabilities: Floats
    """[rows, labels]; each row adds up to 1."""
    given: Floats
    """[rows]: the probability of the label that the row has."""
    right: Floats
    """[rows]: the probability that this label is no mistake, given how often mistakes happen."""
    noise: float
    """The estimated share of labels that were drawn at random."""


class Coded(NamedTuple):
    """The labels that have enough rows, as numbers."""

    rows: list[int]
    """Places of the rows with such a label."""
    names: list[str]
    codes: Integers
    """For each of `rows`, the place of its label in `names`."""


def coded(labels: Sequence[str], least: int) -> Coded:
    """Number the labels that have at least so many rows; raises `DataError` where these are fewer than two."""
    names = sorted(name for name, count in Counter(labels).items() if count >= least)
    if len(names) < 2:
        raise DataError(
            f"fewer than two labels have {least} rows or more: nothing can be judged", hint="Use fewer folds."
        )
    place = {name: number for number, name in enumerate(names)}
    rows = [row for row, label in enumerate(labels) if label in place]
    return Coded(rows, names, np.array([place[labels[row]] for row in rows], dtype=np.int64))


def phrases(text: str) -> list[str]:
    """Return words and pairs of neighbours; in Chinese, Japanese and Korean, of characters."""
    words = folded_words(text)
    return words + [f"{first} {second}" for first, second in pairwise(words)]


def pieces(text: str) -> list[str]:
    """Return words, pairs, and the letter triples of each word, which make short texts comparable."""
    marked = [f"<{word}>" for word in folded_words(text)]
    triples = [word[start : start + 3] for word in marked for start in range(len(word) - 2)]
    return phrases(text) + triples


def hashed(texts: Sequence[str], *, short: bool) -> Any:
    """Return the counts of each text's pieces (of its phrases, if it is not short), hashed into columns (sparse)."""
    analyzer, width = (pieces, LABEL_FEATURES) if short else (phrases, QUALITY_FEATURES)
    vectorizer = HashingVectorizer(analyzer=analyzer, n_features=width, alternate_sign=False, norm=None)
    return vectorizer.transform(texts).tocsr()


def weighted(counts: Any) -> Any:
    """Return the counts as TF-IDF, each row of length 1."""
    return TfidfTransformer(sublinear_tf=True).fit_transform(counts).tocsr()


def folds_of(labels: Integers, folds: int, seed: int) -> Integers:
    """Return each row's fold; every label is spread over the folds as evenly as it goes."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    result = np.empty(len(labels), dtype=np.int64)
    result[order] = np.arange(len(labels)) % folds
    return result


def cross_scores(features: Any, labels: Integers, classes: int, fold: Integers, kept: npt.NDArray[np.bool_]) -> Floats:
    """Return the log scores [rows, classes] of each row, by a model trained on the kept rows of the other folds."""
    scores = np.zeros((len(labels), classes))
    for number in np.unique(fold):
        rows = np.flatnonzero((fold != number) & kept)
        asked = np.flatnonzero(fold == number)
        scores[asked] = _naive_bayes(features[rows], labels[rows], classes, features[asked])
    return scores


def _naive_bayes(features: Any, labels: Integers, classes: int, asked: Any) -> Floats:
    """Return the log joint scores of multinomial naive Bayes (Manning et al. 2008, ch. 13) for the rows asked about."""
    ones = np.ones(len(labels))
    member = coo_array((ones, (labels, np.arange(len(labels)))), shape=(classes, len(labels))).tocsr()
    weight = np.asarray((member @ features).todense()) + SMOOTHING
    weight = np.log(weight) - np.log(weight.sum(axis=1, keepdims=True))
    prior = np.log(np.bincount(labels, minlength=classes) + 1.0)
    scores: Floats = np.asarray(asked @ weight.T) + (prior - np.log(len(labels) + classes))
    return scores


def belief(scores: Floats, labels: Integers) -> Belief:
    """Turn scores into probabilities, and into the belief that each given label is right.

    A given label is taken to be the true one, or with probability `noise` one drawn at random. Temperature and noise
    are fitted together by likelihood: fitted alone, the temperature would make the model unsure to excuse the mistakes.
    """
    classes = scores.shape[1]
    own = np.arange(len(labels))
    best = (-np.inf, 1.0, 0.0)
    for temperature in TEMPERATURES:
        given = _softmax(scores / temperature)[own, labels]
        noise = _noise(given, classes)
        likelihood = float(np.log((1 - noise) * given + noise / classes + 1e-300).sum())
        best = max(best, (likelihood, float(temperature), noise))
    probabilities = _softmax(scores / best[1])
    given, noise = probabilities[own, labels], best[2]
    right = (1 - noise) * given / ((1 - noise) * given + noise / classes + 1e-300)
    return Belief(probabilities, given, right, noise)


def _noise(given: Floats, classes: int) -> float:
    """Estimate the share of random labels by expectation maximisation."""
    noise = 0.1
    for _ in range(NOISE_STEPS):
        noise = float(np.mean(noise / classes / ((1 - noise) * given + noise / classes)))
    return min(max(noise, 1e-4), 0.9)


def _softmax(scores: Floats) -> Floats:
    shifted: Floats = np.exp(scores - scores.max(axis=1, keepdims=True))
    shifted /= shifted.sum(axis=1, keepdims=True)
    return shifted
