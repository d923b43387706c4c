"""The document that the server gives of itself, and requests made up from it: whatever comes, none is a 5xx."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2 as httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import negative_data_rejection, not_a_server_error, status_code_conformance

from catena.infer.engine import Engine
from catena.serve.app import ENDPOINTS, PAGES, build_app
from catena.serve.config import ServeConfig
from catena.serve.server import background

CHECKS = [not_a_server_error, status_code_conformance, negative_data_rejection]


@pytest.fixture(scope="module")
def fuzzed(engine_of: Callable[..., Engine], hermes: Any) -> Iterator[str]:
    """A server whose answers are short."""
    app = build_app({"tiny": engine_of(hermes)}, config=ServeConfig(max_tokens=4, max_choices=2, max_prompts=4))
    with background(app) as url:
        yield url


@pytest.fixture(scope="module")
def api(fuzzed: str) -> Any:
    """The server's own document."""
    return schemathesis.openapi.from_dict(httpx.get(f"{fuzzed}/openapi.json").json())


def test_every_route_is_in_the_document(fuzzed: str) -> None:
    told = httpx.get(f"{fuzzed}/openapi.json").json()
    assert set(told["paths"]) == {*ENDPOINTS, *PAGES}
    chat = told["components"]["schemas"]["ChatRequest"]
    assert chat["properties"]["model"]["enum"] == ["tiny"]
    assert "prediction" in chat["properties"]
    assert chat["additionalProperties"] is False


@pytest.mark.parametrize("path", sorted(ENDPOINTS))
def test_nothing_that_can_be_asked_breaks_the_server(fuzzed: str, api: Any, path: str) -> None:
    operation = api[path]["POST"]
    wrong = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
    strategy = operation.as_strategy() | wrong

    @settings(max_examples=25, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=strategy)
    def ask(case: Any) -> None:
        response = case.call(base_url=fuzzed, timeout=30)
        seen.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    seen: set[int] = set()
    ask()
    assert 400 in seen
