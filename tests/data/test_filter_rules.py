"""One test for each reason that the published rules and the rules of Chinese, Japanese and Korean give."""

from __future__ import annotations

from pathlib import Path

import pytest

from catena.core.errors import ConfigError
from catena.core.stage import Context
from catena.data.filters.c4 import C4
from catena.data.filters.fineweb import FineWeb
from catena.data.filters.languages import Languages, ScriptRules
from catena.data.filters.length import Length
from catena.data.filters.repetition import Repetition, duplicate_ngram_share
from catena.data.scripts import count_sentences, east_asian, ends_sentence, language_of
from tests.data.stores import document, documents, rejects, run, samples

PROSE = (
    "The old harbour was built of grey stone in the year of the great storm. Boats came in at dawn and left at dusk. "
    "Nobody in the town remembered who had paid for the lighthouse. It had stood there longer than the church. "
    "Children were told that a king had lost it in a game of cards. Their grandparents only smiled at that."
)
CHINESE = (
    "这座小城在河的北岸，城里有两条主要的街道。每天早上，卖菜的人从村里来，把新鲜的蔬菜放在路边。\n"
    "到了中午，街上的人就少了，只有几个老人还在树下下棋。他们说，五十年以前这里还是一片水田。\n"
    "晚上七点以后，河边的灯亮了，年轻人出来散步，孩子们在广场上跑来跑去。"
)
TRADITIONAL = (
    "這座小城在河的北岸，城裡有兩條主要的街道。每天早上，賣菜的人從村裡來，把新鮮的蔬菜放在路邊。\n"
    "到了中午，街上的人就少了，只有幾個老人還在樹下下棋。他們說，五十年以前這裡還是一片水田。"
)
JAPANESE = (
    "この町は川の北側にあり、大きな通りが二本あります。毎朝、農家の人たちが野菜を運んできて、道ばたに並べます。\n"
    "昼になると人通りは少なくなり、木の下で将棋を指している老人だけが残ります。昔、ここは田んぼだったそうです。"
)
KOREAN = (
    "이 작은 도시는 강의 북쪽에 있고 큰 길이 두 개 있습니다. 매일 아침 농부들이 채소를 가지고 와서 길가에 놓습니다.\n"
    "점심때가 되면 거리에는 사람이 줄어들고 장기를 두는 노인들만 남습니다. 옛날에 이곳은 논이었다고 합니다."
)


def lines(*texts: str) -> str:
    return "\n".join(texts)


# -- Gopher's repeated n-grams, and length -----------------------------------------------------------------------------


def words(first: int, count: int) -> str:
    return " ".join(f"word{number}" for number in range(first, first + count))


@pytest.mark.parametrize("size", [5, 6, 7, 8, 9, 10])
def test_duplicate_ngrams_are_dropped_unless_they_are_allowed(size: int) -> None:
    # Spans of exactly `size` words stand twice, with new words between: longer n-grams do not repeat.
    text = " ".join(
        part
        for block in range(4)
        for part in (words(100 * block, size), words(1000 + 10 * block, 3), words(100 * block, size), f"end{block}")
    )
    limits = {f"max_duplicate_{other}gram": 1.0 for other in range(5, size)}
    rule = Repetition(**limits)  # type: ignore[arg-type]
    assert rule.reason(document(text)) == f"duplicate_{size}grams"
    assert Repetition(duplicate_ngrams=False).reason(document(text)) is None
    assert Repetition().reason(document(PROSE)) is None


@pytest.mark.parametrize(("size", "share"), [(2, 0.20), (3, 0.18), (4, 0.16)])
def test_the_commonest_ngram_is_held_to_its_own_limit(size: int, share: float) -> None:
    # One n-gram stands again and again among words that stand once, a little below and a little above the limit.
    repeated, letters = [f"same{number}" for number in range(size)], 5
    for times, reason in ((9, None), (12, f"repeated_{size}grams")):
        ours = 10 * size * letters
        others = int(ours / share) - ours
        alone = [f"w{number:04d}" for number in range(others // letters)]
        text = [word for block in range(times) for word in (*repeated, *alone[block::times])]
        looser = {f"max_top_{other}gram": 1.0 for other in (2, 3, 4) if other != size}
        rule = Repetition(duplicate_ngrams=False, **looser)  # type: ignore[arg-type]
        assert rule.reason(document(" ".join(text))) == reason


@pytest.mark.parametrize(("between", "reason"), [("\n", "repeated_lines"), ("\n\n", "repeated_paragraphs")])
def test_long_copies_count_by_their_characters(between: str, reason: str) -> None:
    short = [f"line {number} is one of many." for number in range(20)]
    long = "a line that goes on and on, " * 6 + "until it ends."
    rule = Repetition(max_top_2gram=1, max_top_3gram=1, max_top_4gram=1, duplicate_ngrams=False)
    if reason == "repeated_paragraphs":
        rule = rule.model_copy(update={"max_duplicate_line_characters": 1.0})
    assert rule.reason(document(between.join([*short, long]))) is None
    assert rule.reason(document(between.join([*short, long, long]))) == reason


def test_a_copied_ngram_counts_once() -> None:
    assert duplicate_ngram_share(["a", "b", "c", "a", "b", "c"], 3) == pytest.approx(0.5)
    assert duplicate_ngram_share(["a", "a", "a", "a"], 2) == pytest.approx(0.5)
    assert duplicate_ngram_share(["a"], 5) == 0


def test_the_default_length_has_no_upper_limit_and_2048_can_be_asked_for() -> None:
    assert Length().reason(document(words(0, 5000))) is None
    assert Length(max_tokens=2048).reason(document(words(0, 2049))) == "too_long"
    assert Length(max_tokens=2048).reason(document(words(0, 2048))) is None
    assert Length().reason(document(words(0, 49))) == "too_short"


# -- C4 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        (CHINESE, None),
        (PROSE + " Lorem Ipsum dolor sit amet.", "lorem_ipsum"),
        (PROSE + " function f() { return 1; }", "curly_bracket"),
        (PROSE + " What a DARN shame.", "bad_words"),
        (PROSE + " Darning socks is an art.", None),
        (CHINESE + "这是坏词汇。", "bad_words"),
        ("One. Two. Three. Four.", "few_sentences"),
        ("", "few_sentences"),
    ],
)
def test_c4_gives_a_reason_for_each_page_rule(text: str, reason: str | None) -> None:
    assert C4(bad_words=["darn", "坏词"]).reason(document(text)) == reason


def test_bad_words_come_from_a_file_and_their_content_is_the_config(tmp_path: Path, context: Context) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# comment\ndarn\n\n heck \n", encoding="utf-8")
    assert C4.model_validate({"bad_words": str(path)}) == C4(bad_words=["darn", "heck"])
    source = documents(context.store, PROSE, PROSE + " Heck!")
    made = run(context, "data.filter", {"filters": {"c4": {"bad_words": str(path)}}}, source=source)
    assert [reason for _, reason, _ in rejects(context.store, made)] == ["bad_words"]
    path.write_bytes(b"\xff\xfe")
    for wrong, said in ((str(path), "is not UTF-8"), (str(tmp_path / "none"), "cannot be read")):
        with pytest.raises(ConfigError, match=said):
            run(context, "data.filter", {"filters": {"c4": {"bad_words": wrong}}}, source=source)


# -- FineWeb -----------------------------------------------------------------------------------------------------------

LONG = "This line is much longer than thirty characters and has a good end{}."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        (CHINESE, None),
        (" \n ", "empty"),
        (lines(*(LONG.format(number)[:-1] for number in range(20)), "One has an end."), "line_punctuation"),
        (lines(*(f"Short line {number}." for number in range(7)), *map(LONG.format, range(3))), "short_lines"),
        (lines(*(LONG.format(number) for number in range(9)), LONG.format(1)), "duplicate_characters"),
        ("\n\n\n".join(f"{word * 8}ification." for word in ("organis", "class", "quant", "simpl", "not")), "newlines"),
        (lines("短い行。", "短。", "短行だ。", "また短い。"), "short_lines"),
    ],
)
def test_fineweb_gives_a_reason_for_each_rule(text: str, reason: str | None) -> None:
    assert FineWeb().reason(document(text)) == reason


# -- Chinese, Japanese, Korean -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (CHINESE, "zh"),
        (TRADITIONAL, "zh"),
        (JAPANESE, "ja"),
        (KOREAN, "ko"),
        (PROSE, None),
        ("", None),
        ("Ünïcödé", None),
    ],
)
def test_the_language_is_known_by_its_letters(text: str, language: str | None) -> None:
    assert east_asian(text) == language
    assert language_of(document(text)) == language


def test_the_language_in_the_metadata_goes_before_the_letters() -> None:
    assert language_of(document(PROSE, metadata={"language": "zh-Hant"})) == "zh"
    assert language_of(document(CHINESE, metadata={"language": "en"})) is None
    assert language_of(document(CHINESE, metadata={"language": "und"})) == "zh"
    assert Languages().reason(document(PROSE, metadata={"language": "zh"})) == "zh_script"


@pytest.mark.parametrize("text", [CHINESE, TRADITIONAL, JAPANESE, KOREAN, PROSE, ""])
def test_prose_in_each_language_passes(text: str) -> None:
    assert Languages().reason(document(text)) is None


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        ("Download now 免费", "zh", "zh_script"),
        ("漢字漢字漢字漢字漢字。", "ja", "ja_script"),
        ("Sign in with 카카오 to continue", "ko", "ko_script"),
        ("★★★★★限时特价★★★★★的是了→→→→", "zh", "zh_symbols"),
        ("■□■□お知らせのページです■□■□", "ja", "ja_symbols"),
        ("▶▶▶ 지금 바로 가입하는 사이트 ◀◀◀", "ko", "ko_symbols"),
        ("是的！！！！！！！好！！！！", "zh", "zh_punctuation"),
        ("すごい！！！！！！！です！！！", "ja", "ja_punctuation"),
        ("정말이다!!!!!!!!!!!!!!", "ko", "ko_punctuation"),
        (
            lines("我们的店在这里，一共有三层，二楼是吃饭的地方，欢迎大家一起来看看。", "——", "……"),
            "zh",
            "zh_wordless_lines",
        ),
        (
            lines("この店は駅のすぐ近くにあって、いつも人でいっぱいになっています。", "・・・", "（）"),
            "ja",
            "ja_wordless_lines",
        ),
        (
            lines("이 가게는 역에서 가까운 곳에 있고 언제나 사람이 많아서 줄을 서야 합니다.", "---", "..."),
            "ko",
            "ko_wordless_lines",
        ),
        ("的手机电脑相机是" * 40, "zh", "zh_sentence_length"),
        ("のパソコンとカメラは" * 40, "ja", "ja_sentence_length"),
        ("휴대폰은 카메라는 " * 40, "ko", "ko_sentence_length"),
        ("二手手机，台式电脑，数码相机，双门冰箱，变频空调，液晶彩电。", "zh", "zh_function_words"),
        ("スマホ、パソコン、カメラ、エアコン。", "ja", "ja_function_words"),
        ("휴대폰, 컴퓨터, 냉장고, 텔레비전, 청소기.", "ko", "ko_function_words"),
    ],
)
def test_each_rule_of_each_language_gives_its_reason(text: str, language: str, reason: str) -> None:
    assert Languages().reason(document(text, metadata={"language": language})) == reason


def test_the_rules_of_one_language_can_be_changed_alone() -> None:
    spaced = Languages(zh=ScriptRules(max_sentence=10))
    assert spaced.reason(document(CHINESE)) == "zh_sentence_length"
    assert spaced.reason(document(JAPANESE)) is None


@pytest.mark.parametrize(
    ("line", "ends"),
    [
        ("Yes.", True),
        ("他说：“好。”", True),
        ("だ。」", True),
        ("(so it is.)", True),
        ("Menu", False),
        ("价格：", False),
        ("", False),
    ],
)
def test_where_a_line_ends_a_sentence(line: str, ends: bool) -> None:
    assert ends_sentence(line) is ends


def test_sentences_are_counted_in_every_script() -> None:
    assert count_sentences("Version 3.11 is out. It works!") == 2
    assert count_sentences("一。二！三？") == 3
    assert count_sentences("no end here\nand here") == 2


# -- lines -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("Home | About | Contact us", "lines_without_end"),
        ("This goes on and on...", "lines_without_end"),
        ("Read more.", "lines_too_short"),
        ("See " + "x" * 1001 + " in the log.", "lines_with_long_word"),
        ("Please enable JavaScript to see this page.", "lines_on_javascript"),
        ("By reading on you accept our Cookie Policy.", "lines_on_policies"),
    ],
)
def test_each_line_rule_takes_its_line_and_leaves_the_rest(context: Context, line: str, rule: str) -> None:
    made = run(context, "data.lines", {}, source=documents(context.store, lines(PROSE, line, CHINESE)))
    (left,) = samples(context.store, made)
    assert left.text == lines(PROSE, CHINESE)
    assert made.funnel is not None
    assert made.funnel.changed == {"documents": 1, rule: 1}


def test_citation_marks_leave_their_lines(context: Context) -> None:
    text = "The tower was built in 1412.[1][citation needed] It fell in 1680.[23]"
    made = run(context, "data.lines", {}, source=documents(context.store, text))
    assert samples(context.store, made)[0].text == "The tower was built in 1412. It fell in 1680."
    assert made.funnel is not None
    assert made.funnel.changed == {"citation_marks": 3, "documents": 1}


def test_a_document_without_a_line_left_is_kept_back_with_the_rules_that_took_them(context: Context) -> None:
    made = run(context, "data.lines", {}, source=documents(context.store, PROSE, lines("Home", "About", "Go now."), ""))
    assert [(reason, detail) for _, reason, detail in rejects(context.store, made)] == [
        ("no_line_left", "lines_too_short 1, lines_without_end 2"),
        ("no_line_left", "the document is empty"),
    ]
    assert samples(context.store, made)[0].text == PROSE
