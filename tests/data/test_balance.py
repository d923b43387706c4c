from __future__ import annotations

from collections import Counter
from dataclasses import replace

from catena.core.sample import Sample, sample_id
from catena.core.stage import Context
from catena.core.types import DatasetVersion
from catena.data.balance import weights
from tests.data.stores import put, rejects, run, samples


def classes(context: Context, sizes: dict[str, int], split: str | None = None) -> DatasetVersion:
    rows = [
        Sample(sample_id(name, number), {"input": f"{name} {number}", "output": name}, split=split, license="MIT")
        for name, size in sizes.items()
        for number in range(size)
    ]
    return put(context.store, rows, "example")


def counts(context: Context, version: DatasetVersion) -> dict[str, int]:
    return dict(Counter(str(row.data["output"]) for row in samples(context.store, version)))


def test_oversampling_makes_classes_equal_by_copies_that_name_their_parent(context: Context) -> None:
    source = classes(context, {"common": 30, "rare": 7})
    made = run(context, "data.balance", {}, source=source)
    assert counts(context, made) == {"common": 30, "rare": 30}
    rows = samples(context.store, made)
    originals = {row.id for row in samples(context.store, source)}
    copies = [row for row in rows if row.id not in originals]
    assert len(copies) == 23
    assert len({row.id for row in rows}) == len(rows)
    assert all(row.parents[0] in originals and row.license == "MIT" and row.metadata["copy"] for row in copies)
    spread = Counter(row.parents[0] for row in copies)
    assert max(spread.values()) - min(spread.values()) <= 1
    assert made.funnel is not None
    assert made.funnel.changed == {"copied": 23}
    assert made.funnel.rows_in == 37


def test_copies_are_bounded_and_the_ratio_is_aimed_at(context: Context) -> None:
    source = classes(context, {"common": 100, "rare": 2})
    assert counts(context, run(context, "data.balance", {"max_copies": 5}, source=source))["rare"] == 10
    assert counts(context, run(context, "data.balance", {"ratio": 0.1}, source=source))["rare"] == 10


def test_undersampling_keeps_rows_of_large_classes_back(context: Context) -> None:
    source = classes(context, {"common": 30, "rare": 7})
    made = run(context, "data.balance", {"mode": "under"}, source=source)
    assert counts(context, made) == {"common": 7, "rare": 7}
    assert {(reason, detail) for _, reason, detail in rejects(context.store, made)} == {("undersampled", "common")}
    assert made.rejects == 23
    half = run(context, "data.balance", {"mode": "under", "ratio": 0.5}, source=source)
    assert counts(context, half) == {"common": 14, "rare": 7}


def test_weights_make_every_class_weigh_the_same(context: Context) -> None:
    assert weights({"a": 30, "b": 10}) == {"a": 0.666667, "b": 2.0}
    made = run(context, "data.balance", {"mode": "weights"}, source=classes(context, {"a": 30, "b": 10}))
    total = Counter[str]()
    for row in samples(context.store, made):
        total[str(row.data["output"])] += row.metadata["weight"]
    assert abs(total["a"] - total["b"]) < 1e-3
    assert made.profile["classes"]["b"] == {"before": 10, "after": 10, "weight": 2.0}


def test_the_same_seed_takes_the_same_rows_and_another_does_not(context: Context) -> None:
    source = classes(context, {"common": 30, "rare": 7})
    for mode in ("over", "under"):
        first = run(context, "data.balance", {"mode": mode}, source=source)
        assert run(context, "data.balance", {"mode": mode}, source=source).digest == first.digest
        assert run(replace(context, seed=8), "data.balance", {"mode": mode}, source=source).digest != first.digest


def test_only_the_training_split_is_touched(context: Context) -> None:
    source = classes(context, {"common": 9, "rare": 3}, split="test")
    assert counts(context, run(context, "data.balance", {}, source=source)) == {"common": 9, "rare": 3}
    made = run(context, "data.balance", {"split": "test"}, source=source)
    assert counts(context, made) == {"common": 9, "rare": 9}


def test_rows_with_one_id_are_all_balanced_and_rows_without_a_class_kept_back(context: Context) -> None:
    row = Sample("same", {"input": "x", "output": "a"})
    rows = [
        row,
        row,
        replace(row, data={"input": "y", "output": "b"}),
        replace(row, data={"input": "z", "output": " "}),
    ]
    made = run(context, "data.balance", {}, source=put(context.store, rows, "example"))
    assert counts(context, made) == {"a": 2, "b": 2}
    assert [reason for _, reason, _ in rejects(context.store, made)] == ["no_label"]
