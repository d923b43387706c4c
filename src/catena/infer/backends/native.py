"""The dialects of SGLang and LMDeploy: their own `/generate`, which takes and tells token ids.

They have one form with three differences: SGLang takes sampling parameters in an object of their own, tells the whole
answer so far in each event, and log-probabilities with alternatives and of the prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from catena.core.generate import Grammar, SamplingParams, TokenLogprob
from catena.infer.backends.wire import PENALTIES, Able, Asked, Call, Piece, Reader, finish_of, free, nonsense


class SGLang:
    """SGLang's own server."""

    name = "SGLang"
    able = Able(
        ids=True,
        fields=PENALTIES | {"top_k", "min_p", "repetition_penalty", "ignore_end"},
        logprobs=20,
        prompt_logprobs=True,
        grammars=frozenset({"json_schema", "json", "regex", "choice"}),
        adapters=True,
    )

    def call(self, asked: Asked) -> Call:
        """Return the HTTP request."""
        params = asked.params
        sampling: dict[str, Any] = {
            **_sampling(params),
            "max_new_tokens": params.max_tokens,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "stop_token_ids": list(params.stop_token_ids),
            "top_k": params.top_k or -1,
        }
        if params.seed is not None:
            sampling["sampling_seed"] = params.seed
        if params.grammar is not None and not free(params.grammar):
            sampling |= _grammar(params.grammar)
        stream = asked.stream and asked.prompt_logprobs is None
        body: dict[str, Any] = {"input_ids": asked.ids, "sampling_params": sampling, "stream": stream}
        wanted = [one for one in (params.logprobs, asked.prompt_logprobs) if one is not None]
        if wanted:
            scored = asked.prompt_logprobs is not None
            body |= {"return_logprob": True, "top_logprobs_num": max(wanted), "logprob_start_len": 0 if scored else -1}
        if asked.request.adapter:
            body["lora_path"] = asked.request.adapter
        return Call("/generate", body, stream)

    def reader(self, asked: Asked) -> Reader:
        """Return a function from events, each with the whole answer so far, to what is new in them."""
        text, ids, told = "", 0, 0

        def piece(event: Mapping[str, Any]) -> Piece:
            nonlocal text, ids, told
            try:
                meta = event["meta_info"]
                whole, output = event.get("text") or "", event.get("output_ids") or []
                entries = meta.get("output_token_logprobs") or []
                tops = meta.get("output_top_logprobs") or [()] * len(entries)
                found = Piece(
                    text=whole[len(text) :],
                    ids=tuple(output[ids:]),
                    logprobs=_entries(entries[told:], tops[told:], asked.params.logprobs),
                    prompt_logprobs=_prompt(meta, asked.prompt_logprobs),
                    finish=finish_of(meta.get("finish_reason")),
                    prompt_tokens=meta.get("prompt_tokens"),
                    answer_tokens=meta.get("completion_tokens"),
                    cached=meta.get("cached_tokens"),
                )
                text, ids, told = whole, len(output), len(entries)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                raise nonsense(self.name, event) from error
            return found

        return piece


class LMDeploy:
    """LMDeploy's own server."""

    name = "LMDeploy"
    able = Able(
        ids=True,
        fields=frozenset({"top_k", "min_p", "repetition_penalty", "ignore_end"}),
        logprobs=0,
        adapters=False,
    )

    def call(self, asked: Asked) -> Call:
        """Return the HTTP request."""
        params = asked.params
        body: dict[str, Any] = {
            **_sampling(params),
            "input_ids": asked.ids,
            "max_tokens": params.max_tokens,
            "stream": asked.stream,
            "stop_token_ids": list(params.stop_token_ids),
            # The likeliest token and no other, whatever the temperature is taken for.
            "top_k": 1 if params.temperature == 0 else params.top_k,
        }
        if params.seed is not None:
            body["seed"] = params.seed
        if params.logprobs is not None:
            body["return_logprob"] = True
        return Call("/generate", body, asked.stream)

    def reader(self, asked: Asked) -> Reader:
        """Return a function from events to pieces."""

        def piece(event: Mapping[str, Any]) -> Piece:
            try:
                meta = event["meta_info"]
                entries = meta.get("output_token_logprobs") or []
                return Piece(
                    text=event.get("text") or "",
                    ids=tuple(event.get("output_ids") or ()),
                    logprobs=tuple(TokenLogprob(int(one[1]), float(one[0])) for one in entries),
                    finish=finish_of(meta.get("finish_reason")),
                    prompt_tokens=meta.get("prompt_tokens"),
                    answer_tokens=meta.get("completion_tokens"),
                )
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                raise nonsense(self.name, event) from error

        return piece


def _sampling(params: SamplingParams) -> dict[str, Any]:
    return {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "ignore_eos": params.ignore_end,
        "stop": list(params.stop) or None,
    }


def _grammar(grammar: Grammar) -> dict[str, str]:
    if grammar.kind == "regex":
        return {"regex": grammar.value}
    if grammar.kind == "choice":
        return {"regex": "(" + "|".join(re.escape(one) for one in json.loads(grammar.value)) + ")"}
    return {"json_schema": grammar.value if grammar.kind == "json_schema" else '{"type": "object"}'}


def _entries(chosen: Sequence[Any], tops: Sequence[Any], most: int | None) -> tuple[TokenLogprob, ...]:
    """Read (log-probability, id, text) of tokens and of the likeliest at their places."""
    if most is None:
        return ()
    return tuple(
        TokenLogprob(
            int(one[1]), float(one[0]), tuple((int(other[1]), float(other[0])) for other in (top or ())[:most])
        )
        for one, top in zip(chosen, tops, strict=True)
    )


def _prompt(meta: Mapping[str, Any], most: int | None) -> tuple[TokenLogprob, ...]:
    if most is None:
        return ()
    chosen = (meta.get("input_token_logprobs") or [])[1:]
    tops = (meta.get("input_top_logprobs") or [()] * (len(chosen) + 1))[1:]
    return _entries(chosen, tops, most)
