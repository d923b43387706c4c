"""Rates and quotas, in memory and in a real Redis that goes away and comes back."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import redis

from catena.core.config import parse
from catena.core.errors import EnvironmentProblem
from catena.serve.gateway import limits as module
from catena.serve.gateway.ask import read_ask
from catena.serve.gateway.call import Call
from catena.serve.gateway.config import LimitsConfig
from catena.serve.gateway.identity import Identity
from catena.serve.gateway.limits import Limits, Rule
from catena.serve.gateway.refusals import RateLimited
from catena.serve.gateway.relay import Outgoing, _watch

from .conftest import Start, mock
from .redis import RedisServer

CHAT = "/v1/chat/completions"


def call(key: str = "k", role: str = "user", model: str = "m", **fields: Any) -> Call:
    body = {"model": model, "messages": [{"role": "user", "content": "x" * 30}], "max_tokens": 50, **fields}
    return Call("id", read_ask(CHAT, orjson.dumps(body)), Identity(key, key, role, key))


def answered(one: Call, tokens: int) -> None:
    one.status, one.kind = 200, b"application/json"
    one.answer += orjson.dumps({"usage": {"prompt_tokens": 10, "completion_tokens": tokens - 10}})


async def ask(limits: Limits, one: Call, tokens: int = 20) -> bool:
    try:
        async with limits.reserved(one):
            answered(one, tokens)
    except RateLimited as error:
        return error.retry_after < 1
    return True


def limits_of(*rules: Any, **config: Any) -> Limits:
    return Limits(parse(LimitsConfig, {"rules": list(rules), **config}))


@pytest.mark.parametrize("shared", [False, True])
def test_each_key_has_its_own_requests(shared: bool, redis_server: RedisServer) -> None:
    async def check() -> None:
        store = {"store": redis_server.url} if shared else {}
        limits = limits_of({"per": "key", "requests": "3/hour"}, **store)
        assert [await ask(limits, call("a")) for _ in range(4)] == [True, True, True, False]
        assert await ask(limits, call("b"))
        await limits.close()

    asyncio.run(check())


@pytest.mark.parametrize("shared", [False, True])
def test_tokens_are_reserved_and_settled_by_what_was_used(shared: bool, redis_server: RedisServer) -> None:
    async def check() -> None:
        store = {"store": redis_server.url} if shared else {}
        limits = limits_of({"per": "subject", "tokens": "300/hour"}, **store)
        # Each reserves 71 (21 of prompt and 50 of answer) and uses 20.
        results = [await ask(limits, call()) for _ in range(20)]
        assert results.count(True) == 12, "20 tokens each, until 71 are not left"
        assert not await ask(limits, call("k", max_tokens=5000))
        await limits.close()

    asyncio.run(check())


@pytest.mark.parametrize("shared", [False, True])
def test_what_an_answer_uses_beyond_its_reservation_is_counted(shared: bool, redis_server: RedisServer) -> None:
    async def check() -> None:
        store = {"store": redis_server.url} if shared else {}
        limits = limits_of({"per": "key", "tokens": "1000/hour"}, **store)
        assert [await ask(limits, call(), tokens=700) for _ in range(3)] == [True, True, False]
        async with limits.reserved(small := call("other")):
            answered(small, 5000)
        assert not await ask(limits, call("other", max_tokens=0)), "five times the quota is used"
        await limits.close()

    asyncio.run(check())


class Clock(SimpleNamespace):
    """A clock that is put forward by hand, that of Redis with it."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__(now=1_800_000_000.0, monotonic=time.monotonic, server=server)

    def time(self) -> float:
        return self.now

    def to(self, hours: float) -> None:
        """Put it forward, to so many hours after it began."""
        seconds = 1_800_000_000.0 + hours * 3600 - self.now
        self.now += seconds
        with redis.Redis.from_url(self.server.url) as client:
            for key in client.scan_iter():
                client.pexpire(key, client.pttl(key) - int(seconds * 1000))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("others", "settled", "looked", "room"),
    [
        (0, 0.5, 0.5, 19),  # 10 in this window
        (0, 1.2, 1.8, 19),  # a fifth of 10 in the one before
        (4, 2.5, 2.5, 18),  # its window is past; half of the 200 that others used in the one before
    ],
)
def test_a_reservation_is_given_back_to_the_window_that_it_was_taken_from(
    shared: bool,
    others: int,
    settled: float,
    looked: float,
    room: int,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "time", clock := Clock(redis_server))

    async def fit(limits: Limits, most: int) -> int:
        return [await ask(limits, call(max_tokens=29), tokens=50) for _ in range(most)].count(True)

    async def check() -> None:
        limits = limits_of({"per": "key", "tokens": "1000/hour"}, **({"store": redis_server.url} if shared else {}))
        async with limits.reserved(long := call(max_tokens=879)):
            if others:
                clock.to(1.5)
                assert await fit(limits, others) == others
            clock.to(settled)
            answered(long, 10)
        clock.to(looked)
        assert await fit(limits, 40) == room
        await limits.close()

    asyncio.run(check())


class Slow(Limits):
    """Limits whose store has counted for the second rule, and has not said so yet."""

    def __init__(self, config: LimitsConfig) -> None:
        super().__init__(config)
        self.asked, self.said = asyncio.Event(), asyncio.Event()

    async def _hit(self, rule: Rule, call: Call, cost: int) -> tuple[bool, bool]:
        found = await super()._hit(rule, call, cost)
        if rule.number == 1:
            self.asked.set()
            await self.said.wait()
        return found


@pytest.mark.parametrize("by", ["the client", "the server"])
def test_who_leaves_while_room_is_reserved_leaves_nothing_taken(by: str) -> None:
    async def check() -> None:
        rules = [{"per": "key", "tokens": "100/hour"}, {"per": "all", "tokens": "100/hour"}]
        limits, one = Slow(parse(LimitsConfig, {"rules": rules})), call()

        async def gone() -> Any:
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            pytest.fail("nobody is there")

        async def hold() -> None:
            async with limits.reserved(one):
                pytest.fail("nobody waits for it")

        task = asyncio.create_task(hold())
        await limits.asked.wait()
        if by == "the client":
            await _watch(gone, task, one, Outgoing(send))
        else:
            task.cancel()
        await asyncio.sleep(0)
        limits.said.set()
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
        if by == "the server":  # it did not hear what the second rule said, but knows the first
            limits.rules.pop()
        assert await ask(limits, call(max_tokens=79)), "all of it is there again"

    asyncio.run(check())


@pytest.mark.parametrize("what", [{"requests": "1/hour"}, {"tokens": "100/hour"}])
@pytest.mark.parametrize(
    ("per", "apart"),
    [
        ("key", [True, True, True, False, False]),
        ("subject", [True, True, False, False, False]),
        ("tenant", [True, True, False, False, False]),
        ("model", [True, False, False, True, False]),
        ("all", [True, False, False, False, False]),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_what_is_counted_apart(
    shared: bool, per: str, apart: list[bool], what: dict[str, str], redis_server: RedisServer
) -> None:
    def of(key: str, subject: str, model: str) -> Call:
        body = {"model": model, "messages": [{"role": "user", "content": "x" * 30}], "max_tokens": 50}
        return Call("id", read_ask(CHAT, orjson.dumps(body)), Identity(subject, subject, "user", key))

    async def check() -> None:
        limits = limits_of({"per": per, **what}, **({"store": redis_server.url} if shared else {}))
        asked = [("1", "ada", "m"), ("2", "bob", "m"), ("3", "ada", "m"), ("1", "ada", "n"), ("1", "ada", "m")]
        assert [await ask(limits, of(*one), tokens=60) for one in asked] == apart
        await limits.close()

    asyncio.run(check())


def test_many_at_once_cannot_reserve_more_than_there_is() -> None:
    async def check() -> None:
        limits, entered = limits_of({"per": "all", "tokens": "300/hour"}), asyncio.Event()

        async def hold(number: int) -> bool:
            try:
                async with limits.reserved(one := call(str(number))):
                    await entered.wait()
                    answered(one, 20)
            except RateLimited:
                return False
            return True

        tasks = [asyncio.create_task(hold(number)) for number in range(10)]
        await asyncio.sleep(0.05)
        entered.set()
        assert sum(await asyncio.gather(*tasks)) == 4

    asyncio.run(check())


def test_what_nobody_answered_costs_nothing() -> None:
    async def check() -> None:
        limits = limits_of({"per": "key", "requests": "2/hour"}, {"per": "key", "tokens": "100/hour"})
        for _ in range(5):
            with pytest.raises(RuntimeError):
                async with limits.reserved(call()):
                    raise RuntimeError
        assert await ask(limits, call())
        # A refusal by the second rule gives the first one's room back.
        assert not await ask(limits, call(max_tokens=5000))
        assert await ask(limits, call())
        assert not await ask(limits, call())

    asyncio.run(check())


def test_rules_for_some_roles_and_models_only() -> None:
    async def check() -> None:
        limits = limits_of({"per": "all", "requests": "1/hour", "roles": ["user"], "models": ["m"]})
        assert await ask(limits, call())
        assert not await ask(limits, call())
        assert not await ask(limits, call(model="m:adapter"))
        assert await ask(limits, call(role="admin"))
        assert await ask(limits, call(model="other"))

    asyncio.run(check())


def test_while_redis_is_away_each_gateway_counts_alone_or_refuses(redis_server: RedisServer) -> None:
    async def check() -> None:
        rule = {"per": "key", "requests": "2/hour"}
        local = limits_of(rule, store=redis_server.url)
        strict = limits_of(rule, store=redis_server.url, without_store="refuse")
        redis_server.stop()
        try:
            assert [await ask(local, call("away")) for _ in range(3)] == [True, True, False]
            assert local.away
            with pytest.raises(EnvironmentProblem):
                await ask(strict, call("away"))
        finally:
            redis_server.start()
        local._again = strict._again = 0.0
        assert [await ask(strict, call("away")) for _ in range(3)] == [True, True, False]
        assert not await ask(local, call("away")), "what others have counted holds again"
        assert not local.away
        await local.close()
        await strict.close()

    asyncio.run(check())


def test_a_client_over_its_limit_gets_429_and_when_to_come_back(start: Start) -> None:
    rules = [{"per": "key", "requests": "2/hour"}, {"per": "all", "tokens": "1000/hour"}]
    running = start({"m": mock()}, limits={"rules": rules})
    key = {"authorization": "Bearer a"}
    assert [running.chat("hi", headers=key, max_tokens=5).status_code for _ in range(3)] == [200, 200, 429]
    refused = running.chat("hi", headers=key)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.json()["error"]["type"] == "requests"
    other = {"authorization": "Bearer b"}
    assert running.chat("hi", headers=other, max_tokens=5).status_code == 200
    assert running.chat("hi", headers=other, max_tokens=5000).json()["error"]["type"] == "tokens"
    assert 'catena_gateway_refused_total{model="m",reason="ratelimited"} 3' in running.get("/metrics").text
