"""Jobs that outlive their gateway: leases and results in both databases, kills, several gateways, and governance."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from sqlalchemy import create_engine, text

from catena.core.config import parse
from catena.core.errors import EnvironmentProblem
from catena.govern.audit.reading import Query, entries
from catena.govern.config import AuditConfig, AuthConfig, GovernConfig, ModerationConfig
from catena.govern.keys import Keys
from catena.hub.store import Store
from catena.serve.gateway.app import Gateway
from catena.serve.gateway.config import DeployConfig
from catena.serve.governed import governed
from catena.serve.jobs.queue import Lost, Queue
from catena.serve.jobs.tables import Job, Result
from catena.serve.server import background
from tests.hub.conftest import postgres_url  # noqa: F401  a fixture

from .conftest import Running, Start, commands, eventually, mock
from .test_jobs import ENDPOINT, answered, chat_line, client_for, ended, jsonl, lines_of, submit  # noqa: F401
from .test_processes import up


@pytest.fixture
def database(postgres_url: str) -> str:  # noqa: F811
    """The URL of a new database."""
    name = f"t{uuid.uuid4().hex[:10]}"
    engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return postgres_url.removesuffix("/postgres") + f"/{name}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    return str(request.getfixturevalue("database"))


@pytest.fixture
def queues(url: str) -> Iterator[tuple[Queue, Queue]]:
    """The same queue, as two gateways have it."""
    pair = Queue(url), Queue(url)
    yield pair
    for one in pair:
        one.close()


def job(id: str, tenant: str = "ada", kind: Any = "batch", created: float = 1.0) -> Job:
    return Job(id, kind, tenant, "validating", created, time.time() + 60, ENDPOINT, "file-1", {}, {"total": 1})


def test_a_job_is_one_gateways_until_its_lease_ends(queues: tuple[Queue, Queue]) -> None:
    one, two = queues
    one.add(job("b1"), 5)
    held = one.claim("one", 0.3, (), batches=True)
    assert held is not None
    assert two.claim("two", 60, (), batches=True) is None
    one.add_results("b1", "one", [Result(1, True, "first", 3, 4)])
    assert one.beat("one", 0.3, ["b1"]) == {"b1": "validating"}
    time.sleep(0.35)
    taken = two.claim("two", 60, (), batches=True)
    assert taken is not None
    assert one.beat("one", 60, ["b1"]) == {}
    with pytest.raises(Lost):
        one.add_results("b1", "one", [Result(2, True, "late")])
    with pytest.raises(Lost):
        one.finish("b1", "one", lambda found: {"body": {}}, [])
    with pytest.raises(Lost):
        one.change("b1", lambda found: {"status": "failed"}, owner="one")
    two.add_results("b1", "two", [Result(1, True, "again", 3, 4), Result(2, False, "second")])
    assert two.done("b1") == {1, 2}
    assert list(two.lines_of("b1", good=True)) == ["first"]
    assert two.counts("b1") == (1, 1, 3, 4)
    two.release("two")
    assert one.claim("one", 60, (), batches=True) is not None


def test_only_what_is_worked_on_is_held_for_longer(queues: tuple[Queue, Queue]) -> None:
    one, two = queues
    for id in ("b1", "b2"):
        one.add(job(id), 5)
        assert one.claim("one", 0.3, (), batches=True)
    assert one.beat("one", 60, ["b1"]) == {"b1": "validating"}
    time.sleep(0.35)
    taken = two.claim("two", 60, (), batches=True)
    assert taken is not None
    assert taken.id == "b2"


def test_responses_come_first_and_tenants_take_turns(queues: tuple[Queue, Queue]) -> None:
    queue, _ = queues
    for id, tenant, kind in (("a1", "ada", "batch"), ("a2", "ada", "batch"), ("b1", "bob", "batch")):
        queue.add(job(id, tenant, kind, created=float(len(id) + ord(id[1]))), 5)
    queue.add(job("r1", "bob", "response", created=99.0), 5)
    taken = [queue.claim("me", 60, busy, batches=True) for busy in ((), (), ("ada",), ("ada", "bob"))]
    assert [one.id if one else "" for one in taken] == ["r1", "a1", "b1", "a2"]
    assert queue.claim("me", 60, (), batches=True) is None
    assert not queue.add(job("a3"), 2)


def test_a_killed_gateway_goes_on_and_no_result_comes_twice(tmp_path: Path) -> None:
    config = {"jobs": {"lease_s": 1.0, "poll_s": 0.2, "concurrency": 3}}
    models = {"m": mock("--delay", "0.05", min=1)}
    lines = [chat_line(f"r{number}", f"question {number}") for number in range(60)]

    def client_of(url: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{url}/v1", api_key="ada", max_retries=0, timeout=60)

    with up(tmp_path, models, **config) as (process, url), client_of(url) as client:
        batch = submit(client, jsonl(*lines))
        answer = client.responses.create(model="m", input="sleep 2 please", background=True)
        eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed > 10)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
    with up(tmp_path, models, **config) as (_, url), client_of(url) as client:
        assert client.batches.retrieve(batch.id).request_counts.completed > 10
        done = ended(client, batch.id)
        assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 60, 0)
        found = lines_of(client, done.output_file_id)
        assert [one["custom_id"] for one in found] == [f"r{number}" for number in range(60)]
        assert len({one["id"] for one in found}) == 60
        assert answered(client, answer.id).status == "completed"


def test_two_gateways_share_a_queue_in_postgresql(start: Start, client_for: Any, database: str, tmp_path: Path) -> None:  # noqa: F811
    jobs = {"store": database, "files": str(tmp_path / "shared"), "poll_s": 0.1, "batches": 1}
    first, second = (start({"m": mock("--delay", "0.02")}, jobs=jobs) for _ in range(2))
    here, there = client_for(first), client_for(second)
    batches = [submit(here, jsonl(*(chat_line(f"r{n}", f"b{at} q{n}") for n in range(15)))).id for at in range(4)]
    for id in batches:
        done = ended(there, id)
        assert done.request_counts.completed == 15
        assert len(lines_of(there, done.output_file_id)) == 15
    told = [len(one.seen()) for one in (first, second)]
    assert sum(told) == 60
    assert min(told) > 0


def test_a_job_that_failed_once_is_tried_again_by_the_same_gateway(
    start: Start,
    client_for: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change, failed = Queue.change, [False]

    def once_away(queue: Queue, id: str, how: Any, *, owner: str | None = None) -> Job | None:
        if owner and not failed[0]:
            failed[0] = True
            raise EnvironmentProblem("the database did not answer")
        return change(queue, id, how, owner=owner)

    monkeypatch.setattr(Queue, "change", once_away)
    client = client_for(start(jobs={"lease_s": 0.6, "poll_s": 0.1}))
    answer = client.responses.create(model="m", input="hi", background=True)
    assert answered(client, answer.id).status == "completed"
    assert failed == [True]


def test_what_is_taken_while_a_beat_is_under_way_is_not_lost(
    start: Start,
    client_for: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = start(jobs={"lease_s": 3, "poll_s": 0.1})
    client, looked, armed = client_for(running), threading.Event(), threading.Event()
    beat = Queue.beat

    def slow(queue: Queue, *given: Any) -> dict[str, str]:
        found = beat(queue, *given)
        if armed.is_set():  # it has looked; what it found comes when two more jobs have been taken
            armed.clear()
            looked.set()
            eventually(lambda: running.gateway.pools["m"].running >= 3)
        return found

    monkeypatch.setattr(Queue, "beat", slow)
    first = client.responses.create(model="m", input="sleep 3", background=True)
    eventually(lambda: running.gateway.pools["m"].running)
    armed.set()
    assert looked.wait(30)
    second = client.responses.create(model="m", input="sleep 1.5", background=True)
    batch = submit(client, jsonl(*(chat_line(f"r{number}", "sleep 0.5") for number in range(10))))
    assert ended(client, batch.id).status == "completed"
    assert [answered(client, one.id).status for one in (first, second)] == ["completed"] * 2


def test_a_batch_goes_on_when_the_time_of_its_file_is_over(start: Start, client_for: Any, tmp_path: Path) -> None:  # noqa: F811
    running = start(jobs={"batches": 1})
    client, jobs = client_for(running), running.gateway.jobs
    assert jobs is not None
    slow = submit(client, jsonl(*(chat_line(f"s{number}", "sleep 0.5") for number in range(12))))
    upload = {"file": ("in.jsonl", jsonl(chat_line("a", "hi"))), "purpose": "batch"}
    file = client.files.create(**upload, expires_after={"anchor": "created_at", "seconds": 3600})
    batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    engine = create_engine(f"sqlite:///{tmp_path / 'state' / 'jobs.db'}")
    with engine.begin() as connection:
        connection.execute(text("UPDATE job_files SET expires = 1 WHERE id = :id"), {"id": file.id})
    engine.dispose()
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    jobs.files.sweep()
    assert ended(client, slow.id).status == "completed"
    done = ended(client, batch.id)
    assert (done.status, done.request_counts.completed) == ("completed", 1)
    jobs.files.sweep()
    assert file.id not in [row.id for row in jobs.queue.all_files()]


GOVERN = GovernConfig(auth=AuthConfig(on=True), audit=AuditConfig(on=True), moderation=ModerationConfig(on=True))


def test_jobs_are_governed_as_live_requests_are(store: Store, tmp_path: Path, client_for: Any) -> None:  # noqa: F811
    keys = Keys(store.index)
    ada, record = keys.create("ada", "user", models=("m",))
    bob = keys.create("bob", "user")[0]
    narrow = keys.create("carl", "user", actions=("infer",))[0]
    deploy = parse(DeployConfig, {"port": 0, "models": {"m": mock(), "other": mock()}, "govern": GOVERN})
    with governed(store, GOVERN, deploy.http) as middleware:
        gateway = Gateway(deploy, state=tmp_path / "state", commands=commands, middleware=middleware)
        with background(gateway, beside=gateway.running(), config=deploy.http) as url:
            running = Running(url, gateway, httpx.Client(timeout=60, trust_env=False))
            running.ready(1)
            running.ready(1, "other")
            _governed(running, client_for, (ada, bob, narrow), lambda: keys.revoke(record.id))
            running.client.close()
    told = list(entries(store.root, GOVERN.audit, Query(kind="answer")))
    inside = [one for one in told if one["client"] == "job" and one["subject"] == "ada"]
    assert {one["status"] for one in inside} == {200, 400, 401, 403}
    assert sum("moderation" in [each["by"] for each in one["decisions"]] for one in inside) == 2
    assert {one["key"] for one in inside if one["status"] == 200} == {record.id}


def _governed(running: Running, client_for: Any, keys: tuple[str, str, str], revoke: Any) -> None:  # noqa: F811
    ada, bob, narrow = (client_for(running, key) for key in keys)
    with pytest.raises(openai.AuthenticationError):
        client_for(running, "nobody").files.list()
    with pytest.raises(openai.PermissionDeniedError):
        narrow.files.list()
    with pytest.raises(openai.PermissionDeniedError):
        narrow.responses.create(model="m", input="hi", background=True)
    lines = [chat_line("good", "hello"), chat_line("bad", "you sh1t"), chat_line("far", "hello", model="other")]
    lines.append(chat_line("mail", "I am ada@corp.net"))
    done = ended(ada, submit(ada, jsonl(*lines)).id)
    good, bad = lines_of(ada, done.output_file_id), lines_of(ada, done.error_file_id)
    assert [one["custom_id"] for one in good] == ["good", "mail"]
    assert good[1]["response"]["body"]["choices"][0]["message"]["content"] == "you said I am [EMAIL] to mock"
    codes = [one["response"]["body"]["error"]["code"] for one in bad]
    assert codes == ["content_filter", "model_not_allowed"]
    with pytest.raises(openai.NotFoundError):
        bob.batches.retrieve(done.id)
    with pytest.raises(openai.BadRequestError):
        ada.responses.create(model="m", input="you sh1t", background=True)
    slow = submit(ada, jsonl(*(chat_line(f"r{n}", f"sleep 0.3 {n}") for n in range(30))))
    eventually(lambda: ada.batches.retrieve(slow.id).request_counts.completed > 0)
    revoke()  # what is left of the batch is refused, as a live request is
    jobs = running.gateway.jobs
    assert jobs is not None
    last = eventually(lambda: found if (found := jobs.queue.get(slow.id)) and found.status == "completed" else None)
    assert last.body["counts"][1] > 0
    told = list(jobs.files.lines(jobs.queue.file(last.body["error_file_id"], "ada")))
    assert json.loads(told[-1])["response"]["status_code"] == 401


def test_a_queue_closes_when_what_is_under_way_has_ended(url: str) -> None:
    queue = Queue(url)
    order: list[str] = []

    def close() -> None:
        queue.close()
        order.append("closed")

    with queue._write():
        closing = threading.Thread(target=close)
        closing.start()
        time.sleep(0.1)
        order.append("ended")
    closing.join(30)
    assert order == ["ended", "closed"]
