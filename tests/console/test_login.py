"""The door: how often a wrong key is looked at, and what one reads while the keys cannot be looked at."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from catena.console.guard import Guard
from catena.console.login import MOST_WRONG, Sessions, TooMany
from catena.core.errors import EnvironmentProblem
from catena.govern.access import Denied
from catena.govern.roles import Principal


class Keys:
    """Knows one key, and takes a moment; `away`: cannot be asked."""

    def __init__(self) -> None:
        self.looked, self.away = 0, False

    async def identify(self, key: str) -> Principal:
        self.looked += 1
        await asyncio.sleep(0.01)
        if self.away:
            raise EnvironmentProblem("the index is away", hint="Wait for it.")
        if key != "right":
            raise Denied("wrong", code="invalid_api_key")
        return Principal("ana", "admin", "key")

    def again(self, principal: Principal) -> Principal:
        if self.away:
            raise EnvironmentProblem("the index is away", hint="Wait for it.")
        return principal

    def status(self) -> dict[str, int]:
        return {"keys": 1}


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def sessions(tmp_path: Path, keys: Keys) -> Sessions:
    return Sessions(tmp_path, keys, hours=1)  # type: ignore[arg-type]


def many(sessions: Sessions, *words: str) -> list[Any]:
    """Try keys at once, from one address; in a thread of its own, as a browser's loop may run in this one."""

    async def work() -> list[Any]:
        return await asyncio.gather(*(sessions.open(word, "here") for word in words), return_exceptions=True)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work()).result()


def test_many_wrong_keys_at_once_are_as_many_as_one_after_the_other(sessions: Sessions, keys: Keys) -> None:
    told = many(sessions, *["wrong"] * 50)
    assert keys.looked == MOST_WRONG
    assert sum(isinstance(one, TooMany) for one in told) == 50 - MOST_WRONG
    assert isinstance(many(sessions, "right")[0], TooMany)


def test_a_right_key_or_one_that_nobody_looked_at_does_not_count(sessions: Sessions, keys: Keys) -> None:
    many(sessions, *["wrong"] * (MOST_WRONG - 1))
    assert isinstance(many(sessions, "right")[0], str)
    keys.away = True
    for _ in range(3):
        assert all(isinstance(one, EnvironmentProblem) for one in many(sessions, *["wrong"] * MOST_WRONG))
    keys.away = False
    assert isinstance(many(sessions, "right")[0], str)


def test_while_keys_cannot_be_read_the_console_says_so(sessions: Sessions, keys: Keys, tmp_path: Path) -> None:
    workspace = SimpleNamespace(store=SimpleNamespace(root=tmp_path))
    console: Any = SimpleNamespace(workspace=workspace, prefix="", sessions=sessions)
    client = TestClient(Guard(PlainTextResponse("the page"), console), base_url="http://127.0.0.1")
    form: dict[str, Any] = {"data": {"key": "right"}, "headers": {"origin": "http://127.0.0.1"}}
    assert client.post("/login", **form, follow_redirects=False).status_code == 303
    assert client.get("/").text == "the page"
    keys.away = True
    answer = client.get("/")
    assert (answer.status_code, answer.text) == (503, "the index is away. Wait for it.\n")
    assert client.post("/login", **form).status_code == 503
