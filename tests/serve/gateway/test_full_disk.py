"""The audit's disk is really full, under a governed gateway: it stops or degrades as the policy says, tells so, and
goes on by itself when there is room again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from catena.core.config import parse
from catena.govern.audit import log
from catena.govern.audit.reading import Query, entries
from catena.govern.audit.verify import verify
from catena.govern.config import AuditConfig, AuthConfig, GovernConfig
from catena.govern.keys import Keys
from catena.hub.store import Store
from catena.serve.gateway.app import Gateway
from catena.serve.gateway.config import DeployConfig
from catena.serve.governed import governed
from catena.serve.server import background

from .conftest import Running, commands, eventually, fill, mock

Serve = Callable[..., tuple[Running, AuditConfig, dict[str, str]]]


@pytest.fixture
def serve(store: Store, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Return a function that starts a gateway whose audit lies on the small disk; with a key that may see metrics."""
    monkeypatch.setattr(log, "RETRY_S", 0.1)
    with ExitStack() as stack:

        def start(**audit: Any) -> tuple[Running, AuditConfig, dict[str, str]]:
            config = AuditConfig(on=True, folder=small_disk / "audit", **audit)
            head = {"authorization": f"Bearer {Keys(store.index).create('ada', 'developer')[0]}"}
            deploy = parse(DeployConfig, {"port": 0, "models": {"m": mock()}, "telemetry": {"gpus": False}})
            govern = GovernConfig(auth=AuthConfig(on=True), audit=config)
            middleware = stack.enter_context(governed(store, govern, deploy.http))
            gateway = Gateway(deploy, state=tmp_path / "state", commands=commands, middleware=middleware)
            url = stack.enter_context(background(gateway, beside=gateway.running(), config=deploy.http))
            running = Running(url, gateway)
            stack.callback(running.client.close)
            running.ready(1)
            return running, config, head

        yield start


def counted(running: Running, head: dict[str, str], name: str) -> float:
    """A figure of the audit, as `/metrics` tells it; the disk does not matter to that."""
    lines = running.get("/metrics", head).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"catena_audit_{name} "))


def test_stop_answers_503_until_there_is_room_and_nothing_is_answered_meanwhile(
    serve: Serve, store: Store, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running, config, head = serve(when_full="stop")
    assert running.chat("before", headers=head).status_code == 200
    ballast = fill(small_disk)
    refused = eventually(lambda: one if (one := running.chat("during", headers=head)).status_code == 503 else None)
    assert refused.headers["retry-after"]
    assert "no space is left" in refused.json()["error"]["message"]
    assert running.chat("during", headers=head, stream=True).status_code == 503
    assert counted(running, head, "stopped") == 1
    assert "the audit cannot be written (policy: stop)" in caplog.text
    ballast.unlink()
    eventually(lambda: running.chat("after", headers=head).status_code == 200)
    assert counted(running, head, "stopped") == counted(running, head, "lost_total") == 0
    told = list(entries(store.root, config, Query()))
    answered = [one for one in told if one["kind"] == "answer" and one["status"] == 200]
    asked = {one["id"] for one in told if one["kind"] == "request"}
    assert {one["id"] for one in answered} <= asked, "no answer without its question"
    [gap] = [one for one in told if one["kind"] == "gap"]
    assert "no space is left" in gap["reason"]
    assert verify(store.root, config, deep=True).sound


def test_degrade_answers_on_counts_what_is_lost_and_says_so_afterwards(
    serve: Serve, store: Store, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running, config, head = serve(when_full="degrade")
    ballast = fill(small_disk)

    def lost() -> float:
        assert running.chat("during", headers=head).status_code == 200
        return counted(running, head, "lost_total")

    eventually(lambda: lost() >= 4)
    assert counted(running, head, "stopped") == 1
    assert "records of the audit were lost" in caplog.text
    ballast.unlink()
    eventually(lambda: running.chat("after", headers=head) and not counted(running, head, "stopped"))
    [gap] = entries(store.root, config, Query(kind="gap"))
    assert gap["lost"] == counted(running, head, "lost_total")
    assert verify(store.root, config, deep=True).sound
