"""Jobs, releases and what is asked about a gateway, by the SDK and by `catena jobs`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from catena.cli.main import run
from catena.sdk import ApiError, AsyncCatena, Catena

from .conftest import Start, mock
from .test_jobs import chat_line, jsonl


def test_a_job_by_the_sdk(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catena.sdk.client.LOOK_S", 0.05)
    running = start({"m": mock("--digest", "ab" * 32)})
    with Catena(running.url, key="ada") as client:
        made = client.submit_job([chat_line("a", "hi"), chat_line("b", "status 404")], metadata={"for": "test"})
        batch = client.wait_job(made.id, timeout_s=60)
        assert (batch.status, batch.over, batch.metadata) == ("completed", True, {"for": "test"})
        assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
        assert [one["custom_id"] for one in client.job_results(batch)] == ["a", "b"]
        assert [one.id for one in client.jobs()] == [batch.id]
        with pytest.raises(ApiError) as error:
            client.cancel_job(batch.id)
        assert error.value.code == "batch_not_cancellable"
        assert client.model("m").digest == "ab" * 32
        assert (client.health().models, client.ready().ready, client.releases()) == ({"m": 1}, True, [])

    async def again() -> None:
        monkeypatch.setattr("catena.sdk.asynchronous.LOOK_S", 0.05)
        async with AsyncCatena(running.url, key="ada") as client:
            file = tmp_path / "in.jsonl"
            file.write_bytes(jsonl(chat_line("a", "hi")))
            batch = await client.wait_job((await client.submit_job(file)).id, timeout_s=60)
            assert [one["custom_id"] for one in await client.job_results(batch)] == ["a"]

    asyncio.run(again())


def test_the_example_of_the_guide_runs(
    start: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catena.sdk.asynchronous.LOOK_S", 0.05)
    text = (Path(__file__).parents[3] / "docs" / "sdk.md").read_text(encoding="utf-8")
    example = text.split("```python\n")[2].partition("```")[0]
    exec(example.replace("http://127.0.0.1:8000", start({"helper": mock()}).url), {})
    assert capsys.readouterr().out == "question-0 200\nquestion-1 200\n"


def test_a_job_by_the_command_line(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catena.sdk.client.LOOK_S", 0.05)
    monkeypatch.setenv("CATENA_KEY", "ada")
    at = ["--gateway", start().url]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(jsonl(chat_line("a", "hi"), chat_line("b", "ho")))
    assert run(["jobs", "submit", str(source), "--output", str(output), "--json", *at]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["status"], told["request_counts"]["completed"]) == ("completed", 2)
    assert [json.loads(line)["custom_id"] for line in output.read_text().splitlines()] == ["a", "b"]
    assert run(["jobs", "list", *at]) == 0
    assert told["id"] in (line := capsys.readouterr().out)
    assert "2 of 2" in line
    assert run(["jobs", "show", told["id"], *at]) == 0
    assert told["output_file_id"] in capsys.readouterr().out
    assert run(["jobs", "cancel", told["id"], *at]) == 2
    assert run(["jobs", "show", "batch_0", *at]) == 3
    assert run(["jobs", "submit", str(tmp_path / "none"), *at]) == 3
    assert run(["jobs", "submit", str(source), "--output", str(output), *at]) == 2
    capsys.readouterr()
    source.write_text("nonsense\n")
    assert run(["jobs", "submit", str(source), "--output", str(tmp_path / "no.jsonl"), *at]) == 1
    assert "invalid_json_line" in capsys.readouterr().out
