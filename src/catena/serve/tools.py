"""Calls of tools in an answer: found while it streams. Pure.

Models that were taught tools write a call as Hermes and Qwen do, and as their chat templates show it to them:

    <tool_call>
    {"name": "weather", "arguments": {"city": "北京"}}
    </tool_call>

What only looks like a call (no JSON, or no name) stays text: nothing that the model said is lost.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field

import orjson

BEGIN, END = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call; `arguments` is JSON text, as OpenAI gives it."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")


class ToolReader:
    """Takes the text of an answer piece by piece; gives text and calls."""

    def __init__(self) -> None:
        self._held = ""
        self._inside = False
        self._blank = False
        """White space was held back, and nothing else since: it belongs to a call if one follows."""
        self.calls = 0

    def push(self, text: str) -> list[str | ToolCall]:
        """Take a piece of text and return what is certain now."""
        self._held += text
        found: list[str | ToolCall] = []
        while True:
            mark = END if self._inside else BEGIN
            before, met, after = self._held.partition(mark)
            if not met:
                break
            self._held = after
            found += self._call(before) if self._inside else self._text(before.rstrip())
            self._inside = not self._inside
        if not self._inside:
            keep = _held_back(self._held)
            shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
            found += self._text(shown)
        return [one for one in found if one]

    def finish(self) -> list[str | ToolCall]:
        """Return the rest at the end of the answer; a call may end with it."""
        held, self._held = self._held, ""
        if self._inside:
            self._inside = False
            return [one for one in self._call(held, closed=False) if one]
        return [one for one in self._text(held.rstrip() if self.calls else held) if one]

    def _text(self, text: str) -> list[str | ToolCall]:
        # Line ends between calls, and after the last, are part of how calls are written.
        return [text.lstrip() if self.calls else text]

    def _call(self, body: str, *, closed: bool = True) -> list[str | ToolCall]:
        call = parse_call(body)
        if call is None:
            return [BEGIN + body + (END if closed else "")]
        self.calls += 1
        return [call]


def parse_call(body: str) -> ToolCall | None:
    """Read what stands between the marks; None where it is no call."""
    try:
        value = json.loads(body)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        return ToolCall(value["name"], arguments)
    return ToolCall(value["name"], orjson.dumps(arguments).decode())


def _held_back(text: str) -> int:
    """Return how many characters at the end may still become the mark of a call, with the white space before it."""
    for size in range(min(len(text), len(BEGIN) - 1), 0, -1):
        if text.endswith(BEGIN[:size]):
            break
    else:
        size = 0
    rest = text[: len(text) - size]
    return len(text) - len(rest.rstrip())
