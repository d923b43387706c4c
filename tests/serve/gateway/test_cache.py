"""Answers that are given again, and to whom they are not."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from catena.serve.gateway import app
from catena.serve.gateway.ask import read_ask
from catena.serve.gateway.cache import Cache, canonical, key_of
from catena.serve.gateway.caching import Answers, MemoryAnswers, RedisAnswers, SqliteAnswers, open_answers
from catena.serve.gateway.call import Call
from catena.serve.gateway.identity import Identity
from catena.serve.gateway.meters import Meters
from catena.serve.gateway.poison import fingerprint

from .conftest import REPLICA, Start, eventually, mock
from .redis import RedisServer

ADA, BOB = {"authorization": "Bearer ada"}, {"authorization": "Bearer bob"}


def test_equal_requests_have_one_key_and_others_have_others() -> None:
    fields = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    assert canonical(fields) == canonical({**dict(reversed(fields.items())), "user": "u", "seed": None})
    keys = {
        key_of("t", "d", "chat", fields),
        key_of("u", "d", "chat", fields),
        key_of("t", "e", "chat", fields),
        key_of("t", "d", "completions", fields),
        key_of("t", "d", "chat", {**fields, "temperature": 0.5}),
        key_of("td", "", "chat", fields),
    }
    assert len(keys) == 6


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
def test_every_store_keeps_replaces_and_forgets(kind: str, tmp_path: Path, redis_server: RedisServer) -> None:
    async def check() -> None:
        answers = open_answers(redis_server.url if kind == "redis" else kind, tmp_path, 0.4, 1000)
        assert answers is not None
        assert await answers.get(b"a") is None
        await answers.put(b"a", b"1")
        await answers.put(b"a", b"2")
        assert await answers.get(b"a") == b"2"
        await asyncio.sleep(0.6)
        assert await answers.get(b"a") is None
        await answers.close()

    asyncio.run(check())


def test_stores_stay_within_their_bytes(tmp_path: Path) -> None:
    async def check() -> None:
        both: list[Answers] = [MemoryAnswers(60, 10_000), SqliteAnswers(tmp_path / "a.sqlite", 60, 10_000)]
        for answers in both:
            for number in range(256):
                await answers.put(b"%d" % number, bytes(100))
            kept = [await answers.get(b"%d" % number) for number in range(256)]
            assert sum(map(len, filter(None, kept))) <= 10_000
            assert kept[-1]
            await answers.put(b"big", bytes(100))
            await answers.close()

    asyncio.run(check())


def test_what_sqlite_keeps_is_there_after_a_restart(tmp_path: Path) -> None:
    async def check() -> None:
        first = SqliteAnswers(tmp_path / "a.sqlite", 60, 10_000)
        await first.put(b"a", b"1")
        await first.close()
        second = SqliteAnswers(tmp_path / "a.sqlite", 60, 10_000)
        assert await second.get(b"a") == b"1"
        await second.close()

    asyncio.run(check())


def test_without_redis_there_is_no_cache_and_no_error(redis_server: RedisServer) -> None:
    async def check() -> None:
        answers = RedisAnswers(redis_server.url, 60)
        redis_server.stop()
        await answers.put(b"a", b"1")
        assert await answers.get(b"a") is None
        asked: list[bytes] = []
        answers.client.get, real = asked.append, answers.client.get
        for _ in range(100):
            assert await answers.get(b"a") is None
        answers.client.get = real
        assert asked == [], "it is not asked again at once"
        redis_server.start()
        answers._again = 0.0
        await answers.put(b"a", b"1")
        assert await answers.get(b"a") == b"1"
        await answers.close()

    asyncio.run(check())


def cached(start: Start, more: Any = None, **cache: Any) -> Any:
    model = mock("--digest", "d1")
    embedder = mock("--model", "e")
    return start({"m": model, "e": embedder}, cache={"store": "memory", **cache}, **(more or {}))


def test_a_greedy_answer_is_given_again_to_its_tenant_only(start: Start) -> None:
    running = cached(start)
    asked: Any = {"temperature": 0, "headers": ADA}
    first, second = running.chat("hi", **asked), running.chat("hi", **asked)
    assert first.json() == second.json()
    assert (first.headers.get("x-catena-cache"), second.headers.get("x-catena-cache")) == (None, "exact")
    assert "x-catena-cache" not in running.chat("hi", temperature=0, headers=BOB).headers
    assert "x-catena-cache" not in running.chat("hi", headers=ADA).headers, "drawn answers are not kept"
    assert "x-catena-cache" not in running.chat("hi", headers=ADA, seed=1).headers
    assert running.chat("hi", headers=ADA, seed=1).headers["x-catena-cache"] == "exact"
    fresh = {**ADA, "cache-control": "no-cache"}
    assert "x-catena-cache" not in running.chat("hi", temperature=0, headers=fresh).headers
    stream = [running.events("hi", temperature=0, headers=ADA) for _ in range(2)]
    assert stream[0] == stream[1]
    assert stream[0].endswith("data: [DONE]\n\n")
    assert 'catena_gateway_cache_total{model="m",kind="exact",result="hit"} 3' in running.get("/metrics").text


def test_errors_and_cut_streams_are_not_kept(start: Start) -> None:
    running = cached(start)
    assert running.chat("status 404", temperature=0).status_code == 404
    assert "x-catena-cache" not in running.chat("status 404", temperature=0).headers
    assert "replica_ended" in running.events("please cut here now", temperature=0)
    running.ready(1)
    answer = running.chat("please cut here now", temperature=0, stream=True)
    assert "x-catena-cache" not in answer.headers


def test_an_answer_is_kept_for_the_weights_that_gave_it(start: Start) -> None:
    running = cached(start)
    slot = next(iter(running.gateway.pools["m"].slots.values()))
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        first = threads.submit(running.chat, "sleep 0.5", temperature=0)
        old = eventually(lambda: slot.backend if slot.backend and slot.backend.running else None)
        slot.backend = replace(old, digest="d2", running=0)  # others are promoted while it writes
        assert first.result().status_code == 200
    assert "x-catena-cache" not in running.chat("sleep 0.5", temperature=0).headers
    slot.backend = old
    assert running.chat("sleep 0.5", temperature=0).headers["x-catena-cache"] == "exact"


HEL = b'data: {"choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}\n\n'
LO = b'data: {"choices":[{"index":0,"delta":{"content":"lo, \\"error\\":{"},"finish_reason":"stop"}]}\n\n'
COUNT, DONE = b'data: {"choices":[],"usage":{"completion_tokens":2}}\n\n', b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("stream", "kept"),
    [
        (HEL + LO + DONE, True),
        (HEL + LO + COUNT + DONE, True),
        (HEL + DONE, False),
        (HEL + b'data: {"error": {"message": "CUDA error", "code": 500}}\n\n' + DONE, False),
        (HEL + b'data:{"error":{"message":"CUDA error"}}\r\n\r\n' + LO + DONE, False),
        (HEL + b'event: error\ndata: {"type": "error", "message": "no"}\n\n', False),
        (HEL + b'data: {"type":"response.completed","response":{"error":null,"output":[]}}\n\n', True),
        (b'data: {"type":"response.output_text.delta","delta":"Hel"}\n\n', False),
    ],
)
def test_a_stream_is_kept_where_it_was_finished(stream: bytes, kept: bool) -> None:
    async def check() -> None:
        cache = Cache(MemoryAnswers(100, 1 << 20), lambda call: "d", Meters())
        body = b'{"model":"m","messages":[],"temperature":0,"stream":true}'
        first, second = (Call("r", read_ask("/v1/chat/completions", body), Identity()) for _ in range(2))
        assert await cache.get(first, {"headers": []}) is None
        first.status, first.kind = 200, b"text/event-stream"
        first.took(stream)
        await cache.put(first)
        assert (await cache.get(second, {"headers": []}) is not None) == kept

    asyncio.run(check())


def test_a_model_that_does_not_say_what_it_is_is_not_cached(start: Start) -> None:
    running = start({"m": mock()}, cache={"store": "memory"})
    for _ in range(2):
        assert "x-catena-cache" not in running.chat("hi", temperature=0).headers


def semantic(answer: Any) -> Any:
    return answer if answer.headers.get("x-catena-cache") == "semantic" else None


def test_a_question_that_means_the_same_gets_the_answer_where_everything_else_is_equal(start: Start) -> None:
    running = cached(start, semantic={"model": "e", "similarity": 0.99})
    asked: Any = {"temperature": 0, "headers": ADA}
    given = [running.chat("listen to this", **asked).json()]
    words = ("".join(letters) for letters in itertools.permutations("silent"))

    def ask() -> Any:
        # An answer is kept after it was sent, so the first questions of the same letters may come too early.
        answer = running.chat(f"{next(words)} to this", **asked)
        given.append(answer.json())
        return semantic(answer)

    near = eventually(ask)
    assert near.json() in given[:-1]
    assert "x-catena-cache" not in running.chat("quite another thing", **asked).headers
    assert "x-catena-cache" not in running.chat("enlist to this", temperature=0, headers=BOB).headers
    assert "x-catena-cache" not in running.chat("enlist to this", max_tokens=7, **asked).headers


def test_a_model_of_the_cache_that_is_away_costs_nobody_an_answer(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "EMBED_S", 0.3)
    running = cached(start, semantic={"model": "e"}, more={"routing": {"queue_s": 600}})
    asked: Any = {"temperature": 0, "headers": ADA}
    running.chat("listen to this", **asked)
    eventually(lambda: running.seen("e"))
    pool = running.gateway.pools["e"]
    for slot in list(pool.slots.values()):
        pool.release(slot)
    assert running.chat("quite another thing", **asked).status_code == 200
    eventually(lambda: "the semantic cache has no vector" in caplog.text)


@pytest.mark.parametrize("said", ['{"data": null}', '{"data": []}', '{"data": [7]}', "[]", "no json"])
def test_what_is_no_vector_is_told_and_the_replica_is_asked(
    start: Start, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    models = {"m": mock("--digest", "d1"), "e": mock("--vectors", said, prewarm=False)}
    running = start(models, cache={"store": "memory", "semantic": {"model": "e"}})
    assert running.chat("hello", temperature=0).status_code == 200
    eventually(lambda: "the semantic cache has no vector" in caplog.text)
    assert not [record for record in caplog.records if record.exc_info], "it is no error of ours"


def test_a_question_that_ends_a_replica_of_the_caches_model_holds_up_no_other(start: Start) -> None:
    deaf = {"script": [REPLICA, "--digest", "d1"]}
    running = start({"m": deaf, "e": mock()}, cache={"store": "memory", "semantic": {"model": "e", "similarity": 0.99}})
    poison = running.gateway.pools["e"].poison
    asked: Any = {"temperature": 0, "headers": ADA}
    assert running.chat("die", **asked).status_code == 200
    eventually(lambda: running.gateway.pools["e"].deaths == 1)
    assert poison.strikes(fingerprint("e", b"die"), time.monotonic()) == 1
    assert poison.strikes(fingerprint("e", b"listen"), time.monotonic()) == 0
    running.ready(1, "e")
    words = ("".join(letters) for letters in itertools.permutations("listen"))
    eventually(lambda: semantic(running.chat(next(words), **asked)))
    assert poison._strikes.keys() == {fingerprint("e", b"die")}


def test_many_tenants_at_once_never_see_each_other(start: Start) -> None:
    running = cached(start, semantic={"model": "e", "similarity": 0.5})

    def ask(number: int) -> tuple[str, str]:
        tenant = f"tenant{number % 10}"
        headers = {"authorization": f"Bearer {tenant}"}
        answer = running.chat(f"secret of {tenant} {number % 3}", temperature=0, headers=headers)
        return tenant, answer.json()["choices"][0]["message"]["content"]

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for tenant, said in threads.map(ask, range(200)):
            assert tenant in said
