"""One request on its way through the gateway, and what became of it. Everything that watches looks at this."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import orjson

from catena.serve.gateway.ask import Ask
from catena.serve.gateway.identity import Identity

KEPT_BYTES = 1 << 20
TAIL_BYTES = 1 << 13
"""Of a stream that nobody wants to read: its own count stands in its last events."""


@dataclass(slots=True)
class Call:
    """A request, and later its outcome."""

    id: str
    ask: Ask
    who: Identity
    trace: str = ""
    """`traceparent` for the replica."""
    began: float = field(default_factory=time.monotonic)
    status: int = 499
    arm: str = "stable"
    """`stable` or `candidate`, while a release is under way."""
    replica: str = ""
    weights: str | None = None
    """Digest of the weights of the replica that answered; nothing where nobody says it, None before an answer."""
    attempts: int = 0
    deaths: int = 0
    failures: int = 0
    """Attempts that replicas failed by themselves; others may have answered."""
    first_s: float = 0.0
    """To the first token, or to a whole answer."""
    cached: str = ""
    """`exact` or `semantic` where no replica was asked."""
    left: bool = False
    """Its client went away."""
    held: bool = False
    """It is not to be broken off now: what it has half done would be left so."""
    fell_back: bool = False
    """The candidate failed, and the stable model answered."""
    decisions: list[dict[str, Any]] = field(default_factory=list)
    """What those in front of the gateway decided about it (moderation)."""
    cut: bool = False
    """The stream ended before its end."""
    keep: bool = False
    """Whether somebody wants to read the answer afterwards."""
    kind: bytes = b""
    answer: bytearray = field(default_factory=bytearray)
    events: int = 0
    _usage: dict[str, Any] | None = None

    def took(self, piece: bytes) -> None:
        """Note a piece of the answer that goes out."""
        self.events += piece.count(b"data:")
        if not self.streamed:
            self._usage = _usage(piece, streamed=False)
        self.answer += piece
        if len(self.answer) > (KEPT_BYTES if self.keep else 2 * TAIL_BYTES):
            self.keep = False
            del self.answer[:-TAIL_BYTES]

    @property
    def streamed(self) -> bool:
        """Whether the answer is a stream of events."""
        return self.kind.startswith(b"text/event-stream")

    def flagged(self) -> bool:
        """Tell whether moderation had something against the answer."""
        return any(one.get("by") == "moderation" and one.get("where") == "answer" for one in self.decisions)

    def tokens(self) -> tuple[int, int]:
        """Return tokens of prompt and answer: as the answer says, or an estimate where it does not."""
        usage = self.usage()
        prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
        written = usage.get("completion_tokens", usage.get("output_tokens"))
        told = prompt if isinstance(prompt, int) else self.ask.prompt_tokens
        if isinstance(written, int):
            return told, written
        return told, max(0, self.events - 3) if self.streamed else 0

    def usage(self) -> dict[str, Any]:
        """Return the answer's own count, or nothing."""
        if self._usage is None:
            self._usage = _usage(bytes(self.answer), self.streamed)
        return self._usage


def _usage(answer: bytes, streamed: bool) -> dict[str, Any]:
    """Return the last count in an answer, or nothing.

    Mostly it is the last thing in it. So what follows its name is parsed first, with the braces in front that are open
    there: a long answer costs no more than a short one, and a stream of which only the end is there is understood.
    """
    at = answer.rfind(b'"usage"')
    if at < 0:
        return {}
    if streamed:
        rest = answer[at:].partition(b"\n")[0]
        lines = (line[5:] for line in reversed(answer.splitlines()) if line.startswith(b"data:"))
        pieces = chain((b"{" + rest, b'{"response":{' + rest), (line for line in lines if b'"usage"' in line))
    else:
        pieces = chain((b"{" + answer[at:], answer))
    for piece in pieces:
        try:
            value = orjson.loads(piece)
        except orjson.JSONDecodeError:
            continue
        inner = value.get("response") if isinstance(value, dict) else None
        for place in (value, inner):
            if isinstance(place, dict) and isinstance(place.get("usage"), dict):
                return dict(place["usage"])
    return {}


def answer_text(answer: bytes, streamed: bool) -> str:
    """Return what an answer says, whatever its form: chat, completion or response, whole or streamed."""
    if not streamed:
        return _said(answer)
    return "".join(_said(line[5:]) for line in answer.splitlines() if line.startswith(b"data:"))


def _said(data: bytes) -> str:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return ""
    if not isinstance(value, dict):
        return ""
    if value.get("type") == "response.output_text.delta":
        return str(value.get("delta") or "")
    pieces: list[str] = []
    for choice in value.get("choices") or []:
        inner = choice.get("delta") or choice.get("message") or choice
        pieces.append(str(inner.get("content") or inner.get("text") or ""))
    for item in value.get("output") or []:
        pieces += [str(part.get("text") or "") for part in item.get("content") or []]
    return "".join(pieces)
