"""The cache's file on a disk that is full, or damaged: there is no cache then, and no request fails of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from catena.core.config import parse
from catena.serve.gateway.app import Gateway
from catena.serve.gateway.caching import SqliteAnswers
from catena.serve.gateway.config import DeployConfig
from catena.serve.gateway.kept import CACHE_FILE, Kept
from catena.serve.server import background

from .conftest import Running, Start, commands, eventually, fill, mock

ASKED: Any = {"temperature": 0}
MODELS = {"m": mock("--digest", "d1"), "e": mock("--model", "e")}
CACHE = {"store": "sqlite", "semantic": {"model": "e"}}


def cached(running: Running, text: str) -> bool:
    answer = running.chat(text, **ASKED)
    assert answer.status_code == 200
    return answer.headers.get("x-catena-cache") == "exact"


def test_a_full_disk_under_the_cache_fails_no_request(
    small_disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kept, "away", False)  # so that each request asks it again
    deploy = parse(DeployConfig, {"port": 0, "models": MODELS, "cache": CACHE, "jobs": {"on": False}})
    gateway = Gateway(deploy, state=small_disk / "state", commands=commands)
    with background(gateway, beside=gateway.running(), config=deploy.http) as url:
        running = Running(url, gateway)
        for name in MODELS:
            running.ready(1, name)
        eventually(lambda: cached(running, "before"))
        ballast = fill(small_disk)
        long = "x" * 20_000
        for number in range(20):
            cached(running, f"{number} {long}")
        assert "the cache's file is away" in caplog.text
        ballast.unlink()
        eventually(lambda: cached(running, "after"))
        assert 'status="500"' not in running.get("/metrics").text
        running.client.close()


def test_a_file_that_is_no_database_is_begun_anew(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / CACHE_FILE).write_bytes(b"no database, but long enough to look at " * 100)
    running = start(MODELS, cache=CACHE)
    eventually(lambda: cached(running, "hello"))
    assert "damaged and is begun anew" in caplog.text


def test_a_file_that_is_damaged_while_it_is_used_is_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kept, "away", False)
    path = tmp_path / "a.sqlite"

    async def check() -> None:
        answers = SqliteAnswers(path, 60, 1 << 20)
        for number in range(200):
            await answers.put(b"%d" % number, bytes(1000))
        await answers.close()
        damaged = SqliteAnswers(path, 60, 1 << 20)
        raw = bytearray(path.read_bytes())
        raw[4096:] = b"\xa5" * (len(raw) - 4096)
        path.write_bytes(raw)
        assert await damaged.get(b"7") is None
        await damaged.put(b"7", b"new")
        assert await damaged.get(b"7") == b"new"
        await damaged.close()

    asyncio.run(check())
    assert "the cache's file is away" in caplog.text
