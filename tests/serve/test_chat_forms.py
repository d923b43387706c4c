"""Answers of a given form, calls of tools, and log-probabilities, by the official client."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import openai
import pytest

from catena.infer.engine import Engine
from catena.serve.app import build_app
from catena.serve.server import background

from .asking import ASK, JSON, post
from .scripted import Scripted

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["北京", "Paris"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "count"],
    "additionalProperties": False,
}
WEATHER = {"name": "weather", "description": "How it is.", "parameters": SCHEMA}
TOOLS: list[Any] = [
    {"type": "function", "function": WEATHER},
    {"type": "function", "function": {"name": "stop"}},
]
HERMES: dict[str, Any] = {**ASK, "model": "hermes"}


# -- forms -----------------------------------------------------------------------------------------------------------


def test_a_json_schema_is_fulfilled(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(**HERMES, response_format=form, max_tokens=200, seed=1, n=2)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert json.loads(choice.message.content or "")["city"] in ("北京", "Paris")


def test_json_mode_gives_an_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**HERMES, response_format={"type": "json_object"}, max_tokens=5)
    assert (answer.choices[0].message.content or "").lstrip().startswith("{")


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": r"\d{2}-[ab]+c"}, r"\d{2}-[ab]+c"),
        ({"choice": ["yes", "no", "也许"]}, "yes|no|也许"),
        ({"json": {"type": "integer", "minimum": 10, "maximum": 12}}, "10|11|12"),
    ],
)
def test_structured_outputs_say_what_an_answer_looks_like(url: str, form: dict[str, Any], pattern: str) -> None:
    answered = post(url, {**HERMES, "structured_outputs": form, "max_tokens": 200, "seed": 2}).json()
    assert re.fullmatch(pattern, answered["choices"][0]["message"]["content"])
    assert answered["choices"][0]["finish_reason"] == "stop"


# -- log-probabilities -----------------------------------------------------------------------------------------------


def test_log_probabilities_come_with_the_likeliest(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {**ASK, "logprobs": True, "top_logprobs": 3, "temperature": 0, "max_tokens": 12}
    told = client.chat.completions.create(**asked).choices[0]
    assert told.logprobs is not None
    assert told.logprobs.content is not None
    assert len(told.logprobs.content) == 12
    for one in told.logprobs.content:
        assert len(one.top_logprobs) == 3
        assert one.top_logprobs[0].token == one.token
        assert one.top_logprobs[0].logprob == one.logprob <= 0
    text = b"".join(bytes(one.bytes or []) for one in told.logprobs.content).decode(errors="replace")
    assert text.removeprefix(" ") == told.message.content
    streamed = [
        entry
        for chunk in client.chat.completions.create(**asked, stream=True)
        for entry in (chunk.choices[0].logprobs.content or [] if chunk.choices[0].logprobs else [])
    ]
    assert [one.token for one in streamed] == [one.token for one in told.logprobs.content]
    values = [one.logprob for one in told.logprobs.content]
    assert [one.logprob for one in streamed] == pytest.approx(values, abs=1e-4)


def test_logprobs_without_top_tell_the_token_only(client: openai.OpenAI) -> None:
    told = client.chat.completions.create(**ASK, logprobs=True, max_tokens=2).choices[0].logprobs
    assert told is not None
    assert [one.top_logprobs for one in told.content or []] == [[], []]


# -- tools -----------------------------------------------------------------------------------------------------------


def test_a_required_tool_is_called_with_arguments_of_its_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        **HERMES, tools=TOOLS[:1], tool_choice="required", max_tokens=300, seed=4, parallel_tool_calls=False
    ).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    [call] = answer.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("北京", "Paris")


def test_a_named_tool_is_the_one_that_is_called(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    stream = client.chat.completions.create(
        **HERMES, tools=TOOLS, tool_choice=choice, max_tokens=300, seed=5, stream=True
    )
    chunks = list(stream)
    [call] = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert call.index == 0
    assert call.function is not None
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments or "")["count"] >= 0
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_tool_that_is_not_there_cannot_be_chosen(url: str) -> None:
    choice = {"type": "function", "function": {"name": "other"}}
    response = post(url, {**HERMES, "tools": TOOLS, "tool_choice": choice})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tool_choice")


def test_a_form_and_tools_at_once_are_refused(url: str) -> None:
    response = post(url, {**HERMES, "tools": TOOLS, "response_format": {"type": "json_object"}})
    assert response.json()["error"]["code"] == "unsupported_combination"


SAID = (
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>\n'
    '<tool_call>{"name": "stop", "arguments": {}}</tool_call>'
)


@pytest.fixture
def scripted(hermes: Any) -> Scripted:
    """A model that says `SAID`."""
    return Scripted(hermes, SAID)


def test_calls_in_free_text_are_found_whole_and_streamed(
    scripted: Scripted, client_of: Callable[[str], openai.OpenAI]
) -> None:
    with background(build_app({"hermes": scripted})) as url:
        client = client_of(url)
        whole = client.chat.completions.create(**HERMES, tools=TOOLS).choices[0]
        chunks = list(client.chat.completions.create(**HERMES, tools=TOOLS, stream=True))
    assert whole.message.content == "Let me see."
    assert whole.finish_reason == chunks[-1].choices[0].finish_reason == "tool_calls"
    calls = [call.function for call in whole.message.tool_calls or [] if call.type == "function"]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("weather", {"city": "北京"}), ("stop", {})]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "Let me see."
    streamed = [call for delta in deltas for call in delta.tool_calls or []]
    assert [(call.index, call.function.name) for call in streamed if call.function] == [(0, "weather"), (1, "stop")]


def test_one_call_at_a_time_ends_with_the_first(scripted: Scripted, client_of: Callable[[str], openai.OpenAI]) -> None:
    with background(build_app({"hermes": scripted})) as url:
        answer = client_of(url).chat.completions.create(**HERMES, tools=TOOLS, parallel_tool_calls=False).choices[0]
    assert len(answer.message.tool_calls or []) == 1
    assert answer.finish_reason == "tool_calls"


def test_without_tools_a_call_is_text(scripted: Scripted, client_of: Callable[[str], openai.OpenAI]) -> None:
    with background(build_app({"hermes": scripted})) as url:
        answer = client_of(url).chat.completions.create(**HERMES, tools=TOOLS, tool_choice="none").choices[0]
        assert not scripted.asked[-1].tools
    assert answer.message.content == SAID


def test_a_strict_tool_lets_text_run_free_and_holds_its_calls(scripted: Scripted) -> None:
    strict = [{"type": "function", "function": {**WEATHER, "strict": True}}]
    with background(build_app({"hermes": scripted})) as url:
        assert post(url, {**HERMES, "tools": strict}).status_code == 200
    grammar = scripted.asked[-1].params.grammar
    assert grammar is not None
    assert json.loads(grammar.value)["free"]


def test_a_call_and_what_the_tool_said_go_back_into_the_conversation(
    scripted: Scripted, client_of: Callable[[str], openai.OpenAI]
) -> None:
    with background(build_app({"hermes": scripted})) as url:
        client = client_of(url)
        message = client.chat.completions.create(**HERMES, tools=TOOLS).choices[0].message
        history: list[Any] = [*ASK["messages"], message.model_dump()]
        for call in message.tool_calls or []:
            history.append({"role": "tool", "tool_call_id": call.id, "content": "25 °C"})
        client.chat.completions.create(model="hermes", messages=history, tools=TOOLS)
    asked = scripted.asked[-1]
    read = b"".join(scripted.codec.pieces(scripted.codec.tokens(asked.prompt, asked.tools))).decode()
    assert '<tool_call>{"name": "weather", "arguments": {"city": "北京"}}</tool_call>' in read
    assert read.count("25 °C") == 2
    assert '"description": "How it is."' in read


def test_arguments_that_are_no_object_are_refused(url: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "[1"}}
    messages = [*ASK["messages"], {"role": "assistant", "content": None, "tool_calls": [call]}]
    response = post(url, {**HERMES, "messages": messages})
    assert response.status_code == 400
    assert "JSON object" in response.json()["error"]["message"]


# -- adapters and tokens ---------------------------------------------------------------------------------------------


def test_token_ids_may_stop_an_answer(url: str, engine: Engine) -> None:
    x = engine.tokenizer.convert_tokens_to_ids("x")
    answered = post(url, {**ASK, "logit_bias": {str(x): 100}, "stop_token_ids": [x], "max_tokens": 9}).json()
    assert answered["choices"][0]["finish_reason"] == "stop"
    assert answered["usage"]["completion_tokens"] == 1


def test_tokenize_tells_what_the_model_reads_and_detokenize_what_it_says(url: str, engine: Engine) -> None:
    def ask(path: str, body: Any) -> Any:
        return httpx.post(f"{url}/{path}", json=body, headers=JSON, timeout=30).json()

    told = ask("tokenize", {"model": "tiny", "prompt": "你好 do", "return_token_strs": True})
    assert told["tokens"] == engine.codec.tokens("你好 do")
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    assert told["max_model_len"] == 256
    assert ask("detokenize", {"model": "tiny", "tokens": told["tokens"]}) == {"prompt": "你好 do"}
    chat = ask("tokenize", {"model": "hermes", "messages": ASK["messages"], "tools": TOOLS})
    assert chat["count"] > ask("tokenize", {"model": "hermes", "messages": ASK["messages"]})["count"]
    assert ask("detokenize", {"model": "tiny", "tokens": [99999]})["error"]["type"] == "invalid_request_error"
    assert ask("tokenize", {"model": "tiny"})["error"]["param"] == "prompt"


# -- decisions -------------------------------------------------------------------------------------------------------

QUESTIONS: list[Any] = [
    {"type": "predicate", "name": "p", "instructions": "It is about food."},
    {
        "type": "choice",
        "instructions": "Which?",
        "choices": [{"value": "red"}, {"value": True, "description": "so it is"}, {"value": "天"}],
    },
    {"type": "score", "instructions": "How good?", "levels": [{"label": "bad"}, {"label": "so so"}, {"label": "good"}]},
]


def test_every_question_gets_a_probability_for_each_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "hermes", "input": "Noodles, please.", "questions": QUESTIONS}
    first = client.decisions.create(**asked)
    predicate, choice, score = first.answers
    assert predicate.type == "predicate"
    assert 0 < predicate.probability < 1
    assert predicate.name == "p"
    assert choice.type == "choice"
    assert [one.value for one in choice.probabilities] == ["red", True, "天"]
    assert math.isclose(sum(one.probability for one in choice.probabilities), 1)
    assert choice.confidence == max(one.probability for one in choice.probabilities)
    assert score.type == "score"
    assert math.isclose(score.score, sum(one.value * one.probability for one in score.probabilities))
    assert first.usage.output_tokens == 0
    again = client.decisions.create(**asked).answers[2]
    assert again.type == "score"
    assert math.isclose(again.score, score.score, abs_tol=1e-5)
    alone = client.decisions.create(**{**asked, "questions": QUESTIONS[:1]}).answers[0]
    assert alone.type == "predicate"
    assert math.isclose(alone.probability, predicate.probability, abs_tol=1e-5)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"questions": []}, "questions"),
        ({"questions": [{"type": "guess", "instructions": "x"}]}, "questions.0.type"),
        ({"questions": [{"type": "choice", "instructions": "x", "choices": [{"value": "a"}]}]}, "questions.0.choices"),
        (
            {
                "questions": [
                    {"type": "choice", "instructions": "x", "choices": [{"value": "true"}, {"value": True}]},
                ]
            },
            "questions.0",
        ),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type"),
    ],
)
def test_a_bad_question_is_refused_by_name(url: str, change: dict[str, Any], param: str) -> None:
    body = {"model": "tiny", "input": "x", "questions": QUESTIONS, **change}
    response = httpx.post(f"{url}/v1/decisions", json=body, timeout=30)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
