from __future__ import annotations

import random

import pytest

from catena.core.errors import DataError
from catena.core.stage import Context
from catena.data.select import Similarity, batches_of
from tests.data.stores import documents, rejects, run, samples

COOKING = """simmer the onions in butter until soft|knead the dough and let it rise for an hour|whisk eggs with sugar
and flour|roast the chicken with garlic and thyme|season the soup with salt and pepper|bake the bread in
a hot oven|chop parsley and stir it into the sauce|melt chocolate over warm water|grill the fish with
lemon and olive oil|boil potatoes and mash them with milk""".replace("\n", " ").split("|")
COURTS = """the court dismissed the appeal of the defendant|the contract is void under this statute|the plaintiff
bears the burden of proof|the judge granted the motion to dismiss|liability arises from negligence of the
tenant|the jury reached a verdict of guilty|the lease was terminated without notice|counsel objected to
the testimony|damages were awarded to the claimant|the tribunal upheld the decision""".replace("\n", " ").split("|")
炒菜 = [
    "洋葱用黄油小火炒软",
    "面团揉好发酵一小时",
    "鸡蛋加糖和面粉打匀",
    "烤鸡放大蒜和香草",
    "汤里加盐和胡椒调味",
    "面包放进烤箱烤熟",
]
法律 = [
    "法院驳回被告的上诉",
    "合同依照法律无效",
    "原告负有举证责任",
    "法官批准了驳回的请求",
    "租赁合同被解除",
    "仲裁庭维持原来的决定",
]


def mixed(seed: int, phrases: list[str], count: int, joint: str) -> list[str]:
    rng = random.Random(seed)
    return [joint.join(rng.sample(phrases, 3)) for _ in range(count)]


def auc(right: list[float], wrong: list[float]) -> float:
    return sum((one > other) + (one == other) / 2 for one in right for other in wrong) / (len(right) * len(wrong))


@pytest.mark.parametrize(("wanted", "other", "joint"), [(COOKING, COURTS, ". "), (炒菜, 法律, "。")], ids=["en", "zh"])
def test_what_is_on_topic_ranks_above_what_is_not(wanted: list[str], other: list[str], joint: str) -> None:
    half = len(wanted) // 2
    reference = mixed(1, wanted[:half], 10, joint)  # phrases that the corpus does not have
    corpus = mixed(2, wanted[half:], 40, joint) + mixed(3, other, 80, joint)
    similarity = Similarity()
    similarity.count(reference + corpus)
    similarity.refer_to([reference])
    scores = similarity.of(corpus)
    assert auc(scores[:40], scores[40:]) > 0.9


def test_the_best_share_goes_on_with_its_similarity(context: Context) -> None:
    source = documents(context.store, *mixed(2, COOKING, 30, ". "), *mixed(3, COURTS, 70, ". "))
    reference = documents(context.store, *mixed(1, COOKING, 10, ". "))
    made = run(context, "data.select", {}, source=source, reference=reference)
    assert made.rows == 30
    assert all(
        row.text in {text.text for text in samples(context.store, source)[:30]} for row in samples(context.store, made)
    )
    assert all(0 < row.metadata["similarity"] <= 1 for row in samples(context.store, made))
    kept_back = rejects(context.store, made)
    assert {reason for _, reason, _ in kept_back} == {"off_topic"}
    assert all(
        detail == f"similarity {row.metadata['similarity']:.6f}, kept from {made.profile['selection']['kept_from']:.6f}"
        for row, _, detail in kept_back
    )
    assert run(context, "data.select", {}, source=source, reference=reference).digest == made.digest


def test_a_threshold_takes_the_place_of_the_share(context: Context) -> None:
    source = documents(context.store, COOKING[0], COURTS[0], "", COOKING[0])
    reference = documents(context.store, COOKING[0])
    made = run(context, "data.select", {"threshold": 0.9}, source=source, reference=reference)
    assert [row.text for row in samples(context.store, made)] == [COOKING[0], COOKING[0]]


def test_of_equally_similar_rows_the_first_ones_go_on(context: Context) -> None:
    source = documents(context.store, *[COOKING[0]] * 10)
    made = run(context, "data.select", {"keep": 0.3}, source=source, reference=documents(context.store, COOKING[0]))
    assert [row.id for row in samples(context.store, made)] == [row.id for row in samples(context.store, source)[:3]]


def test_a_reference_without_words_is_refused(context: Context) -> None:
    with pytest.raises(DataError, match="no words"):
        run(
            context,
            "data.select",
            {},
            source=documents(context.store, "text"),
            reference=documents(context.store, "..."),
        )
    assert not list(batches_of([]))
