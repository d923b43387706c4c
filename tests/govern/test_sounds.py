"""What sounds like an entry, and digits for letters: found, left alone where ordinary, in streams cut anywhere."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from catena.core.finding import Act, Finding
from catena.govern.moderation.fold import Folded
from catena.govern.moderation.sounds import BUDGET, as_sounds, frequency, rarest, read
from catena.govern.moderation.stream import Stream
from catena.govern.moderation.words import Words

WORDS = Words(("en", "zh"))


@pytest.mark.parametrize(
    "text",
    [
        "啥币", "煞笔", "鲨 币", "shabi", "sha bi", "SHA BI", "sha-bi", "shǎ bī", "shǎbī", "sha3 bi1", "sha3bi1",
        "s h a b i", "傻bi", "sha逼", "sha 逼", "王巴淡", "wang ba dan", "wangbadan", "jian4ren2", "滚dan",
        "455h0l3", "5 h 1 t", "k1ll yourself", "kill y0urself", "killyourself", "k.i.l.l.y.o.u.r.s.e.l.f", "gtf0",
        "i'll k1ll you", "s o n o f a b i t c h",
    ],
)  # fmt: skip
def test_what_sounds_or_looks_like_an_entry_is_found(text: str) -> None:
    for before, after in (("", ""), ("他说：", "，走了"), ("well, ", " indeed")):
        found = WORDS.find(before + text + after)
        assert any(one.start == len(before) and one.end == len(before + text) for one in found), (text, found)


@pytest.mark.parametrize(
    "text",
    [
        "女权运动的历史", "他出生在北京，chusheng", "I love China and bananas", "他见人就笑", "你吗",
        "他至张家口", "绿LV包", "安装 B 软件",
        "你去四川玩吗", "你去 四川", "你去寺庙看看", "你去思考一下", "到了长沙差点忘了", "和父母沟通", "台湾人诈骗猖獗",
        "报销日本人的机票", "备受娇宠", "请用高档复印机", "现状比较好", "删文件或换电脑", "表子集",
        "你妈比我妈年轻", "你妈笔记本在哪", "给我几把钥匙", "他有几把椅子", "沙比利木地板", "你买够东西了吗",
        "见货付款",
        "The gun Dan had is his", "shabib and ashabi", "900k users, F495, 5h17, 455 km, win2000 and mp3",
    ],
)  # fmt: skip
def test_ordinary_words_of_the_same_sound_are_left_alone(text: str) -> None:
    assert not WORDS.find(text)


def test_an_own_list_needs_no_readings(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("蠢货头\tmask\n!春获头像\n卖国贼\n", encoding="utf-8")
    words = Words([str(path)])
    text = "春获头, chunhuotou, 蠢huo头, 春获头像, mai guo zei"
    found = [(text[one.start : one.end], one.action) for one in words.find(text)]
    acts = [("春获头", "mask"), ("chunhuotou", "mask"), ("蠢huo头", "mask"), ("mai guo zei", None)]
    assert found == acts


def test_readings_and_their_frequency() -> None:
    assert read("傻逼") == ("sha3", "bi1")
    assert read("傻b") == read("傻") == ()
    assert frequency(["ren", "min"]) > 1e-4 > frequency(["sha", "bi"]) > frequency(["wang", "ba", "dan"])
    for text in ("", "abc", "你好a\U0001f600人", "\ud800"):
        assert len(as_sounds(text)) == len(text)
    assert as_sounds("煞笔") == as_sounds("傻逼") != as_sounds("傻子")


def test_a_long_list_has_the_homophones_of_its_rarest_entries() -> None:
    words = [one + other for one in "傻卵鳖孬怂疯淫贱骚娼" for other in "瓜蛋囊鬼货婆妞痞佬棍"] * 30 + ["蠢货头目"]
    chosen = rarest(words)
    kept = [(made, number) for ones in chosen.values() for made, number in ones]
    assert sum(made.often for made, _ in kept) <= BUDGET
    assert len(words) - 1 in [number for _, number in kept]
    assert 0 < len(kept) < len(words)


PARTS = [
    "sha", "bi", "shabi", "煞", "笔", "傻", "王", "巴", "淡", "wang", "ba", "dan", " ", "3", "1", "，", "-", "\u200b",
    "x", "5", "h", "t", "i", "l", "l yourself", "k1l", "0", "a", "s", "455h0l3", "你", "妈", "cao", "ni", "ma", "\n",
    "de", "女权", "你去", "四", "川", "死",
]  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), max_size=50), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=500, deadline=None, derandomize=True)
def test_how_a_text_is_cut_does_not_matter(parts: list[str], draw: random.Random, block: bool) -> None:
    def decide(_: Finding) -> Act:
        return "block" if block else "mask"

    def flowed(pieces: list[str]) -> tuple[str, bool]:
        stream = Stream([WORDS], decide)
        return "".join(stream.push(one).text for one in pieces) + stream.push("", end=True).text, stream.blocked

    text = "".join(parts)
    whole = flowed([text])
    cuts = sorted(draw.randrange(len(text) + 1) for _ in range(draw.randrange(12)))
    assert flowed([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]) == whole
    assert flowed(list(text)) == whole


@pytest.mark.parametrize(
    "text",
    [
        "他走过来说啥币，然后笑了笑，大家都没有说话，就这样过去了。",
        "He said sha bi to all of us and then he left, and nobody said anything for a long time.",
        "他说 sha3bi1 然后 wang-ba-dan 就走了。王 巴 淡！",
        "你去四川吗？你去四，大家都听到了，然后就这样过去了。",
        "They wrote 5 h 1 t and 4 5 5 h 0 l 3 on the wall, and k1ll yourself, and nothing else at all there.",
    ],
)
def test_nothing_of_a_blocked_span_leaves_wherever_it_is_cut(text: str) -> None:
    first = WORDS.find(text)[0]
    for at in range(len(text) + 1):
        stream = Stream([WORDS], lambda _: "block")
        left = stream.push(text[:at]).text + stream.push(text[at:]).text + stream.push("", end=True).text
        assert (left, stream.blocked) == (text[: first.start], True)


def test_places_are_those_of_the_text() -> None:
    folded = Folded("5 h 1 t 煞\u200b笔")
    assert folded.tight == "shit 煞笔"
    assert folded.span(0, 4, tight=True) == (0, 7)
    assert folded.span(5, 7, tight=True) == (8, 11)
