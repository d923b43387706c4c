"""Where an answer begins: events of a stream that come before its first token. Pure.

An engine says hello before it has anything to say (the role, an empty part). Until something follows, nothing has been
given away, and another replica may begin again.
"""

from __future__ import annotations

from typing import Any, Literal

import orjson

Kind = Literal["preamble", "content", "error"]
HELLO = frozenset(
    {
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    }
)


def kind_of(event: bytes) -> Kind:
    """Say what one event is; whatever is not known is content."""
    data = b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
    if not data:
        return "preamble"  # a comment, a ping
    if data == b"[DONE]":
        return "content"
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return "content"
    if not isinstance(value, dict):
        return "content"
    if value.get("error") is not None or value.get("type") in ("error", "response.failed"):
        return "error"
    if value.get("type") in HELLO:
        return "preamble"
    choices = value.get("choices")
    if isinstance(choices, list) and choices and all(_says_nothing(choice) for choice in choices):
        return "preamble"
    return "content"


def _says_nothing(choice: Any) -> bool:
    if not isinstance(choice, dict) or choice.get("finish_reason"):
        return False
    delta = choice.get("delta")
    if isinstance(delta, dict):
        return not any(value for name, value in delta.items() if name != "role")
    return not choice.get("text")


class Opening:
    """Holds a stream back until its first content."""

    def __init__(self) -> None:
        self.held = bytearray()
        self._looked_at = 0

    def push(self, data: bytes) -> Kind:
        """Take bytes; say `content` when the answer has begun (`held` then has all so far), `error` where it failed."""
        self.held += data
        while (end := self._end()) >= 0:
            kind = kind_of(bytes(self.held[self._looked_at : end]))
            self._looked_at = end
            if kind != "preamble":
                return kind
        return "preamble"

    def _end(self) -> int:
        found = [
            at + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if (at := self.held.find(mark, self._looked_at)) >= 0
        ]
        return min(found, default=-1)
