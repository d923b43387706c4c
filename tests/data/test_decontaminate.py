from __future__ import annotations

import random
import re

import pytest

from catena.core.sample import Sample, sample_id
from catena.core.stage import Context
from catena.core.types import DatasetVersion
from catena.data.overlap import PASSAGE, Index, ngram_of, passages_of
from tests.data.stores import document, documents, put, rejects, run, samples

ITEM = (
    "A farmer has seventeen sheep and three goats in the upper meadow. During a storm two of the sheep run away and "
    "the neighbour brings back one goat that was not his. How many animals with four legs stand in the meadow now?"
)
SHORT = "Which planet in our solar system has the shortest day of them all?"
CHINESE = "小明有十五个苹果，他给了小红四个，又给了小华三个，后来妈妈又买了六个苹果给他。请问小明现在一共有多少个苹果？"
OTHER = "Which river flows through the largest number of capital cities in the world?"
RNG = random.Random(5)
FILLER = [" ".join(RNG.choices([f"word{number}" for number in range(3000)], k=120)) for _ in range(30)]


def evaluation(context: Context) -> DatasetVersion:
    rows = [Sample(f"item-{place}", {"text": text}) for place, text in enumerate((ITEM, SHORT, CHINESE, OTHER))]
    return put(context.store, rows)


def check(context: Context, *texts: str, **config: object) -> DatasetVersion:
    source = documents(context.store, *texts, *FILLER)
    return run(context, "data.decontaminate", dict(config), source=source, against=evaluation(context))


def insert(text: str, place: int) -> str:
    words = text.split()
    return " ".join([*words[:place], "really", *words[place:]])


def delete(text: str, place: int) -> str:
    words = text.split()
    return " ".join([*words[:place], *words[place + 1 :]])


PLANTED = {
    "alone": ITEM,
    "at the beginning": f"{ITEM} {FILLER[0]}",
    "at the end": f"{FILLER[0]} {ITEM}",
    "in the middle": f"{FILLER[0]} {ITEM} {FILLER[1]}",
    "with one word inserted": f"{FILLER[0]} {insert(ITEM, 20)} {FILLER[1]}",
    "with one word deleted": f"{FILLER[0]} {delete(ITEM, 20)} {FILLER[1]}",
    "with other punctuation": f"{FILLER[0]} {re.sub(r'[.,?]', ' --', ITEM)} {FILLER[1]}",
    "in capitals": f"{FILLER[0]} {ITEM.upper()}",
    "over many lines": f"{FILLER[0]}\n" + ITEM.replace(" ", "\n"),
}


@pytest.mark.parametrize("text", PLANTED.values(), ids=list(PLANTED))
def test_planted_contamination_is_found(context: Context, text: str) -> None:
    made = check(context, text)
    ((row, reason, detail),) = rejects(context.store, made)
    assert (row.text, reason) == (text, "contaminated")
    assert detail.startswith("against/item-0, overlap ")
    assert made.rows == len(FILLER)


@pytest.mark.parametrize("place", range(0, 13))
def test_one_edit_anywhere_hides_a_short_item_not(context: Context, place: int) -> None:
    index = Index(13, 5)
    index.add("short", SHORT)
    index.close()
    for edited in (insert(SHORT, place), delete(SHORT, place)):
        assert index.best(f"{FILLER[0]} {edited} {FILLER[1]}", 0.75) is not None


def test_chinese_items_are_found_by_characters(context: Context) -> None:
    changed = CHINESE.replace("，", "，，").replace("后来", "然后")
    made = check(context, f"{FILLER[0]}{changed}{FILLER[1]}", "小明有很多苹果，他给了小红四个梨。")
    assert [detail.split(",")[0] for _, _, detail in rejects(context.store, made)] == ["against/item-2"]


def test_the_best_of_several_items_in_one_row_is_named(context: Context) -> None:
    made = check(context, f"{SHORT} {FILLER[0]} {delete(ITEM, 3)}")
    assert [detail.split(", from")[0] for _, _, detail in rejects(context.store, made)] == [
        "against/item-1, overlap 1.000"
    ]
    assert made.profile["decontamination"] == {"passages": 4, "too_short_to_check": 0, "items_found": 1}


CLEAN = [
    "A farmer has many sheep and a few goats, and he likes to stand in the upper meadow in the end of the day.",
    "Which planet in our solar system has the most moons? Saturn, at the moment.",
    "How many animals with four legs live in the zoo of the town?",
    "小红有十五个梨，她给了小明四个。",
]


def test_clean_text_is_untouched(context: Context) -> None:
    made = check(context, *CLEAN)
    assert made.rejects == 0
    assert [row.text for row in samples(context.store, made)] == [*CLEAN, *FILLER]


def test_a_phrase_that_everybody_uses_is_no_evidence(context: Context) -> None:
    common = "please choose the one answer that is best from the list of options below and explain"
    items = [Sample("item", {"text": f"{common}: what melts first in spring on the southern slopes?"})]
    texts = [f"{common}: {FILLER[number]}" for number in range(30)]
    leaked = f"{FILLER[3]} what melts first in spring on the southern slopes?"
    made = run(
        context,
        "data.decontaminate",
        {"threshold": 0.6},
        source=documents(context.store, *texts, leaked),
        against=put(context.store, items),
    )
    assert [row.text for row, _, _ in rejects(context.store, made)] == [leaked]


def test_a_copied_passage_of_a_long_item_is_found(context: Context) -> None:
    book = " ".join(FILLER[:10])
    copied = f"{FILLER[20]} {' '.join(book.split()[480:700])} {FILLER[21]}"
    made = run(
        context,
        "data.decontaminate",
        {},
        source=documents(context.store, copied, FILLER[25]),
        against=documents(context.store, book),
    )
    assert [row.text for row, _, _ in rejects(context.store, made)] == [copied]


def test_passages_cover_an_item_and_every_long_run_of_it_nearly_fills_one() -> None:
    for length in (1, PASSAGE, 150, 151, 999):
        pieces = passages_of(range(length))  # type: ignore[arg-type]
        assert {word for piece in pieces for word in piece} == set(range(length))
        for start in range(0, length - 130, 7):
            run_of_words = set(range(start, start + 130))
            assert max(len(run_of_words.intersection(piece)) / len(piece) for piece in pieces) >= 0.8


def test_ngrams_of_short_items_are_shorter() -> None:
    assert [ngram_of(words, 13, 5) for words in (10, 23, 24, 38, 39, 100)] == [5, 5, 8, 8, 13, 13]
    assert ngram_of(100, 4, 4) == 4


def test_too_short_items_are_counted_and_other_sets_and_splits_taken(context: Context) -> None:
    first = put(context.store, [document("yes", split="test"), document(SHORT, split="train")])
    rows = [document(SHORT, split="train"), document(ITEM, split="train"), document(ITEM, 1, split="test")]
    made = run(
        context,
        "data.decontaminate",
        {"split": "train", "against_split": "test"},
        source=put(context.store, rows),
        against=first,
        third=put(context.store, [Sample(sample_id("item"), {"input": ITEM, "output": "19"}, split="test")], "example"),
    )
    assert made.profile["decontamination"] == {"passages": 1, "too_short_to_check": 1, "items_found": 1}
    assert [detail.split("/")[0] for _, _, detail in rejects(context.store, made)] == ["third"]
    assert [row.split for row in samples(context.store, made)] == ["train", "test"]
