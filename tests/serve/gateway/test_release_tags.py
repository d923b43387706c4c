"""A promotion moves the tag that the deploy file names, and a rollback puts it back; both outlive the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from catena.core.errors import UsageError
from catena.core.types import ModelVersion
from catena.hub.store import Store
from catena.serve.releases.tags import Tags

from .conftest import Running, Start, eventually

REF = "helper@production"


@pytest.fixture
def models(store: Store, tmp_path: Path) -> tuple[str, str]:
    return two_versions(store, tmp_path)


def two_versions(store: Store, tmp_path: Path) -> tuple[str, str]:
    """Store two versions of `helper`, the first of them in production; returns their digests."""
    digests = []
    for number in (1, 2):
        folder = tmp_path / f"model-{number}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights %d" % number)
        digests.append(named(store, folder))
    store.tag("helper@1", "production", "somebody")
    return digests[0], digests[1]


def named(store: Store, folder: Path) -> str:
    model = store.put_model(folder)
    store.index.add_artifact(model)
    store.index.add_name("helper", model.digest)
    return model.digest


def production(store: Store) -> str:
    return store.resolve(REF, ModelVersion).digest


def begun(start: Start, store: Store, **config: Any) -> Running:
    model = {"model": REF, "replicas": {"backoff_s": 0.05, "health_s": 0.3, "drain_s": 1}}
    return start({"m": model}, store=store, **config)


def act(running: Running, what: str) -> int:
    body = {"act": what, "reason": "because"}
    return running.client.post(f"{running.url}/admin/releases/m", json=body).status_code


def released(running: Running) -> None:
    body = {"model": "m", "candidate": "helper@2", "release": {"steps": [50]}}
    assert running.client.post(f"{running.url}/admin/releases", json=body).status_code == 201
    eventually(lambda: running.get("/admin/releases/m").json().get("phase") == "under way")


def served(running: Running) -> str:
    return str(running.chat("hi").json()["model"])


def test_the_tag_goes_with_the_promotion_and_comes_back_with_the_rollback(
    start: Start, store: Store, models: tuple[str, str]
) -> None:
    old, new = models
    running = begun(start, store)
    released(running)
    assert production(store) == old
    assert act(running, "promote") == 200
    assert production(store) == new
    assert served(running) == new[:12]
    assert act(running, "rollback") == 200
    assert production(store) == old
    assert served(running) == old[:12]
    moves = [(move.digest, move.by) for move in store.index.tag_history("helper") if move.tag == "production"]
    assert moves == [(old, "somebody"), (new, "local"), (old, "local")]
    changes = running.get("/admin/releases").json()["changes"]
    assert [change["act"] for change in changes] == ["start", "promote", "rollback"]
    assert changes[1]["tag"] == {"name": "helper", "tag": "production", "before": old, "after": new}
    assert changes[2]["tag_put_back"] is True


def test_a_candidate_that_is_not_stored_is_refused_at_once(start: Start, store: Store, models: tuple[str, str]) -> None:
    running = begun(start, store)
    for candidate, told in (("helpr@2", "helper"), ("helper@9", "helper")):
        answer = running.client.post(f"{running.url}/admin/releases", json={"model": "m", "candidate": candidate})
        assert answer.status_code == 404, answer.text
        assert told in answer.json()["error"]["message"]
    assert not running.gateway.releases.active
    assert running.get("/admin/releases").json()["models"] == {"m": REF}


def test_what_was_promoted_can_still_go_back_after_a_restart(
    start: Start, store: Store, models: tuple[str, str]
) -> None:
    old, new = models
    first = begun(start, store)
    released(first)
    assert act(first, "promote") == 200
    first.stop()
    again = begun(start, store)
    assert served(again) == new[:12]
    assert again.get("/admin/releases/m").json()["phase"] == "baking"
    assert act(again, "rollback") == 200
    assert (production(store), served(again)) == (old, old[:12])


def test_a_tag_that_somebody_moved_is_left_alone(start: Start, store: Store, models: tuple[str, str]) -> None:
    running = begun(start, store)
    released(running)
    assert act(running, "promote") == 200
    store.tag("helper@1", "production", "somebody else")
    assert act(running, "rollback") == 200
    assert running.get("/admin/releases").json()["changes"][-1]["tag_put_back"] is False
    assert [move.by for move in store.index.tag_history("helper")][-1] == "somebody else"


def test_a_gateway_that_ended_in_the_middle_of_a_promotion(
    start: Start, store: Store, models: tuple[str, str], tmp_path: Path
) -> None:
    old, new = models
    first = begun(start, store)
    released(first)
    first.stop()
    kept = tmp_path / "state" / "releases.json"
    told = orjson.loads(kept.read_bytes())
    move = {"name": "helper", "tag": "production", "before": old, "after": new}
    kept.write_bytes(orjson.dumps(told | {"moving": {"m": {"release": "r", "move": move}}}))
    store.index.move_tag("helper", "production", new, "local")
    again = begun(start, store)
    assert served(again) == new[:12]
    assert [change["act"] for change in again.get("/admin/releases").json()["changes"]] == ["start", "promote"]
    assert not again.gateway.releases.active


def test_of_two_gateways_with_one_state_folder_one_does_the_releases(
    start: Start, store: Store, models: tuple[str, str]
) -> None:
    first, second = begun(start, store), begun(start, store)
    body = {"model": "m", "candidate": "helper@2"}
    refused = second.client.post(f"{second.url}/admin/releases", json=body)
    assert refused.status_code == 400
    assert "another gateway" in refused.json()["error"]["message"]
    first.stop()
    assert second.client.post(f"{second.url}/admin/releases", json=body).status_code == 201


def test_only_a_tag_of_the_same_name_moves(store: Store, models: tuple[str, str]) -> None:
    tags = Tags(store)
    assert tags.move("helper", "helper@2") is None
    assert tags.move("helper@1", "helper@2") is None
    move = tags.move(REF, "helper@2")
    assert move is not None
    tags.go(move, "me")
    assert tags.went(move)
    with pytest.raises(UsageError, match="moved meanwhile"):
        tags.go(move, "me")
    assert tags.back(move, "me")
    assert not tags.back(move, "me")
