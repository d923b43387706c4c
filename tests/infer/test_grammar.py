"""Answers that must have a form, on models that know nothing: whatever comes out has it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from catena.core.errors import UsageError
from catena.core.generate import Completion, Grammar, Request, SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["北京", "Paris"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["city", "count", "tags"],
    "additionalProperties": False,
}


def answers(engine: Any, grammar: Grammar, *, count: int = 4, **params: Any) -> list[Completion]:
    settings = {"max_tokens": 200, "temperature": 1.0, **params}
    requests = [
        Request(str(seed), "what does it do", SamplingParams(grammar=grammar, seed=seed, **settings))
        for seed in range(count)
    ]
    return sorted(engine.generate(requests), key=lambda one: int(one.request_id))


def test_a_schema_is_fulfilled_by_every_answer_and_ends_it(engine_of: Any) -> None:
    found = answers(engine_of(), Grammar("json_schema", json.dumps(SCHEMA)))
    for one in found:
        assert one.finish_reason == "stop"
        value = json.loads(one.text)
        assert value["city"] in ("北京", "Paris")
        assert 0 <= value["count"] <= 99
        assert all(isinstance(tag, bool) for tag in value["tags"])
    assert len({one.text for one in found}) > 1


def test_greedy_answers_fulfil_a_schema_too(engine_of: Any) -> None:
    [one] = answers(engine_of("qwen3"), Grammar("json_schema", json.dumps(SCHEMA)), count=1, temperature=0.0)
    assert json.loads(one.text)["city"]


def test_json_without_a_schema_is_an_object(engine_of: Any) -> None:
    for one in answers(engine_of(), Grammar("json"), max_tokens=200):
        if one.finish_reason == "stop":
            assert isinstance(json.loads(one.text), dict)
        else:
            assert one.text.lstrip().startswith("{")


def test_a_regular_expression_is_matched(engine_of: Any) -> None:
    for one in answers(engine_of(), Grammar("regex", r"[a-c]{2}/\d{3}(北|京)")):
        assert re.fullmatch(r"[a-c]{2}/\d{3}(北|京)", one.text), one.text


def test_a_choice_is_one_of_the_list(engine_of: Any) -> None:
    choices = ["yes", "no", 'say "perhaps"', "也许"]
    found = [one.text for one in answers(engine_of(), Grammar("choice", json.dumps(choices)), count=12)]
    assert set(found) <= set(choices)
    assert len(set(found)) > 1


def test_an_answer_that_is_cut_says_so(engine_of: Any) -> None:
    [one] = answers(engine_of(), Grammar("json_schema", json.dumps(SCHEMA)), count=1, max_tokens=3)
    assert one.finish_reason == "length"


TOOLS: dict[str, Any] = {
    "tools": [
        {"name": "weather", "parameters": SCHEMA},
        {"name": "stop"},
        {"name": "count", "parameters": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}},
    ],
    "begin": "<tool_call>",
    "end": "</tool_call>",
    "many": False,
    "free": False,
}


def test_a_call_of_a_tool_names_one_and_has_its_arguments(engine_of: Any) -> None:
    for one in answers(engine_of(), Grammar("tools", json.dumps(TOOLS)), max_tokens=180, count=6):
        if one.finish_reason == "length":
            continue
        [call] = re.findall(r"<tool_call>(.*?)</tool_call>", one.text, re.DOTALL)
        assert json.loads(call)["name"] in ("weather", "stop", "count")


def test_free_text_may_hold_calls(engine_of: Any) -> None:
    engine = engine_of()
    grammar = Grammar("tools", json.dumps({**TOOLS, "free": True, "many": True}))
    matcher = engine.prompter.sequence(Request("x", "hi", SamplingParams(grammar=grammar))).matcher
    good = 'Let me see. <tool_call>\n{"name": "count", "arguments": {"n": 2}}\n</tool_call> Done.'
    assert all(matcher.accept(token) for token in engine.codec.continuation(good))
    matcher = engine.prompter.sequence(Request("x", "hi", SamplingParams(grammar=grammar))).matcher
    bad = '<tool_call>\n{"name": "other"'
    assert not all(matcher.accept(token) for token in engine.codec.continuation(bad))


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        (Grammar("json_schema", '{"type": "nonsense"}'), "nonsense"),
        (Grammar("json_schema", "{"), "no JSON"),
        (Grammar("json_schema", "[1]"), "schema"),
        (Grammar("json_schema", '{"type": "array", "uniqueItems": true}'), "uniqueItems"),
        (Grammar("json_schema", '{"$ref": "https://example.com/schema.json"}'), "does not fetch"),
        (Grammar("regex", "[a-"), "regular expression"),
        (Grammar("regex", ""), "empty"),
        (Grammar("choice", "[]"), "choices"),
        (Grammar("choice", '["a", 3]'), "choices"),
    ],
)
def test_a_grammar_that_says_nonsense_is_refused(engine_of: Any, grammar: Grammar, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        answers(engine_of(), grammar)


def test_others_in_the_batch_do_not_change_it(engine_of: Any) -> None:
    engine = engine_of()
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    alone = answers(engine, grammar, count=1)[0].token_ids
    assert answers(engine, grammar, count=5)[0].token_ids == alone
