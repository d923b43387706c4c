from __future__ import annotations

import re
from typing import Any

import pytest

from catena.core.errors import ConfigError
from catena.core.stage import Context
from catena.data.filters.length import Length
from catena.data.filters.quality import Quality
from catena.data.filters.repetition import Repetition, duplicates, top_ngram_share
from tests.data.stores import document, documents, rejects, run, samples

PROSE = (
    "The path module joins and splits the names of files. It is used by programs that have to run on more than one "
    "system, and it hides how each of them writes a name. Most functions take text and return text."
)
CHINESE = "这个模块用来连接和拆分文件的名字。需要在多种系统上运行的程序会用到它，因为每个系统写名字的方法都不一样。"


def test_length_counts_words_in_english_and_characters_in_chinese() -> None:
    assert Length(min_tokens=30).reason(document(PROSE)) is None
    assert Length(min_tokens=45).reason(document(CHINESE)) is None
    assert Length(min_tokens=60).reason(document(CHINESE)) == "too_short"
    assert Length(min_tokens=0, max_tokens=5).reason(document(PROSE)) == "too_long"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        (CHINESE, None),
        ("", "empty"),
        ("# # # # # # a b c d", "symbols"),
        ("- one thing\n- other thing\n* last thing", "bullets"),
        ("The first of all...\nand to be...\nthat is...", "ellipsis"),
        ("a b of to c d e f g h", "word_length"),
        ("the 12345 67890 of 24680 13579 and 86420", "not_alphabetic"),
        ("Buy cheap watches online today, fast shipping worldwide", "stop_words"),
    ],
)
def test_quality_gives_the_reason_of_the_first_broken_rule(text: str, reason: str | None) -> None:
    assert Quality(max_symbol_ratio=0.5).reason(document(text)) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        (CHINESE, None),
        ("Buy now!\n" * 10 + PROSE, "repeated_lines"),
        ("\n\n".join(["One line of it\nand another"] * 3), "repeated_lines"),
        ("go home " * 20, "repeated_2grams"),
        ("点击购买" * 30, "repeated_2grams"),
        ("", None),
    ],
)
def test_repetition_is_found_in_lines_and_words_and_characters(text: str, reason: str | None) -> None:
    assert Repetition().reason(document(text)) == reason


def test_repeated_paragraphs_are_found_when_lines_may_repeat() -> None:
    rule = Repetition(max_duplicate_lines=1, max_duplicate_line_characters=1)
    assert rule.reason(document("\n\n".join([PROSE] * 3))) == "repeated_paragraphs"


def test_shares_of_repetition() -> None:
    assert duplicates(["a", "a", "bb"]) == pytest.approx((1 / 3, 1 / 4))
    assert top_ngram_share(["ab", "c", "ab", "c", "d"], 2) == pytest.approx(6 / 7)
    assert top_ngram_share(["a", "b", "c"], 2) == 0


def test_rejects_are_kept_with_reason_and_filter(context: Context) -> None:
    source = documents(context.store, PROSE, "too short", "go home " * 40)
    kept = run(context, "data.filter", {"filters": {"length": {"min_tokens": 20}, "repetition": {}}}, source=source)
    assert [sample.text for sample in samples(context.store, kept)] == [PROSE]
    assert [(sample.text[:7], reason, detail) for sample, reason, detail in rejects(context.store, kept)] == [
        ("too sho", "too_short", "filter length"),
        ("go home", "repeated_2grams", "filter repetition"),
    ]
    assert kept.funnel is not None
    assert kept.funnel.rejected == {"repeated_2grams": 1, "too_short": 1}


def test_an_unknown_filter_field_or_value_is_refused_when_the_recipe_is_checked(context: Context) -> None:
    source = documents(context.store, PROSE)
    mistakes: tuple[tuple[Any, str], ...] = (
        ({"lenght": {}}, "Did you mean 'length'"),
        ({"length": {"min_tokns": 3}}, "length.min_tokns: unknown key 'min_tokns'. Did you mean 'min_tokens'"),
        ({"length": {"min_tokens": -1}}, "length.min_tokens"),
        ({"length": {"min_tokens": 9, "max_tokens": 3}}, "max_tokens 3 is below"),
        ({"length": 3}, "its fields are a mapping"),
        ([1], "filters is a mapping"),
    )
    for filters, said in mistakes:
        with pytest.raises(ConfigError, match=re.escape(said)):
            run(context, "data.filter", {"filters": filters}, source=source)


def test_the_order_of_filters_in_a_recipe_does_not_matter(context: Context) -> None:
    source = documents(context.store, PROSE, "go home")
    orders: tuple[dict[str, Any], ...] = ({"length": {}, "quality": {}}, {"quality": {}, "length": {}})
    one, other = (run(context, "data.filter", {"filters": filters}, source=source) for filters in orders)
    assert one.digest == other.digest
