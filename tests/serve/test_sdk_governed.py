"""Keys, feedback, the audit and lineage by the SDK, before a governed server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from catena.govern.audit.reading import Query, entries
from catena.govern.config import AuditConfig, AuthConfig, GovernConfig
from catena.govern.keys import Keys
from catena.hub.store import Store
from catena.sdk import ApiError, Catena
from catena.serve.app import build_app
from catena.serve.config import ServeConfig
from catena.serve.governed import governed
from catena.serve.server import background

from .scripted import Scripted

CONFIG = GovernConfig(auth=AuthConfig(on=True), audit=AuditConfig(on=True))


@pytest.fixture
def server(store: Store, tokenizer: Any) -> Iterator[tuple[str, str]]:
    """A governed server and an administrator's key."""
    key = Keys(store.index).create("root", "admin")[0]
    with governed(store, CONFIG, ServeConfig()) as middleware:
        app = build_app({"m": Scripted(tokenizer, "an answer")}, middleware=middleware)
        with background(app) as url:
            yield url, key


def test_keys_are_made_rotated_and_revoked(server: tuple[str, str]) -> None:
    url, key = server
    with Catena(url, key=key) as root:
        made = root.create_key("ada", models=["m"], expires_s=3600)
        assert (made.role, made.models, made.state) == ("user", ("m",), "active")
        assert made.key not in repr(made)
        with Catena(url, key=made.key) as ada:
            assert [one.id for one in ada.models()] == ["m"]
            for refused in (ada.keys, ada.audit, lambda: ada.lineage("m")):
                with pytest.raises(ApiError) as error:
                    refused()
                assert error.value.status == 403
        fresh = root.rotate_key(made.id)
        assert root.revoke_key(fresh.id).state == "revoked"
        known = root.keys()
        assert {one.name for one in known} == {"root", "ada"}
        with Catena(url, key=fresh.key) as gone, pytest.raises(ApiError) as error:
            gone.models()
        assert error.value.status == 401


def test_feedback_goes_to_the_answer(server: tuple[str, str]) -> None:
    url, key = server
    with Catena(url, key=key) as root:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        with root._client.stream("POST", "/v1/chat/completions", json=body) as answer:
            request_id = answer.headers["x-request-id"]
            answer.read()
        told = root.feedback("down", consent=True, request_id=request_id, correction="another answer")
        assert (told.rating, told.corrected, told.revision) == ("down", True, 1)
        assert root.feedback("up", consent=False, request_id=request_id).revision == 2
        assert [(one.id, one.rating) for one in root.feedbacks()] == [(told.id, "up")]


def test_the_audit_is_searched_and_says_so(server: tuple[str, str], store: Store) -> None:
    url, key = server
    with Catena(url, key=key) as root:
        with pytest.raises(ApiError):
            root.tokenize("nobody", "a marmot asks")
        found = root.audit(subject="root", text="marmot")
        assert [(one.kind, (one.model_extra or {})["path"]) for one in found] == [("request", "/tokenize")]
        assert root.audit(kind="answer", limit=1)[0].kind == "answer"
        for wrong in ({"since": "soon"}, {"limit": 0}, {"color": "red"}):
            with pytest.raises(ApiError) as error:
                root.audit(**wrong)
            assert error.value.status == 400
    told = list(entries(store.root, CONFIG.audit, Query()))
    acts = [one for one in told if one.get("act") == "audit.search"]
    assert [one["found"] for one in acts] == [1, 1]
    assert (acts[0]["by"], acts[0]["query"]) == ("root", {"text": "marmot"})
    answers = [one for one in told if one["kind"] == "answer" and one["path"] == "/admin/audit"]
    assert len(answers) == 5
    assert not any("marmot" in str(one["body"]) for one in answers)


def test_lineage_leads_from_a_model_to_what_it_was_made_from(
    server: tuple[str, str], store: Store, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    model = store.put_model(folder)
    store.index.add_artifact(model)
    store.index.add_name("helper", model.digest)
    url, key = server
    with Catena(url, key=key) as root:
        told = root.lineage("helper@latest")
        assert (told.root, told.names("model")) == (model.digest, ["helper@1"])
        assert root.lineage(model.digest[:12]).root == model.digest
        with pytest.raises(ApiError) as error:
            root.lineage("nothing")
        assert error.value.status == 404
