"""Clients that leave, too many at once, an engine that dies: what becomes of everybody's requests."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import openai
import pytest

from catena.infer.engine import Engine
from catena.serve.app import build_app
from catena.serve.server import background

from .asking import ASK, before_each_step, eventually, head, post


def test_a_client_that_goes_away_frees_its_place(
    engine_of: Callable[..., Engine], client_of: Callable[[str], openai.OpenAI]
) -> None:
    engine = engine_of()
    before_each_step(engine, lambda: time.sleep(0.01))
    with background(build_app({"tiny": engine})) as url:
        stream = client_of(url).chat.completions.create(**ASK, max_tokens=200, seed=3, stream=True)
        next(iter(stream))
        stream.close()
        eventually(lambda: engine.stats()["running"] + engine.stats()["waiting"] == 0)
        assert engine.stats()["cache_blocks_used"] == 0
        assert engine.stats()["cancelled_total"] == 1
        assert engine.stats()["generated_tokens_total"] < 200
        lines = httpx.get(f"{url}/metrics").text.splitlines()
    assert 'catena_requests_total{route="chat",model="tiny",status="499"} 1' in lines


def test_a_client_that_goes_away_while_it_waits_frees_its_place(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    gate = threading.Event()
    before_each_step(engine, lambda: gate.wait(20))
    with background(build_app({"tiny": engine})) as url:
        parts = urlsplit(url)
        body = json.dumps({**ASK, "max_tokens": 200}).encode()
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(head(parts.netloc, len(body)) + body)
            eventually(lambda: engine.stats()["running"] == 1)
        time.sleep(0.1)
        gate.set()
        eventually(lambda: engine.stats()["running"] + engine.stats()["waiting"] == 0)
    assert engine.stats()["cancelled_total"] == 1
    assert engine.stats()["generated_tokens_total"] < 100


def test_overload_answers_503_with_retry_after_and_leaks_nothing(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(max_running=1, max_waiting=1)
    gate = threading.Event()
    before_each_step(engine, lambda: gate.wait(20))
    with background(build_app({"tiny": engine})) as url:
        responses: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: responses.append(post(url, {**ASK, "max_tokens": 3}))) for _ in "12"]
        for thread in threads:
            thread.start()
        eventually(lambda: engine.stats()["running"] + engine.stats()["waiting"] == 2)
        refused = post(url, {**ASK, "max_tokens": 3})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "server_error"
        # Three choices do not fit either; those already taken are given back.
        assert post(url, {**ASK, "n": 3}).status_code == 503
        gate.set()
        for thread in threads:
            thread.join()
    assert [response.status_code for response in responses] == [200, 200]
    assert engine.stats()["cache_blocks_used"] == engine.stats()["running"] == engine.stats()["waiting"] == 0


def test_many_clients_at_once_get_what_each_would_get_alone(url: str, client: openai.OpenAI) -> None:
    def ask(number: int) -> str | None:
        messages: list[Any] = [{"role": "user", "content": f"question {number}"}]
        answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=12)
        return answer.choices[0].message.content

    alone = [ask(number) for number in range(12)]
    together: list[str | None] = [None] * 12

    def put(number: int) -> None:
        together[number] = ask(number)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_an_engine_that_dies_fails_its_requests_and_the_health_check(
    engine_of: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of()
    steps = iter([1, 1, 1, 1])
    before_each_step(engine, lambda: 1 / next(steps, 0))
    with background(build_app({"tiny": engine})) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        with httpx.stream("POST", f"{url}/v1/chat/completions", json={**ASK, "stream": True}, timeout=30) as response:
            events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
        assert "error" in events[-1]
        assert "ZeroDivision" not in json.dumps(events)
        assert post(url, ASK).status_code == 503
        assert httpx.get(f"{url}/health").json() == {"status": "failed", "models": {"tiny": False}}
        assert httpx.get(f"{url}/health").status_code == 503


def test_an_unexpected_error_is_500_without_its_details(
    engine_of: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of()

    def fail(request: Any, on_delta: Any) -> None:
        raise KeyError("a secret")

    engine.submit = fail  # type: ignore[method-assign]
    with background(build_app({"tiny": engine})) as url:
        response = post(url, ASK)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["type"] == "server_error"
