from __future__ import annotations

import copy
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import openai
import pytest

from catena.infer.engine import Engine
from catena.serve.app import build_app
from catena.serve.config import ServeConfig
from catena.serve.server import background

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "你好, what does it do?"}]}


JSON = {"content-type": "application/json"}


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def post(url: str, body: Any, **options: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{url}/v1/chat/completions", content=content, timeout=30, **{"headers": JSON, **options})


def head(host: str, length: int) -> bytes:
    """The beginning of a request to the chat, as it goes over the wire."""
    lines = ("POST /v1/chat/completions HTTP/1.1", f"host: {host}", "content-type: application/json")
    return "\r\n".join([*lines, f"content-length: {length}", "\r\n"]).encode()


def before_each_step(engine: Engine, act: Callable[[], object]) -> None:
    """Let something happen before each pass through the model."""
    run = engine.runner.run

    def acting(chunks: Any) -> Any:
        act()
        return run(chunks)

    engine.runner.run = acting  # type: ignore[method-assign]


# -- the official client -------------------------------------------------------------------------------------------


def test_a_chat_has_an_answer_usage_and_the_digest_of_its_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, temperature=0, max_tokens=9)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 9
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 9
    assert answer.system_fingerprint == "0123456789ab"
    assert answer.id.startswith("chatcmpl-")


def test_a_stream_gives_the_same_text_in_pieces(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASK, temperature=0, max_tokens=20)
    chunks = list(
        client.chat.completions.create(
            **ASK, temperature=0, max_tokens=20, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len(chunks) > 5
    assert len({chunk.id for chunk in chunks}) == 1


def test_without_include_usage_no_chunk_has_usage(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**ASK, max_tokens=3, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_a_seed_repeats_an_answer_and_choices_differ(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {**ASK, "temperature": 1.2, "top_p": 0.95, "seed": 11, "n": 3, "max_tokens": 12}
    first, second = (client.chat.completions.create(**asked) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) == 3
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert first.usage is not None
    assert first.usage.completion_tokens == 36
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_stop_strings_end_an_answer(client: openai.OpenAI) -> None:
    free = client.chat.completions.create(**ASK, temperature=0, max_tokens=30).choices[0].message.content
    assert free
    stop = free[6:8]
    stopped = client.chat.completions.create(**ASK, temperature=0, max_tokens=30, stop=stop).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == free[: free.index(stop)]
    listed = client.chat.completions.create(**ASK, temperature=0, max_tokens=30, stop=["\x00never", stop]).choices[0]
    assert listed.message.content == stopped.message.content


def test_a_bias_decides_and_penalties_change_the_answer(client: openai.OpenAI, engine: Engine) -> None:
    token = engine.tokenizer.convert_tokens_to_ids("x")
    wishes = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 4}
    forced = client.chat.completions.create(**wishes, logit_bias={str(token): 100})
    assert forced.choices[0].message.content == "xxxx"
    plain = client.chat.completions.create(**wishes | {"max_tokens": 24})
    spread = client.chat.completions.create(
        **wishes | {"max_tokens": 24}, presence_penalty=2.0, extra_body={"repetition_penalty": 10.0}
    )
    assert spread.choices[0].message.content != plain.choices[0].message.content


def test_usage_tells_what_was_in_the_prefix_cache(client: openai.OpenAI) -> None:
    asked = [{"role": "user", "content": "the quick brown fox " * 12}]
    for number in range(2):
        answer = client.chat.completions.create(model="tiny", messages=asked, max_tokens=1)
        cached = answer.usage.prompt_tokens_details.cached_tokens
        assert (cached > 0) == (number == 1)


def test_an_answer_can_be_sent_back_as_it_came(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, max_tokens=3).choices[0].message
    history: list[Any] = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        *ASK["messages"],
        answer.model_dump(),
        {"role": "user", "content": "And then?"},
    ]
    assert client.chat.completions.create(model="tiny", messages=history, max_tokens=3).choices


def test_defaults_that_clients_send_along_are_taken(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        **ASK,
        max_completion_tokens=2,
        frequency_penalty=0.0,
        presence_penalty=0,
        logit_bias={},
        logprobs=False,
        response_format={"type": "text"},
        n=1,
        user="someone",
        store=False,
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_models_are_listed_and_shown(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "hermes"]
    assert client.models.retrieve("tiny").owned_by == "catena"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("tny")


def test_an_unknown_model_is_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="Did you mean 'tiny'") as caught:
        client.chat.completions.create(**{**ASK, "model": "tinny"})
    assert caught.value.code == "model_not_found"


# -- bad input -----------------------------------------------------------------------------------------------------


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


# -- load and loss -------------------------------------------------------------------------------------------------


def test_a_client_that_goes_away_frees_its_place(
    engine_of: Callable[..., Engine], client_of: Callable[[str], openai.OpenAI]
) -> None:
    engine = engine_of()
    before_each_step(engine, lambda: time.sleep(0.01))
    with background(build_app({"tiny": engine})) as url:
        stream = client_of(url).chat.completions.create(**ASK, max_tokens=200, seed=3, stream=True)
        next(iter(stream))
        stream.close()
        eventually(lambda: engine.stats()["running"] + engine.stats()["waiting"] == 0)
        assert engine.stats()["cache_blocks_used"] == 0
        assert engine.stats()["cancelled_total"] == 1
        assert engine.stats()["generated_tokens_total"] < 200
        lines = httpx.get(f"{url}/metrics").text.splitlines()
    assert 'catena_requests_total{route="chat",model="tiny",status="499"} 1' in lines


def test_a_client_that_goes_away_while_it_waits_frees_its_place(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    gate = threading.Event()
    before_each_step(engine, lambda: gate.wait(20))
    with background(build_app({"tiny": engine})) as url:
        parts = urlsplit(url)
        body = json.dumps({**ASK, "max_tokens": 200}).encode()
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(head(parts.netloc, len(body)) + body)
            eventually(lambda: engine.stats()["running"] == 1)
        time.sleep(0.1)
        gate.set()
        eventually(lambda: engine.stats()["running"] + engine.stats()["waiting"] == 0)
    assert engine.stats()["cancelled_total"] == 1
    assert engine.stats()["generated_tokens_total"] < 100


def test_overload_answers_503_with_retry_after_and_leaks_nothing(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(max_running=1, max_waiting=1)
    gate = threading.Event()
    before_each_step(engine, lambda: gate.wait(20))
    with background(build_app({"tiny": engine})) as url:
        responses: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: responses.append(post(url, {**ASK, "max_tokens": 3}))) for _ in "12"]
        for thread in threads:
            thread.start()
        eventually(lambda: engine.stats()["running"] + engine.stats()["waiting"] == 2)
        refused = post(url, {**ASK, "max_tokens": 3})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "server_error"
        # Three choices do not fit either; those already taken are given back.
        assert post(url, {**ASK, "n": 3}).status_code == 503
        gate.set()
        for thread in threads:
            thread.join()
    assert [response.status_code for response in responses] == [200, 200]
    assert engine.stats()["cache_blocks_used"] == engine.stats()["running"] == engine.stats()["waiting"] == 0


def test_many_clients_at_once_get_what_each_would_get_alone(url: str, client: openai.OpenAI) -> None:
    def ask(number: int) -> str | None:
        messages: list[Any] = [{"role": "user", "content": f"question {number}"}]
        answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=12)
        return answer.choices[0].message.content

    alone = [ask(number) for number in range(12)]
    together: list[str | None] = [None] * 12

    def put(number: int) -> None:
        together[number] = ask(number)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_an_engine_that_dies_fails_its_requests_and_the_health_check(
    engine_of: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of()
    steps = iter([1, 1, 1, 1])
    before_each_step(engine, lambda: 1 / next(steps, 0))
    with background(build_app({"tiny": engine})) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        with httpx.stream("POST", f"{url}/v1/chat/completions", json={**ASK, "stream": True}, timeout=30) as response:
            events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
        assert "error" in events[-1]
        assert "ZeroDivision" not in json.dumps(events)
        assert post(url, ASK).status_code == 503
        assert httpx.get(f"{url}/health").json() == {"status": "failed", "models": {"tiny": False}}
        assert httpx.get(f"{url}/health").status_code == 503


def test_an_unexpected_error_is_500_without_its_details(
    engine_of: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of()

    def fail(request: Any, on_delta: Any) -> None:
        raise KeyError("a secret")

    engine.submit = fail  # type: ignore[method-assign]
    with background(build_app({"tiny": engine})) as url:
        response = post(url, ASK)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["type"] == "server_error"


# -- health, metrics, defaults -------------------------------------------------------------------------------------


def test_health_and_metrics(url: str, client: openai.OpenAI) -> None:
    client.chat.completions.create(**ASK, max_tokens=2)
    assert httpx.get(f"{url}/health").json()["models"] == {"tiny": True, "hermes": True}
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values['catena_engine_generated_tokens_total{model="tiny"}']) > 0
    assert float(values['catena_requests_total{route="chat",model="tiny",status="200"}']) > 0
    assert "# TYPE catena_engine_generated_tokens_total counter" in lines
    assert "# TYPE catena_engine_running gauge" in lines


def test_defaults_come_from_the_config(engine_of: Callable[..., Engine]) -> None:
    config = ServeConfig(max_tokens=5, temperature=0.0)
    with background(build_app({"tiny": engine_of()}, config=config)) as url:
        first, second = (post(url, ASK).json() for _ in range(2))
    assert first["usage"]["completion_tokens"] == 5
    assert first["choices"] == second["choices"]
    assert first["system_fingerprint"] is None
