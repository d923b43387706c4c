"""The dialect of OpenAI's API: conversations and texts in, text out. And vLLM's, which is the same with token ids.

Plain OpenAI: messages go to /chat/completions, texts and ids to /completions. vLLM gets ids at /completions, made
by the model's own chat template here, and tells the ids of its answer and of every alternative.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from catena.core.errors import UsageError
from catena.core.generate import Grammar, Message, TokenLogprob
from catena.infer.backends.wire import (
    OPTIONAL,
    PENALTIES,
    Able,
    Asked,
    Call,
    Piece,
    Reader,
    finish_of,
    free,
    nonsense,
    top_of,
)

TOKEN_ID = "token_id:"
"""What vLLM writes before a token's id where it is asked for ids in place of text."""


class OpenAI:
    """OpenAI's own fields and no others. Prompts are scored by `echo`, where the server does that."""

    name = "the server"
    able = Able(
        ids=False,
        fields=PENALTIES | {"logit_bias"},
        prompt_logprobs=True,
        grammars=frozenset({"json_schema", "json"}),
        stop_token_ids=False,
    )

    def call(self, asked: Asked) -> Call:
        """Return the HTTP request."""
        params, prompt = asked.params, asked.request.prompt
        body: dict[str, Any] = {"model": asked.model, **common(asked), **streaming(asked)}
        if asked.prompt_logprobs is not None or not asked.generates:
            if params.max_tokens > 0:
                raise UsageError(f"{self.name} cannot score a prompt and go on with it", hint="Ask in two requests.")
            body |= {"prompt": asked.ids or prompt, "echo": True, "logprobs": 0, "max_tokens": 0, "temperature": 0}
            return Call("/completions", body, stream=False)
        if isinstance(prompt, str) or not _is_conversation(prompt):
            if params.grammar is not None and not free(params.grammar):
                raise UsageError(f"{self.name} holds only answers to conversations to a grammar")
            return Call("/completions", body | {"prompt": asked.ids or prompt}, asked.stream)
        body["messages"] = [{"role": one.role, "content": one.content, **one.extra} for one in messages(prompt)]
        if asked.request.tools:
            body["tools"] = [dict(tool) for tool in asked.request.tools]
        if params.grammar is not None and not free(params.grammar):
            body["response_format"] = response_format(params.grammar)
        return Call("/chat/completions", body, asked.stream)

    def reader(self, asked: Asked) -> Reader:
        """Return a function from events to pieces."""
        return lambda event: read(event, asked, self.name)


class VLLM:
    """vLLM: OpenAI's completions over token ids, with vLLM's further fields."""

    name = "vLLM"
    able = Able(
        ids=True,
        fields=frozenset(OPTIONAL),
        logprobs=20,
        prompt_logprobs=True,
        grammars=frozenset({"json_schema", "json", "regex", "choice"}),
        adapters=True,
    )

    def call(self, asked: Asked) -> Call:
        """Return the HTTP request."""
        params = asked.params
        stream = asked.stream and asked.prompt_logprobs is None  # vLLM tells those only of a whole answer
        body = {
            "model": asked.request.adapter or asked.model,
            "prompt": asked.ids,
            **common(asked),
            **(streaming(asked) if stream else {}),
            "return_token_ids": True,
            "top_k": params.top_k,
            "min_p": params.min_p,
            "repetition_penalty": params.repetition_penalty,
            "stop_token_ids": list(params.stop_token_ids),
            "ignore_eos": params.ignore_end,
        }
        if not asked.generates:
            body["max_tokens"] = 1
        if params.logprobs is not None:
            body |= {"logprobs": params.logprobs, "return_tokens_as_token_ids": True}
        if asked.prompt_logprobs is not None:
            body["prompt_logprobs"] = asked.prompt_logprobs
        if params.grammar is not None and not free(params.grammar):
            body["structured_outputs"] = structured(params.grammar)
        return Call("/completions", body, stream)

    def reader(self, asked: Asked) -> Reader:
        """Return a function from events to pieces."""

        def piece(event: Mapping[str, Any]) -> Piece:
            found = read(event, asked, self.name)
            return found if asked.generates else Piece(prompt_logprobs=found.prompt_logprobs, finish="stop")

        return piece


def common(asked: Asked) -> dict[str, Any]:
    """Return the fields that every OpenAI-like server takes."""
    params = asked.params
    body: dict[str, Any] = {"max_tokens": params.max_tokens, "temperature": params.temperature, "top_p": params.top_p}
    for field in ("presence_penalty", "frequency_penalty", "seed"):
        if getattr(params, field):
            body[field] = getattr(params, field)
    if params.seed == 0:
        body["seed"] = 0
    if params.stop:
        body["stop"] = list(params.stop)
    if params.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
    return body


def streaming(asked: Asked) -> dict[str, Any]:
    """Return the fields that ask for a stream with the count of tokens at its end."""
    return {"stream": True, "stream_options": {"include_usage": True}} if asked.stream else {}


def response_format(grammar: Grammar) -> dict[str, Any]:
    """Return a grammar as OpenAI's chat takes it."""
    if grammar.kind == "json":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": json.loads(grammar.value)}}


def structured(grammar: Grammar) -> dict[str, Any]:
    """Return a grammar as vLLM takes it."""
    if grammar.kind == "json":
        return {"json_object": True}
    if grammar.kind == "regex":
        return {"regex": grammar.value}
    return {"choice" if grammar.kind == "choice" else "json": json.loads(grammar.value)}


def read(event: Mapping[str, Any], asked: Asked, name: str) -> Piece:
    """Read an event or a whole answer, of a chat or a completion."""
    usage = event.get("usage") or {}
    counts: dict[str, Any] = {}
    if usage:
        details = usage.get("prompt_tokens_details") or {}
        counts = {
            "prompt_tokens": usage.get("prompt_tokens"),
            "answer_tokens": usage.get("completion_tokens"),
            "cached": details.get("cached_tokens"),
        }
    choices = event.get("choices")
    if not choices:
        return Piece(**counts)
    choice = choices[0]
    try:
        inner = choice.get("delta") or choice.get("message") or {}
        text = choice.get("text") or inner.get("content") or ""
        told = choice.get("logprobs") or {}
        scored = asked.prompt_logprobs is not None or not asked.generates
        return Piece(
            text=text if asked.generates else "",
            ids=tuple(choice.get("token_ids") or ()),
            logprobs=_answer_logprobs(told, asked.params.logprobs) if asked.generates else (),
            prompt_logprobs=_prompt_logprobs(choice, told, asked) if scored else (),
            finish=finish_of(choice.get("finish_reason")),
            **counts,
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise nonsense(name, event) from error


def _answer_logprobs(told: Mapping[str, Any], most: int | None) -> tuple[TokenLogprob, ...]:
    """Read log-probabilities whose tokens are written as ids; those in text name no token for certain."""
    tokens: Sequence[str] = told.get("tokens") or ()
    if most is None or not all(token.startswith(TOKEN_ID) for token in tokens):
        return ()
    tops = told.get("top_logprobs") or [{}] * len(tokens)
    return tuple(
        TokenLogprob(_id(token), logprob, top_of({_id(key): one for key, one in (top or {}).items()}, most))
        for token, logprob, top in zip(tokens, told["token_logprobs"], tops, strict=True)
    )


def _prompt_logprobs(choice: Mapping[str, Any], told: Mapping[str, Any], asked: Asked) -> tuple[TokenLogprob, ...]:
    ids = asked.ids or []
    if choice.get("prompt_logprobs"):  # vLLM's: for each token a mapping from ids, the token's own among them
        entries = []
        for id, place in zip(ids[1:], choice["prompt_logprobs"][1:], strict=True):
            pairs = {int(key): float(one["logprob"]) for key, one in place.items()}
            entries.append(TokenLogprob(id, pairs[id], top_of(pairs, asked.prompt_logprobs)))
        return tuple(entries)
    values = (told.get("token_logprobs") or [])[1:]
    known = ids[1:] if len(ids) - 1 == len(values) else [-1] * len(values)
    return tuple(TokenLogprob(id, float(value)) for id, value in zip(known, values, strict=True))


def _id(token: str) -> int:
    return int(token.removeprefix(TOKEN_ID))


def messages(prompt: Sequence[Any]) -> list[Message]:
    """Return a prompt as messages."""
    return [one for one in prompt if isinstance(one, Message)]


def _is_conversation(prompt: Sequence[Any]) -> bool:
    return bool(prompt) and all(isinstance(one, Message) for one in prompt)
