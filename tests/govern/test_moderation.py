"""Words, personal data and the classifier: what is found however it is written, what is not, streams cut anywhere."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from catena.core.errors import ConfigError, NotFound
from catena.core.finding import DETECTORS, Act, Detector, Finding
from catena.govern.moderation.classifier import Filter, Shape, columns, pieces
from catena.govern.moderation.fold import LETTERS, Folded, plain_form
from catena.govern.moderation.stream import Stream
from catena.govern.moderation.words import LISTS, Words

WORDS = Words(("en", "zh"))
PERSONAL: Detector = DETECTORS.load("personal")()

# -- words ---------------------------------------------------------------------------------------------------------

EVASIONS = {
    "fuck*": [
        "fuck", "FUCK", "fucking", "ｆｕｃｋ", "fυck", "fuсk", "f\u200bu\u200bc\u00adk", "FÜCK", "f u c k", "f.u.c.k",
        "f-u-c-k", "f*u*c*k", "fuuuuuck", "fu-ck", "F U C K", "𝒇𝒖𝒄𝒌", "🅵🆄🅲🅺", "ⓕⓤⓒⓚ",
        "f\nu\nc\nk", "f  u  c  k", "f\x00uck", "fuck!", "f\ufe0fuck",
    ],
    "shit": ["shit", "sh1t", "$hit", "5h1t", "sh!t", "s h i t", "s.h.i.t", "shiiiit"],
    "asshole*": ["asshole", "a55hole", "@sshole", "assh0le", "ass-hole", "a$$hole", "assholes"],
    "kill yourself": ["kill yourself", "kill   yourself", "k1ll y0urself", "Kill\nYourself"],
    "~操你妈": [
        "操你妈", "操 你 妈", "操*你*妈", "操\u200b你妈", "草泥马", "cao ni ma", "操ni妈", "曹尼玛", "草你🙂吗",
        "caonima", "C A O N I M A",
    ],
    "傻逼": ["傻逼", "傻 逼", "傻·逼", "傻\u200b逼", "傻❤逼", "傻_逼"],
}  # fmt: skip


@pytest.mark.parametrize(("entry", "text"), [(entry, text) for entry, texts in EVASIONS.items() for text in texts])
def test_a_word_is_found_however_it_is_written(entry: str, text: str) -> None:
    for before, after in (("", ""), ("Well, ", " indeed"), ("你说", "吗"), ("好的。", "。")):
        whole = before + text + after
        found = WORDS.find(whole)
        assert found, whole
        inner = [one for one in found if one.start >= len(before) and one.end <= len(before + text)]
        assert min(one.start for one in inner) == len(before), (whole, found)
        assert max(one.end for one in inner) >= len(before + text.rstrip("!")), (whole, found)


HARMLESS = [
    "The class will assess the grape harvest in Scunthorpe and Essex.",
    "Push it, mass hits; pass it on. Glass hit the floor.",
    "I paid $455 for 55 items; A55 and B12 are roads. 1,000.50 + 3@2",
    "U.S. S. Korea e.g. i.e. x-1 well-known don't 'as is' I a m",
    "Cocktails, Dickens, Moby Dick, cockpit, a screwdriver and a peacock.",
    "Hello, can you tell me if it's all right? shitake is no shiitake",
    "他妈妈的手机坏了，操作系统需要更新，姑妈的话很对。",
    "这家店的泥炭和马匹都不错，去取你妈妈的包。",
    "请问附近有什么景点？评分4.5分以上，门票免费。",
    "曹先生你好，你妈妈好吗？",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert not WORDS.find(text)


def test_the_plain_form_is_the_same_by_both_ways() -> None:
    for text in ["ÀÉ ﬁ ㎏ ß", "𝒇🅵 你好 가나 が", "a\u0301\u200d\ufe0f", "\x00\t\r\n", "ⅷ①", "x\U0010ffff", "\ud800"]:
        assert plain_form(text) == text.translate(LETTERS)


@given(st.text(st.sampled_from("fuck sh1t.-_*\u200bé你操妈$@ !\nⅷﬁ"), max_size=60))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_places_in_the_text_are_those_of_the_form(text: str) -> None:
    folded = Folded(text)
    for form, tight in ((folded.plain, False), (folded.tight, True)):
        places = [folded.span(at, at + 1, tight=tight) for at in range(len(form))]
        assert places == sorted(places)
        assert all(0 <= start < end <= len(text) for start, end in places)
    assert "".join(LETTERS[ord(character)] for character in text) == folded.plain


def listed(tmp_path: Path, text: str) -> Words:
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8")
    return Words([str(path)])


def test_entries_have_actions_and_exceptions(tmp_path: Path) -> None:
    words = listed(tmp_path, "# note\nbad\tmask\nworse*\n坏\n!坏处\n")
    found = words.find("bad badly worsening 坏人的坏处")
    assert [(one.detail, one.action) for one in found] == [("bad", "mask"), ("worse*", None), ("坏", None)]
    assert found[2].start == 20


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bad\tblok", "'blok' is no action"),
        ("~他妈\tta", "is no entry"),
        ("***", "is no entry"),
        ("~他\t", "is no entry"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        listed(tmp_path, "good\n" + line + "\n")


def test_a_list_that_is_not_there_is_told() -> None:
    with pytest.raises(NotFound) as caught:
        Words(["zn"])
    assert "zh" in caught.value.hint


def test_a_changed_list_is_read_again_and_a_broken_one_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = listed(tmp_path, "one\n")
    assert not words.reload()
    (tmp_path / "list.txt").write_text("two and more\n")
    assert words.reload()
    assert words.find("two and more")
    assert not words.find("one")
    (tmp_path / "list.txt").write_text("three\tblok\n")
    assert not words.reload()
    assert "stay as they were" in caplog.text
    assert words.find("two and more")


def test_every_entry_of_our_lists_is_found_by_itself() -> None:
    for name in ("en", "zh"):
        for line in (LISTS / f"{name}.txt").read_text(encoding="utf-8").splitlines():
            word = line.partition("#")[0].split("\t")[0].strip()
            if word and not word.startswith("!"):
                assert Words([name]).find(word.strip("~*")) if len(word) < 3 else WORDS.find(word.strip("~*")), word


# -- streams -------------------------------------------------------------------------------------------------------


def toy_filter() -> Filter:
    """A classifier that knows one thing: `rotten` is bad."""
    import numpy as np

    shape = Shape(4, 14)
    weights = np.zeros(1 << shape.bits, dtype=np.float32)
    weights[columns("rotten", shape)] = 3.0
    return Filter(weights, -7.0, 0.5, shape)


DETECTORS_USED: list[Detector] = [WORDS, PERSONAL, toy_filter()]


def decide(finding: Finding) -> Act:
    if finding.kind == "classifier":
        return "flag"
    return finding.action or ("block" if finding.kind == "words" else "mask")


def flowed(parts: Sequence[str], actions: dict[str, Act] | None = None) -> tuple[str, bool, list[tuple[str, str]]]:
    """Return what leaves of a text that comes in parts, whether it was blocked, and what was decided."""

    def by(finding: Finding) -> Act:
        return (actions or {}).get(finding.kind) or decide(finding)

    stream = Stream(DETECTORS_USED, by)
    outcomes = [*(stream.push(part) for part in parts), stream.push("", end=True)]
    told = [(one.text, one.action) for outcome in outcomes for one in outcome.decisions]
    return "".join(outcome.text for outcome in outcomes), stream.blocked, told


TEXTS = [
    "Please write to ada.lovelace+books@mail.example-corp.co.uk or call +86 138-0013-8000 today.",
    "My card is 4111 1111 1111 1111, thank you. Order 4111111111111111 is not mine. v1.2.3.4 and 8.8.8.8, really.",
    "She said f u c k and left. Nobody saw it.",
    "He is a f\u200bu\u200bc\u200bk\u200bing fool, they say.",
    "他说：操 你 *妈，然后走了。电话13800138000，邮箱li.lei@corp.cn。",
    "身份证11010519491231002X，银行卡6222020200112233445，完了。",
    "This is rotten meat. It is a lovely day, and nothing else happened. Then came more rotten fish and a very long"
    " line without any end that goes on and on until it is cut into pieces by its length alone because nobody stops it",
    "IBAN DE89 3704 0044 0532 0130 00 and k1ll y0urself please, wtf is sh1t-faced",
    "fuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuck you",
    "git@github.com:x/y.git icon@2x.png fe80::1ff:fe23:4567:890a 00:1a:2b:3c:4d:5e a@b.co",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("words", ["block", "mask"])
def test_a_stream_cut_at_every_place_leaves_what_the_whole_leaves(text: str, words: Act) -> None:
    whole = flowed([text], {"words": words})
    for at in range(len(text) + 1):
        assert flowed([text[:at], text[at:]], {"words": words}) == whole, at
    assert flowed(list(text), {"words": words}) == whole
    for size in (2, 3, 5, 7, 17):
        assert flowed([text[at : at + size] for at in range(0, len(text), size)], {"words": words}) == whole


ALPHABET = [
    "f",
    "u",
    "c",
    "k",
    " ",
    "f u c k",
    "sh1t",
    ".",
    "-",
    "\u200b",
    "1",
    "13800138000",
    "a@b.co",
    "操",
    "你",
    "妈",
    "，",
]
ALPHABET += [
    "rotten",
    "。",
    "\n",
    "+86 ",
    "4111 1111 1111 1111",
    "8.8.8.8",
    "version ",
    "x",
    "你好",
    "!",
    "uuuu",
    "DE89 3704 0044 ",
]


@given(st.lists(st.sampled_from(ALPHABET), max_size=40), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=400, deadline=None, derandomize=True)
def test_how_a_text_is_cut_does_not_matter(parts: list[str], draw: random.Random, block: bool) -> None:
    text = "".join(parts)
    actions: dict[str, Act] = {"words": "block" if block else "mask"}
    whole = flowed([text], actions)
    cuts = sorted(draw.randrange(len(text) + 1) for _ in range(draw.randrange(12)))
    assert flowed([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)], actions) == whole


@given(st.lists(st.sampled_from(ALPHABET), max_size=40))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_what_is_decided_is_not_changed_by_what_follows(parts: list[str]) -> None:
    text = "".join(parts)
    for detector in DETECTORS_USED:
        final = detector.find(text)
        for at in range(len(text)):
            pending = detector.pending(text[:at])
            early = [one for one in detector.find(text[:at]) if one.start < pending]
            assert early == [one for one in final if one.start < pending], (detector, text[:at])


def test_a_long_stream_is_the_same_as_a_long_text() -> None:
    draw = random.Random(3)
    text = " ".join(draw.choice([*TEXTS, "word", "and", "so on.", "没有什么", "x" * 90]) for _ in range(300))
    whole = flowed([text], {"words": "mask"})
    sizes = iter([draw.randrange(1, 40) for _ in range(len(text))])
    parts, at = [], 0
    while at < len(text):
        size = next(sizes)
        parts.append(text[at : at + size])
        at += size
    assert flowed(parts, {"words": "mask"}) == whole


def test_after_a_block_nothing_leaves() -> None:
    stream = Stream([WORDS], decide)
    good = "All is well so far, my friend, and then "
    first = stream.push(good, end=False).text
    assert first
    out = stream.push("fuck", end=True)
    assert (first + out.text, out.blocked) == (good, True)
    assert stream.push(" more and more", end=True).text == ""


def test_pieces_cover_a_text_without_gaps() -> None:
    for text in [*TEXTS, "", "x" * 1000, "。。。", "a.b.c"]:
        found = pieces(text)
        assert "".join(text[start:end] for start, end in found) == text
        assert all(end - start <= 160 for start, end in found)
