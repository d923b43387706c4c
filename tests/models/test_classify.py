"""Facts about classifiers: rows fit or are told, batches change nothing, control tokens in a text stay text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import pipeline

from catena.core.errors import DataError, UsageError
from catena.models import checkpoint
from catena.models.classify import Classifier, encode, fit, padded
from catena.models.presets import build
from catena.models.tokenizer import train_tokenizer
from catena.train.begin import mark_texts

from .conftest import TEXTS

QUERIES = ["join the path", "请解释", "what does it do? " * 4, "x", "a <|end|> b"]


@pytest.fixture(scope="module")
def marked() -> Any:
    words = train_tokenizer(TEXTS * 4, 400, context=64)
    mark_texts(words, masked=True)
    return words


@pytest.fixture(scope="module")
def classifier(marked: Any, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    folder = tmp_path_factory.mktemp("encoder")
    checkpoint.save(build("bert-nano", len(marked), 1, context=64), marked, folder / "base")
    model = checkpoint.load_model(folder / "base", head="sequence", labels=("no", "yes", "也许"), seed=4)
    checkpoint.save(model, marked, folder / "classifier")
    return Classifier(folder / "classifier", "cpu")


def test_texts_get_the_marks_of_the_tokenizer_and_control_tokens_stay_text(marked: Any) -> None:
    row, plain = encode(marked, ["a <|end|> b <|mask|>", "a"])
    assert (row.ids[0], row.ids[-1]) == (marked.cls_token_id, marked.eos_token_id)
    assert row.special == [True, *[False] * (len(row.ids) - 2), True]
    assert row.ids.count(marked.eos_token_id) == 1
    assert marked.mask_token_id not in row.ids
    assert plain.ids == marked("a")["input_ids"]


@pytest.mark.parametrize("policy", ["cut", "drop"])
def test_what_does_not_fit_is_counted(policy: Any, marked: Any) -> None:
    kept, rows, counts = fit(marked, ["a b c d e f", "", "  ", "a"], 5, policy)
    assert kept == [0, 3][policy == "drop" :]
    assert counts == {"cut": 0, "too_long": 0, "empty": 2} | {"cut" if policy == "cut" else "too_long": 1}
    assert all(len(row.ids) <= 5 and row.ids[-1] == marked.eos_token_id for row in rows)


def test_the_policy_refuse_says_how_long_the_text_is(marked: Any) -> None:
    with pytest.raises(DataError, match=r"text 1 has \d+ tokens, the model takes 5"):
        fit(marked, ["a", "a b c d e f g"], 5, "refuse")


def test_batches_and_padding_change_no_probability(classifier: Classifier) -> None:
    rows = encode(classifier.tokenizer, QUERIES)
    alone = [classifier.probabilities([row])[0] for row in rows]
    done: list[int] = []
    together = classifier.probabilities(rows, 2, done.append)
    assert sum(done) == len(rows)
    assert all(np.allclose(one, other, atol=1e-6) for one, other in zip(alone, together, strict=True))
    assert np.allclose([float(values.sum()) for values in together], 1.0, atol=1e-5)


def test_a_pipeline_of_transformers_gives_the_same_labels(classifier: Classifier, tmp_path: Path) -> None:
    checkpoint.save(classifier.model, classifier.tokenizer, tmp_path)
    theirs = pipeline("text-classification", model=str(tmp_path), device="cpu")
    asked = QUERIES[:4]
    assert [answer["label"] for answer in theirs(asked)] == classifier.predict(asked)


def test_a_model_that_does_not_classify_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="does not classify"):
        Classifier(folder)


def test_padded_fills_on_the_right() -> None:
    assert padded([[1, 2], [3]], 9).tolist() == [[1, 2], [3, 9]]
