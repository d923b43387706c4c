"""Rates and quotas, in memory and in a real Redis that goes away and comes back."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from catena.core.config import parse
from catena.core.errors import EnvironmentProblem
from catena.serve.gateway.ask import read_ask
from catena.serve.gateway.call import Call
from catena.serve.gateway.config import LimitsConfig
from catena.serve.gateway.identity import Identity
from catena.serve.gateway.limits import Limits
from catena.serve.gateway.refusals import RateLimited

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
