"""The dialect of llama.cpp's server: its own `/completion`, which takes and tells token ids.

It tells no log-probabilities of a prompt; and of tokens that are a part of a character it tells no log-probability, and
while it streams no id (its text is whole). Where the whole answer is wanted at once, all ids are there. `ignore_end` is
another thing to it: the end token is never chosen, where the native engine chooses it and goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from catena.core.errors import UsageError
from catena.core.generate import Grammar, TokenLogprob
from catena.infer.backends.wire import OPTIONAL, Able, Asked, Call, Piece, Reader, finish_of, free, nonsense

SAMPLERS = ["penalties", "temperature", "top_k", "top_p", "min_p"]
"""In the order of the native engine and of vLLM: probabilities are cut after the temperature."""


class LlamaCpp:
    """llama.cpp's server."""

    name = "llama.cpp"
    able = Able(
        ids=True,
        fields=frozenset(OPTIONAL),
        logprobs=20,
        grammars=frozenset({"json_schema", "json", "choice"}),
    )

    def call(self, asked: Asked) -> Call:
        """Return the HTTP request."""
        params = asked.params
        body: dict[str, Any] = {
            "prompt": asked.ids,
            "n_predict": params.max_tokens,
            "stream": asked.stream,
            "return_tokens": True,
            "cache_prompt": True,
            "samplers": SAMPLERS,
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "min_p": params.min_p,
            "repeat_penalty": params.repetition_penalty,
            "repeat_last_n": asked.context or 4096,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "ignore_eos": params.ignore_end,
            "stop": list(params.stop),
        }
        if params.seed is not None:
            body["seed"] = params.seed % (1 << 32)
        if params.logit_bias:
            body["logit_bias"] = [[token, bias] for token, bias in params.logit_bias.items()]
        if params.logprobs is not None:
            body["n_probs"] = max(params.logprobs, 1)
        if params.grammar is not None and not free(params.grammar):
            body |= _grammar(params.grammar)
        return Call("/completion", body, asked.stream)

    def reader(self, asked: Asked) -> Reader:
        """Return a function from events to pieces."""

        def piece(event: Mapping[str, Any]) -> Piece:
            try:
                last = bool(event.get("stop"))
                streamed_end = last and asked.stream  # repeats what the events before it told
                entries = () if streamed_end else event.get("completion_probabilities") or ()
                return Piece(
                    text="" if streamed_end else event.get("content") or "",
                    ids=tuple(event.get("tokens") or ()),
                    logprobs=tuple(_logprob(one, asked.params.logprobs or 0) for one in entries),
                    finish=(finish_of(event.get("stop_type")) or "stop") if last else None,
                    prompt_tokens=event.get("tokens_evaluated"),
                    answer_tokens=event.get("tokens_predicted"),
                )
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise nonsense(self.name, event) from error

        return piece


def _logprob(entry: Mapping[str, Any], most: int) -> TokenLogprob:
    top = tuple((int(one["id"]), float(one["logprob"])) for one in entry["top_logprobs"])
    return TokenLogprob(int(entry["id"]), float(entry["logprob"]), top[:most])


def _grammar(grammar: Grammar) -> dict[str, Any]:
    if grammar.kind == "choice":
        choices = json.loads(grammar.value)
        return {"grammar": "root ::= " + " | ".join(json.dumps(one) for one in choices)}
    schema = json.loads(grammar.value) if grammar.kind == "json_schema" else {"type": "object"}
    if not isinstance(schema, dict):
        raise UsageError("llama.cpp takes a JSON schema that is an object")
    return {"json_schema": schema}
