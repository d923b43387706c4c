"""Keys, audit and moderation before a gateway with real replicas: as before one model, and nothing past them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from catena.core.config import parse
from catena.govern.audit.reading import Query, entries
from catena.govern.audit.verify import verify
from catena.govern.config import AuditConfig, AuthConfig, GovernConfig, ModerationConfig
from catena.govern.keys import Keys
from catena.hub.store import Store
from catena.serve.gateway.app import Gateway
from catena.serve.gateway.config import DeployConfig
from catena.serve.governed import governed
from catena.serve.server import background

from .conftest import Running, commands, mock

BAD = "The parcel comes tomorrow, you f u c k i n g fool. Nothing more is said about it here, is it?"
LEFT = "The parcel comes tomorrow, you "
CONFIG = GovernConfig(auth=AuthConfig(on=True), audit=AuditConfig(on=True), moderation=ModerationConfig(on=True))


@pytest.fixture
def running(store: Store, tmp_path: Path) -> Iterator[tuple[Running, str]]:
    """A governed gateway over a replica that says something bad, and a key for it."""
    key = Keys(store.index).create("lovelace", "user", models=("m",))[0]
    deploy = parse(DeployConfig, {"port": 0, "models": {"m": mock("--say", BAD)}})
    with governed(store, CONFIG, deploy.http) as middleware:
        gateway = Gateway(deploy, state=tmp_path / "state", commands=commands, middleware=middleware)
        with background(gateway, beside=gateway.running(), config=deploy.http) as url:
            made = Running(url, gateway, httpx.Client(timeout=60, trust_env=False))
            made.ready(1)
            yield made, key
            made.client.close()


def test_the_gateway_is_governed(running: tuple[Running, str], store: Store) -> None:
    gateway, key = running
    head = {"authorization": f"Bearer {key}"}
    assert gateway.chat("hello").status_code == 401
    assert gateway.chat("hello", model="other", headers=head).status_code == 403
    assert gateway.chat("you sh1t", headers=head).json()["error"]["code"] == "content_filter"
    choice = gateway.chat("hello", headers=head).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (LEFT, "content_filter")
    streamed = gateway.chat("I am ada@corp.net", headers=head, stream=True).text
    assert "fool" not in streamed
    assert streamed.endswith("data: [DONE]\n\n")
    assert [one["body"]["messages"][-1]["content"] for one in gateway.seen()] == ["hello", "I am [EMAIL]"]
    told = list(entries(store.root, CONFIG.audit, Query(kind="answer")))
    assert [one["status"] for one in told] == [401, 403, 400, 200, 200]
    reasons = [[one["by"] for one in each["decisions"]] for each in told]
    assert reasons[0] == reasons[1] == ["auth"]
    assert all("moderation" in each for each in reasons[2:])
    assert told[4]["body"]["text"]["0"] == LEFT
    assert verify(store.root, CONFIG.audit, deep=True).sound
