from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from catena.core.errors import ConfigError, DataError
from catena.core.sample import Sample
from catena.core.stage import Context
from catena.data.minhash import shingles
from catena.data.shingles import jaccard
from catena.data.split import assign, assign_evenly
from tests.data.stores import document, documents, put, run, samples

WORDS = [f"word{number}" for number in range(5000)]


def text_of(seed: int, length: int = 60) -> list[str]:
    return random.Random(seed).choices(WORDS, k=length)


def test_ratios_are_hit_exactly_when_groups_allow() -> None:
    chosen = assign({f"{number:03}": 1 for number in range(100)}, {"train": 0.8, "validation": 0.1, "test": 0.1})
    held = list(chosen.values())
    assert [held.count(name) for name in ("train", "validation", "test")] == [80, 10, 10]


def test_large_groups_are_balanced_by_small_ones() -> None:
    sizes = {"big": 70, **{f"small{number:02}": 1 for number in range(30)}}
    chosen = assign(sizes, {"train": 0.8, "test": 0.2})
    assert sum(size for name, size in sizes.items() if chosen[name] == "test") == 20


def test_no_split_is_empty_while_there_are_groups_enough() -> None:
    for groups in (3, 4, 5):
        chosen = assign({str(number): 1 for number in range(groups)}, {"train": 0.8, "validation": 0.1, "test": 0.1})
        assert set(chosen.values()) == {"train", "validation", "test"}
    assert set(assign({"only": 5}, {"train": 0.8, "test": 0.2}).values()) == {"train"}
    assert set(assign({"a": 1, "b": 1}, {"train": 1.0, "test": 0.0}).values()) == {"train"}


def test_no_near_duplicate_crosses_a_split(context: Context) -> None:
    texts = []
    for seed in range(60):
        words = text_of(seed)
        texts += [" ".join(words), " ".join([*words[:50], *text_of(900 + seed, 10)])]
    made = run(context, "data.split", {"similarity": 0.5}, source=documents(context.store, *texts))
    rows = samples(context.store, made)
    words_of = [shingles(row.text.split(), 5) for row in rows]
    crossing = [
        (first, second)
        for first in range(len(rows))
        for second in range(first)
        if rows[first].split != rows[second].split and jaccard(words_of[first], words_of[second]) >= 0.5
    ]
    assert not crossing
    assert made.profile["groups"] == {"count": 60, "largest": 2}
    assert {name: split.rows for name, split in made.splits.items()} == {"train": 96, "validation": 12, "test": 12}


def test_the_same_seed_splits_the_same_way_and_another_does_not(context: Context) -> None:
    source = documents(context.store, *(" ".join(text_of(seed)) for seed in range(40)))
    first = run(context, "data.split", {}, source=source)
    assert run(context, "data.split", {}, source=source).digest == first.digest
    assert run(replace(context, seed=8), "data.split", {}, source=source).digest != first.digest


def test_rows_with_one_key_stay_together(context: Context) -> None:
    rows = [
        document(" ".join(text_of(number)), metadata={"author": number % 7}, source=f"site/{number % 5}/{number}.html")
        for number in range(70)
    ]
    source = put(context.store, rows)
    keys: list[tuple[dict[str, str], Callable[[Sample], object]]] = [
        ({"group_by_metadata": "author"}, lambda row: row.metadata["author"]),
        ({"group_by_source": r"^site/(\d)/"}, lambda row: row.source.split("/")[1]),
    ]
    for config, key in keys:
        made = run(context, "data.split", {**config, "ratios": {"train": 0.5, "test": 0.5}}, source=source)
        found: dict[object, set[str | None]] = {}
        for row in samples(context.store, made):
            found.setdefault(key(row), set()).add(row.split)
        assert all(len(splits) == 1 for splits in found.values())
        assert len(made.splits) == 2


def test_ratios_and_patterns_are_checked(context: Context) -> None:
    source = documents(context.store, "text")
    with pytest.raises(ConfigError, match=r"add up to 0\.9"):
        run(context, "data.split", {"ratios": {"train": 0.8, "test": 0.1}}, source=source)
    with pytest.raises(ConfigError, match="not a regular expression"):
        run(context, "data.split", {"group_by_source": "("}, source=source)
    with pytest.raises(DataError, match="empty"):
        run(context, "data.split", {}, source=documents(context.store))


def test_every_split_gets_its_share_of_every_class() -> None:
    mixes = {
        f"{name}{number:03}": Counter({name: 1}) for name, size in (("a", 80), ("b", 20)) for number in range(size)
    }
    chosen = assign_evenly(mixes, {"train": 0.8, "validation": 0.1, "test": 0.1})
    held = Counter((group[0], split) for group, split in chosen.items())
    assert [held["a", name] for name in ("train", "validation", "test")] == [64, 8, 8]
    assert [held["b", name] for name in ("train", "validation", "test")] == [16, 2, 2]


def test_stratification_never_parts_a_group_and_leaves_no_split_empty(context: Context) -> None:
    rows = []
    for number in range(120):
        label = "rare" if number % 6 == 0 else "common"
        rows.append(document(" ".join(text_of(number)), metadata={"author": number // 3, "fields": {"label": label}}))
    config = {"stratify_by": "fields.label", "group_by_metadata": "author"}
    made = run(context, "data.split", config, source=put(context.store, rows))
    held: Counter[tuple[str, str | None]] = Counter()
    authors: dict[int, set[str | None]] = {}
    for row in samples(context.store, made):
        held[row.metadata["fields"]["label"], row.split] += 1
        authors.setdefault(row.metadata["author"], set()).add(row.split)
    assert all(len(splits) == 1 for splits in authors.values())
    assert [held["rare", name] for name in ("train", "validation", "test")] == [16, 2, 2]
    assert [held["common", name] for name in ("train", "validation", "test")] == [80, 10, 10]
    assert set(assign_evenly({"a": Counter(x=9), "b": Counter(x=1)}, {"train": 0.9, "test": 0.1}).values()) == {
        "train",
        "test",
    }


def test_rows_with_one_id_stay_together(context: Context) -> None:
    rows = [Sample("same", {"text": " ".join(text_of(number))}) for number in range(5)]
    rows += [document(" ".join(text_of(number))) for number in range(5, 30)]
    made = run(context, "data.split", {}, source=put(context.store, rows))
    assert made.rows == 30
    assert len({row.split for row in samples(context.store, made) if row.id == "same"}) == 1
