from __future__ import annotations

import pytest

from catena.core.errors import ConfigError
from catena.core.sample import Sample, sample_id
from catena.core.stage import Context
from catena.core.types import DatasetVersion
from catena.data.labels import likeness, spelling, suggestions
from tests.data.stores import document, put, rejects, run, samples


def labelled(context: Context, *labels: str) -> DatasetVersion:
    rows = [
        Sample(sample_id("row", place), {"input": f"text {place}", "output": label}, license="CC-BY-4.0")
        for place, label in enumerate(labels)
    ]
    return put(context.store, rows, "example")


def outputs(context: Context, version: DatasetVersion) -> list[str]:
    return [str(row.data["output"]) for row in samples(context.store, version)]


@pytest.mark.parametrize(
    "label",
    [
        "Refund Request",
        "refund_request",
        "refund-request",
        "RefundRequest",
        "ＲＥＦＵＮＤ　request",
        ' "refund request". ',
    ],
)
def test_spellings_of_a_label_have_one_form(label: str) -> None:
    assert spelling(label) == "refundrequest"


def test_numbers_in_labels_stay_apart() -> None:
    assert len({spelling(label) for label in ("step 1-2", "step 12", "step 1 23")}) == 3
    assert spelling("Step-12") == spelling("step 12")


def test_variants_are_merged_as_the_mapping_says_in_any_spelling(context: Context) -> None:
    source = labelled(context, "money back", "MONEY-BACK", "退款", "refund", "delivery")
    made = run(context, "data.align_labels", {"labels": {"refund": ["money back", "退款"]}}, source=source)
    assert outputs(context, made) == ["refund"] * 4 + ["delivery"]
    assert made.profile["labels_before"] == {"MONEY-BACK": 1, "delivery": 1, "money back": 1, "refund": 1, "退款": 1}
    assert made.profile["labels"] == {"delivery": 1, "refund": 4}
    assert made.funnel is not None
    assert made.funnel.changed == {"merged_label": 3}
    first = samples(context.store, made)[0]
    assert first.metadata["label_before"] == "money back"
    assert first.license == "CC-BY-4.0"


def test_spellings_become_the_commonest_one_unless_they_are_to_stay(context: Context) -> None:
    source = labelled(context, "Joy", "joy", "Joy", "Anger ")
    assert outputs(context, run(context, "data.align_labels", {}, source=source)) == ["Joy", "Joy", "Joy", "Anger"]
    kept = run(context, "data.align_labels", {"merge_spellings": False}, source=source)
    assert outputs(context, kept) == ["Joy", "joy", "Joy", "Anger"]


def test_what_only_looks_alike_is_told_and_not_merged(context: Context) -> None:
    source = labelled(context, "order", "order", "orders", "complaint", "complaint", "complant", "cat", "hat")
    made = run(context, "data.align_labels", {}, source=source)
    assert made.profile["suggestions"] == [
        {"label": "complant", "like": "complaint", "why": "spelling"},
        {"label": "orders", "like": "order", "why": "plural"},
    ]
    assert made.profile["labels"]["orders"] == 1


def test_likeness_of_labels() -> None:
    assert likeness("category", "categories") == "plural"
    assert likeness("box", "boxes") == "plural"
    assert not likeness("cat", "car")
    assert not suggestions({f"label {number}": 1 for number in range(501)})


def test_a_closed_set_keeps_unknown_labels_back_with_the_closest(context: Context) -> None:
    config = {"labels": {"refund": ["money back"], "delivery": []}, "closed": True}
    made = run(context, "data.align_labels", config, source=labelled(context, "refund", "deliverys", ""))
    assert outputs(context, made) == ["refund"]
    found = [(reason, detail) for _, reason, detail in rejects(context.store, made)]
    assert found == [("unknown_label", "'deliverys'. Did you mean 'delivery'?"), ("no_label", "output")]


def test_documents_with_a_label_in_their_metadata_become_examples(context: Context) -> None:
    source = put(context.store, [document("a good film", metadata={"mood": "POSITIVE"}), document("no mood")])
    made = run(context, "data.align_labels", {"field": "mood", "labels": {"positive": []}}, source=source)
    assert made.shape == "example"
    (row,) = samples(context.store, made)
    assert row.data == {"input": "a good film", "output": "positive"}
    assert row.parents == (samples(context.store, source)[0].id,)
    assert [(sample.text, reason) for sample, reason, _ in rejects(context.store, made)] == [("no mood", "no_label")]


def test_a_variant_of_two_labels_is_refused(context: Context) -> None:
    source = labelled(context, "a")
    with pytest.raises(ConfigError, match="variant 'X' is of 'a' and of 'b'"):
        run(context, "data.align_labels", {"labels": {"a": ["x"], "b": ["X"]}}, source=source)
    with pytest.raises(ConfigError, match="closed set needs"):
        run(context, "data.align_labels", {"closed": True}, source=source)
