from __future__ import annotations

import json
import random

import pytest

from catena.serve.tools import ToolCall, ToolReader, parse_call


def read(text: str, sizes: list[int] | None = None) -> list[str | tuple[str, str]]:
    reader, at, found = ToolReader(), 0, []
    for size in sizes or [1] * len(text):
        found += reader.push(text[at : at + size])
        at += size
    found += reader.push(text[at:]) + reader.finish()
    merged: list[str | tuple[str, str]] = []
    for one in found:
        if isinstance(one, ToolCall):
            merged.append((one.name, one.arguments))
        elif merged and isinstance(merged[-1], str):
            merged[-1] += one
        else:
            merged.append(one)
    return merged


CALL = '<tool_call>\n{"name": "f", "arguments": {"城市": "北京"}}\n</tool_call>'
F = ("f", '{"城市":"北京"}')


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("no call at all \n", ["no call at all \n"]),
        (CALL, [F]),
        (f"Let me see.\n{CALL}\n{CALL}\n", ["Let me see.", F, F]),
        (f"{CALL}\nDone.", [F, "Done."]),
        (CALL.removesuffix("</tool_call>"), [F]),
        ("<tool_call>\nnot json\n</tool_call> x", ["<tool_call>\nnot json\n</tool_call> x"]),
        ('<tool_call>{"nom": 1}</tool_call>', ['<tool_call>{"nom": 1}</tool_call>']),
        ("<tool_call>{", ["<tool_call>{"]),
        ("a <tool", ["a <tool"]),
        ("1 < 2 <tool_cal", ["1 < 2 <tool_cal"]),
    ],
)
def test_calls_are_found_however_the_text_is_cut(text: str, wanted: list[str | tuple[str, str]]) -> None:
    assert read(text) == wanted
    assert read(text, [len(text)]) == wanted
    draw = random.Random(1)
    for _ in range(20):
        assert read(text, [draw.randint(1, 7) for _ in range(12)]) == wanted


def test_arguments_are_json_text_however_the_model_writes_them() -> None:
    assert parse_call('{"name": "f", "arguments": "{\\"a\\": 1}"}').arguments == '{"a": 1}'  # type: ignore[union-attr]
    assert json.loads(parse_call('{"name": "f", "parameters": {"a": 1}}').arguments) == {"a": 1}  # type: ignore[union-attr]
    assert parse_call('{"name": "f"}').arguments == "{}"  # type: ignore[union-attr]
    assert parse_call("[1]") is None


def test_every_call_has_an_id_of_its_own() -> None:
    ids = [one.id for one in ToolReader().push(CALL * 3) if isinstance(one, ToolCall)]
    assert len(set(ids)) == 3
