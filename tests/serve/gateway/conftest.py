"""A real gateway over real child processes: replicas without a model that do what prompts say."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from starlette.middleware import Middleware

from catena.core.config import parse
from catena.hub.store import Store, init_store
from catena.serve.gateway import pool
from catena.serve.gateway.app import Gateway
from catena.serve.gateway.config import DeployConfig, ModelConfig
from catena.serve.releases.tags import Tags
from catena.serve.server import background

from .postgres import PostgresServer
from .redis import RedisServer, redis_running

REPLICA = str(Path(__file__).parent / "replica.py")
PATIENCE_S = 60.0


def eventually(condition: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """Wait until something is so, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not become so in time"
        time.sleep(0.02)
    return found


def fill(disk: Path) -> Path:
    """Write to a disk until nothing more goes in; returns the file, which may be deleted again."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(os.urandom(1 << 12))
        except OSError as error:
            assert "No space left" in str(error)  # noqa: PT017  the end of what is meant to happen
    return ballast


def mock(*arguments: str, **replicas: Any) -> dict[str, Any]:
    """A model whose replicas are `replica.py`, quick to start again."""
    settings = {"backoff_s": 0.05, "health_s": 0.3, "drain_s": 3, **replicas}
    settings.setdefault("max", max(1, settings.get("min", 1)))
    return {"script": [REPLICA, "--obey", "--record", *arguments], "replicas": settings}


@dataclass
class Running:
    """A gateway that runs, and how to talk to it."""

    url: str
    gateway: Gateway
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60, trust_env=False))
    stop: Callable[[], None] = lambda: None
    """Ends it, as SIGTERM would."""

    def chat(self, prompt: str, model: str = "m", headers: Any = None, **more: Any) -> httpx.Response:
        """Ask one question."""
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], **more}
        return self.client.post(f"{self.url}/v1/chat/completions", json=body, headers=headers)

    def events(self, prompt: str, model: str = "m", **more: Any) -> str:
        """Ask for a stream, and return all of it."""
        return self.chat(prompt, model, stream=True, **more).text

    def get(self, path: str, headers: Any = None) -> httpx.Response:
        """Get a page."""
        return self.client.get(self.url + path, headers=headers)

    def replicas(self, model: str = "m") -> list[dict[str, Any]]:
        """What each ready replica says that it has seen."""
        urls = [one.url for one in self.gateway.pools[model].ready()]
        return [self.client.get(f"{url}/seen").json() for url in urls]

    def seen(self, model: str = "m") -> list[dict[str, Any]]:
        """Requests that replicas have got, without our own first ones."""
        asked = [entry for replica in self.replicas(model) for entry in replica["seen"]]
        return [entry for entry in asked if "Hello" not in str(entry["body"])]

    def ready(self, count: int, model: str = "m") -> None:
        """Wait for so many replicas."""
        eventually(lambda: len(self.gateway.pools[model].ready()) == count)


Start = Callable[..., Running]


def commands(name: str, model: ModelConfig) -> tuple[str, ...]:
    """How a replica is started here: only scripts."""
    return model.script


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait long for a replica that hangs on purpose."""
    monkeypatch.setattr(pool, "GENTLE_S", 1.0)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a gateway and waits until every model has its least number of replicas."""
    with ExitStack() as stack:

        def make(
            models: dict[str, Any] | None = None,
            middleware: Sequence[Middleware] = (),
            store: Store | None = None,
            **config: Any,
        ) -> Running:
            deploy = parse(DeployConfig, {"port": 0, "models": models or {"m": mock()}, **config})

            def command(name: str, model: ModelConfig) -> tuple[str, ...]:
                if store is None or not model.model:
                    return model.script
                return (REPLICA, "--obey", "--record", "--model", store.resolve(model.model).digest[:12])

            tags = Tags(store) if store else None
            gateway = Gateway(deploy, state=tmp_path / "state", commands=command, middleware=middleware, tags=tags)
            own = stack.enter_context(ExitStack())
            url = own.enter_context(background(gateway, beside=gateway.running(), config=deploy.http))
            running = Running(url, gateway, stop=own.close)
            own.callback(running.client.close)
            for name, model in deploy.models.items():
                if model.owned:
                    running.ready(model.replicas.min, name)
            return running

        yield make


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A fresh Redis."""
    with redis_running() as server:
        yield server


@pytest.fixture
def shared(tmp_path: Path, postgres: PostgresServer) -> Iterator[Store]:
    """A workspace whose index is in the PostgreSQL of the test's module."""
    opened = init_store(tmp_path / ".catena", index_url=postgres.url)
    yield opened
    opened.close()
