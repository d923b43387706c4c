"""Measures: from answers and references to scores. Each keeps a row of numbers for each question, of which sums decide.

    answers, references -> evidence [questions, k] -> sums [k] -> score

A mean is (score, 1); perplexity (nats, tokens); BLEU its counts of n-grams; F1 the hits of each label. So one bootstrap
and one paired comparison (`stats.py`) do for all of them, by drawing rows.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catena.core.generate import SCORERS, Scorer
from catena.core.registry import require
from catena.evaluate.scorers import contains, exact
from catena.evaluate.words import rouge_l, rouge_n, token_f1, words_of

Array = NDArray[np.float64]
Normal = Literal["case", "punctuation", "articles"]
NUMBER = re.compile(r"[-+−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


class Pair(NamedTuple):
    """What was answered, and what would have been right; None where no answer could be read."""

    answer: str | None
    references: tuple[str, ...]
    metadata: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Manner:
    """How texts of one task are compared."""

    language: str = ""
    normal: tuple[str, ...] = ()
    labels: tuple[str, ...] = field(default=(), compare=False)
    """Labels of the references, in order: those that F1 is about."""


class Measure(NamedTuple):
    """One score: its evidence from pairs, and what sums `[..., k]` of it come to."""

    evidence: Callable[[Sequence[Pair], Manner], Array]
    finish: Callable[[Array], Array]
    better: Literal["higher", "lower"] = "higher"
    unit: str = ""


def normalized(text: str, ways: Sequence[str]) -> str:
    """Return a text without what does not count."""
    if "case" in ways:
        text = text.casefold()
    if "punctuation" in ways:
        text = "".join(" " if unicodedata.category(one)[0] in "PS" else one for one in text)
    if "articles" in ways:
        text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split()) if ways else text


def number_in(text: str) -> float | None:
    """Return the last number of a text: signs of money and commas between thousands do not count.

    None as well for one that a float cannot hold: infinity is within a millionth part of everything.
    """
    found = NUMBER.findall(unicodedata.normalize("NFKC", text))
    number = float(found[-1].replace(",", "").replace("−", "-")) if found else None
    return number if number is not None and isfinite(number) else None


def numeric(answer: str, reference: str, metadata: Mapping[str, Any]) -> float:
    """Return 1.0 where both end with the same number, to a millionth part."""
    one, other = number_in(answer), number_in(reference)
    if one is None or other is None:
        return 0.0
    return float(abs(one - other) <= 1e-6 * max(abs(one), abs(other)))


def verbatim(answer: str, reference: str, metadata: Mapping[str, Any]) -> float:
    """Return 1.0 where both are the same text to the last character."""
    return float(answer == reference)


def ratio(sums: Array) -> Array:
    """Return the first sum by the second: a mean, or a rate."""
    return sums[..., 0] / np.maximum(sums[..., 1], 1e-300)


def mean_of(scores: Sequence[float]) -> Array:
    """Return the evidence of a mean."""
    return np.stack([np.asarray(scores, dtype=np.float64), np.ones(len(scores))], axis=1)


def by_pairs(score: Callable[[Manner], Scorer]) -> Measure:
    """Return the mean of a score of single pairs; of several references the best counts."""

    def evidence(pairs: Sequence[Pair], manner: Manner) -> Array:
        scorer = score(manner)
        return mean_of(
            [
                0.0
                if pair.answer is None
                else max((scorer(pair.answer, one, pair.metadata) for one in pair.references), default=0.0)
                for pair in pairs
            ]
        )

    return Measure(evidence, ratio)


def _normal(scorer: Scorer) -> Callable[[Manner], Scorer]:
    def with_manner(manner: Manner) -> Scorer:
        def score(answer: str, reference: str, metadata: Mapping[str, Any]) -> float:
            return scorer(normalized(answer, manner.normal), normalized(reference, manner.normal), metadata)

        return score

    return with_manner


def _words(compare: Callable[[Sequence[str], Sequence[str]], float]) -> Callable[[Manner], Scorer]:
    def with_manner(manner: Manner) -> Scorer:
        def score(answer: str, reference: str, metadata: Mapping[str, Any]) -> float:
            return compare(words_of(answer, manner.language), words_of(reference, manner.language))

        return score

    return with_manner


def _token_f1(manner: Manner) -> Scorer:
    def score(answer: str, reference: str, metadata: Mapping[str, Any]) -> float:
        one, other = (normalized(text, manner.normal) for text in (answer, reference))
        cut = [list(text.replace(" ", "")) if manner.language == "zh" else text.split() for text in (one, other)]
        return token_f1(*cut)

    return score


# -- of all pairs together -------------------------------------------------------------------------------------------


def _corpus(make: Callable[[Manner], Any]) -> Measure:
    """Return a measure of sacreBLEU: sums of its statistics over the sentences, and its score of them."""

    def evidence(pairs: Sequence[Pair], manner: Manner) -> Array:
        most = max(len(pair.references) for pair in pairs)
        streams = [[pair.references[at] if at < len(pair.references) else None for pair in pairs] for at in range(most)]
        # Also where nothing could be read: an empty answer has counts, and its reference's length counts.
        rows = make(manner)._extract_corpus_statistics([pair.answer or "" for pair in pairs], streams)
        return np.asarray(rows, dtype=np.float64)

    def finish(sums: Array) -> Array:
        metric = make(Manner())
        flat = sums.reshape(-1, sums.shape[-1])
        scores = [metric._compute_score_from_stats([int(one) for one in row]).score for row in flat]
        return np.asarray(scores, dtype=np.float64).reshape(sums.shape[:-1])

    return Measure(evidence, finish)


def _bleu(manner: Manner) -> Any:
    return require("sacrebleu.metrics", "eval").BLEU(tokenize="zh" if manner.language == "zh" else "13a")


def _chrf(manner: Manner) -> Any:
    return require("sacrebleu.metrics", "eval").CHRF()


def _hits(pairs: Sequence[Pair], manner: Manner) -> Array:
    """Return for each pair and label: hit, foretold, given; and once more for all labels together."""
    place = {label: at for at, label in enumerate(manner.labels)}
    rows = np.zeros((len(pairs), 3 * len(place) + 3))
    for row, pair in zip(rows, pairs, strict=True):
        given = pair.references[0] if pair.references else None
        hit = pair.answer is not None and pair.answer == given
        row[-3:] = hit, pair.answer is not None, given is not None
        if pair.answer in place:
            row[3 * place[pair.answer] + 1] = 1
        if given in place:
            row[3 * place[given] + 2] = 1
            row[3 * place[given]] = hit
    return rows


def _f1(sums: Array) -> Array:
    hits, others = sums[..., 0::3], sums[..., 1::3] + sums[..., 2::3]
    return np.divide(2 * hits, others, out=np.zeros_like(hits), where=others > 0)


OF_PAIRS: Mapping[str, Measure] = {
    "exact": by_pairs(_normal(exact)),
    "contains": by_pairs(_normal(contains)),
    "verbatim": by_pairs(lambda _: verbatim),
    "numeric": by_pairs(lambda _: numeric),
    "token_f1": by_pairs(_token_f1),
    "rouge1": by_pairs(_words(lambda one, other: rouge_n(one, other, 1))),
    "rouge2": by_pairs(_words(lambda one, other: rouge_n(one, other, 2))),
    "rougeL": by_pairs(_words(rouge_l)),
    "bleu": _corpus(_bleu),
    "chrf": _corpus(_chrf),
    "f1_macro": Measure(_hits, lambda sums: np.asarray(_f1(sums)[..., :-1].mean(axis=-1))),
    "f1_micro": Measure(_hits, lambda sums: _f1(sums)[..., -1]),
}
MEAN = Measure(lambda pairs, manner: np.zeros((0, 2)), ratio)
"""Of scores that are made elsewhere: choices, programs, grades."""
NATS = Measure(MEAN.evidence, lambda sums: np.asarray(np.exp(np.minimum(ratio(sums), 700.0))), "lower")
BITS = Measure(MEAN.evidence, lambda sums: ratio(sums) / np.log(2), "lower", "bits")
OF_CHOICES: Mapping[str, Measure] = {
    "acc": MEAN,
    "acc_norm": MEAN,
    "acc_bytes": MEAN,
    "f1_macro": OF_PAIRS["f1_macro"],
    "f1_micro": OF_PAIRS["f1_micro"],
}
OF_TEXTS: Mapping[str, Measure] = {
    "perplexity": NATS,
    "word_perplexity": NATS,
    "byte_perplexity": NATS,
    "bits_per_byte": BITS,
}


class _Answers(Mapping[str, Measure]):
    """What is measured on written answers: built in, and the scorers of plugins."""

    def __getitem__(self, name: str) -> Measure:
        if name in OF_PAIRS:
            return OF_PAIRS[name]
        if name not in SCORERS:
            raise KeyError(name)
        scorer: Scorer = SCORERS.load(name)
        return by_pairs(lambda _: scorer)

    def __iter__(self) -> Any:
        return iter({**OF_PAIRS, **SCORERS.table()})

    def __contains__(self, name: object) -> bool:
        return name in OF_PAIRS or name in SCORERS

    def __len__(self) -> int:
        return len({**OF_PAIRS, **SCORERS.table()})


OF_ANSWERS = _Answers()


def measure_of(name: str) -> Measure:
    """Return a measure by the name that a report has it under: also those of programs and judges."""
    if name in OF_TEXTS:
        return OF_TEXTS[name]
    if name in OF_CHOICES and name.startswith("acc"):
        return OF_CHOICES[name]
    return OF_ANSWERS.get(name, MEAN)
