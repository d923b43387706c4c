from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from catena.infer.text import Detokenizer, StopFinder, TextStream

TEXTS = ["hello world", "你好，世界！混合 English 和中文。", "emoji 👩‍🚀🎉 and é ü", "tabs\tand\nlines\n\n", "日" * 200]


def decode_bytes(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode("utf-8", "replace")


def decode_with_byte_fallback(tokens: Sequence[int]) -> str:
    """Like sentencepiece: all bytes of a run are shown as U+FFFD unless the whole run is valid."""
    try:
        return bytes(tokens).decode("utf-8")
    except UnicodeDecodeError:
        return "\ufffd" * len(tokens)


@pytest.mark.parametrize("decode", [decode_bytes, decode_with_byte_fallback])
@pytest.mark.parametrize("text", TEXTS[:4])
def test_pieces_are_whole_characters_and_add_up_to_the_text(decode: Any, text: str) -> None:
    stream = Detokenizer(decode)
    pieces = [stream.push(byte) for byte in text.encode()]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == text


def test_a_character_comes_as_soon_as_its_last_byte() -> None:
    stream = Detokenizer(decode_bytes)
    assert [stream.push(byte) for byte in "中a".encode()] == ["", "", "中", "a"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_real_tokenizer_streams_what_it_decodes_at_once(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    stream = Detokenizer(tokenizer.decode)
    streamed = "".join(stream.push(token) for token in ids) + stream.flush()
    assert streamed == tokenizer.decode(ids) == text


def test_random_bytes_are_given_out_in_full_and_cost_no_more_than_a_window_each() -> None:
    draws = random.Random(0)
    longest = 0

    def decode(tokens: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return decode_bytes(tokens)

    data = bytes(draws.randrange(256) for _ in range(2000))
    stream = Detokenizer(decode)
    streamed = "".join(stream.push(byte) for byte in data) + stream.flush()
    assert longest <= 256
    # What is valid comes out; how many U+FFFD stand for the rest may differ at the cuts.
    assert streamed.replace("\ufffd", "") == decode_bytes(data).replace("\ufffd", "")


def test_an_unfinished_character_at_the_end_is_flushed() -> None:
    stream = Detokenizer(decode_bytes)
    assert stream.push(0xE4) == ""
    assert stream.flush() == "\ufffd"


def test_nothing_from_a_stop_string_on_is_shown() -> None:
    finder = StopFinder(["END", "好了"])
    shown = finder.push("ab") + finder.push("cE") + finder.push("N") + finder.push("Dxyz")
    assert shown == "abc"
    assert finder.stopped
    assert finder.push("more") == ""


def test_a_false_start_of_a_stop_string_is_shown_later() -> None:
    finder = StopFinder(["END"])
    assert finder.push("aEN") == "a"
    assert finder.push("x") == "ENx"
    assert not finder.stopped
    assert finder.push("E") + finder.flush() == "E"


def test_the_earliest_of_several_stop_strings_counts() -> None:
    finder = StopFinder(["yy", "x"])
    assert finder.push("a x yy") == "a "


def test_a_stop_string_across_tokens_of_half_characters_is_found() -> None:
    stream = TextStream(decode_bytes, ["世界"])
    shown = "".join(stream.push(byte) for byte in "你好世界！".encode()) + stream.finish()
    assert shown == stream.text == "你好"
    assert stream.stopped
