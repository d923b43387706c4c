"""A request says how long it waits: `deadline_s`. What comes too late is stopped, told, and leaves nothing behind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import pytest

from catena.infer.engine import Engine
from catena.serve.app import build_app
from catena.serve.server import background

from .asking import before_each_step

CHAT = {"messages": [{"role": "user", "content": "hello"}]}
ROUTES = [("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": ["hello", "bye"]})]


@pytest.mark.parametrize(("route", "asked"), ROUTES)
def test_an_answer_that_comes_too_late_is_stopped(
    engine_of: Callable[..., Engine], route: str, asked: dict[str, Any]
) -> None:
    engine = engine_of()
    before_each_step(engine, lambda: time.sleep(0.05))
    body = {"model": "tiny", **asked, "max_tokens": 200, "deadline_s": 0.3}
    with background(build_app({"tiny": engine})) as url:
        late = httpx.post(f"{url}{route}", json=body, timeout=60)
        with httpx.stream("POST", f"{url}{route}", json={**body, "stream": True}, timeout=60) as streamed:
            events = [line for line in streamed.iter_lines() if line.startswith("data: ")]
        in_time = httpx.post(f"{url}{route}", json={**body, "max_tokens": 2, "deadline_s": 60}, timeout=60)
    assert (late.status_code, late.json()["error"]["code"]) == (408, "deadline_exceeded")
    assert "in time" in json.loads(events[-1].removeprefix("data: "))["error"]["message"]
    assert in_time.status_code == 200
    stats = engine.stats()
    assert stats["cache_blocks_used"] == stats["running"] == stats["waiting"] == 0


@pytest.mark.parametrize("seconds", [0, -1, "soon", 1e9, True])
def test_a_time_that_makes_no_sense_is_refused(url: str, seconds: Any) -> None:
    answer = httpx.post(f"{url}/v1/chat/completions", json={"model": "tiny", **CHAT, "deadline_s": seconds})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "deadline_s")
