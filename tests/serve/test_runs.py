"""Runs of events that are read by their form: what leaves is what leaves of the text, good events as they came."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given, settings, strategies as st

from catena.govern.config import ModerationConfig
from catena.govern.moderation.moderator import Moderator
from catena.serve.middleware.answers import TEXTS, ChoiceAnswers
from catena.serve.middleware.exchange import Exchange
from catena.serve.middleware.runs import form_of

BASE = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
WRITERS: list[Callable[[Any], bytes]] = [orjson.dumps, lambda body: json.dumps(body).encode()]
PIECES = [
    "f",
    "u",
    "c",
    "k",
    " ",
    "f u c k",
    "sh1t",
    ".",
    "-",
    "13800138000",
    "a@b.co",
    "操",
    "你",
    "妈",
    "，",
    "\n",
    '"',
]
PIECES += [
    "\\",
    "\u200b",
    "\u2028",
    "x",
    "uuuu",
    "\x07",
    "好的。",
    "4111 1111 1111 1111",
    "a plain sentence that goes on. ",
]


@pytest.fixture(scope="module")
def moderators() -> Iterator[dict[str, Moderator]]:
    made = {act: Moderator(ModerationConfig(on=True, on_words=act)) for act in ("block", "mask")}  # type: ignore[arg-type]
    yield made
    for one in made.values():
        one.close()


def event(write: Callable[[Any], bytes], delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + write({**BASE, "choices": [choice], **more}) + b"\n\n"


def stream_of(pieces: list[str], write: Callable[[Any], bytes] = orjson.dumps) -> list[bytes]:
    first = event(write, {"role": "assistant", "content": ""})
    return [
        first,
        *(event(write, {"content": one}) for one in pieces),
        event(write, {}, "stop"),
        b"data: [DONE]\n\n",
    ]


def passed(moderator: Moderator, chunks: list[bytes]) -> tuple[bytes, ChoiceAnswers]:
    answers, held, out = ChoiceAnswers(moderator, Exchange("1")), b"", b""
    for chunk in chunks:
        left, held = answers.passed(held + chunk)
        out += left
        if answers.cut:
            break
    return out, answers


def heard(raw: bytes) -> str:
    bodies = [json.loads(line[6:]) for line in raw.split(b"\n\n") if line.startswith(b"data: {")]
    choices = [choice for body in bodies for choice in body["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@given(
    st.lists(st.sampled_from(PIECES), max_size=30),
    st.sampled_from(WRITERS),
    st.sampled_from(["block", "mask"]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=250, deadline=None, derandomize=True)
def test_what_leaves_of_events_is_what_leaves_of_their_text(
    moderators: dict[str, Moderator], pieces: list[str], write: Any, act: str, draw: random.Random
) -> None:
    raw = b"".join(stream_of(pieces, write))
    cuts = sorted(draw.randrange(len(raw) + 1) for _ in range(draw.randrange(6)))
    chunks = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    out, answers = passed(moderators[act], chunks)
    whole = moderators[act].review("".join(pieces))
    assert heard(out) == whole.text
    assert (b'"content_filter"' in out) == whole.blocked
    assert answers.cut == whole.blocked or b'"stop"' in out
    told = [(one["reason"], one["text"]) for one in answers._exchange.decisions]
    assert told == [(one.finding.kind, one.text) for one in whole.decisions]


def test_events_leave_as_they_came_and_as_soon_as_they_may(moderators: dict[str, Moderator]) -> None:
    events = stream_of([f"word{number} " for number in range(60)])
    answers, out = ChoiceAnswers(moderators["block"], Exchange("1")), b""
    for number, one in enumerate(events[:50]):
        left, rest = answers.passed(one)
        assert rest == b""
        out += left
        assert number < 12 or len(heard(out)) > 6 * number - 60
    out += answers.passed(b"".join(events[50:]))[0]
    assert heard(out) == heard(b"".join(events))
    changed = [one for one in out.split(b"\n\n") if b"word" in one and one + b"\n\n" not in events]
    assert len(changed) <= 1, "only the text that was held back when the form was found has lost its event"


def test_a_long_run_in_one_piece_is_one_look(moderators: dict[str, Moderator]) -> None:
    events = stream_of(["say nothing ", *(f"{number} is fine " for number in range(500)), "you f.u.c.k"])
    out, _ = passed(moderators["block"], [b"".join(events)])
    assert heard(out).endswith("499 is fine you ")
    assert b"u.c.k" not in out


HIDING: list[dict[str, Any]] = [
    {"choices": [{"index": 0, "delta": {"content": "good"}, "logprobs": {"content": [{"token": "x"}]}}]},
    {"choices": [{"index": 0, "delta": {"content": "good", "reasoning_content": "x"}}]},
    {"choices": [{"index": 0, "delta": {"content": "good", "tool_calls": []}}]},
    {"choices": [{"index": 0, "delta": {"content": "good"}, "finish_reason": "stop"}]},
    {"choices": [{"index": 0, "delta": {"content": "good"}}, {"index": 1, "delta": {"content": "x"}}]},
    {"choices": [{"index": 0, "delta": {"content": "good"}}], "prompt": "x"},
    {"choices": [{"index": 0, "delta": {"content": "good"}, "text": "x"}]},
    {"choices": [{"index": 0, "delta": {"content": ["good"]}}]},
    {"choices": [{"index": 0, "delta": {"content": ""}}]},
]


@pytest.mark.parametrize("body", HIDING)
def test_an_event_that_says_more_than_one_text_is_no_form(body: dict[str, Any]) -> None:
    assert form_of(orjson.dumps(body), body, TEXTS) is None


@pytest.mark.parametrize(
    "data",
    [
        b'{"choices":[{"index":0,"delta":{"content":"bad","content":"good"}}]}',
        b'{"choices":[{"index":0,"delta":{"content":"good"}}],"choices":[{"index":0,"delta":{"content":"good"}}]}',
        b'{ "choices":[{"index":0,"delta":{"content":"good"}}]}',
    ],
)
def test_a_form_is_taken_only_where_writing_it_again_gives_the_same_bytes(data: bytes) -> None:
    assert form_of(data, orjson.loads(data), TEXTS) is None


def test_what_does_not_fit_the_form_is_read_as_json(moderators: dict[str, Moderator]) -> None:
    good = [event(orjson.dumps, {"content": f"number {number} "}) for number in range(9)]
    sly = event(orjson.dumps, {"content": "fine "}).replace(b'"fine "', b'"fine ","refusal":"you fuck"')
    torn = event(orjson.dumps, {"content": "x"}).replace(b'"x"', b'"\\ud800 \xff"')
    out, _ = passed(moderators["mask"], [b"".join([*good, sly, torn, *good, *stream_of([])[1:]])])
    assert b"fuck" not in out
    assert b"\xff" not in out
    assert heard(out).count("number 8 ") == 2


def test_a_text_that_never_ends_costs_one_pass(moderators: dict[str, Moderator]) -> None:
    answers = ChoiceAnswers(moderators["mask"], Exchange("1"))
    answers.passed(b"".join(stream_of(["a good beginning of it all, "])[:2]))
    out, rest = answers.passed(b'data: {"id":"chatcmpl-1"' + b"x" * 2_000_000)
    assert out == b""
    assert len(rest) > 2_000_000
