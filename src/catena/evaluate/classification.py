"""Classification: how often a classifier is right, for each label and over all, with confidence intervals.

    examples -> rows of tokens -> probabilities (batched) -> labels -> scores by label, report and samples.jsonl

Of labels in texts (the head `token`) whole stretches are compared, from their first to their last character, as
CoNLL-2000 and seqeval do: `span_f1` does not depend on the tokenizer.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from pydantic import Field

from catena.core.config import Config
from catena.core.errors import DataError, did_you_mean
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, ModelVersion, Report, Score
from catena.evaluate.choice import chosen, samples_of
from catena.evaluate.stats import Interval, bootstrap_ratio, wilson
from catena.hub.fields import need_shape

if TYPE_CHECKING:
    from catena.models.classify import Classifier, Row

RESAMPLES = 1000


class ClassificationConfig(Config):
    """What is classified."""

    split: str = "test"
    """Split of the dataset that is measured; `all` for a dataset without splits."""
    batch_size: int = Field(default=64, ge=1)
    """Texts that the model sees at once."""
    limit: int | None = Field(default=None, ge=1)
    """Most samples, chosen by hash; by default all."""


class Of(NamedTuple):
    """What a classifier did with one label."""

    right: int
    """Given and foretold."""
    foretold: int
    given: int

    @property
    def precision(self) -> float:
        """Share of the foretold that is right; 0 where none is foretold."""
        return self.right / self.foretold if self.foretold else 0.0

    @property
    def recall(self) -> float:
        """Share of the given that is found; 0 where none is given."""
        return self.right / self.given if self.given else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of both."""
        return 2 * self.right / (self.foretold + self.given) if self.foretold + self.given else 0.0


@dataclass(frozen=True, slots=True)
class Judged:
    """One line of `samples.jsonl`, with the names that answers have there: reports and comparisons read both."""

    split: str
    id: str
    question: str
    """The text."""
    answer: str
    """Foretold label, or stretches with theirs."""
    reference: str
    """Given label, or stretches with theirs."""
    score: float
    """1 where both are equal."""
    probability: float
    """Of the answer; of stretches the mean over the tokens."""
    page: str
    """Where the sample comes from."""
    finish_reason: str
    """`length` where the text was longer than the model's context and was cut, else `stop`."""


@stage("evaluate.classification")
def classification(ctx: Context, cfg: ClassificationConfig, *, model: ModelVersion, data: DatasetVersion) -> Report:
    """Measure a classifier on labelled examples: accuracy, F1 by label and over all, whole stretches of BIO labels."""
    from catena.models.classify import Classifier, encode

    need_shape(data, "example", what="data")
    samples = chosen(samples_of(ctx.store, data, cfg.split), cfg.limit, ctx.seed)
    classifier = Classifier(ctx.store.checkout(model))
    texts = [str(sample.data["input"]) for sample in samples]
    whole = encode(classifier.tokenizer, texts)
    long = [bool(classifier.context) and len(row.ids) > classifier.context for row in whole]
    rows = encode(classifier.tokenizer, texts, classifier.context) if any(long) else whole
    progress = ctx.progress("classify", len(rows), "texts")
    started = time.monotonic()
    told = classifier.probabilities(rows, cfg.batch_size, progress.advance)
    progress.finish()
    ctx.events.metric("texts_per_second", round(len(rows) / max(time.monotonic() - started, 1e-9), 1))
    measure = of_sequences if classifier.head == "sequence" else of_tokens
    scores, table, lines = measure(classifier, samples, list(zip(rows, told, long, strict=True)), ctx.seed)
    folder = ctx.workdir / "report"
    folder.mkdir(exist_ok=True)
    (folder / "samples.jsonl").write_bytes(b"".join(orjson.dumps(asdict(line)) + b"\n" for line in lines))
    return ctx.store.put_report(
        model,
        "classification",
        scores,
        details={
            "data": data.digest,
            "config": {**cfg.model_dump(mode="json"), "seed": ctx.seed if cfg.limit is not None else None},
            "head": classifier.head,
            "samples": len(samples),
            "cut_at_context": sum(long),
            "labels": {label: _rounded(of) for label, of in sorted(table.items())},
            "interval": "95 %: Wilson for accuracy, bootstrap over samples for the rest",
        },
        folder=folder,
    )


def _rounded(of: Of) -> dict[str, float]:
    numbers = {"precision": of.precision, "recall": of.recall, "f1": of.f1}
    return {**{name: round(value, 6) for name, value in numbers.items()}, "given": of.given, "foretold": of.foretold}


Told = Sequence[tuple["Row", Any, bool]]
"""Of each sample: its row, the probabilities, and whether it was cut."""
Measured = tuple[dict[str, Score], dict[str, Of], list[Judged]]


def of_sequences(classifier: Classifier, samples: Sequence[Sample], told: Told, seed: int) -> Measured:
    """Measure labels of whole texts; raises `DataError` for one that the classifier does not know."""
    lines, pairs = [], []
    for sample, (_, probabilities, cut) in zip(samples, told, strict=True):
        given = str(sample.data["output"]).strip()
        _known(given, classifier.labels, sample)
        best = int(probabilities.argmax())
        label = classifier.labels[best]
        pairs.append((given, label))
        lines.append(_judged(sample, label, given, float(probabilities[best]), cut))
    table = by_label(pairs)
    right = sum(given == label for given, label in pairs)
    scores = {
        "accuracy": _score(wilson(right, len(pairs)), len(pairs)),
        "macro_f1": _score(macro_f1_interval(pairs, seed), len(pairs)),
    }
    return scores, table, lines


def of_tokens(classifier: Classifier, samples: Sequence[Sample], told: Told, seed: int) -> Measured:
    """Measure labels in texts: stretches, and the tags of words where the data has one for each word."""
    from catena.models.tags import marked_by, parse_tagged

    lines, spans, tags = [], [], []
    for sample, (row, probabilities, cut) in zip(samples, told, strict=True):
        text, output = str(sample.data["input"]), str(sample.data["output"]).strip()
        tagged = parse_tagged(text, output, sample.id)
        for label in sorted(tagged.labels):
            _known(label, classifier.labels, sample)
        labels = [classifier.labels[int(number)] for number in probabilities.argmax(-1)]
        foretold_tags, foretold = marked_by(tagged, row.offsets, labels)
        tags += list(zip(tagged.tags, foretold_tags, strict=True)) if tagged.spans is None else []
        given = tagged.marked()
        spans.append((given, foretold))
        sure = float(probabilities.max(-1).mean())
        lines.append(_judged(sample, _spelt(text, foretold), _spelt(text, given), sure, cut))
    table = by_label_of_spans(spans)
    scores = {}
    if tags:
        scores["token_accuracy"] = _score(wilson(sum(given == label for given, label in tags), len(tags)), len(tags))
    if table:
        above = [2.0 * len(given & foretold) for given, foretold in spans]
        below = [float(len(given) + len(foretold)) for given, foretold in spans]
        scores["span_f1"] = _score(f1_interval(above, below, seed), sum(of.given for of in table.values()))
        mean = sum(of.f1 for of in table.values()) / len(table)
        scores["span_macro_f1"] = Score(value=round(mean, 6), n=len(table))
    else:
        table = by_label(tags)
    if not scores:
        raise DataError("no sample marks anything, and the classifier neither", hint="Measure on another split.")
    return scores, table, lines


def _judged(sample: Sample, answer: str, reference: str, probability: float, cut: bool) -> Judged:
    return Judged(
        split=sample.split or "all",
        id=sample.id,
        question=str(sample.data["input"]),
        answer=answer,
        reference=reference,
        score=float(answer == reference),
        probability=round(probability, 6),
        page=str(sample.metadata.get("page") or sample.source),
        finish_reason="length" if cut else "stop",
    )


def _spelt(text: str, spans: Iterable[Any]) -> str:
    """Return stretches as people read them: `Ada Lovelace [0:12 PER]`."""
    return ", ".join(f"{text[start:end]} [{start}:{end} {label}]" for start, end, label in sorted(spans))


def _known(label: str, labels: Iterable[str], sample: Sample) -> None:
    if label not in labels:
        raise DataError(
            f"the label {label!r} of the sample {sample.id} is none that the classifier knows",
            hint=f"{did_you_mean(label, labels)} `data.align_labels` merges spellings.",
        )


def _score(interval: Interval, count: int) -> Score:
    return Score(value=round(interval.value, 6), low=round(interval.low, 6), high=round(interval.high, 6), n=count)


def by_label(pairs: Sequence[tuple[str, str]]) -> dict[str, Of]:
    """Count (given, foretold) labels by label."""
    given, foretold = Counter(pair[0] for pair in pairs), Counter(pair[1] for pair in pairs)
    right = Counter(pair[0] for pair in pairs if pair[0] == pair[1])
    return {label: Of(right[label], foretold[label], given[label]) for label in given.keys() | foretold.keys()}


def by_label_of_spans(pairs: Sequence[tuple[set[Any], set[Any]]]) -> dict[str, Of]:
    """Count (given, foretold) stretches by label: one is right if its ends and its label are."""
    given = Counter(span.label for pair in pairs for span in pair[0])
    foretold = Counter(span.label for pair in pairs for span in pair[1])
    right = Counter(span.label for pair in pairs for span in pair[0] & pair[1])
    return {label: Of(right[label], foretold[label], given[label]) for label in given.keys() | foretold.keys()}


def macro_f1(table: Mapping[str, Of]) -> float:
    """Return the mean F1 over the labels that are given or foretold, as scikit-learn's `f1_score(average="macro")`."""
    return sum(of.f1 for of in table.values()) / len(table)


def macro_f1_interval(pairs: Sequence[tuple[str, str]], seed: int) -> Interval:
    """Return the macro F1 with its percentile bootstrap interval over samples."""
    import numpy as np

    labels = sorted({label for pair in pairs for label in pair})
    number = {label: place for place, label in enumerate(labels)}
    given = np.array([number[pair[0]] for pair in pairs])
    foretold = np.array([number[pair[1]] for pair in pairs])
    random = np.random.default_rng(seed % 2**63)

    def mean(rows: Any) -> float:
        truth, guess = given[rows], foretold[rows]
        counts = np.bincount(truth, minlength=len(labels)) + np.bincount(guess, minlength=len(labels))
        right = np.bincount(truth[truth == guess], minlength=len(labels))
        present = counts > 0
        return float((2 * right[present] / counts[present]).mean())

    drawn = [mean(random.integers(0, len(pairs), len(pairs))) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(mean(slice(None)), float(low), float(high))


def f1_interval(above: Sequence[float], below: Sequence[float], seed: int) -> Interval:
    """Return sum(above) / sum(below) with its interval; samples in which nothing is marked say nothing."""
    kept = [(top, bottom) for top, bottom in zip(above, below, strict=True) if bottom]
    return bootstrap_ratio([top for top, _ in kept], [bottom for _, bottom in kept], seed=seed)
