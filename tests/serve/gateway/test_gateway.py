"""The gateway over real processes: answers, streams, replicas that die, requests that kill, drain, overload."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from catena.core.config import parse
from catena.serve.gateway.app import Gateway
from catena.serve.gateway.config import DeployConfig
from catena.serve.gateway.poison import fingerprint

from .conftest import REPLICA, Running, Start, commands, eventually, mock


def say(stream: str) -> str:
    """The text of a stream of chat events."""
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events if "choices" in event)


def test_the_official_client_gets_answers_and_streams(start: Start) -> None:
    running = start()
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="k", max_retries=0) as client:
        asked: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        assert client.chat.completions.create(**asked).choices[0].message.content == "you said hi to mock"
        pieces = [
            chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)
        ]
        assert "".join(pieces) == "you said hi to mock"
        assert [model.id for model in client.models.list()] == ["m"]
        with pytest.raises(openai.NotFoundError, match="Did you mean 'm'"):
            client.chat.completions.create(**{**asked, "model": "mm"})


def test_the_replicas_name_of_a_model_and_no_key_go_upstream(start: Start) -> None:
    running = start()
    answer = running.chat("hi", headers={"authorization": "Bearer secret", "x-request-id": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    (entry,) = running.seen()
    assert entry["body"]["model"] == "mock"
    assert entry["headers"]["x-request-id"] == "mine"
    assert "secret" not in str(entry)


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_likes_to_compress_is_asked_not_to(start: Start, stream: bool) -> None:
    running = start({"m": mock("--compress")})
    answer = running.chat("hi", stream=stream)
    assert "you said hi to mock" in (say(answer.text) if stream else answer.text)
    assert "content-encoding" not in answer.headers
    assert running.get("/metrics").text.count("catena_engine_running") >= 1
    assert "gzip" not in json.dumps([one["headers"] for one in running.seen()])


def test_a_bad_body_is_refused_here(start: Start) -> None:
    running = start()
    url = f"{running.url}/v1/chat/completions"
    for body, status in [(b"{", 400), (b"[]", 400), (b"{}", 400), (b'{"model": 3}', 400)]:
        assert (
            running.client.post(url, content=body, headers={"content-type": "application/json"}).status_code == status
        )
    assert running.client.post(url, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    long = running.client.post(url, json={"model": "m", "prompt": "x" * (2 << 20)})
    assert long.status_code == 413
    assert running.client.get(url).status_code == 405
    assert running.get("/nowhere").status_code == 404


def test_what_a_replica_refuses_is_passed_on(start: Start) -> None:
    running = start()
    answer = running.chat("status 422")
    assert (answer.status_code, answer.json()["error"]["message"]) == (422, "as you wish")
    assert len(running.seen()) == 1


def test_a_replica_that_dies_costs_no_request(start: Start) -> None:
    running = start({"m": mock("--delay", "0.2", min=2)})
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(running.chat, f"question {number}", stream=number % 2 == 0) for number in range(16)]
        victim = running.gateway.pools["m"].ready()[0]
        slot = running.gateway.pools["m"].slots[victim.id]
        assert slot.child is not None
        eventually(lambda: victim.running)
        os.kill(slot.child.pid, signal.SIGKILL)
        assert [answer.result().status_code for answer in answers] == [200] * 16
    running.ready(2)
    assert slot.restarts == 1


def test_a_stream_is_begun_again_elsewhere_until_its_first_token_and_not_after(start: Start) -> None:
    running = start({"m": mock("--hello-s", "0.5", min=2)})
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        answer = threads.submit(running.events, "hi")
        busy = eventually(lambda: [one for one in running.gateway.pools["m"].ready() if one.running])[0]
        child = running.gateway.pools["m"].slots[busy.id].child
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)
        text = answer.result()
    assert say(text) == "you said hi to mock"
    assert text.count('"role"') == 1
    cut = running.events("please cut here now")
    assert say(cut) == "you said "
    assert "replica_ended" in cut


def test_a_request_that_kills_two_replicas_gets_no_third(start: Start) -> None:
    running = start({"m": mock(min=3)})
    answer = running.chat("die")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "request_ends_replicas")
    assert running.gateway.pools["m"].deaths <= 2
    assert running.chat("die").status_code == 422
    running.ready(3)
    assert running.gateway.pools["m"].deaths == 2
    assert running.chat("hi").status_code == 200


def test_who_was_beside_a_killer_is_served(start: Start) -> None:
    running = start({"m": mock("--delay", "0.3", min=2, in_flight=16)})
    with concurrent.futures.ThreadPoolExecutor(9) as threads:
        good = [threads.submit(running.chat, f"good {number}") for number in range(8)]
        eventually(lambda: running.gateway.pools["m"].running >= 8)
        bad = threads.submit(running.chat, "die")
        assert bad.result().status_code == 422
        assert [one.result().status_code for one in good] == [200] * 8


def test_a_suspect_does_not_keep_the_only_replica_from_everybody_nor_from_itself(start: Start) -> None:
    running = start({"m": mock(in_flight=16)}, routing={"queue_s": 3})
    pool = running.gateway.pools["m"]
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "am I bad?"}]}).encode()

    def suspected(**more: Any) -> httpx.Response:
        pool.poison.died([fingerprint("m", body)], time.monotonic())
        head = {"content-type": "application/json"}
        return running.client.post(f"{running.url}/v1/chat/completions", content=body, headers=head, **more)

    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        long = threads.submit(running.chat, "sleep 6")
        eventually(lambda: pool.running)
        assert suspected().status_code == 200, "it waits to be alone, and then shares"
        with pytest.raises(httpx.TimeoutException):
            suspected(timeout=0.5)
        assert running.chat("hi").status_code == 200
        assert not long.done()
        assert long.result().status_code == 200


def test_replicas_that_fail_are_left_alone(start: Start) -> None:
    breaker = {"least": 3, "open_s": 60, "errors": 0.5}
    running = start({"m": mock(min=2)}, breaker=breaker, routing={"attempts": 1, "queue_s": 0.5})
    statuses = [running.chat("status 500").status_code for _ in range(12)]
    assert 502 in statuses
    assert statuses[-1] == 503
    assert "catena_gateway_breaker_open" in running.get("/metrics").text


def test_too_many_wait_in_line_and_the_next_is_told_when_to_come_back(start: Start) -> None:
    running = start({"m": mock("--delay", "0.5", in_flight=1)}, routing={"queue": 2, "queue_s": 30})
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        answers = [one.result() for one in [threads.submit(running.chat, "hi") for _ in range(8)]]
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 3 + [503] * 5
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert int(refused.headers["retry-after"]) >= 1


def test_a_client_that_leaves_frees_its_place(start: Start) -> None:
    running = start({"m": mock(in_flight=1)})
    with pytest.raises(Exception, match="timed out"):
        running.client.post(f"{running.url}/v1/completions", json={"model": "m", "prompt": "hang"}, timeout=0.5)
    eventually(lambda: running.gateway.pools["m"].running == 0)
    assert running.chat("hi").status_code == 200
    assert 'status="499"' in running.get("/metrics").text


def test_a_replica_that_does_not_answer_health_is_replaced(start: Start) -> None:
    running = start({"m": mock(health_failures=2)})
    before = running.replicas()[0]["pid"]
    running.chat("sick")
    eventually(lambda: running.gateway.pools["m"].deaths == 1)
    running.ready(1)
    assert running.replicas()[0]["pid"] != before


def test_no_request_is_given_out_before_the_first_of_our_own(start: Start) -> None:
    running = start()
    (first, *_) = running.replicas()[0]["seen"]
    assert first["body"] == {"model": "mock", "prompt": "Hello", "max_tokens": 1}


def test_more_requests_get_more_replicas_and_fewer_get_fewer(start: Start) -> None:
    scaling = {"queue": 2, "up_s": 0, "down_s": 2}
    running = start({"m": mock("--delay", "0.3", min=1, max=3, scaling=scaling)})
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            assert running.chat("hi").status_code == 200

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    running.ready(3)
    stop.set()
    for thread in threads:
        thread.join()
    eventually(lambda: len(running.gateway.pools["m"].slots) == 1)


def test_a_replica_that_goes_finishes_what_it_has(start: Start) -> None:
    running = start({"m": mock("--delay", "0.6", min=2, max=2)})
    pool = running.gateway.pools["m"]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(running.chat, f"hi {number}") for number in range(4)]
        eventually(lambda: all(one.running for one in pool.ready()))
        for slot in list(pool.slots.values())[:1]:
            pool.release(slot)
        assert [answer.result().status_code for answer in answers] == [200] * 4
    eventually(lambda: len(pool.slots) == 1)


def test_readiness_and_models_and_metrics(start: Start) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    running = start()
    running.chat("hi")
    running.events('a "quoted" name')
    assert running.get("/health").json() == {"status": "ok", "models": {"m": 1}}
    told = running.get("/ready")
    assert (told.status_code, told.json()["ready"]) == (200, True)
    assert running.get("/v1/models/m").json()["id"] == "m"
    assert running.get("/v1/models/x").status_code == 404
    families = {family.name: family for family in text_string_to_metric_families(running.get("/metrics").text)}
    assert {"catena_gateway_requests", "catena_gateway_request_seconds", "catena_engine_running"} <= set(families)
    counted = {sample.labels["status"]: sample.value for sample in families["catena_gateway_requests"].samples}
    assert counted["200"] == 2
    assert families["catena_engine_running"].samples[0].labels == {"replica": "m-1", "model": "m"}


def test_other_peoples_servers_are_replicas_too(start: Start) -> None:
    first = start()
    urls = [one.url for one in first.gateway.pools["m"].ready()]
    second = start({"far": {"urls": [*urls, "http://127.0.0.1:9"], "served": "mock", "replicas": {"health_s": 0.3}}})
    eventually(lambda: second.gateway.pools["far"].ready())
    assert second.chat("hi", "far").json()["choices"][0]["message"]["content"] == "you said hi to mock"
    port = urls[0].rsplit(":", 1)[1]
    third = start({"name": {"dns": f"http://localhost:{port}", "served": "mock", "replicas": {"health_s": 0.3}}})
    eventually(lambda: third.gateway.pools["name"].ready())
    assert third.chat("hi", "name").status_code == 200


def test_prompts_with_one_beginning_go_to_one_replica(start: Start) -> None:
    running: Running = start({"m": mock(min=3)})
    for number in range(12):
        assert running.chat("a long beginning " * 40 + str(number)).status_code == 200
    assert sorted(len(one["seen"]) - 1 for one in running.replicas()) == [0, 0, 12]


def test_a_gateway_that_ends_before_its_model_is_ready_leaves_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow = {"script": [REPLICA, "--start-s", "30"], "replicas": {"min": 1}}

    async def begin_and_end() -> None:
        gateway = Gateway(
            parse(DeployConfig, {"models": {"m": slow, "n": slow}}), state=tmp_path / "state", commands=commands
        )
        async with gateway.running():
            await asyncio.sleep(0.1)
            assert not gateway.pools["m"].ready()

    asyncio.run(begin_and_end())
    gc.collect()  # what nobody asked for its outcome says so when it goes
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []
