from __future__ import annotations

import pytest

from catena.data.sentences import first_sentence, is_sentence
from catena.data.words import folded, folded_words, is_cjk, words_of


def test_each_han_kana_and_hangul_character_is_a_word() -> None:
    assert words_of("用 Python3 写: カナ 한글!") == ["用", "Python3", "写", "カ", "ナ", "한", "글"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("می‌خواهم، خانه‌ها ", ["می‌خواهم", "خانه‌ها"]),
        ("র‍্যাব ক্ষ‌।", ["র‍্যাব", "ক্ষ"]),  # a joiner at the end joins nothing
        ("it's e\u0301te\u0301", ["it", "s", "e\u0301te\u0301"]),
        ("\u0301x 葛\U000e0100城\u0301 か\u3099", ["x", "葛", "城", "か", "\u3099"]),
        ("1\ufe0f\u20e3 and 👨\u200d👩\u200dfamily \u200cin\u200bside", ["1", "and", "family", "in", "side"]),
        ("ที่นี่ ๑๒ ។ខ្មែរ", ["ท", "\u0e35", "\u0e48", "น", "\u0e35", "\u0e48", "๑๒", "ខ", "\u17d2", "ម", "\u17c2", "រ"]),
    ],
)
def test_marks_and_joiners_belong_to_the_word_of_the_letter_before_them(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_case_folding_cuts_no_word() -> None:
    assert len(folded_words("İstanbul ΐ ǰ")) == 3  # a mark stands by itself in each


def test_width_and_case_do_not_matter_when_folded() -> None:
    assert folded_words("Ｈello　WORLD") == ["hello", "world"]
    assert folded(" A \n\t b ") == "a b"


def test_text_is_cjk_when_most_words_are_single_characters() -> None:
    assert is_cjk("用 json.dumps 把对象变成文本")
    assert not is_cjk("The word 数据 means data in Chinese, and that is all.")
    assert not is_cjk("")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Return the path. More.", "Return the path."),
        ("Join paths, e.g. those of os.path. Then stop.", "Join paths, e.g. those of os.path."),
        ("Since 3.11 it is fast. Really.", "Since 3.11 it is fast."),
        ("Names, numbers, etc. are kept. Others not.", "Names, numbers, etc. are kept."),
        ("Names, numbers, etc. Others are not kept.", "Names, numbers, etc."),
        ("Return the arc sine of x. The result is a float.", "Return the arc sine of x."),
        ("Set the level. level must be an int.", "Set the level."),
        ("First line\n  goes on. Next.", "First line goes on."),
        ("Only a heading\n\nThen text.", "Only a heading"),
        ('He said "stop." Then he left.', 'He said "stop."'),
        ("返回当前目录。如果没有则报错。", "返回当前目录。"),
        ("为什么？因为快。", "为什么？"),
        ("", ""),
    ],
)
def test_first_sentence_ends_where_a_reader_would_end_it(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence


def test_a_sentence_begins_with_a_capital_and_has_an_end() -> None:
    assert is_sentence("Return it.")
    assert is_sentence("返回它。")
    assert not any(map(is_sentence, ("return it.", "Return it", "(x) Return.", "")))
