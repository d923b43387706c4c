"""Who may pass: every route, by every role, with every state of a key, from the server's own table of routes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2 as httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route

from catena.core.errors import ConfigError, UsageError
from catena.govern.config import AuthConfig, GovernConfig, JwtConfig
from catena.govern.keys import Keys
from catena.govern.roles import ACTIONS, GRANTED, ROLES
from catena.hub.store import Store, init_store
from catena.serve.app import build_app
from catena.serve.config import ServeConfig
from catena.serve.governed import governed, require_auth_beyond
from catena.serve.rules import RULES, Rules, require_rules
from catena.serve.server import background, listen

from .key_states import CLOSED, OPEN, credentials, keys_in_every_state

SIGNER = ed25519.Ed25519PrivateKey.generate()


class Silent:
    """A generator that is never asked: the requests of these tests have no fields."""

    def stats(self) -> Mapping[str, float]:
        return {}


MODELS: dict[str, Any] = {"tiny": Silent(), "other": Silent()}
STATES = (*OPEN, *CLOSED)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = init_store(tmp_path_factory.mktemp("auth") / ".catena")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def keys(store: Store) -> dict[tuple[str, str], str]:
    """A key of each role in each state: (role, state) to what is sent."""
    book = Keys(store.index)
    made = keys_in_every_state(book)
    made["user", "scoped"] = book.create("scoped", "user", models=("tiny", "tiny:*"))[0]
    made["admin", "narrow"] = book.create("narrow", "admin", actions=("metrics",))[0]
    return made


@pytest.fixture(scope="module")
def app(store: Store, keys: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starlette]:
    jwks = tmp_path_factory.mktemp("jwks") / "keys.json"
    public = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(SIGNER.public_key()))
    jwks.write_text(json.dumps({"keys": [{**public, "kid": "1"}]}))
    provider = JwtConfig(issuer="https://id.example", audience="catena", jwks=str(jwks))
    config = GovernConfig(auth=AuthConfig(on=True, refresh_s=3600, jwt=provider))
    with governed(store, config, ServeConfig()) as middleware:
        yield build_app(MODELS, middleware=middleware)


def routes() -> list[tuple[str, str]]:
    """Every method and path that the server has, from the application itself."""
    found = []
    for route in build_app(MODELS).routes:
        assert isinstance(route, Route)
        found += [(method, route.path) for method in sorted(route.methods or ())]
    return found


def ask(app: Starlette, method: str, path: str, headers: Any = (), body: Any = None) -> httpx.Response:
    """One request, in this process."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            content = {} if body is None else body
            return await client.request(method, path, headers=headers, json=content if method == "POST" else None)

    return asyncio.run(send())


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("role", ROLES)
def test_every_route_for_every_role_and_state(app: Starlette, keys: Any, role: Any, state: str) -> None:
    for method, path in routes():
        action = Rules().action(method, path)
        assert action is not None, path
        answer = ask(app, method, path.replace("{name:path}", "tiny"), credentials(keys[role, state], state))
        told = (path, role, state, answer.status_code, answer.text[:200])
        if action == "public" or (state in OPEN and action in GRANTED[role]):
            assert answer.status_code not in (401, 403), told
        elif state in OPEN:
            assert answer.status_code == 403, told
        else:
            assert answer.status_code == 401, told
            assert answer.headers["www-authenticate"].startswith("Bearer"), told


def test_every_rule_is_of_a_route_or_of_none_and_names_an_action() -> None:
    for rule in RULES.values():
        actions = [rule] if isinstance(rule, str) else list(rule.values())
        assert set(actions) <= set(ACTIONS)


def test_a_route_without_a_rule_does_not_start() -> None:
    def page(request: Any) -> Response:
        return Response()

    with pytest.raises(ConfigError, match="/v1/secret has no rule"):
        require_rules([Route("/v1/secret", page)])
    with pytest.raises(ConfigError, match="/desk/"):
        require_rules([Mount("/desk", routes=[Route("/", page)])])
    with pytest.raises(ConfigError, match="no rule for who may use it \\(DELETE\\)"):
        require_rules([Route("/x", page, methods=["GET", "DELETE"])], {"/x": {"GET": "jobs"}})
    require_rules([Route("/x", page, methods=["GET", "DELETE"])], {"/x": {"GET": "jobs", "DELETE": "jobs"}})


def test_methods_of_one_path_may_need_different_actions() -> None:
    rules = Rules({"/v1/files/{id}": {"GET": "jobs", "DELETE": "admin"}})
    assert rules.action("HEAD", "/v1/files/7") == rules.action("GET", "/v1/files/7") == "jobs"
    assert rules.action("DELETE", "/v1/files/7") == "admin"
    assert rules.action("PUT", "/v1/files/7") is None


PATHS = [
    "/no/such",
    "//v1/models",
    "/v1/models/../../metrics",
    "/V1/MODELS",
    "/v1/chat/completions/",
    "/metrics/",
    "/%6detrics/x",
]


@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_route_tells_nothing_to_strangers(app: Starlette, keys: Any, path: str) -> None:
    assert ask(app, "GET", path).status_code == 401
    assert ask(app, "GET", path, credentials(keys["user", "active"], "active")).status_code in (307, 403, 404, 405)


def test_a_scoped_key_uses_only_its_models(app: Starlette, keys: Any) -> None:
    head = credentials(keys["user", "scoped"], "active")
    ways = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize"]
    for path in ways:
        assert ask(app, "POST", path, head, {"model": "tiny"}).status_code == 400  # the rest of the body is missing
        for model in ("other", "tiny2", "no-such", "TINY", "", None, 7, ["tiny"]):
            answer = ask(app, "POST", path, head, {"model": model})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_not_allowed"), model
    assert ask(app, "GET", "/v1/models/tiny", head).status_code == 200
    assert ask(app, "GET", "/v1/models/other", head).status_code == 403
    assert [model["id"] for model in ask(app, "GET", "/v1/models", head).json()["data"]] == ["tiny"]
    everything = ask(app, "GET", "/v1/models", credentials(keys["user", "active"], "active")).json()["data"]
    assert [model["id"] for model in everything] == ["tiny", "other"]


def test_the_model_of_a_scoped_key_is_the_one_that_the_endpoint_reads(app: Starlette, keys: Any) -> None:
    # JSON with the key twice: both sides must take the same one.
    async def send(body: bytes, kind: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        head = {"authorization": f"Bearer {keys['user', 'scoped']}", "content-type": kind}
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/tokenize", content=body, headers=head)

    twice = b'{"model": "tiny", "prompt": "x", "model": "other"}'
    assert asyncio.run(send(twice, "application/json")).status_code == 403
    assert asyncio.run(send(b'{"model": "other"', "application/json")).status_code == 400
    assert asyncio.run(send(b'{"model": "other"}', "text/plain")).status_code == 403


def test_a_narrow_key_may_less_than_its_role(app: Starlette, keys: Any) -> None:
    head = credentials(keys["admin", "narrow"], "active")
    assert ask(app, "GET", "/metrics", head).status_code == 200
    assert ask(app, "GET", "/v1/models", head).status_code == 403


def test_refusals_are_in_openais_form(app: Starlette) -> None:
    error = ask(app, "POST", "/v1/chat/completions").json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "missing_api_key", None)


def test_a_key_may_be_sent_in_other_headers_but_not_in_the_url(app: Starlette, keys: Any) -> None:
    key = keys["user", "active"]
    for name in ("x-api-key", "api-key"):
        assert ask(app, "GET", "/v1/models", [(name, key)]).status_code == 200
    assert ask(app, "GET", "/v1/models", [("authorization", f"bearer   {key} ")]).status_code == 200
    assert ask(app, "GET", "/v1/models", [("authorization", f"Basic {key}")]).status_code == 401
    assert ask(app, "GET", f"/v1/models?api_key={key}").status_code == 401


def test_tokens_of_the_provider_pass_by_their_role(app: Starlette) -> None:
    def bearer(**changed: Any) -> list[tuple[str, str]]:
        claims = {"iss": "https://id.example", "aud": "catena", "sub": "ada", "exp": time.time() + 60, **changed}
        return [("authorization", "Bearer " + jwt.encode(claims, SIGNER, algorithm="EdDSA", headers={"kid": "1"}))]

    assert ask(app, "GET", "/v1/models", bearer(roles="user")).status_code == 200
    assert ask(app, "GET", "/metrics", bearer(roles="user")).status_code == 403
    assert ask(app, "GET", "/metrics", bearer(roles="developer")).status_code == 200
    assert ask(app, "GET", "/v1/models", bearer()).status_code == 403
    assert ask(app, "GET", "/v1/models", bearer(roles="admin", exp=time.time() - 60)).status_code == 401


def test_over_http_a_body_that_auth_read_reaches_the_endpoint(app: Starlette, keys: Any) -> None:
    with background(app) as url:
        head = {"authorization": f"Bearer {keys['user', 'scoped']}"}
        answer = httpx.post(f"{url}/tokenize", json={"model": "tiny", "wrong": 1}, headers=head)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "wrong")
        large = httpx.post(f"{url}/tokenize", json={"model": "tiny", "prompt": "x" * (1 << 21)}, headers=head)
        assert large.status_code == 413


def test_an_open_door_to_the_network_must_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without --auth"):
        require_auth_beyond(listen("0.0.0.0", 0), GovernConfig())
    for config in (GovernConfig(allow_open=True), GovernConfig(auth=AuthConfig(on=True))):
        listener = listen("0.0.0.0", 0)
        require_auth_beyond(listener, config)
        listener.close()
    listener = listen("127.0.0.1", 0)
    require_auth_beyond(listener, GovernConfig())
    listener.close()
