"""Generators: anything that answers prompts. The protocols that evaluation, serving and chat share.

The native engine is one of them; so is any OpenAI URL. They are found by name (`GENERATORS`), never imported by a
sibling domain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from catena.core.registry import Registry

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. Temperature 0 is greedy."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt: messages (the model's chat template is applied), or text, or token ids."""

    id: str
    prompt: str | Sequence[Message] | Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one request."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    logprobs: tuple[float, ...] = ()
    """`score` fills it: natural log-probability of every prompt token after the first."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed answer; the last one carries `completion`."""

    text: str
    completion: Completion | None = None


class Generator(Protocol):
    """Answers many requests at once, in any order; each completion carries its request's id."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield a completion for each request, as they finish."""
        ...

    def score(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield, for each request, the log-probabilities of its own tokens; nothing is generated."""
        ...

    def close(self) -> None:
        """Free what it holds (memory, threads, child processes)."""
        ...


@runtime_checkable
class StreamingGenerator(Protocol):
    """A generator that a server can put in front of people: it streams and cancels."""

    def submit(self, request: Request, on_delta: Callable[[Delta], None]) -> None:
        """Take a request; `on_delta` is called from the engine's thread. Raises `UsageError` for a bad request."""
        ...

    def cancel(self, request_id: str) -> None:
        """Stop a request; its last delta says `cancelled`. Unknown ids are ignored."""
        ...

    def stats(self) -> Mapping[str, float]:
        """Return counters: running, waiting, tokens, seconds."""
        ...

    def close(self) -> None:
        """End the engine's thread."""
        ...


class Scorer(Protocol):
    """Compares an answer with the reference; 1.0 is right, 0.0 is wrong."""

    def __call__(self, answer: str, reference: str, metadata: Mapping[str, Any]) -> float:
        """Return the score."""
        ...


# name -> "module:function"; the function takes (model folder or URL, **options) and returns a Generator.
GENERATORS = Registry("generator", {"native": "catena.infer.engine:open_engine"})
SCORERS = Registry(
    "scorer",
    {
        "exact": "catena.evaluate.scorers:exact",
        "contains": "catena.evaluate.scorers:contains",
    },
)
