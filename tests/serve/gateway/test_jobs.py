"""Files, batches and background responses by the official client, over a gateway with real replicas."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from catena.serve.jobs.forms import attachment, plain_name

from .conftest import Running, Start, eventually, mock

ENDPOINT = "/v1/chat/completions"


def chat_line(name: str, prompt: str, model: str = "m", **more: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], **more}
    return {"custom_id": name, "method": "POST", "url": ENDPOINT, "body": body}


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.fixture
def client_for() -> Iterator[Callable[..., openai.OpenAI]]:
    """Return a function that gives the official client of a gateway; each key is a tenant."""
    made: list[openai.OpenAI] = []

    def make(running: Running, key: str = "ada") -> openai.OpenAI:
        made.append(openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0, timeout=60))
        return made[-1]

    yield make
    for one in made:
        one.close()


def submit(client: openai.OpenAI, data: bytes, endpoint: str = ENDPOINT, **more: Any) -> Any:
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,
        **{"completion_window": "24h", **more},  # type: ignore[arg-type]
    )


def ended(client: openai.OpenAI, id: str) -> Any:
    over = ("completed", "failed", "expired", "cancelled")
    return eventually(lambda: found if (found := client.batches.retrieve(id)).status in over else None)


def lines_of(client: openai.OpenAI, file: str | None) -> list[dict[str, Any]]:
    assert file is not None
    return [json.loads(line) for line in client.files.content(file).text.splitlines()]


def test_a_file_is_stored_listed_read_and_deleted(start: Start, client_for: Any) -> None:
    client = client_for(start())
    data = jsonl(chat_line("a", "hi"))
    file = client.files.create(
        file=("requests.jsonl", data), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (file.filename, file.bytes, file.purpose, file.status) == ("requests.jsonl", len(data), "batch", "processed")
    assert file.expires_at == file.created_at + 3600
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == data
    other = client.files.create(file=("again.jsonl", data), purpose="batch")  # the same bytes, stored once
    assert [one.id for one in client.files.list()] == [other.id, file.id]
    assert [one.id for one in client.files.list(limit=1, order="asc")] == [file.id, other.id]
    assert client.files.delete(file.id).deleted
    assert client.files.content(other.id).read() == data
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    client.files.delete(other.id)
    assert client.files.list().data == []


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("/", "file"),
        ("..", "file"),
        ("a\x00b\r\nSet-Cookie: c.jsonl", "abSet-Cookie: c.jsonl"),
        ("\u202eevil.jsonl", "evil.jsonl"),
        ("文" * 200, "文" * 85),
    ],
    ids=["path", "other path", "root", "up", "control", "override", "long"],
)
def test_a_name_is_only_a_name(given: str, name: str) -> None:
    assert plain_name(given) == name
    head = attachment(name)
    assert head.isascii()
    assert not set(head) & set("\r\n")


def test_names_with_paths_reach_nothing(start: Start, client_for: Any, tmp_path: Any) -> None:
    client = client_for(start())
    file = client.files.create(file=("../../../stolen jär.jsonl", b"{}\n"), purpose="batch")
    assert file.filename == "stolen jär.jsonl"
    assert not list(tmp_path.rglob("*stolen*"))
    answer = client.files.content(file.id)
    assert answer.response.headers["content-disposition"].startswith('attachment; filename="stolen j_r.jsonl"')
    for id in ("..%2f..%2fjobs.db", "file-0' OR '1'='1", "../jobs.db"):
        with pytest.raises(openai.APIStatusError) as error:
            client.files.retrieve(id)
        assert error.value.status_code in (404, 405)


def test_files_have_bounds(start: Start, client_for: Any) -> None:
    running = start(jobs={"max_file_bytes": 2000, "max_tenant_bytes": 3000})
    client = client_for(running)

    def refused(status: int, code: str, **upload: Any) -> None:
        with pytest.raises(openai.APIStatusError) as error:
            client.files.create(**{"file": ("a", b"{}"), "purpose": "batch", **upload})
        assert (error.value.status_code, error.value.code) == (status, code)

    refused(413, "request_too_large", file=("a", b"x" * 2001))
    refused(413, "request_too_large", file=("a", b"x" * 500_000))
    refused(400, "empty_file", file=("a", b""))
    refused(400, "unsupported_purpose", purpose="assistants")
    client.files.create(file=("a", b"x" * 2000), purpose="batch")
    refused(413, "storage_limit_reached", file=("a", b"x" * 1001))
    head = {"origin": "https://elsewhere.example"}
    form = {"purpose": (None, "batch"), "file": ("a", b"{}")}
    assert running.client.post(f"{running.url}/v1/files", files=form, headers=head).status_code == 403


def test_a_batch_of_chats_goes_through(start: Start, client_for: Any) -> None:
    running = start()
    client = client_for(running)
    lines = [chat_line(f"r{number}", f"question {number}") for number in range(20)]
    lines[7]["body"]["messages"][0]["content"] = "status 404"
    lines[11]["body"]["model"] = "nobody"
    batch = submit(client, jsonl(*lines), metadata={"night": "1"})
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"night": "1"})
    done = ended(client, batch.id)
    assert done.status == "completed", done
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (20, 18, 2)
    assert done.in_progress_at
    assert done.finalizing_at
    assert done.completed_at
    assert done.usage.output_tokens > 0
    good, bad = lines_of(client, done.output_file_id), lines_of(client, done.error_file_id)
    assert [one["custom_id"] for one in good] == [f"r{n}" for n in range(20) if n not in (7, 11)]
    assert good[0]["response"]["body"]["choices"][0]["message"]["content"] == "you said question 0 to mock"
    assert good[0]["error"] is None
    assert [(one["custom_id"], one["response"]["status_code"]) for one in bad] == [("r7", 404), ("r11", 404)]
    assert bad[1]["response"]["body"]["error"]["code"] == "model_not_found"
    assert client.files.retrieve(done.output_file_id).purpose == "batch_output"
    assert [one.id for one in client.batches.list()] == [batch.id]
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", {"model": "m", "prompt": "hi"}),
        ("/v1/embeddings", {"model": "m", "input": "hi"}),
        ("/v1/responses", {"model": "m", "input": "hi"}),
    ],
)
def test_other_endpoints(start: Start, client_for: Any, endpoint: str, body: Any) -> None:
    client = client_for(start())
    line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": body}
    done = ended(client, submit(client, jsonl(line), endpoint).id)
    assert (done.status, done.model) == ("completed", "m")
    assert lines_of(client, done.output_file_id)[0]["response"]["status_code"] == 200


def test_a_file_with_mistakes_fails_whole(start: Start, client_for: Any) -> None:
    running = start()
    client = client_for(running)
    good = chat_line("a", "hi")
    wrong = [
        good,
        {**good, "custom_id": "b", "url": "/v1/embeddings"},
        {**good, "custom_id": "c", "method": "GET"},
        good,
        chat_line("d", "hi", stream=True),
        {"custom_id": "e", "method": "POST", "url": ENDPOINT},
        {**good, "custom_id": "f", "priority": 1},
        chat_line("g", "hi", metadata=json.loads("[" * 300 + "]" * 300)),
    ]
    done = ended(client, submit(client, jsonl(*wrong) + b"{nonsense\n").id)
    assert done.status == "failed"
    assert [(one.line, one.code) for one in done.errors.data] == [
        (2, "invalid_url"),
        (3, "invalid_method"),
        (4, "duplicate_custom_id"),
        (5, "unsupported_parameter"),
        (6, "missing_required_parameter"),
        (7, "unknown_parameter"),
        (8, "invalid_body"),
        (9, "invalid_json_line"),
    ]
    assert running.seen() == []


def test_what_a_batch_cannot_be_is_said(start: Start, client_for: Any) -> None:
    client = client_for(start())
    file = client.files.create(file=("a", jsonl(chat_line("a", "hi"))), purpose="batch")

    def refused(code: str, **more: Any) -> None:
        given = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h", **more}
        with pytest.raises(openai.APIStatusError) as error:
            client.batches.create(**given)
        assert error.value.code == code

    refused("file_not_found", input_file_id="file-0")
    refused("invalid_endpoint", endpoint="/v1/audio/speech")
    refused("invalid_value", completion_window="soon")
    refused("invalid_value", completion_window="30d")
    refused("unknown_parameter", extra_body={"priority": "high"})


def test_a_batch_is_cancelled_and_keeps_what_was_answered(start: Start, client_for: Any) -> None:
    client = client_for(start({"m": mock("--delay", "0.05")}, jobs={"concurrency": 1}))
    batch = submit(client, jsonl(*(chat_line(f"r{number}", "hi") for number in range(200))))
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed > 2)
    with pytest.raises(openai.ConflictError):
        client.files.delete(batch.input_file_id)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = ended(client, batch.id)
    assert done.status == "cancelled"
    assert done.cancelling_at
    assert done.cancelled_at
    found = lines_of(client, done.output_file_id)
    assert 2 < len(found) == done.request_counts.completed < 200
    assert done.error_file_id is None
    client.files.delete(batch.input_file_id)


def test_a_batch_that_takes_too_long_expires(start: Start, client_for: Any) -> None:
    client = client_for(start({"m": mock("--delay", "0.1")}, jobs={"concurrency": 2}))
    batch = submit(client, jsonl(*(chat_line(f"r{number}", "hi") for number in range(50))), completion_window="1s")
    done = ended(client, batch.id)
    counts = done.request_counts
    assert done.status == "expired"
    assert counts.completed + counts.failed == counts.total == 50
    assert counts.failed > 0
    assert {one["error"]["code"] for one in lines_of(client, done.error_file_id)} == {"batch_expired"}


def test_tenants_see_only_their_own(start: Start, client_for: Any) -> None:
    running = start()
    ada, bob = client_for(running, "ada"), client_for(running, "bob")
    batch = submit(ada, jsonl(chat_line("a", "hi")))
    done = ended(ada, batch.id)
    answer = ada.responses.create(model="m", input="hi", background=True)
    for call in (
        lambda: bob.files.retrieve(batch.input_file_id),
        lambda: bob.files.content(done.output_file_id),
        lambda: bob.files.delete(batch.input_file_id),
        lambda: bob.batches.retrieve(batch.id),
        lambda: bob.batches.cancel(batch.id),
        lambda: bob.responses.retrieve(answer.id),
        lambda: bob.responses.cancel(answer.id),
        lambda: bob.responses.delete(answer.id),
        lambda: bob.batches.create(input_file_id=batch.input_file_id, endpoint=ENDPOINT, completion_window="24h"),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
    assert bob.files.list().data == bob.batches.list().data == []


def test_busy_replicas_are_waited_for(start: Start, client_for: Any) -> None:
    """A limit that is reached is no failure of a line."""
    limits = {"rules": [{"per": "all", "requests": "3/second"}]}
    client = client_for(start(limits=limits))
    done = ended(client, submit(client, jsonl(*(chat_line(f"r{n}", f"q {n}") for n in range(5)))).id)
    assert (done.request_counts.completed, done.request_counts.failed) == (5, 0)


def test_a_server_that_fails_again_and_again_is_told(start: Start, client_for: Any) -> None:
    running = start(jobs={"attempts": 2})
    client = client_for(running)
    done = ended(client, submit(client, jsonl(chat_line("a", "status 500"))).id)
    assert lines_of(client, done.error_file_id)[0]["response"]["status_code"] == 502


def test_live_requests_go_first(start: Start, client_for: Any) -> None:
    running = start({"m": mock("--delay", "0.1", in_flight=1)}, jobs={"concurrency": 4})
    client = client_for(running)
    batch = submit(client, jsonl(*(chat_line(f"r{n}", "hi") for n in range(12))))
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed > 1)
    for _ in range(3):
        assert running.chat("me first").status_code == 200
    assert client.batches.retrieve(batch.id).status == "in_progress"
    assert ended(client, batch.id).request_counts.completed == 12


def answered(client: openai.OpenAI, id: str) -> Any:
    open_ = ("queued", "in_progress")
    return eventually(lambda: found if (found := client.responses.retrieve(id)).status not in open_ else None)


def test_a_response_in_the_background(start: Start, client_for: Any) -> None:
    client = client_for(start({"m": mock("--say", "done")}))
    first = client.responses.create(
        model="m", input="hi", background=True, metadata={"a": "b"}, instructions="be brief"
    )
    assert (first.status, first.background, first.output) == ("queued", True, [])
    assert (first.metadata, first.instructions) == ({"a": "b"}, "be brief")
    last = answered(client, first.id)
    assert (last.id, last.status, last.background, last.created_at) == (first.id, "completed", True, first.created_at)
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_a_response_in_the_background_is_cancelled(start: Start, client_for: Any) -> None:
    running = start()
    client = client_for(running)
    first = client.responses.create(model="m", input="sleep 4", background=True)
    eventually(lambda: client.responses.retrieve(first.id).status == "in_progress")
    assert client.responses.cancel(first.id).status == "cancelled"
    eventually(lambda: running.gateway.pools["m"].running == 0)
    assert client.responses.retrieve(first.id).status == "cancelled"


def test_what_the_background_cannot_do_is_said(start: Start, client_for: Any) -> None:
    client = client_for(start())
    for more, param in (({"stream": True}, "stream"), ({"store": False}, "store")):
        with pytest.raises(openai.BadRequestError) as error:
            client.responses.create(model="m", input="hi", background=True, **more)
        assert error.value.param == param
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="nobody", input="hi", background=True)
    answer = client.responses.create(model="m", input="status 400", background=True)
    failed = answered(client, answer.id)
    assert (failed.status, failed.error.message) == ("failed", "as you wish")
    with pytest.raises(openai.BadRequestError):
        client.responses.retrieve(answer.id, stream=True)


def test_no_more_open_jobs_than_allowed(start: Start, client_for: Any) -> None:
    client = client_for(start(jobs={"max_open": 1}))
    client.responses.create(model="m", input="sleep 4", background=True)
    with pytest.raises(openai.RateLimitError):
        client.responses.create(model="m", input="hi", background=True)


def test_old_files_and_jobs_go(start: Start, client_for: Any) -> None:
    running = start(jobs={"keep_s": 0.5})
    client = client_for(running)
    done = ended(client, submit(client, jsonl(chat_line("a", "hi"))).id)
    time.sleep(0.6)
    jobs = running.gateway.jobs
    assert jobs is not None
    jobs.files.sweep()
    assert list(jobs.queue.old(0.5)) == [done.id]
    assert [file.purpose for file in client.files.list()] == ["batch"]


@pytest.mark.parametrize("page", ["jobs.md", "jobs.zh.md"])
def test_the_example_of_the_guide_runs(start: Start, page: str, capsys: pytest.CaptureFixture[str]) -> None:
    running = start({"helper": mock()})
    text = (Path(__file__).parents[3] / "docs" / page).read_text(encoding="utf-8")
    example = text.partition("```python\n")[2].partition("```")[0]
    assert "http://127.0.0.1:8000" in example
    told: dict[str, Any] = {}
    exec(example.replace("http://127.0.0.1:8000", running.url), told)
    told["client"].close()
    assert "you said" in capsys.readouterr().out
