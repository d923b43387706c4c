"""Moderation before a real server: what is blocked is not asked and not heard, in every form, cut anywhere."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from starlette.middleware import Middleware
from starlette.types import Message, Receive, Scope, Send

from catena.govern.audit.reading import Query, entries
from catena.govern.config import AuditConfig, GovernConfig, ModerationConfig
from catena.govern.moderation.moderator import Moderator
from catena.hub.store import Store
from catena.serve.app import build_app
from catena.serve.config import ServeConfig
from catena.serve.governed import governed
from catena.serve.middleware.moderation import LONG, Moderation
from catena.serve.server import background

from .asking import eventually
from .scripted import Scripted

GOOD = "The parcel comes tomorrow, as was said before, and nobody has to wait any longer."
BAD = "The parcel comes tomorrow, you f u c k i n g fool. Nothing more is said about it here, is it?"
LEFT = "The parcel comes tomorrow, you "
MAIL = "Please write to ada.lovelace@corp.net about it, or to nobody at all, thank you."
MASKED = "Please write to [EMAIL] about it, or to nobody at all, thank you."
USER = [{"role": "user", "content": "Where is it?"}]


@pytest.fixture
def served(tokenizer: Any) -> Iterator[Callable[..., tuple[str, Scripted]]]:
    """Return a function that serves a model which says `text`, moderated; gives the URL and the model."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(text: str = GOOD, generator: Any = None, **options: Any) -> tuple[str, Scripted]:
            model = generator or Scripted(tokenizer, text)
            moderator = stack.enter_context(Moderator(ModerationConfig(on=True, **options)))
            middleware = [Middleware(Moderation, moderator=moderator, config=ServeConfig())]
            app = build_app({"tiny": model}, middleware=middleware)
            return stack.enter_context(background(app)), model

        yield start


def post(url: str, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
    given = {"messages": USER} if path.endswith("chat/completions") and "messages" not in body else {}
    return httpx.post(f"{url}{path}", json={"model": "tiny", **given, **body}, timeout=30)


# -- prompts -------------------------------------------------------------------------------------------------------

PROMPTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "you f.u.c.k"}]}),
    ("/v1/chat/completions", {"messages": [{"role": "system", "content": "操你妈"}, *USER]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "k1ll y0urself"}]}]}),
    (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "fu"}, {"type": "text", "text": "ck you"}]}
            ]
        },
    ),
    ("/v1/chat/completions", {"messages": [*USER, {"role": "assistant", "content": "asshole"}, *USER]}),
    ("/v1/completions", {"prompt": "well, sh1t"}),
    ("/v1/completions", {"prompt": ["good", "motherfucker"]}),
    ("/v1/responses", {"input": "fuck"}),
    ("/v1/responses", {"input": "hello", "instructions": "be a cunt"}),
    ("/v1/embeddings", {"input": ["good", "傻逼"]}),
    ("/tokenize", {"prompt": "傻 逼"}),
]


@pytest.mark.parametrize(("path", "body"), PROMPTS)
def test_a_bad_prompt_is_not_asked(served: Any, path: str, body: dict[str, Any]) -> None:
    url, model = served()
    answer = post(url, path, **body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "content_filter"), answer.text
    assert not model.asked


def test_personal_data_of_a_prompt_is_masked_before_the_model_sees_it(served: Any) -> None:
    url, model = served()
    assert post(url, messages=[{"role": "user", "content": "I am ada@corp.net, call 13800138000."}]).status_code == 200
    assert model.asked[0].prompt[0].content == "I am [EMAIL], call [PHONE]."


def test_a_good_prompt_is_asked_as_it_is(served: Any) -> None:
    url, model = served()
    text = "Ärger über 100% — 你好, “ok” \U0001f600"
    assert post(url, messages=[{"role": "user", "content": text}]).status_code == 200
    assert model.asked[0].prompt[0].content == text


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": [1, 2]}, "prompt"),
        ("/v1/completions", {"prompt": [[1], [2]]}, "prompt"),
        ("/v1/embeddings", {"input": [1]}, "input"),
        ("/v1/chat/completions", {"logprobs": True}, "logprobs"),
        ("/v1/completions", {"prompt": "x", "logprobs": 0}, "logprobs"),
        ("/v1/responses", {"input": "x", "include": ["message.output_text.logprobs"]}, "include"),
    ],
)
def test_what_would_let_text_past_is_refused_by_name(served: Any, path: str, body: Any, param: str) -> None:
    answer = post(served()[0], path, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert "prompt" in answer.text or "log-prob" in answer.text


def test_false_and_null_ask_for_no_logprobs(served: Any) -> None:
    url, _ = served()
    for value in (False, None):
        assert post(url, logprobs=value).status_code == 200


# -- answers -------------------------------------------------------------------------------------------------------


def test_a_blocked_answer_ends_before_the_span(served: Any, client_of: Callable[[str], openai.OpenAI]) -> None:
    client = client_of(served(BAD)[0])
    chat = client.chat.completions.create(model="tiny", messages=USER, n=2)  # type: ignore[call-overload]
    assert [(one.message.content, one.finish_reason) for one in chat.choices] == [(LEFT, "content_filter")] * 2
    text = client.completions.create(model="tiny", prompt="x")
    assert (text.choices[0].text, text.choices[0].finish_reason) == (LEFT, "content_filter")
    response = client.responses.create(model="tiny", input="x")
    assert (response.output_text, response.status) == (LEFT, "incomplete")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "content_filter"


def streams(client: openai.OpenAI) -> dict[str, tuple[str, str]]:
    """The text and the end of a streamed answer of each kind, by the official client."""
    chat = list(client.chat.completions.create(model="tiny", messages=USER, stream=True))  # type: ignore[call-overload]
    text = list(client.completions.create(model="tiny", prompt="x", stream=True))
    events = list(client.responses.create(model="tiny", input="x", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last: Any = events[-1]
    assert last.response.output_text == deltas
    for event in events:
        if event.type in ("response.output_text.done",):
            assert event.text == deltas
    return {
        "chat": ("".join(one.choices[0].delta.content or "" for one in chat), str(chat[-1].choices[0].finish_reason)),
        "text": ("".join(one.choices[0].text for one in text), str(text[-1].choices[0].finish_reason)),
        "responses": (deltas, last.type),
    }


def test_a_blocked_stream_ends_before_the_span(served: Any, client_of: Callable[[str], openai.OpenAI]) -> None:
    assert streams(client_of(served(BAD)[0])) == {
        "chat": (LEFT, "content_filter"),
        "text": (LEFT, "content_filter"),
        "responses": (LEFT, "response.incomplete"),
    }


@pytest.mark.parametrize(("said", "heard"), [(MAIL, MASKED), (GOOD, GOOD), ("ok", "ok"), ("", "")])
def test_other_streams_come_to_their_end(
    served: Any, client_of: Callable[[str], openai.OpenAI], said: str, heard: str
) -> None:
    assert streams(client_of(served(said)[0])) == {
        "chat": (heard, "stop"),
        "text": (heard, "stop"),
        "responses": (heard, "response.completed"),
    }


def test_two_choices_are_two_texts(served: Any, client_of: Callable[[str], openai.OpenAI]) -> None:
    client = client_of(served(BAD)[0])
    chunks = client.chat.completions.create(model="tiny", messages=USER, stream=True, n=2)  # type: ignore[call-overload]
    heard = {0: "", 1: ""}
    for chunk in chunks:
        for choice in chunk.choices:
            heard[choice.index] += choice.delta.content or ""
    assert heard == {0: LEFT, 1: LEFT}


def test_words_may_be_masked_and_flags_let_pass(served: Any, client_of: Callable[[str], openai.OpenAI]) -> None:
    assert streams(client_of(served(BAD, on_words="mask")[0]))["chat"][0] == BAD.replace("f u c k", "***")
    assert streams(client_of(served(BAD, on_words="flag")[0]))["chat"] == (BAD, "stop")
    assert streams(client_of(served(MAIL, personal=False)[0]))["chat"] == (MAIL, "stop")


class Endless(Scripted):
    """Says something bad, and then goes on for ever, unless it is stopped."""

    def submit(self, request: Any, on_delta: Any) -> None:
        import threading

        from catena.core.generate import Delta

        self.stopped = threading.Event()

        def answer() -> None:
            on_delta(Delta(BAD))
            while not self.stopped.wait(0.02):
                on_delta(Delta("and on "))

        threading.Thread(target=answer, daemon=True).start()

    def cancel(self, request_id: str) -> None:
        self.stopped.set()


def test_a_blocked_stream_stops_the_model(served: Any, tokenizer: Any) -> None:
    url, model = served(generator=Endless(tokenizer, ""))
    heard = post(url, stream=True).text
    assert heard.endswith("data: [DONE]\n\n")
    assert "fool" not in heard
    eventually(model.stopped.is_set)


def test_a_changed_word_list_holds_without_a_restart(served: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("xyzzy\n")
    url, _ = served(GOOD, words=(str(path),), refresh_s=0.05)
    assert post(url).json()["choices"][0]["finish_reason"] == "stop"
    path.write_text("parcel\nxyzzy\n")
    eventually(lambda: post(url).json()["choices"][0]["finish_reason"] == "content_filter")


def test_reasons_stand_in_the_audit(store: Store, tokenizer: Any) -> None:
    config = GovernConfig(audit=AuditConfig(on=True), moderation=ModerationConfig(on=True))
    with governed(store, config, ServeConfig()) as middleware:
        app = build_app({"tiny": Scripted(tokenizer, BAD)}, middleware=middleware)
        with background(app) as url:
            post(url)
            post(url, messages=[{"role": "user", "content": "shit, my card is 4111 1111 1111 1111"}])
            post(url, stream=True)
    first, second, third = entries(store.root, config.audit, Query(kind="answer"))
    [one] = first["decisions"]
    assert (one["where"], one["decision"], one["reason"]) == ("answer", "block", "words")
    assert one["detail"] == "fuck*"
    assert [(each["where"], each["decision"]) for each in second["decisions"]] == [("prompt", "block")]
    assert third["body"]["text"] == {"0": LEFT}
    assert "fool" not in json.dumps(third["body"])
    asked = list(entries(store.root, config.audit, Query(kind="request")))[1]
    assert "4111" in json.dumps(asked["body"])  # as it came


# -- the stream of bytes, cut at every place ------------------------------------------------------------------------


def sent(app_bytes: list[bytes], kind: bytes = b"text/event-stream", path: str = "/v1/chat/completions") -> bytes:
    """What leaves when a route sends an answer (an event stream) in these pieces."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", kind)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, piece in enumerate(app_bytes):
            await send({"type": "http.response.body", "body": piece, "more_body": number + 1 < len(app_bytes)})

    heard: list[bytes] = []

    async def run() -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message: Message) -> None:
            heard.append(message.get("body", b""))

        with Moderator(ModerationConfig(on=True)) as moderator:
            headers = [(b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
            await Moderation(app, moderator, ServeConfig())(scope, receive, send)

    asyncio.run(run())
    return b"".join(heard)


def chunks_of(text: str, size: int, line_end: str = "\n") -> bytes:
    events = []
    for at in range(0, len(text), size):
        delta = {"index": 0, "delta": {"content": text[at : at + size]}, "finish_reason": None}
        events.append(json.dumps({"id": "1", "choices": [delta]}))
    events.append(json.dumps({"id": "1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    return "".join(f"data: {event}{line_end}{line_end}" for event in [*events, "[DONE]"]).encode()


def heard_in(raw: bytes) -> str:
    bodies = [json.loads(line[6:]) for line in raw.decode().splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for body in bodies for choice in body["choices"])


def test_bytes_may_be_cut_anywhere() -> None:
    for size in (1, 4, 100):
        for line_end in ("\n", "\r\n"):
            raw = chunks_of(BAD[:60], size, line_end)
            for at in range(0, len(raw), 1 if size == 100 else 37):
                out = sent([raw[:at], raw[at:]])
                assert heard_in(out) == LEFT
                assert out.endswith(b"data: [DONE]\n\n")


def test_what_is_no_json_does_not_leave() -> None:
    raw = b"data: fuck\n\n: comment\n\nevent: x\ndata: [1]\n\n" + chunks_of(GOOD, 9)
    out = sent([raw])
    assert b"fuck" not in out
    assert heard_in(out) == GOOD


def test_a_call_of_a_tool_is_looked_through() -> None:
    call = {
        "index": 0,
        "id": "c",
        "type": "function",
        "function": {"name": "mail", "arguments": '{"to": "ada@corp.net", "t'},
    }
    more = {"index": 0, "function": {"arguments": 'ext": "you f u c k"}'}}
    bodies = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "tool_calls": [one]}, "finish_reason": None}]}
        for one in (call, more)
    ]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    raw = b"".join(b"data: " + json.dumps(body).encode() + b"\n\n" for body in [*bodies, end]) + b"data: [DONE]\n\n"
    out = sent([raw]).decode()
    assert "ada@corp.net" not in out
    assert "u c k" not in out
    assert "content_filter" in out


def test_a_long_prompt_does_not_hold_up_the_others(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = served()
    review, begun, over = Moderator.review, threading.Event(), threading.Event()

    def slow(moderator: Moderator, text: str) -> Any:
        if len(text) > LONG:
            begun.set()
            assert over.wait(60)
        return review(moderator, text)

    monkeypatch.setattr(Moderator, "review", slow)
    long = [{"role": "user", "content": "well " * LONG}]
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(post, url, messages=long)
        assert begun.wait(30)
        assert post(url).status_code == 200
        assert not answer.done()
        over.set()
        assert answer.result().status_code == 200
