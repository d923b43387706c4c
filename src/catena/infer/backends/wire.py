"""What is asked of an engine and what comes back, whatever its dialect. No I/O.

A request becomes an `Asked` (checked, in tokens where the tokenizer is known), a dialect makes a `Call` of it, and
reads each piece of the reply into a `Piece`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from catena.core.errors import RemoteError, UsageError
from catena.core.generate import FinishReason, Grammar, Request, SamplingParams, TokenLogprob

NEUTRAL = SamplingParams()
PENALTIES = frozenset({"presence_penalty", "frequency_penalty"})
OPTIONAL = ("top_k", "min_p", "repetition_penalty", "ignore_end", "logit_bias", *sorted(PENALTIES))
"""Parameters that not every engine has."""


@dataclass(frozen=True, slots=True)
class Able:
    """What an engine can do."""

    ids: bool
    """Takes a prompt as token ids."""
    fields: frozenset[str] = frozenset()
    """Of `OPTIONAL`."""
    logprobs: int = -1
    """Most alternatives to each token that it tells; -1: it tells no log-probabilities with their ids."""
    prompt_logprobs: bool = False
    grammars: frozenset[str] = frozenset()
    adapters: bool = False
    stop_token_ids: bool = True
    """Told to the engine, or seen to here because it tells ids as they come."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was checked."""

    request: Request
    model: str
    ids: list[int] | None
    """The prompt in tokens, where the tokenizer is known and the engine takes them."""
    context: int | None
    stream: bool
    prompt_logprobs: int | None = None
    """How many alternatives to each token of the prompt are wanted; None: no log-probabilities of it."""

    @property
    def params(self) -> SamplingParams:
        """How to choose tokens."""
        return self.request.params

    @property
    def generates(self) -> bool:
        """Whether anything is to be made, or the prompt only scored."""
        return self.params.max_tokens > 0


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request."""

    path: str
    body: Mapping[str, Any]
    stream: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event told."""

    text: str = ""
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Of every token of the prompt after the first."""
    finish: FinishReason | None = None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    """Tokens of the answer so far, or all of them, where they are counted and not told."""
    cached: int | None = None


Reader = Callable[[Mapping[str, Any]], Piece]


class Wire(Protocol):
    """A dialect."""

    name: str
    able: Able

    def call(self, asked: Asked) -> Call:
        """Return the HTTP request; raises `UsageError` for what the engine cannot do."""
        ...

    def reader(self, asked: Asked) -> Reader:
        """Return a function from each event (or the one body of an answer that is not streamed) to its piece."""
        ...


def check(wire: Wire, request: Request) -> None:
    """Raise `UsageError`, with the parameter's name, for what an engine cannot do."""
    params, able, name = request.params, wire.able, wire.name
    for field in OPTIONAL:
        if getattr(params, field) != getattr(NEUTRAL, field) and field not in able.fields:
            raise UsageError(f"{name} does not take {field}", hint="Leave it out, or use the native engine.")
    if params.stop_token_ids and not able.stop_token_ids:
        raise UsageError(f"{name} does not take stop_token_ids", hint="Use stop with texts.")
    if params.logprobs is not None and params.logprobs > able.logprobs:
        most = f"at most {able.logprobs} alternatives" if able.logprobs >= 0 else "no log-probabilities of tokens"
        raise UsageError(f"{name} tells {most}", hint="Ask for fewer logprobs, or use the native engine.")
    if (params.prompt_logprobs is not None or not params.max_tokens) and not able.prompt_logprobs:
        raise UsageError(f"{name} tells no log-probabilities of a prompt", hint="Use the native engine, or vLLM.")
    if params.grammar is not None and not free(params.grammar) and params.grammar.kind not in able.grammars:
        raise UsageError(f"{name} cannot hold an answer to a grammar of the kind {params.grammar.kind}")
    if request.adapter and not able.adapters:
        raise UsageError(f"{name} takes no adapters beside its model", hint="Merge the adapter (train.merge).")


def free(grammar: Grammar) -> bool:
    """Tell whether a grammar allows any text too: calls of tools that may be made, and need not."""
    return grammar.kind == "tools" and bool(json.loads(grammar.value).get("free"))


def finish_of(word: Any) -> FinishReason | None:
    """Return why an answer ended, from the many words for it."""
    if isinstance(word, Mapping):  # SGLang's and LMDeploy's
        word = word.get("type")
    if word in (None, "", "none"):
        return None
    if word in ("length", "limit"):
        return "length"
    if word in ("abort", "cancelled", "error"):
        return "error"
    return "stop"  # stop, eos, word, tool_calls, content_filter


def top_of(pairs: Mapping[int, float], most: int | None) -> tuple[tuple[int, float], ...]:
    """Return the likeliest tokens, best first, at most so many."""
    best = sorted(pairs.items(), key=lambda pair: -pair[1])
    return tuple(best[: most or 0])


def nonsense(name: str, what: object) -> RemoteError:
    """Return the error for an answer that cannot be read."""
    return RemoteError(f"{name} answered what cannot be read: {str(what)[:200]}")
