"""OpenAI's newer form of a chat, by its official client."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import openai
import pytest

from catena.core.generate import Completion, Delta, Request, TokenLogprob
from catena.serve.app import build_app
from catena.serve.server import background

from .asking import JSON
from .scripted import Scripted
from .test_chat_forms import SAID, SCHEMA

TOOLS: list[Any] = [{"type": "function", "name": "weather", "parameters": SCHEMA}]


def test_an_input_is_answered_with_text_and_usage(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="tiny", input="hello", temperature=0, max_output_tokens=9)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    chat = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hello"}], temperature=0, max_tokens=9
    )
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.output_tokens == 9
    assert answer.usage.total_tokens == answer.usage.input_tokens + 9


def test_instructions_and_history_are_read_like_a_chat(client: openai.OpenAI) -> None:
    first = client.responses.create(model="tiny", input="hello", max_output_tokens=4, temperature=0)
    history: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        *first.output,
        {"role": "user", "content": "and then?"},
    ]
    second = client.responses.create(
        model="tiny", instructions="Be brief.", input=history, max_output_tokens=6, temperature=0
    )
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "and then?"},
    ]
    chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=6, temperature=0)
    assert second.output_text == chat.choices[0].message.content


def test_a_stream_tells_every_step_in_order(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "input": "hello", "temperature": 0, "max_output_tokens": 12}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == text
    assert events[-1].response.usage == whole.usage


def test_text_has_the_form_of_a_schema(client: openai.OpenAI) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}}
    answer = client.responses.create(model="hermes", input="hello", text=form, max_output_tokens=200)
    assert answer.status == "completed"
    assert json.loads(answer.output_text)["count"] >= 0


def test_log_probabilities_come_where_they_are_asked_for(client: openai.OpenAI) -> None:
    likely: Any = {"top_logprobs": 2, "temperature": 0, "include": ["message.output_text.logprobs"]}
    answer = client.responses.create(model="tiny", input="hello", max_output_tokens=4, **likely)
    [item] = answer.output
    assert item.type == "message"
    assert item.content[0].type == "output_text"
    assert [len(one.top_logprobs) for one in item.content[0].logprobs or []] == [2] * 4


class Ending(Scripted):
    """Its last token has no text."""

    def submit(self, request: Request, on_delta: Callable[[Delta], None]) -> None:
        """Answer with one token that is text and one that is not."""
        first, last = TokenLogprob(70, -0.5, ((70, -0.5),)), TokenLogprob(3, -1.5, ((3, -1.5),))
        on_delta(Delta(self.text, token_ids=(70,), token_logprobs=(first,)))
        whole = Completion(request.id, self.text, (70, 3), "length", 4, token_logprobs=(first, last))
        on_delta(Delta("", whole, (3,), (last,)))


def test_a_token_without_text_at_the_end_has_its_log_probability_too(
    tokenizer: Any, client_of: Callable[[str], openai.OpenAI]
) -> None:
    asked: Any = {"model": "m", "input": "hello", "include": ["message.output_text.logprobs"]}
    with background(build_app({"m": Ending(tokenizer, "hi")})) as url:
        client = client_of(url)
        answer = client.responses.create(**asked)
        deltas = [one for one in client.responses.create(**asked, stream=True) if "output_text.delta" in one.type]
    assert answer.output_text == "hi"
    assert [one.logprob for one in answer.output[0].content[0].logprobs] == [-0.5, -1.5]
    assert [one.logprob for delta in deltas for one in delta.logprobs] == [-0.5, -1.5]


def test_a_required_tool_is_called(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="hermes",
        input="hello",
        tools=TOOLS,
        tool_choice={"type": "function", "name": "weather"},
        max_output_tokens=300,
    )
    [call] = answer.output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["city"]


def test_calls_in_text_are_items_of_their_own(hermes: Any, client_of: Callable[[str], openai.OpenAI]) -> None:
    scripted = Scripted(hermes, SAID)
    with background(build_app({"hermes": scripted})) as url:
        client = client_of(url)
        answer = client.responses.create(model="hermes", input="hello", tools=TOOLS)
        events = list(client.responses.create(model="hermes", input="hello", tools=TOOLS, stream=True))
        assert [item.type for item in answer.output] == ["message", "function_call", "function_call"]
        assert answer.output_text == "Let me see."
        done = [event for event in events if event.type == "response.function_call_arguments.done"]
        assert [json.loads(event.arguments) for event in done] == [{"city": "北京"}, {}]
        last = events[-1]
        assert last.type == "response.completed"
        assert [item.type for item in last.response.output] == [item.type for item in answer.output]
        history: list[Any] = [{"role": "user", "content": "hello"}]
        for item in answer.output:
            history.append(item)
            if item.type == "function_call":
                history.append({"type": "function_call_output", "call_id": item.call_id, "output": "25 °C"})
        client.responses.create(model="hermes", input=history, tools=TOOLS)
    assert [message.role for message in scripted.asked[-1].prompt] == [  # type: ignore[union-attr]
        *("user", "assistant", "assistant", "tool", "assistant", "tool")
    ]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"include": ["file_search_call.results"]}, "include.0"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": TOOLS}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"top_k": 3}, "top_k"),
        ({"prompt": {"id": "x"}}, "prompt"),
    ],
)
def test_what_does_not_work_is_refused_by_name(url: str, change: dict[str, Any], param: str) -> None:
    response = httpx.post(f"{url}/v1/responses", json={"model": "tiny", "input": "x", **change}, headers=JSON)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_every_field_of_the_clients_schema_is_known() -> None:
    from openai.types.responses import response_create_params as schema

    from catena.serve.responses_wire import ResponseRequest

    fields = set(schema.ResponseCreateParamsBase.__annotations__) | {"stream"}
    assert fields <= set(ResponseRequest.NEUTRAL) | set(ResponseRequest.model_fields)
