"""Facts about classification: the scores are scikit-learn's and seqeval's, and every sample stands in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from sklearn.metrics import accuracy_score, f1_score

from catena.core.errors import DataError, UsageError
from catena.core.sample import Sample, sample_id
from catena.core.stage import Context
from catena.core.types import DatasetVersion, ModelVersion
from catena.evaluate.classification import (
    ClassificationConfig,
    by_label,
    by_label_of_spans,
    classification,
    macro_f1,
    macro_f1_interval,
)
from catena.hub.store import Store
from catena.models import checkpoint
from catena.models.classify import Classifier
from catena.models.tags import bio_spans
from catena.models.tokenizer import load_tokenizer

LABELS = ("explain", "读", "sum")
TEXTS = ["json.loads reads", "读取一个文件", "a b c", "Return a string", "or raise", "d e", "an error", "x"]


def examples(store: Store, rows: list[tuple[str, str]], split: str = "test") -> DatasetVersion:
    with store.new_dataset("example") as out:
        for text, label in rows:
            out.add(Sample(sample_id(text), {"input": text, "output": label}, split=split))
        return out.commit()


def stored(store: Store, base: Path, target: Path, head: Any, labels: tuple[str, ...]) -> ModelVersion:
    model = checkpoint.load_model(base, head=head, labels=labels, seed=2)
    checkpoint.save(model, load_tokenizer(base), target)
    return store.put_model(target, "full", **checkpoint.describe(target))


@pytest.fixture
def classifier(store: Store, model_folder: Path, tmp_path: Path) -> ModelVersion:
    return stored(store, model_folder, tmp_path / "sequence", "sequence", LABELS)


def test_scores_are_scikit_learns(context: Context, classifier: ModelVersion) -> None:
    rows = [(text, LABELS[number % 3]) for number, text in enumerate(TEXTS)]
    report = classification(context, ClassificationConfig(), model=classifier, data=examples(context.store, rows))
    foretold = Classifier(context.store.checkout(classifier)).predict(TEXTS)
    given = [label for _, label in rows]
    assert report.scores["accuracy"].value == pytest.approx(accuracy_score(given, foretold), abs=1e-6)
    assert report.scores["macro_f1"].value == pytest.approx(f1_score(given, foretold, average="macro"), abs=1e-6)
    for score in report.scores.values():
        assert score.low is not None
        assert score.high is not None
        assert score.low <= score.value <= score.high
    assert set(report.details["labels"]) == {*given, *foretold}
    lines = (context.store.checkout(report) / "samples.jsonl").read_bytes().splitlines()
    assert [orjson.loads(line)["answer"] for line in lines] == foretold
    again = classification(context, ClassificationConfig(), model=classifier, data=examples(context.store, rows))
    assert again.digest == report.digest


def test_macro_f1_and_its_parts_are_scikit_learns_on_chance() -> None:
    import random

    chance = random.Random(3)
    pairs = [(chance.choice("abcde"), chance.choice("abcdf")) for _ in range(300)]
    given, foretold = zip(*pairs, strict=True)
    table = by_label(pairs)
    assert macro_f1(table) == pytest.approx(f1_score(given, foretold, average="macro", zero_division=0))
    told = dict(zip(sorted(table), f1_score(given, foretold, average=None, zero_division=0), strict=True))
    assert {label: of.f1 for label, of in table.items()} == pytest.approx(told)
    interval = macro_f1_interval(pairs, 1)
    assert interval.value == pytest.approx(macro_f1(table))
    assert interval == macro_f1_interval(pairs, 1)


def spans(tags: str) -> set[Any]:
    words = tags.split()
    return set(bio_spans(words, [(place, place + 1) for place in range(len(words))]))


def test_stretches_by_label_are_seqevals() -> None:
    # The report that seqeval's README shows: MISC 0, PER 1, macro F1 0.5.
    given = ["O O O B-MISC I-MISC I-MISC O", "B-PER I-PER O"]
    foretold = ["O O B-MISC I-MISC I-MISC I-MISC O", "B-PER I-PER O"]
    table = by_label_of_spans([(spans(one), spans(other)) for one, other in zip(given, foretold, strict=True)])
    assert {label: of.f1 for label, of in table.items()} == {"MISC": 0.0, "PER": 1.0}
    assert macro_f1(table) == 0.5


def test_labels_in_texts_are_measured_in_both_forms(context: Context, model_folder: Path, tmp_path: Path) -> None:
    tagger = stored(context.store, model_folder, tmp_path / "token", "token", ("B-X", "I-X", "O"))
    rows = [("read the file now", "O O B-X I-X"), ("读取一个文件", '[{"start": 4, "end": 6, "label": "X"}]')]
    report = classification(context, ClassificationConfig(), model=tagger, data=examples(context.store, rows))
    assert report.scores["token_accuracy"].n == 4
    assert report.scores["span_f1"].n == 2
    assert report.details["labels"]["X"]["given"] == 2
    first = orjson.loads((context.store.checkout(report) / "samples.jsonl").read_bytes().splitlines()[0])
    assert first["reference"] == "file now [9:17 X]"


def test_a_text_that_was_cut_is_counted(context: Context, classifier: ModelVersion) -> None:
    data = examples(context.store, [("word " * 200, "sum"), ("x", "sum")])
    report = classification(context, ClassificationConfig(), model=classifier, data=data)
    assert report.details["cut_at_context"] == 1
    lines = (context.store.checkout(report) / "samples.jsonl").read_bytes().splitlines()
    assert [orjson.loads(line)["finish_reason"] for line in lines] == ["length", "stop"]


def test_what_cannot_be_measured_is_refused(context: Context, classifier: ModelVersion, model: ModelVersion) -> None:
    good, other = examples(context.store, [("x", "sum")]), examples(context.store, [("x", "summ")])
    with pytest.raises(DataError, match="'summ' of the sample") as caught:
        classification(context, ClassificationConfig(), model=classifier, data=other)
    assert "Did you mean 'sum'" in caught.value.hint
    with pytest.raises(UsageError, match="does not classify"):
        classification(context, ClassificationConfig(), model=model, data=good)
    with pytest.raises(UsageError, match="no split 'tset'"):
        classification(context, ClassificationConfig(split="tset"), model=classifier, data=good)
