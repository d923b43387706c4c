from __future__ import annotations

import random
import unicodedata

import pytest

from catena.core.errors import DataError
from catena.core.sample import Sample
from catena.core.stage import Context
from catena.data.repair import RepairConfig, repair
from tests.data.stores import document, documents, put, rejects, run, samples

ALL = RepairConfig()


@pytest.mark.parametrize(
    ("text", "repaired", "done"),
    [
        ("Itâ€™s a cafÃ©", "It’s a café", ["mojibake"]),
        ("ä½\xa0å¥½ä¸–ç•Œ", "你好世界", ["mojibake"]),
        ("Ã¢â‚¬â„¢s", "’s", ["mojibake"]),
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour", ["line_ends"]),
        ("\ufeffBOM and\x00 NUL and \x1b[31mred\x1b[0m", "BOM and NUL and red", ["control"]),
        ("in\u200bvisi\u00adble", "invisible", ["invisible"]),
        ("中\u200b文\u2060字", "中文字", ["invisible"]),
        ("cafe\u0301", "café", ["nfc"]),
        ("half \ud83d\ude00 and \ud800", "half 😀 and �", ["surrogates"]),
        ("a\u00a0b  \n\n\n\nc\t\n", "a b\n\nc", ["whitespace"]),
    ],
)
def test_each_repair_is_done_and_named(text: str, repaired: str, done: list[str]) -> None:
    assert repair(text, ALL) == (repaired, done)


@pytest.mark.parametrize(
    "text",
    [
        "plain ASCII\n\n    with indented code",
        "“Curly” – naïve café, ﬁne ligature, ＦＵＬＬ width",
        "简体字与繁體字，全角标点！　缩进",
        "می‌خواهم",  # Persian needs its joiner
        "क्‍ष",  # and so does Devanagari
        "👨\u200d👩\u200d👧 is one family",
        "ภาษา\u200bไทย",  # Thai has no other mark between words
        "שלום \u200fעולם",
        "",
    ],
)
def test_what_is_right_stays_as_it_is(text: str) -> None:
    assert repair(text, ALL) == (text, [])


def test_repairing_twice_changes_nothing_more() -> None:
    marks = ["\u200b", "\u00ad", "e\u0301", "\r", "\x85", "\ud83d", "\ude00", "\xa0", " ", "\n", "\x1b[1m"]
    pieces = [*marks, "â€™", "Ã©", "ä½", "å¥½", "中", "x"]
    chooser = random.Random(5)
    for _ in range(2000):
        text = "".join(chooser.choices(pieces, k=chooser.randrange(1, 12)))
        once, _ = repair(text, ALL)
        assert repair(once, ALL) == (once, []), repr(text)
        assert unicodedata.is_normalized("NFC", once)
        once.encode()


def test_each_repair_can_be_switched_off() -> None:
    text = "\ufeffItâ€™s\r\nin\u200bvisible cafe\u0301  "
    nothing = RepairConfig(mojibake=False, control=False, invisible=False, nfc=False, whitespace=False)
    assert repair(text, nothing) == (text, [])
    assert repair(text, nothing.model_copy(update={"whitespace": True}))[1] == ["line_ends", "whitespace"]
    ends = "a\rb\x0bc\x0cd\x85e\u2028f\u2029g"  # no control character stands there for itself
    assert repair(ends, RepairConfig(mojibake=False, whitespace=False)) == (ends, [])


def test_a_long_line_is_repaired_in_bounded_time() -> None:
    repaired, done = repair("Itâ€™s one line. " * 50_000, ALL)
    assert (len(repaired), done) == (15 * 50_000 - 1, ["mojibake", "whitespace"])


def test_the_funnel_counts_rows_by_repair_and_empty_rows_are_kept_back(context: Context) -> None:
    source = documents(context.store, "fine", "Itâ€™s, itâ€™s\r\n", "Ã© is e\r", "\ufeff \u200b\n")
    made = run(context, "data.repair", {}, source=source)
    assert [sample.text for sample in samples(context.store, made)] == ["fine", "It’s, it’s", "é is e"]
    assert [reason for _, reason, _ in rejects(context.store, made)] == ["empty"]
    assert made.funnel is not None
    assert made.funnel.changed == {"repaired_line_ends": 2, "repaired_mojibake": 2, "repaired_whitespace": 2}
    assert run(context, "data.repair", {}, source=made).digest != made.digest  # the empty row is not there any more


def test_all_texts_of_a_row_are_repaired_and_its_identity_stays(context: Context) -> None:
    turns = [{"role": "user", "content": "Whatâ€™s up?"}, {"role": "assistant", "content": "fine\r\n"}]
    example = {"input": "cafe\u0301", "output": "drink\u200bs"}
    rows = {"conversation": Sample("c", {"messages": turns}), "example": Sample("e", example)}
    made = [run(context, "data.repair", {}, source=put(context.store, [row], shape)) for shape, row in rows.items()]  # type: ignore[arg-type]
    (talk,), (pair,) = (samples(context.store, version) for version in made)
    assert [turn["content"] for turn in talk.data["messages"]] == ["What’s up?", "fine"]
    assert (pair.id, dict(pair.data)) == ("e", {"input": "café", "output": "drinks"})


def test_media_has_no_text_to_repair(context: Context) -> None:
    source = put(context.store, [Sample("m", {"content": b"x", "media_type": "text/plain"})], "media")
    with pytest.raises(DataError, match="no text to repair"):
        run(context, "data.repair", {}, source=source)
    assert document("x").text == "x"
