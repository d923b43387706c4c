"""One answer as it comes from the generator: its text, calls of tools, and log-probabilities. Chat and responses read
it."""

from __future__ import annotations

from dataclasses import dataclass, field

from catena.core.generate import Completion, Delta, TokenLogprob
from catena.serve.endpoint import good
from catena.serve.models import Target
from catena.serve.tools import ToolCall, ToolReader


@dataclass(frozen=True, slots=True)
class Piece:
    """What became certain: a piece of text, or a call, with the log-probabilities of the tokens since the last one."""

    content: str | ToolCall
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(slots=True)
class Choice:
    """Collects one answer from its deltas."""

    target: Target
    tools: bool
    completion: Completion | None = None
    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    rest: list[TokenLogprob] = field(default_factory=list)
    """Log-probabilities of tokens whose text did not come out: told with the next piece, or with the end."""
    _reader: ToolReader = field(default_factory=ToolReader)

    def push(self, delta: Delta) -> list[Piece]:
        """Take a delta; raises `CatenaError` where the engine failed."""
        found = self._reader.push(delta.text) if self.tools else [delta.text] * bool(delta.text)
        if delta.completion is not None:
            self.completion = good(delta.completion)
            found += self._reader.finish() if self.tools else []
        self.rest += without_end(delta.token_logprobs, self.target) if delta.completion else delta.token_logprobs
        pieces: list[Piece] = []
        for content in found:
            pieces.append(Piece(content, tuple(self.rest)))
            self.rest = []
            if isinstance(content, ToolCall):
                self.calls.append(content)
            else:
                self.text += content
        return pieces

    @property
    def finish_reason(self) -> str:
        """Why the answer ended, in OpenAI's words."""
        assert self.completion is not None
        reason = self.completion.finish_reason
        return "tool_calls" if self.calls and reason == "stop" else reason


def without_end(entries: tuple[TokenLogprob, ...], target: Target) -> tuple[TokenLogprob, ...]:
    """Return log-probabilities without that of the token that ends an answer: it is no part of the text."""
    return entries[:-1] if entries and entries[-1].token_id in target.codec.ends else entries
