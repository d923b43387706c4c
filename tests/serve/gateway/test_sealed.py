"""What a governed gateway keeps outside the audit (answers, jobs, files): nobody reads it from the disk, and an erasure
reaches it.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx2 as httpx
import pytest
import redis

from catena.core.config import parse
from catena.govern.audit.forget import erase
from catena.govern.audit.log import Log
from catena.govern.compliance import Line, collect
from catena.govern.compliance_kept import remember
from catena.govern.config import AuditConfig, AuthConfig, GovernConfig
from catena.govern.keys import Keys
from catena.hub.store import Store
from catena.serve.gateway.app import Gateway
from catena.serve.gateway.config import DeployConfig
from catena.serve.governed import governed, sealer_of
from catena.serve.server import background

from .conftest import Running, commands, eventually, mock
from .redis import RedisServer

PLANTED = "the crimson heron nests behind the lighthouse"
CHINESE = "绯红的苍鹭在灯塔后面筑巢"
GOVERN = GovernConfig(auth=AuthConfig(on=True), audit=AuditConfig(on=True))
OPEN = GovernConfig()
Made = Callable[..., Running]


@pytest.fixture
def deployed(store: Store) -> Iterator[Made]:
    """Return a function that starts a gateway on the workspace, governed or not."""
    with ExitStack() as outer:

        def make(govern: GovernConfig = GOVERN, **more: Any) -> Running:
            models = {"m": mock("--digest", "d1"), "e": mock("--model", "e")}
            deploy = parse(DeployConfig, {"port": 0, "models": models, "telemetry": {"gpus": False}, **more})
            stack = outer.enter_context(ExitStack())
            middleware = stack.enter_context(governed(store, govern, deploy.http))
            gateway = Gateway(
                deploy,
                state=store.root / "gateway",
                commands=commands,
                middleware=middleware,
                sealer=sealer_of(store, govern),
            )
            url = stack.enter_context(background(gateway, beside=gateway.running(), config=deploy.http))
            running = Running(url, gateway, stop=stack.close)
            stack.callback(running.client.close)
            for name in models:
                running.ready(1, name)
            return running

        yield make


def head_of(store: Store, name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {Keys(store.index).create(name, 'user')[0]}"}


def lying(store: Store, *texts: str) -> list[str]:
    """The files of the workspace that hold one of these texts as it is."""
    wanted = [form for text in texts for form in (text.encode(), json.dumps(text)[1:-1].encode())]
    return [
        str(path.relative_to(store.root))
        for path in store.root.rglob("*")
        if path.is_file() and any(text in path.read_bytes() for text in wanted)
    ]


def kept_line(store: Store) -> Line:
    """What the compliance report says of what is kept."""
    return next(line for line in collect(store, GOVERN).lines if line.id == "kept-sealed")


def submitted(running: Running, head: dict[str, str], *texts: str) -> str:
    """Give a batch with these questions; returns its id."""
    lines = [
        {
            "custom_id": f"q{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": [{"role": "user", "content": text}]},
        }
        for number, text in enumerate(texts)
    ]
    data = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode()
    form = {"files": {"file": ("questions.jsonl", data)}, "data": {"purpose": "batch"}, "headers": head}
    file = running.client.post(f"{running.url}/v1/files", **form).json()
    assert "id" in file, file
    assert running.get(f"/v1/files/{file['id']}/content", head).content == data
    assert file["bytes"] == len(data)
    body = {
        "input_file_id": file["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"about": PLANTED},
    }
    return str(running.client.post(f"{running.url}/v1/batches", json=body, headers=head).json()["id"])


def ended(running: Running, head: dict[str, str], id: str) -> dict[str, Any]:
    def done() -> Any:
        found = running.get(f"/v1/batches/{id}", head).json()
        return found if found["status"] in ("completed", "failed", "expired") else None

    found: dict[str, Any] = eventually(done)
    return found


def background_response(running: Running, head: dict[str, str], text: str) -> dict[str, Any]:
    body = {"model": "m", "input": text, "background": True}
    asked = running.client.post(f"{running.url}/v1/responses", json=body, headers=head).json()

    def done() -> Any:
        found = running.get(f"/v1/responses/{asked['id']}", head).json()
        return found if found["status"] not in ("queued", "in_progress") else None

    found: dict[str, Any] = eventually(done)
    return found


def erased(store: Store, subject: str) -> None:
    """What `catena audit erase` does, in a process of its own."""
    with Log(store.root, GOVERN.audit) as log:
        erase(log, subject, reason="asked", by="test")


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_no_word_of_jobs_files_and_answers_lies_on_the_disk_in_clear(
    kind: str, deployed: Made, store: Store, redis_server: RedisServer
) -> None:
    cache = {"store": redis_server.url if kind == "redis" else kind, "semantic": {"model": "e"}}
    head, running = head_of(store, "ada"), deployed(cache=cache)
    running.chat(PLANTED, headers=head, temperature=0)
    again = eventually(lambda: _cached(running.chat(PLANTED, headers=head, temperature=0)))
    assert PLANTED in again.json()["choices"][0]["message"]["content"]
    batch = ended(running, head, submitted(running, head, PLANTED, CHINESE))
    assert (batch["status"], batch["metadata"]) == ("completed", {"about": PLANTED})
    answers = running.get(f"/v1/files/{batch['output_file_id']}/content", head).text
    assert PLANTED in answers
    assert CHINESE in answers
    assert PLANTED in json.dumps(background_response(running, head, PLANTED))
    assert lying(store, PLANTED, CHINESE) == []
    remember(store.root, [redis_server.url])
    line = kept_line(store)
    assert (line.status, line.evidence["in clear"]) == ("held", 0), line
    assert line.evidence["sealed"] >= 7, "two files, three texts, an answer and a question"
    if kind == "redis":
        with redis.Redis.from_url(redis_server.url) as client:
            told = [bytes(client.dump(key)) for key in client.keys("catena:*")]
        assert len(told) >= 2, "an answer, and a question"
        assert not any(PLANTED.encode() in one for one in told)
    running.stop()
    assert lying(store, PLANTED, CHINESE) == []


def _cached(answer: httpx.Response) -> Any:
    return answer if answer.headers.get("x-catena-cache") == "exact" else None


def test_the_search_for_words_finds_them_where_nothing_governs(deployed: Made, store: Store) -> None:
    running = deployed(OPEN, cache={"store": "sqlite"})
    ended(running, {}, submitted(running, {}, PLANTED))
    running.chat(PLANTED, temperature=0)
    eventually(lambda: _cached(running.chat(PLANTED, temperature=0)))
    background_response(running, {}, CHINESE)
    running.stop()
    line = kept_line(store)
    assert line.status == "failed"
    assert set(line.evidence["in clear, by kind"]) == {"files", "jobs", "answers"}
    found = lying(store, PLANTED)
    assert any("files/" in path for path in found)
    assert any("answers.sqlite" in path for path in found)
    assert any("jobs.db" in path for path in lying(store, CHINESE))


def test_an_erasure_reaches_jobs_files_and_answers_and_nobody_elses(deployed: Made, store: Store) -> None:
    ada, bob = head_of(store, "ada"), head_of(store, "bob")
    running = deployed(cache={"store": "sqlite"}, jobs={"poll_s": 0.2})
    ids = {}
    for name, head in (("ada", ada), ("bob", bob)):
        running.chat(PLANTED, headers=head, temperature=0)
        eventually(lambda head=head: _cached(running.chat(PLANTED, headers=head, temperature=0)))
        batch = ended(running, head, submitted(running, head, PLANTED))
        ids[name] = batch["id"], batch["output_file_id"], background_response(running, head, PLANTED)["id"]
    erased(store, "ada")
    batch, file, response = ids["ada"]
    assert running.get(f"/v1/batches/{batch}", ada).status_code == 404
    assert running.get(f"/v1/files/{file}/content", ada).status_code == 404
    assert running.get(f"/v1/responses/{response}", ada).status_code == 404
    assert "x-catena-cache" not in running.chat(PLANTED, headers=ada, temperature=0).headers
    eventually(lambda: running.get("/v1/files", ada).json()["data"] == [])
    database = sqlite3.connect(store.root / "gateway" / "jobs.db")
    eventually(lambda: database.execute("SELECT DISTINCT tenant FROM jobs").fetchall() == [("bob",)])
    database.close()
    batch, file, response = ids["bob"]
    assert running.get(f"/v1/batches/{batch}", bob).json()["status"] == "completed"
    assert PLANTED in running.get(f"/v1/files/{file}/content", bob).text
    assert PLANTED in running.get(f"/v1/responses/{response}", bob).text
    assert _cached(running.chat(PLANTED, headers=bob, temperature=0))
    assert len(list((store.root / "gateway" / "files").rglob("*/*"))) == 2, "bob's question and answer"


def test_a_batch_under_way_stops_when_its_subject_is_erased(deployed: Made, store: Store) -> None:
    ada, running = head_of(store, "ada"), deployed(jobs={"poll_s": 0.2, "concurrency": 1})
    id = submitted(running, ada, *(["sleep 0.1"] * 100))
    eventually(lambda: running.get(f"/v1/batches/{id}", ada).json()["request_counts"]["completed"] > 1)
    erased(store, "ada")
    eventually(lambda: running.get("/v1/batches", ada).json()["data"] == [])
    seen = len(running.seen())
    time.sleep(1)
    assert len(running.seen()) <= seen + 1, "nothing more of it is asked"


def test_what_was_kept_in_clear_before_is_read_and_then_sealed(deployed: Made, store: Store) -> None:
    before = deployed(OPEN, cache={"store": "sqlite"}, jobs={"poll_s": 0.2})
    head = {"authorization": "Bearer ada"}
    batch = ended(before, head, submitted(before, head, PLANTED))
    response = background_response(before, head, PLANTED)["id"]
    before.chat(PLANTED, headers=head, temperature=0)
    eventually(lambda: _cached(before.chat(PLANTED, headers=head, temperature=0)))
    before.stop()
    assert lying(store, PLANTED)
    audited = GovernConfig(audit=AuditConfig(on=True))  # keys stay off: the tenant is the same one
    after = deployed(audited, cache={"store": "sqlite"}, jobs={"poll_s": 0.2})
    eventually(lambda: lying(store, PLANTED) == [])
    assert PLANTED in after.get(f"/v1/responses/{response}", head).text
    shown = after.get(f"/v1/batches/{batch['id']}", head).json()
    assert shown["metadata"] == {"about": PLANTED}
    for name in ("input_file_id", "output_file_id"):
        assert PLANTED in after.get(f"/v1/files/{shown[name]}/content", head).text
    assert _cached(after.chat(PLANTED, headers=head, temperature=0)) is None, "a cache may forget"
    assert kept_line(store).status == "held"
    remember(store.root, ["rediss://:hunter2@cache.example:6379/0"])
    line = kept_line(store)
    assert (line.status, line.evidence["not looked at"]) == ("no evidence", ["rediss://:***@cache.example:6379/0"])
    assert lying(store, "hunter2") == []
