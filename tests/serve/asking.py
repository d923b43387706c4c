"""How the tests of the server ask it, and how they hold its engine up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx2 as httpx

from catena.infer.engine import Engine

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "你好, what does it do?"}]}
JSON = {"content-type": "application/json"}


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def post(url: str, body: Any, **options: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{url}/v1/chat/completions", content=content, timeout=30, **{"headers": JSON, **options})


def head(host: str, length: int) -> bytes:
    """The beginning of a request to the chat, as it goes over the wire."""
    lines = ("POST /v1/chat/completions HTTP/1.1", f"host: {host}", "content-type: application/json")
    return "\r\n".join([*lines, f"content-length: {length}", "\r\n"]).encode()


def before_each_step(engine: Engine, act: Callable[[], object]) -> None:
    """Let something happen before each pass through the model."""
    run = engine.runner.run

    def acting(chunks: Any) -> Any:
        act()
        return run(chunks)

    engine.runner.run = acting  # type: ignore[method-assign]
