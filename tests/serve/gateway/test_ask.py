"""What the gateway reads of requests and of the beginnings of answers."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from catena.serve.gateway.ask import read_ask
from catena.serve.gateway.call import answer_text
from catena.serve.gateway.preamble import Opening, kind_of

CHAT = "/v1/chat/completions"


def ask(path: str = CHAT, **fields: Any) -> Any:
    return read_ask(path, orjson.dumps({"model": "m", **fields}))


@pytest.mark.parametrize(
    ("path", "fields", "repeatable"),
    [
        (CHAT, {}, False),
        (CHAT, {"temperature": 0}, True),
        (CHAT, {"temperature": 0.0}, True),
        (CHAT, {"temperature": 0.7}, False),
        (CHAT, {"temperature": 0.7, "seed": 5}, True),
        ("/v1/responses", {"temperature": 0, "store": True}, False),
        ("/v1/responses", {"temperature": 0, "previous_response_id": "r"}, False),
        ("/v1/embeddings", {"input": "x"}, True),
    ],
)
def test_only_answers_that_are_decided_can_be_repeated(path: str, fields: Any, repeatable: bool) -> None:
    assert ask(path, **fields).repeatable is repeatable


def test_the_work_of_a_request() -> None:
    assert ask(messages=[{"role": "user", "content": "x"}], max_tokens=100, n=2).answer_tokens == 200
    assert ask("/v1/embeddings", input="x" * 300).answer_tokens == 0
    assert ask("/v1/completions", prompt="x" * 300).prompt_tokens == 101
    assert ask("/v1/completions", prompt="你好").text == "你好".encode()


def test_another_name_over_there() -> None:
    one = ask(messages=[])
    assert one.for_model("m") is one.body
    assert orjson.loads(one.for_model("other")) == {"model": "other", "messages": []}


def event(**value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (event(choices=[{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]), "preamble"),
        (event(choices=[{"delta": {"content": "a"}, "finish_reason": None}]), "content"),
        (event(choices=[{"delta": {}, "finish_reason": "stop"}]), "content"),
        (event(choices=[{"delta": {"tool_calls": [{}]}, "finish_reason": None}]), "content"),
        (event(choices=[{"text": "", "finish_reason": None}]), "preamble"),
        (event(choices=[{"text": "a", "finish_reason": None}]), "content"),
        (event(choices=[], usage={}), "content"),
        (b"event: response.created\n" + event(type="response.created"), "preamble"),
        (event(type="response.output_text.delta", delta="a"), "content"),
        (event(type="response.failed"), "error"),
        (event(error={"message": "m"}), "error"),
        (b"data: [DONE]\n\n", "content"),
        (b": ping\n\n", "preamble"),
        (b"data: not json\n\n", "content"),
    ],
)
def test_what_an_event_is(data: bytes, kind: str) -> None:
    assert kind_of(data) == kind


def test_a_stream_cut_anywhere_opens_at_the_same_event() -> None:
    hello = event(choices=[{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
    whole = hello + b": ping\n\n" + event(choices=[{"delta": {"content": "a"}, "finish_reason": None}])
    for at in range(len(whole)):
        opening = Opening()
        kinds = [opening.push(whole[:at]), opening.push(whole[at:])]
        assert kinds == ["preamble", "content"]
        assert bytes(opening.held) == whole


def test_the_text_of_every_form_of_answer() -> None:
    chat = orjson.dumps({"choices": [{"message": {"content": "a"}}]})
    assert answer_text(chat, False) == "a"
    assert answer_text(orjson.dumps({"choices": [{"text": "b"}]}), False) == "b"
    assert answer_text(orjson.dumps({"output": [{"content": [{"text": "c"}]}]}), False) == "c"
    assert answer_text(event(choices=[{"delta": {"content": "d"}}]) * 2 + b"data: [DONE]\n\n", True) == "dd"
    assert answer_text(event(type="response.output_text.delta", delta="e"), True) == "e"
    assert answer_text(b"", False) == ""
