"""The semantic cache: what is near, what has ended, how much is kept, and that it is there after a restart."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catena.serve.gateway import semantic as module
from catena.serve.gateway.ask import Ask
from catena.serve.gateway.call import Call
from catena.serve.gateway.config import SemanticConfig
from catena.serve.gateway.identity import Identity
from catena.serve.gateway.questions import Questions, RedisQuestions, SqliteQuestions, open_questions
from catena.serve.gateway.semantic import Circle, Semantic

from .conftest import Start, eventually, mock
from .redis import RedisServer

Clock = list[float]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time, as the semantic cache sees it."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    return now


def unit(*values: float) -> Any:
    vector = np.asarray(values, dtype=np.float32)
    return vector / np.linalg.norm(vector)


def call(question: str, tenant: str = "ada") -> Call:
    fields = {"model": "m", "messages": [{"role": "user", "content": question}]}
    ask = Ask("/v1/chat/completions", "chat", "m", b"", fields, b"", False, "")
    return Call("id", ask, Identity(tenant, tenant))


async def embed(text: str) -> list[float]:
    """A vector that tells words apart: each counts letters."""
    return [float(text.count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"]


def kept(store: Questions | None = None, ttl_s: float = 60, most: int = 1 << 20, entries: int = 100) -> Semantic:
    return Semantic(embed, SemanticConfig(model="e", entries=entries), (ttl_s, most), store)


def test_what_has_ended_does_not_hide_what_was_renewed(clock: Clock) -> None:
    circle = Circle(10)
    circle.add(unit(1, 0), b"old", until=1010)
    circle.add(unit(1, 0.01), b"near", until=1100)
    assert circle.nearest(unit(1, 0))[1] == b"old"
    clock[0] = 1050
    cosine, value = circle.nearest(unit(1, 0))
    assert value == b"near"
    assert cosine > 0.99
    clock[0] = 1200
    assert circle.nearest(unit(1, 0))[0] == -1.0


def test_a_later_answer_to_the_same_question_takes_the_place_of_the_earlier(clock: Clock) -> None:
    circle = Circle(10)
    for number in range(5):
        circle.add(unit(1, 0), b"%d" % number, until=1100)
    assert circle.nearest(unit(1, 0))[1] == b"4"
    assert circle.bytes == 8 + 1


def test_a_full_circle_lets_what_ends_first_go(clock: Clock) -> None:
    circle = Circle(3)
    for number, until in enumerate((1003, 1001, 1002, 1004)):
        circle.add(unit(*(float(at == number) for at in range(4))), b"%d" % number, until=until)
    values = {circle.nearest(unit(*(float(at == number) for at in range(4)))) for number in range(4)}
    assert {value for cosine, value in values if cosine > 0.9} == {b"0", b"2", b"3"}


def test_it_stays_within_its_bytes_whatever_comes(clock: Clock) -> None:
    async def check() -> None:
        small = kept(most=5000)
        for number in range(300):
            await small.keep(call("ab" * (number + 1) + "c" * (number % 7), f"tenant{number % 20}"), "d", bytes(200))
            assert small.bytes <= 5000
            assert small.bytes == sum(circle.bytes for circle in small._circles.values())
        assert small.bytes > 2500
        one = kept(most=5000)
        words = ("".join(letters) for letters in itertools.product("abcdefgh", repeat=4))
        for word in itertools.islice(words, 300):
            await one.keep(call(word), "d", bytes(200))
        assert one.bytes <= 5000
        await one.keep(call("zz"), "d", b"the last")
        assert await one.find(call("zz"), "d") == b"the last"

    asyncio.run(check())


@pytest.fixture
def opened(tmp_path: Path, redis_server: RedisServer) -> Callable[..., Questions]:
    """Return a function that opens a store again and again."""

    def make(kind: str, ttl_s: float = 60, most: int = 100, max_bytes: int = 1 << 20) -> Questions:
        found = open_questions(redis_server.url if kind == "redis" else kind, tmp_path, ttl_s, most, max_bytes)
        assert found is not None
        return found

    return make


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_questions_survive_a_restart_and_are_found_by_others(kind: str, opened: Callable[..., Questions]) -> None:
    async def check() -> None:
        first, second = kept(opened(kind)), kept(opened(kind))
        await first.keep(call("silent"), "d", b"yes")
        assert await second.find(call("listen"), "d") == b"yes"
        assert await second.find(call("listen", "bob"), "d") is None, "never another tenant's"
        assert await second.find(call("listen"), "other weights") is None
        await second.keep(call("stone"), "d", b"no")
        assert await first.find(call("notes"), "d") == b"no"
        for one in (first, second):
            await one.close()
        third = kept(opened(kind))
        assert await third.find(call("listen"), "d") == b"yes"
        assert await third.find(call("quite another"), "d") is None
        await third.close()

    asyncio.run(check())


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_store_keeps_at_most_so_many_and_not_for_longer(kind: str, opened: Callable[..., Questions]) -> None:
    async def check() -> None:
        store = opened(kind, 0.5, 3)
        for number in range(5):
            await store.add(b"circle", b"%d" % number)
        found = await store.since(b"circle", None)
        assert [one.item for one in found] == [b"2", b"3", b"4"]
        assert [one.item for one in await store.since(b"circle", found[1].place)] == [b"4"]
        assert await store.since(b"another", None) == []
        assert all(0 < one.until - time.time() < 1 for one in found)
        await asyncio.sleep(0.7)
        assert await store.since(b"circle", None) == []
        await store.close()

    asyncio.run(check())


def test_sqlite_stays_within_its_bytes(opened: Callable[..., Questions]) -> None:
    async def check() -> None:
        store = opened("sqlite", max_bytes=10_000)
        for number in range(256):
            await store.add(b"%d" % number, bytes(100))
        assert isinstance(store, SqliteQuestions)
        found = [await store.since(b"%d" % number, None) for number in range(256)]
        assert 0 < sum(len(one.item) for entries in found for one in entries) <= 10_000
        assert found[-1]
        await store.close()

    asyncio.run(check())


def test_without_redis_nothing_is_found_and_nothing_breaks(redis_server: RedisServer) -> None:
    async def check() -> None:
        store = RedisQuestions(redis_server.url, 60, 10)
        near = kept(store)
        redis_server.stop()
        await near.keep(call("silent"), "d", b"yes")
        assert await near.find(call("listen"), "d") is None
        redis_server.start()
        store._again = 0.0
        await near.keep(call("silent"), "d", b"yes")
        assert await near.find(call("listen"), "d") == b"yes"
        await near.close()

    asyncio.run(check())


def semantic(answer: Any) -> Any:
    return answer if answer.headers.get("x-catena-cache") == "semantic" else None


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_gateway_that_starts_again_answers_near_questions(kind: str, start: Start, redis_server: RedisServer) -> None:
    cache = {"store": redis_server.url if kind == "redis" else kind, "semantic": {"model": "e", "similarity": 0.99}}
    models = {"m": mock("--digest", "d1"), "e": mock("--model", "e")}
    first = start(models, cache=cache)
    first.chat("listen to this", temperature=0)
    words = itertools.cycle("".join(letters) for letters in itertools.permutations("silent"))
    eventually(lambda: semantic(first.chat(f"{next(words)} to this", temperature=0)))
    first.stop()
    second = start(models, cache=cache)
    near = second.chat("tinsel to this", temperature=0)
    assert semantic(near)
    assert "you said" in near.text
    assert "tinsel" not in near.text
