from __future__ import annotations

import random

import pytest

from catena.core.errors import DataError
from catena.core.stage import Context
from catena.core.types import DatasetVersion
from catena.data import parallel
from catena.data.bitext import align, learn_lexicon, length_cost, word_share
from catena.data.sentences import sentences
from tests.data.stores import document, put, rejects, run, samples

ENGLISH = [
    "The library opens at nine in the morning.",
    "Please do not bring food or drinks into the reading room.",
    "Books may be borrowed for three weeks.",
    "If you lose a book, you must pay for a new one.",
    "Children under ten must come with an adult.",
    "The library is closed on Sundays and on public holidays.",
    "Members can use the computers on the second floor for free.",
    "Printing costs ten cents a page.",
]
CHINESE = [
    "图书馆早上九点开门。",
    "请不要把食物或饮料带进阅览室。",
    "图书可以借三周。",
    "如果您丢了一本书，您必须赔一本新的。",
    "十岁以下的儿童必须有成人陪同。",
    "图书馆星期天和公共假日不开放。",
    "会员可以免费使用二楼的电脑。",
    "打印每页十美分。",
]


def spans(source: list[str], target: list[str]) -> list[tuple[int, int, int, int]]:
    return [bead[:4] for bead in align(source, target)]


def test_sentences_of_one_translation_are_paired_one_by_one() -> None:
    assert spans(ENGLISH, CHINESE) == [(place, place + 1, place, place + 1) for place in range(len(ENGLISH))]


def test_two_sentences_that_became_one_are_one_bead() -> None:
    target = [*CHINESE[:4], CHINESE[4][:-1] + "，" + CHINESE[5], *CHINESE[6:]]
    assert (4, 6, 4, 5) in spans(ENGLISH, target)
    assert (4, 5, 4, 6) in spans(target, ENGLISH)


def test_beads_cover_both_texts_in_order_and_nothing_is_aligned_with_nothing() -> None:
    for source, target in ((ENGLISH, CHINESE[2:5]), (ENGLISH[:1], CHINESE), (ENGLISH, []), ([], CHINESE)):
        beads = align(source, target)
        assert [place for bead in beads for place in range(bead.first, bead.first_end)] == list(range(len(source)))
        assert [place for bead in beads for place in range(bead.second, bead.second_end)] == list(range(len(target)))
        assert all(bead.score == 0 for bead in beads if bead.first == bead.first_end or bead.second == bead.second_end)
    assert align([], []) == []


def test_length_cost_is_least_for_translations_of_the_usual_length() -> None:
    assert length_cost(100, 40, 0.4) < length_cost(100, 60, 0.4) < length_cost(100, 100, 0.4)
    assert length_cost(0, 0, 1) == 0


def test_words_that_stand_together_are_learned_and_names_are_their_own_translation() -> None:
    lexicon = learn_lexicon([("red house", "rotes haus"), ("red car", "rotes auto"), ("blue car", "blaues auto")])
    assert lexicon["red", "rotes"] == 1
    assert ("blue", "blaues") not in lexicon  # once is chance
    assert word_share(["red"], ["rotes"], lexicon) == 1
    assert word_share(["python", "3"], ["python", "3"], {}) == 1
    assert word_share([], ["x"], lexicon) == 0


def test_a_learned_lexicon_finds_what_lengths_cannot() -> None:
    rng = random.Random(3)
    dictionary = {f"w{number:03}": f"v{number:03}" for number in range(80)}  # all words, and sentences, equally long
    documents = []
    for _ in range(60):
        source = [" ".join(rng.sample(sorted(dictionary), 6)) for _ in range(12)]
        missing = rng.randrange(12)
        target = [" ".join(map(dictionary.__getitem__, text.split())) for text in source]
        documents.append((source, target[:missing] + target[missing + 1 :], missing))

    def right(lexicon: dict[tuple[str, str], float] | None) -> float:
        found = 0
        for source, target, missing in documents:
            beads = {(bead.first, bead.second) for bead in align(source, target, lexicon, 1) if bead.score}
            found += sum((place, place - (place > missing)) in beads for place in range(12) if place != missing)
        return found / (11 * len(documents))

    sure = [
        (source[bead.first], target[bead.second])
        for source, target, _ in documents
        for bead in align(source, target, None, 1)
        if bead.first_end - bead.first == bead.second_end - bead.second == 1
    ]
    assert right(learn_lexicon(sure)) > 0.95 > right(None) + 0.1


def test_text_is_cut_into_sentences_in_both_scripts() -> None:
    assert sentences("Dr. Li uses e.g. Python 3.11. It works!\nA heading\n他说：“好。”然后走了。真的？") == [
        "Dr. Li uses e.g. Python 3.11.",
        "It works!",
        "A heading",
        "他说：“好。”",
        "然后走了。",
        "真的？",
    ]
    assert sentences(" \n ") == []


def both(context: Context) -> tuple[DatasetVersion, DatasetVersion]:
    source = [
        document(" ".join(ENGLISH), metadata={"page": 1}, license="MIT"),
        document("Alone.", metadata={"page": 2}),
    ]
    target = [
        document("没有原文。", metadata={"page": 3}),
        document("".join(CHINESE), metadata={"page": 1}, license="CC-BY-4.0"),
    ]
    return put(context.store, source), put(context.store, target)


def test_documents_and_their_translations_become_examples(context: Context) -> None:
    source, target = both(context)
    made = run(context, "data.align_parallel", {"pair_by": "page", "lexicon": False}, source=source, target=target)
    rows = samples(context.store, made)
    assert [(row.data["input"], row.data["output"]) for row in rows] == list(zip(ENGLISH, CHINESE, strict=True))
    assert all(0.1 <= row.metadata["score"] <= 1 and row.metadata["bead"] == "1-1" for row in rows)
    assert all(len(row.parents) == 2 and row.license == "MIT AND CC-BY-4.0" for row in rows)
    assert [(row.text, reason) for row, reason, _ in rejects(context.store, made)] == [
        ("Alone.", "no_translation"),
        ("没有原文。", "no_translation"),
    ]
    assert made.profile["alignment"]["beads"] == 8


def test_a_sentence_without_a_translation_is_kept_back_and_spoils_one_other_at_most(context: Context) -> None:
    noise = "This advertisement was put in the middle of the page and it has no translation anywhere at all, of course."
    source = put(
        context.store,
        [
            *(document("\n".join(ENGLISH), place) for place in range(9)),
            document("\n".join([*ENGLISH[:4], noise, *ENGLISH[4:]]), metadata={"noisy": True}),
        ],
    )
    target = put(context.store, [document("\n".join(CHINESE), place) for place in range(10)])
    made = run(context, "data.align_parallel", {"min_score": 0.4}, source=source, target=target)
    ((row, reason, detail),) = rejects(context.store, made)
    assert noise in row.text
    assert (reason, detail[:5]) in {("unaligned", "1-0"), ("misaligned", "score")}
    noisy = samples(context.store, source)[-1].id
    kept = [(row.data["input"], row.data["output"]) for row in samples(context.store, made) if noisy in row.parents]
    assert len(kept) >= 7
    assert set(kept) <= set(zip(ENGLISH, CHINESE, strict=True))


def test_given_sentences_are_taken_as_they_are(context: Context) -> None:
    source = put(context.store, [document("x", metadata={"sentences": ["One. Two.", "Three."]})])
    target = put(context.store, [document("x", metadata={"sentences": ["一。二。", "三。"]})])
    made = run(context, "data.align_parallel", {}, source=source, target=target)
    assert [row.data["input"] for row in samples(context.store, made)] == ["One. Two.", "Three."]


def test_endless_documents_and_datasets_without_pairs_are_refused(context: Context) -> None:
    source, target = both(context)
    with pytest.raises(DataError, match="no document has its translation"):
        run(context, "data.align_parallel", {"max_sentences": 2, "pair_by": "page"}, source=source, target=target)
    with pytest.raises(DataError, match="no document"):
        run(context, "data.align_parallel", {"pair_by": "nothing"}, source=source, target=target)


def test_however_few_documents_are_read_at_once_each_meets_its_translation(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [document(f"Sentence number {n}.", n, metadata={"page": n}) for n in range(7)]
    others = [document(f"第{n}句话。", n, metadata={"page": n}) for n in (6, 2, 9, 0, 3, 1, 5)]
    others.append(document("第二句话，另一版。", "again", metadata={"page": 2}))
    source, target = put(context.store, rows), put(context.store, others)
    whole = run(context, "data.align_parallel", {"pair_by": "page", "min_score": 0}, source=source, target=target)
    monkeypatch.setattr(parallel, "AT_ONCE", 2)
    made = run(context, "data.align_parallel", {"pair_by": "page", "min_score": 0}, source=source, target=target)
    assert made.digest == whole.digest
    assert [row.data["output"] for row in samples(context.store, made)][2] == "第二句话，另一版。"
    kept_back = [(row.text, reason) for row, reason, _ in rejects(context.store, made)]
    assert kept_back == [(text, "no_translation") for text in ("Sentence number 4.", "第2句话。", "第9句话。")]
