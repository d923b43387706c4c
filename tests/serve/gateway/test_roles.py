"""Who may pass a governed gateway: every route it has, by every method, role and state of a key. The routes are its own
table, so that a new one is asked here by itself.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
from starlette.routing import BaseRoute, Mount, Route

from catena.core.config import parse
from catena.govern.config import AuditConfig, AuthConfig, GovernConfig, ModerationConfig
from catena.govern.keys import Keys
from catena.govern.roles import GRANTED, ROLES, Action, Role
from catena.hub.store import Store, init_store
from catena.serve.gateway.app import Gateway
from catena.serve.gateway.config import DeployConfig
from catena.serve.governed import governed
from catena.serve.rules import RULES, Rules
from catena.serve.server import background
from tests.serve.key_states import CLOSED, OPEN, credentials, keys_in_every_state

from .conftest import Running, commands, mock

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
STATES = (*OPEN, "other model", "fewer actions", *CLOSED)
FEWER: tuple[Action, ...] = ("models", "feedback")
SCOPED = {"infer", "/v1/models/{name:path}"}
"""What needs a key for the model that is asked: an action, and a page about one model."""
ONLY_ADMINS = {("/admin/keys", "GET"), ("/admin/keys", "POST"), ("/admin/keys/{id}", "POST"), ("/admin/audit", "GET")}
RELEASE = ("/admin/releases/{model:path}", "POST")
NOT_FOR_USERS = {("/metrics", "GET"), ("/v1/feedback", "GET"), ("/admin/lineage/{ref:path}", "GET")} | {
    (path, method) for path in ("/admin/releases", "/admin/releases/{model:path}") for method in ("GET", "POST")
}
OF_ANYBODY = {"/health", "/ready", "/openapi.json", "/docs"}
ELSEWHERE = frozenset({"/console/{path:path}", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
"""Rules of routes that a gateway does not have."""
GOVERN = GovernConfig(
    auth=AuthConfig(on=True, refresh_s=3600),
    audit=AuditConfig(on=True, durable=False),
    moderation=ModerationConfig(on=True),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = init_store(tmp_path_factory.mktemp("roles") / ".catena")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def keys(store: Store) -> dict[tuple[str, str], str]:
    """What is sent for each role and state."""
    book = Keys(store.index)
    made = keys_in_every_state(book)
    for role in ROLES:
        made[role, "other model"] = book.create(f"{role} other model", role, models=("other*",))[0]
        made[role, "fewer actions"] = book.create(f"{role} fewer actions", role, actions=FEWER)[0]
    return made


@pytest.fixture(scope="module")
def running(store: Store, keys: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway with all that governs on, before a real replica."""
    deploy = parse(DeployConfig, {"port": 0, "models": {"m": mock()}, "telemetry": {"gpus": False}})
    with governed(store, GOVERN, deploy.http) as middleware:
        state = tmp_path_factory.mktemp("state")
        gateway = Gateway(deploy, state=state, commands=commands, middleware=middleware)
        with background(gateway, beside=gateway.running(), config=deploy.http) as url:
            made = Running(url, gateway)
            made.ready(1)
            yield made
            made.client.close()


def path_of(route: BaseRoute) -> str:
    """A route's path as the table of rules writes it."""
    assert isinstance(route, Route | Mount), route
    return f"{route.path}/{{path:path}}" if isinstance(route, Mount) else route.path


def needed(method: str, path: str) -> Action | None:
    """What the table of rules says for a route, read without the code that finds a rule for a path."""
    rule = RULES[path]
    return rule if isinstance(rule, str) else rule.get("GET" if method == "HEAD" else method)


def expected(role: Role, state: str, method: str, path: str) -> set[int]:
    """The statuses that a request may have, as far as they are about who asks; empty: any but 401 and 403."""
    action = needed(method, path)
    if action == "public":
        return set()
    if state in CLOSED:
        return {401}
    granted = GRANTED[role] & {*FEWER} if state == "fewer actions" else GRANTED[role]
    if action is None:
        return {404, 405}
    if action not in granted:
        return {403}
    if state == "other model" and (SCOPED & {action, path} or (path, method) == RELEASE):
        return {403}
    return set()


async def asked(running: Running, key: str, state: str) -> list[tuple[str, str, httpx.Response]]:
    """Ask every path by every method; but for plain good keys, of those that a route does not have by one alone."""
    turn, head = asyncio.Semaphore(16), credentials(key, state)
    pairs = set()
    for route in running.gateway.routes:
        path = path_of(route)
        has = set(METHODS if isinstance(route, Mount) or state == "active" else getattr(route, "methods", None) or ())
        pairs |= {(method, path) for method in has | {"PUT"}}

    async def one(client: httpx.AsyncClient, method: str, path: str) -> tuple[str, str, httpx.Response]:
        url = running.url + re.sub(r"{\w+(:path)?}", "m", path)
        body = {"json": {"model": "m"}} if method in ("POST", "PUT", "PATCH") else {}
        async with turn:
            return method, path, await client.request(method, url, headers=head, **body)

    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        return await asyncio.gather(*(one(client, method, path) for method, path in sorted(pairs)))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("role", ROLES)
def test_every_route_by_every_method_role_and_state(running: Running, keys: Any, role: Role, state: str) -> None:
    found = asyncio.run(asked(running, keys[role, state], state))
    assert {path for _, path, _ in found} == set(RULES) - ELSEWHERE
    for method, path, answer in found:
        wanted, told = expected(role, state, method, path), (method, path, answer.status_code, answer.text[:200])
        if wanted:
            assert answer.status_code in wanted, told
        else:
            assert answer.status_code not in (401, 403), told
        if answer.status_code == 401:
            assert answer.headers["www-authenticate"].startswith("Bearer"), told
        if path not in OF_ANYBODY and method != "HEAD" and answer.status_code in (401, 403):
            assert set(answer.json()) == {"error"}, told
        if (path, method) in ONLY_ADMINS and role != "admin":
            assert answer.status_code in (401, 403), told
        if (path, method) in NOT_FOR_USERS and role == "user":
            assert answer.status_code in (401, 403), told


def test_the_rules_are_those_of_the_routes_that_there_are(running: Running) -> None:
    paths = [path_of(route) for route in running.gateway.routes]
    assert set(paths) == set(RULES) - ELSEWHERE
    told = running.get("/openapi.json").json()["paths"]
    assert {*told, "/openapi.json", "/docs"} == {path.replace(":path}", "}") for path in paths}


def test_only_these_pages_are_everybodys(running: Running) -> None:
    paths = {path_of(route) for route in running.gateway.routes}
    assert {path for path in paths if any(needed(method, path) == "public" for method in METHODS)} == OF_ANYBODY


def test_a_key_for_other_models_starts_no_release(running: Running, keys: Any) -> None:
    body = {"model": "m", "candidate": "m"}
    for role in ("developer", "admin"):
        head = credentials(keys[role, "other model"], "other model")
        answer = running.client.post(f"{running.url}/admin/releases", json=body, headers=head)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_not_allowed")
        assert running.client.get(f"{running.url}/admin/releases", headers=head).json()["changes"] == []


def test_the_table_finds_for_a_path_the_rule_of_its_own_route(running: Running) -> None:
    for path in {path_of(route) for route in running.gateway.routes}:
        for method in METHODS:
            filled = re.sub(r"{\w+(:path)?}", "m", path)
            assert Rules().action(method, filled) == needed(method, path), (method, path)
