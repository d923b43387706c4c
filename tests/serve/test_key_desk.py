"""Keys over HTTP: who may, what is shown, what is written down, and that nobody gets more than they have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from catena.govern.audit.reading import Query, entries
from catena.govern.audit.verify import verify
from catena.govern.config import AuditConfig, AuthConfig, GovernConfig
from catena.govern.keys import Keys
from catena.hub.store import Store, init_store
from catena.serve.app import build_app
from catena.serve.config import ServeConfig
from catena.serve.governed import governed
from catena.serve.server import background

CONFIG = GovernConfig(auth=AuthConfig(on=True, refresh_s=3600), audit=AuditConfig(on=True))


class Desk:
    """A server, and how to ask it."""

    def __init__(self, url: str, store: Store) -> None:
        self.url, self.store = url, store
        make = Keys(store.index).create
        self.admin = make("root", "admin")[0]
        self.user = make("ada", "user")[0]
        self.narrow = make("clerk", "admin", actions=("keys", "infer"), models=("small*",))[0]

    def ask(self, path: str = "", key: str = "", body: Any = None, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key or self.admin}"}
        method = "GET" if body is None else "POST"
        return httpx.request(
            method, f"{self.url}/admin/keys{path}", json=body, headers=headers, timeout=30, trust_env=False, **options
        )

    def opens(self, key: str) -> bool:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.get(f"{self.url}/v1/models", headers=headers, trust_env=False).status_code == 200


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    store = init_store(tmp_path_factory.mktemp("desk") / ".catena")
    Keys(store.index).create("first", "user")
    made = Desk("", store)
    with (
        governed(store, CONFIG, ServeConfig()) as middleware,
        background(build_app({}, middleware=middleware)) as made.url,
    ):
        yield made
    store.close()


def test_a_key_is_made_used_rotated_and_revoked(desk: Desk) -> None:
    answer = desk.ask(body={"name": "shop", "subject": "shop@corp", "models": ["helper*"], "expires_s": 3600})
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    made = answer.json()
    assert desk.opens(made["key"])
    assert (made["role"], made["state"], made["models"]) == ("user", "active", ["helper*"])
    assert "hash" not in made
    assert "salt" not in made
    new = desk.ask(f"/{made['id']}", body={"act": "rotate"}).json()
    assert (desk.opens(new["key"]), desk.opens(made["key"])) == (True, False)
    assert desk.ask(f"/{new['id']}", body={"act": "revoke"}).json()["state"] == "revoked"
    assert not desk.opens(new["key"])
    shown = {one["id"]: one["state"] for one in desk.ask().json()["data"]}
    assert (shown[made["id"]], shown[new["id"]]) == ("revoked", "revoked")
    assert desk.ask(f"/{made['id']}").json()["successor"] == new["id"]


def test_a_name_is_revoked_with_the_key_that_has_a_time_of_grace(desk: Desk) -> None:
    made = desk.ask(body={"name": "graced"}).json()
    turned = desk.ask("/graced", body={"act": "rotate", "grace_s": 3600}).json()
    told = desk.ask("/graced", body={"act": "revoke"}).json()
    assert (told["id"], told["also_revoked"]) == (turned["id"], [made["id"]])
    assert (desk.opens(made["key"]), desk.opens(turned["key"])) == (False, False)
    entered = entries(desk.store.root, CONFIG.audit, Query())
    assert [one["key"] for one in entered if one.get("act") == "keys.revoke"][-2:] == [turned["id"], made["id"]]


def test_the_audit_has_every_act_and_no_secret(desk: Desk) -> None:
    made = desk.ask(body={"name": "noted"}).json()
    turned = desk.ask("/noted", body={"act": "rotate", "grace_s": 60}).json()
    root = desk.store.root
    told = list(entries(root, CONFIG.audit, Query()))
    acts = [one for one in told if one.get("key") in (made["id"], turned["id"]) and one["kind"] == "act"]
    assert [(one["act"], one["by"]) for one in acts] == [("keys.create", "root"), ("keys.rotate", "root")]
    words = json.dumps(told)
    assert made["key"].split("_", 2)[2] not in words  # a secret may have "_" in it
    assert turned["key"].split("_", 2)[2] not in words
    assert any(one.get("body") == "not kept: it may hold a secret" for one in told)
    assert verify(root, CONFIG.audit, deep=True).sound


def test_only_who_may_do_keys_may(desk: Desk) -> None:
    for body in (None, {"name": "x"}):
        assert desk.ask(key=desk.user, body=body).status_code == 403
        assert desk.ask("/first", key=desk.user, body=body and {"act": "revoke"}).status_code == 403
    assert httpx.get(f"{desk.url}/admin/keys", trust_env=False).status_code == 401


def test_nobody_gets_more_than_they_have(desk: Desk) -> None:
    good = {"name": "x", "role": "user", "actions": ["infer"], "models": ["small*"]}
    assert desk.ask(key=desk.narrow, body=good).status_code == 201
    for more in ({"role": "admin", "actions": []}, {"actions": []}, {"models": ["*"]}, {"models": ["small*", "big"]}):
        refused = desk.ask(key=desk.narrow, body={**good, **more})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden"), more
    assert desk.ask("/root", key=desk.narrow, body={"act": "rotate"}).status_code == 403
    assert desk.opens(desk.admin)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("", {}, 400),
        ("", {"name": "x", "role": "king"}, 400),
        ("", {"name": "x", "more": 1}, 400),
        ("", {"name": "a\nb"}, 400),
        ("", {"name": "x", "actions": ["fly"]}, 400),
        ("", {"name": "x", "actions": ["audit"]}, 400),
        ("", {"name": "x", "expires_s": 0}, 400),
        ("", {"name": "x", "expires_s": 1e18}, 400),
        ("", ["name"], 400),
        ("/nobody", {"act": "revoke"}, 404),
        ("/first", {"act": "explode"}, 400),
        ("/first", {"act": "rotate", "grace_s": -1}, 400),
        ("/first/more", {"act": "revoke"}, 404),
    ],
)
def test_what_makes_no_sense_is_said(desk: Desk, path: str, body: Any, status: int) -> None:
    answer = desk.ask(path, body=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_other_methods_are_refused(desk: Desk) -> None:
    headers = {"authorization": f"Bearer {desk.admin}"}
    assert httpx.delete(f"{desk.url}/admin/keys/first", headers=headers, trust_env=False).status_code == 405
