"""What is asked wrongly is refused, and what is wrong is named."""

from __future__ import annotations

import copy
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from catena.infer.engine import Engine
from catena.serve.app import build_app
from catena.serve.server import background

from .asking import ASK, JSON, head, post


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"temperature": True}, "temperature", "number"),
        ({"top_p": 1.5}, "top_p", "less than or equal to 1"),
        ({"max_tokens": 0}, "max_tokens", "greater than"),
        ({"max_tokens": 1.5}, "max_tokens", "integer"),
        ({"max_tokens": 10**9}, None, "1000000000"),
        ({"n": 10**6}, "n", "at most 8"),
        ({"n": 0}, "n", "greater than"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": [""]}, "stop.0", "at least 1"),
        ({"stop": 3}, "stop", "string"),
        ({"seed": "x"}, "seed", "integer"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": None}, "messages", "required"),
        ({"messages": "hi"}, "messages", "list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "assistant"),
        ({"messages": [{"content": "x"}]}, "messages.0.role", "required"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id", "required"),
        ({"messages": [{"role": "assistant"}]}, "messages", "content is required"),
        ({"top_logprobs": 3}, "top_logprobs", "only allowed with logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "takes no tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "pattern"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type", "function"),
        ({"tool_choice": "auto"}, "tool_choice", "only allowed with tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "what"}}}},
            None,
            "JSON schema",
        ),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "response_format",
            "only one",
        ),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"regex": "a["}}, None, "regular expression"),
        ({"metadata": {"a": 3}}, "metadata.a", "string"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "string"),
        ({"messages": [{"role": "user", "content": "x", "name": "Bo"}]}, "messages.0.name", "not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type", "text"),
        ({"messages": [{"role": "user", "content": "long " * 300}]}, None, "the context is 256 tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed with stream"),
        ({"temprature": 1}, "temprature", "Did you mean 'temperature'"),
        ({"model": None}, "model", "required"),
        ({"model": 4}, "model", "string"),
        ({"top_k": -1}, "top_k", "greater than"),
        ({"min_p": 1.1}, "min_p", "less than"),
        ({"presence_penalty": True}, "presence_penalty", "number"),
        ({"frequency_penalty": -2.5}, "frequency_penalty", "greater than"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater than"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "less than"),
        ({"logit_bias": {"five": 1}}, "logit_bias.five", "integer"),
        ({"logit_bias": {"99999": 1}}, None, "logit_bias names the token 99999"),
        ({"logit_bias": [5]}, "logit_bias", "dictionary"),
    ],
)
def test_a_bad_value_is_refused_by_name(url: str, change: dict[str, Any], param: str | None, says: str) -> None:
    response = post(url, {**ASK, **change})
    assert response.status_code == 400
    error = response.json()["error"]
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content", "content": "x"}),
        ("reasoning_effort", "high"),
        ("service_tier", "flex"),
        ("store", True),
        ("verbosity", "low"),
        ("web_search_options", {}),
        ("moderation", {"model": "x"}),
        ("prompt_cache_options", {}),
    ],
)
def test_what_does_not_work_is_refused_by_name(url: str, field: str, value: Any) -> None:
    response = post(url, {**ASK, field: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert response.json()["error"]["code"] == "unsupported_parameter"


def test_every_field_of_the_clients_schema_is_known() -> None:
    from openai.types.chat import completion_create_params as schema

    from catena.serve.chat_wire import ChatRequest

    fields = set(schema.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert fields <= set(ChatRequest.NEUTRAL) | set(ChatRequest.model_fields)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "not valid JSON"),
        (b"{", 400, "not valid JSON"),
        (b"[1]", 400, "JSON object"),
        (b"\xff\xfe{}", 400, "not valid"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\xc3\x28"}]}', 400, "not valid UTF-8"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, "not valid JSON"),
        (b'{"temperature": NaN}', 400, "not valid JSON"),
        (b"[" * 100_000, 400, "not valid JSON"),
        (b'{"model": "' + b"x" * (2 << 20) + b'"}', 413, "longer than 1048576 bytes"),
    ],
)
def test_a_bad_body_is_refused(url: str, body: bytes, status: int, says: str) -> None:
    response = post(url, body)
    assert response.status_code == status
    assert says in response.json()["error"]["message"]
    assert "Traceback" not in response.text


def test_a_body_of_a_hundred_megabytes_is_refused_before_it_comes(url: str) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(head(parts.netloc, 100_000_000))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")


def test_a_template_that_refuses_a_conversation_is_400_with_its_words(
    engine_of: Callable[..., Engine], tokenizer: Any
) -> None:
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with background(build_app({"tiny": engine_of(strict)})) as url:
        response = post(url, ASK)
    assert response.status_code == 400
    assert "roles must alternate" in response.json()["error"]["message"]


def test_a_long_body_in_pieces_is_refused_as_well(url: str) -> None:
    def pieces() -> Any:
        for _ in range(40):
            yield b"x" * 65536

    response = httpx.post(f"{url}/v1/chat/completions", content=pieces(), timeout=30, headers=JSON)
    assert response.status_code == 413


def test_unknown_routes_and_methods_answer_in_the_same_form(url: str) -> None:
    assert httpx.get(f"{url}/v2/chat").json()["error"]["code"] == "unknown_url"
    wrong = httpx.get(f"{url}/v1/chat/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
