"""Text that goes on, and what its tokens are worth: checked against the model's own logits."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx
import openai
import pytest
import torch

from catena.infer.engine import Engine
from catena.serve.completions import name_of, offsets

from .asking import JSON

PROMPT = "what does 你好 do"


def post(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json={"model": "tiny", **body}, headers=JSON, timeout=30)


def logprobs_by_hand(engine: Engine, ids: list[int]) -> torch.Tensor:
    """Log-probabilities `[tokens, vocabulary]` of what follows each token."""
    with engine.paused(), torch.inference_mode():
        model = engine.runner.model
        paged = model.config._attn_implementation
        model.set_attn_implementation("sdpa")
        logits = model(torch.tensor([ids])).logits[0]
        model.set_attn_implementation(paged)
    return logits.float().log_softmax(dim=-1)


def test_text_goes_on(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=PROMPT, temperature=0, max_tokens=9)
    assert answer.object == "text_completion"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 9
    default = client.completions.create(model="tiny", prompt=PROMPT, temperature=0)
    assert default.usage is not None
    assert default.usage.completion_tokens == 16
    assert default.choices[0].text.startswith(answer.choices[0].text)


def test_prompts_may_be_texts_or_tokens_one_or_many(client: openai.OpenAI, engine: Engine) -> None:
    texts = [PROMPT, "hello", "世界"]
    ids = [engine.codec.tokens(text) for text in texts]
    asked: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 7}
    many = client.completions.create(prompt=texts, **asked)
    assert [choice.text for choice in client.completions.create(prompt=ids, **asked).choices] == [
        choice.text for choice in many.choices
    ]
    assert client.completions.create(prompt=ids[2], **asked).choices[0].text == many.choices[2].text
    assert [choice.index for choice in many.choices] == [0, 1, 2]
    assert many.usage is not None
    assert many.usage.prompt_tokens == sum(map(len, ids))


def test_choices_of_many_prompts_stand_by_prompt(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": ["a", "b"], "n": 2, "seed": 3, "max_tokens": 5}
    found = client.completions.create(**asked)
    alone = client.completions.create(**{**asked, "prompt": "b"})
    assert [choice.text for choice in found.choices[2:]] == [choice.text for choice in alone.choices]
    assert found.usage is not None
    assert alone.usage is not None
    assert found.usage.prompt_tokens == 2 * alone.usage.prompt_tokens  # both have one word; each counts once
    assert client.completions.create(**{**asked, "best_of": 2}).choices == found.choices


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_the_prompt_is_scored_as_the_model_itself_does(url: str, engine: Engine, max_tokens: int) -> None:
    ids = engine.codec.tokens(PROMPT)
    told = post(url, prompt=ids, echo=True, logprobs=2, max_tokens=max_tokens, temperature=0, seed=1).json()
    [choice] = told["choices"]
    values = choice["logprobs"]["token_logprobs"]
    assert values[0] is None
    assert choice["logprobs"]["top_logprobs"][0] is None
    assert len(values) == len(ids) + max_tokens
    by_hand = logprobs_by_hand(engine, ids)
    for at, token in enumerate(ids[1:], 1):
        assert abs(values[at] - float(by_hand[at - 1, token])) < 1e-4
        top = choice["logprobs"]["top_logprobs"][at]
        greedy = max(top.values()) == values[at]
        assert greedy == (int(by_hand[at - 1].argmax()) == token)
        assert len(top) in (2, 3)
    assert choice["text"].startswith(PROMPT)
    assert told["usage"]["completion_tokens"] == max_tokens
    assert choice["finish_reason"] == "length"


def test_offsets_are_characters_of_the_text(url: str) -> None:
    told = post(url, prompt=PROMPT, echo=True, logprobs=0, max_tokens=4, temperature=0).json()["choices"][0]
    places, tokens = told["logprobs"]["text_offset"], told["logprobs"]["tokens"]
    assert places == sorted(places)
    assert tokens[0] == " what"  # with the space that this tokenizer puts before every text
    for at, token in list(zip(places, tokens, strict=True))[1:]:
        if not token.startswith("bytes:"):
            assert told["text"][at : at + len(token)] == token
    assert all(
        list(top.values()) == [value]
        for top, value in zip(told["logprobs"]["top_logprobs"][1:], told["logprobs"]["token_logprobs"][1:], strict=True)
    )


def test_halves_of_characters_are_named_by_their_bytes() -> None:
    assert name_of(b"\xe4\xbd") == "bytes:\\xe4\\xbd"
    assert name_of("你".encode()) == "你"
    assert offsets([b" a", b"\xe4", b"\xbd\xa0", b"b"]) == [0, 2, 2, 3]


def test_echo_gives_the_prompt_back(client: openai.OpenAI, engine: Engine) -> None:
    asked: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 5}
    plain = client.completions.create(prompt=PROMPT, **asked).choices[0].text
    echoed = client.completions.create(prompt=engine.codec.tokens(PROMPT), echo=True, **asked).choices[0].text
    assert echoed == PROMPT + plain
    stream = client.completions.create(prompt=PROMPT, echo=True, stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in stream) == echoed


def test_a_stream_gives_the_same_text_and_values(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": ["a", "b"], "temperature": 0, "max_tokens": 8, "logprobs": 1}
    whole = client.completions.create(**asked)
    texts, values = ["", ""], [[], []]  # type: ignore[var-annotated]
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks[:-1]:
        [choice] = chunk.choices
        texts[choice.index] += choice.text
        values[choice.index] += choice.logprobs.token_logprobs or [] if choice.logprobs else []
    assert texts == [choice.text for choice in whole.choices]
    for told, choice in zip(values, whole.choices, strict=True):
        assert choice.logprobs is not None
        assert told == pytest.approx(choice.logprobs.token_logprobs, abs=1e-4)
    assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"prompt": None}, "prompt", "required"),
        ({"prompt": ""}, "prompt", "at least 1"),
        ({"prompt": []}, "prompt", "at least 1"),
        ({"prompt": [[]]}, "prompt.0", "at least 1"),
        ({"prompt": ["a", 3]}, "prompt.1", "string"),
        ({"prompt": [-1]}, "prompt.0", "greater"),
        ({"prompt": [10**7]}, None, "no id"),
        ({"prompt": ["a"] * 300}, "prompt", "at most 256"),
        ({"prompt": "long " * 300}, None, "the context is 256"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"best_of": 3}, "best_of", "not supported"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"logprobs": True}, "logprobs", "integer"),
        ({"max_tokens": 0}, "max_tokens", "with echo"),
        ({"max_tokens": -1}, "max_tokens", "greater"),
        ({"echo": True, "logprobs": 1, "stream": True}, "stream", "cannot be streamed"),
        ({"messages": []}, "messages", "unknown parameter"),
    ],
)
def test_a_bad_value_is_refused_by_name(url: str, change: dict[str, Any], param: str | None, says: str) -> None:
    response = post(url, **{"prompt": "hi", **change})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert says in error["message"]


def test_every_field_of_the_clients_schema_is_known() -> None:
    from openai.types import completion_create_params as schema

    from catena.serve.completions import CompletionRequest

    fields = set(schema.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert fields <= set(CompletionRequest.NEUTRAL) | set(CompletionRequest.model_fields)
