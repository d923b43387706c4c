"""Feedback at a gateway: a release hears of it once, and it is counted."""

from __future__ import annotations

import json

import pytest

from catena.govern.config import AuditConfig, GovernConfig
from catena.hub.store import Store
from catena.serve.config import ServeConfig
from catena.serve.governed import governed
from catena.serve.releases.manager import Releases

from .conftest import Start, mock


def test_what_users_say_reaches_a_release_once_and_is_counted(
    start: Start, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[str, bool]] = []
    monkeypatch.setattr(Releases, "like", lambda self, request, good: heard.append((request, good)))
    with governed(store, GovernConfig(audit=AuditConfig(on=True)), ServeConfig()) as middleware:
        running = start({"m": mock()}, middleware=middleware)
        name = running.chat("hello").headers["x-request-id"]
        body = {"request_id": name, "rating": "up", "consent": True}
        post = running.client.post
        assert post(f"{running.url}/v1/feedback", json=body).status_code == 201
        assert post(f"{running.url}/v1/feedback", json={**body, "rating": "down"}).status_code == 200
        assert heard == [(name, True)]
        found = {"measure": "psi", "value": 0.3, "verdict": "drift"}
        (store.root / "drift").mkdir()
        (store.root / "drift" / "latest.json").write_text(json.dumps({"features": {"language": found}}))
        told = running.get("/metrics").text
        assert 'catena_gateway_feedback{model="m",rating="down"} 1' in told
        assert 'catena_drift{feature="language",measure="psi"} 0.3' in told
        assert 'catena_drift_alarm{feature="language"} 1' in told


def test_a_rating_of_no_release_is_kept_all_the_same(start: Start, store: Store) -> None:
    with governed(store, GovernConfig(audit=AuditConfig(on=True)), ServeConfig()) as middleware:
        running = start({"m": mock()}, middleware=middleware)
        name = running.chat("hello", stream=True).headers["x-request-id"]
        body = {"request_id": name, "rating": "down", "consent": True}
        assert running.client.post(f"{running.url}/v1/feedback", json=body).status_code == 201
