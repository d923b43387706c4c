"""The client for what OpenAI's does not cover, against real servers: answers, errors, what is tried again."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.types import Receive, Scope, Send

from catena.core.errors import RemoteError, UsageError
from catena.infer.engine import Engine
from catena.sdk import ApiError, AsyncCatena, Catena, Unreachable, choice, predicate, score
from catena.serve.app import build_app
from catena.serve.server import background

from .test_embeddings import Moods


@pytest.fixture
def catena(url: str) -> Iterator[Catena]:
    with Catena(url, retries=0) as client:
        yield client


def test_questions_are_answered_with_probabilities(catena: Catena) -> None:
    questions = [
        predicate("It rains.", name="rain"),
        choice("Which one?", {"a": "the first", "b": "the second"}),
        score("How much?", ["little", "some", "much"]),
    ]
    rain, which, much = catena.decisions("tiny", "The street is wet.", questions)
    assert (rain.type, rain.name) == ("predicate", "rain")
    assert 0 <= (rain.probability or 0) <= 1
    assert which.choice in ("a", "b")
    assert sum(one.probability for one in which.probabilities) == pytest.approx(1)
    assert 0 <= (much.score or 0) <= 2


def test_the_example_of_the_guide_runs(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "sdk.md").read_text(encoding="utf-8")
    example = text.partition("```python\n")[2].partition("```")[0]
    with background(build_app({"helper": engine})) as url:
        exec(example.replace("http://127.0.0.1:8000", url), {})
    models, answers, count = capsys.readouterr().out.splitlines()
    assert models == "['helper'] ok"
    assert answers.split()[1] in ("rain", "sun", "snow")
    assert int(count) > 0


def test_tokens_go_there_and_back(catena: Catena) -> None:
    told = catena.tokenize("tiny", "hello 你好", pieces=True)
    assert told.count == len(told.tokens) == len(told.token_strs or ())
    assert catena.detokenize("tiny", told.tokens) == "hello 你好"
    assert catena.tokenize("tiny", [{"role": "user", "content": "hello"}]).count > 0


def test_labels_models_and_health(tokenizer: Any) -> None:
    with background(build_app({"moods": Moods(tokenizer, "")})) as url, Catena(f"{url}/v1/") as client:
        found = client.classify("moods", ["long text", "x"])
        assert [sorted(one.probabilities) for one in found] == [sorted(found[0].probabilities)] * 2
        assert all(one.label in one.probabilities for one in found)
        assert [one.id for one in client.models()] == ["moods"]
        assert client.model("moods").owned_by == "catena"
        assert client.health().status == "ok"


def test_the_asynchronous_client_does_the_same(url: str) -> None:
    async def run() -> None:
        async with AsyncCatena(url) as client:
            told, health = await asyncio.gather(client.tokenize("tiny", "hello"), client.health())
            assert told.count > 0
            assert health.status == "ok"
            with pytest.raises(ApiError, match="does not exist"):
                await client.tokenize("nobody", "hello")

    asyncio.run(run())


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, str]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: str(inspect.signature(one).replace(return_annotation="")) for name, one in found if name[0] != "_"
        }

    assert methods(Catena) == methods(AsyncCatena)


def test_refusals_tell_all_that_the_server_told(catena: Catena) -> None:
    with pytest.raises(ApiError) as error:
        catena.tokenize("nobody", "hello")
    found = error.value
    assert (found.status, found.code, found.param, found.exit_code) == (404, "model_not_found", "model", 3)
    with pytest.raises(UsageError, match="no URL"):
        Catena("localhost:8000")


class Moody:
    """A server that says what it is told to say, one after the other, and counts."""

    def __init__(self, *answers: tuple[int, dict[bytes, bytes], Any]) -> None:
        self.answers, self.count = list(answers), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.count += 1
        status, headers, body = self.answers.pop(0)
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        head = [*headers.items(), (b"content-length", b"%d" % len(data))]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": data})


BUSY = (503, {b"retry-after": b"0"}, {"error": {"message": "busy", "code": None, "param": None}})
FULL = (429, {}, {"error": {"message": "full", "code": "rate_limit_exceeded", "param": None}})
BROKEN = (502, {}, {"error": {"message": "broken", "code": None, "param": None}})
GOOD = (200, {}, {"status": "ok", "prompt": "hello"})


@pytest.mark.parametrize(
    ("answers", "call", "count"),
    [
        ((BUSY, FULL, GOOD), lambda client: client.detokenize("m", [1]), 3),
        ((BROKEN, GOOD), lambda client: client.health(), 2),
        ((FULL, FULL, FULL), lambda client: client.health(), 3),
        ((BROKEN, GOOD), lambda client: client.detokenize("m", [1]), 1),
    ],
    ids=["busy and full", "what changes nothing", "too often", "what may have been done"],
)
def test_what_is_tried_again(answers: Any, call: Callable[[Catena], Any], count: int) -> None:
    app = Moody(*answers)
    with background(app) as url, Catena(url, retries=2) as client:
        if answers[count - 1] is GOOD:
            call(client)
        else:
            with pytest.raises(ApiError):
                call(client)
    assert app.count == count


def test_what_is_no_answer_is_said() -> None:
    with background(Moody((200, {}, b"<html>"), (200, {}, []))) as url, Catena(url) as client:
        for _ in range(2):
            with pytest.raises(RemoteError, match="as Catena does"):
                client.health()
    with Catena("http://127.0.0.1:9", retries=0) as client, pytest.raises(Unreachable, match="no server answers"):
        client.health()


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "starlette", "sqlalchemy", "grpc", "openai")
    code = f"import sys, catena.sdk; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
