from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from catena.core.sample import Sample
from catena.core.stage import Context
from catena.core.types import DatasetVersion
from catena.data.dedup import DedupConfig, find_duplicates
from catena.data.duplicates import Duplicates
from catena.data.minhash import band_keys, candidates, shingles, signatures
from catena.data.shingles import jaccard, shingle_sets
from catena.workspace import Workspace, open as open_workspace
from tests.data.stores import document, documents, put, rejects, run, samples

WORDS = [f"word{number}" for number in range(5000)]


def text_of(seed: int, length: int = 300) -> list[str]:
    return random.Random(seed).choices(WORDS, k=length)


def changed(words: list[str], count: int, seed: int = 0) -> list[str]:
    """Replace the last `count` words: the Jaccard of 5-grams goes down by a known amount."""
    return [*words[: len(words) - count], *text_of(1000 + seed, count)]


def removed(found: Duplicates) -> dict[int, tuple[str, int]]:
    return {
        place: ("equal" if found.equal[place] else "near", kept)
        for place, kept in enumerate(found.kept_for.tolist())
        if kept >= 0
    }


def test_banding_finds_the_pairs_that_theory_promises() -> None:
    texts = [words for seed in range(200) for words in (text_of(seed), changed(text_of(seed), 15, seed))]
    sets = shingle_sets([" ".join(words) for words in texts], 5)
    found = candidates(band_keys(signatures(sets, 32 * 8), 32, 8)).tolist()
    pairs = {(first, second) for first, second in found if jaccard(sets.of(first), sets.of(second)) >= 0.85}
    true = {(pair, pair + 1) for pair in range(0, 400, 2) if jaccard(sets.of(pair), sets.of(pair + 1)) >= 0.85}
    assert len(true) == 200
    assert pairs == true  # at J = 0.9 a pair is missed once in 10^8


def test_empty_texts_are_never_alike() -> None:
    assert not removed(find_duplicates(["", " ", "...", "!!!", "\n", "。"], list("abcdef"), DedupConfig()))


def test_chinese_near_duplicates_are_found() -> None:
    text = "".join(chr(0x4E00 + random.Random(3).randrange(3000) + place) for place in range(300))
    found = find_duplicates([text, text[:295] + "这里改了几", "完全不同的一段文字"], list("abc"), DedupConfig())
    assert removed(found) == {1: ("near", 0)}


def test_the_longest_is_kept_and_of_equals_the_lowest_id() -> None:
    words = text_of(5)
    texts = [" ".join(words), " ".join([*words, "more"]), " ".join([*words, "MORE"])]
    found = find_duplicates(texts, ["c", "b", "a"], DedupConfig())
    assert removed(found) == {1: ("equal", 2), 0: ("near", 2)}


def test_copies_of_a_text_that_leaves_name_the_one_that_stays() -> None:
    words = text_of(6)
    texts = [" ".join(words), "\n".join(words), " ".join([*words, "more"]), " ".join(words).upper()]
    found = find_duplicates(texts, list("abcd"), DedupConfig())
    assert removed(found) == {0: ("near", 2), 1: ("near", 2), 3: ("near", 2)}


def test_a_chain_of_neighbours_does_not_take_a_document_along() -> None:
    first = text_of(7, 400)
    second = changed(first, 14)
    third = [*text_of(2000, 14), *second[14:]]
    texts = [" ".join([*first, "a", "b", "c"]), " ".join(second), " ".join(third)]
    sets = shingle_sets(texts, 5)
    assert jaccard(sets.of(0), sets.of(1)) > 0.9 < jaccard(sets.of(1), sets.of(2))
    assert jaccard(sets.of(0), sets.of(2)) < 0.9
    assert set(removed(find_duplicates(texts, list("abc"), DedupConfig(threshold=0.9)))) == {1}


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


def test_the_dataset_is_the_same_for_any_number_of_workers(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catena.data.shards.SHARD_ROWS", 20)
    texts = [" ".join(changed(text_of(seed, 120), 3 * (seed % 4), copy)) for seed in range(25) for copy in range(4)]
    source = documents(context.store, *texts)
    made = {}
    for workers in (1, 2, 3):
        fresh = replace(context, workdir=tmp_path / f"work-{workers}")
        made[workers] = run(fresh, "data.dedup", {"threshold": 0.8, "workers": workers}, source=source)
        assert len(list((tmp_path / f"work-{workers}" / "shards").iterdir())) == 5
    assert made[1].rejects >= 50
    assert len({version.digest for version in made.values()}) == 1


def test_the_number_of_workers_is_no_part_of_the_work() -> None:
    assert DedupConfig(workers=3).digest() == DedupConfig().digest()


def test_rows_stay_in_their_order_and_near_can_be_switched_off(context: Context) -> None:
    words = text_of(9)
    texts = [" ".join(words), "other text", " ".join(changed(words, 3)), "Other   TEXT"]
    source = documents(context.store, *texts)
    made = run(context, "data.dedup", {"near": False}, source=source)
    assert len(samples(context.store, made)) == 3
    assert [reason for _, reason, _ in rejects(context.store, made)] == ["exact_duplicate"]


def put_named(workspace: Workspace, name: str, dataset: DatasetVersion) -> None:
    workspace.store.index.add_artifact(dataset)
    workspace.store.index.add_name(name, dataset.digest)


def test_what_is_stored_already_is_rejected_with_the_stored_row(context: Context) -> None:
    words = [text_of(seed) for seed in range(4)]
    stored = documents(context.store, " ".join(words[0]), " ".join(words[1]))
    longer = " ".join([*changed(words[0], 4), "one", "more"])  # longer, and yet it is the stored one that stays
    new = put(context.store, [document(text, "new") for text in (" ".join(words[2]), longer, " ".join(words[1]))])
    made = run(context, "data.dedup", {}, source=new, against=stored)
    ids = [sample.id for sample in samples(context.store, stored)]
    assert [sample.text for sample in samples(context.store, made)] == [" ".join(words[2])]
    assert [(reason, detail.split()[1]) for _, reason, detail in rejects(context.store, made)] == [
        ("duplicate_of_stored", f"{ids[0]},"),
        ("duplicate_of_stored", f"{ids[1]},"),
    ]


def test_with_previous_only_what_is_new_goes_on(context: Context) -> None:
    with open_workspace(context.store.root) as workspace:
        first = documents(context.store, "a first text of some words", "a second text of some words")
        both = documents(context.store, "a first text of some words", "a third text, not seen so far")
        put_named(workspace, "raw", first)
        made = workspace.do("data.dedup", {"source": "raw"}, {"previous": True}, name="clean")
        assert (made.rows, made.rejects) == (2, 0)
        put_named(workspace, "raw", both)
        made = workspace.do("data.dedup", {"source": "raw"}, {"previous": True}, name="clean")
        assert [sample.text for sample in samples(context.store, made)] == ["a third text, not seen so far"]
        assert [reason for _, reason, _ in rejects(context.store, made)] == ["duplicate_of_stored"]


def test_with_previous_all_that_was_stored_counts_and_each_name_has_its_own(context: Context) -> None:
    texts = {"raw-1": ("alpha one two", "u three four"), "raw-2": ("beta five six",)}
    texts["raw-3"] = ("alpha one two", "gamma seven eight", "u three four")
    with open_workspace(context.store.root) as workspace:
        for name, lines in texts.items():
            put_named(workspace, name, documents(context.store, *lines))

        def made(name: str, source: str) -> list[str]:
            out = workspace.do("data.dedup", {"source": source}, {"previous": True}, name=name)
            return [sample.text for sample in samples(context.store, out)]

        assert [made("news", source) for source in texts] == [
            ["alpha one two", "u three four"],
            ["beta five six"],
            ["gamma seven eight"],
        ]
        assert made("news", "raw-3") == ["gamma seven eight"]  # done again, it sees what it saw
        assert made("blog", "raw-3") == list(texts["raw-3"])  # another name has another history


def test_conversations_are_compared_too(context: Context) -> None:
    talk = [{"role": "user", "content": "what does this do?"}, {"role": "assistant", "content": "it copies a file"}]
    source = put(context.store, [Sample(key, {"messages": talk}) for key in "ba"], "conversation")
    made = run(context, "data.dedup", {}, source=source)
    assert [sample.id for sample in samples(context.store, made)] == ["a"]


def test_an_empty_dataset_stays_empty(context: Context) -> None:
    assert run(context, "data.dedup", {}, source=documents(context.store)).rows == 0
