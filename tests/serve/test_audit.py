"""The audit before a real server: what was asked and answered is in it before anybody hears of it."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
from starlette.middleware import Middleware

from catena.core.errors import DiskFull
from catena.govern.audit.log import Log
from catena.govern.audit.reading import Query, entries
from catena.govern.audit.verify import verify
from catena.govern.config import AuditConfig, AuthConfig, GovernConfig
from catena.govern.keys import Keys
from catena.hub.store import Store
from catena.serve.app import build_app
from catena.serve.config import ServeConfig
from catena.serve.governed import governed
from catena.serve.middleware.audit import Audit, said
from catena.serve.server import background

from .asking import eventually
from .scripted import Scripted

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Where is my parcel?"}]}
ANSWER = "It is on its way, and 你好."
CONFIG = AuditConfig()


@pytest.fixture
def served(store: Store, tokenizer: Any) -> Iterator[Callable[..., Any]]:
    """Return a function that serves a scripted model with audit and keys; gives URL and key."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(generator: Any = None, **options: Any) -> tuple[str, str]:
            config = GovernConfig(auth=AuthConfig(on=True), audit=AuditConfig(on=True, **options))
            key = Keys(store.index).create("ada", "user")[0]
            middleware = stack.enter_context(governed(store, config, ServeConfig()))
            app = build_app({"tiny": generator or Scripted(tokenizer, ANSWER)}, middleware=middleware)
            return stack.enter_context(background(app)), key

        yield start


def post(url: str, key: str, body: Any = ASK, **more: Any) -> httpx.Response:
    head = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{url}/v1/chat/completions", json={**body, **more}, headers=head, timeout=30)


def found(store: Store, **query: Any) -> list[dict[str, Any]]:
    return list(entries(store.root, CONFIG, Query(**query)))


def test_request_and_answer_are_there_when_the_answer_is(store: Store, served: Any) -> None:
    url, key = served()
    assert post(url, key).json()["choices"][0]["message"]["content"] == ANSWER
    request, answer = found(store, subject="ada")
    assert (request["kind"], request["body"]["messages"][0]["content"]) == ("request", ASK["messages"][0]["content"])
    assert answer["body"]["choices"][0]["message"]["content"] == ANSWER
    assert request["id"] == answer["id"]
    assert (answer["status"], answer["action"], answer["model"], answer["cut"]) == (200, "infer", "tiny", False)
    assert key not in json.dumps(found(store))
    assert answer["key"] in key


def test_a_streamed_answer_is_kept_as_text(store: Store, served: Any) -> None:
    url, key = served()
    assert post(url, key, stream=True).text.endswith("data: [DONE]\n\n")
    answer = found(store, kind="answer")[0]
    assert answer["body"]["text"] == {"0": ANSWER}
    assert answer["body"]["ends"] == {"0": "stop"}


def test_refused_requests_are_there_and_what_nobody_reads_is_not(store: Store, served: Any) -> None:
    url, key = served()
    assert post(url, "").status_code == 401
    assert post(url, key, messages=7).status_code == 400
    assert httpx.get(f"{url}/no/such", headers={"x-api-key": key}).status_code == 404
    for path in ("/health", "/openapi.json", "/metrics"):
        httpx.get(url + path)
    told = [(entry["status"], entry["subject"]) for entry in found(store, kind="answer")]
    assert told == [(401, "anonymous"), (400, "ada"), (404, "ada")]
    assert found(store, kind="answer")[0]["decisions"][0]["by"] == "auth"
    assert len(found(store, kind="request")) == 1  # the body of a stranger is not even read


def test_lines_and_terminal_codes_in_a_request_forge_no_entry(store: Store, served: Any) -> None:
    url, key = served()
    evil = 'x\n{"kind": "act", "act": "keys.create"}\x1b[2J\r\n\x00"'
    post(url, key, messages=[{"role": "user", "content": evil}], user=evil)
    assert found(store, kind="request")[0]["body"]["messages"][0]["content"] == evil
    assert [entry["act"] for entry in found(store, kind="act")] == ["serve.start"]
    assert verify(store.root, CONFIG, deep=True).sound


def test_a_long_body_is_kept_by_its_beginning_and_its_digest(store: Store, served: Any) -> None:
    url, key = served(max_bytes=1024)
    post(url, key, messages=[{"role": "user", "content": "long " * 1000}])
    request = found(store, kind="request")[0]
    assert len(request["body"]) == 1024
    assert request["bytes"] > 5000
    assert len(request["sha256"]) == 64


class Slow(Scripted):
    """Says a piece at a time, for ever."""

    def submit(self, request: Any, on_delta: Any) -> None:
        import threading

        from catena.core.generate import Delta

        self.ended = threading.Event()

        def answer() -> None:
            while not self.ended.wait(0.02):
                on_delta(Delta("and "))

        threading.Thread(target=answer, daemon=True).start()

    def cancel(self, request_id: str) -> None:
        self.ended.set()


def test_an_answer_that_a_client_leaves_is_there_as_cut(store: Store, served: Any, tokenizer: Any) -> None:
    url, key = served(Slow(tokenizer, ""))
    body = json.dumps({**ASK, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(head.encode() + body)
        received = b""
        while received.count(b"and ") < 3:
            received += connection.recv(1 << 16)
    eventually(lambda: bool(found(store, kind="answer")))
    answer = found(store, kind="answer")[0]
    assert answer["cut"] is True
    assert "and and and" in answer["body"]["text"]["0"]


class Broken:
    """A log whose disk is full from some entry on."""

    def __init__(self, log: Log, good: int, *, later: bool) -> None:
        self._log, self._good, self._later = log, good, later

    def flush(self) -> None:
        self._log.flush()

    def write(self, subject: str, entry: Any, done: Any, *, soon: bool = False) -> None:
        self._good -= 1
        if self._good >= 0:
            self._log.write(subject, entry, done, soon=soon)
        elif self._later:
            done(DiskFull("no space is left"))
        else:
            raise DiskFull("no space is left")


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("good", [0, 1])
def test_what_cannot_be_written_down_is_not_answered(store: Store, tokenizer: Any, good: int, later: bool) -> None:
    with Log(store.root, CONFIG) as log:
        middleware = [Middleware(Audit, log=Broken(log, good, later=later), config=CONFIG)]
        app = build_app({"tiny": Scripted(tokenizer, ANSWER)}, middleware=middleware)
        with background(app) as url:
            answer = post(url, "")
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
            assert "way" not in answer.text
            if good == 0:
                assert post(url, "", stream=True).status_code == 503


def test_a_stream_whose_record_fails_never_ends_well(store: Store, tokenizer: Any) -> None:
    with Log(store.root, CONFIG) as log:
        middleware = [Middleware(Audit, log=Broken(log, 1, later=True), config=CONFIG)]
        app = build_app({"tiny": Scripted(tokenizer, ANSWER)}, middleware=middleware)
        with background(app) as url, pytest.raises(httpx.RemoteProtocolError):
            post(url, "", stream=True)


def test_what_a_stream_of_any_kind_said_is_put_together() -> None:
    events = [
        {"choices": [{"index": 0, "text": "a"}]},
        {"choices": [{"index": 0, "text": "b", "finish_reason": "stop"}, {"index": 1, "delta": {"content": "c"}}]},
        {"type": "response.output_text.delta", "delta": "d", "output_index": 2},
        {"error": {"message": "broken"}},
    ]
    raw = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
    told = said(raw + b"data: {cut")
    assert told["text"] == {"0": "ab", "1": "c", "2": "d"}
    assert told["ends"] == {"0": "stop"}
    assert told["events"] == [events[3]]


def test_what_a_stream_said_beside_its_text_is_kept_however_it_is_framed() -> None:
    parts = [{"type": "text", "text": "part"}]
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "reasoning_content": "first I "},
        {"reasoning_content": "think", "content": "Yes"},
        {"refusal": "No", "function_call": {"name": "f"}},
        {"content": parts},
    ]
    events: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    events += [
        {"type": "response.reasoning_text.delta", "delta": "so", "output_index": 1},
        {"type": "response.output_text.delta", "delta": "well", "output_index": 2},
    ]
    told = said(b"".join(b"data:" + json.dumps(event).encode() + b"\r\n\r\n" for event in events))
    assert told["text"] == {"0": "Yes", "2": "well"}
    thought = {"reasoning_content": "first I think", "refusal": "No"}
    assert told["beside"] == {"0": thought, "1": {"response.reasoning_text": "so"}}
    assert told["events"] == [{"function_call": {"name": "f"}}, {"content": parts}]


def test_many_requests_at_once_are_all_there(store: Store, served: Any, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    url, key = served()
    with ThreadPoolExecutor(8) as pool:
        assert {answer.status_code for answer in pool.map(lambda _: post(url, key), range(40))} == {200}
    assert len(found(store, kind="request")) == len(found(store, kind="answer")) == 40
    assert verify(store.root, CONFIG, deep=True).sound
