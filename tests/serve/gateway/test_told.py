"""Where replicas are, and what they said when they ended, is told to who may know it, and to nobody else."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from catena.core.config import parse
from catena.govern.config import AuthConfig, GovernConfig
from catena.govern.keys import Keys
from catena.hub.store import Store
from catena.serve.gateway.app import Gateway
from catena.serve.gateway.config import DeployConfig
from catena.serve.governed import governed
from catena.serve.server import background

from .conftest import Running, Start, commands, eventually, mock

USER = ("nobody", "wrong", "user")


@pytest.fixture
def far(start: Start) -> str:
    """The address of a server of somebody else."""
    return start().gateway.pools["m"].ready()[0].url


@pytest.fixture
def running(store: Store, far: str, tmp_path: Path) -> Iterator[tuple[Running, dict[str, dict[str, str]]]]:
    """A gateway with keys, before a server of others, one that is away, and a model that does not start."""
    book = Keys(store.index)
    made = {role: book.create(role, role)[0] for role in ("user", "developer")} | {"wrong": "ctn_wrong"}
    heads = {name: {"authorization": f"Bearer {key}"} for name, key in made.items()} | {"nobody": {}}
    models = {
        "m": {"urls": [far], "served": "mock", "replicas": {"health_s": 0.3}},
        "away": {"urls": ["http://127.0.0.1:9"], "replicas": {"min": 0, "health_s": 0.3}},
        "broken": mock("--dead-on-start", min=1),
    }
    deploy = parse(DeployConfig, {"port": 0, "models": models, "telemetry": {"gpus": False}})
    with governed(store, GovernConfig(auth=AuthConfig(on=True)), deploy.http) as middleware:
        gateway = Gateway(deploy, state=tmp_path / "governed", commands=commands, middleware=middleware)
        with background(gateway, beside=gateway.running(), config=deploy.http) as url:
            made_running = Running(url, gateway)
            made_running.ready(1)
            eventually(lambda: any(slot.problem for slot in gateway.pools["broken"].slots.values()))
            yield made_running, heads
            made_running.client.close()


def test_ready_tells_all_to_who_may_see_metrics_and_to_others_only_how_many(
    running: tuple[Running, dict[str, dict[str, str]]], far: str
) -> None:
    gateway, heads = running
    told = gateway.get("/ready", heads["developer"]).json()["replicas"]
    assert [one["id"] for one in told["m"]] == [far]
    assert "this one does not start" in json.dumps(told["broken"])
    for name in USER:
        answer = gateway.get("/ready", heads[name])
        assert answer.status_code == 503, "a model has no replica"
        shown = answer.json()["replicas"]
        assert {model: len(shown[model]) for model in shown} == {model: len(told[model]) for model in told}
        assert far not in answer.text
        assert "127.0.0.1" not in answer.text
        assert "does not start" not in answer.text
        assert [one["phase"] for one in shown["m"]] == ["ready"]


def test_an_answer_and_a_refusal_do_not_tell_where_a_replica_is(
    running: tuple[Running, dict[str, dict[str, str]]], far: str, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, heads = running
    caplog.set_level(logging.WARNING, logger="catena")
    good = gateway.chat("hi", headers=heads["user"])
    assert good.status_code == 200
    assert good.headers["x-catena-replica"].startswith("at-")
    for stream in (False, True):
        bad = gateway.chat("status 500", headers=heads["user"], stream=stream)
        assert bad.status_code == 502
        assert "at-" in bad.json()["error"]["message"]
        told = bad.text + json.dumps(dict(bad.headers))
        assert "127.0.0.1" not in told
        assert far not in told
    assert far in caplog.text, "who runs it is told"
