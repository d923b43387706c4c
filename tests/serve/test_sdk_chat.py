"""Streamed answers by the SDK: from a real model, refused, cut off, and left by who asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from starlette.types import Receive, Scope, Send

from catena.core.errors import RemoteError
from catena.infer.engine import Engine
from catena.sdk import ApiError, AsyncCatena, Catena, Unreachable
from catena.serve.server import background

from .gateway.conftest import eventually
from .test_sdk import FULL, Moody

ASKED = [{"role": "user", "content": "hello 你好"}]


@pytest.fixture
def catena(url: str) -> Iterator[Catena]:
    with Catena(url) as client:
        yield client


def test_an_answer_comes_piece_by_piece_and_is_the_same_as_whole(catena: Catena) -> None:
    options = {"temperature": 0, "max_tokens": 12, "stream_options": {"include_usage": True}}
    pieces = list(catena.chat("tiny", ASKED, **options))
    body = {"model": "tiny", "messages": ASKED, "temperature": 0, "max_tokens": 12}
    whole = catena._client.post("/v1/chat/completions", json=body).json()
    assert "".join(piece.text for piece in pieces) == whole["choices"][0]["message"]["content"]
    assert [piece.finish for piece in pieces if piece.finish] == ["length"]
    assert pieces[-1].answer_tokens == 12
    assert pieces[-1].prompt_tokens == whole["usage"]["prompt_tokens"]
    assert len({piece.id for piece in pieces}) == 1
    assert len({piece.request_id for piece in pieces}) == 1


def test_who_leaves_stops_the_model(url: str, engine: Engine) -> None:
    async def leave() -> str:
        async with AsyncCatena(url) as catena:
            stream = catena.chat("tiny", ASKED, max_tokens=200)
            async for piece in stream:
                if piece.text:
                    await stream.aclose()
                    return piece.text
        return ""

    assert asyncio.run(leave())
    eventually(lambda: engine.stats()["running"] == 0)


def test_a_refusal_is_told_at_once_and_not_tried_again() -> None:
    moody = Moody(FULL)
    with background(moody) as url, Catena(url) as catena, pytest.raises(ApiError) as error:
        list(catena.chat("m", ASKED))
    assert (error.value.status, error.value.code, moody.count) == (429, "rate_limit_exceeded", 1)
    with Catena("http://127.0.0.1:9") as nobody, pytest.raises(Unreachable):
        list(nobody.chat("m", ASKED))


def events(*lines: bytes, cut: bool = False) -> object:
    """A server that streams these lines; with `cut` it breaks the connection then."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for line in lines:
            await send({"type": "http.response.body", "body": line + b"\n\n", "more_body": True})
        if cut:
            raise ConnectionError("gone")
        await send({"type": "http.response.body", "body": b""})

    return app


SAID = b'data: {"id": "a", "choices": [{"delta": {"content": "half"}}]}'


@pytest.mark.parametrize(
    ("app", "kind", "words"),
    [
        (events(SAID), RemoteError, "cut off"),
        (events(SAID, b'data: {"error": {"message": "the replica died", "code": "gone"}}'), ApiError, "replica died"),
        (events(SAID, b"data: [1, 2"), RemoteError, "did not answer as Catena does"),
        (events(SAID, b"data: [1, 2]"), RemoteError, "did not answer as Catena does"),
    ],
    ids=["ends early", "an error event", "no JSON", "no event"],
)
def test_a_stream_that_breaks_keeps_what_came(app: object, kind: type[Exception], words: str) -> None:
    with background(app) as url, Catena(url) as catena:  # type: ignore[arg-type]
        pieces = catena.chat("m", ASKED)
        assert next(pieces).text == "half"
        with pytest.raises(kind, match=words):
            next(pieces)


def test_only_a_line_feed_ends_a_line_of_a_stream() -> None:
    text = "a\u2028b\u2029c\u0085d"
    told = orjson.dumps({"id": "a", "choices": [{"delta": {"content": text}}]})
    app: Any = events(b"data: " + told + b"\r", b"data: [DONE]\r")

    async def read(url: str) -> list[str]:
        async with AsyncCatena(url) as catena:
            return [piece.text async for piece in catena.chat("m", ASKED)]

    with background(app) as url, Catena(url) as catena:
        assert [piece.text for piece in catena.chat("m", ASKED)] == [text]
        assert asyncio.run(read(url)) == [text]
