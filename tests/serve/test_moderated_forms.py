"""Moderation of answers in forms that few models use: what a text stands in is looked through, or does not leave."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .test_moderation import GOOD, chunks_of, sent

PART, HALVES = [{"type": "text", "text": "fuck"}], [{"type": "text", "text": "fu"}, {"type": "text", "text": "ck it"}]
CALLED = {"name": "f", "arguments": "fuck"}
CUSTOM = {"index": 0, "id": "c", "type": "custom", "custom": {"name": "f", "input": "fuck"}}
SAYING: list[dict[str, Any]] = [
    {"content": PART},
    {"content": HALVES},
    {"content": "", "function_call": CALLED},
    {"content": "", "reasoning_details": PART},
    {"content": "", "thoughts": "fuck"},
    {"content": None, "tool_calls": [CUSTOM]},
    {"content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "fuck", "arguments": ""}}]},
]


@pytest.mark.parametrize("kind", [b"application/json", b"Application/JSON; charset=utf-8", b"text/json", b"text/plain"])
@pytest.mark.parametrize("said", SAYING)
def test_an_answer_is_looked_through_wherever_its_words_stand(said: dict[str, Any], kind: bytes) -> None:
    good, bad = (
        json.dumps({"id": "1", "choices": [{"index": 0, "message": one, "finish_reason": "stop"}]})
        for one in ({"role": "assistant", "content": GOOD}, {"role": "assistant", **said})
    )
    out = sent([bad.encode()], kind)
    assert not any(word in out for word in (b"fuck", b'"fu"'))
    assert (b"content_filter" in out) == (kind != b"text/plain")
    assert (GOOD.encode() in sent([good.encode()], kind)) == (kind != b"text/plain"), "what nobody knows is not given"


@pytest.mark.parametrize("said", SAYING)
def test_a_stream_is_looked_through_wherever_its_words_stand(said: dict[str, Any]) -> None:
    first = {"id": "1", "choices": [{"index": 0, "delta": said, "token_ids": [1], "finish_reason": None}]}
    out = sent([f"data: {json.dumps(first)}\n\n".encode() + chunks_of(GOOD, 9)])
    assert not any(word in out for word in (b"fuck", b'"fu"'))
    assert b"token_ids" not in out
    assert out.endswith(b"data: [DONE]\n\n")


def test_calls_of_every_kind_come_through() -> None:
    good = {"index": 0, "id": "c", "type": "custom", "custom": {"name": "f", "input": GOOD}}
    legacy = {"function_call": {"name": "f", "arguments": GOOD}}
    for delta, said in (({"tool_calls": [good]}, "input"), (legacy, "arguments")):
        events = [{"index": 0, "delta": delta}, {"index": 0, "delta": {}, "finish_reason": "stop"}]
        raw = "".join(f"data: {json.dumps({'choices': [one]})}\n\n" for one in events)
        lines = sent([raw.encode()]).decode().splitlines()
        deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
        calls = [one.get("function_call") or one["tool_calls"][0]["custom"] for one in deltas if len(one)]
        assert "".join(one[said] for one in calls) == GOOD
        assert calls[0]["name"] == "f"


ITEMS: list[dict[str, Any]] = [
    {"type": "message", "content": [{"type": "refusal", "refusal": "fuck"}]},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "fuck"}]},
    {"type": "custom_tool_call", "call_id": "c", "input": "fuck"},
    {"type": "web_search_call", "action": {"query": "fuck"}},
    {"type": "function_call", "name": "f", "arguments": "fuck"},
]


@pytest.mark.parametrize("item", ITEMS)
def test_an_item_of_a_response_is_looked_through(item: dict[str, Any]) -> None:
    response = {"object": "response", "status": "completed", "output": [item]}
    out = sent([json.dumps(response).encode()], b"application/json", "/v1/responses")
    assert b"fuck" not in out
    assert b"content_filter" in out
    done = [
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.refusal.done", "output_index": 0, "content_index": 0, "refusal": "fuck"},
        {"type": "response.completed", "response": response},
    ]
    raw = "".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in done)
    out = sent([raw.encode()], path="/v1/responses")
    assert b"fuck" not in out
    assert b"response." in out
