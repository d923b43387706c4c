"""Redis and PostgreSQL stopped and started under load: what is documented happens, nothing is lost or done twice."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from catena.core.config import parse
from catena.core.errors import EnvironmentProblem
from catena.govern.audit.reading import Query, entries
from catena.govern.audit.verify import verify
from catena.govern.config import AuditConfig, AuthConfig, GovernConfig
from catena.govern.keys import Keys
from catena.hub.store import Store
from catena.serve.gateway.app import Gateway
from catena.serve.gateway.config import DeployConfig
from catena.serve.governed import governed
from catena.serve.server import background

from .conftest import Running, commands, eventually, mock
from .postgres import PostgresServer, postgres_running
from .redis import RedisServer

CONFIG = GovernConfig(auth=AuthConfig(on=True, refresh_s=0.2), audit=AuditConfig(on=True))


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_running() as server:
        yield server


Serve = Callable[..., Running]


@pytest.fixture
def serve(shared: Store, redis_server: RedisServer, tmp_path: Path) -> Iterator[Serve]:
    """Return a function that starts a governed gateway with limits and cache in Redis, over two replicas."""
    with ExitStack() as stack:

        def start(**limits: Any) -> Running:
            rule = {"per": "key", "requests": "100000/hour"}
            values = {
                "port": 0,
                "models": {"m": mock("--digest", "d1", min=2)},
                "limits": {
                    "store": redis_server.url,
                    "rules": [rule, {"per": "key", "tokens": "90000000/hour"}],
                    **limits,
                },
                "cache": {"store": redis_server.url},
            }
            deploy = parse(DeployConfig, values)
            middleware = stack.enter_context(governed(shared, CONFIG, deploy.http))
            gateway = Gateway(deploy, state=tmp_path / "state", commands=commands, middleware=middleware)
            url = stack.enter_context(background(gateway, beside=gateway.running(), config=deploy.http))
            running = Running(url, gateway, httpx.Client(timeout=60, trust_env=False))
            stack.callback(running.client.close)
            running.ready(2)
            return running

        yield start


class Load:
    """People who ask without a pause, each question once."""

    def __init__(self, running: Running, key: str, people: int = 3) -> None:
        self._running, self._head = running, {"authorization": f"Bearer {key}"}
        self._ended = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.asked: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(one,)) for one in range(people)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(120)

    def _ask(self, person: int) -> None:
        number = 0
        with httpx.Client(timeout=60, trust_env=False, headers=self._head) as client:
            while not self._ended.is_set():
                number += 1
                text = f"question {number} of {person}"
                body = {"model": "m", "messages": [{"role": "user", "content": text}], "temperature": 0}
                answer = client.post(f"{self._running.url}/v1/chat/completions", json=body)
                self.statuses[answer.status_code] += 1
                self.asked.append(text)
                if answer.status_code != 200:
                    time.sleep(0.02)

    def more(self, count: int = 15) -> None:
        """Wait until so many more were asked."""
        until = len(self.asked) + count
        eventually(lambda: len(self.asked) >= until)


def text_of(entry: dict[str, Any]) -> str:
    return str(entry["body"]["messages"][-1]["content"])


def test_nothing_is_lost_and_nothing_done_twice_while_they_are_away(
    serve: Serve, shared: Store, postgres: PostgresServer, redis_server: RedisServer
) -> None:
    keys = Keys(shared.index)
    key = keys.create("ada", "user")[0]
    running = serve()
    with Load(running, key) as load:
        load.more()
        redis_server.stop()
        load.more()
        postgres.stop()
        load.more()
        redis_server.start()
        load.more()
        postgres.start()
        load.more()
    assert load.statuses == {200: len(load.asked)}
    # Each question has been asked of one replica, once, and is in the audit with its answer, once.
    seen = Counter(str(one["body"]["messages"][-1]["content"]) for one in running.seen())
    assert seen == dict.fromkeys(load.asked, 1)
    told = list(entries(shared.root, CONFIG.audit, Query(subject="ada")))
    requests = {one["id"]: text_of(one) for one in told if one["kind"] == "request"}
    assert Counter(requests.values()) == dict.fromkeys(load.asked, 1)
    assert Counter(one["id"] for one in told if one["kind"] == "answer") == dict.fromkeys(requests, 1)
    assert verify(shared.root, CONFIG.audit, deep=True).sound
    # And afterwards all is as before: a key that is revoked opens no more, Redis counts and keeps answers.
    keys.revoke("ada")
    head = {"authorization": f"Bearer {key}"}
    eventually(lambda: running.chat("hello", headers=head).status_code == 401)
    other = {"authorization": f"Bearer {keys.create('bob', 'user')[0]}"}
    eventually(lambda: running.chat("hello", headers=other, temperature=0).status_code == 200)
    eventually(lambda: running.chat("hello", headers=other, temperature=0).headers.get("x-catena-cache") == "exact")
    assert not running.gateway.limits.away


def test_who_counts_strictly_refuses_while_redis_is_away_and_says_when_to_come_back(
    serve: Serve, shared: Store, redis_server: RedisServer
) -> None:
    key = Keys(shared.index).create("eve", "developer")[0]
    running = serve(without_store="refuse")
    with Load(running, key) as load:
        load.more()
        redis_server.stop()
        eventually(lambda: load.statuses[503] >= 3)
        head = {"authorization": f"Bearer {key}"}
        assert running.chat("hello", headers=head).headers["retry-after"]
        redis_server.start()
        before = load.statuses[200]
        eventually(lambda: load.statuses[200] > before + 5)
    assert set(load.statuses) == {200, 503}
    answered = sum(1 for one in entries(shared.root, CONFIG.audit, Query(subject="eve", kind="answer")))
    assert answered == len(load.asked) + 1
    # What was answered is told as answered, also where Redis went between question and answer.
    metrics = running.get("/metrics", head).text
    assert f'status="200"}} {load.statuses[200]}' in metrics


def test_keys_open_over_a_restart_without_the_database(shared: Store, postgres: PostgresServer) -> None:
    key = Keys(shared.index).create("grace", "user")[0]
    with governed(shared, CONFIG, parse(DeployConfig, {"models": {"m": mock()}}).http):
        pass
    postgres.stop()
    try:
        deploy = parse(DeployConfig, {"port": 0, "models": {"m": mock()}})
        with governed(shared, CONFIG, deploy.http) as middleware:
            gateway = Gateway(deploy, state=shared.root / "state", commands=commands, middleware=middleware)
            with background(gateway, beside=gateway.running(), config=deploy.http) as url:
                running = Running(url, gateway)
                running.ready(1)
                assert running.chat("hello", headers={"authorization": f"Bearer {key}"}).status_code == 200
                assert running.chat("hello", headers={"authorization": "Bearer ctn_x"}).status_code == 401
                running.client.close()
        with pytest.raises(EnvironmentProblem):
            Keys(shared.index).all()
    finally:
        postgres.start()
    assert [one.name for one in Keys(shared.index).all() if one.name == "grace"] == ["grace"]
