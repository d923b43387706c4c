from __future__ import annotations

import random
import re

import numpy as np
import pytest

from catena.data import lsh
from catena.data.clusters import choose
from catena.data.lsh import across, buckets, link
from catena.data.minhash import band_keys, candidates, shingles, signatures
from catena.data.shingles import Sets, fold, jaccard, shingle_sets, word_hashes
from catena.data.words import folded_words


def pairs_of_known_similarity(count: int, size: int, shared: int) -> Sets:
    """Two sets of `size` shingles each, `shared` of them in common: first all first ones, then all second ones."""
    chance = np.random.default_rng([count, size, shared])  # of its own: the order of tests must not matter
    common = chance.integers(0, 1 << 63, (count, shared), dtype=np.uint64)
    own = chance.integers(0, 1 << 63, (2, count, size - shared), dtype=np.uint64)
    values = np.concatenate([np.concatenate((common, own[side]), axis=1) for side in (0, 1)])
    return Sets(np.sort(values, axis=1).reshape(-1), np.arange(2 * count + 1) * size)


@pytest.mark.parametrize("size", [9, 90, 1800])
def test_planted_pairs_are_found_as_often_as_theory_promises(size: int) -> None:
    count = 3000 if size < 1000 else 1000
    for shared, least in ((8 * size // 9, 0.997), (18 * size // 19 if size > 18 else size, 0.9999)):
        found = signatures(pairs_of_known_similarity(count, size, shared), 256)
        keys = band_keys(found, 32, 8)
        recall = float((keys[:count] == keys[count:]).any(axis=1).mean())
        error = 3 * (least * (1 - least) / count) ** 0.5  # three standard errors
        assert recall >= least - error


def test_signatures_estimate_the_jaccard_similarity_without_bias() -> None:
    for size in (10, 90, 900):
        found = signatures(pairs_of_known_similarity(400, size, size // 2), 256)
        true = (size // 2) / (2 * size - size // 2)
        assert float((found[:400] == found[400:]).mean()) == pytest.approx(true, abs=0.01)


def test_signatures_do_not_depend_on_what_is_signed_beside() -> None:
    texts = [" ".join(random.Random(seed).choices("abcdefghij", k=5 + 40 * seed)) for seed in range(9)]
    together = signatures(shingle_sets(texts, 3), 64)
    for row, text in enumerate(texts):
        assert np.array_equal(together[row], signatures(shingle_sets([text], 3), 64)[0])


def test_words_are_those_of_the_other_stages() -> None:
    text = "don't stop_now 東京タワー 3.14 naïve한국어 x" + "𠀀𠀁 end"
    text += "\u0301 हिन्दी می‌خواهم ‌র‍্যাব‍‌ 漢\u0301 1\ufe0f\u20e3 \u0301x 👨‍👩 ที่นี่ ខ្មែរ។ \U00011013\U00011046a‌"
    hashes, starts = word_hashes(text)
    words = folded_words(text)
    assert [text[start : start + len(word)] for start, word in zip(starts.tolist(), words, strict=True)] == words
    again = word_hashes(" ".join(words))[0]
    assert np.array_equal(hashes, again)
    assert len(set(hashes.tolist())) == len(set(words))


def test_two_hindi_sentences_that_differ_in_vowel_signs_are_not_alike() -> None:
    first = "किताब की कीमत का हिसाब करो और बाजार में जाकर देखो कि दाम कितना है"
    second = first.translate(str.maketrans("िीे", "ुाो"))
    assert jaccard(*(shingle_sets([text], 5).values for text in (first, second))) < 0.2


def test_marks_and_words_agree_on_text_at_random() -> None:
    signs = ["a", "न", "漢", "ก", *"\u0e34\u0301\u093f\U00011046\u200c\u200d\ufe0f_. "]
    chance = random.Random(7)
    for _ in range(3000):
        text = fold("".join(chance.choices(signs, k=chance.randrange(12))))
        words = folded_words(text)
        assert np.array_equal(word_hashes(text)[0], word_hashes(" ".join(words))[0]), repr(text)
        assert len(word_hashes(text)[0]) == len(words), repr(text)


def test_a_text_longer_than_a_piece_has_the_same_shingles(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(random.Random(1).choices([f"word{number}" for number in range(50)], k=500))
    whole = shingle_sets([text], 5).values
    monkeypatch.setattr("catena.data.shingles.PIECE", 64)
    assert np.array_equal(shingle_sets([text], 5).values, whole)


def test_exact_jaccard_counts_shared_shingles() -> None:
    assert jaccard(shingles(list("abcd"), 2), shingles(list("bcde"), 2)) == pytest.approx(2 / 4)
    assert jaccard(shingles(["a"], 5), shingles(["a"], 5)) == 1
    assert jaccard(shingles([], 5), shingles([], 5)) == 0
    text = "one two three two one two three one one two"
    words = re.findall(r"\w+", text)
    assert len(shingles(words, 3)) == len({tuple(words[place : place + 3]) for place in range(len(words) - 2)})


def test_candidates_are_pairs_that_agree_in_some_band() -> None:
    keys = np.array([[1, 3], [1, 9], [5, 9], [7, 8]], dtype=np.uint64)
    assert candidates(keys).tolist() == [[0, 1], [1, 2]]


def test_buckets_hold_the_texts_with_equal_keys() -> None:
    keys = np.array([7, 9, 7, 4, 9, 7], dtype=np.uint64) << np.uint64(40)
    members = np.array([0, 2, 3, 5, 8, 9], dtype=np.int32)
    texts, starts = buckets(keys, members, 10)
    assert [part.tolist() for part in np.split(texts, starts[1:])] == [[0, 3, 9], [2, 8]]
    assert buckets(keys[:1], members[:1], 10)[0].tolist() == []
    assert buckets(keys[:0], members[:0], 10)[0].tolist() == []


def groups(truth: np.ndarray) -> lsh.Similar:
    return lambda pairs: truth[pairs[:, 0]] == truth[pairs[:, 1]]


def test_links_are_the_components_of_verified_pairs() -> None:
    chance = np.random.default_rng(5)  # with these draws the bands connect every group
    truth = chance.integers(0, 50, 400)
    members = np.arange(400, dtype=np.int32)
    noise = chance.integers(0, 40, (3, 400))
    bands = [((truth * 64 + part % 2).astype(np.uint64) << np.uint64(32), members) for part in noise]
    crowd = (noise[0].astype(np.uint64) << np.uint64(32), members)  # texts that have nothing to do with each other
    found = link(400, [*bands, crowd], groups(truth))
    first = {group: int(np.flatnonzero(truth == group)[0]) for group in set(truth.tolist())}
    assert found.labels.tolist() == [first[group] for group in truth.tolist()]
    assert found.untried == 0


def test_a_bucket_of_copies_costs_one_pair_a_text() -> None:
    keys = np.zeros(5000, dtype=np.uint64)
    members = np.arange(5000, dtype=np.int32)
    found = link(5000, [(keys, members)] * 4, groups(np.zeros(5000)))
    assert (found.tried, found.untried) == (4999, 0)
    assert not found.labels.any()


def test_pairs_left_out_of_a_crowded_bucket_are_counted() -> None:
    size = 400
    found = link(size, [(np.zeros(size, np.uint64), np.arange(size, dtype=np.int32))], groups(np.arange(size)))
    assert found.tried == size - 1 + lsh.BUDGET
    assert found.tried + found.untried == size * (size - 1) // 2


def test_pairs_of_stored_texts_are_not_tried() -> None:
    keys, members = np.zeros(6, np.uint64), np.arange(6, dtype=np.int32)
    tried: list[tuple[int, int]] = []

    def similar(pairs: np.ndarray) -> np.ndarray:
        tried.extend(map(tuple, pairs.tolist()))
        return np.zeros(len(pairs), dtype=np.bool_)

    link(6, [(keys, members)], similar, stored=4)
    assert sorted(tried) == sorted((first, second) for second in (4, 5) for first in range(second))
    assert across(members, members, stored=6)[1] == 0


def test_who_stays_is_decided_by_rank_and_every_leaver_has_a_similar_partner() -> None:
    labels = np.zeros(4, dtype=np.int32)
    alike = {(1, 0): 0.95, (2, 1): 0.99, (3, 0): 0.91, (3, 2): 0.97}
    found = choose(
        labels,
        np.arange(4, dtype=np.int32),
        lambda first, second: alike.get((first, second), 0.1),
        0.9,
    )
    assert found.kept_for.tolist() == [-1, 0, -1, 2]
    assert found.clusters == 1
