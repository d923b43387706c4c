"""The server by the official client: chats, streams, models, health, defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import openai
import pytest

from catena.infer.engine import Engine
from catena.serve.app import build_app
from catena.serve.config import ServeConfig
from catena.serve.server import background

from .asking import ASK, post


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
