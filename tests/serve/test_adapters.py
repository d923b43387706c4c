"""Adapters that come and go over HTTP while the model answers, as with vLLM's routes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from catena.core.errors import NotFound
from catena.infer.engine import Engine
from catena.serve.app import build_app
from catena.serve.server import background

# peft asks transformers by a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
ASKED: Any = {"prompt": "hello", "max_tokens": 12, "temperature": 0}


@pytest.fixture
def engine(engine_of: Callable[..., Engine]) -> Engine:
    """An engine whose adapters are this test's own."""
    return engine_of()


@pytest.fixture
def url(engine: Engine, adapter: Path) -> Iterator[str]:
    """A server that knows one stored adapter, `french`."""

    def stored(ref: str) -> Path:
        if ref != "french@2":
            raise NotFound(f"there is no model {ref!r}")
        return adapter

    with background(build_app({"tiny": engine}, adapters=stored)) as address:
        yield address


def load(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/load_lora_adapter", json=body, timeout=60)


def unload(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/unload_lora_adapter", json=body, timeout=60)


def text_of(client: openai.OpenAI, model: str) -> str:
    return client.completions.create(model=model, **ASKED).choices[0].text


def test_an_adapter_is_loaded_answers_and_goes(url: str, client_of: Callable[[str], openai.OpenAI]) -> None:
    client = client_of(url)
    plain = text_of(client, "tiny")
    with pytest.raises(openai.NotFoundError):
        text_of(client, "tiny:french")
    assert load(url, lora_name="french", lora_path="french@2").json()["id"] == "tiny:french"
    assert [one.id for one in client.models.list()] == ["tiny", "tiny:french"]
    adapted = text_of(client, "tiny:french")
    assert adapted != plain
    assert text_of(client, "french") == adapted
    assert text_of(client, "tiny") == plain
    assert unload(url, lora_name="french").status_code == 200
    assert [one.id for one in client.models.list()] == ["tiny"]
    with pytest.raises(openai.NotFoundError):
        text_of(client, "tiny:french")


def test_loading_holds_nobody_up(url: str, client_of: Callable[[str], openai.OpenAI]) -> None:
    client = client_of(url)
    plain = text_of(client, "tiny")
    found: list[str] = []
    askers = [threading.Thread(target=lambda: found.append(text_of(client, "tiny"))) for _ in range(6)]
    for asker in askers:
        asker.start()
    for _ in range(4):
        assert load(url, lora_name="french", lora_path="french@2", load_inplace=True).status_code == 200
    for asker in askers:
        asker.join()
    assert found == [plain] * 6


def test_an_adapter_in_place_of_another_leaves_none_behind(url: str, engine: Engine) -> None:
    for _ in range(5):
        assert load(url, lora_name="french", lora_path="french@2", load_inplace=True).status_code == 200
    assert len(engine.runner.adapters._adapters) == 1


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"lora_name": "a"}, 400, "lora_path"),
        ({"lora_name": "../a", "lora_path": "french@2"}, 400, "lora_name"),
        ({"lora_name": "a", "lora_path": "german"}, 404, "german"),
        ({"lora_name": "a", "lora_path": "french@2", "model": "huge"}, 404, "huge"),
        ({"lora_name": "a", "lora_path": "french@2", "is_3d_lora_weight": True}, 400, "is_3d_lora_weight"),
        ({"lora_name": "french", "lora_path": "french@2"}, 400, "load_inplace"),
    ],
)
def test_what_cannot_be_loaded_is_refused(url: str, body: dict[str, Any], status: int, says: str) -> None:
    assert load(url, lora_name="french", lora_path="french@2").status_code == 200
    answer = load(url, **body)
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]


def test_what_is_not_loaded_cannot_go(url: str) -> None:
    answer = unload(url, lora_name="german")
    assert answer.status_code == 404
    assert "german" in answer.json()["error"]["message"]


def test_the_routes_are_there_only_with_a_workspace(engine: Engine, url: str) -> None:
    assert "/v1/load_lora_adapter" in httpx.get(f"{url}/openapi.json").json()["paths"]
    with background(build_app({"tiny": engine})) as without:
        assert load(without, lora_name="a", lora_path="b").status_code == 404
        assert "/v1/load_lora_adapter" not in httpx.get(f"{without}/openapi.json").json()["paths"]
