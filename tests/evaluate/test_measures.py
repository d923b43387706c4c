"""Measures, held to the libraries that others use, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu
from sklearn.metrics import f1_score

from catena.evaluate.measures import OF_PAIRS, Manner, Pair, number_in
from catena.evaluate.sandbox import pass_at_k
from catena.evaluate.stats import bootstrap_sums, paired
from catena.evaluate.words import words_of

SENTENCES = [
    ("The cat sat on the mat.", "A cat was sitting on the mat!", (0.615385, 0.363636, 0.615385)),
    ("one two three four", "four three two one", (1.0, 0.0, 0.25)),
    ("", "x", (0.0, 0.0, 0.0)),
    ("police killed the gunman", "police kill the gunman", (0.75, 0.333333, 0.75)),
]


def value(name: str, pairs: list[tuple[str | None, str]], **manner: object) -> float:
    labels = tuple(sorted({reference for _, reference in pairs}))
    measure = OF_PAIRS[name]
    evidence = measure.evidence([Pair(a, (b,)) for a, b in pairs], Manner(labels=labels, **manner))  # type: ignore[arg-type]
    return float(measure.finish(evidence.sum(axis=0)))


@pytest.mark.parametrize(("answer", "reference", "wanted"), SENTENCES)
def test_rouge_is_that_of_rouge_score(answer: str, reference: str, wanted: tuple[float, ...]) -> None:
    found = [value(name, [(answer, reference)]) for name in ("rouge1", "rouge2", "rougeL")]
    assert found == pytest.approx(wanted, abs=1e-6)


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    answers, references = [a for a, _, _ in SENTENCES], [b for _, b, _ in SENTENCES]
    pairs = list(zip(answers, references, strict=True))
    assert value("bleu", pairs) == pytest.approx(sacrebleu.corpus_bleu(answers, [references]).score)
    assert value("chrf", pairs) == pytest.approx(sacrebleu.corpus_chrf(answers, [references]).score)


def test_bleu_of_chinese_is_by_characters() -> None:
    pairs = [("今天天气很好，我们去公园。", "今天天气不错，我们去公园吧。")]
    wanted = sacrebleu.corpus_bleu([pairs[0][0]], [[pairs[0][1]]], tokenize="zh").score
    assert value("bleu", pairs, language="zh") == pytest.approx(wanted)
    assert wanted > 20
    assert words_of("我爱Python3，真的", "zh") == ["我", "爱", "python3", "真", "的"]


def test_f1_is_that_of_sklearn() -> None:
    given = ["a", "b", "c", "a", "b", "c", "a"]
    told = ["a", "b", "a", "c", "b", "c", "x"]
    pairs = list(zip(told, given, strict=True))
    assert value("f1_macro", pairs) == pytest.approx(f1_score(given, told, labels=["a", "b", "c"], average="macro"))
    assert value("f1_micro", pairs) == pytest.approx(4 / 7)


@pytest.mark.parametrize(
    ("text", "number"),
    [("#### 1,234", 1234), ("costs $18.50.", 18.5), ("no", None), ("−3", -3), ("１２", 12), ("1e3", 1000)],
)
def test_the_last_number_of_a_text(text: str, number: float | None) -> None:
    assert number_in(text) == number


@pytest.mark.parametrize("answer", ["9" * 400, "it is 1e999", "-1e999"], ids=["digits", "exponent", "negative"])
def test_a_number_too_large_to_hold_equals_no_other(answer: str) -> None:
    assert value("numeric", [(answer, "42")]) == 0
    assert value("numeric", [("42", answer)]) == 0
    assert value("numeric", [("The sum is 42.0", "42")]) == 1


def test_what_does_not_count_is_left_out() -> None:
    assert value("exact", [("The answer!", "answer")]) == 0
    assert value("exact", [("The answer!", "answer")], normal=("case", "punctuation", "articles")) == 1
    assert value("verbatim", [("a ", "a")]) == 0
    assert value("exact", [("a ", "a")]) == 1
    assert value("exact", [(None, "a")]) == 0
    assert value("token_f1", [("我爱你", "我恨你")], language="zh") == pytest.approx(2 / 3)


def test_pass_at_k() -> None:
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(10, 3, 5) == pytest.approx(1 - 21 / 252)
    assert pass_at_k(5, 5, 2) == 1


def test_clusters_widen_an_interval() -> None:
    rows = np.stack([np.repeat([0.0, 1.0] * 10, 10), np.ones(200)], axis=1)
    finish = OF_PAIRS["exact"].finish
    alone = bootstrap_sums(rows, finish, seed=1)
    clusters = [str(at // 10) for at in range(200)]
    together = bootstrap_sums(rows, finish, seed=1, clusters=clusters)
    assert alone.value == together.value == 0.5
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert bootstrap_sums(rows, finish, seed=1, clusters=clusters) == together


def test_a_paired_comparison_sees_what_two_intervals_do_not() -> None:
    draw = np.random.default_rng(0)
    hard = draw.random(400)
    first = np.stack([(hard < 0.5).astype(float), np.ones(400)], axis=1)
    second = np.stack([(hard < 0.53).astype(float), np.ones(400)], axis=1)
    found = paired(first, second, OF_PAIRS["exact"].finish, seed=0)
    assert found.low > 0
    assert found.p_value < 0.01
    same = paired(first, first, OF_PAIRS["exact"].finish, seed=0)
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    bleu = OF_PAIRS["bleu"]
    worse = bleu.evidence([Pair("a b x d", ("a b c d",))] * 30, Manner())
    better = bleu.evidence([Pair("a b c d", ("a b c d",))] * 30, Manner())
    assert paired(worse, better, bleu.finish, seed=0, resamples=200).p_value < 0.02
