"""Requests made up from the document that a governed gateway gives of itself: whatever comes, none is a 5xx."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies
from schemathesis.checks import not_a_server_error

from catena.core.config import parse
from catena.govern.config import AuditConfig, AuthConfig, GovernConfig, ModerationConfig
from catena.govern.keys import Keys
from catena.hub.store import Store, init_store
from catena.infer.engine import Engine
from catena.serve.app import build_app
from catena.serve.config import ServeConfig
from catena.serve.gateway.app import Gateway
from catena.serve.gateway.config import DeployConfig
from catena.serve.governed import governed
from catena.serve.server import background

from .conftest import Running, commands

GOVERN = GovernConfig(auth=AuthConfig(on=True), audit=AuditConfig(on=True), moderation=ModerationConfig(on=True))
ROLES = ("user", "developer", "admin")
EXAMPLES = 6
SHORT = ServeConfig(max_tokens=4, max_choices=2, max_prompts=4)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return init_store(tmp_path_factory.mktemp("fuzz") / ".catena")


@pytest.fixture(scope="module")
def gateway(
    store: Store, engine_of: Callable[..., Engine], hermes: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A gateway with all that governs on, before a server with a real engine."""
    with background(build_app({"tiny": engine_of(hermes)}, config=SHORT)) as behind:
        models = {"tiny": {"urls": [behind], "served": "tiny"}}
        deploy = parse(DeployConfig, {"port": 0, "models": models, "telemetry": {"gpus": False}})
        with governed(store, GOVERN, deploy.http) as middleware:
            state = tmp_path_factory.mktemp("state")
            made = Gateway(deploy, state=state, commands=commands, middleware=middleware)
            with background(made, beside=made.running(), config=deploy.http) as url:
                running = Running(url, made)
                running.ready(1, "tiny")
                yield running
                running.client.close()


def test_nothing_that_can_be_asked_with_a_key_breaks_the_gateway(gateway: Running, store: Store) -> None:
    book = Keys(store.index)
    keys = [book.create(role, role)[0] for role in ROLES]
    head = {"authorization": f"Bearer {keys[-1]}"}
    told = gateway.client.get(f"{gateway.url}/openapi.json", headers=head).json()
    assert {"/v1/chat/completions", "/v1/batches", "/v1/feedback", "/admin/keys", "/admin/releases"} <= {*told["paths"]}
    api = schemathesis.openapi.from_dict(told)
    seen: dict[str, set[int]] = {}
    for path, operations in told["paths"].items():
        for method in operations:
            operation = api[path][method.upper()]
            seen[f"{method} {path}"] = _asked(gateway.url, operation, keys)
    assert all(statuses - {401} for statuses in seen.values()), "every key opens"
    assert {200, 400} <= seen["post /v1/chat/completions"]
    assert gateway.client.get(f"{gateway.url}/health").json()["status"] == "ok"


def _asked(url: str, operation: Any, keys: list[str]) -> set[int]:
    wrong = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
    cases = operation.as_strategy()
    body = operation.body or operation.query or operation.path_parameters
    made = cases | wrong if body else cases
    seen: set[int] = set()

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(case=made, key=strategies.sampled_from(keys))
    def ask(case: Any, key: str) -> None:
        case.headers = {"authorization": f"Bearer {key}"}
        response = case.call(base_url=url, timeout=30)
        seen.add(response.status_code)
        case.validate_response(response, checks=[not_a_server_error])

    ask()
    return seen
