from __future__ import annotations

import random

import numpy as np
import pytest

from catena.core.stage import Context
from catena.data.dedup import DedupConfig, find_duplicates
from catena.data.minhash import Verified, candidates, components, jaccard, read_words, shingles, signatures
from tests.data.stores import document, documents, put, rejects, run, samples

WORDS = [f"word{number}" for number in range(5000)]


def text_of(seed: int, length: int = 300) -> list[str]:
    return random.Random(seed).choices(WORDS, k=length)


def changed(words: list[str], count: int, seed: int = 0) -> list[str]:
    """Replace the last `count` words: the Jaccard of 5-grams goes down by a known amount."""
    return [*words[: len(words) - count], *text_of(1000 + seed, count)]


def test_signatures_estimate_the_jaccard_similarity() -> None:
    first = text_of(1)
    found = signatures([first, changed(first, 100)], 1024, 5)
    exact = jaccard(shingles(first, 5), shingles(changed(first, 100), 5))
    assert found.shape == (2, 1024)
    assert float(np.mean(found[0] == found[1])) == pytest.approx(exact, abs=0.05)


def test_exact_jaccard_counts_shared_shingles() -> None:
    assert jaccard(shingles(list("abcd"), 2), shingles(list("bcde"), 2)) == pytest.approx(2 / 4)
    assert jaccard(shingles(["a"], 5), shingles(["a"], 5)) == 1
    assert jaccard(shingles([], 5), shingles([], 5)) == 0


def test_candidates_are_pairs_that_agree_in_a_whole_band() -> None:
    found = np.array([[1, 2, 3, 4], [1, 2, 9, 9], [5, 6, 9, 9], [1, 9, 3, 9]], dtype=np.uint32)
    assert candidates(found, 2, 2).tolist() == [[0, 1], [1, 2]]


def test_banding_finds_the_pairs_that_theory_promises() -> None:
    texts = [words for seed in range(200) for words in (text_of(seed), changed(text_of(seed), 15, seed))]
    words = dict(enumerate(texts))
    verified = Verified(words, 5)
    true = {(2 * pair, 2 * pair + 1) for pair in range(200) if verified.similarity(2 * pair, 2 * pair + 1) >= 0.85}
    pairs, _ = verified.pairs(32, 8, 0.85)
    assert len(true) == 200
    assert set(pairs) == true  # at J = 0.9 a pair is missed once in 10^8


def test_empty_texts_are_never_alike() -> None:
    assert read_words(["", "a b", " .,! "]) == {1: ["a", "b"]}
    assert not find_duplicates(["", " ", "...", "!!!"], list("abcd"), DedupConfig()).removed


def test_components_join_chains() -> None:
    assert components(5, [(3, 1), (1, 0)]) == [[0, 1, 3], [2], [4]]
    assert components(0, []) == []


def test_chinese_near_duplicates_are_found() -> None:
    text = "".join(chr(0x4E00 + random.Random(3).randrange(3000) + place) for place in range(300))
    found = find_duplicates([text, text[:295] + "这里改了几", "完全不同的一段文字"], list("abc"), DedupConfig())
    assert set(found.removed) == {1}
    assert found.removed[1].reason == "near_duplicate"


def test_the_longest_is_kept_and_of_equals_the_lowest_id() -> None:
    words = text_of(5)
    texts = [" ".join(words), " ".join([*words, "more"]), " ".join([*words, "MORE"])]
    found = find_duplicates(texts, ["c", "b", "a"], DedupConfig()).removed
    assert {place: (entry.reason, entry.kept) for place, entry in found.items()} == {
        1: ("exact_duplicate", 2),
        0: ("near_duplicate", 2),
    }


def test_a_chain_of_neighbours_does_not_take_a_document_along() -> None:
    first = text_of(7, 400)
    second = changed(first, 14)
    third = [*text_of(2000, 14), *second[14:]]
    texts = [" ".join([*first, "a", "b", "c"]), " ".join(second), " ".join(third)]
    words = dict(enumerate(text.split() for text in texts))
    near = Verified(words, 5)
    assert near.similarity(0, 1) > 0.9 < near.similarity(1, 2)
    assert near.similarity(0, 2) < 0.9
    found = find_duplicates(texts, list("abc"), DedupConfig(threshold=0.9))
    assert set(found.removed) == {1}


def test_every_removed_document_names_a_kept_one_that_is_as_similar_as_asked(context: Context) -> None:
    originals = [text_of(seed, 200) for seed in range(30)]
    texts = [" ".join(changed(words, count, count)) for words in originals for count in (0, 3, 6, 9)]
    source = put(context.store, [document(text, place) for place, text in enumerate(texts)])
    made = run(context, "data.dedup", {"threshold": 0.9}, source=source)
    kept = {sample.id: sample for sample in samples(context.store, made)}
    assert made.rejects >= 30
    for sample, reason, detail in rejects(context.store, made):
        partner = kept[detail.split()[1].rstrip(",")]
        assert reason == "near_duplicate"
        assert jaccard(shingles(sample.text.split(), 5), shingles(partner.text.split(), 5)) >= 0.9
    assert run(context, "data.dedup", {"threshold": 0.9}, source=source).digest == made.digest


def test_rows_stay_in_their_order_and_near_can_be_switched_off(context: Context) -> None:
    words = text_of(9)
    texts = [" ".join(words), "other text", " ".join(changed(words, 3)), "Other   TEXT"]
    source = documents(context.store, *texts)
    made = run(context, "data.dedup", {"near": False}, source=source)
    assert len(samples(context.store, made)) == 3
    assert [reason for _, reason, _ in rejects(context.store, made)] == ["exact_duplicate"]


def test_an_empty_dataset_stays_empty(context: Context) -> None:
    assert run(context, "data.dedup", {}, source=documents(context.store)).rows == 0
