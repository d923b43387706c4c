"""Quality classifier, confidence filter and label errors: precision and recall on noise that was planted."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from catena.core.errors import DataError, UsageError
from catena.core.sample import Sample
from catena.core.stage import Context
from catena.core.types import DatasetVersion
from catena.data.label_model import belief, coded, folds_of, hashed, weighted
from tests.data.stores import document, documents, put, rejects, run, samples

INTENTS = {
    "weather": ("will it rain", "how cold is it", "is it sunny", "do i need an umbrella", "会下雨吗"),
    "music": ("play a song by", "turn up the music from", "skip this track of", "who sings the album by", "放一首歌"),
    "alarm": ("wake me up at", "set an alarm for", "cancel the alarm at", "snooze until", "定一个闹钟"),
    "travel": ("book a flight to", "find me a hotel in", "how far is it to", "get a train ticket to", "订一张机票"),
}
PLACES = (
    "paris",
    "berlin",
    "tokyo",
    "in the morning",
    "six thirty",
    "next monday",
    "my brother",
    "the beach",
    "北京",
    "明天",
)


class Planted(NamedTuple):
    texts: list[str]
    labels: list[str]
    wrong: set[int]


def intents(rows: int, share: float, seed: int = 3) -> Planted:
    """Return queries of which a share has another label than it should."""
    chooser = random.Random(seed)
    labels = [chooser.choice(sorted(INTENTS)) for _ in range(rows)]
    texts = [f"{chooser.choice(INTENTS[label])} {chooser.choice(PLACES)} {place}" for place, label in enumerate(labels)]
    wrong = set(chooser.sample(range(rows), int(share * rows)))
    for place in wrong:
        labels[place] = chooser.choice([name for name in sorted(INTENTS) if name != labels[place]])
    return Planted(texts, labels, wrong)


def examples(context: Context, texts: list[str], labels: list[str]) -> DatasetVersion:
    rows = zip(texts, labels, strict=True)
    found = [Sample(f"{place:05}", {"input": text, "output": label}) for place, (text, label) in enumerate(rows)]
    return put(context.store, found, "example")


def scores(found: set[int], true: set[int]) -> tuple[float, float]:
    """Return precision and recall."""
    return len(found & true) / max(len(found), 1), len(found & true) / len(true)


def rejected(context: Context, made: DatasetVersion) -> set[int]:
    return {int(sample.id) for sample, _, _ in rejects(context.store, made)}


def test_confidence_finds_planted_noise_and_goes_on_until_stable(context: Context) -> None:
    planted = intents(600, 0.1)
    made = run(context, "data.confidence", {}, source=examples(context, planted.texts, planted.labels))
    precision, recall = scores(rejected(context, made), planted.wrong)
    assert precision >= 0.9
    assert recall >= 0.95
    profile = made.profile["confidence"]
    assert profile["stable"] is True
    assert profile["rounds"] == len(profile["dropped_by_round"]) >= 2
    assert profile["dropped_by_round"][-1] == made.rejects
    assert profile["estimated_noise"] == pytest.approx(0.1, abs=0.05)
    sample, reason, detail = rejects(context.store, made)[0]
    said = f"{sample.metadata['confidence']:.4f} for the label {sample.data['output']!r}"
    assert (reason, detail) == ("low_confidence", said)
    assert all(sample.metadata["confidence"] >= 0.8 for sample in samples(context.store, made))


def test_confidence_is_the_same_every_time_and_ends_after_the_last_round(context: Context) -> None:
    planted = intents(200, 0.2)
    source = examples(context, planted.texts, planted.labels)
    first, second = (run(context, "data.confidence", {"max_rounds": 1}, source=source) for _ in range(2))
    assert first.digest == second.digest
    assert first.profile["confidence"]["rounds"] == 1
    plain = run(context, "data.confidence", {"measure": "probability", "threshold": 0.5}, source=source)
    assert scores(rejected(context, plain), planted.wrong)[1] >= 0.85


def test_labels_with_too_few_rows_are_kept_unjudged(context: Context) -> None:
    planted = intents(100, 0.0)
    source = examples(context, [*planted.texts, "what is love"], [*planted.labels, "philosophy"])
    made = run(context, "data.confidence", {}, source=source)
    assert made.profile["confidence"]["unjudged"] == 1
    assert samples(context.store, made)[-1].metadata["confidence"] is None
    assert run(context, "data.label_errors", {}, source=source).rejects == 0


def test_label_errors_name_the_right_label(context: Context) -> None:
    planted = intents(600, 0.08)
    truth = intents(600, 0.0).labels
    source = examples(context, planted.texts, planted.labels)
    made = run(context, "data.label_errors", {}, source=source)
    precision, recall = scores(rejected(context, made), planted.wrong)
    assert precision >= 0.9
    assert recall >= 0.9
    told = rejects(context.store, made)
    assert {reason for _, reason, _ in told} == {"label_error"}
    right = [
        f"suggested {truth[int(sample.id)]!r}" in detail
        for sample, _, detail in told
        if int(sample.id) in planted.wrong
    ]
    assert sum(right) >= 0.95 * len(right)


def test_label_errors_can_be_flagged_instead(context: Context) -> None:
    planted = intents(300, 0.1)
    source = examples(context, planted.texts, planted.labels)
    made = run(context, "data.label_errors", {"action": "flag"}, source=source)
    flagged = {int(sample.id) for sample in samples(context.store, made) if sample.metadata.get("label_error")}
    assert made.rows == 300
    assert scores(flagged, planted.wrong)[1] >= 0.9
    assert made.funnel is not None
    assert made.funnel.changed == {"flagged_label_error": len(flagged)}


@pytest.mark.parametrize("stage", ["data.confidence", "data.label_errors"])
def test_what_cannot_be_judged_is_refused_with_the_reason(context: Context, stage: str) -> None:
    with pytest.raises(UsageError, match="a dataset of examples"):
        run(context, stage, {}, source=documents(context.store, "text"))
    with pytest.raises(DataError, match="fewer than two labels"):
        run(context, stage, {}, source=examples(context, ["a"] * 9, ["same"] * 9))
    assert run(context, stage, {}, source=examples(context, [], [])).rows == 0


def test_folds_spread_every_label_evenly() -> None:
    labels = np.array([0] * 10 + [1] * 5)
    fold = folds_of(labels, 5, seed=1)
    assert np.bincount(fold[:10]).tolist() == [2] * 5
    assert np.bincount(fold[10:]).tolist() == [1] * 5
    assert coded(["b", "a", "b", "c", "a"], 2)[:2] == ([0, 1, 2, 4], ["a", "b"])


def test_belief_tells_an_unsure_model_from_a_wrong_label() -> None:
    chooser = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 100)
    scores_of = chooser.normal(size=(1000, 10))
    scores_of[np.arange(1000), labels] += 6
    given = labels.copy()
    given[::10] = (given[::10] + 5) % 10
    found = belief(scores_of, given)
    assert found.noise == pytest.approx(0.11, abs=0.02)
    assert float(np.mean(found.right[::10] < 0.5)) > 0.95
    assert float(np.mean(np.delete(found.right, np.s_[::10]) > 0.5)) > 0.98
    assert found.probabilities.sum(axis=1) == pytest.approx(np.ones(1000))


def test_features_are_the_same_in_every_process() -> None:
    found = weighted(hashed(["set an alarm", "定一个闹钟"], short=True))
    assert found.shape == (2, 1 << 16)
    assert hashed(["a b"], short=False).indices.tolist() == hashed(["a b"], short=False).indices.tolist() != []


def prose(seed: int) -> str:
    chooser = random.Random(seed)
    parts = (
        "the road goes along the river",
        "people live from fishing",
        "it was built a hundred years ago",
        "in winter the snow lies deep",
    )
    return ". ".join(chooser.choices(parts, k=4)) + f". Place {seed}."


def spam(seed: int) -> str:
    chooser = random.Random(seed)
    parts = ("buy cheap watches", "click here now", "best price free shipping", "limited offer for the first people")
    return "! ".join(chooser.choices(parts, k=4)) + f"! Order {seed}."


def test_quality_learns_from_labelled_rows_and_finds_the_poor_ones(context: Context) -> None:
    labelled = examples(context, [*map(prose, range(60)), *map(spam, range(40))], ["good"] * 60 + ["spam"] * 40)
    texts = [spam(seed) if seed % 4 == 0 else prose(seed) for seed in range(1000, 1200)]
    source = put(context.store, [document(text, place) for place, text in enumerate(texts)])
    made = run(context, "data.quality", {}, source=source, labelled=labelled)
    found = {sample.text for sample, _, _ in rejects(context.store, made)}
    assert found == set(texts[::4])
    assert {reason for _, reason, _ in rejects(context.store, made)} == {"low_quality"}
    assert all(0.5 <= sample.metadata["quality"] <= 1 for sample in samples(context.store, made))
    assert made.profile["quality"] == {"labelled": 100, "good": 60, "precision": 1.0, "recall": 1.0}
    assert run(context, "data.quality", {}, source=source, labelled=labelled).digest == made.digest


def test_quality_needs_rows_of_both_kinds(context: Context) -> None:
    source = documents(context.store, "text")
    labelled = examples(context, ["a"] * 9, ["fine"] * 9)
    with pytest.raises(DataError, match="0 are good and 9 poor") as caught:
        run(context, "data.quality", {}, source=source, labelled=labelled)
    assert "Change them with `good`" in caught.value.hint


def test_planted_noise_is_found_among_150_real_intents(context: Context) -> None:
    path = Path(__file__).parents[3] / "shared" / "data" / "clinc150.json"
    if not path.exists():
        pytest.skip("the public set clinc150.json is not in ../shared/data")
    rows = json.loads(path.read_text(encoding="utf-8"))["train"][: 40 * 100]
    names = sorted({label for _, label in rows})
    chooser = random.Random(0)
    labels = [label for _, label in rows]
    wrong = set(chooser.sample(range(len(rows)), len(rows) // 10))
    for place in wrong:
        labels[place] = chooser.choice([name for name in names if name != labels[place]])
    source = examples(context, [text for text, _ in rows], labels)
    precision, recall = scores(rejected(context, run(context, "data.confidence", {}, source=source)), wrong)
    assert precision >= 0.9
    assert recall >= 0.95
    precision, recall = scores(rejected(context, run(context, "data.label_errors", {}, source=source)), wrong)
    assert precision >= 0.75
    assert recall >= 0.85
